//! The invariants that the servers check themselves, on everything that was written and not on what
//! a replica shows.

use std::collections::{BTreeMap, BTreeSet};

use sluice::batch::BatchId;
use sluice::object::ObjectId;
use uuid::Uuid;

use super::ledger_rows::{Event, replays};
use super::parts::Kind;
use super::state::{Short, State};

/// What a read of an object found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// The number of lines of each kind.
    Whole(BTreeMap<Kind, u64>),
    /// A part of the object was missing, which the server did not notice.
    Cut,
}

/// The number of lines of each kind in each object.
type Lines = BTreeMap<ObjectId, BTreeMap<Kind, u64>>;

impl State {
    fn has_loaded(&self, batch: BatchId) -> bool {
        self.has_event(batch, Event::Loaded)
    }

    fn has_event(&self, batch: BatchId, event: Event) -> bool {
        self.ledger
            .has_event(batch, &[event], &self.log, self.whole())
    }

    /// Checks that rows that are committed belong to a batch that has not ended.
    pub(super) fn check_commit(&mut self, batch: BatchId) {
        let short = Short(batch);
        if self.has_loaded(batch) {
            self.violated(format!(
                "rows of the loaded batch {short} are inserted again"
            ));
        }
        if self.has_event(batch, Event::Released) {
            self.violated(format!("rows of the released batch {short} are inserted"));
        }
    }

    /// Checks that a batch that is released has no rows, and that none can come.
    ///
    /// A loaded batch may be released if all its objects are empty: then it stays loaded.
    pub(super) fn check_release(&mut self, batch: BatchId) {
        let short = Short(batch);
        if self.may_commit(batch) {
            self.violated(format!(
                "{short} is released while its statement is running"
            ));
        }
        let has_rows = {
            let mut rows = self.tables.of_batch(batch, &self.log, self.whole());
            rows.next().is_some()
        };
        if has_rows {
            self.violated(format!("{short} is released although it has rows"));
        }
    }

    /// Checks that a batch that is rolled back is not loaded, and that no row of it can come.
    pub(super) fn check_rollback(&mut self, batch: BatchId) {
        let short = Short(batch);
        if self.has_loaded(batch) {
            self.violated(format!("the loaded batch {short} is rolled back"));
        }
        if self.may_commit(batch) {
            self.violated(format!(
                "{short} is rolled back while its statement is running"
            ));
        }
    }

    /// Checks a batch whose record is about to be written.
    pub(super) fn check_record(&mut self, batch: BatchId) {
        let short = Short(batch);
        if self.has_event(batch, Event::Released) {
            self.violated(format!("the released batch {short} is recorded"));
        }
        // A record that is repeated changes nothing, however late it is.
        if self.has_loaded(batch) {
            return;
        }
        if let Some(object) = self.incomplete(batch) {
            let path = self.tables.path(object).to_owned();
            self.violated(format!("{short} is recorded without all rows of {path}"));
        }
        if let Some((other, object)) = self.loaded_beside(batch) {
            let (other, path) = (Short(other), self.tables.path(object).to_owned());
            self.violated(format!("{short} and {other} have both loaded {path}"));
        }
        if let Some((other, object)) = self.moved_beside(batch, self.whole()) {
            let (other, path) = (Short(other), self.tables.path(object).to_owned());
            self.violated(format!(
                "{short} and {other} have both moved a reject of {path}"
            ));
        }
    }

    /// Checks that a replay whose rejects are deleted has inserted them.
    pub(super) fn check_clean_up(&mut self, batch: BatchId) {
        if !self.has_loaded(batch) {
            let short = Short(batch);
            self.violated(format!("rejects are deleted that {short} has not moved"));
        }
    }

    /// Returns whether a statement of the batch is running and was not killed.
    fn may_commit(&self, batch: BatchId) -> bool {
        let mut running = self.running.values();
        running.any(|it| it.batch == batch && !it.is_killed())
    }

    /// Returns an object of which the tables have other rows than it has lines.
    fn incomplete(&self, batch: BatchId) -> Option<ObjectId> {
        if self.ledger.is_replay(batch) {
            return self.incomplete_replay(batch);
        }
        let (mut counted, mut stored) = (Lines::new(), Lines::new());
        let view = self.whole();
        for (table, row) in self.tables.of_batch(batch, &self.log, view) {
            let lines = match row.kind == Kind::Of(table) {
                true => &mut stored,
                false => &mut counted,
            };
            let lines = lines.entry(row.object).or_default();
            *lines.entry(row.kind).or_default() += row.rows;
        }
        let is_incomplete = |(object, plan): &(ObjectId, Uuid)| {
            let counted = counted.get(object).cloned().unwrap_or_default();
            let stored = stored.get(object).cloned().unwrap_or_default();
            let is_read = match self.read.get(&(*object, *plan)) {
                Some(Read::Whole(lines)) => *lines == counted,
                Some(Read::Cut) => true,
                None => false,
            };
            let mut with_rows = counted;
            with_rows.remove(&Kind::Blank);
            !is_read || stored != with_rows
        };
        let claims = self.ledger.claims_of(batch, &self.log, view);
        let mut objects = claims.map(|claim| (claim.row.object.id(), claim.row.shape.plan));
        let (object, _) = objects.find(is_incomplete)?;
        Some(object)
    }

    /// Returns another loaded batch with rows of an object of this one, where neither supersedes
    /// the other, and neither is a replay.
    fn loaded_beside(&self, batch: BatchId) -> Option<(BatchId, ObjectId)> {
        if self.ledger.is_replay(batch) {
            return None;
        }
        let view = self.whole();
        for claim in self.ledger.claims_of(batch, &self.log, view) {
            let object = claim.row.object.id();
            for other in self.ledger.claims_on(object, &self.log, view) {
                let (claim, other) = (&claim.row, &other.row);
                let is_superseded =
                    claim.supersedes.contains(&other.batch) || other.supersedes.contains(&batch);
                if other.batch != batch
                    && !is_superseded
                    && !replays(other.shape.read_by)
                    && self.has_loaded(other.batch)
                    && self.has_rows_of(batch, object)
                    && self.has_rows_of(other.batch, object)
                {
                    return Some((other.batch, object));
                }
            }
        }
        None
    }

    /// Returns the number of loaded batches that claim an object and that no other one supersedes,
    /// without the replays of its rejects.
    pub(super) fn loaded_batches(&self, object: ObjectId) -> usize {
        let view = self.whole();
        let claims = self.ledger.claims_on(object, &self.log, view);
        let claims = claims.filter(|it| !replays(it.row.shape.read_by));
        let loaded: Vec<_> = claims.filter(|it| self.has_loaded(it.row.batch)).collect();
        let superseded = loaded.iter().flat_map(|claim| &claim.row.supersedes);
        let superseded: BTreeSet<BatchId> = superseded.copied().collect();
        let batches: BTreeSet<BatchId> = loaded.iter().map(|claim| claim.row.batch).collect();
        batches.difference(&superseded).count()
    }

    fn has_rows_of(&self, batch: BatchId, object: ObjectId) -> bool {
        let mut rows = self.tables.of_batch(batch, &self.log, self.whole());
        rows.any(|(_, row)| row.object == object)
    }
}
