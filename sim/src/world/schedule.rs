//! When which fault begins and ends, drawn from the seed.

mod backfills;
mod manners;

use std::time::Duration;

use fastrand::Rng;
use sluice::queue::QueueError;
use sluice::statements::select::Target;

use super::manners::Manner;
use super::plan::{Fault, Plan, stream};
use super::settings::catalog;
use crate::network::Disturbance;
use crate::s3::Reader;

/// How long at most a fault lasts that makes objects fail: each failure costs a receive.
const BRIEF: Duration = Duration::from_secs(30);
const OUTAGE: Duration = Duration::from_secs(60);
/// The largest number of spans of one kind of fault.
const MAX_SPANS: usize = 3;

/// The lag of a replica that is healthy.
pub(super) const USUAL_LAG: Duration = Duration::from_millis(100);

/// An event, and the time after the beginning of the world at which it happens.
#[derive(Clone, Debug)]
pub(super) struct Timed {
    pub(super) at: Duration,
    pub(super) event: Event,
}

/// What happens to a world. Workers, replicas and objects are numbered from 0.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// An object is uploaded.
    Put(usize),
    /// The message of this number is sent.
    Send(usize),
    Delete(usize),
    /// Access to a denied object is granted.
    Grant(usize),
    CrashWorker(usize),
    StopWorker(usize),
    StartWorker(usize),
    CrashServer {
        replica: usize,
        forgets_rows: bool,
    },
    RestartServer(usize),
    /// `None`: the replica shows nothing new.
    Lag {
        replica: usize,
        lag: Option<Duration>,
    },
    Disturb {
        link: Link,
        disturbance: Disturbance,
    },
    Cut {
        link: Link,
        is_cut: bool,
    },
    FailQueue(Option<QueueError>),
    Refuse(Option<u32>),
    FailInserts {
        code: u32,
        one_in: u32,
    },
    LoseKills {
        one_in: u32,
    },
    LoseMutations {
        one_in: u32,
    },
    /// A view on this table throws.
    ThrowIn(Option<&'static str>),
    StoreAway {
        reader: Reader,
        is_away: bool,
    },
    Redrive,
    /// The queue does this at a rate, in cases of 1,000.
    SetManner {
        manner: Manner,
        rate: u32,
    },
    StartBackfill {
        is_forced: bool,
    },
    CrashBackfill,
    /// A backfill that was killed is continued by another.
    ResumeBackfill,
    /// Workers that start from now on have the fixed declarations.
    Deploy,
    /// A replay of rejects is started or killed. Replays are numbered from 0.
    StartReplay(usize),
    KillReplay(usize),
    /// A worker starts in each place that has none.
    StartWorkers,
}

/// The connections of a worker, or of all, to a system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// `None`: those of all workers.
    pub(super) worker: Option<usize>,
    pub(super) to: System,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    ClickHouse,
    Queue,
    Store,
}

/// Returns how long faults happen in the world of a seed.
pub(super) fn faults_for(seed: u64) -> Duration {
    Duration::from_secs(stream(seed, "faults", 0).u64(60..=180))
}

/// Returns the beginnings and ends of all faults. Each has ended after the time `within`, and then
/// all workers run.
pub(super) fn faults(seed: u64, plan: &Plan, within: Duration) -> Vec<Timed> {
    let mut events = Vec::new();
    for fault in &plan.faults {
        let mut draw = Draw {
            rng: stream(seed, fault.label(), 0),
            plan,
            within,
            events: &mut events,
        };
        draw.fault(*fault);
    }
    events.push(Timed {
        at: within,
        event: Event::StartWorkers,
    });
    events
}

/// Returns a random duration of more than zero, up to `longest`.
pub(super) fn up_to(rng: &mut Rng, longest: Duration) -> Duration {
    let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(rng.u64(1..=millis.max(1)))
}

/// Draws the events of one kind of fault.
struct Draw<'a> {
    rng: Rng,
    plan: &'a Plan,
    within: Duration,
    events: &'a mut Vec<Timed>,
}

impl Draw<'_> {
    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::WorkerCrash => self.ends(Event::CrashWorker),
            Fault::WorkerStop => self.ends(Event::StopWorker),
            Fault::ServerCrash => self.server_crashes(),
            Fault::ServerNetwork => self.disturbances(System::ClickHouse),
            Fault::QueueNetwork => self.disturbances(System::Queue),
            Fault::StoreNetwork => self.disturbances(System::Store),
            Fault::ServerCut => self.cuts(System::ClickHouse),
            Fault::QueueCut => self.cuts(System::Queue),
            Fault::QueueErrors => self.queue_errors(),
            Fault::StoreOutage => self.store_outages(),
            Fault::Lag => self.lags(),
            Fault::Refusal => self.refusals(),
            Fault::FailedInserts => self.failed_inserts(),
            Fault::LostKills => self.losses(|one_in| Event::LoseKills { one_in }),
            Fault::LostMutations => self.losses(|one_in| Event::LoseMutations { one_in }),
            Fault::View => self.views(),
            Fault::Redrive => {
                let at = self.within / 2 + up_to(&mut self.rng, self.within);
                self.add(at, Event::Redrive);
            }
            Fault::Redelivery => self.manners(Manner::Duplicates),
            Fault::FailedEntries => self.manners(Manner::FailedEntries),
            Fault::LostDeletes => self.manners(Manner::LostDeletes),
            Fault::OutdatedHandles => self.manners(Manner::OutdatedHandles),
            Fault::Backfill => self.backfills(),
            Fault::Replay => self.replays(),
            // Properties of workers, crashes, messages, objects, the queue and backfills.
            Fault::Rollout
            | Fault::ForgottenRows
            | Fault::Duplicates
            | Fault::Changed
            | Fault::Deleted
            | Fault::Cut
            | Fault::Denied
            | Fault::Fifo
            | Fault::VisibilityLimit
            | Fault::Forced
            | Fault::BackfillCrash => {}
        }
    }

    fn add(&mut self, at: Duration, event: Event) {
        self.events.push(Timed { at, event });
    }

    /// Returns a few spans of time, one after the other.
    fn spans(&mut self, longest: Duration) -> Vec<(Duration, Duration)> {
        let mut spans = Vec::new();
        let mut begin = up_to(&mut self.rng, self.within / 3);
        while begin < self.within && spans.len() < MAX_SPANS {
            let end = (begin + up_to(&mut self.rng, longest)).min(self.within);
            spans.push((begin, end));
            begin = end + up_to(&mut self.rng, self.within / 2);
        }
        spans
    }

    fn ends(&mut self, end: fn(usize) -> Event) {
        for _ in 0..self.rng.usize(1..=4) {
            let worker = self.rng.usize(..self.plan.workers);
            let at = up_to(&mut self.rng, self.within);
            let down_for = up_to(&mut self.rng, BRIEF);
            self.add(at, end(worker));
            self.add(at + down_for, Event::StartWorker(worker));
        }
    }

    fn server_crashes(&mut self) {
        for (begin, end) in self.spans(OUTAGE) {
            let replica = self.rng.usize(..self.plan.replicas);
            let forgets_rows = self.rng.bool() && self.plan.has(Fault::ForgottenRows);
            let crash = Event::CrashServer {
                replica,
                forgets_rows,
            };
            self.add(begin, crash);
            self.add(end, Event::RestartServer(replica));
        }
    }

    fn link(&mut self, to: System) -> Link {
        let is_of_all = self.rng.u32(0..3) == 0;
        let worker = self.rng.usize(..self.plan.workers);
        Link {
            worker: (!is_of_all).then_some(worker),
            to,
        }
    }

    fn disturbances(&mut self, to: System) {
        for (begin, end) in self.spans(self.within) {
            let link = self.link(to);
            let disturbance = Disturbance {
                lost: self.rng.u32(0..=60),
                unanswered: self.rng.u32(0..=60),
                late: self.rng.u32(0..=60),
                slow: self.rng.u32(0..=100),
            };
            self.add(begin, Event::Disturb { link, disturbance });
            let disturbance = Disturbance::default();
            self.add(end, Event::Disturb { link, disturbance });
        }
    }

    fn cuts(&mut self, to: System) {
        for (begin, end) in self.spans(OUTAGE) {
            let link = self.link(to);
            self.add(begin, Event::Cut { link, is_cut: true });
            let is_cut = false;
            self.add(end, Event::Cut { link, is_cut });
        }
    }

    fn queue_errors(&mut self) {
        for (begin, end) in self.spans(BRIEF) {
            let text = "simulated".to_owned();
            let error = if self.rng.bool() {
                QueueError::Transient(text)
            } else {
                QueueError::Denied(text)
            };
            self.add(begin, Event::FailQueue(Some(error)));
            self.add(end, Event::FailQueue(None));
        }
    }

    fn store_outages(&mut self) {
        for (begin, end) in self.spans(BRIEF) {
            let readers: &[Reader] = match self.rng.u32(0..3) {
                0 => &[Reader::Server],
                1 => &[Reader::Worker],
                _ => &[Reader::Server, Reader::Worker],
            };
            for (at, is_away) in [(begin, true), (end, false)] {
                for reader in readers {
                    let reader = *reader;
                    self.add(at, Event::StoreAway { reader, is_away });
                }
            }
        }
    }

    fn lags(&mut self) {
        for (begin, end) in self.spans(OUTAGE) {
            let replica = self.rng.usize(..self.plan.replicas);
            let shows_later = self.rng.bool();
            let lag = up_to(&mut self.rng, Duration::from_secs(10));
            let lag = shows_later.then_some(lag);
            self.add(begin, Event::Lag { replica, lag });
            let lag = Some(USUAL_LAG);
            self.add(end, Event::Lag { replica, lag });
        }
    }

    fn refusals(&mut self) {
        // A quota, too many queries or parts, no space, a lost session, read-only tables, a wrong
        // password, missing tables, a broken network, a pending quorum.
        const CODES: [u32; 10] = [201, 202, 252, 243, 999, 242, 516, 60, 210, 286];
        for (begin, end) in self.spans(OUTAGE) {
            let code = CODES[self.rng.usize(..CODES.len())];
            self.add(begin, Event::Refuse(Some(code)));
            self.add(end, Event::Refuse(None));
        }
    }

    fn failed_inserts(&mut self) {
        // No memory, a time limit, too many parts.
        const CODES: [u32; 3] = [241, 159, 252];
        for (begin, end) in self.spans(BRIEF) {
            let code = CODES[self.rng.usize(..CODES.len())];
            let one_in = self.rng.u32(2..=5);
            self.add(begin, Event::FailInserts { code, one_in });
            self.add(end, Event::FailInserts { code, one_in: 0 });
        }
    }

    fn losses(&mut self, lose: fn(u32) -> Event) {
        for (begin, end) in self.spans(self.within) {
            let one_in = self.rng.u32(2..=4);
            self.add(begin, lose(one_in));
            self.add(end, lose(0));
        }
    }

    /// Some replays begin at nearly the same time, and some are killed.
    fn replays(&mut self) {
        let deploy = up_to(&mut self.rng, self.within / 2);
        self.add(deploy, Event::Deploy);
        let mut at = deploy;
        for number in 0..self.rng.usize(2..=5) {
            let pause = [Duration::from_secs(1), self.within / 3][self.rng.usize(..2)];
            at = (at + up_to(&mut self.rng, pause)).min(self.within);
            self.add(at, Event::StartReplay(number));
            if self.rng.bool() {
                let killed_at = at + up_to(&mut self.rng, BRIEF);
                self.add(killed_at.min(self.within), Event::KillReplay(number));
            }
        }
    }

    fn views(&mut self) {
        let targets = Target::all(catalog());
        for (begin, end) in self.spans(BRIEF) {
            let table = targets[self.rng.usize(..targets.len())].table();
            self.add(begin, Event::ThrowIn(Some(table)));
            self.add(end, Event::ThrowIn(None));
        }
    }
}
