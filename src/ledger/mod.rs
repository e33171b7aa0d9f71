//! The ledger's tables, which record the objects that are loaded or claimed by a batch.
//!
//! Every operation is one statement, whatever the number of objects, and touches only the rows of
//! the objects and batches that it names. All operations may be repeated: a duplicate row in the
//! ledger changes nothing. See [`protocol`] for the order in which they are used.

pub mod history;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tracing::debug;
use uuid::Uuid;

use crate::Env;
use crate::batch::{BatchId, ReadBy, StatementShape};
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::ledger::drive::Fence;
use crate::ledger::history::FailedObject;
use crate::object::{ObjectId, ObjectParts, ObjectRef};
use crate::sql;
use crate::statements::guard::FENCED_TEXT;
use protocol::ClaimStatus;
pub use sluice_core::ledger::{drive, protocol};

/// Has one row for each object of a batch: the manifest of each batch.
pub const OBJECTS_TABLE: &str = "ledger_objects";
/// Has one row for each event of a batch.
pub const BATCHES_TABLE: &str = "ledger_batches";

/// Has one row for each time that an object could not be loaded, with the reason.
pub const FAILURES_TABLE: &str = "ledger_failures";

/// The class of a row of [`FAILURES_TABLE`] that is not a failure, but dismisses the earlier
/// failures of the object.
pub const DISMISSED: &str = "dismissed";

/// The events of a batch, as in `ledger_batches.event`. The claim has no event: it is the manifest.
mod event {
    pub(super) const LEASED: &str = "leased";
    pub(super) const FENCED: &str = "fenced";
    pub(super) const RELEASED: &str = "released";
    pub(super) const LOADED: &str = "loaded";
    /// The rows that the batch supersedes, or the rejects that it has moved, are deleted.
    pub(super) const CLEANED: &str = "cleaned";
}

/// The SQL condition for the claims of batches that replay rejects.
pub(crate) const IS_REPLAY: &str = "read_by IN ('rejected_lines', 'unmatched_statements')";

#[derive(Clone)]
pub struct Ledger {
    warehouse: Warehouse,
    /// The worker's name in the ledger's rows, for human readers.
    worker: String,
    lease: Duration,
    env: Env,
}

/// The batches that have loaded each object.
pub type Claims = HashMap<ObjectId, Vec<BatchId>>;

/// The claim of a batch on one object.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub object: &'a ObjectRef,
    /// The loaded batches whose rows of the object are superseded.
    pub supersedes: &'a [BatchId],
}

impl<'a> Claim<'a> {
    /// Returns the claim on an object that no batch has loaded.
    pub fn of(object: &'a ObjectRef) -> Self {
        Self {
            object,
            supersedes: &[],
        }
    }
}

#[derive(Serialize)]
struct ManifestRow<'a> {
    object_id: Uuid,
    bucket: &'a str,
    key: &'a str,
    etag: &'a str,
    version_id: &'a str,
    region: &'a str,
    size: u64,
    read_by: ReadBy,
    batch_id: Uuid,
    plan: Uuid,
    many_blocks: bool,
    supersedes: Vec<Uuid>,
    lease_seconds: u32,
    worker: &'a str,
}

impl<'a> ManifestRow<'a> {
    /// Returns the row of a claim, without lease and worker.
    fn of(batch: BatchId, claim: &Claim<'a>, shape: StatementShape) -> Self {
        let object = claim.object;
        Self {
            object_id: object.id().0,
            bucket: &object.bucket,
            key: &object.key,
            etag: &object.etag,
            version_id: object.version_id.as_deref().unwrap_or_default(),
            region: object.region.as_deref().unwrap_or_default(),
            // An unknown size is planned as one of 0 is (`batch::estimated_bytes`).
            size: object.size.unwrap_or_default(),
            read_by: shape.read_by,
            batch_id: batch.0,
            plan: shape.plan,
            many_blocks: shape.many_blocks,
            supersedes: claim.supersedes.iter().map(|batch| batch.0).collect(),
            lease_seconds: 0,
            worker: "",
        }
    }
}

#[derive(Serialize, Default)]
struct BatchRow<'a> {
    batch_id: Uuid,
    event: &'a str,
    attempt: u32,
    lease_seconds: u32,
    worker: &'a str,
    reason: &'a str,
}

/// An object that could not be loaded.
#[derive(Debug)]
pub struct Failure<'a> {
    pub object: &'a ObjectRef,
    /// The failure class, one word for statistics and filters.
    pub class: &'static str,
    pub reason: &'a str,
}

#[derive(Serialize)]
struct FailureRow<'a> {
    object_id: Uuid,
    bucket: &'a str,
    key: &'a str,
    etag: &'a str,
    class: &'a str,
    reason: &'a str,
    worker: &'a str,
}

/// A replay that must be finished.
#[derive(Debug, Deserialize)]
pub struct UnfinishedReplay {
    pub batch_id: Uuid,
    pub read_by: ReadBy,
    /// Whether the batch is loaded, so that only its rejects must be deleted.
    pub loaded: bool,
}

/// The manifest of a batch that must be recovered.
#[derive(Debug)]
pub struct Manifest {
    pub objects: Vec<ManifestEntry>,
    pub shape: StatementShape,
    /// The highest fenced attempt, or 0 if none is fenced.
    pub fenced: u32,
}

/// A [`Claim`] as it is read back from the ledger.
#[derive(Debug)]
pub struct ManifestEntry {
    pub object: ObjectRef,
    pub supersedes: Vec<BatchId>,
}

/// A batch that supersedes others, and whose superseded rows have not been deleted.
#[derive(Clone, Copy, Debug)]
pub struct Replacement {
    pub batch: BatchId,
    pub status: ClaimStatus,
}

/// An object as it is recorded in `ledger_objects`.
#[derive(Deserialize)]
struct Listed {
    bucket: String,
    key: String,
    etag: String,
    version_id: String,
    region: String,
    size: u64,
}

#[derive(Deserialize)]
struct ListedRow {
    #[serde(flatten)]
    object: Listed,
    plan: Uuid,
    many_blocks: bool,
    read_by: ReadBy,
    supersedes: Vec<Uuid>,
}

impl From<ListedRow> for ManifestEntry {
    fn from(row: ListedRow) -> Self {
        Self {
            object: row.object.into(),
            supersedes: row.supersedes.into_iter().map(BatchId).collect(),
        }
    }
}

impl From<Listed> for ObjectRef {
    fn from(row: Listed) -> Self {
        Self::from(ObjectParts {
            bucket: row.bucket,
            key: row.key,
            etag: row.etag,
            size: Some(row.size),
            version_id: Some(row.version_id).filter(|version| !version.is_empty()),
            sequencer: None,
            region: Some(row.region).filter(|region| !region.is_empty()),
        })
    }
}

impl Ledger {
    /// Creates the ledger of a worker. `lease` is how long other workers must not touch a batch
    /// after its worker was last heard of.
    pub fn new(warehouse: Warehouse, worker: impl Into<String>, lease: Duration, env: Env) -> Self {
        Self {
            warehouse,
            worker: worker.into(),
            lease,
            env,
        }
    }

    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Returns the claim status of each object, in order, excluding the batch `excluding` and the
    /// superseded claims.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Hidden`] if the ledger does not show the claims of the batch `excluding`.
    pub async fn claim_statuses(
        &self,
        objects: &[ObjectId],
        excluding: Option<BatchId>,
        superseded: &[(ObjectId, BatchId)],
    ) -> Result<Vec<ClaimStatus>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            object_id: Uuid,
            batch_id: Uuid,
            loaded: u8,
            recoverable: u8,
        }
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        // New objects have no claim: this query finds that out at a third of the cost of the next
        // one.
        let which = format!("{}{}", among(objects, excluding), without(superseded));
        let is_claimed = match excluding {
            None => self.warehouse.has_rows(OBJECTS_TABLE, &which).await?,
            Some(batch) => self.is_claimed_beside(batch, objects, superseded).await?,
        };
        if !is_claimed {
            return Ok(vec![ClaimStatus::Free; objects.len()]);
        }
        // An unfinished replay is finished by the next replay.
        let sql = self.claims(
            &which,
            &format!("object_id, batch_id, loaded, lapsed AND NOT {IS_REPLAY} AS recoverable"),
            "loaded OR NOT released",
        );
        let mut known: HashMap<ObjectId, ClaimStatus> = HashMap::new();
        for row in self.warehouse.rows::<Row>(&sql).await? {
            let status = known
                .entry(ObjectId(row.object_id))
                .or_insert(ClaimStatus::Free);
            if row.loaded == 1 {
                *status = ClaimStatus::Loaded;
            } else if *status != ClaimStatus::Loaded {
                let batch = BatchId(row.batch_id);
                *status = ClaimStatus::Busy {
                    batch,
                    lease_expired: row.recoverable == 1,
                };
            }
        }
        let status = |object| known.get(object).copied().unwrap_or(ClaimStatus::Free);
        Ok(objects.iter().map(status).collect())
    }

    /// Returns whether there are claims on these objects other than those of a batch.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Hidden`] if the ledger does not show all claims of the batch: then it may
    /// also hide the claims of others.
    async fn is_claimed_beside(
        &self,
        batch: BatchId,
        objects: &[ObjectId],
        superseded: &[(ObjectId, BatchId)],
    ) -> Result<bool, WarehouseError> {
        #[derive(Deserialize)]
        struct Counts {
            own: u64,
            others: u64,
        }
        let sql = format!(
            "SELECT uniqExactIf(object_id, batch_id = {id}) AS own, \
               countIf(batch_id != {id}) AS others FROM {} WHERE {}{}",
            self.warehouse.table(OBJECTS_TABLE),
            among(objects, None),
            without(superseded),
            id = sql::id(batch.0)
        );
        let counts: Vec<Counts> = self.warehouse.rows(&sql).await?;
        let (own, others) = counts.first().map_or((0, 0), |it| (it.own, it.others));
        let written = objects.len() as u64;
        if own < written {
            return Err(WarehouseError::Hidden {
                table: OBJECTS_TABLE,
                shown: own,
                written,
            });
        }
        Ok(others > 0)
    }

    /// Returns the claim status of each object, in order, for a replay of its rejects: free, unless
    /// a batch other than `excluding` is in progress on it or has not been cleaned up.
    pub async fn claim_statuses_of_rejects(
        &self,
        objects: &[ObjectId],
        excluding: Option<BatchId>,
    ) -> Result<Vec<ClaimStatus>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            object_id: Uuid,
            batch_id: Uuid,
        }
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(batch) = excluding {
            self.is_claimed_beside(batch, objects, &[]).await?;
        }
        let sql = self.claims(
            &among(objects, excluding),
            "object_id, batch_id",
            &format!(
                "NOT released AND (NOT loaded OR (({IS_REPLAY} OR replaces) AND NOT cleaned))"
            ),
        );
        let rows: Vec<Row> = self.warehouse.rows(&sql).await?;
        let busy: HashMap<_, _> = rows
            .iter()
            .map(|row| (row.object_id, row.batch_id))
            .collect();
        let status = |object: &ObjectId| match busy.get(&object.0) {
            None => ClaimStatus::Free,
            Some(batch) => ClaimStatus::Busy {
                batch: BatchId(*batch),
                // `unfinished_replays` finds expired leases.
                lease_expired: false,
            },
        };
        Ok(objects.iter().map(status).collect())
    }

    /// Returns the replays that other processes have not finished: those whose lease has expired,
    /// or whose rejects have not been deleted.
    pub async fn unfinished_replays(&self) -> Result<Vec<UnfinishedReplay>, WarehouseError> {
        let sql = self.claims(
            IS_REPLAY,
            "DISTINCT batch_id, read_by, toBool(loaded) AS loaded",
            "NOT released AND if(loaded, NOT cleaned, lapsed) ORDER BY batch_id",
        );
        self.warehouse.rows(&sql).await
    }

    /// Returns the query for the `columns` of the claims that `which` selects and that meet
    /// `condition`.
    fn claims(&self, which: &str, columns: &str, condition: &str) -> String {
        format!(
            "WITH claims AS (\
               SELECT object_id, batch_id, any(read_by) AS reader, \
                 max(notEmpty(supersedes)) AS replaces, max(sealed_at) AS sealed, \
                 argMax(lease_seconds, sealed_at) AS lease \
               FROM {claims} WHERE {which} GROUP BY object_id, batch_id\
             ), events AS (\
               SELECT batch_id, max(event = '{LOADED}') AS loaded, \
                 max(event = '{RELEASED}') AS released, max(event = '{CLEANED}') AS cleaned, \
                 maxIf(at, event = '{LEASED}') AS leased_at, \
                 argMaxIf(lease_seconds, at, event = '{LEASED}') AS lease \
               FROM {events} WHERE batch_id IN (SELECT batch_id FROM claims) GROUP BY batch_id\
             ), joined AS (\
               SELECT claims.object_id AS object_id, claims.batch_id AS batch_id, \
                 claims.reader AS read_by, claims.replaces AS replaces, \
                 claims.sealed AS sealed, events.loaded AS loaded, \
                 events.released AS released, events.cleaned AS cleaned, \
                 if(events.leased_at > claims.sealed, \
                   events.leased_at + toIntervalSecond(events.lease), \
                   claims.sealed + toIntervalSecond(claims.lease)) < now64(3) AS lapsed \
               FROM claims LEFT JOIN events ON claims.batch_id = events.batch_id\
             ) \
             SELECT {columns} FROM joined WHERE {condition}",
            claims = self.warehouse.table(OBJECTS_TABLE),
            events = self.warehouse.table(BATCHES_TABLE),
            LOADED = event::LOADED,
            RELEASED = event::RELEASED,
            CLEANED = event::CLEANED,
            LEASED = event::LEASED,
        )
    }

    /// Returns the batches that have loaded each of these objects, if the last of them claimed it
    /// before that time.
    pub async fn loaded_claims(
        &self,
        objects: &[ObjectId],
        before: SystemTime,
    ) -> Result<Claims, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            object_id: Uuid,
            batches: Vec<Uuid>,
        }
        if objects.is_empty() {
            return Ok(Claims::new());
        }
        let before = before.duration_since(SystemTime::UNIX_EPOCH);
        let sql = self.claims(
            &among(objects, None),
            "object_id, groupUniqArray(batch_id) AS batches",
            &format!(
                "loaded GROUP BY object_id HAVING max(sealed) < fromUnixTimestamp64Milli({})",
                before.unwrap_or_default().as_millis()
            ),
        );
        let rows: Vec<Row> = self.warehouse.rows(&sql).await?;
        let claims = rows.into_iter().map(|row| {
            let batches = row.batches.into_iter().map(BatchId);
            (ObjectId(row.object_id), batches.collect())
        });
        Ok(claims.collect())
    }

    /// Returns the batches that supersede others, and that are open, or loaded and not cleaned up.
    pub async fn replacements(&self) -> Result<Vec<Replacement>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            batch_id: Uuid,
            is_loaded: u8,
            is_lapsed: u8,
        }
        let sql = self.claims(
            "notEmpty(supersedes)",
            "batch_id, max(loaded) AS is_loaded, min(lapsed) AS is_lapsed",
            "NOT released AND NOT cleaned GROUP BY batch_id",
        );
        let rows: Vec<Row> = self.warehouse.rows(&sql).await?;
        let replacements = rows.into_iter().map(|row| {
            let batch = BatchId(row.batch_id);
            let lease_expired = row.is_lapsed == 1;
            let status = match row.is_loaded {
                1 => ClaimStatus::Loaded,
                _ => ClaimStatus::Busy {
                    batch,
                    lease_expired,
                },
            };
            Replacement { batch, status }
        });
        Ok(replacements.collect())
    }

    /// Claims objects for a batch by writing its manifest.
    pub async fn claim(
        &self,
        batch: BatchId,
        claims: &[Claim<'_>],
        shape: StatementShape,
    ) -> Result<(), WarehouseError> {
        let rows: Vec<ManifestRow<'_>> = claims
            .iter()
            .map(|claim| ManifestRow {
                lease_seconds: self.lease_seconds(),
                worker: &self.worker,
                ..ManifestRow::of(batch, claim, shape)
            })
            .collect();
        self.of(batch).insert(OBJECTS_TABLE, &rows).await
    }

    /// Renews this worker's lease on the batch.
    pub async fn renew(&self, batch: BatchId) -> Result<(), WarehouseError> {
        let lease_seconds = self.lease_seconds();
        self.note(
            batch,
            BatchRow {
                event: event::LEASED,
                lease_seconds,
                ..BatchRow::default()
            },
        )
        .await
    }

    /// Runs `work` while renewing the lease, after every third of it.
    pub async fn leased<T>(&self, batch: BatchId, work: impl Future<Output = T>) -> T {
        let keep_lease = async {
            let mut renewals = tokio::time::interval(self.lease / 3);
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
        self.note(
            batch,
            BatchRow {
                event: event::LEASED,
                ..BatchRow::default()
            },
        )
        .await
    }

    /// Fences the batch, so that no attempt up to this one may start any more, and takes over the
    /// lease.
    ///
    /// Returns [`Fence::Written`] if this worker was the first to do so. If several workers recover
    /// a batch at the same time, the others leave it to that one. This saves work; safety does not
    /// depend on it.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Hidden`] if the ledger does not show the fence: then the guard of a
    /// statement does not see it either.
    pub async fn fence(&self, batch: BatchId, attempt: u32) -> Result<Fence, WarehouseError> {
        #[derive(Deserialize)]
        struct First {
            mine: u8,
        }
        let row = |event, attempt, lease_seconds| BatchRow {
            batch_id: batch.0,
            event,
            attempt,
            lease_seconds,
            worker: &self.worker,
            reason: "",
        };
        let rows = [
            row(event::LEASED, 0, self.lease_seconds()),
            row(event::FENCED, attempt, 0),
        ];
        self.of(batch).insert(BATCHES_TABLE, &rows).await?;
        let sql = format!(
            "SELECT worker = {} AS mine FROM {} \
             WHERE batch_id = {id} AND event = {} AND attempt >= {attempt} \
             ORDER BY at, worker LIMIT 1",
            sql::string(&self.worker),
            self.warehouse.table(BATCHES_TABLE),
            sql::string(event::FENCED),
            id = sql::id(batch.0)
        );
        let first: Vec<First> = self.warehouse.rows(&sql).await?;
        let hidden = WarehouseError::Hidden {
            table: BATCHES_TABLE,
            shown: 0,
            written: 1,
        };
        Ok(match first.first().ok_or(hidden)? {
            First { mine: 1 } => Fence::Written,
            First { .. } => Fence::TakenOver,
        })
    }

    /// Releases the batch, which has no rows and never will have any.
    pub async fn release(&self, batch: BatchId, reason: &str) -> Result<(), WarehouseError> {
        self.note(
            batch,
            BatchRow {
                event: event::RELEASED,
                reason,
                ..BatchRow::default()
            },
        )
        .await
    }

    /// Records that the batch is loaded.
    ///
    /// The statement is guarded as the insert is, and a kill finds it by the id of the batch, so a
    /// batch that is rolled back cannot be recorded afterwards.
    ///
    /// # Errors
    ///
    /// An error with [`FENCED_TEXT`] if this attempt is fenced.
    pub async fn record(
        &self,
        batch: BatchId,
        attempt: u32,
        objects: usize,
        rows: u64,
        remark: &str,
    ) -> Result<(), WarehouseError> {
        let guard = self.refusal(batch, attempt, &[event::RELEASED]);
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
        self.note(
            batch,
            BatchRow {
                event: event::CLEANED,
                ..BatchRow::default()
            },
        )
        .await
    }

    /// Records why objects could not be loaded.
    pub async fn record_failures(&self, failures: &[Failure<'_>]) -> Result<(), WarehouseError> {
        let rows: Vec<FailureRow<'_>> = failures
            .iter()
            .map(|failure| FailureRow {
                object_id: failure.object.id().0,
                bucket: &failure.object.bucket,
                key: &failure.object.key,
                etag: &failure.object.etag,
                class: failure.class,
                reason: failure.reason,
                worker: &self.worker,
            })
            .collect();
        self.warehouse.insert(FAILURES_TABLE, &rows).await
    }

    /// Records that a user has dismissed these failures.
    pub async fn dismiss(
        &self,
        failed: &[FailedObject],
        reason: &str,
    ) -> Result<(), WarehouseError> {
        let rows: Vec<FailureRow<'_>> = failed
            .iter()
            .map(|failed| FailureRow {
                object_id: failed.object_id,
                bucket: &failed.bucket,
                key: &failed.key,
                etag: &failed.etag,
                class: DISMISSED,
                reason,
                worker: &self.worker,
            })
            .collect();
        self.warehouse.insert(FAILURES_TABLE, &rows).await
    }

    async fn note(&self, batch: BatchId, row: BatchRow<'_>) -> Result<(), WarehouseError> {
        let row = BatchRow {
            batch_id: batch.0,
            worker: &self.worker,
            ..row
        };
        self.of(batch).insert(BATCHES_TABLE, &[row]).await
    }

    /// Returns the manifest of a batch and its highest fence, or `None` if it needs no recovery.
    pub async fn manifest(&self, batch: BatchId) -> Result<Option<Manifest>, WarehouseError> {
        #[derive(Deserialize)]
        struct Events {
            ended: u8,
            fenced: u32,
        }
        let sql = format!(
            "SELECT max(event IN ({})) AS ended, maxIf(attempt, event = {}) AS fenced \
             FROM {} WHERE batch_id = {id}",
            sql::strings([event::LOADED, event::RELEASED]),
            sql::string(event::FENCED),
            self.warehouse.table(BATCHES_TABLE),
            id = sql::id(batch.0)
        );
        let events: Vec<Events> = self.warehouse.rows(&sql).await?;
        let Some(Events { ended: 0, fenced }) = events.into_iter().next() else {
            return Ok(None);
        };
        let listed = self.list(batch).await?;
        let Some(first) = listed.first() else {
            return Ok(None);
        };
        let shape = StatementShape {
            plan: first.plan,
            many_blocks: first.many_blocks,
            read_by: first.read_by,
        };
        let objects = listed.into_iter().map(ManifestEntry::from).collect();
        Ok(Some(Manifest {
            objects,
            shape,
            fenced,
        }))
    }

    /// Returns the objects in the manifest of a batch, whether or not it has ended.
    pub async fn objects(&self, batch: BatchId) -> Result<Vec<ManifestEntry>, WarehouseError> {
        let listed = self.list(batch).await?;
        Ok(listed.into_iter().map(ManifestEntry::from).collect())
    }

    async fn list(&self, batch: BatchId) -> Result<Vec<ListedRow>, WarehouseError> {
        let sql = format!(
            "SELECT DISTINCT bucket, key, etag, version_id, region, size, plan, many_blocks, \
               read_by, supersedes \
             FROM {} WHERE batch_id = {id} ORDER BY key",
            self.warehouse.table(OBJECTS_TABLE),
            id = sql::id(batch.0)
        );
        self.warehouse.rows(&sql).await
    }

    /// Returns the most recently loaded objects other than `object`: from its bucket, or, unless
    /// `same_bucket`, from all other buckets.
    pub async fn latest_loaded(
        &self,
        object: &ObjectRef,
        same_bucket: bool,
        limit: usize,
    ) -> Result<Vec<ObjectRef>, WarehouseError> {
        let objects = self.warehouse.table(OBJECTS_TABLE);
        let batches = self.warehouse.table(BATCHES_TABLE);
        let bucket = sql::string(&object.bucket);
        let (is, key) = (
            if same_bucket { "=" } else { "!=" },
            sql::string(&object.key),
        );
        let sql = format!(
            "SELECT DISTINCT bucket, key, etag, version_id, region, size FROM {objects} \
             WHERE bucket {is} {bucket} AND key != {key} AND batch_id IN (\
               SELECT batch_id FROM {batches} WHERE event = '{LOADED}' ORDER BY at DESC LIMIT 100\
             ) ORDER BY sealed_at DESC LIMIT {limit}",
            LOADED = event::LOADED,
        );
        let listed: Vec<Listed> = self.warehouse.rows(&sql).await?;
        Ok(listed.into_iter().map(ObjectRef::from).collect())
    }

    /// Returns the condition under which an insert of this attempt must not start, as SQL. An
    /// insert of a batch that is already loaded is late, and inserts nothing while the tables
    /// remember its token.
    pub fn guard(&self, batch: BatchId, attempt: u32) -> String {
        self.refusal(batch, attempt, &[event::RELEASED, event::LOADED])
    }

    fn refusal(&self, batch: BatchId, attempt: u32, ended_by: &[&str]) -> String {
        format!(
            "(SELECT count() FROM {} WHERE batch_id = {id} AND \
             (event IN ({}) OR (event = {} AND attempt >= {attempt}))) > 0",
            self.warehouse.table(BATCHES_TABLE),
            sql::strings(ended_by),
            sql::string(event::FENCED),
            id = sql::id(batch.0)
        )
    }

    /// Returns a client whose statements have the batch as their comment.
    fn of(&self, batch: BatchId) -> Warehouse {
        self.warehouse.commented(&format!("sluice batch {batch}"))
    }

    fn lease_seconds(&self) -> u32 {
        u32::try_from(self.lease.as_secs()).unwrap_or(u32::MAX)
    }
}

/// Returns the end of a condition that excludes these claims.
fn without(superseded: &[(ObjectId, BatchId)]) -> String {
    let claims: Vec<String> = superseded
        .iter()
        .map(|(object, batch)| format!("({},{})", sql::id(object.0), sql::id(batch.0)))
        .collect();
    if claims.is_empty() {
        return String::new();
    }
    format!(" AND (object_id, batch_id) NOT IN ({})", claims.join(","))
}

/// Returns the condition for the claims on these objects, excluding those of one batch.
fn among(objects: &[ObjectId], excluding: Option<BatchId>) -> String {
    let listed = quoted_list(objects.iter().map(|object| object.0));
    let excluding = excluding
        .map(|batch| format!(" AND batch_id != {}", sql::id(batch.0)))
        .unwrap_or_default();
    format!("object_id IN ({listed}){excluding}")
}

pub(crate) fn quoted_list(ids: impl Iterator<Item = Uuid>) -> String {
    ids.map(sql::id).collect::<Vec<_>>().join(",")
}
