//! Reads which batches claim objects.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::events::event;
use super::manifest::RecordedObject;
use super::protocol::ClaimStatus;
use super::{BATCHES_TABLE, Ledger, OBJECTS_TABLE};
use crate::batch::{BatchId, ReadBy};
use crate::clickhouse::WarehouseError;
use crate::clickhouse::replicas::Barrier;
use crate::object::{ObjectId, ObjectRef};
use crate::sql;

/// The SQL condition for the claims of batches that replay rejects.
pub(crate) const IS_REPLAY: &str = "read_by IN ('rejected_lines', 'unmatched_statements')";

/// The batches that have loaded each object.
pub type Claims = HashMap<ObjectId, Vec<BatchId>>;

/// A replay that must be finished.
#[derive(Debug, Deserialize)]
pub struct UnfinishedReplay {
    pub batch_id: Uuid,
    pub read_by: ReadBy,
    /// Whether the batch is loaded, so that only its rejects must be deleted.
    pub loaded: bool,
}

/// A batch that supersedes others, and whose superseded rows have not been deleted.
#[derive(Clone, Copy, Debug)]
pub struct Replacement {
    pub batch: BatchId,
    pub status: ClaimStatus,
}

impl Ledger {
    /// Returns the claim status of each object, in order, excluding the batch `excluding` and the
    /// superseded claims.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Hidden`] if the ledger does not show the claims of the batch `excluding`;
    /// [`WarehouseError::Behind`] if it may not show all that others claimed before.
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
            None => {
                self.warehouse
                    .has_rows(&[OBJECTS_TABLE], &which, None)
                    .await?
            }
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
        for row in self.claimed_rows::<Row>(excluding, &sql).await? {
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
        let counts: Vec<Counts> = self.claimed_rows(Some(batch), &sql).await?;
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

    /// Returns the rows of a query of the claims. For a batch that has claimed, it sees all claims
    /// that others made before.
    async fn claimed_rows<T: DeserializeOwned>(
        &self,
        claimed: Option<BatchId>,
        sql: &str,
    ) -> Result<Vec<T>, WarehouseError> {
        let claim = match claimed {
            Some(batch) if self.is_replicated().await? => Some(Barrier {
                table: OBJECTS_TABLE,
                condition: format!("batch_id = {}", sql::id(batch.0)),
            }),
            _ => None,
        };
        // Events that it does not see yet only make claims look busy.
        let tables = [OBJECTS_TABLE];
        self.warehouse
            .rows_after(claim.as_ref(), &tables, sql)
            .await
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
        let rows: Vec<Row> = self.claimed_rows(excluding, &sql).await?;
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

    /// Returns batches that are open although their lease ended, longer ago than it lasted: some of
    /// those that claimed within `since`, at most `limit`.
    ///
    /// Usually, whoever receives the message of an object next recovers its batch. Nobody does if
    /// the message has become a dead letter, or if the key has other content by now.
    pub async fn left_open(
        &self,
        since: Duration,
        limit: usize,
    ) -> Result<Vec<BatchId>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            batch_id: Uuid,
        }
        let sql = format!(
            "SELECT batch_id FROM {objects} WHERE sealed_at > {begin} AND NOT {IS_REPLAY} \
             AND {recent} AND batch_id NOT IN (\
               SELECT batch_id FROM {batches} WHERE at > {begin} AND (event IN ({ended}) \
                 OR (event = {leased} AND at + toIntervalSecond(2 * lease_seconds) > now64(3)))\
             ) GROUP BY batch_id \
             HAVING max(sealed_at + toIntervalSecond(2 * lease_seconds)) < now64(3) LIMIT {limit}",
            objects = self.warehouse.table(OBJECTS_TABLE),
            batches = self.warehouse.table(BATCHES_TABLE),
            begin = format_args!("now64(3) - toIntervalSecond({})", since.as_secs()),
            recent = self.warehouse.in_recent_parts(OBJECTS_TABLE, since),
            ended = sql::strings([event::LOADED, event::RELEASED]),
            leased = sql::string(event::LEASED),
        );
        let rows: Vec<Row> = self.warehouse.rows(&sql).await?;
        Ok(rows.into_iter().map(|row| BatchId(row.batch_id)).collect())
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
        let listed: Vec<RecordedObject> = self.warehouse.rows(&sql).await?;
        Ok(listed.into_iter().map(ObjectRef::from).collect())
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
