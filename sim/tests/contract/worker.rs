//! What a worker does with the servers, step by step.

use std::fmt::Debug;

use anyhow::ensure;
use sluice::Env;
use sluice::batch::{BatchId, Layout, ReadBy, StatementShape};
use sluice::clickhouse::error_class::{ErrorClass, classify};
use sluice::clickhouse::{Statement, WarehouseError};
use sluice::ledger::drive::{Fence, RunId};
use sluice::ledger::protocol::ClaimStatus;
use sluice::ledger::{Claim, Permit};
use sluice::load::ports::{BatchTables, Insert, LedgerStore, Rows};
use sluice::object::{ObjectId, ObjectRef};
use sluice::statements::select::Target;
use sluice_testkit::wait_for;

use crate::servers::{BOUND, STATEMENT, Servers};

pub(crate) type Answer<T> = Result<T, WarehouseError>;

/// A worker that is connected to a server and to the bucket.
pub(crate) struct Worker<S: Servers> {
    pub(crate) ledger: S::Ledger,
    pub(crate) tables: S::Tables,
    pub(crate) store: S::Objects,
    env: Env,
    run: RunId,
}

impl<S: Servers> Worker<S> {
    pub(crate) fn new(ledger: S::Ledger, tables: S::Tables, store: S::Objects, env: Env) -> Self {
        Self {
            ledger,
            tables,
            store,
            run: RunId(env.new_id()),
            env,
        }
    }

    /// Returns the tables that batches are inserted into.
    pub(crate) fn targets(&self) -> Vec<Target<'_>> {
        Target::all(self.tables.planner().catalog())
    }

    /// Returns the shape of the statements for these objects.
    pub(crate) fn shape(&self, objects: &[ObjectRef], read_by: ReadBy) -> StatementShape {
        let objects: Vec<&ObjectRef> = objects.iter().collect();
        let shape = StatementShape::of(read_by);
        let layout = Layout::default();
        self.tables.planner().shape(&objects, shape, &layout)
    }

    pub(crate) fn new_batch(&self) -> BatchId {
        BatchId::new(&self.env)
    }

    /// Claims objects for a new batch.
    pub(crate) async fn claim(&self, objects: &[ObjectRef]) -> BatchId {
        let claims: Vec<Claim<'_>> = objects.iter().map(Claim::of).collect();
        self.claim_as(&claims, self.shape(objects, ReadBy::S3))
            .await
    }

    pub(crate) async fn claim_as(&self, claims: &[Claim<'_>], shape: StatementShape) -> BatchId {
        let batch = self.new_batch();
        let layout = Layout::default();
        let claim = self.ledger.claim(batch, claims, shape, &layout);
        claim.await.unwrap();
        batch
    }

    /// Claims objects that other batches have loaded.
    pub(crate) async fn supersede(&self, objects: &[ObjectRef], loaded: &[BatchId]) -> BatchId {
        let claims = objects.iter().map(|object| Claim {
            object,
            supersedes: loaded,
        });
        let claims: Vec<Claim<'_>> = claims.collect();
        self.claim_as(&claims, self.shape(objects, ReadBy::S3))
            .await
    }

    /// Returns the statements of an attempt, each of which has this guard.
    pub(crate) async fn statements(
        &self,
        batch: BatchId,
        objects: &[ObjectRef],
        shape: StatementShape,
        guard: &str,
    ) -> Answer<Vec<Statement>> {
        let objects: Vec<&ObjectRef> = objects.iter().collect();
        let insert = Insert {
            batch,
            objects: &objects,
            shape,
            layout: &Layout::default(),
            guard,
        };
        self.tables.statements(&insert).await
    }

    /// Returns the statements of an attempt, with the guard of a permit.
    pub(crate) async fn permitted(
        &self,
        batch: BatchId,
        attempt: u32,
        objects: &[ObjectRef],
        shape: StatementShape,
    ) -> Answer<Vec<Statement>> {
        let permit = self.ledger.permit(batch, attempt).await?;
        let guard = self.ledger.guard(&permit);
        self.statements(batch, objects, shape, &guard).await
    }

    /// Returns a new query id, by which a kill finds the statements of the batch.
    pub(crate) fn query_id(&self, batch: BatchId) -> String {
        format!("{batch}-{}", self.env.new_id())
    }

    pub(crate) async fn execute(&self, batch: BatchId, statement: &Statement) -> Answer<()> {
        let query_id = self.query_id(batch);
        self.tables.execute(statement, &query_id, STATEMENT).await
    }

    /// Runs the statements of an attempt, whose objects the server reads in one block.
    pub(crate) async fn insert(
        &self,
        batch: BatchId,
        attempt: u32,
        objects: &[ObjectRef],
    ) -> Answer<()> {
        let shape = self.shape(objects, ReadBy::S3);
        self.insert_as(batch, attempt, objects, shape).await
    }

    pub(crate) async fn insert_as(
        &self,
        batch: BatchId,
        attempt: u32,
        objects: &[ObjectRef],
        shape: StatementShape,
    ) -> Answer<()> {
        for statement in self.permitted(batch, attempt, objects, shape).await? {
            self.execute(batch, &statement).await?;
        }
        Ok(())
    }

    /// Runs the statements of a batch, and ignores what the ledger says about it: they started
    /// before.
    pub(crate) async fn insert_late(&self, batch: BatchId, objects: &[ObjectRef]) {
        let guard = self.ledger.guard(&Permit::unlimited(self.new_batch(), 1));
        let shape = self.shape(objects, ReadBy::S3);
        let statements = self.statements(batch, objects, shape, &guard).await;
        for statement in statements.unwrap() {
            self.execute(batch, &statement).await.unwrap();
        }
    }

    pub(crate) async fn record(&self, batch: BatchId, attempt: u32) -> Answer<()> {
        let permit = self.ledger.permit(batch, attempt).await?;
        self.ledger.record(&permit, 1, 1, "").await
    }

    /// Loads objects in a new batch.
    pub(crate) async fn load(&self, objects: &[ObjectRef]) -> BatchId {
        let batch = self.claim(objects).await;
        self.insert(batch, 1, objects).await.unwrap();
        self.record(batch, 1).await.unwrap();
        batch
    }

    pub(crate) async fn fence(&self, batch: BatchId, attempt: u32) -> Fence {
        self.ledger.fence(batch, attempt, self.run).await.unwrap()
    }

    pub(crate) async fn is_undisputed(&self, batch: BatchId) -> bool {
        self.ledger.is_undisputed(batch, self.run).await.unwrap()
    }

    /// Returns an id for another run of this worker.
    pub(crate) fn new_run(&self) -> RunId {
        RunId(self.env.new_id())
    }

    /// Deletes rows from every table, as a rollback does.
    pub(crate) async fn delete_all(&self, batch: BatchId) {
        for target in self.targets() {
            self.delete(target.table(), Rows::Of(batch)).await;
        }
    }

    /// Deletes rows of a table, until none are left: a server can lose a mutation.
    pub(crate) async fn delete(&self, table: &str, rows: Rows<'_>) {
        wait_for("rows to be deleted", BOUND, async || {
            self.tables.delete(table, rows, STATEMENT).await?;
            let barrier = self.ledger.barrier().await?;
            let has_rows = self.tables.has_rows(table, rows, barrier.as_ref()).await?;
            ensure!(!has_rows, "{table} has rows");
            Ok(Some(()))
        })
        .await;
    }

    /// Returns whether any table has rows of a batch, whichever replica wrote them.
    pub(crate) async fn has_any(&self, batch: BatchId) -> bool {
        let barrier = self.ledger.barrier().await.unwrap();
        self.tables.has_any(batch, barrier.as_ref()).await.unwrap()
    }

    /// Returns whether the tables have the rows of a batch as they were counted, and there are any:
    /// then a recovery records it.
    pub(crate) async fn is_complete(&self, batch: BatchId, many_blocks: bool) -> bool {
        let barrier = self.ledger.barrier().await.unwrap();
        let contents = self.tables.contents(batch, barrier.as_ref()).await.unwrap();
        let complete = self
            .tables
            .are_complete(batch, &contents, many_blocks, None);
        complete.await.unwrap() && !contents.counted.is_empty()
    }

    pub(crate) async fn statuses(&self, objects: &[&ObjectRef]) -> Answer<Vec<ClaimStatus>> {
        let ids: Vec<ObjectId> = objects.iter().map(|object| object.id()).collect();
        self.ledger.claim_statuses(&ids, None, &[]).await
    }

    /// Waits until the server shows this claim status of an object. A single server shows it at
    /// once.
    pub(crate) async fn sees(&self, object: &ObjectRef, expected: ClaimStatus) {
        eventually(expected, async || {
            let statuses = self.statuses(&[object]).await?;
            Ok(statuses[0])
        })
        .await;
    }
}

/// Returns the status of an object that a batch claims.
pub(crate) fn busy(batch: BatchId, lease_expired: bool) -> ClaimStatus {
    ClaimStatus::Busy {
        batch,
        lease_expired,
    }
}

/// Waits until this is what is read.
pub(crate) async fn eventually<T: PartialEq + Debug>(
    expected: T,
    mut read: impl AsyncFnMut() -> Answer<T>,
) {
    let what = format!("{expected:?}");
    wait_for(&what, BOUND, async || {
        let found = read().await?;
        ensure!(found == expected, "{found:?}");
        Ok(Some(()))
    })
    .await;
}

/// Asserts that a statement failed with an error of this class, and returns the error.
#[track_caller]
pub(crate) fn failed<T: Debug>(answer: Answer<T>, class: ErrorClass) -> WarehouseError {
    let error = answer.expect_err("the statement cannot succeed");
    assert_eq!(classify(&error), class, "{error}");
    error
}
