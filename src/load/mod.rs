//! Loads the objects of a batch: performs the actions of the ledger protocol, and splits batches
//! whose objects cannot be loaded together.

mod answers;
mod attempt;
mod bounds;
pub mod breaker;
mod cause;
mod delete;
pub mod empty_columns;
pub mod fallback;
pub mod janitor;
mod layouts;
pub mod ports;
mod progress;
mod refresh;
mod replace;
mod sample;
mod stream;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod truncation;
mod views;
mod waiting;
mod wrong_file;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{Instrument, warn};

use crate::Env;
use crate::batch::{Batch, BatchId, Fallback, Layout, ReadBy, StatementShape, mean_bytes};
use crate::clickhouse::WarehouseError;
use crate::formats::{FormatId, OnAllRejected};
use crate::ledger::Failure;
use crate::ledger::protocol::{ClaimStatus, End, Run};
use crate::object::{Compression, ObjectId, ObjectRef};
use crate::statements::insert::Planner;
use crate::statements::s3_source::{KeyAddressing, addressing};
use crate::telemetry::activity::Activity;
use crate::telemetry::{metrics, trace};
use sluice_core::backoff::Backoff;
pub use sluice_core::outcome::{FailureClass, Outcome, Outcomes};

use crate::clickhouse::error_class::{
    ErrorClass, classify, diagnosis, is_bucket_missing, is_missing, with_advice,
};
pub(crate) use attempt::ANSWER_AFTER_TIMEOUT;
use attempt::BatchRun;
use breaker::{Breaker, ProbeGuard, Scope};
use cause::{BatchFailure, FailureCause};
use empty_columns::EmptyColumns;
use fallback::Fallbacks;
use layouts::Layouts;
use ports::{BatchTables, LedgerStore, ObjectStore, Ports, Production};
use progress::{FailedItem, PendingObject, Progress, WorkUnit};
use refresh::RefreshError;
use views::Views;
use waiting::Waiting;
pub(crate) use wrong_file::fits;

/// Loads batches. This is the daemon's only interface to ClickHouse.
pub trait Load: Send + Sync + 'static {
    /// Loads what can be loaded, and returns an outcome for every object. Returns soon after
    /// `cancel`.
    fn load(
        &self,
        batch: Batch,
        cancel: CancellationToken,
    ) -> impl Future<Output = Outcomes> + Send;
}

/// Implements [`Load`] with the protocol of the ledger.
pub struct Loader<P: Ports = Production> {
    config: LoadConfig,
    parts: LoadParts<P>,
    state: LoadState,
}

/// The settings of a [`Loader`].
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// How long an insert may take. An insert without a response by then is killed and retried.
    pub insert_timeout: Duration,
    /// The pause before a retry, which doubles each time.
    pub retry: Backoff,
    /// The largest part of an object's lines that may be rejected; above it, the object fails.
    pub max_rejected_ratio: f64,
    /// What happens to an object of which every record is rejected. `None`: it depends on the format.
    pub on_all_rejected: Option<OnAllRejected>,
    /// The size of the largest object that is streamed if ClickHouse keeps its whole body in memory.
    pub max_buffered_bytes: u64,
    pub fallback: Fallback,
    /// Batches whose objects are smaller than this on average, in bytes, are streamed too.
    pub stream_below: u64,
    /// Whether the message of a missing object is deleted.
    pub acknowledge_missing: bool,
    /// The compressions whose objects are loaded although they cannot be proven to be whole.
    pub accept_unproven: Vec<Compression>,
    /// How long after its claim an insert may be retried, or `None` if tables forget a token only by
    /// the number of blocks. Retrying it later could insert the rows twice.
    pub max_retry_age: Option<Duration>,
    /// How many batches may have been claimed after an object of many blocks when it is retried.
    pub max_later_batches: u64,
}

/// The systems and shared state that a [`Loader`] uses.
pub struct LoadParts<P: Ports = Production> {
    pub ledger: P::Ledger,
    pub tables: P::Tables,
    pub store: P::Objects,
    pub breaker: Arc<Breaker>,
    /// Records what is in flight, loaded or failed.
    pub activity: Arc<Activity>,
    pub env: Env,
}

/// What a [`Loader`] has observed so far.
#[derive(Default)]
struct LoadState {
    fallbacks: Fallbacks,
    layouts: Layouts,
    empty_columns: EmptyColumns,
    /// The number of inserts that have succeeded.
    successes: AtomicU64,
    views: Views,
    /// Locked while rows are deleted, so that this process begins one mutation at a time.
    deletions: tokio::sync::Mutex<()>,
}

/// A batch that fails this often for an unknown reason is split, provided that the server loads
/// anything at all.
const MAX_RETRIES: u32 = 5;
const MAX_RETRIES_OF_A_PART: u32 = 1;
/// A single object that fails for an unknown reason is at fault once other loads have succeeded
/// between its failures this often.
const MAX_FAILURES_ALONE: u32 = 2;
/// A single object is given up after this many failures if there is no other load to compare with.
const MAX_RETRIES_ALONE: u32 = 40;
/// The number of loaded objects that are read again to find out whether a refusal concerns all
/// objects.
const KNOWN_GOOD_SAMPLES: usize = 5;
/// After this many yields, the objects are left to the worker that claims them.
const MAX_YIELDS: u32 = 5;
/// After this many changes, an object is left for a later delivery.
const MAX_CHANGES: u32 = 5;

/// How long loading a batch is retried.
#[derive(Clone, Copy, Debug)]
struct RetryPolicy {
    /// The number of retries after which the objects are no longer loaded together.
    max_retries: u32,
    /// Whether an object that fails alone can be retried after others.
    may_wait: bool,
    /// The number of retries that an earlier batch of the same objects has used.
    used: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: MAX_RETRIES,
            may_wait: false,
            used: 0,
        }
    }
}

/// How a batch ended.
enum BatchEnd {
    /// Every object has its outcome.
    Settled,
    Yielded(Vec<PendingObject>),
    /// Nothing of the batch was loaded, for this reason.
    Released {
        items: Vec<PendingObject>,
        why: Box<BatchFailure>,
    },
    /// The tables could have forgotten the token of the batch, and nothing of it is loaded. The
    /// objects are not at fault.
    Forgotten {
        items: Vec<PendingObject>,
        retries: u32,
    },
    Abandoned(Vec<PendingObject>),
}

/// An operation was cancelled, since the worker is shutting down: everything is left as it is.
struct Cancelled;

impl<P: Ports> Load for Loader<P> {
    async fn load(&self, batch: Batch, cancel: CancellationToken) -> Outcomes {
        let items = batch.objects.into_iter();
        let items = items.map(|object| PendingObject::new(object, Vec::new()));
        self.load_items(items.collect(), cancel).await
    }
}

impl<P: Ports> Loader<P> {
    /// Creates a loader.
    pub fn new(config: LoadConfig, parts: LoadParts<P>) -> Self {
        Self {
            config,
            parts,
            state: LoadState::default(),
        }
    }

    /// Returns how long other workers leave a batch alone after its worker was last heard of.
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
        let mut lines = Vec::new();
        let mut others: BTreeMap<FormatId, Vec<PendingObject>> = BTreeMap::new();
        for item in items {
            let format = self.planner().format_of(&item.object.key);
            if self.kind(format).is_json_lines() {
                lines.push(item);
            } else {
                others.entry(format).or_default().push(item);
            }
        }
        for (format, items) in others {
            self.plan_format(format, items, &mut progress);
        }
        self.plan_lines(lines, &mut progress);
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

    /// Plans how to load objects with JSON lines.
    fn plan_lines(&self, items: Vec<PendingObject>, progress: &mut Progress) {
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
    }

    /// Returns the claim statuses of these objects, excluding superseded claims. Retries until the
    /// ledger responds; returns `None` if cancelled.
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

    /// Loads one batch. Objects that must be loaded in another way go back to `progress.work`.
    async fn load_work(&self, work: WorkUnit, cancel: &CancellationToken, progress: &mut Progress) {
        let Some(layout) = work.layout.clone() else {
            return self.resolve(work, cancel, progress).await;
        };
        // A part that was split off after such an error needs fewer retries to reproduce it.
        let max_retries = if work.splits == 0 {
            MAX_RETRIES
        } else {
            MAX_RETRIES_OF_A_PART
        };
        let may_wait = !work.waited && !progress.work.is_empty();
        let retry_policy = RetryPolicy {
            max_retries,
            may_wait,
            used: work.retries,
        };
        let shape = StatementShape {
            many_blocks: work.many_blocks,
            ..StatementShape::of(work.read_by)
        };
        let batch = BatchId::new(&self.parts.env);
        let end = self
            .load_batch(
                batch,
                work.items,
                (shape, layout),
                retry_policy,
                cancel,
                progress,
            )
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
            BatchEnd::Forgotten { items, retries } => progress.work.push(WorkUnit {
                items,
                retries,
                ..work
            }),
            BatchEnd::Released { items, why } => {
                let work = WorkUnit { items, ..work };
                self.try_otherwise(work, *why, may_wait, cancel, progress)
                    .await;
            }
        }
    }

    /// Decides how to load the objects of a released batch next, or that they have failed.
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
                for item in &items {
                    self.state.layouts.forget(work.format, item.object.id());
                }
                let layout = self.layout_of_all(work.format);
                match self.refresh(items, read_by, cancel).await {
                    Ok(items) => progress.work.push(WorkUnit {
                        items,
                        layout,
                        changes: work.changes + 1,
                        ..work
                    }),
                    Err(RefreshError { items, cause }) => {
                        progress.fall_back(
                            WorkUnit {
                                items,
                                layout,
                                ..work
                            },
                            &cause,
                        );
                    }
                }
            }
            ErrorClass::Stream => {
                self.state
                    .fallbacks
                    .begun(work.items.len(), &cause.to_string());
                self.stream(work, progress);
            }
            ErrorClass::Retry if may_wait => progress.wait(work),
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

    /// Records the reasons of the failures, and sets the outcomes of these objects.
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
                "object cannot be loaded; the reason is recorded, see `sluice status --failed`"
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
                sample: cause.sample(),
            })
            .collect();
        let recorded = self
            .retry_until_ok(cancel, || self.parts.ledger.record_failures(&rows))
            .await
            .is_ok();
        for FailedItem { item, cause } in failed {
            let outcome = match cause.class() {
                // A message is deleted only if the reason has been recorded.
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

    /// Runs one batch through the protocol.
    async fn load_batch(
        &self,
        batch: BatchId,
        items: Vec<PendingObject>,
        (shape, layout): (StatementShape, Arc<Layout>),
        retry_policy: RetryPolicy,
        cancel: &CancellationToken,
        progress: &mut Progress,
    ) -> BatchEnd {
        let items = match self.with_versions(items, shape.read_by, cancel).await {
            Ok(items) => items,
            Err(RefreshError { items, cause }) => {
                let why = Box::new(BatchFailure::object_fault(cause));
                return BatchEnd::Released { items, why };
            }
        };
        let mut batch_run = BatchRun::new(self, cancel, batch, items, shape, layout);
        batch_run.retry_policy = retry_policy;
        batch_run.retries = retry_policy.used;
        batch_run.passed_before = progress.passed_before.clone();
        batch_run.halted = progress.halted.take();
        let end = batch_run.run(Run::load()).await;
        progress.outcomes.append(&mut batch_run.set_aside);
        progress.halted = batch_run.halted.take();
        match end {
            Ok(End::Loaded) => {
                // A later backfill deletes rows that are not deleted now.
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
                let why = batch_run.failure.unwrap_or_else(unknown);
                let items = batch_run.items;
                match why.cause {
                    FailureCause::Forgotten => BatchEnd::Forgotten {
                        items,
                        retries: batch_run.retries,
                    },
                    _ => BatchEnd::Released {
                        items,
                        why: Box::new(why),
                    },
                }
            }
            Err(Cancelled) => {
                batch_run.abandon().await;
                BatchEnd::Abandoned(batch_run.items)
            }
        }
    }

    /// Repeats a small statement until it succeeds, since the load cannot continue without it.
    /// Every try waits until the breaker admits it.
    async fn retry_until_ok<T, F>(
        &self,
        cancel: &CancellationToken,
        mut work: impl FnMut() -> F,
    ) -> Result<T, Cancelled>
    where
        F: Future<Output = Result<T, WarehouseError>>,
    {
        let mut tries = 0;
        let mut waiting = Waiting::default();
        let mut halted = None;
        loop {
            // A refused statement is its own probe: the success of others does not show that this
            // one would succeed.
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
            let error = match outcome {
                Ok(value) => {
                    self.parts.breaker.succeeded(scope);
                    return Ok(value);
                }
                Err(error) => error,
            };
            if self.has_waited(&mut waiting, &error, cancel).await? {
                continue;
            }
            let is_outage = matches!(classify(&error), ErrorClass::Halt | ErrorClass::Wait);
            // Nothing can be loaded without this statement. An error that persists halts the load,
            // whatever it is.
            if is_outage || tries >= MAX_RETRIES && error.code().is_some() {
                halted.get_or_insert_with(|| ProbeGuard::new(&self.parts.breaker));
                metrics::clickhouse_error(error.code(), ErrorClass::Halt);
                self.halt(Scope::Inserts, &error);
            } else {
                tries += 1;
                self.note_failure(&error, Scope::Everything).await;
                self.pause(tries, cancel).await?;
            }
        }
    }

    /// Opens the breaker if the error means that every such statement would fail.
    async fn note_failure(&self, error: &WarehouseError, what: Scope) {
        let class = classify(error);
        metrics::clickhouse_error(error.code(), class);
        match class {
            ErrorClass::Halt => self.halt(what, error),
            // A single lost connection can be transient; a failed ping means that ClickHouse is
            // unavailable.
            _ => match self.parts.tables.ping().await {
                Ok(()) => warn!(
                    code = error.code(),
                    error = %with_advice(error),
                    "a statement failed; retrying"
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

    /// Returns whether the reader that was refused can read objects that were read before. If so,
    /// the refusal concerns this object, and otherwise all objects. The samples are the objects
    /// that were loaded last, from the same bucket unless S3 reports that the bucket does not
    /// exist.
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
                // It has been deleted since. A caller without access would get 403.
                Err(error) if is_missing(&error) => return Ok(true),
                Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Has ClickHouse read another object of the bucket, the smallest of those that were loaded
    /// last. Returns `None` if there is no such object.
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
