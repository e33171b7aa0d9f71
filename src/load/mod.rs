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
use crate::ledger::Ledger;
use crate::ledger::protocol::{End, Run};
use crate::object::{ObjectId, ObjectRef};
use crate::plan::{Naming, Planner, naming};
use crate::telemetry::metrics;
use crate::warehouse::{Warehouse, WarehouseError};
use attempt::Loading;
use breaker::{Breaker, Scope};
use verdict::{Verdict, named_object, verdict, with_advice};

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Loaded,
    /// It was loaded before.
    Duplicate,
    /// Another batch has it in hand: ask again later.
    Busy,
    /// It cannot be loaded, or not now, and this is why.
    Failed {
        reason: String,
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
            Self::Failed { .. } => "failed",
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

impl Load for Loader {
    async fn load(&self, batch: Batch, cancel: CancellationToken) -> Outcomes {
        let mut outcomes = Outcomes::new();
        let mut work = Vec::new();
        for (naming, items) in by_naming(batch.objects) {
            match naming {
                Naming::Listed => work.push(Work::new(items)),
                Naming::Alone => work.extend(items.into_iter().map(|item| Work::new(vec![item]))),
                Naming::Impossible => fail_unnameable(&items, &mut outcomes),
            }
        }
        while let Some(next) = work.pop() {
            let Work {
                items,
                yields,
                changes,
            } = next;
            match self.load_batch(items, &cancel, &mut outcomes).await {
                BatchEnd::Settled => {}
                BatchEnd::Abandoned(items) => settle(&items, &Outcome::Abandoned, &mut outcomes),
                BatchEnd::Yielded(items) if yields >= MAX_YIELDS => {
                    settle(&items, &Outcome::Busy, &mut outcomes);
                }
                BatchEnd::Yielded(items) => {
                    let pause = self.limits.retry_min.mul_f64(fastrand::f64());
                    tokio::select! {
                        () = cancel.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    work.push(Work {
                        items,
                        yields: yields + 1,
                        changes,
                    });
                }
                BatchEnd::Released {
                    items,
                    verdict: Verdict::Changed,
                    ..
                } if changes < MAX_CHANGES => match self.refresh(items, &cancel).await {
                    Ok(items) => work.push(Work {
                        items,
                        yields,
                        changes: changes + 1,
                    }),
                    Err(Refused { items, text }) => split(items, &text, &mut work, &mut outcomes),
                },
                BatchEnd::Released { items, text, .. } => {
                    split(items, &text, &mut work, &mut outcomes);
                }
            }
        }
        outcomes
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

fn by_naming(objects: Vec<ObjectRef>) -> Vec<(Naming, Vec<Item>)> {
    let mut listed = Vec::new();
    let mut alone = Vec::new();
    let mut impossible = Vec::new();
    for object in objects {
        let group = match naming(&object.key) {
            Naming::Listed => &mut listed,
            Naming::Alone => &mut alone,
            Naming::Impossible => &mut impossible,
        };
        group.push(Item {
            announced: object.id(),
            object,
        });
    }
    [
        (Naming::Listed, listed),
        (Naming::Alone, alone),
        (Naming::Impossible, impossible),
    ]
    .into_iter()
    .filter(|(_, items)| !items.is_empty())
    .collect()
}

fn fail_unnameable(items: &[Item], outcomes: &mut Outcomes) {
    for item in items {
        let reason = format!(
            "ClickHouse cannot be told to read the key {:?} and no other: it contains `*`, `?`, \
             `//`, a line break, or a `.` or `..` between slashes; copy the object to another key",
            item.object.key,
        );
        warn!(object.key = %item.object.key, object.bucket = %item.object.bucket, "{reason}");
        outcomes.push((item.announced, Outcome::Failed { reason }));
    }
}

fn settle(items: &[Item], outcome: &Outcome, outcomes: &mut Outcomes) {
    outcomes.extend(items.iter().map(|item| (item.announced, outcome.clone())));
}

/// The object that the error names alone, and the rest as a new batch; halves when it names none.
fn split(mut items: Vec<Item>, text: &str, work: &mut Vec<Work>, outcomes: &mut Outcomes) {
    if let [item] = items.as_slice() {
        let object = &item.object;
        warn!(object.bucket = %object.bucket, object.key = %object.key, object.etag = %object.etag,
            "object cannot be loaded and goes back to the queue: {text}");
        let reason = text.to_owned();
        outcomes.push((item.announced, Outcome::Failed { reason }));
        return;
    }
    let keys = items
        .iter()
        .map(|item| item.object.key.as_str())
        .enumerate();
    let rest = match named_object(text, keys) {
        Some(index) => {
            let named = items.remove(index);
            info!(object.key = %named.object.key, others = items.len(), "splitting: {text}");
            work.push(Work::new(vec![named]));
            items
        }
        None => {
            info!(objects = items.len(), "splitting into halves: {text}");
            let rest = items.split_off(items.len() / 2);
            work.push(Work::new(items));
            rest
        }
    };
    work.push(Work::new(rest));
}

/// Looking at the objects as they are now failed.
struct Refused {
    items: Vec<Item>,
    text: String,
}

impl Loader {
    /// Takes one batch through the protocol.
    async fn load_batch(
        &self,
        items: Vec<Item>,
        cancel: &CancellationToken,
        outcomes: &mut Outcomes,
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
        match loading.run(Run::load(), outcomes).await {
            Ok(End::Loaded) => {
                settle(&loading.items, &Outcome::Loaded, outcomes);
                BatchEnd::Settled
            }
            Ok(End::NothingFree) => BatchEnd::Settled,
            Ok(End::Yielded) => BatchEnd::Yielded(loading.items),
            Ok(End::Fenced) => {
                settle(&loading.items, &Outcome::Busy, outcomes);
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
