//! Loads the objects of a batch: performs what the ledger protocol asks for, and splits what
//! cannot be loaded together.

pub mod breaker;
pub mod verdict;

mod attempt;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::batch::{Batch, BatchId};
use crate::ledger::protocol::{End, Run};
use crate::ledger::{Failure, Ledger};
use crate::object::{ObjectId, ObjectRef};
use crate::plan::{Naming, Planner, naming};
use crate::telemetry::metrics;
use crate::warehouse::{Warehouse, WarehouseError};
use attempt::Loading;
use breaker::{Breaker, Scope};
use verdict::{Verdict, is_missing, named_object, verdict, with_advice};

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Loaded,
    /// It was loaded before.
    Duplicate,
    /// Another batch has it in hand: ask again later.
    Busy,
    /// It cannot be loaded, or not now; the ledger has the reason.
    Failed,
    /// It was gone before it was read; the ledger says so.
    Missing {
        acknowledge: bool,
    },
    /// The worker shuts down.
    Abandoned,
}

impl Outcome {
    /// The value of the `outcome` label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Duplicate => "duplicate",
            Self::Busy => "busy",
            Self::Failed => "failed",
            Self::Missing { .. } => "missing",
            Self::Abandoned => "abandoned",
        }
    }
}

/// The outcome of each object, under the identity that it was announced with.
pub type Outcomes = Vec<(ObjectId, Outcome)>;

/// Loads batches. The pipeline knows no more of ClickHouse than this.
pub trait Load: Send + Sync + 'static {
    /// Loads what can be loaded; an outcome for every object. Returns soon after `cancel`.
    fn load(
        &self,
        batch: Batch,
        cancel: CancellationToken,
    ) -> impl Future<Output = Outcomes> + Send;
}

/// [`Load`] by ClickHouse.
pub struct Loader {
    pub warehouse: Warehouse,
    pub ledger: Ledger,
    pub planner: Planner,
    pub breaker: Arc<Breaker>,
    pub limits: LoadLimits,
    /// Whether a missing object's message is done with.
    pub acknowledge_missing: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct LoadLimits {
    /// No answer for longer than this: the insert is killed and replayed.
    pub insert_timeout: Duration,
    /// The pause before a replay, doubled each time.
    pub retry_min: Duration,
    pub retry_max: Duration,
}

/// An insert that fails this often for no known reason is taken for its objects' fault.
const MAX_REPLAYS: u32 = 8;
/// Another worker's claim on the same objects, met this often, means that they are in good hands.
const MAX_YIELDS: u32 = 5;
/// An object that changes faster than it can be read is left for a later delivery.
const MAX_CHANGES: u32 = 5;

/// An object on its way: what is read can be newer than what was announced.
#[derive(Clone, Debug)]
struct Item {
    announced: ObjectId,
    object: ObjectRef,
}

/// Objects to be loaded as one batch.
#[derive(Debug)]
struct Work {
    items: Vec<Item>,
    yields: u32,
    changes: u32,
}

/// How one batch ended.
enum BatchEnd {
    /// Every item has its outcome.
    Settled,
    Yielded(Vec<Item>),
    /// Nothing of it was loaded, and this is why.
    Released {
        items: Vec<Item>,
        verdict: Verdict,
        text: String,
    },
    Abandoned(Vec<Item>),
}

/// The worker shuts down: leave things as they are.
struct Cancelled;

/// What has become of a load's objects so far.
#[derive(Debug, Default)]
struct Progress {
    outcomes: Outcomes,
    failed: Vec<FailedItem>,
    /// Still to be tried; the last first.
    work: Vec<Work>,
}

#[derive(Debug)]
struct FailedItem {
    item: Item,
    class: FailureClass,
    reason: String,
}

/// Why an object cannot be loaded, as `ledger_failures.class` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureClass {
    Missing,
    Unnameable,
    Unloadable,
}

impl FailureClass {
    fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unnameable => "unnameable",
            Self::Unloadable => "unloadable",
        }
    }
}

impl Load for Loader {
    async fn load(&self, batch: Batch, cancel: CancellationToken) -> Outcomes {
        let mut progress = Progress::default();
        let mut listed = Vec::new();
        for object in batch.objects {
            let item = Item {
                announced: object.id(),
                object,
            };
            match naming(&item.object.key) {
                Naming::Listed => listed.push(item),
                Naming::Alone => progress.work.push(Work::new(vec![item])),
                Naming::Impossible => progress.fail(item, FailureClass::Unnameable, unnameable()),
            }
        }
        if !listed.is_empty() {
            progress.work.push(Work::new(listed));
        }
        while let Some(work) = progress.work.pop() {
            self.load_work(work, &cancel, &mut progress).await;
        }
        self.settle_failed(&mut progress, &cancel).await;
        progress.outcomes
    }
}

impl Work {
    fn new(items: Vec<Item>) -> Self {
        Self {
            items,
            yields: 0,
            changes: 0,
        }
    }
}

fn unnameable() -> String {
    "ClickHouse cannot be told to read this key and no other: it contains `*`, `?`, `//`, a line \
     break, or a `.` or `..` between slashes; copy the object to another key"
        .to_owned()
}

impl Progress {
    fn settle(&mut self, items: &[Item], outcome: &Outcome) {
        self.outcomes
            .extend(items.iter().map(|item| (item.announced, outcome.clone())));
    }

    fn fail(&mut self, item: Item, class: FailureClass, reason: String) {
        self.failed.push(FailedItem {
            item,
            class,
            reason,
        });
    }

    /// The object that the error names alone, and the rest as a new batch; halves when it names
    /// none. An object that was alone already has failed.
    fn split(&mut self, mut items: Vec<Item>, text: &str) {
        if items.len() <= 1 {
            let class = if is_missing(text) {
                FailureClass::Missing
            } else {
                FailureClass::Unloadable
            };
            for item in items {
                self.fail(item, class, text.to_owned());
            }
            return;
        }
        let keys = items
            .iter()
            .map(|item| item.object.key.as_str())
            .enumerate();
        let apart = match named_object(text, keys) {
            Some(index) => vec![items.remove(index)],
            None => items.split_off(items.len() / 2),
        };
        info!(
            apart = apart.len(),
            rest = items.len(),
            "splitting a batch: {text}"
        );
        self.work.push(Work::new(apart));
        self.work.push(Work::new(items));
    }
}

/// Looking at the objects as they are now failed.
struct Refused {
    items: Vec<Item>,
    text: String,
}

impl Loader {
    /// Loads one batch; what is to be tried otherwise goes back to `progress.work`.
    async fn load_work(&self, work: Work, cancel: &CancellationToken, progress: &mut Progress) {
        let Work {
            items,
            yields,
            changes,
        } = work;
        match self.load_batch(items, cancel, progress).await {
            BatchEnd::Settled => {}
            BatchEnd::Abandoned(items) => progress.settle(&items, &Outcome::Abandoned),
            BatchEnd::Yielded(items) if yields >= MAX_YIELDS => {
                progress.settle(&items, &Outcome::Busy);
            }
            BatchEnd::Yielded(items) => {
                let pause = self.limits.retry_min.mul_f64(fastrand::f64());
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
                progress.work.push(Work {
                    items,
                    yields: yields + 1,
                    changes,
                });
            }
            BatchEnd::Released {
                items,
                verdict: Verdict::Changed,
                ..
            } if changes < MAX_CHANGES => match self.refresh(items, cancel).await {
                Ok(items) => progress.work.push(Work {
                    items,
                    yields,
                    changes: changes + 1,
                }),
                Err(Refused { items, text }) => progress.split(items, &text),
            },
            BatchEnd::Released { items, text, .. } => progress.split(items, &text),
        }
    }

    /// Puts the reasons on record, and says what becomes of the objects.
    async fn settle_failed(&self, progress: &mut Progress, cancel: &CancellationToken) {
        let failed = std::mem::take(&mut progress.failed);
        if failed.is_empty() {
            return;
        }
        for FailedItem {
            item,
            class,
            reason,
        } in &failed
        {
            let ObjectRef {
                bucket, key, etag, ..
            } = &item.object;
            let class = class.label();
            warn!(
                object.bucket = bucket,
                object.key = key,
                object.etag = etag,
                class,
                "object cannot be loaded: {reason}"
            );
        }
        let rows: Vec<Failure<'_>> = failed
            .iter()
            .map(|failed| Failure {
                object: &failed.item.object,
                class: failed.class.label(),
                reason: &failed.reason,
            })
            .collect();
        let recorded = self
            .persist(cancel, || self.ledger.record_failures(&rows))
            .await
            .is_ok();
        for FailedItem { item, class, .. } in failed {
            let outcome = match class {
                // Nothing is acknowledged that is not on record.
                FailureClass::Missing => Outcome::Missing {
                    acknowledge: recorded && self.acknowledge_missing,
                },
                FailureClass::Unnameable | FailureClass::Unloadable => Outcome::Failed,
            };
            progress.outcomes.push((item.announced, outcome));
        }
    }

    /// Takes one batch through the protocol.
    async fn load_batch(
        &self,
        items: Vec<Item>,
        cancel: &CancellationToken,
        progress: &mut Progress,
    ) -> BatchEnd {
        let items = if items.iter().any(|item| item.object.etag.is_empty()) {
            match self.refresh(items, cancel).await {
                Ok(items) => items,
                Err(Refused { items, text }) => {
                    return BatchEnd::Released {
                        items,
                        verdict: Verdict::ObjectFault,
                        text,
                    };
                }
            }
        } else {
            items
        };
        let mut loading = Loading {
            loader: self,
            cancel,
            batch: BatchId::now(),
            started: Instant::now(),
            items,
            failure: None,
            replays: 0,
            halted: None,
        };
        match loading.run(Run::load(), &mut progress.outcomes).await {
            Ok(End::Loaded) => {
                progress.settle(&loading.items, &Outcome::Loaded);
                BatchEnd::Settled
            }
            Ok(End::NothingFree) => BatchEnd::Settled,
            Ok(End::Yielded) => BatchEnd::Yielded(loading.items),
            Ok(End::Fenced) => {
                progress.settle(&loading.items, &Outcome::Busy);
                BatchEnd::Settled
            }
            Ok(End::Released) => {
                let (verdict, text) = loading
                    .failure
                    .unwrap_or((Verdict::ObjectFault, "released without a reason".into()));
                BatchEnd::Released {
                    items: loading.items,
                    verdict,
                    text,
                }
            }
            Err(Cancelled) => {
                loading.abandon().await;
                BatchEnd::Abandoned(loading.items)
            }
        }
    }

    /// Asks S3, through ClickHouse, what the objects are now.
    async fn refresh(
        &self,
        items: Vec<Item>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Item>, Refused> {
        #[derive(serde::Deserialize)]
        struct Row {
            path: String,
            etag: String,
            size: u64,
        }
        let refs: Vec<&ObjectRef> = items.iter().map(|item| &item.object).collect();
        let query = self.planner.probe(&refs);
        let rows = self
            .persist(cancel, || async {
                match self.warehouse.rows::<Row>(&query).await {
                    Err(error) if verdict(&error) == Verdict::ObjectFault => Ok(Err(error)),
                    other => other.map(Ok),
                }
            })
            .await;
        let rows = match rows {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) => {
                return Err(Refused {
                    items,
                    text: error.to_string(),
                });
            }
            Err(Cancelled) => return Ok(items),
        };
        let now: HashMap<String, Row> = rows
            .into_iter()
            .map(|row| (row.path.clone(), row))
            .collect();
        let refreshed = items.into_iter().map(|mut item| {
            let path = format!("{}/{}", item.object.bucket, item.object.key);
            if let Some(row) = now.get(&path) {
                item.object.etag.clone_from(&row.etag);
                item.object.size = Some(row.size);
            }
            item
        });
        Ok(refreshed.collect())
    }

    /// Repeats a small statement until it succeeds: there is no going on without it. Between tries
    /// the breaker decides.
    async fn persist<T, F>(
        &self,
        cancel: &CancellationToken,
        mut work: impl FnMut() -> F,
    ) -> Result<T, Cancelled>
    where
        F: Future<Output = Result<T, WarehouseError>>,
    {
        let mut tries = 0;
        loop {
            let outcome = tokio::select! {
                () = cancel.cancelled() => return Err(Cancelled),
                outcome = async {
                    self.breaker.admit(Scope::Everything).await;
                    work().await
                } => outcome,
            };
            match outcome {
                Ok(value) => {
                    self.breaker.succeeded(Scope::Everything);
                    return Ok(value);
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
        let verdict = verdict(error);
        metrics::clickhouse_error(error.code(), verdict);
        match verdict {
            Verdict::Halt => self.breaker.open(what, &with_advice(error)),
            // One lost connection says little; no answer to a ping says all.
            _ => match self.warehouse.ping().await {
                Ok(()) => warn!("trying again: {error}"),
                Err(ping) => self.breaker.open(Scope::Everything, &with_advice(&ping)),
            },
        }
    }

    async fn pause(&self, tries: u32, cancel: &CancellationToken) -> Result<(), Cancelled> {
        let full = self
            .limits
            .retry_min
            .saturating_mul(1 << tries.min(16).saturating_sub(1));
        let pause = full
            .min(self.limits.retry_max)
            .mul_f64(0.5 + fastrand::f64() / 2.0);
        tokio::select! {
            () = cancel.cancelled() => Err(Cancelled),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }
}
