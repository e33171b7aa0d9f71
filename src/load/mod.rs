//! Loads the objects of a batch: performs what the ledger protocol asks for, and splits what
//! cannot be loaded together.

mod answers;
mod attempt;
mod bounds;
pub mod breaker;
mod cause;
mod delete;
pub mod empty_columns;
pub mod fallback;
pub mod ports;
mod progress;
mod replace;
mod sample;
mod stream;
pub mod tables;
pub mod truncation;
mod views;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{Instrument, warn};

use crate::Env;
use crate::batch::{Batch, BatchId, Fallback, ReadBy, StatementShape, mean_bytes};
use crate::clickhouse::WarehouseError;
use crate::ledger::Failure;
use crate::ledger::protocol::{ClaimStatus, End, Run};
use crate::object::{Compression, ObjectId, ObjectRef};
use crate::s3::{ObjectMeta, StoreError};
use crate::statements::insert::Planner;
use crate::statements::s3_source::{KeyAddressing, addressing};
use crate::telemetry::activity::Activity;
use crate::telemetry::{metrics, trace};
use sluice_core::backoff::Backoff;
pub use sluice_core::outcome::{FailureClass, Outcome, Outcomes};

use crate::clickhouse::error_class::{
    ErrorClass, classify, diagnosis, is_bucket_missing, is_missing, with_advice,
};
use attempt::BatchRun;
use breaker::{Breaker, ProbeGuard, Scope};
use cause::{BatchFailure, FailureCause};
use empty_columns::EmptyColumns;
use fallback::Fallbacks;
use ports::{BatchTables, LedgerStore, ObjectStore, Ports, Production};
use progress::{FailedItem, PendingObject, Progress, WorkUnit};
use views::Views;

/// Loads batches. The daemon knows no more of ClickHouse than this.
pub trait Load: Send + Sync + 'static {
    /// Loads what can be loaded; an outcome for every object. Returns soon after `cancel`.
    fn load(
        &self,
        batch: Batch,
        cancel: CancellationToken,
    ) -> impl Future<Output = Outcomes> + Send;
}

/// [`Load`] by the protocol of the ledger.
pub struct Loader<P: Ports = Production> {
    config: LoadConfig,
    parts: LoadParts<P>,
    state: LoadState,
}

/// How a [`Loader`] loads.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// No answer for longer than this: the insert is killed and replayed.
    pub insert_timeout: Duration,
    /// The pause before a replay, doubled each time.
    pub retry: Backoff,
    /// An object of whose lines a larger part is rejected has failed.
    pub max_rejected_ratio: f64,
    pub fallback: Fallback,
    /// Objects smaller than this on average are streamed, too.
    pub stream_below: u64,
    /// Whether a missing object's message is done with.
    pub acknowledge_missing: bool,
    /// Objects that nobody can prove to be whole, and that are loaded all the same.
    pub accept_unproven: Vec<Compression>,
}

/// What a [`Loader`] works with.
pub struct LoadParts<P: Ports = Production> {
    pub ledger: P::Ledger,
    pub tables: P::Tables,
    pub store: P::Objects,
    pub breaker: Arc<Breaker>,
    /// Told of what is in flight, loaded or failed.
    pub activity: Arc<Activity>,
    pub env: Env,
}

/// What a [`Loader`] has learned so far.
#[derive(Default)]
struct LoadState {
    fallbacks: Fallbacks,
    empty_columns: EmptyColumns,
    /// Inserts that have succeeded.
    successes: AtomicU64,
    views: Views,
    /// Held while rows are deleted, so that this process begins one mutation at a time.
    deletions: tokio::sync::Mutex<()>,
}

/// A batch that fails this often for no known reason is split, if the server does load otherwise.
const MAX_RETRIES: u32 = 5;
const MAX_RETRIES_OF_A_PART: u32 = 1;
/// One object that fails for no known reason is at fault once other loads have succeeded this often
/// between its failures.
const MAX_FAILURES_ALONE: u32 = 2;
/// Where there is nothing to compare it with, it is given up after so many failures.
const MAX_RETRIES_ALONE: u32 = 40;
/// Loaded objects that are read again to find out whether ClickHouse may read at all.
const KNOWN_GOOD_SAMPLES: usize = 5;
/// Another worker's claim on the same objects, met this often, means that they are in good hands.
const MAX_YIELDS: u32 = 5;
/// An object that changes faster than it can be read is left for a later delivery.
const MAX_CHANGES: u32 = 5;

/// For how long a batch is tried.
#[derive(Clone, Copy, Debug)]
struct RetryPolicy {
    /// How many replays show that the objects, together, are not to be loaded.
    max_retries: u32,
    /// Whether an object that fails alone can be tried again after others.
    may_wait: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: MAX_RETRIES,
            may_wait: false,
        }
    }
}

/// How one batch ended.
enum BatchEnd {
    /// Every item has its outcome.
    Settled,
    Yielded(Vec<PendingObject>),
    /// Nothing of it was loaded, and this is why.
    Released {
        items: Vec<PendingObject>,
        why: BatchFailure,
    },
    Abandoned(Vec<PendingObject>),
}

/// The worker shuts down: leave things as they are.
struct Cancelled;

impl<P: Ports> Load for Loader<P> {
    async fn load(&self, batch: Batch, cancel: CancellationToken) -> Outcomes {
        let items = batch.objects.into_iter();
        let items = items.map(|object| PendingObject::new(object, Vec::new()));
        self.load_items(items.collect(), cancel).await
    }
}

/// Looking at the objects as they are now failed.
struct RefreshError {
    items: Vec<PendingObject>,
    cause: FailureCause,
}

impl<P: Ports> Loader<P> {
    /// Returns a loader that has loaded nothing yet.
    pub fn new(config: LoadConfig, parts: LoadParts<P>) -> Self {
        Self {
            config,
            parts,
            state: LoadState::default(),
        }
    }

    /// Returns how long others leave a batch alone after its worker was last heard of.
    pub fn lease(&self) -> Duration {
        self.parts.ledger.lease()
    }

    fn planner(&self) -> &Planner {
        self.parts.tables.planner()
    }

    async fn load_items(&self, items: Vec<PendingObject>, cancel: CancellationToken) -> Outcomes {
        let mut progress = Progress {
            passed_before: self.state.views.successes(),
            ..Progress::default()
        };
        let (mut listed, mut streamed) = (Vec::new(), Vec::new());
        for item in items {
            match (addressing(&item.object.key), self.config.fallback) {
                (_, Fallback::Always) | (KeyAddressing::Unaddressable, Fallback::Auto) => {
                    streamed.push(item)
                }
                (KeyAddressing::Unaddressable, Fallback::Never) => {
                    progress.fail(item, FailureCause::Unnameable);
                }
                (KeyAddressing::Single, _) => {
                    progress.work.push(WorkUnit::new(vec![item], ReadBy::S3))
                }
                (KeyAddressing::Globbable, _) => listed.push(item),
            }
        }
        if !streamed.is_empty() {
            progress.work.push(WorkUnit::new(streamed, ReadBy::Stream));
        }
        if !listed.is_empty() {
            let are_small =
                mean_bytes(listed.iter().map(|item| &item.object)) < self.config.stream_below;
            progress.work.push(if are_small {
                WorkUnit::prefers_streaming(listed)
            } else {
                WorkUnit::new(listed, ReadBy::S3)
            });
        }
        while let Some(work) = progress.work.pop() {
            if cancel.is_cancelled() {
                progress.settle(&work.items, &Outcome::Abandoned);
                continue;
            }
            self.load_work(work, &cancel, &mut progress).await;
        }
        self.settle_failed(&mut progress, &cancel).await;
        progress.outcomes
    }

    /// How these objects stand but for superseded claims, however long it takes to learn it; none
    /// if cancelled.
    pub async fn look_up(
        &self,
        objects: &[ObjectId],
        superseded: &[(ObjectId, BatchId)],
        cancel: &CancellationToken,
    ) -> Option<Vec<ClaimStatus>> {
        self.retry_until_ok(cancel, || {
            self.parts.ledger.claim_statuses(objects, None, superseded)
        })
        .await
        .ok()
    }

    /// Loads one batch; what is to be tried otherwise goes back to `progress.work`.
    async fn load_work(&self, work: WorkUnit, cancel: &CancellationToken, progress: &mut Progress) {
        // What was split off because of such an error need not prove it at length again.
        let max_retries = if work.splits == 0 {
            MAX_RETRIES
        } else {
            MAX_RETRIES_OF_A_PART
        };
        let may_wait = !work.waited && !progress.work.is_empty();
        let retry_policy = RetryPolicy {
            max_retries,
            may_wait,
        };
        let form = StatementShape {
            many_blocks: work.many_blocks,
            ..StatementShape::of(work.read_by)
        };
        let batch = BatchId::new(&self.parts.env);
        let end = self
            .load_batch(batch, work.items, form, retry_policy, cancel, progress)
            .instrument(trace::load(batch))
            .await;
        match end {
            BatchEnd::Settled => {}
            BatchEnd::Abandoned(items) => progress.settle(&items, &Outcome::Abandoned),
            BatchEnd::Yielded(items) if work.yields >= MAX_YIELDS => {
                progress.settle(&items, &Outcome::Busy);
            }
            BatchEnd::Yielded(items) => {
                let pause = self.config.retry.min.mul_f64(self.parts.env.fraction());
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
                progress.work.push(WorkUnit {
                    items,
                    yields: work.yields + 1,
                    ..work
                });
            }
            BatchEnd::Released { items, why } => {
                let work = WorkUnit { items, ..work };
                self.try_otherwise(work, why, may_wait, cancel, progress)
                    .await;
            }
        }
    }

    /// Nothing of a batch was loaded: decides how its objects are tried next, or that they have
    /// failed.
    async fn try_otherwise(
        &self,
        work: WorkUnit,
        why: BatchFailure,
        may_wait: bool,
        cancel: &CancellationToken,
        progress: &mut Progress,
    ) {
        let BatchFailure { class, cause } = why;
        let is_alone = work.items.len() == 1;
        match class {
            ErrorClass::Changed if work.changes < MAX_CHANGES => {
                let WorkUnit { items, read_by, .. } = work;
                match self.refresh(items, read_by, cancel).await {
                    Ok(items) => progress.work.push(WorkUnit {
                        items,
                        changes: work.changes + 1,
                        ..work
                    }),
                    Err(RefreshError { items, cause }) => {
                        progress.fall_back(WorkUnit { items, ..work }, &cause);
                    }
                }
            }
            ErrorClass::Stream => {
                self.state
                    .fallbacks
                    .begun(work.items.len(), &cause.to_string());
                progress
                    .work
                    .push(WorkUnit::new(work.items, ReadBy::Stream));
            }
            ErrorClass::Replay if may_wait => progress.wait(work),
            ErrorClass::View if is_alone && may_wait => progress.wait(work),
            ErrorClass::TooLarge if is_alone && !self.are_in_many_blocks(&work) => {
                let many_blocks = true;
                progress.work.push(WorkUnit {
                    many_blocks,
                    ..work
                });
            }
            ErrorClass::View if is_alone => {
                for item in work.items {
                    progress.fail(item, cause.clone());
                }
            }
            _ => progress.fall_back(work, &cause),
        }
    }

    fn are_in_many_blocks(&self, work: &WorkUnit) -> bool {
        let objects: Vec<&ObjectRef> = work.items.iter().map(|item| &item.object).collect();
        work.many_blocks || self.planner().needs_many_blocks(&objects)
    }

    /// Puts the reasons on record, and says what becomes of the objects.
    async fn settle_failed(&self, progress: &mut Progress, cancel: &CancellationToken) {
        let failed = std::mem::take(&mut progress.failed);
        if failed.is_empty() {
            return;
        }
        let reasons: Vec<String> = failed.iter().map(|it| it.cause.to_string()).collect();
        for (FailedItem { item, cause }, reason) in failed.iter().zip(&reasons) {
            let class = cause.class().label();
            warn!(
                object = %item.object,
                etag = item.object.etag,
                class,
                error = reason,
                "object cannot be loaded; the reason is on record, `sluice status --failed` shows it"
            );
            let what = item.object.to_string();
            self.parts.activity.failed(what, class, reason);
        }
        let rows = failed.iter().zip(&reasons);
        let rows: Vec<Failure<'_>> = rows
            .map(|(FailedItem { item, cause }, reason)| Failure {
                object: &item.object,
                class: cause.class().label(),
                reason,
            })
            .collect();
        let recorded = self
            .retry_until_ok(cancel, || self.parts.ledger.record_failures(&rows))
            .await
            .is_ok();
        for FailedItem { item, cause } in failed {
            let outcome = match cause.class() {
                // Nothing is acknowledged that is not on record.
                FailureClass::Missing => Outcome::Missing {
                    acknowledge: recorded && self.config.acknowledge_missing,
                },
                FailureClass::Denied
                | FailureClass::Rejected
                | FailureClass::Unnameable
                | FailureClass::Unloadable
                | FailureClass::Unproven
                | FailureClass::View => Outcome::Failed,
            };
            progress.outcomes.push((item.announced, outcome));
        }
    }

    /// Takes one batch through the protocol.
    async fn load_batch(
        &self,
        batch: BatchId,
        items: Vec<PendingObject>,
        form: StatementShape,
        retry_policy: RetryPolicy,
        cancel: &CancellationToken,
        progress: &mut Progress,
    ) -> BatchEnd {
        let items = if items.iter().any(|item| item.object.etag.is_empty()) {
            match self.refresh(items, form.read_by, cancel).await {
                Ok(items) => items,
                Err(RefreshError { items, cause }) => {
                    let why = BatchFailure::object_fault(cause);
                    return BatchEnd::Released { items, why };
                }
            }
        } else {
            items
        };
        let mut batch_run = BatchRun::new(self, cancel, batch, items, form);
        batch_run.retry_policy = retry_policy;
        batch_run.passed_before = progress.passed_before.clone();
        batch_run.halted = progress.halted.take();
        let end = batch_run.run(Run::load()).await;
        progress.outcomes.append(&mut batch_run.set_aside);
        progress.halted = batch_run.halted.take();
        match end {
            Ok(End::Loaded) => {
                // What is not cleaned now, a later backfill cleans.
                drop(batch_run.clean().await);
                progress.settle(&batch_run.items, &Outcome::Loaded);
                BatchEnd::Settled
            }
            Ok(End::NothingFree) => BatchEnd::Settled,
            Ok(End::Yielded) => BatchEnd::Yielded(batch_run.items),
            Ok(End::Fenced) => {
                progress.settle(&batch_run.items, &Outcome::Busy);
                BatchEnd::Settled
            }
            Ok(End::Released) => {
                let unknown = || BatchFailure::object_fault(FailureCause::Unknown);
                BatchEnd::Released {
                    items: batch_run.items,
                    why: batch_run.failure.unwrap_or_else(unknown),
                }
            }
            Err(Cancelled) => {
                batch_run.abandon().await;
                BatchEnd::Abandoned(batch_run.items)
            }
        }
    }

    /// Asks S3 what the objects are now.
    async fn refresh(
        &self,
        items: Vec<PendingObject>,
        read_by: ReadBy,
        cancel: &CancellationToken,
    ) -> Result<Vec<PendingObject>, RefreshError> {
        if read_by == ReadBy::Stream {
            self.refresh_by_worker(items, cancel).await
        } else {
            self.refresh_by_clickhouse(items, cancel).await
        }
    }

    async fn refresh_by_worker(
        &self,
        mut items: Vec<PendingObject>,
        cancel: &CancellationToken,
    ) -> Result<Vec<PendingObject>, RefreshError> {
        for at in 0..items.len() {
            match self.head(&items[at].object, cancel).await {
                Ok(Ok(present)) => {
                    items[at].set_version(&present);
                }
                Ok(Err(error)) => {
                    let cause = error.into();
                    return Err(RefreshError { items, cause });
                }
                Err(Cancelled) => return Ok(items),
            }
        }
        Ok(items)
    }

    /// What S3 tells the worker of an object. It is asked until it answers.
    async fn head(
        &self,
        object: &ObjectRef,
        cancel: &CancellationToken,
    ) -> Result<Result<ObjectMeta, StoreError>, Cancelled> {
        let mut tries = 0;
        loop {
            match self.parts.store.head(object).await {
                Err(error) if error.is_transient() => {
                    tries += 1;
                    warn!(object = %object, tries, error = %error, "S3 does not answer; trying again");
                    self.pause(tries, cancel).await?;
                }
                answer => return Ok(answer),
            }
        }
    }

    async fn refresh_by_clickhouse(
        &self,
        items: Vec<PendingObject>,
        cancel: &CancellationToken,
    ) -> Result<Vec<PendingObject>, RefreshError> {
        let refs: Vec<&ObjectRef> = items.iter().map(|item| &item.object).collect();
        let present = self
            .retry_until_ok(cancel, || async {
                match self.parts.tables.head(&refs).await {
                    Err(error) => match classify(&error) {
                        ErrorClass::ObjectFault => Ok(Err(error)),
                        ErrorClass::Stream | ErrorClass::Denied
                            if self.config.fallback == Fallback::Auto =>
                        {
                            Ok(Err(error))
                        }
                        _ => Err(error),
                    },
                    Ok(present) => Ok(Ok(present)),
                }
            })
            .await;
        let present: HashMap<String, ObjectMeta> = match present {
            Ok(Ok(present)) => present.into_iter().collect(),
            Ok(Err(error)) if classify(&error) != ErrorClass::ObjectFault => {
                return self.refresh_by_worker(items, cancel).await;
            }
            Ok(Err(error)) => {
                let cause = error.into();
                return Err(RefreshError { items, cause });
            }
            Err(Cancelled) => return Ok(items),
        };
        let refreshed = items.into_iter().map(|mut item| {
            if let Some(present) = present.get(&item.object.path()) {
                item.set_version(present);
            }
            item
        });
        Ok(refreshed.collect())
    }

    /// Repeats a small statement until it succeeds: there is no going on without it. Between tries
    /// the breaker decides.
    async fn retry_until_ok<T, F>(
        &self,
        cancel: &CancellationToken,
        mut work: impl FnMut() -> F,
    ) -> Result<T, Cancelled>
    where
        F: Future<Output = Result<T, WarehouseError>>,
    {
        let mut tries = 0;
        let mut halted = None;
        loop {
            // What was refused is its own probe: that others succeed says nothing of it.
            let scope = match halted {
                None => Scope::Everything,
                Some(_) => Scope::Inserts,
            };
            let outcome = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Cancelled),
                outcome = async {
                    self.parts.breaker.admit(scope).await;
                    work().await
                } => outcome,
            };
            match outcome {
                Ok(value) => {
                    self.parts.breaker.succeeded(scope);
                    return Ok(value);
                }
                // Nothing is loaded without it, whatever the error is, once it does not pass.
                Err(error)
                    if classify(&error) == ErrorClass::Halt
                        || tries >= MAX_RETRIES && error.code().is_some() =>
                {
                    halted.get_or_insert_with(|| ProbeGuard::new(&self.parts.breaker));
                    metrics::clickhouse_error(error.code(), ErrorClass::Halt);
                    self.halt(Scope::Inserts, &error);
                }
                Err(error) => {
                    tries += 1;
                    self.note_failure(&error, Scope::Everything).await;
                    self.pause(tries, cancel).await?;
                }
            }
        }
    }

    /// Opens the breaker where the error says that no such statement will do.
    async fn note_failure(&self, error: &WarehouseError, what: Scope) {
        let class = classify(error);
        metrics::clickhouse_error(error.code(), class);
        match class {
            ErrorClass::Halt => self.halt(what, error),
            // One lost connection says little; no answer to a ping says all.
            _ => match self.parts.tables.ping().await {
                Ok(()) => warn!(
                    code = error.code(),
                    error = %with_advice(error),
                    "a statement failed; trying again"
                ),
                Err(ping) => self.halt(Scope::Everything, &ping),
            },
        }
    }

    fn halt(&self, what: Scope, error: &WarehouseError) {
        self.parts
            .breaker
            .open(what, diagnosis(error).pause, &with_advice(error));
    }

    /// Whether who was refused can read what was read before: then a refusal is the object's fault,
    /// and else everything's. Asked with the latest loaded objects, of the same bucket unless that
    /// bucket is said to be gone.
    async fn can_read_others(
        &self,
        refused: &ObjectRef,
        read_by: ReadBy,
        error: &WarehouseError,
        cancel: &CancellationToken,
    ) -> Result<bool, Cancelled> {
        let same_bucket = !is_bucket_missing(error);
        let others = self
            .retry_until_ok(cancel, || {
                self.parts
                    .ledger
                    .latest_loaded(refused, same_bucket, KNOWN_GOOD_SAMPLES)
            })
            .await?;
        for other in others {
            match self.probe(&other, read_by).await {
                Ok(()) => return Ok(true),
                // Gone by now, and S3 says so: it would not tell a stranger.
                Err(error) if is_missing(&error) => return Ok(true),
                Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Has ClickHouse read another object of the bucket, the smallest of those that were loaded last;
    /// none where there is none.
    async fn read_another(
        &self,
        object: &ObjectRef,
        cancel: &CancellationToken,
    ) -> Result<Option<Result<(), WarehouseError>>, Cancelled> {
        let mut others = self
            .retry_until_ok(cancel, || {
                self.parts
                    .ledger
                    .latest_loaded(object, true, KNOWN_GOOD_SAMPLES)
            })
            .await?;
        others.sort_by_key(|other| other.size);
        for other in others {
            match self.parts.tables.with_lines(&[&other]).await {
                Err(error) if is_missing(&error) => {}
                read => return Ok(Some(read.map(drop))),
            }
        }
        Ok(None)
    }

    async fn probe(&self, object: &ObjectRef, read_by: ReadBy) -> Result<(), WarehouseError> {
        if read_by == ReadBy::Stream {
            return Ok(self.parts.store.head(object).await.map(drop)?);
        }
        self.parts.tables.head(&[object]).await.map(drop)
    }

    async fn pause(&self, tries: u32, cancel: &CancellationToken) -> Result<(), Cancelled> {
        let pause = self.config.retry.pause(tries, self.parts.env.fraction());
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Cancelled),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }
}
