//! Performs a [`Run`]: the one place where the protocol's steps meet their answers.

use std::future::Future;

use super::protocol::{Action, ClaimStatus, End, Run};
use crate::batch::BatchId;

/// What came of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inserted {
    /// Every table has the rows.
    Committed,
    /// Nobody knows, or it passes: the identical statement is tried again.
    Unknown,
    /// An object's own fault; the same again would fail again.
    ObjectFault,
    /// The guard refused to start the statement.
    Fenced,
}

/// Whether a fence was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fence {
    Written,
    /// Another worker was first.
    TakenOver,
}

/// What came of taking the rows of a batch back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RolledBack {
    /// No table has a row of the batch.
    Deleted,
    /// The ledger says that the batch has ended: its rows stay as they are.
    Ended,
}

/// Whether the batch was recorded as loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recorded {
    Written,
    /// The guard refused to start the statement.
    Fenced,
}

/// The operations of one batch, which the protocol puts into order. An error ends the run, and
/// leaves the batch to whoever finds its lease run out.
pub trait Steps: Send {
    type Error;

    /// Is called before and after each step, for logs and failpoints.
    fn reach(&mut self, _action: Action, _moment: Moment) {}

    /// Asks the ledger for the standing of every object of the batch, and keeps those that are free.
    fn look_up(&mut self) -> impl Future<Output = Result<Vec<ClaimStatus>, Self::Error>> + Send;

    /// Recovers another batch, whose lease has run out.
    fn recover(&mut self, batch: BatchId) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Writes the list of the free objects, in one block.
    fn claim(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Asks the ledger for the standing of the sealed objects again.
    fn verify(&mut self) -> impl Future<Output = Result<Vec<ClaimStatus>, Self::Error>> + Send;

    /// Runs the statements, guarded as this attempt, under the batch's token.
    fn insert(
        &mut self,
        attempt: u32,
    ) -> impl Future<Output = Result<Inserted, Self::Error>> + Send;

    /// Ends whatever statement of the batch runs, and waits for its end.
    fn kill(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Writes that no attempt up to this one may start any more.
    fn fence(&mut self, attempt: u32) -> impl Future<Output = Result<Fence, Self::Error>> + Send;

    /// Returns whether any table has rows of the batch.
    fn has_rows(&mut self) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Returns whether the tables have what was counted, so that nothing but the record is missing.
    fn is_complete(&mut self) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Deletes the rows of the batch from every table, unless the ledger says that it has ended.
    fn roll_back(&mut self) -> impl Future<Output = Result<RolledBack, Self::Error>> + Send;

    /// Writes that the batch has no rows and never will.
    fn release(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Writes that the batch is loaded, guarded as this attempt.
    fn record(
        &mut self,
        attempt: u32,
    ) -> impl Future<Output = Result<Recorded, Self::Error>> + Send;
}

/// A moment of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

impl Moment {
    /// Returns the name of this moment of a step, as failpoints have it: `insert.before`.
    pub fn of(self, action: Action) -> String {
        let moment = match self {
            Self::Before => "before",
            Self::After => "after",
        };
        format!("{}.{moment}", action.name())
    }
}

/// Performs a run to its end.
///
/// # Errors
///
/// The first that a step returns.
pub async fn drive<S: Steps>(mut run: Run, steps: &mut S) -> Result<End, S::Error> {
    loop {
        let action = run.action();
        if let Action::Finish(end) = action {
            return Ok(end);
        }
        steps.reach(action, Moment::Before);
        run.step(steps).await?;
        steps.reach(action, Moment::After);
    }
}
