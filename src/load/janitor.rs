//! Tidies up after batches whose worker is gone, where no message leads to them.
//!
//! **Batches left open.** A batch whose worker has died is recovered by whoever receives the message
//! of one of its objects next. If the message has become a dead letter, or if its key has other
//! content by now, nobody asks for the object that the batch claims: then it is recovered here.
//! Otherwise, the tables could keep a part of its rows.
//!
//! **Rows of released batches.** A released batch has no rows, and its objects are free for other
//! batches. But a server that was frozen or cut off can commit an insert of the batch afterwards.
//! These rows are garbage: they are copies of rows that another batch has loaded, or will load. A row
//! is deleted only while its other copy is in the table. A merge collapses equal rows into the
//! latest, and that can be the one of the released batch. So the rows in a part of a table are
//! deleted if none of them is the only copy, and the deletion names the part. If a merge replaces the
//! part first, the deletion finds nothing, and the next round looks again. An only copy stays: the
//! row is in the table once, as it should be.
//!
//! **Does not:** retry a search or a deletion, or open the breaker for it, since no load depends on
//! it. What fails is left to the next round. (A recovery is that of the loader, and does both.)

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, warn};
use uuid::Uuid;

use super::ports::{BatchTables, LedgerStore, Ports, Production, Rows};
use super::{Cancelled, LoadParts, Loader};
use crate::batch::BatchId;
use crate::clickhouse::error_class::{classify, with_advice};
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::ledger::{BATCHES_TABLE, OBJECTS_TABLE};
use crate::sql;
use crate::statements::ddl::collapsing_key;
use crate::statements::select::Target;
use crate::telemetry::{metrics, trace};

/// How long after the start the first round is at the latest.
const FIRST_ROUND: Duration = Duration::from_secs(60);
/// Batches are looked for until this long after their release, in parts that were written since.
/// This bounds what a round reads.
const LOOK_BACK: Duration = Duration::from_secs(2 * 24 * 3_600);
/// The largest number of batches whose rows a round deletes from one table. Each takes a mutation.
const MAX_BATCHES: usize = 20;
/// The largest number of batches that a round recovers.
const MAX_RECOVERIES: usize = 20;

/// Looks for batches left open and for rows of released ones, in rounds.
pub struct Janitor<P: Ports = Production> {
    loader: Arc<Loader<P>>,
    /// The tables and batches whose rows stay, so that each is logged once.
    kept: HashSet<(String, BatchId)>,
}

impl<P: Ports> Janitor<P> {
    /// Creates a janitor of the tables that this loader fills.
    pub fn new(loader: Arc<Loader<P>>) -> Self {
        Self {
            loader,
            kept: HashSet::new(),
        }
    }

    /// Runs a round about every `interval`, until `stop` is cancelled. A deletion that has begun is
    /// then left to the server.
    pub async fn run(mut self, interval: Duration, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.rounds(interval, &stop) => {}
        }
    }

    async fn rounds(&mut self, interval: Duration, stop: &CancellationToken) {
        let mut pause = interval.min(FIRST_ROUND);
        loop {
            // Workers that were started together do not stay in step.
            let jitter = 0.75 + self.loader.parts.env.fraction() / 2.0;
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            self.recover_left_open(stop).await;
            self.delete_strays().await;
            pause = interval;
        }
    }

    /// Recovers batches that no message leads to.
    async fn recover_left_open(&self, stop: &CancellationToken) {
        let LoadParts {
            ledger, breaker, ..
        } = &self.loader.parts;
        if breaker.pause_reason().is_some() {
            return;
        }
        let batches = match ledger.left_open(LOOK_BACK, MAX_RECOVERIES).await {
            Ok(batches) => batches,
            Err(error) => {
                metrics::clickhouse_error(error.code(), classify(&error));
                warn!(
                    code = error.code(),
                    error = %with_advice(&error),
                    "failed to look for batches that nobody recovers; retrying in the next round"
                );
                return;
            }
        };
        for batch in batches {
            let recover = self.loader.recover(batch, stop);
            if let Err(Cancelled) = recover.instrument(trace::recover(batch)).await {
                return;
            }
        }
    }

    /// Deletes the rows of these released batches from all tables, whenever they were released. A
    /// row that is the only copy stays.
    ///
    /// # Errors
    ///
    /// Fails at the first search or deletion that fails.
    pub async fn delete_rows_of(&mut self, batches: &[BatchId]) -> Result<(), WarehouseError> {
        let loader = self.loader.clone();
        for batch in batches {
            for target in Target::all(loader.planner().catalog()) {
                self.delete(target, *batch).await?;
            }
        }
        Ok(())
    }

    async fn delete_strays(&mut self) {
        let loader = self.loader.clone();
        for target in Target::all(loader.planner().catalog()) {
            if loader.parts.breaker.pause_reason().is_some() {
                return;
            }
            if let Err(error) = self.clean(target).await {
                metrics::clickhouse_error(error.code(), classify(&error));
                warn!(
                    table = target.table(),
                    code = error.code(),
                    error = %with_advice(&error),
                    "failed to delete rows of released batches; retrying in the next round"
                );
            }
        }
    }

    /// Deletes rows of released batches from a table.
    async fn clean(&mut self, target: Target<'_>) -> Result<(), WarehouseError> {
        let loader = self.loader.clone();
        let batches = loader.parts.tables.stray_batches(
            target.table(),
            LOOK_BACK,
            MAX_BATCHES,
            loader.config.insert_timeout,
        );
        for batch in batches.await? {
            self.delete(target, batch).await?;
        }
        Ok(())
    }

    /// Deletes the rows of a released batch from a table, except from parts that have the only copy
    /// of a row.
    async fn delete(&mut self, target: Target<'_>, batch: BatchId) -> Result<(), WarehouseError> {
        let loader = self.loader.clone();
        let (tables, timeout) = (&loader.parts.tables, loader.config.insert_timeout);
        let table = target.table();
        // Every mutation gives all parts of the table new names.
        let _alone = loader.state.deletions.lock().await;
        let found = tables.stray_rows(target, batch, timeout).await?;
        let only: u64 = found.iter().map(|part| part.only_copies).sum();
        if only > 0 && self.kept.insert((table.to_owned(), batch)) {
            warn!(
                batch.id = %batch,
                table,
                rows = only,
                "keeping rows of a released batch; they are the only copies of rows of loaded \
                 objects, or the objects are being loaded"
            );
        }
        let garbage: Vec<&StrayRows> = found.iter().filter(|part| part.only_copies == 0).collect();
        if garbage.is_empty() {
            return Ok(());
        }
        warn!(
            batch.id = %batch,
            table,
            rows = garbage.iter().map(|part| part.rows).sum::<u64>(),
            "deleting rows of a released batch; a server committed them after the release"
        );
        if let Some(left) = tables.left_in_views(batch).await? {
            warn!(batch.id = %batch, "{left}");
        }
        let parts: Vec<&str> = garbage.iter().map(|part| part.name.as_str()).collect();
        let delete = tables.delete(table, Rows::InParts(batch, &parts), timeout);
        delete.await?;
        let left = tables.stray_rows(target, batch, timeout).await?;
        metrics::stray_rows_deleted(count(&found).saturating_sub(count(&left)));
        Ok(())
    }
}

/// The rows of a released batch in one part of a table.
#[derive(Debug, Deserialize)]
pub struct StrayRows {
    /// The name of the part.
    #[serde(rename = "_part")]
    pub name: String,
    #[serde(rename = "found")]
    pub rows: u64,
    /// How many of the rows must stay: another batch claims their object, and has no row that a
    /// merge would collapse with them.
    pub only_copies: u64,
}

fn count(parts: &[StrayRows]) -> u64 {
    parts.iter().map(|part| part.rows).sum()
}

/// Finds released batches that have rows in a table: some of those that were released within
/// `since`, at most `limit`. Which ones is random, so that batches whose rows stay do not keep it
/// from finding others.
pub(super) async fn stray_batches(
    warehouse: &Warehouse,
    table: &str,
    since: Duration,
    limit: usize,
    timeout: Duration,
) -> Result<Vec<BatchId>, WarehouseError> {
    #[derive(Deserialize)]
    struct Row {
        batch_id: Uuid,
    }
    // Reading the other parts would cost too much: with many batches, their index on `batch_id`
    // excludes nothing.
    let sql = format!(
        "SELECT batch_id FROM {table} WHERE batch_id IN (\
           SELECT batch_id FROM {batches} WHERE batch_id IN (\
             SELECT batch_id FROM {batches} \
             WHERE event = 'released' AND at > now64(3) - toIntervalSecond({seconds})\
           ) GROUP BY batch_id HAVING countIf(event = 'loaded') = 0\
         ) AND {recent} GROUP BY batch_id ORDER BY rand() LIMIT {limit}",
        recent = warehouse.in_recent_parts(table, since),
        table = warehouse.table(table),
        batches = warehouse.table(BATCHES_TABLE),
        seconds = since.as_secs(),
    );
    let rows: Vec<Row> = warehouse.rows_within(&sql, timeout).await?;
    Ok(rows.into_iter().map(|row| BatchId(row.batch_id)).collect())
}

/// Returns the rows that a released batch has in a table, by part.
pub(super) async fn stray_rows(
    warehouse: &Warehouse,
    target: Target<'_>,
    batch: BatchId,
    timeout: Duration,
) -> Result<Vec<StrayRows>, WarehouseError> {
    let table = warehouse.table(target.table());
    let objects = warehouse.table(OBJECTS_TABLE);
    let id = sql::id(batch.0);
    let key: Vec<String> = collapsing_key(target).into_iter().map(sql::ident).collect();
    let only_copies = if key.is_empty() {
        "0".to_owned()
    } else {
        let key = key.join(", ");
        let is_claimed = "(source_path, source_etag) IN (SELECT path, etag FROM others)";
        format!(
            "countIf({is_claimed} AND ({key}) NOT IN (SELECT {key} FROM {table} \
             WHERE batch_id IN (SELECT batch_id FROM others) AND {is_claimed}))"
        )
    };
    let sql = format!(
        "WITH claims AS (\
           SELECT batch_id, concat(bucket, '/', key) AS path, etag FROM {objects} \
           WHERE batch_id != {id} \
           AND object_id IN (SELECT object_id FROM {objects} WHERE batch_id = {id})\
         ), others AS (\
           SELECT batch_id, path, etag FROM claims WHERE batch_id NOT IN (\
             SELECT batch_id FROM {batches} \
             WHERE event = 'released' AND batch_id IN (SELECT batch_id FROM claims))\
         ) \
         SELECT _part, count() AS found, {only_copies} AS only_copies \
         FROM {table} WHERE batch_id = {id} GROUP BY _part",
        batches = warehouse.table(BATCHES_TABLE),
    );
    warehouse.rows_within(&sql, timeout).await
}
