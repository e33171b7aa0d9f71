//! The ledger protocol as a pure state machine.
//!
//! A [`Run`] says what to do next ([`Run::action`]), and [`drive`](super::drive::drive) has it done by
//! whoever knows how ([`Steps`]). Neither does I/O or knows time, so that a model can search all
//! interleavings of several runs, crashes and late commits (the tests of this crate do).
//!
//! The rules, each of which the search shows to be needed:
//! - write the seal before reading it back; whoever then sees another's claim yields;
//! - a statement starts only while its attempt is neither fenced nor released (the guard);
//! - nothing is replayed, released or rolled forward while an older statement may still run;
//! - a batch without rows is released, a batch with rows is rolled forward by who makes the same
//!   statements of it, never the other way;
//! - rows are taken back only once no attempt and no record of the batch can succeed ever again.

use super::drive::{Fence, Inserted, Recorded, Steps, TakenBack};
use crate::batch::BatchId;
use crate::labelled;

/// What the ledger says of an object, leaving out the batch that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    Free,
    /// A loaded batch lists it.
    Loaded,
    /// A batch that is sealed, and neither released nor loaded, lists it.
    Busy {
        batch: BatchId,
        /// The lease has run out: nobody is known to work on that batch.
        lapsed: bool,
    },
}

impl Standing {
    pub fn has_lapsed(&self) -> bool {
        matches!(self, Self::Busy { lapsed: true, .. })
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ask the ledger for the standing of every object of the batch.
    LookUp,
    /// Recover another batch, whose lease has run out.
    Recover(BatchId),
    /// Write the list of the free objects, in one block.
    Seal,
    /// Ask the ledger for the standing of the sealed objects again.
    Verify,
    /// Run the statement, guarded as this attempt, under the batch's token.
    Insert {
        attempt: u32,
    },
    /// End whatever statement of the batch runs, and wait for its end.
    Kill,
    /// Write that no attempt up to this one may start any more.
    Fence {
        attempt: u32,
    },
    /// Look for rows of the batch in any table.
    CheckRows,
    /// Compare the tables with what was counted: is only the record missing?
    CheckComplete,
    /// Delete the rows of the batch from every table, unless the ledger says that it has ended.
    TakeBack,
    /// Write that the batch has no rows and never will.
    Release,
    /// Write that the batch is loaded, guarded as this attempt.
    Record {
        attempt: u32,
    },
    Finish(End),
}

impl Action {
    /// For logs and failpoints.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LookUp => "look_up",
            Self::Recover(_) => "recover",
            Self::Seal => "seal",
            Self::Verify => "verify",
            Self::Insert { .. } => "insert",
            Self::Kill => "kill",
            Self::Fence { .. } => "fence",
            Self::CheckRows => "check_rows",
            Self::CheckComplete => "check_complete",
            Self::TakeBack => "take_back",
            Self::Release => "release",
            Self::Record { .. } => "record",
            Self::Finish(_) => "finish",
        }
    }
}

labelled! {
    /// How a run ended. The labels are values of the `outcome` label in metrics.
    #[derive(PartialOrd, Ord)]
    pub enum End {
        /// Every sealed object is loaded.
        Loaded = "loaded",
        /// No object was free: there was nothing to seal.
        NothingFree = "nothing_free",
        /// Another batch claims an object too: try again after a random pause, as a new batch.
        Yielded = "yielded",
        /// Somebody else has taken the batch over: its objects will be found loaded, or free.
        Fenced = "fenced",
        /// Nothing of the batch is in the tables, and its objects are free.
        Released = "released",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Phase {
    LookUp,
    Recover { batch: BatchId },
    Seal,
    Verify,
    Insert,
    KillToReplay,
    Unwind(Unwind),
    Release(End),
    Record,
    Finish(End),
}

/// Fenced like this, a batch can never be loaded: no attempt is higher.
pub const DOOMED: u32 = u32::MAX;

/// Finding out what is left of a batch, once none of its statements can commit any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Unwind {
    Fence,
    Kill,
    CheckRows,
    CheckComplete,
    /// From here on it cannot be loaded by anybody, whatever they are about to do.
    Doom,
    KillDoomed,
    TakeBack,
}

/// Why a batch is unwound: what to do about rows that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Intent {
    /// The worker that sealed the batch is gone: finish its work.
    RollForward,
    /// The statement cannot succeed, or nobody has it any more: nothing of it may stay.
    TakeBack,
}

/// One batch on its way through the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run {
    phase: Phase,
    attempt: u32,
    intent: Intent,
}

impl Run {
    /// Loads a new batch.
    pub fn load() -> Self {
        Self::new(Phase::LookUp, 1, Intent::TakeBack)
    }

    /// Recovers a batch whose lease has run out; `fenced` is the highest attempt that the ledger
    /// says is fenced, 0 where none is. `replayable`: this worker would make the identical
    /// statement of it.
    pub fn recover(fenced: u32, replayable: bool) -> Self {
        if fenced == DOOMED {
            return Self::new(Phase::Unwind(Unwind::Doom), DOOMED, Intent::TakeBack);
        }
        let intent = if replayable {
            Intent::RollForward
        } else {
            Intent::TakeBack
        };
        Self::new(Phase::Unwind(Unwind::Fence), fenced + 1, intent)
    }

    fn new(phase: Phase, attempt: u32, intent: Intent) -> Self {
        Self {
            phase,
            attempt,
            intent,
        }
    }

    /// Returns what is to be done next.
    pub fn action(&self) -> Action {
        match &self.phase {
            Phase::LookUp => Action::LookUp,
            Phase::Recover { batch } => Action::Recover(*batch),
            Phase::Seal => Action::Seal,
            Phase::Verify => Action::Verify,
            Phase::Insert => Action::Insert {
                attempt: self.attempt,
            },
            Phase::KillToReplay | Phase::Unwind(Unwind::Kill | Unwind::KillDoomed) => Action::Kill,
            Phase::Unwind(Unwind::Doom) => Action::Fence { attempt: DOOMED },
            Phase::Unwind(Unwind::Fence) => Action::Fence {
                attempt: self.attempt,
            },
            Phase::Unwind(Unwind::CheckRows) => Action::CheckRows,
            Phase::Unwind(Unwind::CheckComplete) => Action::CheckComplete,
            Phase::Unwind(Unwind::TakeBack) => Action::TakeBack,
            Phase::Release(_) => Action::Release,
            Phase::Record => Action::Record {
                attempt: self.attempt,
            },
            Phase::Finish(end) => Action::Finish(*end),
        }
    }

    /// Performs the next step, if there is one, and notes what came of it.
    ///
    /// # Errors
    ///
    /// What the step returns; the run stays where it is.
    pub(super) async fn step<S: Steps>(&mut self, steps: &mut S) -> Result<(), S::Error> {
        let attempt = self.attempt;
        self.phase = match &self.phase {
            Phase::LookUp => after_look_up(&steps.look_up().await?),
            Phase::Recover { batch } => {
                steps.recover(*batch).await?;
                Phase::LookUp
            }
            Phase::Seal => {
                steps.seal().await?;
                Phase::Verify
            }
            Phase::Verify => {
                let standings = steps.verify().await?;
                if standings.iter().all(|standing| *standing == Standing::Free) {
                    Phase::Insert
                } else {
                    // Never inserted: no statement of this batch can be about.
                    Phase::Release(End::Yielded)
                }
            }
            Phase::Insert => match steps.insert(attempt).await? {
                Inserted::Committed => Phase::Record,
                Inserted::Unknown => Phase::KillToReplay,
                Inserted::Fenced => Phase::Finish(End::Fenced),
                Inserted::ObjectFault => {
                    self.intent = Intent::TakeBack;
                    Phase::Unwind(Unwind::Fence)
                }
            },
            Phase::KillToReplay => {
                steps.kill().await?;
                Phase::Insert
            }
            Phase::Unwind(unwind) => {
                let unwind = *unwind;
                self.unwind(unwind, steps).await?
            }
            Phase::Release(end) => {
                let end = *end;
                steps.release().await?;
                Phase::Finish(end)
            }
            Phase::Record => match steps.record(attempt).await? {
                Recorded::Written => Phase::Finish(End::Loaded),
                Recorded::Fenced => Phase::Finish(End::Fenced),
            },
            Phase::Finish(end) => Phase::Finish(*end),
        };
        Ok(())
    }

    async fn unwind<S: Steps>(&mut self, unwind: Unwind, steps: &mut S) -> Result<Phase, S::Error> {
        Ok(match unwind {
            Unwind::Fence => match steps.fence(self.attempt).await? {
                Fence::Written => Phase::Unwind(Unwind::Kill),
                Fence::TakenOver => Phase::Finish(End::Fenced),
            },
            Unwind::Kill => {
                steps.kill().await?;
                Phase::Unwind(Unwind::CheckRows)
            }
            Unwind::CheckRows => {
                let found = steps.has_rows().await?;
                self.after_row_check(found)
            }
            Unwind::CheckComplete => {
                if steps.is_complete().await? {
                    // The attempt that brought the rows is fenced by now.
                    self.attempt += 1;
                    Phase::Record
                } else {
                    Phase::Unwind(Unwind::Doom)
                }
            }
            Unwind::Doom => {
                // What is doomed may be taken back by several: it comes to the same.
                steps.fence(DOOMED).await?;
                Phase::Unwind(Unwind::KillDoomed)
            }
            Unwind::KillDoomed => {
                steps.kill().await?;
                Phase::Unwind(Unwind::TakeBack)
            }
            Unwind::TakeBack => match steps.take_back().await? {
                TakenBack::Deleted => Phase::Release(End::Released),
                TakenBack::Ended => Phase::Finish(End::Fenced),
            },
        })
    }

    fn after_row_check(&mut self, found: bool) -> Phase {
        match (found, self.intent) {
            (false, _) => Phase::Release(End::Released),
            (true, Intent::TakeBack) => Phase::Unwind(Unwind::CheckComplete),
            (true, Intent::RollForward) => {
                // It had passed its verify, so nobody else can own its objects.
                self.attempt += 1;
                Phase::Insert
            }
        }
    }
}

fn after_look_up(standings: &[Standing]) -> Phase {
    let lapsed = standings.iter().find_map(|standing| match standing {
        Standing::Busy {
            batch,
            lapsed: true,
        } => Some(*batch),
        _ => None,
    });
    if let Some(batch) = lapsed {
        Phase::Recover { batch }
    } else if standings.contains(&Standing::Free) {
        Phase::Seal
    } else {
        Phase::Finish(End::NothingFree)
    }
}
