//! The order of all writes, and when each replica shows them.
//!
//! Every write is an entry of one log. The server that executes it shows it at once, and the others
//! after their lag, if a live server has it. A mutation has a time for each replica, too.

use super::parts::TableId;

/// The largest number of replicas.
pub(super) const MAX_REPLICAS: usize = 3;

/// The largest lag of a replica unless it is set, in milliseconds.
const DEFAULT_LAG: u64 = 200;

/// The time of a write that a replica does not show until its lag or a crash ends.
const PENDING: u64 = u64::MAX;

/// When each replica shows a write, by the servers' clock in milliseconds since 1970.
type Times = [u64; MAX_REPLICAS];

/// The position of a write in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seq(pub(super) usize);

/// A deletion of rows, as it is executed on each replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Deletion(usize);

/// Where a write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Claims,
    Events,
    Failures,
    Rows(TableId),
}

/// The tables of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Claims,
    Events,
    ClaimsAndEvents,
    Table(TableId),
    /// Rejects, and the snapshots of replays.
    RejectsAndSnapshots(TableId, TableId),
    EventsAndSnapshots(TableId),
    /// All tables but those of the ledger.
    AllRows,
}

impl Scope {
    fn has(self, place: Place) -> bool {
        match self {
            Self::Claims => place == Place::Claims,
            Self::Events => place == Place::Events,
            Self::ClaimsAndEvents => matches!(place, Place::Claims | Place::Events),
            Self::Table(table) => place == Place::Rows(table),
            Self::RejectsAndSnapshots(rejects, snapshots) => {
                place == Place::Rows(rejects) || place == Place::Rows(snapshots)
            }
            Self::EventsAndSnapshots(snapshots) => {
                place == Place::Events || place == Place::Rows(snapshots)
            }
            Self::AllRows => matches!(place, Place::Rows(_)),
        }
    }
}

/// What a statement sees: the writes that its server shows at this time.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) replica: usize,
    /// By the servers' clock, in milliseconds since 1970.
    pub(super) now: u64,
    /// Whether all writes are visible, whatever the server shows.
    is_whole: bool,
}

impl View {
    /// Returns what a replica shows at this time.
    pub(super) fn at(replica: usize, now: u64) -> Self {
        Self {
            replica,
            now,
            is_whole: false,
        }
    }

    /// Returns everything that was written.
    pub(super) fn whole(now: u64) -> Self {
        Self {
            replica: 0,
            now,
            is_whole: true,
        }
    }
}

/// What a replica lacks for a read after a barrier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) shows_barrier: bool,
    /// The number of writes that it does not show.
    pub(super) missing: usize,
}

#[derive(Debug)]
struct Replica {
    is_down: bool,
    /// The largest lag in milliseconds, or `None` if it shows nothing new.
    lag: Option<u64>,
    /// All writes before this one are shown.
    synced: usize,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    shown: Times,
}

/// The writes, and what each replica shows of them.
#[derive(Debug)]
pub(super) struct Log {
    replicas: Vec<Replica>,
    entries: Vec<Entry>,
    deletions: Vec<Times>,
}

impl Log {
    pub(super) fn new(replicas: usize) -> Self {
        let replica = |_| Replica {
            is_down: false,
            lag: Some(DEFAULT_LAG),
            synced: 0,
        };
        Self {
            replicas: (0..replicas).map(replica).collect(),
            entries: Vec::new(),
            deletions: Vec::new(),
        }
    }

    pub(super) fn replicas(&self) -> usize {
        self.replicas.len()
    }

    pub(super) fn is_replicated(&self) -> bool {
        self.replicas.len() > 1
    }

    pub(super) fn is_down(&self, replica: usize) -> bool {
        self.replicas[replica].is_down
    }

    pub(super) fn is_any_down(&self) -> bool {
        self.replicas.iter().any(|replica| replica.is_down)
    }

    /// Appends a write that a replica executes.
    pub(super) fn write(&mut self, place: Place, view: View, rng: &mut fastrand::Rng) -> Seq {
        let shown = self.times(view, rng);
        self.entries.push(Entry { place, shown });
        Seq(self.entries.len() - 1)
    }

    /// Returns the position that the next write has.
    pub(super) fn end(&self) -> Seq {
        Seq(self.entries.len())
    }

    /// Begins a deletion that a replica executes.
    pub(super) fn delete(&mut self, view: View, rng: &mut fastrand::Rng) -> Deletion {
        let times = self.times(view, rng);
        self.deletions.push(times);
        Deletion(self.deletions.len() - 1)
    }

    /// Has the replica of the view execute a deletion that another one began.
    pub(super) fn delete_here(&mut self, deletion: Deletion, view: View) {
        let time = &mut self.deletions[deletion.0][view.replica];
        *time = view.now.min(*time);
    }

    pub(super) fn shows(&self, seq: Seq, view: View) -> bool {
        view.is_whole || self.entries[seq.0].shown[view.replica] <= view.now
    }

    pub(super) fn is_deleted(&self, deletion: Option<Deletion>, view: View) -> bool {
        let done = |it: Deletion| self.deletions[it.0][view.replica] <= view.now;
        deletion.is_some_and(|deletion| view.is_whole || done(deletion))
    }

    /// Returns whether a replica other than this one shows a write.
    pub(super) fn is_shown_elsewhere(&self, seq: Seq, view: View) -> bool {
        let shown = &self.entries[seq.0].shown[..self.replicas.len()];
        let mut shown = shown.iter().enumerate();
        shown.any(|(replica, time)| replica != view.replica && *time <= view.now)
    }

    /// Removes a write whose rows are lost: nobody waits for it any more.
    pub(super) fn forget(&mut self, seq: Seq) {
        self.entries[seq.0].shown = Times::default();
    }

    /// Compares what a replica shows with all writes to these tables up to the barrier.
    pub(super) fn look(&mut self, barrier: Seq, scope: Scope, view: View) -> Look {
        let Replica { synced, .. } = &mut self.replicas[view.replica];
        let is_shown = |entry: &Entry| entry.shown[view.replica] <= view.now;
        while self.entries.get(*synced).is_some_and(is_shown) {
            *synced += 1;
        }
        let shows_barrier = self.entries.get(barrier.0).is_some_and(is_shown);
        let end = self.entries.len().min(barrier.0 + 1);
        let rest = self.entries.get(*synced..end).unwrap_or_default();
        let lacks = |entry: &&Entry| scope.has(entry.place) && !is_shown(entry);
        Look {
            shows_barrier,
            missing: rest.iter().filter(lacks).count(),
        }
    }

    pub(super) fn set_down(&mut self, view: View, is_down: bool, rng: &mut fastrand::Rng) {
        self.replicas[view.replica].is_down = is_down;
        self.settle(view.now, rng);
    }

    pub(super) fn set_lag(&mut self, view: View, lag: Option<u64>, rng: &mut fastrand::Rng) {
        self.replicas[view.replica].lag = lag;
        self.settle(view.now, rng);
    }

    /// Returns when each replica shows a write that one of them executes now.
    fn times(&self, view: View, rng: &mut fastrand::Rng) -> Times {
        let mut times = [PENDING; MAX_REPLICAS];
        for (index, (replica, time)) in self.replicas.iter().zip(&mut times).enumerate() {
            *time = match index == view.replica {
                true => view.now,
                false => replica.arrival(view.now, rng),
            };
        }
        times
    }

    /// Decides again when each replica shows what it does not show yet.
    fn settle(&mut self, now: u64, rng: &mut fastrand::Rng) {
        let is_live: Vec<bool> = self.replicas.iter().map(|it| !it.is_down).collect();
        for (index, replica) in self.replicas.iter().enumerate() {
            for entry in self.entries.iter_mut().skip(replica.synced) {
                let mut sources = entry.shown.iter().zip(&is_live);
                let has_source = sources.any(|(time, is_live)| *is_live && *time <= now);
                replica.reschedule(&mut entry.shown[index], has_source, now, rng);
            }
            // Every replica executes a deletion by itself.
            for times in &mut self.deletions {
                replica.reschedule(&mut times[index], true, now, rng);
            }
        }
    }
}

impl Replica {
    /// Returns when it shows what another replica writes now.
    fn arrival(&self, now: u64, rng: &mut fastrand::Rng) -> u64 {
        match self.lag {
            Some(lag) if !self.is_down => now + rng.u64(0..=lag),
            _ => PENDING,
        }
    }

    fn reschedule(&self, time: &mut u64, has_source: bool, now: u64, rng: &mut fastrand::Rng) {
        if *time <= now {
            return;
        }
        if !has_source || self.is_down || self.lag.is_none() {
            *time = PENDING;
        } else if *time == PENDING {
            *time = self.arrival(now, rng);
        }
    }
}
