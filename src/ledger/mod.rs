//! Which objects are loaded, claimed by a batch, or free: the ledger's tables.
//!
//! Every operation is one statement, whatever the number of objects, and touches only the rows of
//! the objects and batches that it names. All of them may be repeated: a ledger row that is there
//! twice says the same as one. See [`protocol`] for the order in which they are used.

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

/// One row an object and batch: the frozen list of each batch.
pub const OBJECTS_TABLE: &str = "ledger_objects";
/// One row an event of a batch.
pub const BATCHES_TABLE: &str = "ledger_batches";

/// One row an object that could not be loaded, each time: the reason on record.
pub const FAILURES_TABLE: &str = "ledger_failures";

/// The class of a row of [`FAILURES_TABLE`] that is no failure: a person has dismissed those before.
pub const DISMISSED: &str = "dismissed";

/// The events in the life of a batch, as `ledger_batches.event` has them. That it is sealed is said
/// by its list.
mod event {
    pub(super) const LEASED: &str = "leased";
    pub(super) const FENCED: &str = "fenced";
    pub(super) const RELEASED: &str = "released";
    pub(super) const LOADED: &str = "loaded";
    /// What the batch replaces is deleted.
    pub(super) const CLEANED: &str = "cleaned";
}

/// Of a claim: the batch moves lines that were kept.
pub(crate) const IS_REPLAY: &str = "read_by IN ('rejected_lines', 'unmatched_statements')";

#[derive(Clone)]
pub struct Ledger {
    warehouse: Warehouse,
    /// Named in the ledger's rows, for people.
    worker: String,
    lease: Duration,
    env: Env,
}

/// Of each object, the batches that have loaded it.
pub type Claims = HashMap<ObjectId, Vec<BatchId>>;

/// What a batch claims.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub object: &'a ObjectRef,
    /// The loaded batches whose rows of the object are replaced.
    pub supersedes: &'a [BatchId],
}

impl<'a> Claim<'a> {
    /// Of an object that nobody has loaded.
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
    /// Without a lease.
    fn of(batch: BatchId, claim: &Claim<'a>, form: StatementShape) -> Self {
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
            read_by: form.read_by,
            batch_id: batch.0,
            plan: form.plan,
            many_blocks: form.many_blocks,
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
    /// One word, for statistics and filters.
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

/// A replay that is to be finished.
#[derive(Debug, Deserialize)]
pub struct UnfinishedReplay {
    pub batch_id: Uuid,
    pub read_by: ReadBy,
    /// Only the kept lines are to be deleted.
    pub loaded: bool,
}

/// What the ledger says of a batch that is to be recovered.
#[derive(Debug)]
pub struct Manifest {
    pub objects: Vec<ManifestEntry>,
    pub form: StatementShape,
    /// The highest fenced attempt, 0 where none is.
    pub fenced: u32,
}

/// A [`Claim`] that is read back.
#[derive(Debug)]
pub struct ManifestEntry {
    pub object: ObjectRef,
    pub supersedes: Vec<BatchId>,
}

/// A batch that supersedes others, and has not been cleaned up after.
#[derive(Clone, Copy, Debug)]
pub struct Replacement {
    pub batch: BatchId,
    pub status: ClaimStatus,
}

/// An object as `ledger_objects` has it.
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
    /// `lease`: how long others keep their hands off a batch after its worker was last heard of.
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

    /// The standing of each object, in order, leaving out batch `excluding` and these superseded claims.
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
        // Of new objects nobody has a claim, which is told for a third of what the rest costs.
        let which = format!("{}{}", among(objects, excluding), without(superseded));
        let is_claimed = match excluding {
            None => self.warehouse.has_rows(OBJECTS_TABLE, &which).await?,
            Some(batch) => self.is_claimed_beside(batch, objects, superseded).await?,
        };
        if !is_claimed {
            return Ok(vec![ClaimStatus::Free; objects.len()]);
        }
        // A replay that is left behind is for the next replay to finish.
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

    /// Returns whether there are claims on these objects beside those of a batch, which must be there
    /// whole.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Hidden`] where the ledger does not show what the batch has written to it:
    /// then it cannot be believed about others either.
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

    /// The standing of each object, in order, as far as lines that are kept of it are to be moved:
    /// free, unless another batch than `excluding` works on it, or has to clean up after itself.
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
                // What is left behind is looked for by itself.
                lease_expired: false,
            },
        };
        Ok(objects.iter().map(status).collect())
    }

    /// Replays that somebody has left behind: their lease has run out, or the kept lines are still
    /// there.
    pub async fn unfinished_replays(&self) -> Result<Vec<UnfinishedReplay>, WarehouseError> {
        let sql = self.claims(
            IS_REPLAY,
            "DISTINCT batch_id, read_by, toBool(loaded) AS loaded",
            "NOT released AND if(loaded, NOT cleaned, lapsed) ORDER BY batch_id",
        );
        self.warehouse.rows(&sql).await
    }

    /// `columns` of the claims that `which` names, as far as `condition` holds.
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

    /// Which batches have loaded these objects, the last of them before that time.
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

    /// Batches that supersede others, and are open, or loaded and not cleaned up after.
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

    /// Writes the frozen list of a batch.
    pub async fn claim(
        &self,
        batch: BatchId,
        claims: &[Claim<'_>],
        form: StatementShape,
    ) -> Result<(), WarehouseError> {
        let rows: Vec<ManifestRow<'_>> = claims
            .iter()
            .map(|claim| ManifestRow {
                lease_seconds: self.lease_seconds(),
                worker: &self.worker,
                ..ManifestRow::of(batch, claim, form)
            })
            .collect();
        self.of(batch).insert(OBJECTS_TABLE, &rows).await
    }

    /// Says that this worker still works on the batch.
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

    /// Keeps the lease for as long as some work takes.
    pub async fn leased<T>(&self, batch: BatchId, work: impl Future<Output = T>) -> T {
        let keep_lease = async {
            let mut renewals = tokio::time::interval(self.lease / 3);
            renewals.tick().await;
            loop {
                renewals.tick().await;
                if let Err(error) = self.renew(batch).await {
                    debug!(error = %error, "lease not renewed");
                }
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            () = keep_lease => unreachable!("it never ends"),
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

    /// No attempt of the batch up to this one may start any more. Takes the lease over.
    ///
    /// [`Fence::Written`] where this worker was the first to do so: of several that recover a batch at once, the
    /// others had better leave it to that one. Nothing but work depends on it.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Hidden`] where the ledger does not show the fence: then the guard of a
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

    /// The batch has no rows, and never will have.
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

    /// The batch is loaded; an error with [`FENCED_TEXT`] where this attempt is fenced.
    ///
    /// Guarded as the insert is, and found by a kill under the batch's name: whoever takes the
    /// batch's rows back can be sure that it is not on record later.
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

    /// What the batch replaces is deleted.
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

    /// Puts on record why objects could not be loaded.
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

    /// Records that a person has dismissed these failures.
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

    /// The frozen list of a batch and its fences; `None` when it needs no recovery any more.
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
        let form = StatementShape {
            plan: first.plan,
            many_blocks: first.many_blocks,
            read_by: first.read_by,
        };
        let objects = listed.into_iter().map(ManifestEntry::from).collect();
        Ok(Some(Manifest {
            objects,
            form,
            fenced,
        }))
    }

    /// The frozen list of a batch, whatever became of it.
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

    /// The objects that were loaded last: of the same bucket as `object`, or of any other.
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

    /// The condition under which an insert of this attempt must not start, as SQL. One of a batch
    /// that is loaded comes late, and does nothing while the tables remember its token.
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

    /// For statements of the batch.
    fn of(&self, batch: BatchId) -> Warehouse {
        self.warehouse.commented(&format!("sluice batch {batch}"))
    }

    fn lease_seconds(&self) -> u32 {
        u32::try_from(self.lease.as_secs()).unwrap_or(u32::MAX)
    }
}

/// But not these claims.
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

/// The claims on these objects, but those of one batch.
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
