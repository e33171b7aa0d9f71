//! Compares the tables with `object_rows` and the ledger, object by object, and finds out what each
//! difference means.
//!
//! `compare` counts rows and finds the objects that differ, `facts` reads what happened to a table,
//! and `reread` finds out which rows of an object are absent. `sluice_core::verify` decides what
//! follows from that. docs/verify.md describes the evidence.
//!
//! **Does not:** write anything, not even a barrier: on replicas, the last record of the ledger is
//! the barrier.

mod compare;
mod facts;
mod finding;
mod reread;
mod scope;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use self::compare::{Difference, Miscounted};
use self::facts::{Facts, Ttl};
pub use self::finding::Finding;
use self::scope::Slice;
pub use self::scope::{VerifyScope, VerifySelection};
use crate::Env;
use crate::batch::BatchId;
use crate::clickhouse::replicas::Barrier;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::ledger::{BATCHES_TABLE, OBJECTS_TABLE};
use crate::sql;
use crate::statements::insert::Planner;
use crate::statements::select::Target;
use sluice_core::verify::{
    Confidence, Evidence, Judgement, Reread, Stray, StrayKind, TableVerdict, judge,
};

/// The number of objects that are compared at a time. The server needs about 300 bytes for each.
const OBJECTS_OF_A_SLICE: u64 = 500_000;
/// Parts that are older than the scope by more than this have no rows of it, whatever the clocks of
/// workers.
const CLOCKS: Duration = Duration::from_secs(3_600);

/// Compares tables with the ledger.
pub struct Verifier<'a> {
    warehouse: &'a Warehouse,
    planner: &'a Planner,
    env: &'a Env,
    options: VerifyOptions,
    scope: VerifyScope,
    /// The timeout of a query.
    timeout: Duration,
    /// What a server must show before it is read, where several share the tables.
    barrier: Option<Barrier>,
    /// The cluster of the servers that share the tables.
    cluster: Option<String>,
}

/// What is compared, and how closely.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Only these tables; all, if empty.
    pub tables: Vec<String>,
    /// The largest number of objects with missing rows that are read again, for each table and
    /// slice.
    pub max_reread: usize,
}

/// The number of objects that were compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifyProgress {
    /// The number of comparisons that are done: one for each table and slice.
    pub done: u64,
    pub all: u64,
    pub objects: u64,
    /// Objects that differ in a table because a batch is in progress on them.
    pub in_progress: u64,
}

impl<'a> Verifier<'a> {
    /// Prepares a comparison.
    pub async fn new(
        warehouse: &'a Warehouse,
        planner: &'a Planner,
        env: &'a Env,
        options: VerifyOptions,
        scope: VerifyScope,
        timeout: Duration,
    ) -> Result<Self, WarehouseError> {
        let replicas = warehouse.replicas().await?;
        let cluster = replicas.map(|replicas| replicas.cluster.clone());
        let mut verifier = Self {
            warehouse,
            planner,
            env,
            options,
            scope,
            timeout,
            barrier: None,
            cluster,
        };
        if verifier.cluster.is_some() {
            verifier.barrier = verifier.last_record().await?;
        }
        Ok(verifier)
    }

    /// Returns the last record of a batch, as a barrier. A server that shows it and has then copied
    /// the logs of the tables has what was inserted before.
    async fn last_record(&self) -> Result<Option<Barrier>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            batch_id: Uuid,
        }
        let sql = format!(
            "SELECT batch_id FROM {} WHERE event = 'loaded' ORDER BY at DESC LIMIT 1",
            self.warehouse.table(BATCHES_TABLE)
        );
        let rows: Vec<Row> = self.warehouse.rows(&sql).await?;
        Ok(rows.first().map(|row| Barrier {
            table: BATCHES_TABLE,
            condition: format!("batch_id = {} AND event = 'loaded'", sql::id(row.batch_id)),
        }))
    }

    /// Compares all tables, and calls `on_findings` with the findings of each comparison.
    pub async fn run(
        &self,
        mut on_findings: impl FnMut(VerifyProgress, Vec<Finding>) -> anyhow::Result<()>,
    ) -> anyhow::Result<VerifyProgress> {
        let objects = self.count(&self.scope).await?;
        let count = objects.div_ceil(OBJECTS_OF_A_SLICE).max(1);
        let targets = self.targets();
        let mut progress = VerifyProgress {
            all: count * targets.len() as u64,
            objects,
            ..VerifyProgress::default()
        };
        let miscounted = self.miscounted(&self.scope).await?;
        on_findings(progress, self.of_miscounted(&miscounted).await?)?;
        let miscounted: HashSet<Uuid> = miscounted.iter().map(|it| it.batch_id).collect();
        for index in 0..count {
            let slice = Slice {
                scope: &self.scope,
                index,
                count,
            };
            for target in &targets {
                let compared = self.compare(*target, slice).await?;
                let judged = self.judge(*target, compared.differences, &miscounted);
                let findings = judged.await?;
                progress.done += 1;
                progress.in_progress += compared.in_progress;
                on_findings(progress, findings)?;
            }
        }
        Ok(progress)
    }

    /// Returns the tables that have rows of objects, apart from `object_rows`.
    fn targets(&self) -> Vec<Target<'_>> {
        let mut targets = Target::all(self.planner.catalog());
        let tables = &self.options.tables;
        targets.retain(|target| {
            let is_chosen = tables.is_empty() || tables.iter().any(|it| it == target.table());
            target.kind().is_some() && is_chosen
        });
        targets
    }

    /// Returns the findings on the objects of batches whose counts are not those of the ledger.
    async fn of_miscounted(
        &self,
        miscounted: &[Miscounted],
    ) -> Result<Vec<Finding>, WarehouseError> {
        let counts = Target::ObjectRows.table();
        let tables = &self.options.tables;
        if !tables.is_empty() && !tables.iter().any(|it| it == counts) {
            return Ok(Vec::new());
        }
        let mut findings = Vec::new();
        for batch in miscounted {
            let (verdict, rows) = match batch.recorded.checked_sub(batch.counted) {
                Some(rows) => (TableVerdict::Missing, rows),
                None => (TableVerdict::Doubled, batch.counted - batch.recorded),
            };
            let judgement = Judgement {
                verdict,
                confidence: Confidence::Certain,
                rows,
                evidence: format!(
                    "the ledger recorded {} lines of batch {}, and object_rows counts {}: how many \
                     rows its objects should have is not known",
                    batch.recorded, batch.batch_id, batch.counted
                ),
            };
            let objects = self.objects_of(batch.batch_id).await?.into_iter();
            findings.extend(objects.map(|(path, etag)| Finding {
                object: format!("s3://{path}"),
                etag,
                table: counts.to_owned(),
                expected: batch.recorded,
                found: batch.counted,
                batches: vec![batch.batch_id],
                strays: Vec::new(),
                judgement: judgement.clone(),
            }));
        }
        Ok(findings)
    }

    async fn judge(
        &self,
        target: Target<'_>,
        mut differences: Vec<Difference>,
        miscounted: &HashSet<Uuid>,
    ) -> Result<Vec<Finding>, WarehouseError> {
        if differences.is_empty() {
            return Ok(Vec::new());
        }
        let records = self.records(&differences).await?;
        let loads: Vec<Loads> = differences.iter().map(|it| records.loads(it)).collect();
        let is_short = |it: &Difference| it.found() < it.expected();
        let facts = if differences.iter().any(is_short) {
            self.facts(target).await?
        } else {
            Facts::default()
        };
        let loaded_at: Vec<i64> = loads.iter().map(|loads| loads.last).collect();
        let expired = self.have_expired(&facts.ttl, &loaded_at).await?;
        let mut findings = Vec::new();
        let mut reread = 0;
        for (index, difference) in differences.drain(..).enumerate() {
            let (loads, has_expired) = (loads[index], expired[index]);
            let since = loads.first;
            let is_known = !difference.in_force.iter().any(|it| miscounted.contains(it));
            let is_short = is_short(&difference) && is_known;
            let rows = if !is_short || has_expired == Some(true) {
                Reread::Not(String::new())
            } else if reread >= self.options.max_reread {
                Reread::Not("the object was not read again; raise --read".to_owned())
            } else {
                reread += 1;
                self.reread(target, &difference, &facts, loads).await?
            };
            let removals = facts.deletions_since(since, &difference.in_force).len() as u64
                + u64::from(facts.may_lack_deletions(since))
                + u64::from(facts.ttl != Ttl::Never && has_expired.is_none());
            let expected = difference.expected();
            let evidence = Evidence {
                expected,
                // Without the counts, the rows of the batches in force cannot be judged.
                found: if is_known {
                    difference.found()
                } else {
                    expected
                },
                strays: records.strays(&difference),
                has_expired: has_expired == Some(true),
                reread: rows,
                emptied: facts
                    .epochs
                    .emptied(loads.last)
                    .filter(|_| difference.found() == 0),
                is_partitioned: !facts.partition_key.is_empty(),
                was_partition_dropped: facts.was_partition_dropped(since),
                was_truncated: facts.was_truncated(since),
                removals,
            };
            let strays = evidence.strays.clone();
            let others = strays.iter().map(|stray| stray.batch);
            let batches: Vec<Uuid> = difference.in_force.iter().copied().chain(others).collect();
            findings.extend(judge(&evidence).into_iter().map(|judgement| Finding {
                object: format!("s3://{}", difference.path),
                etag: difference.etag.clone(),
                table: target.table().to_owned(),
                expected,
                found: difference.found(),
                batches: batches.clone(),
                strays: strays.clone(),
                judgement,
            }));
        }
        Ok(findings)
    }

    /// Reads what the ledger has recorded of the batches of these objects.
    async fn records(&self, differences: &[Difference]) -> Result<Records, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            batch_id: Uuid,
            loaded_at: i64,
            is_released: bool,
        }
        let mut records = Records::default();
        let batches: HashSet<Uuid> = differences
            .iter()
            .flat_map(|it| {
                it.in_force
                    .iter()
                    .copied()
                    .chain(it.others.iter().map(|it| it.0))
            })
            .collect();
        let batches: Vec<String> = batches.into_iter().map(sql::id).collect();
        for batches in batches.chunks(BATCHES_AT_A_TIME) {
            let sql = format!(
                "SELECT batch_id, toUnixTimestamp64Milli(minIf(at, event = 'loaded')) AS loaded_at, \
                   toBool(countIf(event = 'loaded') = 0 AND countIf(event = 'released') > 0) \
                     AS is_released \
                 FROM {} WHERE batch_id IN ({}) AND event IN ('loaded', 'released') \
                 GROUP BY batch_id",
                self.warehouse.table(BATCHES_TABLE),
                batches.join(", ")
            );
            let rows: Vec<Row> = self.rows(&[BATCHES_TABLE], &sql).await?;
            for row in rows {
                records
                    .batches
                    .insert(row.batch_id, (row.loaded_at, row.is_released));
            }
        }
        records.claims = self.claims_of(differences).await?;
        Ok(records)
    }

    /// Returns which of the batches that are not in force have claimed the objects whose rows they
    /// have.
    async fn claims_of(
        &self,
        differences: &[Difference],
    ) -> Result<HashSet<(String, String, Uuid)>, WarehouseError> {
        #[derive(Deserialize)]
        struct Claim {
            path: String,
            etag: String,
            batch_id: Uuid,
        }
        let batches: HashSet<Uuid> = differences
            .iter()
            .flat_map(|it| it.others.iter().map(|it| it.0))
            .collect();
        let batches: Vec<String> = batches.into_iter().map(sql::id).collect();
        let mut claims = HashSet::new();
        for batches in batches.chunks(BATCHES_AT_A_TIME) {
            let sql = format!(
                "SELECT DISTINCT concat(bucket, '/', key) AS path, etag, batch_id FROM {} \
                 WHERE batch_id IN ({})",
                self.warehouse.table(OBJECTS_TABLE),
                batches.join(", ")
            );
            let rows: Vec<Claim> = self.rows(&[OBJECTS_TABLE], &sql).await?;
            claims.extend(rows.into_iter().map(|it| (it.path, it.etag, it.batch_id)));
        }
        Ok(claims)
    }

    /// Returns how long ago the scope begins, with room for clocks that differ.
    fn age(&self) -> Option<Duration> {
        let since = self.scope.since?;
        let age = self.env.wall_clock().duration_since(since);
        Some(age.unwrap_or_default() + CLOCKS)
    }

    /// Returns the rows of a query of these tables; on replicas, from a server that has all rows.
    async fn rows<T: DeserializeOwned>(
        &self,
        tables: &[&str],
        sql: &str,
    ) -> Result<Vec<T>, WarehouseError> {
        let barrier = self.barrier.as_ref();
        self.warehouse
            .rows_after_within(barrier, tables, sql, self.timeout)
            .await
    }
}

const BATCHES_AT_A_TIME: usize = 10_000;

/// When the batches in force have loaded an object, in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Loads {
    /// When the first of them was made: its rows were inserted afterwards.
    first: i64,
    /// When the last of them was recorded: its rows were inserted before.
    last: i64,
}

/// What the ledger has recorded of some batches.
#[derive(Default)]
struct Records {
    /// When the batch was recorded as loaded, in milliseconds since 1970 (0 if it was not), and
    /// whether it was released.
    batches: HashMap<Uuid, (i64, bool)>,
    /// The objects, by path and etag, that batches which are not in force have claimed.
    claims: HashSet<(String, String, Uuid)>,
}

impl Records {
    fn loads(&self, difference: &Difference) -> Loads {
        let in_force = || difference.in_force.iter();
        let recorded = in_force().filter_map(|batch| Some(self.batches.get(batch)?.0));
        let made = in_force().filter_map(|batch| BatchId(*batch).made_at());
        let made = made.filter_map(|seconds| i64::try_from(seconds * 1_000).ok());
        let last = recorded.clone().max().unwrap_or_default();
        Loads {
            first: made.chain(recorded).min().unwrap_or(last),
            last,
        }
    }

    fn strays(&self, difference: &Difference) -> Vec<Stray> {
        let others = difference.others.iter();
        let strays = others.map(|&(batch, rows)| {
            let claim = (difference.path.clone(), difference.etag.clone(), batch);
            let kind = match self.batches.get(&batch) {
                _ if !self.claims.contains(&claim) => StrayKind::Unrecorded,
                Some((_, true)) => StrayKind::Released,
                Some((_, false)) => StrayKind::Superseded,
                None => StrayKind::Unrecorded,
            };
            Stray { batch, rows, kind }
        });
        strays.collect()
    }
}
