//! The ledger of a worker: each operation with the requests and the results that
//! `sluice::ledger::Ledger` has.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice::Env;
use sluice::batch::{BatchId, Layout, StatementShape};
use sluice::clickhouse::WarehouseError;
use sluice::clickhouse::replicas::Barrier;
use sluice::ledger::drive::{Fence, RunId};
use sluice::ledger::protocol::ClaimStatus;
use sluice::ledger::{
    BATCHES_TABLE, Claim, Claims, Failure, Manifest, ManifestEntry, OBJECTS_TABLE, Permit,
    Replacement, Stopped,
};
use sluice::load::ports::LedgerStore;
use sluice::object::{ObjectId, ObjectRef};

use super::connection::{Connection, Mark};
use super::ledger_rows::{ClaimRow, Event, EventRow, recorded};
use super::log::{Scope, Seq, View};
use super::plan::Guard;
use super::state::{Answer, State, recorded_failure};

/// The ledger as a worker reaches it through one of the servers.
pub struct SimLedger {
    pub(super) connection: Connection,
    pub(super) env: Env,
    pub(super) lease: Duration,
    /// How long a statement of the worker can run.
    pub(super) statement: Duration,
}

/// A look-up of claims.
#[derive(Clone)]
pub(super) struct Lookup {
    pub(super) objects: Vec<ObjectId>,
    pub(super) excluding: Option<BatchId>,
    pub(super) superseded: Vec<(ObjectId, BatchId)>,
}

impl Lookup {
    fn is_superseded(&self, object: ObjectId, batch: BatchId) -> bool {
        self.superseded.contains(&(object, batch))
    }

    /// Returns the number of objects that the batch claims, and of the claims of others.
    fn counts(&self, state: &State, view: View) -> (u64, u64) {
        let (mut own, mut others) = (0, 0);
        for object in &self.objects {
            let claims = state.ledger.claims_on(*object, &state.log, view);
            let batches = claims.map(|claim| claim.row.batch);
            let mut is_own = false;
            for batch in batches.filter(|batch| !self.is_superseded(*object, *batch)) {
                let of_own = Some(batch) == self.excluding;
                is_own |= of_own;
                others += u64::from(!of_own);
            }
            own += u64::from(is_own);
        }
        (own, others)
    }

    fn statuses(&self, state: &State, view: View) -> Vec<ClaimStatus> {
        let State { ledger, log, .. } = state;
        let status = |object: &ObjectId| {
            let is_excluded = |batch: BatchId| {
                Some(batch) == self.excluding || self.is_superseded(*object, batch)
            };
            ledger.claim_status(*object, is_excluded, log, view)
        };
        self.objects.iter().map(status).collect()
    }
}

impl SimLedger {
    pub(super) fn worker(&self) -> Arc<str> {
        self.connection.client.name.clone()
    }

    pub(super) fn row(&self, event: Event) -> EventRow {
        EventRow {
            event,
            attempt: 0,
            lease_seconds: 0,
            statement_seconds: 0,
            worker: self.worker(),
            mark: None,
            run: None,
        }
    }

    /// Returns the row that gives this worker a lease from now on.
    pub(super) fn lease_row(&self) -> EventRow {
        EventRow {
            lease_seconds: whole_seconds(self.lease),
            statement_seconds: whole_seconds(self.statement),
            ..self.row(Event::Leased)
        }
    }

    pub(super) async fn write(
        &self,
        what: &'static str,
        batch: BatchId,
        rows: Vec<EventRow>,
    ) -> Answer<Option<Mark>> {
        let write = move |state: &mut State, view| Ok(state.write_events(view, batch, rows));
        let seq = self.connection.request(what, write).await?;
        Ok(self.mark(seq))
    }

    /// Returns the mark of a row; a single server needs none.
    fn mark(&self, seq: Seq) -> Option<Mark> {
        let is_replicated = self.connection.is_replicated();
        is_replicated.then_some(Mark::At(seq))
    }

    /// Writes a barrier, unless there is a single server.
    pub(super) async fn write_barrier(&self) -> Answer<Option<Seq>> {
        if !self.connection.is_replicated() {
            return Ok(None);
        }
        let write = |state: &mut State, view| Ok(state.write_barrier(view));
        self.connection.request("barrier", write).await.map(Some)
    }

    /// Returns whether events meet a condition, read after a barrier.
    async fn has_event(
        &self,
        what: &'static str,
        barrier: Option<Seq>,
        is_meant: impl Fn(&State, View) -> bool + Send + 'static,
    ) -> Answer<bool> {
        let read = move |state: &mut State, view| Ok(is_meant(state, view));
        let mark = barrier.map(Mark::At);
        let read = self.connection.read_after(what, mark, Scope::Events, read);
        read.await
    }

    /// Returns what a look-up must show: the claim of the batch that it excludes, on replicas.
    pub(super) fn mark_of_claim(&self, excluding: Option<BatchId>) -> Option<Mark> {
        let claimed = excluding.filter(|_| self.connection.is_replicated());
        claimed.map(Mark::Claim)
    }

    /// Returns the number of claims on these objects other than those of the excluded batch.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Hidden`] if the ledger does not show all claims of that batch.
    pub(super) async fn claims_of_others(&self, lookup: &Lookup) -> Answer<u64> {
        let mark = self.mark_of_claim(lookup.excluding);
        let counted = lookup.clone();
        let count = move |state: &mut State, view| Ok(counted.counts(state, view));
        let counts = self
            .connection
            .read_after("look up", mark, Scope::Claims, count);
        let (own, others) = counts.await?;
        let written = lookup.objects.len() as u64;
        if lookup.excluding.is_some() && own < written {
            return Err(WarehouseError::Hidden {
                table: OBJECTS_TABLE,
                shown: own,
                written,
            });
        }
        Ok(others)
    }

    async fn keep_lease(&self, batch: BatchId) -> Infallible {
        let mut renewals = tokio::time::interval(self.lease / 3);
        renewals.tick().await;
        loop {
            renewals.tick().await;
            // A renewal that fails is repeated after the next third.
            drop(self.renew(batch).await);
        }
    }
}

impl LedgerStore for SimLedger {
    fn lease(&self) -> Duration {
        self.lease
    }

    async fn claim_statuses(
        &self,
        objects: &[ObjectId],
        excluding: Option<BatchId>,
        superseded: &[(ObjectId, BatchId)],
    ) -> Answer<Vec<ClaimStatus>> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let lookup = Lookup {
            objects: objects.to_vec(),
            excluding,
            superseded: superseded.to_vec(),
        };
        if self.claims_of_others(&lookup).await? == 0 {
            return Ok(vec![ClaimStatus::Free; objects.len()]);
        }
        let mark = self.mark_of_claim(excluding);
        let read = move |state: &mut State, view| {
            let statuses = lookup.statuses(state, view);
            let is_free = |status: &&ClaimStatus| **status == ClaimStatus::Free;
            let free = statuses.iter().filter(is_free).count();
            state.note(format_args!("{free} of {} are free", statuses.len()));
            Ok(statuses)
        };
        let read = self
            .connection
            .read_after("claims", mark, Scope::Claims, read);
        read.await
    }

    async fn claim(
        &self,
        batch: BatchId,
        claims: &[Claim<'_>],
        shape: StatementShape,
        layout: &Layout,
    ) -> Answer<()> {
        let row = |claim: &Claim<'_>| ClaimRow {
            batch,
            object: recorded(claim.object),
            shape,
            layout: layout.clone(),
            supersedes: claim.supersedes.to_vec(),
            lease_seconds: whole_seconds(self.lease),
            statement_seconds: whole_seconds(self.statement),
            worker: self.worker(),
        };
        let rows: Vec<ClaimRow> = claims.iter().map(row).collect();
        let write = move |state: &mut State, view| {
            state.write_claims(view, rows);
            Ok(())
        };
        self.connection.request("claim", write).await
    }

    async fn renew(&self, batch: BatchId) -> Answer<()> {
        let rows = vec![self.lease_row()];
        self.write("renew", batch, rows).await.map(drop)
    }

    async fn leased<T: Send>(&self, batch: BatchId, work: impl Future<Output = T> + Send) -> T {
        tokio::select! {
            biased;
            done = work => done,
            never = self.keep_lease(batch) => match never {},
        }
    }

    async fn permit(&self, batch: BatchId, attempt: u32) -> Answer<Permit> {
        if !self.connection.is_replicated() {
            return Ok(Permit::unlimited(batch, attempt));
        }
        self.permit_until_lease_ends(batch, attempt).await
    }

    fn guard(&self, permit: &Permit) -> String {
        Guard::of(permit).text()
    }

    async fn barrier(&self) -> Answer<Option<Barrier>> {
        let barrier = self.write_barrier().await?;
        Ok(barrier.map(|Seq(position)| Barrier {
            table: BATCHES_TABLE,
            condition: position.to_string(),
        }))
    }

    async fn fence(&self, batch: BatchId, attempt: u32, run: RunId) -> Answer<Fence> {
        let fence = EventRow {
            attempt,
            run: Some(run),
            ..self.row(Event::Fenced)
        };
        let rows = vec![self.lease_row(), fence];
        let mark = self.write("fence", batch, rows).await?;
        let read = move |state: &mut State, view| {
            let State { ledger, log, .. } = state;
            Ok(ledger.fenced_by(batch, attempt, log, view))
        };
        let fences = self
            .connection
            .read_after("fences", mark, Scope::Events, read)
            .await?;
        if fences.is_empty() {
            return Err(WarehouseError::Hidden {
                table: BATCHES_TABLE,
                shown: 0,
                written: 1,
            });
        }
        let is_own = fences.iter().all(|by| *by == Some(run));
        Ok(if is_own {
            Fence::Written
        } else {
            Fence::TakenOver
        })
    }

    async fn stop(&self, batch: BatchId) -> Answer<Stopped> {
        if self.connection.is_replicated() {
            return self.stop_everywhere(batch).await;
        }
        self.connection.kill(batch).await?;
        Ok(Stopped::Yes)
    }

    async fn is_undisputed(&self, batch: BatchId, run: RunId) -> Answer<bool> {
        let Some(barrier) = self.write_barrier().await? else {
            return Ok(true);
        };
        let by_others = move |state: &State, view| {
            let mut events = state.ledger.events(batch, &state.log, view);
            events.any(|it| it.row.event == Event::Fenced && it.row.run != Some(run))
        };
        let is_disputed = self.has_event("disputed?", Some(barrier), by_others);
        Ok(!is_disputed.await?)
    }

    async fn has_ended(&self, batch: BatchId) -> Answer<bool> {
        let barrier = self.write_barrier().await?;
        let ended = move |state: &State, view| {
            let ended = [Event::Loaded, Event::Released];
            state.ledger.has_event(batch, &ended, &state.log, view)
        };
        self.has_event("ended?", barrier, ended).await
    }

    async fn record(&self, permit: &Permit, _: usize, _: u64, _: &str) -> Answer<()> {
        let (server, guard) = (self.connection.server.clone(), Guard::of(permit));
        let record = EventRow {
            attempt: permit.attempt(),
            ..self.row(Event::Loaded)
        };
        let start = move |state: &mut State, view| state.start_record(&server, view, guard, record);
        self.connection.run_small("record", start).await
    }

    async fn release(&self, batch: BatchId, _: &str) -> Answer<()> {
        let rows = vec![self.row(Event::Released)];
        let write = move |state: &mut State, view| {
            state.check_release(batch);
            state.write_events(view, batch, rows);
            Ok(())
        };
        self.connection.request("release", write).await
    }

    async fn abandon(&self, batch: BatchId) -> Answer<()> {
        let rows = vec![self.row(Event::Leased)];
        self.write("abandon", batch, rows).await.map(drop)
    }

    async fn manifest(&self, batch: BatchId) -> Answer<Option<Manifest>> {
        let mark = self.write_barrier().await?.map(Mark::At);
        let read = move |state: &mut State, view| {
            let State { ledger, log, .. } = state;
            let ended = [Event::Loaded, Event::Released];
            let has_ended = ledger.has_event(batch, &ended, log, view);
            Ok((!has_ended).then(|| ledger.fenced(batch, log, view)))
        };
        let events = self
            .connection
            .read_after("events", mark, Scope::Events, read);
        let Some(fenced) = events.await? else {
            return Ok(None);
        };
        let read = move |state: &mut State, view| {
            let State { ledger, log, .. } = state;
            Ok(ledger.manifest(batch, fenced, log, view))
        };
        self.connection.request("manifest", read).await
    }

    async fn claimed_after(&self, batch: BatchId) -> Answer<u64> {
        let read = move |state: &mut State, view| {
            let State { ledger, log, .. } = state;
            Ok(ledger.claimed_after(batch, log, view))
        };
        self.connection.request("claimed after", read).await
    }

    async fn objects(&self, batch: BatchId) -> Answer<Vec<ManifestEntry>> {
        let read = move |state: &mut State, view| {
            let State { ledger, log, .. } = state;
            Ok(ledger.entries(batch, log, view))
        };
        self.connection.request("objects", read).await
    }

    async fn replacements(&self) -> Answer<Vec<Replacement>> {
        let read = |state: &mut State, view| {
            let found = state.ledger.replacements(&state.log, view).into_iter();
            let replacements = found.map(|(batch, status)| Replacement { batch, status });
            Ok(replacements.collect())
        };
        self.connection.request("replacements", read).await
    }

    async fn cleaned(&self, batch: BatchId) -> Answer<()> {
        let rows = vec![self.row(Event::Cleaned)];
        self.write("cleaned", batch, rows).await.map(drop)
    }

    async fn left_open(&self, since: Duration, limit: usize) -> Answer<Vec<BatchId>> {
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let read = move |state: &mut State, view: View| {
            let claimed_from = view.now.saturating_sub(since);
            let mut found = state.ledger.left_open(claimed_from, &state.log, view);
            found.truncate(limit);
            Ok(found)
        };
        self.connection.request("batches left open", read).await
    }

    async fn loaded_claims(&self, objects: &[ObjectId], before: SystemTime) -> Answer<Claims> {
        if objects.is_empty() {
            return Ok(Claims::new());
        }
        let objects = objects.to_vec();
        let before = before.duration_since(SystemTime::UNIX_EPOCH);
        let before = before.unwrap_or_default().as_millis();
        let read = move |state: &mut State, view| {
            let State { ledger, log, .. } = state;
            let loaded = objects.into_iter().filter_map(|object| {
                let (batches, last) = ledger.loaded_by(object, log, view)?;
                (u128::from(last) < before).then_some((object, batches))
            });
            Ok(loaded.collect())
        };
        self.connection.request("loaded claims", read).await
    }

    async fn latest_loaded(
        &self,
        object: &ObjectRef,
        same_bucket: bool,
        limit: usize,
    ) -> Answer<Vec<ObjectRef>> {
        let object = object.clone();
        let read = move |state: &mut State, view| {
            let State { ledger, log, .. } = state;
            Ok(ledger.latest_loaded(&object, same_bucket, limit, log, view))
        };
        self.connection.request("latest loaded", read).await
    }

    async fn record_failures(&self, failures: &[Failure<'_>]) -> Answer<()> {
        let rows: Vec<_> = failures.iter().map(recorded_failure).collect();
        let write = move |state: &mut State, view| {
            state.write_failures(view, rows);
            Ok(())
        };
        self.connection.request("failures", write).await
    }
}

pub(super) fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
