//! Writes the events of batches: leases, fences, and how each batch ended.

use serde::{Deserialize, Serialize};
use tracing::debug;
use uuid::Uuid;

use super::drive::{Fence, RunId};
use super::permits::Permit;
use super::{BATCHES_TABLE, Ledger};
use crate::batch::BatchId;
use crate::clickhouse::WarehouseError;
use crate::sql;
use crate::statements::guard::FENCED_TEXT;

/// The events of a batch, as in `ledger_batches.event`. The claim has no event: it is the manifest.
pub(super) mod event {
    pub(in crate::ledger) const LEASED: &str = "leased";
    pub(in crate::ledger) const FENCED: &str = "fenced";
    pub(in crate::ledger) const RELEASED: &str = "released";
    pub(in crate::ledger) const LOADED: &str = "loaded";
    /// The rows that the batch supersedes, or the rejects that it has moved, are deleted.
    pub(in crate::ledger) const CLEANED: &str = "cleaned";
    /// Belongs to no batch: a server that shows it has seen all that was written before.
    pub(in crate::ledger) const BARRIER: &str = "barrier";
}

#[derive(Serialize)]
pub(super) struct BatchRow<'a> {
    batch_id: Uuid,
    event: &'a str,
    attempt: u32,
    lease_seconds: u32,
    statement_seconds: u32,
    worker: &'a str,
    reason: &'a str,
}

/// Returns the condition for fences of other runs, those of the same worker included.
pub(super) fn is_of_others(run: RunId) -> String {
    format!(
        "NOT startsWith(reason, {})",
        sql::string(&run.0.to_string())
    )
}

impl Ledger {
    /// Renews this worker's lease on the batch.
    pub async fn renew(&self, batch: BatchId) -> Result<(), WarehouseError> {
        self.write(batch, &[self.lease_row(batch)]).await
    }

    /// Runs `work` while renewing the lease, after every third of it.
    pub async fn leased<T>(&self, batch: BatchId, work: impl Future<Output = T>) -> T {
        let keep_lease = async {
            let mut renewals = tokio::time::interval(self.lease() / 3);
            renewals.tick().await;
            loop {
                renewals.tick().await;
                if let Err(error) = self.renew(batch).await {
                    debug!(error = %error, "failed to renew the lease; retrying");
                }
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            () = keep_lease => unreachable!("the loop of renewals never ends"),
        }
    }

    /// Ends this worker's lease now, so that another can recover the batch without waiting.
    pub async fn abandon(&self, batch: BatchId) -> Result<(), WarehouseError> {
        self.write(batch, &[self.row(batch, event::LEASED)]).await
    }

    /// Fences the batch, so that no attempt up to this one may start any more, and takes over the
    /// lease.
    ///
    /// Returns [`Fence::Written`] if no other run has fenced the attempt. Of runs that do so at the
    /// same time, each may find the fence of the other: then both leave the batch until the lease
    /// has expired. Which fence came first decides nothing, since the clocks of servers differ, and
    /// a row can become visible after a later one. A repeated call finds the fence of its own run.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Hidden`] if the ledger does not show the fence: then the guard of a
    /// statement does not see it either.
    pub async fn fence(
        &self,
        batch: BatchId,
        attempt: u32,
        run: RunId,
    ) -> Result<Fence, WarehouseError> {
        #[derive(Deserialize)]
        struct Fences {
            all: u64,
            of_others: u64,
        }
        // A barrier must be a row that this call has written.
        let mark = format!("{}/{}", run.0, self.mark());
        let fence = BatchRow {
            attempt,
            reason: &mark,
            ..self.row(batch, event::FENCED)
        };
        self.write(batch, &[self.lease_row(batch), fence]).await?;
        let sql = format!(
            "SELECT count() AS all, countIf({}) AS of_others FROM {} \
             WHERE batch_id = {id} AND event = {} AND attempt >= {attempt}",
            is_of_others(run),
            self.warehouse.table(BATCHES_TABLE),
            sql::string(event::FENCED),
            id = sql::id(batch.0)
        );
        let fence = self.marked(batch, &mark).await?;
        let tables = [BATCHES_TABLE];
        let fences: Vec<Fences> = self
            .warehouse
            .rows_after(fence.as_ref(), &tables, &sql)
            .await?;
        match fences.first() {
            Some(Fences {
                all: 1..,
                of_others: 0,
            }) => Ok(Fence::Written),
            Some(Fences { all: 1.., .. }) => Ok(Fence::TakenOver),
            Some(Fences { all: 0, .. }) | None => Err(WarehouseError::Hidden {
                table: BATCHES_TABLE,
                shown: 0,
                written: 1,
            }),
        }
    }

    /// Releases the batch, which has no rows and never will have any.
    pub async fn release(&self, batch: BatchId, reason: &str) -> Result<(), WarehouseError> {
        let row = BatchRow {
            reason,
            ..self.row(batch, event::RELEASED)
        };
        self.write(batch, &[row]).await
    }

    /// Records that the batch is loaded.
    ///
    /// The statement is guarded as the insert is, and a kill finds it by the id of the batch, so a
    /// batch that is rolled back cannot be recorded afterwards.
    ///
    /// # Errors
    ///
    /// An error with [`FENCED_TEXT`] if this attempt is fenced, or if the permit has expired.
    pub async fn record(
        &self,
        permit: &Permit,
        objects: usize,
        rows: u64,
        remark: &str,
    ) -> Result<(), WarehouseError> {
        let Permit { batch, attempt, .. } = *permit;
        let guard = self.refusal(permit, &[event::RELEASED]);
        let sql = format!(
            "INSERT INTO {} (batch_id, event, attempt, worker, objects, rows, reason) \
             SELECT toUUID({id}), {}, {attempt}, {}, {objects}, {rows}, {} WHERE {}",
            self.warehouse.table(BATCHES_TABLE),
            sql::string(event::LOADED),
            sql::string(&self.worker),
            sql::string(remark),
            sql::throw_if(&guard, FENCED_TEXT),
            id = sql::id(batch.0)
        );
        let query_id = format!("{batch}-record-{}", self.env.new_id());
        self.of(batch).run_as(&sql, &query_id).await
    }

    /// Records that the rows that the batch supersedes, or the rejects that it has moved, are
    /// deleted.
    pub async fn cleaned(&self, batch: BatchId) -> Result<(), WarehouseError> {
        self.write(batch, &[self.row(batch, event::CLEANED)]).await
    }

    /// Returns the condition under which an insert with this permit must not start, as SQL. An
    /// insert of a batch that is already loaded is late, and inserts nothing while the tables
    /// remember its token.
    pub fn guard(&self, permit: &Permit) -> String {
        self.refusal(permit, &[event::RELEASED, event::LOADED])
    }

    fn refusal(&self, permit: &Permit, ended_by: &[&str]) -> String {
        let Permit { batch, attempt, .. } = *permit;
        let expired = permit.expired();
        format!(
            "{expired}(SELECT count() FROM {} WHERE batch_id = {id} AND \
             (event IN ({}) OR (event = {} AND attempt >= {attempt}))) > 0",
            self.warehouse.table(BATCHES_TABLE),
            sql::strings(ended_by),
            sql::string(event::FENCED),
            id = sql::id(batch.0)
        )
    }

    /// Returns the row of an event without attempt, lease and reason.
    pub(super) fn row<'a>(&'a self, batch: BatchId, event: &'a str) -> BatchRow<'a> {
        BatchRow {
            batch_id: batch.0,
            event,
            attempt: 0,
            lease_seconds: 0,
            statement_seconds: 0,
            worker: &self.worker,
            reason: "",
        }
    }

    /// Returns the row that gives this worker a lease from now on.
    fn lease_row(&self, batch: BatchId) -> BatchRow<'_> {
        BatchRow {
            lease_seconds: self.lease_seconds(),
            statement_seconds: self.statement_seconds(),
            ..self.row(batch, event::LEASED)
        }
    }

    /// Returns the lease row of this worker with a reason by which it can be recognised.
    pub(super) fn marked_lease<'a>(&'a self, batch: BatchId, mark: &'a str) -> BatchRow<'a> {
        BatchRow {
            reason: mark,
            ..self.lease_row(batch)
        }
    }

    pub(super) async fn write(
        &self,
        batch: BatchId,
        rows: &[BatchRow<'_>],
    ) -> Result<(), WarehouseError> {
        self.of(batch).insert(BATCHES_TABLE, rows).await
    }
}
