//! What a [`Replayer`](super::replay::Replayer) requires of the ledger and of the tables.
//!
//! A replay is a batch like those of a loader, and works through the same ports
//! ([`crate::load::ports`]). The traits here add what only a replay does.

use std::time::Duration;

use serde::Deserialize;

use super::RejectPage;
use crate::batch::BatchId;
use crate::clickhouse::replicas::Barrier;
use crate::clickhouse::{Statement, WarehouseError};
use crate::ledger::protocol::ClaimStatus;
use crate::ledger::{BATCHES_TABLE, Ledger, UnfinishedReplay};
use crate::load::ports::{BatchTables, Insert, LedgerStore, Ports};
use crate::load::tables::ClickHouseTables;
use crate::object::ObjectId;
use crate::sql;
use crate::statements::ddl::REPLAYED;

/// The systems that a [`Replayer`](super::replay::Replayer) works with: those of a loader, if their
/// ledger and tables have what a replay requires.
pub trait ReplayPorts: Ports<Ledger: ReplayLedger, Tables: ReplayTables> {}

impl<P: Ports<Ledger: ReplayLedger, Tables: ReplayTables>> ReplayPorts for P {}

/// The ledger, as a replay reads it. [`Ledger`] documents each operation.
pub trait ReplayLedger: LedgerStore {
    fn claim_statuses_of_rejects(
        &self,
        objects: &[ObjectId],
        excluding: Option<BatchId>,
    ) -> impl Future<Output = Result<Vec<ClaimStatus>, WarehouseError>> + Send;

    fn unfinished_replays(
        &self,
    ) -> impl Future<Output = Result<Vec<UnfinishedReplay>, WarehouseError>> + Send;
}

/// The tables of the rejects, and those that a replay moves them to.
pub trait ReplayTables: BatchTables {
    /// Returns what the rejects of a page would become if this batch moved them. Writes nothing.
    fn preview(
        &self,
        page: &RejectPage,
        batch: BatchId,
        timeout: Duration,
    ) -> impl Future<Output = Result<Vec<PreviewRow>, WarehouseError>> + Send;

    /// Returns the statements of an attempt. The first writes the snapshot: those rejects of the
    /// page that are now valid rows. The others insert from it. Without a page, the snapshot has
    /// been written before.
    ///
    /// They do not have the bounds of [`BatchTables::statements`] on memory, rows and bytes.
    fn replay_statements(
        &self,
        insert: &Insert<'_>,
        page: Option<&RejectPage>,
    ) -> impl Future<Output = Result<Vec<Statement>, WarehouseError>> + Send;

    /// Returns whether a replay that is recorded has moved a line that is in the snapshot of this
    /// batch. A replica can still show such a line among the rejects: it deletes it later than the
    /// others if it was away, and the deletion does not wait for it.
    fn repeats_a_replay(
        &self,
        batch: BatchId,
        after: Option<&Barrier>,
    ) -> impl Future<Output = Result<bool, WarehouseError>> + Send;
}

/// What some lines of one object would become.
#[derive(Clone, Debug, Deserialize)]
pub struct PreviewRow {
    pub source_path: String,
    pub source_etag: String,
    /// The event type, or the kind of a line that is still not a valid row.
    pub kind: String,
    /// Why the lines are still not valid rows, if there is a reason.
    pub reason: String,
    pub lines: u64,
}

impl ReplayLedger for Ledger {
    async fn claim_statuses_of_rejects(
        &self,
        objects: &[ObjectId],
        excluding: Option<BatchId>,
    ) -> Result<Vec<ClaimStatus>, WarehouseError> {
        self.claim_statuses_of_rejects(objects, excluding).await
    }

    async fn unfinished_replays(&self) -> Result<Vec<UnfinishedReplay>, WarehouseError> {
        self.unfinished_replays().await
    }
}

impl ReplayTables for ClickHouseTables {
    async fn preview(
        &self,
        page: &RejectPage,
        batch: BatchId,
        timeout: Duration,
    ) -> Result<Vec<PreviewRow>, WarehouseError> {
        let warehouse = self.warehouse();
        let sql = self.planner().preview(batch, &page.rows(warehouse));
        warehouse.rows_within(&sql, timeout).await
    }

    async fn replay_statements(
        &self,
        insert: &Insert<'_>,
        page: Option<&RejectPage>,
    ) -> Result<Vec<Statement>, WarehouseError> {
        let Insert {
            batch,
            objects,
            shape,
            layout,
            guard,
        } = *insert;
        let planner = self.planner();
        let snapshot = page.map(|page| {
            let rows = page.rows(self.warehouse());
            planner.snapshot(batch, objects, &rows, guard)
        });
        let inserts = planner.inserts(batch, objects, shape, layout, guard);
        let statements = snapshot.into_iter().chain(inserts).collect();
        self.committing_in_time(statements).await
    }

    async fn repeats_a_replay(
        &self,
        batch: BatchId,
        after: Option<&Barrier>,
    ) -> Result<bool, WarehouseError> {
        let warehouse = self.warehouse();
        let (replayed, batches) = (warehouse.table(REPLAYED), warehouse.table(BATCHES_TABLE));
        let key = "source_path, source_etag, row_number, kept_batch_id";
        let is_own = format!("batch_id = {}", sql::id(batch.0));
        let moved_before = format!(
            "{is_own} AND ({key}) IN (SELECT {key} FROM {replayed} WHERE NOT {is_own} \
             AND source_path IN (SELECT source_path FROM {replayed} WHERE {is_own}) \
             AND batch_id IN (SELECT batch_id FROM {batches} WHERE event = 'loaded'))"
        );
        warehouse
            .has_rows(&[REPLAYED, BATCHES_TABLE], &moved_before, after)
            .await
    }
}
