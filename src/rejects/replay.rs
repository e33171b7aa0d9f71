//! Moves kept lines that are rows by now into their tables.
//!
//! Each page of lines is a batch of its own on the way of all batches ([`crate::ledger::protocol`]).
//! It claims the objects that the lines are of, so that nobody else moves lines of them; then it
//! freezes the list of the lines, inserts from the list, and is put on record. Only then are the
//! lines deleted from where they were kept.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::Env;
use crate::batch::{BatchId, Form};
use crate::clickhouse::batch_rows::{BatchRows, Counted};
use crate::clickhouse::error_class::{Verdict, verdict};
use crate::clickhouse::{Statement, Warehouse, WarehouseError};
use crate::ledger::drive::{Fence, Inserted, Moment, Recorded, Steps, TakenBack, drive};
use crate::ledger::protocol::{Action, End, Run, Standing};
use crate::ledger::{Claim, Ledger};
use crate::object::{ObjectParts, ObjectRef};
use crate::rejects::{Kept, Page};
use crate::sql;
use crate::statements::ddl::REPLAYED;
use crate::statements::insert::Planner;
use crate::statements::select::Target;
use crate::util::failpoint;

/// Moves pages of kept lines.
pub struct Replayer {
    pub warehouse: Warehouse,
    pub ledger: Ledger,
    pub planner: Planner,
    pub env: Env,
    /// For an insert, or a delete.
    pub timeout: Duration,
}

/// What would become of lines of one object.
#[derive(Debug, Deserialize)]
struct Fate {
    source_path: String,
    source_etag: String,
    kind: String,
    reason: String,
    lines: u64,
}

/// What becomes, or would become, of lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By event type.
    pub moved: BTreeMap<String, u64>,
    /// Not rows, by what is wrong with them now.
    pub left: BTreeMap<String, u64>,
    /// Rows, but somebody else works on their objects.
    pub in_hand: u64,
}

impl Replayer {
    /// What a replay of these lines would do; writes nothing.
    pub async fn preview(&self, page: &Page) -> Result<Tally, WarehouseError> {
        let (mut tally, fitting) = self.fates(page).await?;
        let objects: Vec<_> = fitting.iter().map(Fate::object).collect();
        let standings = self.standings(&objects, None).await?;
        for (fate, standing) in fitting.into_iter().zip(standings) {
            if standing == Standing::Free {
                *tally.moved.entry(fate.kind).or_default() += fate.lines;
            } else {
                tally.in_hand += fate.lines;
            }
        }
        Ok(tally)
    }

    /// Moves those of these lines that are rows by now.
    pub async fn replay(&self, page: &Page) -> Result<Tally, WarehouseError> {
        let (mut tally, fitting) = self.fates(page).await?;
        let objects = objects_of(&fitting);
        if objects.is_empty() {
            return Ok(tally);
        }
        let fit: u64 = fitting.iter().map(|fate| fate.lines).sum();
        let mut moving = Moving {
            lines: Some(&page.rows),
            ..Moving::new(self, BatchId::new(&self.env), page.kept, objects)
        };
        moving.run(Run::load()).await?;
        tally.moved = moving.moved;
        tally.in_hand = fit.saturating_sub(tally.moved.values().sum());
        Ok(tally)
    }

    /// Finishes what other replays have left behind: how many, and what was moved by that.
    pub async fn finish_others(&self) -> Result<(u64, Tally), WarehouseError> {
        let mut tally = Tally::default();
        let unfinished = self.ledger.unfinished_replays().await?;
        let mut finished = 0;
        for replay in unfinished {
            let Some(kept) = Kept::moved_by(replay.read_by) else {
                continue;
            };
            let mut moving = Moving::new(self, BatchId(replay.batch_id), kept, Vec::new());
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

    /// What becomes of the lines: those that stay, counted, and those that are rows.
    async fn fates(&self, page: &Page) -> Result<(Tally, Vec<Fate>), WarehouseError> {
        let sql = self.planner.fates(BatchId::new(&self.env), &page.rows);
        let fates: Vec<Fate> = self.warehouse.rows_within(&sql, self.timeout).await?;
        let types = self.planner.catalog.types();
        let (fitting, staying): (Vec<_>, Vec<_>) = fates
            .into_iter()
            .partition(|fate| types.iter().any(|event_type| event_type.name == fate.kind));
        let mut tally = Tally::default();
        for fate in staying {
            // A line that is blank, and was too long to be looked at, has no other.
            let reason = if fate.reason.is_empty() {
                fate.kind
            } else {
                fate.reason
            };
            *tally.left.entry(reason).or_default() += fate.lines;
        }
        Ok((tally, fitting))
    }

    async fn standings(
        &self,
        objects: &[ObjectRef],
        but: Option<BatchId>,
    ) -> Result<Vec<Standing>, WarehouseError> {
        let ids: Vec<_> = objects.iter().map(ObjectRef::id).collect();
        self.ledger.standings_of_kept(&ids, but).await
    }
}

impl Fate {
    /// As far as a claim needs to name it.
    fn object(&self) -> ObjectRef {
        let path = self.source_path.split_once('/');
        let (bucket, key) = path.unwrap_or((&self.source_path, ""));
        ObjectRef::from(ObjectParts {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            etag: self.source_etag.clone(),
            // Nothing is read of it.
            size: Some(0),
            ..ObjectParts::default()
        })
    }
}

fn objects_of(fates: &[Fate]) -> Vec<ObjectRef> {
    let mut objects: Vec<_> = fates.iter().map(Fate::object).collect();
    objects.sort_unstable();
    objects.dedup();
    objects
}

/// One batch that moves lines.
struct Moving<'a> {
    replayer: &'a Replayer,
    batch: BatchId,
    kept: Kept,
    /// Those that the lines are of.
    objects: Vec<ObjectRef>,
    /// The lines to choose from, as what follows FROM; of a batch that is recovered they are frozen.
    lines: Option<&'a str>,
    form: Form,
    /// Once on record, by event type.
    moved: BTreeMap<String, u64>,
    /// The tables have other rows than were counted.
    torn: bool,
    /// What a rollback has not reached.
    left_in_views: Option<String>,
}

impl<'a> Moving<'a> {
    fn new(replayer: &'a Replayer, batch: BatchId, kept: Kept, objects: Vec<ObjectRef>) -> Self {
        let listed: Vec<_> = objects.iter().collect();
        Self {
            form: replayer.planner.form(&listed, Form::of(kept.read_by())),
            replayer,
            batch,
            kept,
            objects,
            lines: None,
            moved: BTreeMap::new(),
            torn: false,
            left_in_views: None,
        }
    }

    /// To its end. Where that is an error, the batch is left to the next replay.
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
        let sealed = self.replayer.ledger.sealed(self.batch).await?;
        let Some(sealed) = sealed else {
            // Somebody was faster.
            return Ok(End::Fenced);
        };
        let replayable = sealed.form.plan == self.form.plan;
        self.form = sealed.form;
        self.objects = sealed.objects.into_iter().map(|it| it.object).collect();
        self.run(Run::recover(sealed.fenced, replayable)).await
    }

    /// So that the next replay need not wait for the lease. Where even this cannot be said, it does.
    async fn abandon(&self) {
        let Replayer {
            warehouse, ledger, ..
        } = self.replayer;
        if warehouse.kill(&self.batch.to_string()).await.is_ok() {
            drop(ledger.abandon(self.batch).await);
        }
    }

    fn listed(&self) -> Vec<&ObjectRef> {
        self.objects.iter().collect()
    }

    fn rows(&self) -> BatchRows<'_> {
        BatchRows {
            warehouse: &self.replayer.warehouse,
            catalog: &self.replayer.planner.catalog,
            strategy: self.replayer.planner.strategy,
            batch: self.batch,
        }
    }

    /// Returns whether the tables have what was counted, once; [`BatchRows::are_complete`] says what
    /// `since` is.
    async fn are_tables_complete(&self, since: Option<Instant>) -> Result<bool, WarehouseError> {
        let rows = self.rows();
        let contents = rows.contents().await?;
        let complete = rows.are_complete(&contents, self.form.many_blocks, since);
        Ok(!self.torn && !contents.counted.is_empty() && complete.await?)
    }

    /// Deletes the lines from where they were kept. Whoever finds the batch on record may do so,
    /// at any time and again: these lines of these batches never come back.
    async fn clean(&self) -> Result<End, WarehouseError> {
        let Replayer {
            warehouse, ledger, ..
        } = self.replayer;
        let listed = format!(
            "(source_path, source_etag, row_number, batch_id) IN (\
               SELECT source_path, source_etag, row_number, kept_batch_id FROM {} \
               WHERE batch_id = {})",
            warehouse.table(REPLAYED),
            sql::id(self.batch.0),
        );
        failpoint::reach("clean.before");
        self.delete(self.kept.table(), &listed).await?;
        failpoint::reach("clean.after");
        ledger.cleaned(self.batch).await?;
        Ok(End::Loaded)
    }

    /// Until there are none.
    async fn delete(&self, table: &str, condition: &str) -> Result<(), WarehouseError> {
        let Replayer {
            warehouse,
            ledger,
            timeout,
            ..
        } = self.replayer;
        while warehouse.has_rows(table, condition).await? {
            let delete = warehouse.delete(table, condition, *timeout);
            ledger.leased(self.batch, delete).await?;
        }
        Ok(())
    }

    async fn execute(&self, statement: &Statement, attempt: u32) -> Result<(), WarehouseError> {
        let Replayer {
            warehouse,
            ledger,
            timeout,
            ..
        } = self.replayer;
        // The stem by which a kill finds it, and what makes it unique.
        let query_id = format!("{}-{attempt}-{}", self.batch, self.replayer.env.new_id());
        let execute = warehouse.execute(statement, Some(&query_id), *timeout);
        ledger.leased(self.batch, execute).await
    }
}

impl Steps for Moving<'_> {
    type Error = WarehouseError;

    fn reach(&mut self, action: Action, moment: Moment) {
        failpoint::reach(&moment.of(action));
    }

    /// Objects in others' hands are left out.
    async fn look_up(&mut self) -> Result<Vec<Standing>, WarehouseError> {
        let standings = self.replayer.standings(&self.objects, None).await?;
        let mut of_each = standings.iter();
        self.objects
            .retain(|_| of_each.next() == Some(&Standing::Free));
        Ok(standings)
    }

    async fn recover(&mut self, _: BatchId) -> Result<(), WarehouseError> {
        unreachable!("no standing of kept lines is one that has lapsed")
    }

    async fn seal(&mut self) -> Result<(), WarehouseError> {
        let claims: Vec<_> = self.objects.iter().map(Claim::of).collect();
        let ledger = &self.replayer.ledger;
        ledger.seal(self.batch, &claims, self.form).await
    }

    async fn verify(&mut self) -> Result<Vec<Standing>, WarehouseError> {
        let standings = self.replayer.standings(&self.objects, Some(self.batch));
        standings.await
    }

    async fn insert(&mut self, attempt: u32) -> Result<Inserted, WarehouseError> {
        let Replayer {
            ledger, planner, ..
        } = self.replayer;
        let begun = Instant::now();
        let guard = ledger.guard(self.batch, attempt);
        let objects = self.listed();
        let freeze = self
            .lines
            .map(|lines| planner.freeze(self.batch, &objects, lines, &guard));
        let inserts = planner.inserts(self.batch, &objects, self.form, &guard);
        for statement in freeze.iter().chain(&inserts) {
            match self.execute(statement, attempt).await {
                Err(error) if verdict(&error) == Verdict::Fenced => return Ok(Inserted::Fenced),
                other => other?,
            }
            failpoint::reach("replay.statement");
        }
        // A server that was killed can have noted a token without the rows.
        let is_recovery = self.lines.is_none();
        if !self
            .are_tables_complete((!is_recovery).then_some(begun))
            .await?
        {
            self.torn = true;
            return Ok(Inserted::ObjectFault);
        }
        Ok(Inserted::Committed)
    }

    async fn kill(&mut self) -> Result<(), WarehouseError> {
        let warehouse = &self.replayer.warehouse;
        warehouse.kill(&self.batch.to_string()).await
    }

    async fn fence(&mut self, attempt: u32) -> Result<Fence, WarehouseError> {
        self.replayer.ledger.fence(self.batch, attempt).await
    }

    async fn has_rows(&mut self) -> Result<bool, WarehouseError> {
        self.rows().any().await
    }

    async fn is_complete(&mut self) -> Result<bool, WarehouseError> {
        self.are_tables_complete(None).await
    }

    /// Deletes the rows of a batch that can be completed by nobody.
    async fn take_back(&mut self) -> Result<TakenBack, WarehouseError> {
        let Replayer {
            ledger, planner, ..
        } = self.replayer;
        // No record can come any more; one that came before stands.
        if ledger.sealed(self.batch).await?.is_none() {
            return Ok(TakenBack::Ended);
        }
        self.left_in_views = self.rows().left_in_views().await?;
        let of_batch = format!("batch_id = {}", sql::id(self.batch.0));
        for target in Target::all(&planner.catalog) {
            self.delete(target.table(), &of_batch).await?;
        }
        Ok(TakenBack::Deleted)
    }

    async fn release(&mut self) -> Result<(), WarehouseError> {
        let mut reason = "a replay that moved nothing".to_owned();
        if let Some(left) = &self.left_in_views {
            reason += &format!("; {left}");
        }
        self.replayer.ledger.release(self.batch, &reason).await
    }

    async fn record(&mut self, attempt: u32) -> Result<Recorded, WarehouseError> {
        let mut moved: BTreeMap<String, u64> = BTreeMap::new();
        for Counted { kind, rows, .. } in self.rows().contents().await?.counted {
            *moved.entry(kind).or_default() += rows;
        }
        let (objects, rows) = (self.objects.len(), moved.values().sum());
        let ledger = &self.replayer.ledger;
        match ledger.record(self.batch, attempt, objects, rows, "").await {
            Err(error) if verdict(&error) == Verdict::Fenced => return Ok(Recorded::Fenced),
            other => other?,
        }
        self.moved = moved;
        Ok(Recorded::Written)
    }
}
