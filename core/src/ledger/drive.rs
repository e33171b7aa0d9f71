//! Drives a [`Run`]: performs its steps, and passes their results back to it.

use std::future::Future;

use uuid::Uuid;

use super::protocol::{Action, ClaimStatus, End, Kill, Run};
use crate::batch::BatchId;

/// The result of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inserted {
    /// Every table has the rows.
    Committed,
    /// The result is unknown, or the error is transient: the identical statement is retried.
    Unknown,
    /// An object is at fault: the same statement would fail again.
    ObjectFault,
    /// The guard refused to start the statement.
    Fenced,
}

/// Tells a run from all others, those of the same worker included: two loads of a worker can recover
/// the same batch at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunId(pub Uuid);

/// Whether a run has fenced an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fence {
    /// It has, and no other run has, or ever will.
    Written,
    /// Another run has fenced the attempt, too.
    TakenOver,
}

/// The result of rolling back a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RolledBack {
    /// No table has a row of the batch.
    Deleted,
    /// According to the ledger, the batch has ended: its rows stay as they are.
    Ended,
}

/// Whether the batch was recorded as loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recorded {
    Written,
    /// The guard refused to start the statement.
    Fenced,
}

/// The operations of one batch, whose order the protocol decides. An error ends the run, and leaves
/// the batch to the worker that finds its lease expired.
///
/// Where several servers share the tables, one can show what was written through another late. A
/// read *in sync* sees whatever was committed before it began, even if nobody received a response.
/// The search (`model/replicas.rs`) shows which steps must read in sync; the others need not.
pub trait Steps: Send {
    type Error;

    /// Called before and after each step, for logs and failpoints.
    fn reach(&mut self, _action: Action, _moment: Moment) {}

    /// Reads the claim status of every object of the batch from the ledger, and keeps the free
    /// ones.
    fn look_up(&mut self) -> impl Future<Output = Result<Vec<ClaimStatus>, Self::Error>> + Send;

    /// Recovers another batch, whose lease has expired.
    fn recover(&mut self, batch: BatchId) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Writes the manifest, which lists the free objects, in one block.
    fn claim(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Reads the claim status of the claimed objects again: claims in sync, events in any way.
    fn verify(&mut self) -> impl Future<Output = Result<Vec<ClaimStatus>, Self::Error>> + Send;

    /// Runs the statements, guarded as this attempt, under the batch's deduplication token.
    ///
    /// Where several servers share the tables, no statement starts after a deadline, which was in
    /// the ledger before the attempt was fenced: it is the end of the claim's lease, or of a lease
    /// that was recorded before an in-sync read found no fence.
    fn insert(
        &mut self,
        attempt: u32,
    ) -> impl Future<Output = Result<Inserted, Self::Error>> + Send;

    /// Kills the running statements of the batch, and waits for their end. A confirmed kill also
    /// waits until no statement can start: every server shows the batch's highest fence, whoever
    /// wrote it, or, if one cannot be reached, the deadlines of all statements have passed.
    fn kill(&mut self, kill: Kill) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Writes the fence that keeps every attempt up to this one from starting.
    ///
    /// At most one run may be told that it has written the fence of an attempt: two that continue
    /// as the same attempt would not stop each other, and only the token would keep their inserts
    /// apart. Of runs that fence an attempt at the same time, none needs to have written it.
    ///
    /// Other servers can show it later: the confirmed kill that follows waits for them, even if the
    /// fence was there before, since its writer may have died before it had waited.
    fn fence(&mut self, attempt: u32) -> impl Future<Output = Result<Fence, Self::Error>> + Send;

    /// Returns whether any table has rows of the batch, read in sync.
    fn has_rows(&mut self) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Returns whether the tables have the rows that were counted, so that only the record is
    /// missing.
    fn is_complete(&mut self) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Deletes the rows of the batch from every table, unless it has ended according to the ledger.
    /// Reads in sync both the ledger and, at the end, whether rows are left.
    fn roll_back(&mut self) -> impl Future<Output = Result<RolledBack, Self::Error>> + Send;

    /// Writes that the batch has no rows and never will.
    fn release(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Writes that the batch is loaded, guarded as this attempt. The same holds as for
    /// [`insert`](Self::insert).
    fn record(
        &mut self,
        attempt: u32,
    ) -> impl Future<Output = Result<Recorded, Self::Error>> + Send;
}

/// A moment relative to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

impl Moment {
    /// Returns the name of this moment of a step, as failpoints are named: `insert.before`.
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
/// Returns the first error of a step.
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
