//! Moves rejects that have become valid rows into their tables.
//!
//! Each page of rejects is a batch of its own, and follows the protocol of all batches
//! ([`crate::ledger::protocol`]). It claims the objects of the rejects, so that no other process
//! moves rejects of them. Then it writes the snapshot of the rejects, inserts from the snapshot,
//! and is recorded. Only then are the rejects deleted from their table.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::ports::{PreviewRow, ReplayLedger, ReplayPorts, ReplayTables};
use super::{RejectKind, RejectPage};
use crate::Env;
use crate::batch::{BatchId, Layout, StatementShape};
use crate::clickhouse::batch_rows::Counted;
use crate::clickhouse::error_class::{ErrorClass, classify};
use crate::clickhouse::{Statement, WarehouseError};
use crate::ledger::drive::{Fence, Inserted, Moment, Recorded, RolledBack, RunId, Steps, drive};
use crate::ledger::protocol::{Action, ClaimStatus, End, Kill, Run};
use crate::ledger::{Claim, until_stopped};
use crate::load::ports::{BatchTables, Insert, LedgerStore, Production, Rows};
use crate::object::{ObjectParts, ObjectRef};
use crate::statements::select::Target;
use crate::util::failpoint;

/// Moves pages of rejects.
pub struct Replayer<P: ReplayPorts = Production> {
    pub ledger: P::Ledger,
    pub tables: P::Tables,
    pub env: Env,
    /// The timeout of a preview, an insert or a delete.
    pub timeout: Duration,
    /// How long after its claim an insert may be retried, or `None` if tables forget a token only by
    /// the number of blocks.
    pub max_retry_age: Option<Duration>,
}

/// The result of a replay or of its preview, in lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By event type.
    pub moved: BTreeMap<String, u64>,
    /// Lines that are still not valid rows, by reason.
    pub left: BTreeMap<String, u64>,
    /// Lines that have become valid rows, but whose objects are in progress elsewhere.
    pub in_hand: u64,
}

impl<P: ReplayPorts> Replayer<P> {
    /// Returns what a replay of these rejects would do. Writes nothing.
    pub async fn preview(&self, page: &RejectPage) -> Result<Tally, WarehouseError> {
        let (mut tally, fitting) = self.preview_rows(page).await?;
        let objects: Vec<_> = fitting.iter().map(PreviewRow::object).collect();
        let claim_statuses = self.claim_statuses(&objects, None).await?;
        for (row, status) in fitting.into_iter().zip(claim_statuses) {
            if status == ClaimStatus::Free {
                *tally.moved.entry(row.kind).or_default() += row.lines;
            } else {
                tally.in_hand += row.lines;
            }
        }
        Ok(tally)
    }

    /// Moves the rejects that have become valid rows.
    pub async fn replay(&self, page: &RejectPage) -> Result<Tally, WarehouseError> {
        let (mut tally, fitting) = self.preview_rows(page).await?;
        let objects = objects_of(&fitting);
        if objects.is_empty() {
            return Ok(tally);
        }
        let fit: u64 = fitting.iter().map(|row| row.lines).sum();
        let mut moving = RejectReplay {
            page: Some(page),
            ..RejectReplay::new(self, BatchId::new(&self.env), page.kept, objects)
        };
        moving.run(Run::load()).await?;
        tally.moved = moving.moved;
        tally.in_hand = fit.saturating_sub(tally.moved.values().sum());
        Ok(tally)
    }

    /// Finishes the replays that other processes have left unfinished. Returns how many were
    /// finished, and the lines that this has moved.
    pub async fn finish_others(&self) -> Result<(u64, Tally), WarehouseError> {
        let mut tally = Tally::default();
        let unfinished = self.ledger.unfinished_replays().await?;
        let mut finished = 0;
        for replay in unfinished {
            let Some(kept) = RejectKind::moved_by(replay.read_by) else {
                continue;
            };
            let mut moving = RejectReplay::new(self, BatchId(replay.batch_id), kept, Vec::new());
            let end = if replay.loaded {
                moving.clean().await?
            } else {
                moving.recover().await?
            };
            finished += u64::from(end != End::Fenced);
            for (kind, rows) in moving.moved {
                *tally.moved.entry(kind).or_default() += rows;
            }
        }
        Ok((finished, tally))
    }

    /// Returns the numbers of lines that stay, and the lines that have become valid rows.
    async fn preview_rows(
        &self,
        page: &RejectPage,
    ) -> Result<(Tally, Vec<PreviewRow>), WarehouseError> {
        let batch = BatchId::new(&self.env);
        let preview = self.tables.preview(page, batch, self.timeout).await?;
        let types = self.tables.planner().catalog().types();
        let (fitting, staying): (Vec<_>, Vec<_>) = preview
            .into_iter()
            .partition(|row| types.iter().any(|event_type| event_type.name == row.kind));
        let mut tally = Tally::default();
        for row in staying {
            // A blank line that was too long to be parsed has no reason but its kind.
            let reason = if row.reason.is_empty() {
                row.kind
            } else {
                row.reason
            };
            *tally.left.entry(reason).or_default() += row.lines;
        }
        Ok((tally, fitting))
    }

    async fn claim_statuses(
        &self,
        objects: &[ObjectRef],
        excluding: Option<BatchId>,
    ) -> Result<Vec<ClaimStatus>, WarehouseError> {
        let ids: Vec<_> = objects.iter().map(ObjectRef::id).collect();
        self.ledger.claim_statuses_of_rejects(&ids, excluding).await
    }
}

impl PreviewRow {
    /// Returns the object of the lines, with the fields that a claim requires.
    fn object(&self) -> ObjectRef {
        let path = self.source_path.split_once('/');
        let (bucket, key) = path.unwrap_or((&self.source_path, ""));
        ObjectRef::from(ObjectParts {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            etag: self.source_etag.clone(),
            // A replay does not read the object.
            size: Some(0),
            ..ObjectParts::default()
        })
    }
}

fn objects_of(preview: &[PreviewRow]) -> Vec<ObjectRef> {
    let mut objects: Vec<_> = preview.iter().map(PreviewRow::object).collect();
    objects.sort_unstable();
    objects.dedup();
    objects
}

/// The run of one batch that moves rejects.
struct RejectReplay<'a, P: ReplayPorts> {
    replayer: &'a Replayer<P>,
    batch: BatchId,
    id: RunId,
    kept: RejectKind,
    /// The objects of the rejects.
    objects: Vec<ObjectRef>,
    /// The rejects to select from. `None` for a batch that is recovered, which has its snapshot.
    page: Option<&'a RejectPage>,
    shape: StatementShape,
    /// That of JSON lines: a reject is read from its own text, whatever its object was.
    layout: Layout,
    /// The lines moved by event type, once the batch is recorded.
    moved: BTreeMap<String, u64>,
    /// Whether the rows in the tables differ from the counts, or must not be inserted at all.
    has_row_count_mismatch: bool,
    /// Describes the rows that a rollback has not reached.
    left_in_views: Option<String>,
}

impl<'a, P: ReplayPorts> RejectReplay<'a, P> {
    fn new(
        replayer: &'a Replayer<P>,
        batch: BatchId,
        kept: RejectKind,
        objects: Vec<ObjectRef>,
    ) -> Self {
        let listed: Vec<_> = objects.iter().collect();
        let planner = replayer.tables.planner();
        let layout = Layout::default();
        Self {
            shape: planner.shape(&listed, StatementShape::of(kept.read_by()), &layout),
            layout,
            id: RunId(replayer.env.new_id()),
            replayer,
            batch,
            kept,
            objects,
            page: None,
            moved: BTreeMap::new(),
            has_row_count_mismatch: false,
            left_in_views: None,
        }
    }

    /// Performs a run to its end. After an error, the batch is left to the next replay.
    async fn run(&mut self, run: Run) -> Result<End, WarehouseError> {
        match drive(run, self).await {
            Ok(End::Loaded) => self.clean().await,
            Ok(end) => Ok(end),
            Err(error) => {
                self.abandon().await;
                Err(error)
            }
        }
    }

    async fn recover(&mut self) -> Result<End, WarehouseError> {
        let manifest = self.replayer.ledger.manifest(self.batch).await?;
        let Some(manifest) = manifest else {
            // Another process has finished it.
            return Ok(End::Fenced);
        };
        let is_same_plan = manifest.shape.plan == self.shape.plan;
        let max_age = self.replayer.max_retry_age;
        let is_forgotten = max_age.is_some_and(|max_age| manifest.age >= max_age);
        self.shape = manifest.shape;
        self.objects = manifest.objects.into_iter().map(|it| it.object).collect();
        let may_retry = is_same_plan && !is_forgotten;
        self.run(Run::recover(manifest.fenced, may_retry)).await
    }

    /// Ends the lease, so that the next replay need not wait for it. If this fails, it waits.
    async fn abandon(&self) {
        let Replayer { ledger, tables, .. } = self.replayer;
        if tables.kill(self.batch).await.is_ok() {
            drop(ledger.abandon(self.batch).await);
        }
    }

    fn listed(&self) -> Vec<&ObjectRef> {
        self.objects.iter().collect()
    }

    /// Returns whether the tables have each counted row once. `since` is that of
    /// [`BatchTables::are_complete`].
    async fn are_tables_complete(&self, since: Option<Instant>) -> Result<bool, WarehouseError> {
        let Replayer { ledger, tables, .. } = self.replayer;
        let (batch, many_blocks) = (self.batch, self.shape.many_blocks);
        let barrier = ledger.barrier().await?;
        let contents = tables.contents(batch, barrier.as_ref()).await?;
        let complete = tables.are_complete(batch, &contents, many_blocks, since);
        Ok(!self.has_row_count_mismatch && !contents.counted.is_empty() && complete.await?)
    }

    /// Returns whether the snapshot has lines that another replay has moved. A single server shows
    /// none of these: it has deleted them.
    async fn repeats_another(&self) -> Result<bool, WarehouseError> {
        let Replayer { ledger, tables, .. } = self.replayer;
        let Some(barrier) = ledger.barrier().await? else {
            return Ok(false);
        };
        tables.repeats_a_replay(self.batch, Some(&barrier)).await
    }

    /// Deletes the moved rejects from their table. Any process that finds the batch recorded may do
    /// so, at any time and repeatedly: these lines of these batches are never inserted again.
    async fn clean(&self) -> Result<End, WarehouseError> {
        failpoint::reach("clean.before");
        let moved = Rows::MovedBy(self.batch);
        self.delete(self.kept.table(), moved).await?;
        failpoint::reach("clean.after");
        self.replayer.ledger.cleaned(self.batch).await?;
        Ok(End::Loaded)
    }

    /// Deletes rows, and repeats this until none are left.
    async fn delete(&self, table: &str, rows: Rows<'_>) -> Result<(), WarehouseError> {
        let Replayer { ledger, tables, .. } = self.replayer;
        // A replica that lags could show none of them.
        let barrier = ledger.barrier().await?;
        while tables.has_rows(table, rows, barrier.as_ref()).await? {
            let delete = tables.delete(table, rows, self.replayer.timeout);
            ledger.leased(self.batch, delete).await?;
        }
        Ok(())
    }

    async fn execute(&self, statement: &Statement, attempt: u32) -> Result<(), WarehouseError> {
        let Replayer { ledger, tables, .. } = self.replayer;
        // A prefix by which a kill finds the statement, and a unique suffix.
        let query_id = format!("{}-{attempt}-{}", self.batch, self.replayer.env.new_id());
        let execute = tables.execute(statement, &query_id, self.replayer.timeout);
        ledger.leased(self.batch, execute).await
    }
}

impl<P: ReplayPorts> Steps for RejectReplay<'_, P> {
    type Error = WarehouseError;

    fn reach(&mut self, action: Action, moment: Moment) {
        failpoint::reach(&moment.of(action));
    }

    /// Looks the objects up, and drops those that are in progress elsewhere.
    async fn look_up(&mut self) -> Result<Vec<ClaimStatus>, WarehouseError> {
        let claim_statuses = self.replayer.claim_statuses(&self.objects, None).await?;
        let mut of_each = claim_statuses.iter();
        self.objects
            .retain(|_| of_each.next() == Some(&ClaimStatus::Free));
        Ok(claim_statuses)
    }

    async fn recover(&mut self, _: BatchId) -> Result<(), WarehouseError> {
        unreachable!("the claim status of rejects never has an expired lease")
    }

    async fn claim(&mut self) -> Result<(), WarehouseError> {
        let claims: Vec<_> = self.objects.iter().map(Claim::of).collect();
        let ledger = &self.replayer.ledger;
        ledger
            .claim(self.batch, &claims, self.shape, &self.layout)
            .await
    }

    async fn verify(&mut self) -> Result<Vec<ClaimStatus>, WarehouseError> {
        let claim_statuses = self
            .replayer
            .claim_statuses(&self.objects, Some(self.batch));
        claim_statuses.await
    }

    async fn insert(&mut self, attempt: u32) -> Result<Inserted, WarehouseError> {
        let Replayer { ledger, tables, .. } = self.replayer;
        let begun = Instant::now();
        let statements = async || {
            let permit = ledger.permit(self.batch, attempt).await?;
            let insert = Insert {
                batch: self.batch,
                objects: &self.listed(),
                shape: self.shape,
                layout: &self.layout,
                guard: &ledger.guard(&permit),
            };
            let statements = tables.replay_statements(&insert, self.page).await?;
            Ok::<_, WarehouseError>((statements, permit))
        };
        let (mut permitted, mut permit) = statements().await?;
        for index in 0..permitted.len() {
            if !permit.is_valid() {
                (permitted, permit) = statements().await?;
            }
            match self.execute(&permitted[index], attempt).await {
                Err(error) if classify(&error) == ErrorClass::Fenced => {
                    return Ok(Inserted::Fenced);
                }
                other => other?,
            }
            failpoint::reach("replay.statement");
            // The first statement has written the snapshot.
            if index == 0 && self.page.is_some() && self.repeats_another().await? {
                self.has_row_count_mismatch = true;
                return Ok(Inserted::ObjectFault);
            }
        }
        // A server that was killed can have stored a token without the rows.
        let is_recovery = self.page.is_none();
        if !self
            .are_tables_complete((!is_recovery).then_some(begun))
            .await?
        {
            self.has_row_count_mismatch = true;
            return Ok(Inserted::ObjectFault);
        }
        Ok(Inserted::Committed)
    }

    async fn kill(&mut self, purpose: Kill) -> Result<(), WarehouseError> {
        let Replayer { ledger, tables, .. } = self.replayer;
        if purpose == Kill::BestEffort {
            return tables.kill(self.batch).await;
        }
        let stop = until_stopped(|| ledger.stop(self.batch));
        ledger.leased(self.batch, stop).await
    }

    async fn fence(&mut self, attempt: u32) -> Result<Fence, WarehouseError> {
        self.replayer
            .ledger
            .fence(self.batch, attempt, self.id)
            .await
    }

    async fn has_rows(&mut self) -> Result<bool, WarehouseError> {
        let Replayer { ledger, tables, .. } = self.replayer;
        let barrier = ledger.barrier().await?;
        tables.has_any(self.batch, barrier.as_ref()).await
    }

    async fn is_complete(&mut self) -> Result<bool, WarehouseError> {
        self.are_tables_complete(None).await
    }

    /// Deletes the rows of a batch that cannot be completed.
    async fn roll_back(&mut self) -> Result<RolledBack, WarehouseError> {
        let Replayer { ledger, tables, .. } = self.replayer;
        // The batch cannot be recorded any more. If it was recorded before, its rows stay.
        if ledger.has_ended(self.batch).await? {
            return Ok(RolledBack::Ended);
        }
        self.left_in_views = tables.left_in_views(self.batch).await?;
        for target in Target::all(tables.planner().catalog()) {
            self.delete(target.table(), Rows::Of(self.batch)).await?;
        }
        Ok(RolledBack::Deleted)
    }

    async fn release(&mut self) -> Result<(), WarehouseError> {
        let mut reason = "the replay moved nothing".to_owned();
        if let Some(left) = &self.left_in_views {
            reason += &format!("; {left}");
        }
        self.replayer.ledger.release(self.batch, &reason).await
    }

    async fn record(&mut self, attempt: u32) -> Result<Recorded, WarehouseError> {
        let mut moved: BTreeMap<String, u64> = BTreeMap::new();
        let Replayer { ledger, tables, .. } = self.replayer;
        let barrier = ledger.barrier().await?;
        let contents = tables.contents(self.batch, barrier.as_ref()).await?;
        for Counted { kind, rows, .. } in contents.counted {
            *moved.entry(kind).or_default() += rows;
        }
        let (objects, rows) = (self.objects.len(), moved.values().sum());
        let permit = ledger.permit(self.batch, attempt).await?;
        match ledger.record(&permit, objects, rows, "").await {
            Err(error) if classify(&error) == ErrorClass::Fenced => return Ok(Recorded::Fenced),
            other => other?,
        }
        self.moved = moved;
        Ok(Recorded::Written)
    }
}
