//! What has become of a load's objects so far, and what is still to be tried.

use tracing::{debug, warn};

use super::breaker::HaltedInsert;
use super::views::Successes;
use super::{Outcome, Outcomes};
use crate::batch::{BatchId, ReadBy};
use crate::clickhouse::error_class::{
    TOO_MANY_REJECTED_TEXT, is_missing, is_refusal, named_object,
};
use crate::ledger::Claim;
use crate::object::{ObjectId, ObjectRef};
use crate::telemetry::metrics;
use sluice_core::labelled;

/// Errors can name one object after the other; halves find many bad ones sooner.
const MAX_NAMED_SPLITS: u32 = 3;

/// An object on its way: what is read can be newer than what was announced.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) announced: ObjectId,
    pub(super) object: ObjectRef,
    /// Of `object`; it is a hash, and asked for at each step.
    pub(super) id: ObjectId,
    /// The batches that have loaded what was announced, and are to be superseded.
    pub(super) loaded_by: Vec<BatchId>,
    /// Of `object`.
    pub(super) proof: Proof,
}

/// What is known of the completeness of an object that ClickHouse reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Proof {
    /// Nothing yet, or ClickHouse itself notices what is missing.
    #[default]
    None,
    Whole,
    /// Nobody proves it, and the configuration accepts that.
    Waived,
    /// Neither shown nor refuted: ClickHouse is expected to refuse it. If it does not, the object
    /// fails for this reason.
    Doubtful(FailureClass, String),
    /// It is not to be loaded.
    Failed(FailureClass, String),
    /// The object is not what was announced any more.
    Changed(String),
}

impl Item {
    pub(super) fn new(object: ObjectRef, loaded_by: Vec<BatchId>) -> Self {
        let id = object.id();
        Self {
            announced: id,
            object,
            id,
            loaded_by,
            proof: Proof::None,
        }
    }

    /// What is there now is this.
    pub(super) fn becomes(&mut self, etag: &str, size: Option<u64>) {
        etag.clone_into(&mut self.object.etag);
        self.object.size = size;
        self.id = self.object.id();
        self.proof = Proof::None;
    }

    /// What has become another object meanwhile supersedes nothing.
    pub(super) fn claim(&self) -> Claim<'_> {
        let same = self.id == self.announced;
        Claim {
            object: &self.object,
            id: self.id,
            supersedes: if same { &self.loaded_by } else { &[] },
        }
    }
}

/// Objects to be loaded as one batch.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) items: Vec<Item>,
    pub(super) read_by: ReadBy,
    /// Streamed, although ClickHouse is thought to be able to read all of them.
    pub(super) by_choice: bool,
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
    pub(super) work: Vec<Work>,
    /// From a batch to what is split off it: the breaker still waits for these inserts.
    pub(super) halted: Option<HaltedInsert>,
    /// What had come through users' views when this load began.
    pub(super) passed_before: Successes,
}

#[derive(Debug)]
pub(super) struct FailedItem {
    pub(super) item: Item,
    pub(super) class: FailureClass,
    pub(super) reason: String,
}

labelled! {
    /// Why an object cannot be loaded, as `ledger_failures.class` has it.
    pub enum FailureClass {
        Missing = "missing",
        Denied = "denied",
        Rejected = "rejected",
        Unnameable = "unnameable",
        Unloadable = "unloadable",
        /// Nobody can tell whether it is whole.
        Unproven = "unproven",
        /// A user's view fails over it.
        View = "view",
    }
}

impl FailureClass {
    pub(super) fn of(text: &str) -> Self {
        if text.starts_with(TOO_MANY_REJECTED_TEXT) {
            Self::Rejected
        } else if is_missing(text) {
            Self::Missing
        } else if is_refusal(text) {
            Self::Denied
        } else {
            Self::Unloadable
        }
    }
}

impl Work {
    pub(super) fn new(items: Vec<Item>, read_by: ReadBy) -> Self {
        Self {
            items,
            read_by,
            by_choice: false,
            many_blocks: false,
            yields: 0,
            changes: 0,
            splits: 0,
            waited: false,
        }
    }

    pub(super) fn by_choice(items: Vec<Item>) -> Self {
        Self {
            by_choice: true,
            ..Self::new(items, ReadBy::Stream)
        }
    }
}

pub(super) fn unnameable() -> String {
    "ClickHouse cannot be told to read this key and no other: it contains `*`, `?`, `//`, \
     `{…}`, a line break, or a `.` or `..` between slashes; copy the object to another key"
        .to_owned()
}

impl Progress {
    pub(super) fn settle(&mut self, items: &[Item], outcome: &Outcome) {
        self.outcomes
            .extend(items.iter().map(|item| (item.announced, outcome.clone())));
    }

    pub(super) fn fail(&mut self, item: Item, class: FailureClass, reason: String) {
        self.failed.push(FailedItem {
            item,
            class,
            reason,
        });
    }

    /// Gives everything else the turn first.
    pub(super) fn wait(&mut self, work: Work) {
        let waited = true;
        self.work.insert(0, Work { waited, ..work });
    }

    /// These objects cannot be loaded like this: ClickHouse is to read what the worker read by
    /// choice; else they are tried in parts.
    pub(super) fn otherwise(&mut self, mut work: Work, text: &str) {
        if self.fail_the_unproven(&mut work) {
            if !work.items.is_empty() {
                self.work.push(work);
            }
        } else if work.by_choice {
            let objects = work.items.len();
            warn!(
                objects,
                error = text,
                "this worker cannot stream small objects; ClickHouse reads them. Where that lasts, \
                 see what `sluice check` says of the worker, or set `load.stream_below` to 0B"
            );
            self.work.push(Work::new(work.items, ReadBy::S3));
        } else {
            self.split(work, text);
        }
    }

    /// Removes the objects that must not be loaded, and returns whether there were any.
    fn fail_the_unproven(&mut self, work: &mut Work) -> bool {
        let before = work.items.len();
        for item in std::mem::take(&mut work.items) {
            match item.proof.clone() {
                Proof::Failed(class, reason) => self.fail(item, class, reason),
                _ => work.items.push(item),
            }
        }
        work.items.len() < before
    }

    /// The object that the error names alone, and the rest as a new batch; halves when it names
    /// none. An object that was alone already has failed.
    fn split(&mut self, work: Work, text: &str) {
        let mut items = work.items;
        if items.len() <= 1 {
            let class = FailureClass::of(text);
            for item in items {
                self.fail(item, class, text.to_owned());
            }
            return;
        }
        let keys = items
            .iter()
            .map(|item| item.object.key.as_str())
            .enumerate();
        let named = named_object(text, keys).filter(|_| work.splits < MAX_NAMED_SPLITS);
        let apart = match named {
            Some(index) => vec![items.remove(index)],
            None => items.split_off(items.len() / 2),
        };
        debug!(
            apart = apart.len(),
            rest = items.len(),
            error = text,
            "splitting a batch"
        );
        metrics::batch_split();
        for items in [apart, items] {
            self.work.push(Work {
                splits: work.splits + 1,
                ..Work::new(items, work.read_by)
            });
        }
    }
}
