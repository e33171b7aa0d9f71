//! What has become of a load's objects so far, and what is still to be tried.

use tracing::{debug, warn};

use super::breaker::ProbeGuard;
use super::cause::FailureCause;
use super::views::Successes;
use super::{Outcome, Outcomes};
use crate::batch::{BatchId, ReadBy};
use crate::ledger::Claim;
use crate::object::{ObjectId, ObjectParts, ObjectRef};
use crate::s3::{ObjectMeta, StoreError};
use crate::telemetry::metrics;

/// Errors can name one object after the other; halves find many bad ones sooner.
const MAX_NAMED_SPLITS: u32 = 3;

/// An object on its way: what is read can be newer than what was announced.
#[derive(Clone, Debug)]
pub(super) struct PendingObject {
    pub(super) announced: ObjectId,
    pub(super) object: ObjectRef,
    /// The batches that have loaded what was announced, and are to be superseded.
    pub(super) loaded_by: Vec<BatchId>,
    /// Of `object`.
    pub(super) proof: Proof,
}

/// What is known of the completeness of an object that ClickHouse reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Proof {
    /// Nothing yet, or ClickHouse itself notices what is missing.
    #[default]
    None,
    Whole,
    /// Nobody proves it, and the configuration accepts that.
    Waived,
    /// Neither shown nor refuted: ClickHouse is expected to refuse it. If it does not, the object
    /// fails for this reason.
    Doubtful(FailureCause),
    /// It is not to be loaded.
    Failed(FailureCause),
    /// The object is not what was announced any more.
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

    /// What is there now is this.
    pub(super) fn set_version(&mut self, present: &ObjectMeta) {
        self.object = ObjectRef::from(ObjectParts {
            etag: present.etag.clone(),
            size: present.size,
            ..self.object.clone().into_parts()
        });
        self.proof = Proof::None;
    }

    /// What has become another object meanwhile supersedes nothing.
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
    /// Streamed, although ClickHouse is thought to be able to read all of them.
    pub(super) prefers_streaming: bool,
    /// One object that is too much for a block.
    pub(super) many_blocks: bool,
    pub(super) yields: u32,
    pub(super) changes: u32,
    pub(super) splits: u32,
    /// It has given others the turn, to see whether they are loaded.
    pub(super) waited: bool,
}

/// What has become of a load's objects so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) outcomes: Outcomes,
    pub(super) failed: Vec<FailedItem>,
    /// Still to be tried; the last first.
    pub(super) work: Vec<WorkUnit>,
    /// From a batch to what is split off it: the breaker still waits for these inserts.
    pub(super) halted: Option<ProbeGuard>,
    /// What had come through users' views when this load began.
    pub(super) passed_before: Successes,
}

#[derive(Debug)]
pub(super) struct FailedItem {
    pub(super) item: PendingObject,
    pub(super) cause: FailureCause,
}

impl WorkUnit {
    pub(super) fn new(items: Vec<PendingObject>, read_by: ReadBy) -> Self {
        Self {
            items,
            read_by,
            prefers_streaming: false,
            many_blocks: false,
            yields: 0,
            changes: 0,
            splits: 0,
            waited: false,
        }
    }

    pub(super) fn prefers_streaming(items: Vec<PendingObject>) -> Self {
        Self {
            prefers_streaming: true,
            ..Self::new(items, ReadBy::Stream)
        }
    }
}

impl Progress {
    pub(super) fn settle(&mut self, items: &[PendingObject], outcome: &Outcome) {
        self.outcomes
            .extend(items.iter().map(|item| (item.announced, outcome.clone())));
    }

    pub(super) fn fail(&mut self, item: PendingObject, cause: FailureCause) {
        self.failed.push(FailedItem { item, cause });
    }

    /// Gives everything else the turn first.
    pub(super) fn wait(&mut self, work: WorkUnit) {
        let waited = true;
        self.work.insert(0, WorkUnit { waited, ..work });
    }

    /// These objects cannot be loaded like this: ClickHouse is to read what the worker read by
    /// choice; else they are tried in parts.
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
                "this worker cannot stream small objects; ClickHouse reads them. Where that lasts, \
                 see what `sluice check` says of the worker, or set `load.stream_below` to 0B"
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

    /// The object that the cause names alone, and the rest as a new batch; halves when it names
    /// none. An object that was alone already has failed.
    fn split(&mut self, work: WorkUnit, cause: &FailureCause) {
        let mut items = work.items;
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
                ..WorkUnit::new(items, work.read_by)
            });
        }
    }
}
