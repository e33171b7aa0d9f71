//! The progress of a load: the outcomes of its objects so far, and the work that is left.

use std::sync::Arc;

use tracing::{debug, warn};

use super::breaker::ProbeGuard;
use super::cause::FailureCause;
use super::views::Successes;
use super::{Outcome, Outcomes};
use crate::batch::{BatchId, Layout, ReadBy};
use crate::formats::FormatId;
use crate::ledger::Claim;
use crate::object::{ObjectId, ObjectParts, ObjectRef};
use crate::s3::{ObjectMeta, StoreError};
use crate::telemetry::metrics;

/// How often a batch is split by the object that an error names. After that it is halved, which
/// finds many bad objects faster.
const MAX_NAMED_SPLITS: u32 = 3;

/// An object that is being loaded. It can be newer than the announced one.
#[derive(Clone, Debug)]
pub(super) struct PendingObject {
    pub(super) announced: ObjectId,
    pub(super) object: ObjectRef,
    /// The batches that have loaded the announced object, and that are superseded by this load.
    pub(super) loaded_by: Vec<BatchId>,
    /// The proof that `object` is whole.
    pub(super) proof: Proof,
}

/// Whether an object that ClickHouse reads is known to be whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Proof {
    /// Not known yet, or not required since ClickHouse itself detects what is missing.
    #[default]
    None,
    Whole,
    /// There is no proof, and the configuration accepts that.
    Waived,
    /// Neither proven nor refuted. ClickHouse is expected to refuse the object; if it does not, the
    /// object fails for this cause.
    Doubtful(FailureCause),
    /// The object must not be loaded.
    Failed(FailureCause),
    /// The object has changed since it was announced.
    Changed(StoreError),
}

impl PendingObject {
    pub(super) fn new(object: ObjectRef, loaded_by: Vec<BatchId>) -> Self {
        Self {
            announced: object.id(),
            object,
            loaded_by,
            proof: Proof::None,
        }
    }

    /// Replaces the etag and the size with those of the object that S3 has now.
    pub(super) fn set_version(&mut self, present: &ObjectMeta) {
        self.object = ObjectRef::from(ObjectParts {
            etag: present.etag.clone(),
            size: present.size,
            ..self.object.clone().into_parts()
        });
        self.proof = Proof::None;
    }

    /// Returns the claim of the object. If another object has replaced the announced one, it
    /// supersedes nothing.
    pub(super) fn claim(&self) -> Claim<'_> {
        let same = self.object.id() == self.announced;
        Claim {
            object: &self.object,
            supersedes: if same { &self.loaded_by } else { &[] },
        }
    }
}

/// Objects to be loaded as one batch.
#[derive(Debug)]
pub(super) struct WorkUnit {
    pub(super) items: Vec<PendingObject>,
    pub(super) read_by: ReadBy,
    /// The format that the keys of all objects have.
    pub(super) format: FormatId,
    /// The format and the structure in which the objects are read. `None` until the structure has
    /// been looked up, for a format that has one.
    pub(super) layout: Option<Arc<Layout>>,
    /// Whether the objects are streamed although ClickHouse is expected to be able to read them.
    pub(super) prefers_streaming: bool,
    /// Whether this is one object that is too large for one block.
    pub(super) many_blocks: bool,
    pub(super) yields: u32,
    pub(super) changes: u32,
    pub(super) splits: u32,
    /// The number of retries that an earlier batch of these objects has used.
    pub(super) retries: u32,
    /// Whether it has waited for others, to see whether they are loaded.
    pub(super) waited: bool,
}

/// The progress of a load.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) outcomes: Outcomes,
    pub(super) failed: Vec<FailedItem>,
    /// The work that is left, the last unit first.
    pub(super) work: Vec<WorkUnit>,
    /// Passed from a batch to the parts that are split off it: the breaker still waits for these
    /// inserts.
    pub(super) halted: Option<ProbeGuard>,
    /// What had passed through users' views when this load began.
    pub(super) passed_before: Successes,
}

#[derive(Debug)]
pub(super) struct FailedItem {
    pub(super) item: PendingObject,
    pub(super) cause: FailureCause,
}

impl WorkUnit {
    /// Creates a unit of objects with JSON lines.
    pub(super) fn new(items: Vec<PendingObject>, read_by: ReadBy) -> Self {
        Self {
            items,
            read_by,
            format: FormatId::JSON_LINES,
            layout: Some(Arc::default()),
            prefers_streaming: false,
            many_blocks: false,
            yields: 0,
            changes: 0,
            splits: 0,
            retries: 0,
            waited: false,
        }
    }

    pub(super) fn prefers_streaming(items: Vec<PendingObject>) -> Self {
        Self {
            prefers_streaming: true,
            ..Self::new(items, ReadBy::Stream)
        }
    }

    /// Creates a unit of these objects, of the same format and layout, of whose load nothing is
    /// known.
    pub(super) fn part(&self, items: Vec<PendingObject>, read_by: ReadBy) -> Self {
        Self {
            format: self.format,
            layout: self.layout.clone(),
            ..Self::new(items, read_by)
        }
    }

    /// Creates a unit of these objects with another layout, of whose load the same is known.
    pub(super) fn with(&self, items: Vec<PendingObject>, layout: Option<Arc<Layout>>) -> Self {
        Self {
            items,
            layout,
            read_by: self.read_by,
            format: self.format,
            prefers_streaming: self.prefers_streaming,
            many_blocks: self.many_blocks,
            yields: self.yields,
            changes: self.changes,
            splits: self.splits,
            retries: self.retries,
            waited: self.waited,
        }
    }
}

impl Progress {
    pub(super) fn settle(&mut self, items: &[PendingObject], outcome: &Outcome) {
        self.outcomes
            .extend(items.iter().map(|item| (item.announced, *outcome)));
    }

    pub(super) fn fail(&mut self, item: PendingObject, cause: FailureCause) {
        self.failed.push(FailedItem { item, cause });
    }

    /// Postpones these objects until all other work is done.
    pub(super) fn wait(&mut self, work: WorkUnit) {
        let waited = true;
        self.work.insert(0, WorkUnit { waited, ..work });
    }

    /// Decides how to load objects that cannot be loaded in their present form: ClickHouse reads
    /// what the worker preferred to stream; everything else is loaded in parts.
    pub(super) fn fall_back(&mut self, mut work: WorkUnit, cause: &FailureCause) {
        if self.fail_the_unproven(&mut work) {
            if !work.items.is_empty() {
                self.work.push(work);
            }
        } else if work.prefers_streaming {
            let objects = work.items.len();
            warn!(
                objects,
                error = %cause,
                "this worker cannot stream small objects; ClickHouse reads them. If this persists, \
                 run `sluice check`, or set `load.stream_below` to 0B"
            );
            self.work.push(WorkUnit::new(work.items, ReadBy::S3));
        } else {
            self.split(work, cause);
        }
    }

    /// Removes the objects that must not be loaded, and returns whether there were any.
    fn fail_the_unproven(&mut self, work: &mut WorkUnit) -> bool {
        let before = work.items.len();
        for item in std::mem::take(&mut work.items) {
            match item.proof.clone() {
                Proof::Failed(cause) => self.fail(item, cause),
                _ => work.items.push(item),
            }
        }
        work.items.len() < before
    }

    /// Splits a batch into the object that the cause names and the rest, or into halves if it names
    /// none. A single object has failed.
    fn split(&mut self, mut work: WorkUnit, cause: &FailureCause) {
        let mut items = std::mem::take(&mut work.items);
        if items.len() <= 1 {
            for item in items {
                self.fail(item, cause.clone());
            }
            return;
        }
        let culprit = cause.culprit(items.iter().map(|item| &item.object));
        let apart = match culprit.filter(|_| work.splits < MAX_NAMED_SPLITS) {
            Some(index) => vec![items.remove(index)],
            None => items.split_off(items.len() / 2),
        };
        debug!(
            apart = apart.len(),
            rest = items.len(),
            error = %cause,
            "splitting a batch"
        );
        metrics::batch_split();
        for items in [apart, items] {
            self.work.push(WorkUnit {
                splits: work.splits + 1,
                ..work.part(items, work.read_by)
            });
        }
    }
}
