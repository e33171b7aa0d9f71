//! Reports on objects and batches from the ledger and the tables, for the commands.
//!
//! Nothing here is part of the protocol: this module only reads.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::batch::{BatchId, ReadBy};
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::ledger::{
    BATCHES_TABLE, DISMISSED, FAILURES_TABLE, IS_REPLAY, OBJECTS_TABLE, quoted_list,
};
use crate::object::{ObjectId, ObjectRef, ObjectUrl};
use crate::sql;
use crate::statements::RejectKind;

#[derive(Clone)]
pub struct History {
    warehouse: Warehouse,
}

/// What a worker has loaded within a time window.
#[derive(Debug, Serialize, Deserialize)]
pub struct WorkerActivity {
    pub worker: String,
    pub batches: u64,
    pub objects: u64,
    /// Of all kinds, also of the next two.
    pub rows: u64,
    pub rejected: u64,
    pub unmatched: u64,
    /// In UTC, as are all times here.
    pub last_batch_at: String,
}

/// The batches that have claimed objects and are neither loaded nor released.
#[derive(Debug, Serialize, Deserialize)]
pub struct OpenBatches {
    pub batches: u64,
    pub objects: u64,
    /// Seconds since the claim of the oldest.
    pub oldest_seconds: u64,
}

/// The batches that a worker has claimed under one plan.
#[derive(Debug, Deserialize)]
pub struct BatchesOfPlan {
    pub worker: String,
    pub plan: Uuid,
    pub read_by: ReadBy,
    /// The text of their layout.
    pub layout: String,
    /// The time of the latest claim.
    pub sealed_at: String,
    /// Those that are neither loaded nor released.
    pub open_batches: u64,
}

/// The history of one version of an object.
#[derive(Debug, Serialize)]
pub struct ObjectStory {
    pub etag: String,
    pub loaded: bool,
    pub batches: Vec<BatchOfObject>,
    /// Rows in the tables, by kind of line.
    pub rows: BTreeMap<String, u64>,
    /// Lines that did not become rows, by reason.
    pub rejected: BTreeMap<String, u64>,
    pub failures: Vec<FailureOfObject>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct BatchOfObject {
    #[serde(skip_serializing)]
    etag: String,
    pub batch_id: String,
    pub worker: String,
    pub size: u64,
    /// `s3` or `stream`; `rejected_lines` or `unmatched_statements` for a replay of rejects.
    pub read_by: String,
    pub sealed_at: String,
    /// `loaded`, `released`, `open`, or `superseded` by one that is loaded.
    pub state: String,
    pub ended_at: String,
    /// One more than the highest fenced attempt.
    pub attempts: u32,
    pub reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct FailureOfObject {
    #[serde(skip_serializing)]
    etag: String,
    pub at: String,
    pub class: String,
    pub reason: String,
    /// Some of its records, for a failure that they show best.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sample: Vec<String>,
    pub worker: String,
}

/// An object that failed and has not been dismissed. Neither it nor another version of its key has
/// been loaded since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedObject {
    #[serde(skip_serializing)]
    pub object_id: Uuid,
    pub bucket: String,
    pub key: String,
    pub etag: String,
    pub class: String,
    pub reason: String,
    pub tries: u64,
    pub last_at: String,
}

/// Whether an object is loaded, and its last failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectStatus {
    pub loaded: bool,
    /// The number of recorded failures.
    pub failures: u64,
    /// The class of the last failure or dismissal, like the two fields that follow. Empty if there
    /// is none.
    pub class: String,
    pub reason: String,
    pub failed_at: String,
}

/// How long recent loads took, for one batch at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    pub seconds_an_object: f64,
    pub seconds_a_byte: f64,
}

/// A selection of failed objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailureFilter {
    pub class: Option<String>,
    /// Selects objects whose last failure is at most this old.
    pub since: Option<Duration>,
    /// A bucket, and a prefix of its keys.
    pub prefix: Option<ObjectUrl>,
}

#[derive(Deserialize)]
struct LinesOfObject {
    etag: String,
    name: String,
    lines: u64,
}

impl History {
    pub fn new(warehouse: Warehouse) -> Self {
        Self { warehouse }
    }

    /// Returns what each worker loaded within the last `since`, the busiest first.
    pub async fn workers(&self, since: Duration) -> Result<Vec<WorkerActivity>, WarehouseError> {
        let sql = format!(
            "WITH loaded AS (\
               SELECT batch_id, any(worker) AS worker, max(objects) AS objects, max(rows) AS rows, \
                 max(at) AS loaded_at \
               FROM {batches} WHERE event = 'loaded' \
               AND at > now64(3) - toIntervalSecond({since}) GROUP BY batch_id\
             ), kept AS (\
               SELECT batch_id, sumIf(rows, kind = {rejected}) AS rejected, \
                 sumIf(rows, kind = {unmatched}) AS unmatched \
               FROM {rows} WHERE batch_id IN (SELECT batch_id FROM loaded) GROUP BY batch_id\
             ) \
             SELECT b.worker AS worker, count() AS batches, sum(b.objects) AS objects, \
               sum(b.rows) AS rows, sum(k.rejected) AS rejected, sum(k.unmatched) AS unmatched, \
               toString(max(b.loaded_at)) AS last_batch_at \
             FROM loaded AS b LEFT JOIN kept AS k ON b.batch_id = k.batch_id \
             GROUP BY worker ORDER BY objects DESC, worker",
            batches = self.warehouse.table(BATCHES_TABLE),
            since = since.as_secs(),
            rows = self.warehouse.table("object_rows"),
            rejected = sql::string(RejectKind::Rejected.kind()),
            unmatched = sql::string(RejectKind::Unmatched.kind()),
        );
        self.warehouse.rows(&sql).await
    }

    /// Returns the pace of the last 100 loaded batches, or `None` if there are none.
    pub async fn pace(&self) -> Result<Option<Pace>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            seconds: f64,
            objects: f64,
            bytes: f64,
        }
        let sql = format!(
            "WITH latest AS (\
               SELECT batch_id, max(at) AS loaded FROM {batches} WHERE event = 'loaded' \
               GROUP BY batch_id ORDER BY loaded DESC LIMIT 100\
             ), sealed AS (\
               SELECT batch_id, min(sealed_at) AS sealed, count() AS objects, sum(size) AS bytes \
               FROM {objects} WHERE batch_id IN (SELECT batch_id FROM latest) GROUP BY batch_id\
             ) \
             SELECT sum(dateDiff('millisecond', sealed, loaded)) / 1000 AS seconds, \
               toFloat64(sum(objects)) AS objects, toFloat64(sum(bytes)) AS bytes \
             FROM latest JOIN sealed ON latest.batch_id = sealed.batch_id",
            batches = self.warehouse.table(BATCHES_TABLE),
            objects = self.warehouse.table(OBJECTS_TABLE),
        );
        let rows: Vec<Row> = self.warehouse.rows(&sql).await?;
        let row = rows.into_iter().next().filter(|row| row.objects > 0.0);
        Ok(row.map(|row| Pace {
            seconds_an_object: row.seconds / row.objects,
            seconds_a_byte: row.seconds / row.bytes.max(1.0),
        }))
    }

    /// Returns the batches that are in progress or unfinished.
    pub async fn open_batches(&self) -> Result<OpenBatches, WarehouseError> {
        let sql = format!(
            "SELECT uniqExact(batch_id) AS batches, uniqExact(object_id) AS objects, \
               if(count() = 0, 0, toUInt64(dateDiff('second', min(sealed_at), now64(3)))) \
                 AS oldest_seconds \
             FROM {} WHERE batch_id NOT IN (\
               SELECT batch_id FROM {} WHERE event IN ('loaded', 'released'))",
            self.warehouse.table(OBJECTS_TABLE),
            self.warehouse.table(BATCHES_TABLE),
        );
        let rows: Vec<OpenBatches> = self.warehouse.rows(&sql).await?;
        rows.into_iter().next().ok_or_else(|| {
            WarehouseError::Unknown("the query for open batches returned no row".to_owned())
        })
    }

    /// Returns the batches of plans other than this one that are open, or that were claimed within
    /// the last `recent`.
    pub async fn batches_of_other_plans(
        &self,
        plan: Uuid,
        recent: Duration,
    ) -> Result<Vec<BatchesOfPlan>, WarehouseError> {
        let sql = format!(
            "SELECT worker, plan, read_by, layout, toString(max(sealed)) AS sealed_at, \
               uniqExactIf(batch_id, is_open) AS open_batches \
             FROM (\
               SELECT toString(worker) AS worker, batch_id, plan, toString(read_by) AS read_by, \
                 layout, sealed_at AS sealed, \
                 batch_id NOT IN (\
                   SELECT batch_id FROM {batches} WHERE event IN ('loaded', 'released')\
                 ) AS is_open \
               FROM {objects} WHERE plan != {plan}\
             ) WHERE is_open OR sealed > now64(3) - toIntervalSecond({recent}) \
             GROUP BY worker, plan, read_by, layout ORDER BY worker, sealed_at",
            batches = self.warehouse.table(BATCHES_TABLE),
            objects = self.warehouse.table(OBJECTS_TABLE),
            recent = recent.as_secs(),
            plan = sql::id(plan)
        );
        self.warehouse.rows(&sql).await
    }

    /// Returns every version of an object that was ever claimed or failed, the newest first.
    pub async fn object(&self, object: &ObjectUrl) -> Result<Vec<ObjectStory>, WarehouseError> {
        let mut batches = self.batches_of(object).await?;
        let mut failures = self.failures_of(object).await?;
        let rows = self.rows_of(object).await?;
        let rejected = self.rejected_of(object).await?;
        let mut etags: Vec<String> = Vec::new();
        let seen = batches.iter().map(|batch| &batch.etag);
        for etag in seen.chain(failures.iter().map(|failure| &failure.etag)) {
            if !etags.contains(etag) {
                etags.push(etag.clone());
            }
        }
        let count = |lines: &[LinesOfObject], etag: &str| -> BTreeMap<String, u64> {
            lines
                .iter()
                .filter(|line| line.etag == etag)
                .map(|line| (line.name.clone(), line.lines))
                .collect()
        };
        Ok(etags
            .into_iter()
            .map(|etag| {
                let batches: Vec<_> = batches.extract_if(.., |b| b.etag == etag).collect();
                ObjectStory {
                    loaded: batches.iter().any(|batch| batch.state == "loaded"),
                    batches,
                    rows: count(&rows, &etag),
                    rejected: count(&rejected, &etag),
                    failures: failures.extract_if(.., |f| f.etag == etag).collect(),
                    etag,
                }
            })
            .collect())
    }

    async fn batches_of(&self, object: &ObjectUrl) -> Result<Vec<BatchOfObject>, WarehouseError> {
        let sql = format!(
            "WITH claims AS (\
               SELECT etag, batch_id, any(worker) AS worker, max(size) AS size, \
                 any(read_by) AS read_by, \
                 min(sealed_at) AS sealed FROM {} WHERE {} GROUP BY etag, batch_id\
             ), events AS (\
               SELECT batch_id, max(event = 'loaded') AS loaded, \
                 max(event = 'released') AS released, \
                 maxIf(at, event IN ('loaded', 'released')) AS ended, \
                 maxIf(attempt, event = 'fenced' AND attempt < {aborted}) AS fenced, \
                 anyIf(reason, event IN ('loaded', 'released') AND reason != '') AS reason \
               FROM {} WHERE batch_id IN (SELECT batch_id FROM claims) GROUP BY batch_id\
             ) \
             SELECT etag, toString(claims.batch_id) AS batch_id, worker, size, read_by, \
               toString(sealed) AS sealed_at, \
               multiIf(batch_id IN ({superseded}), 'superseded', loaded, 'loaded', \
                 released, 'released', 'open') AS state, \
               if(loaded OR released, toString(ended), '') AS ended_at, \
               fenced + 1 AS attempts, reason \
             FROM claims LEFT JOIN events ON claims.batch_id = events.batch_id \
             ORDER BY sealed DESC",
            self.warehouse.table(OBJECTS_TABLE),
            named(object),
            self.warehouse.table(BATCHES_TABLE),
            aborted = crate::ledger::protocol::ABORTED,
            superseded = self.superseded(object),
        );
        self.warehouse.rows(&sql).await
    }

    async fn failures_of(
        &self,
        object: &ObjectUrl,
    ) -> Result<Vec<FailureOfObject>, WarehouseError> {
        let sql = format!(
            "SELECT etag, toString(f.at) AS at, class, reason, sample, worker FROM {} AS f WHERE {} \
             ORDER BY f.at DESC LIMIT 100",
            self.warehouse.table(FAILURES_TABLE),
            named(object),
        );
        self.warehouse.rows(&sql).await
    }

    /// Returns the query for the superseded batches of an object.
    fn superseded(&self, object: &ObjectUrl) -> String {
        format!(
            "SELECT toString(arrayJoin(supersedes)) FROM {} WHERE {} AND batch_id IN (\
               SELECT batch_id FROM {} WHERE event = 'loaded')",
            self.warehouse.table(OBJECTS_TABLE),
            named(object),
            self.warehouse.table(BATCHES_TABLE),
        )
    }

    /// Returns the loaded batches that supersede any of these.
    pub async fn superseding(&self, batches: &[BatchId]) -> Result<Vec<BatchId>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            batch_id: Uuid,
        }
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT DISTINCT batch_id FROM {} \
             WHERE hasAny(supersedes, CAST([{}], 'Array(UUID)')) \
             AND batch_id IN (SELECT batch_id FROM {} WHERE event = 'loaded') ORDER BY batch_id",
            self.warehouse.table(OBJECTS_TABLE),
            quoted_list(batches.iter().map(|batch| batch.0)),
            self.warehouse.table(BATCHES_TABLE),
        );
        let rows: Vec<Row> = self.warehouse.rows(&sql).await?;
        Ok(rows.into_iter().map(|row| BatchId(row.batch_id)).collect())
    }

    /// Counts the rows of an object in loaded batches; rows of other batches may still be rolled
    /// back or deleted. Lines that a replay has moved do not count as rejected or unmatched.
    async fn rows_of(&self, object: &ObjectUrl) -> Result<Vec<LinesOfObject>, WarehouseError> {
        let moved: Vec<String> = RejectKind::ALL
            .into_iter()
            .map(|kept| {
                format!(
                    "read_by = {}, {}",
                    sql::string(kept.table()),
                    sql::string(kept.kind())
                )
            })
            .collect();
        let sql = format!(
            "WITH read AS (\
               SELECT batch_id, multiIf({moved}, '') AS moved_from FROM {objects} \
               WHERE {named} AND batch_id IN (\
                 SELECT batch_id FROM {batches} WHERE event = 'loaded' AND batch_id IN (\
                   SELECT batch_id FROM {objects} WHERE {named})) \
               AND toString(batch_id) NOT IN ({superseded}) \
               GROUP BY batch_id, moved_from\
             ), counted AS (\
               SELECT batch_id, source_etag, kind, toInt64(rows) AS lines FROM {rows} \
               WHERE source_path = {path} AND batch_id IN (SELECT batch_id FROM read)\
             ) \
             SELECT source_etag AS etag, name, sum(lines) AS lines FROM (\
               SELECT source_etag, toString(kind) AS name, lines FROM counted \
               UNION ALL \
               SELECT source_etag, moved_from AS name, -lines AS lines \
               FROM counted INNER JOIN read ON counted.batch_id = read.batch_id \
               WHERE moved_from != ''\
             ) GROUP BY etag, name HAVING lines > 0",
            moved = moved.join(", "),
            rows = self.warehouse.table("object_rows"),
            path = sql::string(&object.path()),
            batches = self.warehouse.table(BATCHES_TABLE),
            objects = self.warehouse.table(OBJECTS_TABLE),
            named = named(object),
            superseded = self.superseded(object),
        );
        self.warehouse.rows(&sql).await
    }

    async fn rejected_of(&self, object: &ObjectUrl) -> Result<Vec<LinesOfObject>, WarehouseError> {
        let sql = format!(
            "SELECT source_etag AS etag, reason AS name, count() AS lines FROM {} FINAL \
             WHERE source_path = {} GROUP BY etag, name",
            self.warehouse.table("rejected_lines"),
            sql::string(&object.path()),
        );
        self.warehouse.rows(&sql).await
    }

    /// Returns the status of these objects. Those without a record are missing from the result:
    /// they are neither loaded nor failed.
    pub async fn claim_statuses(
        &self,
        objects: &[&ObjectRef],
    ) -> Result<HashMap<ObjectId, ObjectStatus>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            object_id: Uuid,
            #[serde(flatten)]
            status: ObjectStatus,
        }
        if objects.is_empty() {
            return Ok(HashMap::new());
        }
        let listed = quoted_list(objects.iter().map(|object| object.id().0));
        // The sorting key of the failures table.
        let named: Vec<_> = objects
            .iter()
            .map(|object| {
                let (bucket, key) = (sql::string(&object.bucket), sql::string(&object.key));
                format!("({bucket}, {key})")
            })
            .collect();
        let sql = format!(
            "WITH claims AS (SELECT object_id, batch_id FROM {claims} WHERE object_id IN ({listed})) \
             SELECT object_id, toBool(max(done)) AS loaded, \
               countIf(done = 0 AND s.class != '{DISMISSED}') AS failures, \
               argMaxIf(s.class, s.at, done = 0) AS class, \
               argMaxIf(s.reason, s.at, done = 0) AS reason, \
               if(countIf(done = 0) = 0, '', toString(maxIf(s.at, done = 0))) AS failed_at \
             FROM (\
               SELECT object_id, 1 AS done, '' AS class, '' AS reason, now64(3, 'UTC') AS at \
               FROM claims WHERE batch_id IN (\
                 SELECT batch_id FROM {batches} WHERE event = 'loaded' \
                 AND batch_id IN (SELECT batch_id FROM claims)) \
               UNION ALL \
               SELECT object_id, 0 AS done, toString(f.class) AS class, f.reason AS reason, f.at AS at \
               FROM {failures} AS f \
               WHERE (f.bucket, f.key) IN ({named}) AND object_id IN ({listed})\
             ) AS s GROUP BY object_id",
            claims = self.warehouse.table(OBJECTS_TABLE),
            batches = self.warehouse.table(BATCHES_TABLE),
            failures = self.warehouse.table(FAILURES_TABLE),
            named = named.join(", "),
        );
        let rows = self.warehouse.rows::<Row>(&sql).await?.into_iter();
        Ok(rows
            .map(|row| (ObjectId(row.object_id), row.status))
            .collect())
    }

    /// Returns the keys of these objects, all of one bucket, of which any version was loaded.
    pub async fn loaded_keys(
        &self,
        objects: &[&ObjectRef],
    ) -> Result<HashSet<String>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            key: String,
        }
        let Some(first) = objects.first() else {
            return Ok(HashSet::new());
        };
        let keys: Vec<_> = objects.iter().map(|object| object.key.as_str()).collect();
        let sql = format!(
            "SELECT DISTINCT key FROM {} WHERE bucket = {} AND key IN ({}) \
             AND batch_id IN (SELECT batch_id FROM {} WHERE event = 'loaded')",
            self.warehouse.table(OBJECTS_TABLE),
            sql::string(&first.bucket),
            sql::strings(&keys),
            self.warehouse.table(BATCHES_TABLE),
        );
        let rows: Vec<Row> = self.warehouse.rows(&sql).await?;
        Ok(rows.into_iter().map(|row| row.key).collect())
    }

    /// Returns the versions of this object that failed, if neither they nor another version has
    /// been loaded since.
    pub async fn failed_object(
        &self,
        object: &ObjectUrl,
    ) -> Result<Vec<FailedObject>, WarehouseError> {
        self.failed_where(&named(object), "", u64::MAX).await
    }

    /// Returns the objects that failed, if neither they nor another version of their keys has been
    /// loaded since. The latest failure comes first.
    pub async fn failed(
        &self,
        filter: &FailureFilter,
        limit: u64,
    ) -> Result<Vec<FailedObject>, WarehouseError> {
        let mut having = Vec::new();
        if let Some(class) = &filter.class {
            having.push(format!(" AND class = {}", sql::string(class)));
        }
        if let Some(since) = filter.since {
            having.push(format!(
                " AND last > now64(3) - toIntervalSecond({})",
                since.as_secs()
            ));
        }
        let prefix = filter.prefix.as_ref().map_or_else(
            || "1".to_owned(),
            |prefix| {
                format!(
                    "bucket = {} AND startsWith(key, {})",
                    sql::string(&prefix.bucket),
                    sql::string(&prefix.key)
                )
            },
        );
        self.failed_where(&prefix, &having.concat(), limit).await
    }

    async fn failed_where(
        &self,
        objects: &str,
        having: &str,
        limit: u64,
    ) -> Result<Vec<FailedObject>, WarehouseError> {
        let sql = format!(
            "WITH failed AS (\
               SELECT object_id, any(f.bucket) AS bucket, any(f.key) AS key, any(f.etag) AS etag, \
                 argMax(f.class, f.at) AS class, argMax(f.reason, f.at) AS reason, \
                 countIf(f.class != '{DISMISSED}') AS tries, max(f.at) AS last \
               FROM (SELECT * FROM {failures} WHERE {objects}) AS f GROUP BY object_id \
               HAVING class != '{DISMISSED}'{having}\
             ), loaded AS (\
               SELECT object_id, bucket, key, sealed_at FROM {claims} \
               WHERE NOT {IS_REPLAY} AND (bucket, key) IN (SELECT bucket, key FROM failed) \
               AND batch_id IN (SELECT batch_id FROM {batches} WHERE event = 'loaded')\
             ), latest AS (\
               SELECT bucket, key, max(sealed_at) AS sealed FROM loaded GROUP BY bucket, key\
             ) \
             SELECT object_id, failed.bucket AS bucket, failed.key AS key, etag, class, reason, tries, \
               toString(last) AS last_at \
             FROM failed LEFT JOIN latest \
               ON failed.bucket = latest.bucket AND failed.key = latest.key \
             WHERE latest.sealed <= last AND object_id NOT IN (SELECT object_id FROM loaded) \
             ORDER BY last DESC, key LIMIT {limit}",
            failures = self.warehouse.table(FAILURES_TABLE),
            claims = self.warehouse.table(OBJECTS_TABLE),
            batches = self.warehouse.table(BATCHES_TABLE),
        );
        self.warehouse.rows(&sql).await
    }
}

fn named(object: &ObjectUrl) -> String {
    format!(
        "bucket = {} AND key = {}",
        sql::string(&object.bucket),
        sql::string(&object.key)
    )
}
