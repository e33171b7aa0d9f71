//! Permits of statements, and proofs that no statement of a batch is running or can start.
//!
//! On a single server, the guard of a statement sees every fence. A replica may not have received
//! one. So a statement there also has a deadline, the end of a lease that was recorded before any
//! fence, and a batch is stopped once every server shows its fence and runs none of its statements,
//! or once the deadline of every statement has passed.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::drive::RunId;
use super::events::{event, is_of_others};
use super::{BATCHES_TABLE, Ledger, OBJECTS_TABLE};
use crate::batch::BatchId;
use crate::clickhouse::WarehouseError;
use crate::clickhouse::replicas::{Barrier, Replicas};
use crate::sql;

/// How long all servers have to show a fence.
const FENCE_BOUND: Duration = Duration::from_secs(5);
const FENCE_PAUSE: Duration = Duration::from_millis(20);

/// How long after its time limit a statement can still commit: the clocks of servers differ, and
/// ClickHouse retries requests to its Keeper.
const LATE_COMMIT: Duration = Duration::from_secs(60);

/// How often a server that does not respond is tried again.
const STOP_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// A permit to start the statements of an attempt.
#[derive(Clone, Debug)]
pub struct Permit {
    pub(super) batch: BatchId,
    pub(super) attempt: u32,
    /// `None` on a single server.
    deadline: Option<Deadline>,
}

/// The time until which a statement may start.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    /// By the servers' clocks, in milliseconds since 1970.
    at_millis: i64,
    /// A little earlier, by this process's clock.
    renew_at: Instant,
}

/// Whether statements of a batch can still be running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// None is running, and none can start.
    Yes,
    /// A server cannot be reached. Its statements have ended after this time.
    After { remaining: Duration, why: String },
}

/// Repeats [`Ledger::stop`] until no statement of a batch is running and none can start: where a
/// server cannot be reached, until its statements must have ended.
///
/// # Errors
///
/// Returns the first error of `stop`.
pub async fn until_stopped<E, F>(mut stop: impl FnMut() -> F) -> Result<(), E>
where
    F: Future<Output = Result<Stopped, E>>,
{
    let mut is_waiting = false;
    while let Stopped::After { remaining, why } = stop().await? {
        if !is_waiting {
            is_waiting = true;
            warn!(
                seconds = remaining.as_secs(),
                error = why,
                "a statement of the batch may be running on a server that does not respond; \
                 waiting until it must have ended"
            );
        }
        tokio::time::sleep(remaining.min(STOP_AGAIN_AFTER)).await;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Lease {
    /// When it ends, by the server's clock, in milliseconds since 1970.
    ends: i64,
    remaining_millis: i64,
    is_fenced: bool,
}

impl Permit {
    /// Returns a permit without a deadline.
    pub fn unlimited(batch: BatchId, attempt: u32) -> Self {
        Self {
            batch,
            attempt,
            deadline: None,
        }
    }

    /// Returns a permit whose statements start before `at_millis`, by the servers' clocks in
    /// milliseconds since 1970. It is valid until `renew_at`, a little earlier.
    pub fn until(batch: BatchId, attempt: u32, at_millis: i64, renew_at: Instant) -> Self {
        Self {
            batch,
            attempt,
            deadline: Some(Deadline {
                at_millis,
                renew_at,
            }),
        }
    }

    pub fn batch(&self) -> BatchId {
        self.batch
    }

    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the time before which a statement must start, by the servers' clocks in milliseconds
    /// since 1970; `None` on a single server.
    pub fn deadline_millis(&self) -> Option<i64> {
        self.deadline.map(|deadline| deadline.at_millis)
    }

    /// Returns whether a statement that is sent now can be expected to start in time.
    pub fn is_valid(&self) -> bool {
        let deadline = self.deadline;
        deadline.is_none_or(|deadline| Instant::now() < deadline.renew_at)
    }

    /// Returns the condition under which the permit has expired, followed by OR; or nothing.
    pub(super) fn expired(&self) -> String {
        self.deadline_millis().map_or(String::new(), |at_millis| {
            format!("now64(3) >= fromUnixTimestamp64Milli({at_millis}) OR ")
        })
    }
}

impl Ledger {
    /// Returns whether several servers share the ledger.
    pub(super) async fn is_replicated(&self) -> Result<bool, WarehouseError> {
        Ok(self.warehouse.replicas().await?.is_some())
    }

    /// Returns a permit for the statements of an attempt. On replicas, it ends with a lease of this
    /// worker that was recorded before any fence of the attempt.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Behind`] if the ledger may not show all fences.
    pub async fn permit(&self, batch: BatchId, attempt: u32) -> Result<Permit, WarehouseError> {
        if !self.is_replicated().await? {
            return Ok(Permit::unlimited(batch, attempt));
        }
        Box::pin(self.permit_until_lease_ends(batch, attempt)).await
    }

    async fn permit_until_lease_ends(
        &self,
        batch: BatchId,
        attempt: u32,
    ) -> Result<Permit, WarehouseError> {
        // No batch is fenced before its first lease, that of the claim, has ended.
        if attempt == 1
            && let Some(lease) = self.lease_of_claim(batch).await?
            && let Some(permit) = self.within(batch, attempt, &lease)
        {
            return Ok(permit);
        }
        let mark = self.mark();
        self.write(batch, &[self.marked_lease(batch, &mark)])
            .await?;
        let lease = self.marked_lease_end(batch, attempt, &mark).await?;
        let permit = self.within(batch, attempt, &lease);
        // Nothing may start any more.
        Ok(permit.unwrap_or_else(|| Permit::until(batch, attempt, 0, Instant::now())))
    }

    /// Returns a permit that ends with the lease, if enough of the lease is left.
    fn within(&self, batch: BatchId, attempt: u32, lease: &Lease) -> Option<Permit> {
        let remaining = Duration::from_millis(u64::try_from(lease.remaining_millis).ok()?);
        if lease.is_fenced || remaining < self.lease() / 2 {
            return None;
        }
        let renew_at = Instant::now() + remaining - self.lease() / 4;
        Some(Permit::until(batch, attempt, lease.ends, renew_at))
    }

    /// Returns the lease that came with the claim, unless the server does not show the claim.
    async fn lease_of_claim(&self, batch: BatchId) -> Result<Option<Lease>, WarehouseError> {
        let sql = format!(
            "SELECT toUnixTimestamp64Milli(min(sealed_at)) + 1000 * any(lease_seconds) AS ends, \
               ends - toUnixTimestamp64Milli(now64(3)) AS remaining_millis, false AS is_fenced \
             FROM {} WHERE batch_id = {} AND worker = {} HAVING count() > 0",
            self.warehouse.table(OBJECTS_TABLE),
            sql::id(batch.0),
            sql::string(&self.worker),
        );
        let leases: Vec<Lease> = self.warehouse.rows(&sql).await?;
        Ok(leases.into_iter().next())
    }

    /// Returns the lease of the row with this mark, and whether the attempt was fenced before.
    async fn marked_lease_end(
        &self,
        batch: BatchId,
        attempt: u32,
        mark: &str,
    ) -> Result<Lease, WarehouseError> {
        let sql = format!(
            "SELECT toUnixTimestamp64Milli(maxIf(at, reason = {mark})) \
                 + 1000 * maxIf(lease_seconds, reason = {mark}) AS ends, \
               ends - toUnixTimestamp64Milli(now64(3)) AS remaining_millis, \
               toBool(countIf(event IN ({ended}) OR (event = {fenced} AND attempt >= {attempt}))) \
                 AS is_fenced \
             FROM {} WHERE batch_id = {}",
            self.warehouse.table(BATCHES_TABLE),
            sql::id(batch.0),
            mark = sql::string(mark),
            ended = sql::strings([event::RELEASED, event::LOADED]),
            fenced = sql::string(event::FENCED),
        );
        let barrier = self.marked(batch, mark).await?;
        let tables = [BATCHES_TABLE];
        let leases: Vec<Lease> = self
            .warehouse
            .rows_after(barrier.as_ref(), &tables, &sql)
            .await?;
        let lease = leases.into_iter().next();
        lease.ok_or_else(|| WarehouseError::Unknown("the ledger returned no lease".to_owned()))
    }

    /// Returns a barrier that is written now: a read after it sees all that was acknowledged until
    /// now. `None` on a single server, which needs none.
    pub async fn barrier(&self) -> Result<Option<Barrier>, WarehouseError> {
        if !self.is_replicated().await? {
            return Ok(None);
        }
        let no_batch = BatchId(self.env.new_id());
        self.write(no_batch, &[self.row(no_batch, event::BARRIER)])
            .await?;
        Ok(Some(Barrier {
            table: BATCHES_TABLE,
            condition: format!("batch_id = {}", sql::id(no_batch.0)),
        }))
    }

    /// Returns the barrier of the row of `ledger_batches` with this mark.
    pub(super) async fn marked(
        &self,
        batch: BatchId,
        mark: &str,
    ) -> Result<Option<Barrier>, WarehouseError> {
        let barrier = || Barrier {
            table: BATCHES_TABLE,
            condition: format!(
                "batch_id = {} AND reason = {}",
                sql::id(batch.0),
                sql::string(mark)
            ),
        };
        Ok(self.is_replicated().await?.then(barrier))
    }

    /// Returns a text by which one row of `ledger_batches` can be recognised.
    pub(super) fn mark(&self) -> String {
        self.env.new_id().to_string()
    }

    /// Stops the statements of a fenced batch on every server.
    pub async fn stop(&self, batch: BatchId) -> Result<Stopped, WarehouseError> {
        let Some(replicas) = self.warehouse.replicas().await? else {
            self.warehouse.kill(&batch.to_string()).await?;
            return Ok(Stopped::Yes);
        };
        Box::pin(self.stop_everywhere(replicas, batch)).await
    }

    async fn stop_everywhere(
        &self,
        replicas: &Replicas,
        batch: BatchId,
    ) -> Result<Stopped, WarehouseError> {
        // In this order: a statement that starts in between sees the fence.
        let is_fenced = self.is_fenced_everywhere(replicas, batch).await;
        let prefix = batch.to_string();
        let is_killed = self.warehouse.kill_everywhere(replicas, &prefix).await?;
        let why = match is_fenced {
            Ok(true) if is_killed => return Ok(Stopped::Yes),
            Ok(true) => {
                "its statements may be running on a server that does not respond".to_owned()
            }
            Ok(false) => "a server does not show its fence".to_owned(),
            Err(error) => error.to_string(),
        };
        let remaining = self.statements_may_run_for(batch).await?;
        Ok(match remaining.is_zero() {
            true => Stopped::Yes,
            false => Stopped::After { remaining, why },
        })
    }

    /// Returns whether every server shows the highest fence of the batch in time.
    async fn is_fenced_everywhere(
        &self,
        replicas: &Replicas,
        batch: BatchId,
    ) -> Result<bool, WarehouseError> {
        #[derive(Deserialize)]
        struct Highest {
            attempt: u32,
        }
        let (table, id) = (self.warehouse.table(BATCHES_TABLE), sql::id(batch.0));
        let fenced = sql::string(event::FENCED);
        // A server that lags could show an earlier fence.
        let barrier = self.barrier().await?;
        let sql = format!(
            "SELECT max(attempt) AS attempt FROM {table} WHERE batch_id = {id} AND event = {fenced}"
        );
        let highest: Vec<Highest> = self
            .warehouse
            .rows_after(barrier.as_ref(), &[BATCHES_TABLE], &sql)
            .await?;
        let attempt = highest.first().map_or(0, |it| it.attempt);
        let condition = format!("batch_id = {id} AND event = {fenced} AND attempt >= {attempt}");
        let begun = Instant::now();
        loop {
            let is_everywhere = self
                .warehouse
                .is_everywhere(replicas, BATCHES_TABLE, &condition);
            if is_everywhere.await? {
                return Ok(true);
            }
            if begun.elapsed() > FENCE_BOUND {
                return Ok(false);
            }
            debug!(%batch, "waiting until every server shows the fence");
            tokio::time::sleep(FENCE_PAUSE).await;
        }
    }

    /// Returns for how long statements of the batch may be running on a server that does not
    /// respond: until the last lease under which one may have started, and the time limit of a
    /// statement that started then, have ended.
    async fn statements_may_run_for(&self, batch: BatchId) -> Result<Duration, WarehouseError> {
        #[derive(Deserialize)]
        struct Remaining {
            seconds: i64,
        }
        let (objects, batches) = (
            self.warehouse.table(OBJECTS_TABLE),
            self.warehouse.table(BATCHES_TABLE),
        );
        // Statements end with the lease of the claim, or with a lease that has a mark. The renewals
        // of leases permit nothing.
        let sql = format!(
            "SELECT toInt64(dateDiff('second', now64(3), max(ends))) AS seconds FROM (\
               SELECT sealed_at + toIntervalSecond({term}) AS ends \
               FROM {objects} WHERE batch_id = {id} UNION ALL \
               SELECT at + toIntervalSecond({term}) AS ends \
               FROM {batches} WHERE batch_id = {id} AND event = {leased} AND reason != '')",
            term = format_args!(
                "lease_seconds + greatest(statement_seconds, {})",
                self.statement_seconds()
            ),
            id = sql::id(batch.0),
            leased = sql::string(event::LEASED),
        );
        let barrier = self.barrier().await?;
        let tables = [OBJECTS_TABLE, BATCHES_TABLE];
        let remaining: Vec<Remaining> = self
            .warehouse
            .rows_after(barrier.as_ref(), &tables, &sql)
            .await?;
        let seconds = remaining.first().map_or(0, |it| it.seconds);
        let late = i64::try_from(LATE_COMMIT.as_secs()).unwrap_or(i64::MAX);
        let seconds = u64::try_from(seconds.saturating_add(late)).unwrap_or(0);
        Ok(Duration::from_secs(seconds))
    }

    /// Returns whether no other run has fenced the batch: then none has sent a statement of it.
    pub async fn is_undisputed(&self, batch: BatchId, run: RunId) -> Result<bool, WarehouseError> {
        let Some(barrier) = self.barrier().await? else {
            return Ok(true);
        };
        let by_others = format!(
            "batch_id = {} AND event = {} AND {}",
            sql::id(batch.0),
            sql::string(event::FENCED),
            is_of_others(run),
        );
        let is_disputed = self
            .warehouse
            .has_rows(&[BATCHES_TABLE], &by_others, Some(&barrier));
        Ok(!is_disputed.await?)
    }

    /// Returns whether the batch is loaded or released.
    pub async fn has_ended(&self, batch: BatchId) -> Result<bool, WarehouseError> {
        let barrier = self.barrier().await?;
        let ended = format!(
            "batch_id = {} AND event IN ({})",
            sql::id(batch.0),
            sql::strings([event::LOADED, event::RELEASED])
        );
        self.warehouse
            .has_rows(&[BATCHES_TABLE], &ended, barrier.as_ref())
            .await
    }
}
