//! What a [`Loader`](super::Loader) requires of the ledger, of the tables and of S3: narrow traits,
//! so that a simulation can replace each. Replays of rejects work through the first two as well.

use std::future::Future;
use std::time::{Duration, SystemTime};

use futures_util::Stream;

use super::truncation::Truncation;
use crate::batch::{BatchId, Layout, StatementShape};
use crate::clickhouse::batch_rows::{Contents, Rejected, RejectedRecord};
use crate::clickhouse::failing_view::Failing;
use crate::clickhouse::replicas::Barrier;
use crate::clickhouse::{Statement, WarehouseError};
use crate::event_types::{Column, EventType};
use crate::formats::FormatId;
use crate::ledger::drive::{Fence, RunId};
use crate::ledger::protocol::ClaimStatus;
use crate::ledger::{
    Claim, Claims, Failure, Ledger, Manifest, ManifestEntry, Permit, Replacement, Stopped,
};
use crate::load::empty_columns::Seen;
use crate::load::janitor::StrayRows;
use crate::load::tables::ClickHouseTables;
use crate::object::{Compression, ObjectId, ObjectRef};
use crate::s3::{Completeness, Content, ObjectMeta, Plain, Store, StoreError};
use crate::statements::insert::Planner;
use crate::statements::select::Target;
use tokio::time::Instant;

/// The systems that a [`Loader`](super::Loader) works with.
pub trait Ports: Send + Sync + 'static {
    type Ledger: LedgerStore;
    type Tables: BatchTables;
    type Objects: ObjectStore;
}

/// The production systems: ClickHouse and S3.
#[derive(Debug)]
pub struct Production;

impl Ports for Production {
    type Ledger = Ledger;
    type Tables = ClickHouseTables;
    type Objects = Store;
}

type Answer<T> = Result<T, WarehouseError>;

/// The ledger, as a loader writes and reads it. [`Ledger`] documents each operation.
pub trait LedgerStore: Send + Sync + 'static {
    fn lease(&self) -> Duration;

    fn claim_statuses(
        &self,
        objects: &[ObjectId],
        excluding: Option<BatchId>,
        superseded: &[(ObjectId, BatchId)],
    ) -> impl Future<Output = Answer<Vec<ClaimStatus>>> + Send;

    fn claim(
        &self,
        batch: BatchId,
        claims: &[Claim<'_>],
        shape: StatementShape,
        layout: &Layout,
    ) -> impl Future<Output = Answer<()>> + Send;

    fn renew(&self, batch: BatchId) -> impl Future<Output = Answer<()>> + Send;

    fn leased<T: Send>(
        &self,
        batch: BatchId,
        work: impl Future<Output = T> + Send,
    ) -> impl Future<Output = T> + Send;

    fn permit(&self, batch: BatchId, attempt: u32) -> impl Future<Output = Answer<Permit>> + Send;

    fn guard(&self, permit: &Permit) -> String;

    fn barrier(&self) -> impl Future<Output = Answer<Option<Barrier>>> + Send;

    fn fence(
        &self,
        batch: BatchId,
        attempt: u32,
        run: RunId,
    ) -> impl Future<Output = Answer<Fence>> + Send;

    fn stop(&self, batch: BatchId) -> impl Future<Output = Answer<Stopped>> + Send;

    fn is_undisputed(
        &self,
        batch: BatchId,
        run: RunId,
    ) -> impl Future<Output = Answer<bool>> + Send;

    fn has_ended(&self, batch: BatchId) -> impl Future<Output = Answer<bool>> + Send;

    fn record(
        &self,
        permit: &Permit,
        objects: usize,
        rows: u64,
        reason: &str,
    ) -> impl Future<Output = Answer<()>> + Send;

    fn release(&self, batch: BatchId, reason: &str) -> impl Future<Output = Answer<()>> + Send;

    fn abandon(&self, batch: BatchId) -> impl Future<Output = Answer<()>> + Send;

    fn manifest(&self, batch: BatchId) -> impl Future<Output = Answer<Option<Manifest>>> + Send;

    fn claimed_after(&self, batch: BatchId) -> impl Future<Output = Answer<u64>> + Send;

    fn objects(&self, batch: BatchId) -> impl Future<Output = Answer<Vec<ManifestEntry>>> + Send;

    fn replacements(&self) -> impl Future<Output = Answer<Vec<Replacement>>> + Send;

    fn cleaned(&self, batch: BatchId) -> impl Future<Output = Answer<()>> + Send;

    fn left_open(
        &self,
        since: Duration,
        limit: usize,
    ) -> impl Future<Output = Answer<Vec<BatchId>>> + Send;

    fn loaded_claims(
        &self,
        objects: &[ObjectId],
        before: SystemTime,
    ) -> impl Future<Output = Answer<Claims>> + Send;

    fn latest_loaded(
        &self,
        object: &ObjectRef,
        same_bucket: bool,
        limit: usize,
    ) -> impl Future<Output = Answer<Vec<ObjectRef>>> + Send;

    fn record_failures(&self, failures: &[Failure<'_>]) -> impl Future<Output = Answer<()>> + Send;
}

/// One attempt to insert a batch.
#[derive(Clone, Copy, Debug)]
pub struct Insert<'a> {
    pub batch: BatchId,
    pub objects: &'a [&'a ObjectRef],
    pub shape: StatementShape,
    /// The format and the structure in which the objects are read.
    pub layout: &'a Layout,
    /// The condition under which no statement of the attempt may start, as SQL.
    pub guard: &'a str,
}

/// A selection of rows of a table.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// The rows of a batch.
    Of(BatchId),
    /// The rows of a batch in the parts of these names.
    InParts(BatchId, &'a [&'a str]),
    /// The rows that the batch with this manifest supersedes.
    SupersededBy(&'a [ManifestEntry]),
    /// In a table of rejects, the lines that this replay has moved.
    MovedBy(BatchId),
}

/// The tables that batches are inserted into, on a server that reads objects itself.
pub trait BatchTables: Send + Sync + 'static {
    /// Returns the planner, which builds the statements and decides their shape.
    fn planner(&self) -> &Planner;

    fn ping(&self) -> impl Future<Output = Answer<()>> + Send;

    /// Returns the statements of an attempt, each with bounds on the resources that it may use.
    fn statements(
        &self,
        insert: &Insert<'_>,
    ) -> impl Future<Output = Answer<Vec<Statement>>> + Send;

    /// Runs a statement whose objects the server reads.
    fn execute(
        &self,
        statement: &Statement,
        query_id: &str,
        timeout: Duration,
    ) -> impl Future<Output = Answer<()>> + Send;

    /// Runs a statement whose objects follow in the body of the request.
    fn stream(
        &self,
        statement: &Statement,
        body: impl Stream<Item = Result<Vec<u8>, StoreError>> + Send,
        query_id: &str,
        timeout: Duration,
    ) -> impl Future<Output = Answer<()>> + Send;

    /// Kills every statement of a batch on the servers that can be reached, and waits until none is
    /// running there.
    fn kill(&self, batch: BatchId) -> impl Future<Output = Answer<()>> + Send;

    /// Returns whether any table has a row of a batch that was inserted before the barrier.
    fn has_any(
        &self,
        batch: BatchId,
        after: Option<&Barrier>,
    ) -> impl Future<Output = Answer<bool>> + Send;

    /// Returns the contents of the tables for a batch: all that was inserted before the barrier.
    fn contents(
        &self,
        batch: BatchId,
        after: Option<&Barrier>,
    ) -> impl Future<Output = Answer<Contents>> + Send;

    /// Returns whether the tables have all rows of a batch. See
    /// [`BatchRows::are_complete`](crate::clickhouse::batch_rows::BatchRows::are_complete).
    fn are_complete(
        &self,
        batch: BatchId,
        contents: &Contents,
        many_blocks: bool,
        since: Option<Instant>,
    ) -> impl Future<Output = Answer<bool>> + Send;

    /// Returns the rejected lines of a batch by reason.
    fn rejected(&self, batch: BatchId) -> impl Future<Output = Answer<Vec<Rejected>>> + Send;

    /// Returns the path of an object whose first line looks compressed and was rejected in this
    /// batch.
    fn compressed_line(
        &self,
        batch: BatchId,
    ) -> impl Future<Output = Answer<Option<String>>> + Send;

    /// Returns the first rejected records of an object in this batch.
    fn sample(
        &self,
        batch: BatchId,
        path: &str,
    ) -> impl Future<Output = Answer<Vec<RejectedRecord>>> + Send;

    /// Returns the layout of an object that the server reads, or what is wrong with the structure
    /// of its content.
    fn structure(
        &self,
        format: FormatId,
        object: &ObjectRef,
    ) -> impl Future<Output = Answer<Result<Layout, String>>> + Send;

    /// Returns the layout of an object that the worker reads. `part` is the part of its content
    /// that describes the structure.
    fn structure_of_part(
        &self,
        format: FormatId,
        part: &[u8],
    ) -> impl Future<Output = Answer<Result<Layout, String>>> + Send;

    /// Returns the first bytes of an object, which show what it is, as the server reads it.
    fn first_bytes(&self, object: &ObjectRef) -> impl Future<Output = Answer<Vec<u8>>> + Send;

    /// Returns a description of the rows that a deletion of the batch does not reach.
    fn left_in_views(&self, batch: BatchId) -> impl Future<Output = Answer<Option<String>>> + Send;

    /// Returns whether a table has any of these rows that were inserted before the barrier.
    fn has_rows(
        &self,
        table: &str,
        rows: Rows<'_>,
        after: Option<&Barrier>,
    ) -> impl Future<Output = Answer<bool>> + Send;

    /// Returns whether the server is executing exactly this deletion.
    fn is_deleting(&self, table: &str, rows: Rows<'_>) -> impl Future<Output = bool> + Send;

    fn delete(
        &self,
        table: &str,
        rows: Rows<'_>,
        timeout: Duration,
    ) -> impl Future<Output = Answer<()>> + Send;

    /// Returns released batches that have rows in a table although they must not have any: some of
    /// those that were released within `since`, at most `limit`.
    fn stray_batches(
        &self,
        table: &str,
        since: Duration,
        limit: usize,
        timeout: Duration,
    ) -> impl Future<Output = Answer<Vec<BatchId>>> + Send;

    /// Returns the rows that a released batch has in a table, by part.
    fn stray_rows(
        &self,
        target: Target<'_>,
        batch: BatchId,
        timeout: Duration,
    ) -> impl Future<Output = Answer<Vec<StrayRows>>> + Send;

    /// Returns the metadata of these objects as the server sees them, each with its path.
    fn head(
        &self,
        objects: &[&ObjectRef],
    ) -> impl Future<Output = Answer<Vec<(String, ObjectMeta)>>> + Send;

    /// Returns the paths of the objects that have a line, blank or not.
    fn with_lines(
        &self,
        objects: &[&ObjectRef],
    ) -> impl Future<Output = Answer<Vec<String>>> + Send;

    /// Returns the cached result of [`truncation`](Self::truncation), unless it has expired.
    fn known_truncation(&self, compression: Compression) -> Option<Truncation>;

    /// Tests how the server handles a stream that is cut short.
    fn truncation(
        &self,
        compression: Compression,
    ) -> impl Future<Output = Answer<Truncation>> + Send;

    /// Returns whether a loaded batch has inserted rows into the table that a view reads since the
    /// view was last changed.
    fn has_passed(&self, failing: &Failing) -> impl Future<Output = Answer<bool>> + Send;

    /// Looks for columns without a value in the rows of a batch.
    fn look_at(
        &self,
        event_type: &EventType,
        columns: &[&Column],
        batch: BatchId,
    ) -> impl Future<Output = Answer<Seen>> + Send;
}

/// S3, as a worker reads it.
pub trait ObjectStore: Send + Sync + 'static {
    /// Returns the metadata of the object that the key has now, whatever was announced.
    fn head(
        &self,
        object: &ObjectRef,
    ) -> impl Future<Output = Result<ObjectMeta, StoreError>> + Send;

    /// Returns whether the content's compression differs from the one in its name.
    fn is_misnamed(
        &self,
        object: &ObjectRef,
        plain: Plain,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Returns whether the content is empty when decompressed.
    fn is_empty(
        &self,
        object: &ObjectRef,
        plain: Plain,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Reads the object to its end, and returns whether its content is whole.
    fn completeness(
        &self,
        object: &ObjectRef,
    ) -> impl Future<Output = Result<Completeness, StoreError>> + Send;

    /// Opens the object for reading; the content is decompressed.
    fn open(
        &self,
        object: &ObjectRef,
        plain: Plain,
    ) -> impl Future<Output = Result<Content, StoreError>> + Send;

    /// Returns at most this many bytes at the end of the object, as it is stored.
    fn end(
        &self,
        object: &ObjectRef,
        bytes: u64,
    ) -> impl Future<Output = Result<Vec<u8>, StoreError>> + Send;
}

impl LedgerStore for Ledger {
    fn lease(&self) -> Duration {
        self.lease()
    }

    async fn claim_statuses(
        &self,
        objects: &[ObjectId],
        excluding: Option<BatchId>,
        superseded: &[(ObjectId, BatchId)],
    ) -> Answer<Vec<ClaimStatus>> {
        self.claim_statuses(objects, excluding, superseded).await
    }

    async fn claim(
        &self,
        batch: BatchId,
        claims: &[Claim<'_>],
        shape: StatementShape,
        layout: &Layout,
    ) -> Answer<()> {
        self.claim(batch, claims, shape, layout).await
    }

    async fn renew(&self, batch: BatchId) -> Answer<()> {
        self.renew(batch).await
    }

    async fn leased<T: Send>(&self, batch: BatchId, work: impl Future<Output = T> + Send) -> T {
        self.leased(batch, work).await
    }

    async fn permit(&self, batch: BatchId, attempt: u32) -> Answer<Permit> {
        self.permit(batch, attempt).await
    }

    fn guard(&self, permit: &Permit) -> String {
        self.guard(permit)
    }

    async fn barrier(&self) -> Answer<Option<Barrier>> {
        self.barrier().await
    }

    async fn fence(&self, batch: BatchId, attempt: u32, run: RunId) -> Answer<Fence> {
        self.fence(batch, attempt, run).await
    }

    async fn stop(&self, batch: BatchId) -> Answer<Stopped> {
        self.stop(batch).await
    }

    async fn is_undisputed(&self, batch: BatchId, run: RunId) -> Answer<bool> {
        self.is_undisputed(batch, run).await
    }

    async fn has_ended(&self, batch: BatchId) -> Answer<bool> {
        self.has_ended(batch).await
    }

    async fn record(&self, permit: &Permit, objects: usize, rows: u64, reason: &str) -> Answer<()> {
        self.record(permit, objects, rows, reason).await
    }

    async fn release(&self, batch: BatchId, reason: &str) -> Answer<()> {
        self.release(batch, reason).await
    }

    async fn abandon(&self, batch: BatchId) -> Answer<()> {
        self.abandon(batch).await
    }

    async fn manifest(&self, batch: BatchId) -> Answer<Option<Manifest>> {
        self.manifest(batch).await
    }

    async fn claimed_after(&self, batch: BatchId) -> Answer<u64> {
        self.claimed_after(batch).await
    }

    async fn objects(&self, batch: BatchId) -> Answer<Vec<ManifestEntry>> {
        self.objects(batch).await
    }

    async fn replacements(&self) -> Answer<Vec<Replacement>> {
        self.replacements().await
    }

    async fn cleaned(&self, batch: BatchId) -> Answer<()> {
        self.cleaned(batch).await
    }

    async fn left_open(&self, since: Duration, limit: usize) -> Answer<Vec<BatchId>> {
        self.left_open(since, limit).await
    }

    async fn loaded_claims(&self, objects: &[ObjectId], before: SystemTime) -> Answer<Claims> {
        self.loaded_claims(objects, before).await
    }

    async fn latest_loaded(
        &self,
        object: &ObjectRef,
        same_bucket: bool,
        limit: usize,
    ) -> Answer<Vec<ObjectRef>> {
        self.latest_loaded(object, same_bucket, limit).await
    }

    async fn record_failures(&self, failures: &[Failure<'_>]) -> Answer<()> {
        self.record_failures(failures).await
    }
}

impl ObjectStore for Store {
    async fn head(&self, object: &ObjectRef) -> Result<ObjectMeta, StoreError> {
        self.head(object).await
    }

    async fn is_misnamed(&self, object: &ObjectRef, plain: Plain) -> Result<bool, StoreError> {
        self.is_misnamed(object, plain).await
    }

    async fn is_empty(&self, object: &ObjectRef, plain: Plain) -> Result<bool, StoreError> {
        self.is_empty(object, plain).await
    }

    async fn completeness(&self, object: &ObjectRef) -> Result<Completeness, StoreError> {
        self.completeness(object).await
    }

    async fn open(&self, object: &ObjectRef, plain: Plain) -> Result<Content, StoreError> {
        self.open(object, plain).await
    }

    async fn end(&self, object: &ObjectRef, bytes: u64) -> Result<Vec<u8>, StoreError> {
        self.end(object, bytes).await
    }
}
