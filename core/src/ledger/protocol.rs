//! The ledger protocol as a pure state machine.
//!
//! A [`Run`] decides on the next action ([`Run::action`]), which [`drive`](super::drive::drive) has
//! an implementation of [`Steps`] perform. Neither does I/O or reads a clock, so that a model can
//! search all interleavings of several runs, crashes and late commits (the tests of this crate do).
//!
//! The rules, each of which the search shows to be needed:
//! - a batch claims its objects, and then verifies; if it then sees another batch's claim, it
//!   yields;
//! - a statement starts only while its attempt is not fenced and its batch not released (the
//!   guard);
//! - nothing is retried, released or rolled forward while an older statement may still run;
//! - a recovery releases a batch without rows, and rolls forward a batch with rows if the
//!   recovering worker makes the same statements from its manifest; never the other way round;
//! - rows are rolled back only once no attempt and no record of the batch can ever succeed.
//!
//! Where several servers share the tables, these rules hold if the steps keep the promises of
//! [`Steps`].

use super::drive::{Fence, Inserted, Recorded, RolledBack, Steps};
use crate::batch::BatchId;
use crate::labelled;

/// The state of an object in the ledger, excluding the batch for which it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClaimStatus {
    Free,
    /// A loaded batch lists it.
    Loaded,
    /// A batch that is neither released nor loaded claims it.
    Busy {
        batch: BatchId,
        /// Whether the lease has expired: no worker is known to work on that batch.
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

/// The next action of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the claim status of every object of the batch.
    LookUp,
    /// Recover another batch, whose lease has expired.
    Recover(BatchId),
    /// Write the manifest, which lists the free objects, in one block.
    Claim,
    /// Read the claim status of the claimed objects again.
    Verify,
    /// Run the statement, guarded as this attempt, under the batch's deduplication token.
    Insert {
        attempt: u32,
    },
    /// Kill the running statements of the batch, and wait for their end.
    Kill(Kill),
    /// Write the fence that keeps every attempt up to this one from starting.
    Fence {
        attempt: u32,
    },
    /// Look for rows of the batch in any table.
    CheckRows,
    /// Compare the tables with the counts, to find out whether only the record is missing.
    CheckComplete,
    /// Delete the rows of the batch from every table, unless it has ended according to the ledger.
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
    /// Returns the name in logs, traces and failpoints. `seal` (claim) and `take_back` (roll back)
    /// are older than the terms of the code.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LookUp => "look_up",
            Self::Recover(_) => "recover",
            Self::Claim => "seal",
            Self::Verify => "verify",
            Self::Insert { .. } => "insert",
            Self::Kill(_) => "kill",
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

/// How thorough a kill must be. The two differ where the statements of a batch can run on several
/// servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kill {
    /// May miss statements on servers that cannot be reached: the identical statement follows, and
    /// the token keeps the two from committing twice.
    BestEffort,
    /// Afterwards, no statement of the batch is running on any server, and none can start.
    Confirmed,
}

labelled! {
    /// How a run ended. The labels are values of the `outcome` label in metrics.
    #[derive(PartialOrd, Ord)]
    pub enum End {
        /// Every claimed object is loaded.
        Loaded = "loaded",
        /// No object was free, so there was nothing to claim.
        NothingFree = "nothing_free",
        /// Another batch also claims an object: retry after a random pause, as a new batch.
        Yielded = "yielded",
        /// Another worker has taken over the batch: its objects will be found loaded or free.
        Fenced = "fenced",
        /// No row of the batch is in the tables, and its objects are free.
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
    KillToRetry,
    Abort(Abort),
    Release(End),
    Record,
    Finish(End),
}

/// The fence of an aborted batch. No attempt is higher, so it can never be loaded.
pub const ABORTED: u32 = u32::MAX;

/// The steps that stop the statements of a batch, find out what they left, and complete the batch
/// or abort it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Abort {
    Fence,
    Kill,
    CheckRows,
    CheckComplete,
    /// From here on, no worker can load it, whatever it is about to do.
    FenceAll,
    KillAgain,
    RollBack,
}

/// What to do with rows of a batch whose statements were stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Intent {
    /// Complete them: the worker that claimed the batch is gone.
    RollForward,
    /// Delete them: the statement cannot succeed, or no worker can generate it any more.
    RollBack,
}

/// The passage of one batch through the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run {
    phase: Phase,
    attempt: u32,
    intent: Intent,
}

impl Run {
    /// Begins to load a new batch.
    pub fn load() -> Self {
        Self::new(Phase::LookUp, 1, Intent::RollBack)
    }

    /// Begins to recover a batch whose lease has expired. `fenced` is the highest attempt that is
    /// fenced according to the ledger, 0 if none is. `is_same_plan` is whether this worker would
    /// send the identical statement.
    pub fn recover(fenced: u32, is_same_plan: bool) -> Self {
        if fenced == ABORTED {
            return Self::new(Phase::Abort(Abort::FenceAll), ABORTED, Intent::RollBack);
        }
        let intent = if is_same_plan {
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

    /// Returns the next action.
    pub fn action(&self) -> Action {
        match &self.phase {
            Phase::LookUp => Action::LookUp,
            Phase::Recover { batch } => Action::Recover(*batch),
            Phase::Claim => Action::Claim,
            Phase::Verify => Action::Verify,
            Phase::Insert => Action::Insert {
                attempt: self.attempt,
            },
            Phase::KillToRetry => Action::Kill(Kill::BestEffort),
            Phase::Abort(Abort::Kill | Abort::KillAgain) => Action::Kill(Kill::Confirmed),
            Phase::Abort(Abort::FenceAll) => Action::Fence { attempt: ABORTED },
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

    /// Performs the next step, if there is one, and records its result.
    ///
    /// # Errors
    ///
    /// Returns the error of the step; the run stays where it is.
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
                    // Nothing was inserted, so no statement of this batch can still run.
                    Phase::Release(End::Yielded)
                }
            }
            Phase::Insert => match steps.insert(attempt).await? {
                Inserted::Committed => Phase::Record,
                Inserted::Unknown => Phase::KillToRetry,
                Inserted::Fenced => Phase::Finish(End::Fenced),
                Inserted::ObjectFault => {
                    self.intent = Intent::RollBack;
                    Phase::Abort(Abort::Fence)
                }
            },
            Phase::KillToRetry => {
                steps.kill(Kill::BestEffort).await?;
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
                steps.kill(Kill::Confirmed).await?;
                Phase::Abort(Abort::CheckRows)
            }
            Abort::CheckRows => {
                let found = steps.has_rows().await?;
                self.after_row_check(found)
            }
            Abort::CheckComplete => {
                if steps.is_complete().await? {
                    // The attempt that inserted the rows is fenced by now.
                    self.attempt += 1;
                    Phase::Record
                } else {
                    Phase::Abort(Abort::FenceAll)
                }
            }
            Abort::FenceAll => {
                // Several workers may roll back an aborted batch: the result is the same.
                steps.fence(ABORTED).await?;
                Phase::Abort(Abort::KillAgain)
            }
            Abort::KillAgain => {
                steps.kill(Kill::Confirmed).await?;
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
                // A batch with rows has passed its verify, so no other can own its objects.
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
