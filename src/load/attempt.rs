//! Performs the actions of one run of the ledger protocol.

mod diagnose;
mod inspect;
mod prove;
mod recover;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, info, warn};

use super::breaker::{ProbeGuard, Scope};
use super::cause::{BatchFailure, FailureCause};
use super::ports::{BatchTables, Insert, LedgerStore, ObjectStore, Ports, Rows};
use super::progress::Proof;
use super::stream::Framing;
use super::views::Successes;
use super::waiting::Waiting;
use super::{Cancelled, LoadParts, Loader, Outcome, Outcomes, PendingObject, RetryPolicy, stream};
use crate::batch::{BatchId, Layout, ReadBy, StatementShape};
use crate::clickhouse::WarehouseError;
use crate::clickhouse::batch_rows::{Counted, Rejected, tables_of};
use crate::clickhouse::error_class::{ErrorClass, classify};
use crate::ledger::drive::{Fence, Inserted, Moment, Recorded, RolledBack, RunId, Steps, drive};
use crate::ledger::protocol::{Action, ClaimStatus, End, Kill, Run};
use crate::ledger::{Claim, until_stopped};
use crate::object::ObjectRef;
use crate::statements::RejectKind;
use crate::statements::select::{BLANK, Target};
use crate::telemetry::activity::{BatchInfo, InFlight};
use crate::telemetry::{metrics, trace};
use crate::util::failpoint;

/// The run of one batch, with what it has found so far.
pub(super) struct BatchRun<'a, P: Ports> {
    pub(super) loader: &'a Loader<P>,
    pub(super) cancel: &'a CancellationToken,
    pub(super) batch: BatchId,
    id: RunId,
    pub(super) in_flight: InFlight,
    pub(super) started: Instant,
    /// The objects, sorted by key. Once they are claimed, this is the manifest.
    pub(super) items: Vec<PendingObject>,
    /// Why the insert was given up.
    pub(super) failure: Option<BatchFailure>,
    /// The number of inserts that this run has sent.
    inserts: u32,
    /// The number of inserts that have failed for a reason that may lie in the objects.
    pub(super) retries: u32,
    pub(super) retry_policy: RetryPolicy,
    /// How long the insert has been waiting for other inserts or for replicas.
    waiting: Waiting,
    /// Present while the breaker waits for this insert.
    pub(super) halted: Option<ProbeGuard>,
    /// The number of inserts that had succeeded when this batch began, or last failed for an
    /// unknown reason.
    pub(super) successes_before: u64,
    /// How often the batch has failed for an unknown reason while others were loaded.
    pub(super) failures_alone: u32,
    /// The rows that the insert has written, as counted.
    pub(super) read: Vec<Counted>,
    pub(super) is_claimed: bool,
    /// Whether a statement of the batch may be running although nobody waits for it.
    is_in_doubt: bool,
    /// When the tables may begin to forget the token of the batch because of its age.
    token_expires: Option<Instant>,
    /// Part of the manifest: a retry must produce the same statements and the same blocks.
    pub(super) shape: StatementShape,
    /// The format and the structure of the objects, also a part of the manifest.
    pub(super) layout: Arc<Layout>,
    /// The content that was read is not what was requested: the batch is rolled back even if it is
    /// complete.
    pub(super) rollback_only: bool,
    /// Describes the rows that a rollback has not reached.
    left_in_views: Option<String>,
    /// The outcomes of objects that are loaded already or in progress elsewhere.
    pub(super) set_aside: Outcomes,
    /// The span of the current step.
    step: Span,
    /// What had passed through users' views when the load began.
    pub(super) passed_before: Successes,
}

/// How long the server has to report that a statement timed out.
pub(crate) const ANSWER_AFTER_TIMEOUT: Duration = Duration::from_secs(15);

/// The most bytes that an object has, as it is stored, if it is empty when decompressed.
const LARGEST_EMPTY: u64 = 1024;

impl<'a, P: Ports> BatchRun<'a, P> {
    /// Creates a run that has no results yet.
    pub(super) fn new(
        loader: &'a Loader<P>,
        cancel: &'a CancellationToken,
        batch: BatchId,
        items: Vec<PendingObject>,
        shape: StatementShape,
        layout: Arc<Layout>,
    ) -> Self {
        Self {
            loader,
            cancel,
            batch,
            id: RunId(loader.parts.env.new_id()),
            in_flight: loader
                .parts
                .activity
                .begin(batch_info(batch, &items, shape.read_by)),
            started: Instant::now(),
            items,
            failure: None,
            inserts: 0,
            retries: 0,
            retry_policy: RetryPolicy::default(),
            waiting: Waiting::default(),
            halted: None,
            successes_before: loader.state.successes.load(Ordering::Relaxed),
            failures_alone: 0,
            read: Vec::new(),
            is_claimed: false,
            is_in_doubt: false,
            token_expires: None,
            shape,
            layout,
            rollback_only: false,
            left_in_views: None,
            set_aside: Outcomes::new(),
            step: Span::none(),
            passed_before: loader.state.views.successes(),
        }
    }

    /// Performs a run to its end. Objects that turn out to be loaded, or in progress elsewhere,
    /// move from the list to `set_aside`.
    pub(super) async fn run(&mut self, run: Run) -> Result<End, Cancelled> {
        let end = drive(run, self).await?;
        metrics::batch_ended(end.label());
        Ok(end)
    }

    /// Ends the lease of the batch, whose objects stay claimed, so that the worker that recovers it
    /// need not wait for the lease to expire.
    pub(super) async fn abandon(&self) {
        metrics::batch_ended("abandoned");
        if !self.is_claimed {
            return;
        }
        let batch = self.batch;
        let work = async {
            let loader = self.loader;
            loader.parts.tables.kill(batch).await?;
            loader.parts.ledger.abandon(batch).await
        };
        match tokio::time::timeout(Duration::from_secs(2), work).await {
            Ok(Ok(())) => info!("insert cancelled for shutdown; another worker will resume it"),
            _ => warn!(
                "failed to abandon the batch; it will be recovered once its lease has expired"
            ),
        }
    }

    fn objects(&self) -> Vec<&ObjectRef> {
        self.items.iter().map(|item| &item.object).collect()
    }

    async fn ledger_call<T, F>(&self, mut work: impl FnMut() -> F) -> Result<T, Cancelled>
    where
        F: Future<Output = Result<T, WarehouseError>>,
    {
        let timed = || {
            let work = work();
            async {
                let begun = Instant::now();
                let done = work.await;
                metrics::ledger_duration(self.in_flight.at(), begun.elapsed());
                done
            }
        };
        self.loader.retry_until_ok(self.cancel, timed).await
    }

    fn claims(&self) -> Vec<Claim<'_>> {
        self.items.iter().map(PendingObject::claim).collect()
    }

    async fn claim_statuses(
        &self,
        excluding: Option<BatchId>,
    ) -> Result<Vec<ClaimStatus>, Cancelled> {
        let claims = self.claims();
        let ids: Vec<_> = claims.iter().map(|claim| claim.object.id()).collect();
        let superseded: Vec<_> = claims
            .iter()
            .flat_map(|claim| {
                claim
                    .supersedes
                    .iter()
                    .map(|batch| (claim.object.id(), *batch))
            })
            .collect();
        self.ledger_call(|| {
            self.loader
                .parts
                .ledger
                .claim_statuses(&ids, excluding, &superseded)
        })
        .await
    }

    /// Deletes the rows that the batch supersedes, once it is loaded.
    pub(super) async fn clean(&self) -> Result<(), Cancelled> {
        if self.replaces() {
            self.loader.clean(self.batch, self.cancel).await?;
        }
        Ok(())
    }

    fn replaces(&self) -> bool {
        let claims = self.claims();
        claims.iter().any(|claim| !claim.supersedes.is_empty())
    }

    /// Keeps the objects that are free, and sets the others aside. If a batch must be recovered
    /// first, does nothing: then all objects are looked up again.
    fn keep_free(&mut self, claim_statuses: &[ClaimStatus]) {
        if claim_statuses.iter().any(ClaimStatus::has_expired_lease) {
            return;
        }
        let items = std::mem::take(&mut self.items);
        for (item, status) in items.into_iter().zip(claim_statuses) {
            match status {
                ClaimStatus::Free => self.items.push(item),
                ClaimStatus::Loaded => self.set_aside.push((item.announced, Outcome::Duplicate)),
                ClaimStatus::Busy { .. } => self.set_aside.push((item.announced, Outcome::Busy)),
            }
        }
    }

    async fn insert_as(&mut self, attempt: u32, query_id: &str) -> Result<Inserted, Cancelled> {
        if let Some(fault) = self.prove().await? {
            return Ok(fault);
        }
        let is_retry = attempt > 1 || self.inserts > 0;
        if is_retry && self.is_overtaken().await? {
            return Ok(self.forgotten());
        }
        let loader = self.loader;
        let begun = Instant::now();
        let outcome = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(Cancelled),
            outcome = self.admitted(is_retry, attempt, query_id) => outcome,
        };
        let Some(outcome) = outcome else {
            return Ok(self.forgotten());
        };
        self.inserts = self.inserts.saturating_add(1);
        let Err(error) = outcome else {
            self.answered();
            return self.after_success(is_retry, begun).await;
        };
        // Only ClickHouse's own error shows that the statement has ended.
        self.is_in_doubt |= error.code().is_none();
        let waited = loader.has_waited(&mut self.waiting, &error, self.cancel);
        if waited.await? {
            return Ok(Inserted::Unknown);
        }
        match self.diagnose(&error).await? {
            ErrorClass::Fenced => {
                self.answered();
                Ok(Inserted::Fenced)
            }
            fault @ (ErrorClass::ObjectFault
            | ErrorClass::Denied
            | ErrorClass::Stream
            | ErrorClass::Changed) => {
                let wrong = self.wrong_file(fault, &error).await;
                let cause = |error| wrong.unwrap_or(FailureCause::Answer(error));
                Ok(self.at_fault(&error, fault, cause))
            }
            ErrorClass::View => self.view_failed(&error).await,
            ErrorClass::TooLarge => self.too_large(&error).await,
            ErrorClass::Halt | ErrorClass::Wait => {
                self.halt(&error);
                Ok(Inserted::Unknown)
            }
            class @ (ErrorClass::Retry | ErrorClass::Overload) => {
                self.unexplained(class, &error).await
            }
        }
    }

    /// Checks the result of an insert that succeeded. The insert counts as committed only if the
    /// tables are complete and every object was read.
    async fn after_success(
        &mut self,
        is_retry: bool,
        begun: Instant,
    ) -> Result<Inserted, Cancelled> {
        let since = (!is_retry).then_some(begun);
        if !self.are_tables_complete(since).await? {
            return Ok(self.row_count_mismatch());
        }
        let mut fault = self.unread().await?.or_else(|| self.doubtful());
        if fault.is_none() {
            fault = self.misnamed().await?;
        }
        if fault.is_none() {
            fault = self.all_rejected().await?;
        }
        if fault.is_none() {
            fault = self.too_many_rejected();
        }
        let Some(fault) = fault else {
            self.loader.state.successes.fetch_add(1, Ordering::Relaxed);
            let kinds: Vec<&str> = self.read.iter().map(|it| it.kind.as_str()).collect();
            let catalog = self.loader.planner().catalog();
            self.loader
                .state
                .views
                .succeeded(&tables_of(catalog, &kinds));
            return Ok(Inserted::Committed);
        };
        self.failure = Some(fault);
        self.rollback_only = true;
        Ok(Inserted::ObjectFault)
    }

    /// Rolls the batch back, so that it is loaded again under another token.
    ///
    /// A server that is killed can have stored a token without the rows that belong to it; the
    /// retry then drops rows that are in no table. Or the token was not stored, or was forgotten,
    /// and the rows are duplicated. Or something on the server has kept rows out of a table.
    fn row_count_mismatch(&mut self) -> Inserted {
        warn!(
            "{}; rolling the batch back and reloading it",
            FailureCause::RowCountMismatch
        );
        self.failure = Some(BatchFailure::new(
            ErrorClass::Changed,
            FailureCause::RowCountMismatch,
        ));
        self.rollback_only = true;
        Inserted::ObjectFault
    }

    /// Returns whether the tables may have forgotten the token because of the age of the batch.
    fn has_expired_token(&self) -> bool {
        let expires = self.token_expires;
        expires.is_some_and(|expires| Instant::now() >= expires)
    }

    /// Returns whether the tables may have forgotten the tokens of the first blocks, since so much
    /// was inserted after them. Only for many blocks: if a batch of one block is there twice, its
    /// counts show it.
    async fn is_overtaken(&self) -> Result<bool, Cancelled> {
        if !self.shape.many_blocks {
            return Ok(false);
        }
        let later = self
            .ledger_call(|| self.loader.parts.ledger.claimed_after(self.batch))
            .await?;
        Ok(later > self.loader.config.max_later_batches)
    }

    /// Ends the attempts of this batch, whose insert must not be repeated. If it is not complete, it
    /// is rolled back, and loaded again under another token.
    fn forgotten(&mut self) -> Inserted {
        warn!("{}; reloading its objects", FailureCause::Forgotten);
        self.failure = Some(BatchFailure::new(
            ErrorClass::Changed,
            FailureCause::Forgotten,
        ));
        // Whether ClickHouse has read such an object in part is known only after a response.
        let is_doubtful = |item: &PendingObject| matches!(item.proof, Proof::Doubtful(_));
        self.rollback_only |= self.items.iter().any(is_doubtful);
        Inserted::ObjectFault
    }

    /// Pauses intake. This insert is the probe until it succeeds or is given up.
    fn halt(&mut self, error: &WarehouseError) {
        let loader = self.loader;
        self.halted
            .get_or_insert_with(|| ProbeGuard::new(&loader.parts.breaker));
        metrics::clickhouse_error(error.code(), classify(error));
        loader.halt(Scope::Inserts, error);
    }

    /// Closes the breaker, since the server executes inserts.
    fn answered(&mut self) {
        self.loader.parts.breaker.succeeded(Scope::Inserts);
        self.halted = None;
    }

    /// Runs the insert as soon as the breaker admits it, which can take days. Returns `None` if it
    /// is a retry and the token may have expired by then.
    async fn admitted(
        &self,
        is_retry: bool,
        attempt: u32,
        query_id: &str,
    ) -> Option<Result<(), WarehouseError>> {
        let loader = self.loader;
        let leased = loader.parts.ledger.leased(self.batch, async {
            loader.parts.breaker.admit(Scope::Inserts).await;
            if is_retry && self.has_expired_token() {
                return None;
            }
            let begun = Instant::now();
            let done = self.execute(attempt, query_id).await;
            metrics::insert_duration(begun.elapsed());
            Some(done)
        });
        leased.await
    }

    async fn execute(&self, attempt: u32, query_id: &str) -> Result<(), WarehouseError> {
        let LoadParts {
            ledger,
            tables,
            store,
            ..
        } = &self.loader.parts;
        // The server's own limit is shorter, so that its response shows that the statement has
        // ended.
        let timeout = self.loader.config.insert_timeout + ANSWER_AFTER_TIMEOUT;
        let objects = self.objects();
        let statements = async || {
            let permit = ledger.permit(self.batch, attempt).await?;
            let insert = Insert {
                batch: self.batch,
                objects: &objects,
                shape: self.shape,
                layout: &self.layout,
                guard: &ledger.guard(&permit),
            };
            Ok::<_, WarehouseError>((tables.statements(&insert).await?, permit))
        };
        let (mut permitted, mut permit) = statements().await?;
        for index in 0..permitted.len() {
            if !permit.is_valid() {
                (permitted, permit) = statements().await?;
            }
            let statement = &permitted[index];
            let query_id = match index {
                0 => query_id.to_owned(),
                _ => format!("{query_id}-{index}"),
            };
            let span = trace::statement(&query_id);
            if self.shape.read_by == ReadBy::Stream {
                if self.has_nothing_to_send(&objects).await? {
                    continue;
                }
                let body = stream::body(store, &objects, self.framing());
                let stream = tables.stream(statement, body, &query_id, timeout);
                stream.instrument(span).await?;
            } else {
                let execute = tables.execute(statement, &query_id, timeout);
                execute.instrument(span).await?;
            }
        }
        Ok(())
    }

    /// Returns whether the objects are streamed verbatim, and are empty: ClickHouse refuses an empty
    /// body of most formats.
    async fn has_nothing_to_send(&self, objects: &[&ObjectRef]) -> Result<bool, WarehouseError> {
        if self.framing() != Framing::Verbatim {
            return Ok(false);
        }
        let store = &self.loader.parts.store;
        for object in objects {
            let may_be_empty = object.size.is_none_or(|size| size <= LARGEST_EMPTY);
            if !may_be_empty || !store.is_empty(object, self.framing().plain()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn framing(&self) -> Framing {
        if self.layout.is_json_lines() {
            Framing::Lines
        } else {
            Framing::Verbatim
        }
    }

    /// Stops the statements of the batch on every server.
    async fn stop(&self) -> Result<(), Cancelled> {
        let ledger = &self.loader.parts.ledger;
        let stop = until_stopped(|| self.ledger_call(|| ledger.stop(self.batch)));
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Cancelled),
            stopped = ledger.leased(self.batch, stop) => stopped,
        }
    }

    /// Stores the counts of the batch, and returns whether the tables have these rows. `since` is
    /// that of [`BatchTables::are_complete`].
    async fn are_tables_complete(&mut self, since: Option<Instant>) -> Result<bool, Cancelled> {
        let LoadParts { ledger, tables, .. } = &self.loader.parts;
        let (batch, many_blocks) = (self.batch, self.shape.many_blocks);
        let (contents, are_complete) = self
            .ledger_call(|| async {
                let mut contents = tables.contents(batch, None).await?;
                let is_only_attempt = since.is_some() && !many_blocks;
                if !(is_only_attempt && contents.are_proof())
                    && let Some(barrier) = ledger.barrier().await?
                {
                    contents = tables.contents(batch, Some(&barrier)).await?;
                }
                let complete = tables.are_complete(batch, &contents, many_blocks, since);
                let are_complete = complete.await?;
                Ok((contents, are_complete))
            })
            .await?;
        self.read = contents.counted;
        Ok(are_complete)
    }

    /// Counts the rejected lines for the metrics. A failure is not retried.
    async fn count_rejected(&self) {
        match self.loader.parts.tables.rejected(self.batch).await {
            Ok(reasons) => {
                for Rejected { reason, lines } in reasons {
                    metrics::lines_rejected(&reason, lines);
                }
            }
            Err(error) => debug!(%error, "failed to count rejected lines"),
        }
    }

    /// Looks for columns without any value in the first rows of each event type.
    async fn look_for_empty_columns(&self, rows: &BTreeMap<&str, u64>) {
        let Loader { parts, state, .. } = self.loader;
        let catalog = parts.tables.planner().catalog();
        let look = async {
            for event_type in rows.keys().filter_map(|kind| catalog.get(kind)) {
                let columns = &state.empty_columns;
                let look = columns.look_at_batch(&parts.tables, event_type, self.batch);
                look.await;
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => {}
            () = look => {}
        }
    }
}

impl<P: Ports> Steps for BatchRun<'_, P> {
    type Error = Cancelled;

    fn reach(&mut self, action: Action, moment: Moment) {
        match moment {
            Moment::Before => {
                debug!(?action, "step");
                self.in_flight.step(action.name());
                self.step = step_of(action);
                failpoint::reach(&moment.of(action));
            }
            Moment::After => {
                failpoint::reach(&moment.of(action));
                self.step = Span::none();
            }
        }
    }

    async fn look_up(&mut self) -> Result<Vec<ClaimStatus>, Cancelled> {
        let claim_statuses = self.claim_statuses(None).await?;
        self.keep_free(&claim_statuses);
        Ok(claim_statuses)
    }

    async fn recover(&mut self, batch: BatchId) -> Result<(), Cancelled> {
        let recover = self.loader.recover(batch, self.cancel);
        recover.instrument(trace::recover(batch)).await
    }

    async fn claim(&mut self) -> Result<(), Cancelled> {
        self.is_claimed = true;
        self.token_expires = self.loader.token_expires(Duration::ZERO);
        let planner = self.loader.planner();
        self.shape = planner.shape(&self.objects(), self.shape, &self.layout);
        let claims = self.claims();
        self.ledger_call(|| {
            self.loader
                .parts
                .ledger
                .claim(self.batch, &claims, self.shape, &self.layout)
        })
        .await
    }

    async fn verify(&mut self) -> Result<Vec<ClaimStatus>, Cancelled> {
        self.claim_statuses(Some(self.batch)).await
    }

    async fn insert(&mut self, attempt: u32) -> Result<Inserted, Cancelled> {
        // A prefix by which a kill finds the statement, and a unique suffix: an old statement, or
        // that of another worker, can still be running.
        let query_id = format!(
            "{}-{attempt}-{}",
            self.batch,
            self.loader.parts.env.new_id()
        );
        let span = trace::insert(attempt, &query_id);
        self.insert_as(attempt, &query_id).instrument(span).await
    }

    async fn kill(&mut self, purpose: Kill) -> Result<(), Cancelled> {
        let LoadParts { ledger, tables, .. } = &self.loader.parts;
        if purpose == Kill::Confirmed {
            // Statements that this worker has seen end need no proof.
            let is_in_doubt = self.is_in_doubt
                || !self
                    .ledger_call(|| ledger.is_undisputed(self.batch, self.id))
                    .await?;
            if is_in_doubt {
                return Box::pin(self.stop()).await;
            }
        }
        self.ledger_call(|| tables.kill(self.batch)).await
    }

    async fn fence(&mut self, attempt: u32) -> Result<Fence, Cancelled> {
        let ledger = &self.loader.parts.ledger;
        self.ledger_call(|| ledger.fence(self.batch, attempt, self.id))
            .await
    }

    async fn has_rows(&mut self) -> Result<bool, Cancelled> {
        let LoadParts { ledger, tables, .. } = &self.loader.parts;
        self.ledger_call(|| async {
            let barrier = ledger.barrier().await?;
            tables.has_any(self.batch, barrier.as_ref()).await
        })
        .await
    }

    /// Returns whether every table has the rows of the batch, so that only the record is missing:
    /// an object can be gone when a complete batch is retried. This can be determined only for
    /// batches of one block, whose counts were written as a whole.
    async fn is_complete(&mut self) -> Result<bool, Cancelled> {
        if self.shape.many_blocks || self.rollback_only {
            return Ok(false);
        }
        let are_complete = self.are_tables_complete(None).await?;
        Ok(are_complete && !self.read.is_empty())
    }

    /// Deletes the rows of a batch that cannot be completed.
    async fn roll_back(&mut self) -> Result<RolledBack, Cancelled> {
        // The batch cannot be recorded any more. If it was recorded before, its rows stay.
        let has_ended = self.ledger_call(|| self.loader.parts.ledger.has_ended(self.batch));
        if has_ended.await? {
            return Ok(RolledBack::Ended);
        }
        warn!("rolling back a batch that cannot be completed");
        let tables = &self.loader.parts.tables;
        self.left_in_views = self
            .ledger_call(|| tables.left_in_views(self.batch))
            .await?;
        if let Some(left) = &self.left_in_views {
            metrics::left_in_views();
            warn!("{left}");
        }
        self.ledger_call(|| self.loader.parts.ledger.renew(self.batch))
            .await?;
        let deletes = async {
            for target in Target::all(tables.planner().catalog()) {
                let rows = Rows::Of(self.batch);
                self.loader.delete(target, rows, self.cancel).await?;
            }
            Ok(RolledBack::Deleted)
        };
        self.loader.parts.ledger.leased(self.batch, deletes).await
    }

    async fn release(&mut self) -> Result<(), Cancelled> {
        let mut reason = match &self.failure {
            Some(why) => why.cause.to_string(),
            None => "another batch claims one of the objects, or nothing was inserted".into(),
        };
        if let Some(left) = &self.left_in_views {
            reason += &format!("; {left}");
        }
        self.ledger_call(|| self.loader.parts.ledger.release(self.batch, &reason))
            .await
    }

    async fn record(&mut self, attempt: u32) -> Result<Recorded, Cancelled> {
        let mut rows: BTreeMap<&str, u64> = BTreeMap::new();
        for row in self.read.iter().filter(|row| row.kind != BLANK) {
            *rows.entry(&row.kind).or_default() += row.rows;
        }
        let total = rows.values().sum();
        let objects = self.items.len();
        let ledger = &self.loader.parts.ledger;
        let waiver = self.waiver();
        let recorded = self
            .ledger_call(|| async {
                let permit = ledger.permit(self.batch, attempt).await?;
                let record = ledger.record(&permit, objects, total, &waiver);
                match record.await {
                    Err(error) if classify(&error) == ErrorClass::Fenced => Ok(false),
                    other => other.map(|()| true),
                }
            })
            .await?;
        if !recorded {
            return Ok(Recorded::Fenced);
        }
        let info = batch_info(self.batch, &self.items, self.shape.read_by);
        let took = self.started.elapsed();
        self.loader.parts.activity.loaded(info, &rows, took);
        for (kind, rows) in &rows {
            metrics::rows_loaded(kind, *rows);
        }
        if rows.contains_key(RejectKind::Rejected.kind()) {
            self.count_rejected().await;
        }
        metrics::object_bytes(info.bytes);
        self.loader
            .state
            .fallbacks
            .loaded(self.shape.read_by, objects);
        info!(
            objects,
            rows = total,
            bytes = info.bytes,
            seconds = took.as_secs_f64(),
            read_by = self.shape.read_by.label(),
            retries = self.inserts.saturating_sub(1),
            rejected = rows_of(&rows, RejectKind::Rejected),
            unmatched = rows_of(&rows, RejectKind::Unmatched),
            rows_by_type = %serde_json::json!(rows),
            "batch loaded"
        );
        self.look_for_empty_columns(&rows).await;
        Ok(Recorded::Written)
    }
}

fn batch_info(id: BatchId, items: &[PendingObject], read_by: ReadBy) -> BatchInfo {
    BatchInfo {
        id,
        objects: items.len(),
        bytes: items.iter().filter_map(|item| item.object.size).sum(),
        read_by,
    }
}

/// Returns the number of rejects of this kind among the rows by kind.
fn rows_of(rows: &BTreeMap<&str, u64>, kept: RejectKind) -> u64 {
    rows.get(kept.kind()).copied().unwrap_or_default()
}

/// Returns the span of a step. An insert has a span of its own.
fn step_of(action: Action) -> Span {
    match action {
        Action::Insert { .. } | Action::Finish(_) => Span::none(),
        _ => trace::step(action.name()),
    }
}
