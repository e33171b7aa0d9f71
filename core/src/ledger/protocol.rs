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

use super::drive::{Fence, Inserted, Recorded, RolledBack, Steps};
use crate::batch::BatchId;
use crate::labelled;

/// What the ledger says of an object, leaving out the batch that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClaimStatus {
    Free,
    /// A loaded batch lists it.
    Loaded,
    /// A batch that is sealed, and neither released nor loaded, lists it.
    Busy {
        batch: BatchId,
        /// The lease has run out: nobody is known to work on that batch.
        lease_expired: bool,
    },
}

impl ClaimStatus {
    pub fn has_expired_lease(&self) -> bool {
        matches!(
            self,
            Self::Busy {
                lease_expired: true,
                ..
            }
        )
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
    Claim,
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
    RollBack,
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
            Self::Claim => "seal",
            Self::Verify => "verify",
            Self::Insert { .. } => "insert",
            Self::Kill => "kill",
            Self::Fence { .. } => "fence",
            Self::CheckRows => "check_rows",
            Self::CheckComplete => "check_complete",
            Self::RollBack => "take_back",
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
    Claim,
    Verify,
    Insert,
    KillToReplay,
    Abort(Abort),
    Release(End),
    Record,
    Finish(End),
}

/// Fenced like this, a batch can never be loaded: no attempt is higher.
pub const ABORTED: u32 = u32::MAX;

/// Finding out what is left of a batch, once none of its statements can commit any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Abort {
    Fence,
    Kill,
    CheckRows,
    CheckComplete,
    /// From here on it cannot be loaded by anybody, whatever they are about to do.
    Doom,
    KillDoomed,
    RollBack,
}

/// Why a batch is unwound: what to do about rows that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Intent {
    /// The worker that sealed the batch is gone: finish its work.
    RollForward,
    /// The statement cannot succeed, or nobody has it any more: nothing of it may stay.
    RollBack,
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
        Self::new(Phase::LookUp, 1, Intent::RollBack)
    }

    /// Recovers a batch whose lease has run out; `fenced` is the highest attempt that the ledger
    /// says is fenced, 0 where none is. `replayable`: this worker would make the identical
    /// statement of it.
    pub fn recover(fenced: u32, replayable: bool) -> Self {
        if fenced == ABORTED {
            return Self::new(Phase::Abort(Abort::Doom), ABORTED, Intent::RollBack);
        }
        let intent = if replayable {
            Intent::RollForward
        } else {
            Intent::RollBack
        };
        Self::new(Phase::Abort(Abort::Fence), fenced + 1, intent)
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
            Phase::Claim => Action::Claim,
            Phase::Verify => Action::Verify,
            Phase::Insert => Action::Insert {
                attempt: self.attempt,
            },
            Phase::KillToReplay | Phase::Abort(Abort::Kill | Abort::KillDoomed) => Action::Kill,
            Phase::Abort(Abort::Doom) => Action::Fence { attempt: ABORTED },
            Phase::Abort(Abort::Fence) => Action::Fence {
                attempt: self.attempt,
            },
            Phase::Abort(Abort::CheckRows) => Action::CheckRows,
            Phase::Abort(Abort::CheckComplete) => Action::CheckComplete,
            Phase::Abort(Abort::RollBack) => Action::RollBack,
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
            Phase::Claim => {
                steps.claim().await?;
                Phase::Verify
            }
            Phase::Verify => {
                let claim_statuses = steps.verify().await?;
                if claim_statuses
                    .iter()
                    .all(|status| *status == ClaimStatus::Free)
                {
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
                    self.intent = Intent::RollBack;
                    Phase::Abort(Abort::Fence)
                }
            },
            Phase::KillToReplay => {
                steps.kill().await?;
                Phase::Insert
            }
            Phase::Abort(abort) => {
                let abort = *abort;
                self.abort(abort, steps).await?
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

    async fn abort<S: Steps>(&mut self, abort: Abort, steps: &mut S) -> Result<Phase, S::Error> {
        Ok(match abort {
            Abort::Fence => match steps.fence(self.attempt).await? {
                Fence::Written => Phase::Abort(Abort::Kill),
                Fence::TakenOver => Phase::Finish(End::Fenced),
            },
            Abort::Kill => {
                steps.kill().await?;
                Phase::Abort(Abort::CheckRows)
            }
            Abort::CheckRows => {
                let found = steps.has_rows().await?;
                self.after_row_check(found)
            }
            Abort::CheckComplete => {
                if steps.is_complete().await? {
                    // The attempt that brought the rows is fenced by now.
                    self.attempt += 1;
                    Phase::Record
                } else {
                    Phase::Abort(Abort::Doom)
                }
            }
            Abort::Doom => {
                // What is doomed may be taken back by several: it comes to the same.
                steps.fence(ABORTED).await?;
                Phase::Abort(Abort::KillDoomed)
            }
            Abort::KillDoomed => {
                steps.kill().await?;
                Phase::Abort(Abort::RollBack)
            }
            Abort::RollBack => match steps.roll_back().await? {
                RolledBack::Deleted => Phase::Release(End::Released),
                RolledBack::Ended => Phase::Finish(End::Fenced),
            },
        })
    }

    fn after_row_check(&mut self, found: bool) -> Phase {
        match (found, self.intent) {
            (false, _) => Phase::Release(End::Released),
            (true, Intent::RollBack) => Phase::Abort(Abort::CheckComplete),
            (true, Intent::RollForward) => {
                // It had passed its verify, so nobody else can own its objects.
                self.attempt += 1;
                Phase::Insert
            }
        }
    }
}

fn after_look_up(claim_statuses: &[ClaimStatus]) -> Phase {
    let lease_expired = claim_statuses.iter().find_map(|status| match status {
        ClaimStatus::Busy {
            batch,
            lease_expired: true,
        } => Some(*batch),
        _ => None,
    });
    if let Some(batch) = lease_expired {
        Phase::Recover { batch }
    } else if claim_statuses.contains(&ClaimStatus::Free) {
        Phase::Claim
    } else {
        Phase::Finish(End::NothingFree)
    }
}
