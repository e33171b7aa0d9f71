//! The plan of a world: its size, and the kinds of faults that happen in it.

use std::collections::BTreeSet;
use std::fmt;

use fastrand::Rng;
use sluice_core::labelled;

labelled! {
    /// A kind of fault, or of something else that must disturb nothing.
    #[derive(PartialOrd, Ord)]
    pub enum Fault {
        /// A worker is killed, and another starts in its place.
        WorkerCrash = "worker crashes",
        /// A worker is stopped as by SIGTERM, and another starts in its place.
        WorkerStop = "worker stops",
        /// Workers have configurations of their own, as during a rollout.
        Rollout = "mixed configurations",
        /// A ClickHouse server is killed and restarted.
        ServerCrash = "ClickHouse crashes",
        /// A server that is killed keeps a token and loses the rows that belong to it.
        ForgottenRows = "forgotten rows",
        /// Requests to ClickHouse are lost, late or slow, or their responses are.
        ServerNetwork = "disturbed connections to ClickHouse",
        ServerCut = "broken connections to ClickHouse",
        QueueNetwork = "disturbed connections to the queue",
        QueueCut = "broken connections to the queue",
        /// The queue responds to every request with an error.
        QueueErrors = "errors of the queue",
        StoreNetwork = "disturbed connections of workers to S3",
        /// S3 responds to everything with 503.
        StoreOutage = "outages of S3",
        /// A replica shows late, or not at all, what was written through others.
        Lag = "lagging replicas",
        /// ClickHouse responds to every statement with an error.
        Refusal = "refused statements",
        FailedInserts = "failed inserts",
        LostKills = "lost kills",
        LostMutations = "lost mutations",
        /// A user's view on a table throws.
        View = "throwing views",
        /// Messages are sent twice.
        Duplicates = "duplicate messages",
        /// Objects are replaced by others under their keys.
        Changed = "changed objects",
        Deleted = "deleted objects",
        /// Objects whose compressed stream is cut short.
        Cut = "objects cut short",
        /// Objects that S3 denies to ClickHouse, to the workers or to both, for a while or for good.
        Denied = "denied objects",
        /// An operator grants access to denied objects, and moves the dead letters back.
        Redrive = "redrives",
        /// SQS delivers messages once more, although they are in flight or deleted.
        Redelivery = "repeated deliveries",
        /// Single entries of requests fail that delete messages or change their visibility.
        FailedEntries = "failed entries of batch requests",
        /// Deletions are reported as successful and have no effect.
        LostDeletes = "lost deletions",
        /// Requests with the receipt handle of an earlier delivery take effect.
        OutdatedHandles = "out-of-date receipt handles that take effect",
        /// The queue is a FIFO queue, whose messages have groups.
        Fifo = "messages in groups",
        /// A message can be hidden for minutes after its receive, instead of twelve hours.
        VisibilityLimit = "short limits of total visibility",
        /// Some objects are not announced, and backfills load them beside the workers.
        Backfill = "backfills",
        /// Backfills that also load objects again that are loaded, and replace their rows.
        Forced = "forced backfills",
        /// A backfill is killed, and another continues it.
        BackfillCrash = "backfill crashes",
        /// An operator deploys fixed declarations, and replays rejects.
        Replay = "replays of rejects",
    }
}

impl Fault {
    /// The kinds that are drawn together.
    pub const ALL: [Self; 24] = [
        Self::WorkerCrash,
        Self::WorkerStop,
        Self::Rollout,
        Self::ServerCrash,
        Self::ForgottenRows,
        Self::ServerNetwork,
        Self::ServerCut,
        Self::QueueNetwork,
        Self::QueueCut,
        Self::QueueErrors,
        Self::StoreNetwork,
        Self::StoreOutage,
        Self::Lag,
        Self::Refusal,
        Self::FailedInserts,
        Self::LostKills,
        Self::LostMutations,
        Self::View,
        Self::Duplicates,
        Self::Changed,
        Self::Deleted,
        Self::Cut,
        Self::Denied,
        Self::Redrive,
    ];

    /// More kinds. Each is drawn by itself, so that the others of a seed stay the same.
    pub const MORE: [Self; 10] = [
        Self::Redelivery,
        Self::FailedEntries,
        Self::LostDeletes,
        Self::OutdatedHandles,
        Self::Fifo,
        Self::VisibilityLimit,
        Self::Backfill,
        Self::Forced,
        Self::BackfillCrash,
        Self::Replay,
    ];

    /// Returns whether it can cost a message receives although nothing has crashed: the queue fails,
    /// or an object cannot be loaded, or seems so, for a while.
    ///
    /// SQS counts every delivery, also one that it repeats, or that follows a lost deletion or the
    /// limit of total visibility. What it does with the entries of a request costs nothing: entries
    /// that fail are retried, and a receipt handle is out of date only once a message has been
    /// received again for another reason. Groups hold messages back before they are received. And a
    /// message whose object a backfill is loading stays in flight until the object is loaded.
    pub(super) fn costs_receives(self) -> bool {
        match self {
            Self::ServerNetwork
            | Self::QueueNetwork
            | Self::QueueCut
            | Self::QueueErrors
            | Self::StoreNetwork
            | Self::StoreOutage
            | Self::FailedInserts
            | Self::View
            | Self::Denied
            | Self::Redrive
            | Self::Redelivery
            | Self::LostDeletes
            | Self::VisibilityLimit => true,
            Self::WorkerCrash
            | Self::WorkerStop
            | Self::Rollout
            | Self::ServerCrash
            | Self::ForgottenRows
            | Self::ServerCut
            | Self::Lag
            | Self::Refusal
            | Self::LostKills
            | Self::LostMutations
            | Self::Duplicates
            | Self::Changed
            | Self::Deleted
            | Self::Cut
            | Self::FailedEntries
            | Self::OutdatedHandles
            | Self::Fifo
            | Self::Backfill
            | Self::Forced
            | Self::BackfillCrash
            | Self::Replay => false,
        }
    }
}

/// The size of a world, and its faults. Everything else follows from the seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub workers: usize,
    /// The number of ClickHouse servers: 1 for a plain one, more for replicas of each other.
    pub replicas: usize,
    /// The number of keys under which objects are uploaded.
    pub objects: usize,
    pub faults: BTreeSet<Fault>,
}

/// The smallest number of kinds of faults.
const MIN_FAULTS: usize = 3;
/// How many of 100 worlds have a kind of fault.
const SHARE: u32 = 30;
/// How many of 100 worlds have one of the kinds that are drawn by themselves.
const SHARE_OF_MORE: u32 = 15;

impl Plan {
    /// Returns the plan of a seed: at least two workers, 50 objects, three kinds of faults, and
    /// crashes of workers or of ClickHouse.
    pub fn of(seed: u64) -> Self {
        let mut rng = stream(seed, "plan", 0);
        let workers = rng.usize(2..=4);
        let replicas = [1, 1, 2, 3][rng.usize(..4)];
        let objects = rng.usize(50..=120);
        let mut faults = BTreeSet::new();
        for fault in Fault::ALL {
            if rng.u32(0..100) < SHARE {
                faults.insert(fault);
            }
        }
        let mut plan = Self {
            workers,
            replicas,
            objects,
            faults,
        };
        plan.add_a_crash(&mut rng);
        plan.complete();
        while plan.faults.len() < MIN_FAULTS {
            plan.faults
                .insert(Fault::ALL[rng.usize(..Fault::ALL.len())]);
            plan.complete();
        }
        for fault in Fault::MORE {
            let mut rng = stream(seed, fault.label(), u64::MAX);
            if rng.u32(0..100) < SHARE_OF_MORE {
                plan.faults.insert(fault);
            }
        }
        plan.complete();
        plan
    }

    /// Returns whether the world has this kind of fault.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// Returns whether some messages can use up receives although nothing has crashed.
    pub(super) fn costs_receives(&self) -> bool {
        self.faults.iter().any(|fault| fault.costs_receives())
    }

    fn add_a_crash(&mut self, rng: &mut Rng) {
        if !self.has(Fault::WorkerCrash) && !self.has(Fault::ServerCrash) {
            let crash = if rng.bool() {
                Fault::WorkerCrash
            } else {
                Fault::ServerCrash
            };
            self.faults.insert(crash);
        }
    }

    /// Adds what faults require, and removes those that would have no effect.
    pub(super) fn complete(&mut self) {
        if self.has(Fault::ForgottenRows) {
            self.faults.insert(Fault::ServerCrash);
        }
        if self.replicas == 1 {
            self.faults.remove(&Fault::Lag);
        }
        if !self.has(Fault::Denied) {
            self.faults.remove(&Fault::Redrive);
        }
        if self.has(Fault::OutdatedHandles) {
            self.faults.insert(Fault::Redelivery);
        }
        if self.has(Fault::Fifo) {
            // A FIFO queue delivers a message of a group again only when its visibility has ended,
            // and accepts only the handle of the last delivery.
            self.faults.remove(&Fault::Redelivery);
            self.faults.remove(&Fault::OutdatedHandles);
        }
        if self.has(Fault::Forced) || self.has(Fault::BackfillCrash) {
            self.faults.insert(Fault::Backfill);
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<&str> = self.faults.iter().map(|fault| fault.label()).collect();
        write!(
            f,
            "workers: {}; replicas: {}; objects: {}; faults: {}",
            self.workers,
            self.replicas,
            self.objects,
            faults.join(", ")
        )
    }
}

/// Returns the random numbers of one purpose in a world. Each purpose has numbers of its own, so
/// that a fault that is switched off does not change the others.
pub(super) fn stream(seed: u64, purpose: &str, number: u64) -> Rng {
    Rng::with_seed(mixed(seed, purpose, number))
}

/// Returns a seed that is made of a seed, a purpose and a number (FNV-1a).
pub(super) fn mixed(seed: u64, purpose: &str, number: u64) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let (seed, number) = (seed.to_le_bytes(), number.to_le_bytes());
    let bytes = seed.iter().chain(purpose.as_bytes()).chain(&number);
    bytes.fold(BASIS, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_drawn() {
        let labels: BTreeSet<&str> = Fault::LABELS.iter().copied().collect();
        let kinds = Fault::ALL.into_iter().chain(Fault::MORE);
        let kinds: BTreeSet<&str> = kinds.map(Fault::label).collect();
        assert_eq!(kinds, labels);
        let drawn = (0..300).flat_map(|seed| Plan::of(seed).faults);
        let drawn: BTreeSet<&str> = drawn.map(Fault::label).collect();
        assert_eq!(drawn, labels);
    }
}
