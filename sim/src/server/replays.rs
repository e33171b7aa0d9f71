//! What a replay of rejects requires of the ledger and of the tables, in addition to what a loader
//! does: each operation with the requests and the results of the real one.

use std::time::Duration;

use sluice::batch::{BatchId, StatementShape};
use sluice::clickhouse::replicas::Barrier;
use sluice::ledger::UnfinishedReplay;
use sluice::ledger::protocol::ClaimStatus;
use sluice::load::ports::Insert;
use sluice::object::ObjectId;
use sluice::rejects::ports::{PreviewRow, ReplayLedger, ReplayTables};
use sluice::rejects::{LineKey, RejectKind, RejectPage, RejectSelector};
use sluice::statements::Statement;

use super::connection::{bounded, mark_of};
use super::ledger::{Lookup, SimLedger};
use super::ledger_rows::{JoinedClaim, LedgerRows, replays};
use super::log::{Log, Scope, View};
use super::plan::{Guard, Plan, Source};
use super::state::{Answer, State};
use super::tables::{SimTables, owned};

impl JoinedClaim {
    /// Returns whether the batch is in progress, or has not been cleaned up: then nobody else may
    /// move rejects of its objects.
    fn keeps_rejects(&self) -> bool {
        let must_be_cleaned = (self.is_replay() || self.replaces) && !self.is_cleaned;
        !self.is_released && (!self.is_loaded || must_be_cleaned)
    }
}

impl LedgerRows {
    /// Returns the claim status of an object for a replay of its rejects.
    fn status_of_rejects(
        &self,
        object: ObjectId,
        excluding: Option<BatchId>,
        log: &Log,
        view: View,
    ) -> ClaimStatus {
        let joined = self.joined(object, log, view);
        let mut others = joined.iter().filter(|it| Some(it.batch) != excluding);
        let busy = others.find(|it| it.keeps_rejects());
        busy.map_or(ClaimStatus::Free, |it| ClaimStatus::Busy {
            batch: it.batch,
            // `unfinished_replays` finds expired leases.
            lease_expired: false,
        })
    }

    /// Returns the replays whose lease has expired, or whose rejects have not been deleted.
    fn unfinished_replays(&self, log: &Log, view: View) -> Vec<UnfinishedReplay> {
        let claims = self.all_claims(log, view);
        let claims = claims.filter(|claim| replays(claim.row.shape.read_by));
        let mut joined = self.join(claims, log, view);
        joined.retain(|it| match it.is_loaded {
            true => !it.is_released && !it.is_cleaned,
            false => !it.is_released && it.has_lapsed,
        });
        joined.sort_unstable_by_key(|it| it.batch);
        let unfinished = joined.iter().map(|it| UnfinishedReplay {
            batch_id: it.batch.0,
            read_by: it.read_by,
            loaded: it.is_loaded,
        });
        unfinished.collect()
    }
}

impl ReplayLedger for SimLedger {
    async fn claim_statuses_of_rejects(
        &self,
        objects: &[ObjectId],
        excluding: Option<BatchId>,
    ) -> Answer<Vec<ClaimStatus>> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let lookup = Lookup {
            objects: objects.to_vec(),
            excluding,
            superseded: Vec::new(),
        };
        if excluding.is_some() {
            self.claims_of_others(&lookup).await?;
        }
        let read = move |state: &mut State, view| {
            let State { ledger, log, .. } = state;
            let objects = lookup.objects.iter();
            let statuses =
                objects.map(|object| ledger.status_of_rejects(*object, excluding, log, view));
            let statuses: Vec<ClaimStatus> = statuses.collect();
            let is_free = |status: &&ClaimStatus| **status == ClaimStatus::Free;
            let free = statuses.iter().filter(is_free).count();
            state.note(format_args!(
                "the rejects of {free} of {} are free",
                statuses.len()
            ));
            Ok(statuses)
        };
        let (mark, scope) = (self.mark_of_claim(excluding), Scope::Claims);
        let read = self
            .connection
            .read_after("claims on rejects", mark, scope, read);
        read.await
    }

    async fn unfinished_replays(&self) -> Answer<Vec<UnfinishedReplay>> {
        let read = |state: &mut State, view| {
            let State { ledger, log, .. } = state;
            Ok(ledger.unfinished_replays(log, view))
        };
        self.connection.request("unfinished replays", read).await
    }
}

impl ReplayTables for SimTables {
    async fn preview(
        &self,
        page: &RejectPage,
        _: BatchId,
        timeout: Duration,
    ) -> Answer<Vec<PreviewRow>> {
        let (planner, layout) = (self.planner.clone(), self.layout.clone());
        let page = page.clone();
        let read = move |state: &mut State, view| Ok(state.preview(&planner, &layout, &page, view));
        bounded(timeout, self.connection.request("preview", read)).await
    }

    async fn replay_statements(
        &self,
        insert: &Insert<'_>,
        page: Option<&RejectPage>,
    ) -> Answer<Vec<Statement>> {
        let Some(guard) = Guard::parse(insert.guard) else {
            // No server executes it.
            return Ok(vec![Statement::new(insert.guard.to_owned())]);
        };
        let snapshot = page.map(|page| Plan {
            batch: insert.batch,
            guard,
            shape: StatementShape {
                many_blocks: self.planner.needs_many_blocks(insert.objects),
                ..StatementShape::default()
            },
            objects: owned(insert.objects),
            source: Source::Rejects(Box::new(page.clone())),
            keeps_lines: true,
            planner: self.planner.clone(),
            layout: self.layout.clone(),
            only: Some(self.layout.snapshots),
        });
        let inserts = self.plans(insert, guard);
        Ok(self.statements_of(snapshot.into_iter().chain(inserts).collect()))
    }

    async fn repeats_a_replay(&self, batch: BatchId, after: Option<&Barrier>) -> Answer<bool> {
        let scope = Scope::EventsAndSnapshots(self.layout.snapshots);
        let read = move |state: &mut State, view| Ok(state.moved_beside(batch, view).is_some());
        let read = self
            .connection
            .read_after("moved before?", mark_of(after)?, scope, read);
        read.await
    }
}

impl SimTables {
    /// Returns the next page of rejects, as [`Rejects::page`](sluice::rejects::Rejects::page) does.
    /// Of the selector, only the prefix is regarded.
    ///
    /// # Errors
    ///
    /// Fails if the server does not answer, or refuses the query.
    pub async fn reject_page(
        &self,
        kept: RejectKind,
        selector: &RejectSelector,
        after: Option<&LineKey>,
    ) -> Answer<Option<RejectPage>> {
        let (layout, selector, after) = (self.layout.clone(), selector.clone(), after.cloned());
        let read = move |state: &mut State, view| {
            Ok(state.page(&layout, kept, &selector, after.as_ref(), view))
        };
        let timeout = self.planner.options().insert_timeout;
        bounded(timeout, self.connection.request("rejects", read)).await
    }
}
