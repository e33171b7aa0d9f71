//! Rejects: which of them the tables show, what a replay selects of them, and its snapshot.

use std::collections::{BTreeMap, BTreeSet};

use sluice::batch::BatchId;
use sluice::object::ObjectId;
use sluice::rejects::ports::PreviewRow;
use sluice::rejects::{LineKey, RejectKind, RejectPage, RejectSelector};
use sluice::statements::insert::Planner;

use super::conditions::Condition;
use super::ledger_rows::{Event, replays};
use super::log::View;
use super::parts::{Kind, Layout, LineRow, PartRows, TableId};
use super::plan::{Line, Plan, is_too_long, kind_of};
use super::state::State;
use super::tables::REJECTED;

/// The number of lines of a page: small, so that a replay has several.
const PAGE_LINES: usize = 40;

/// The reason of a line that is too long to be parsed.
const TOO_LONG: &str = "too large";
/// The reason of a line that no event type matches.
const UNMATCHED: &str = "no event type";

/// A line in a table, for the checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLine {
    pub table: String,
    pub path: String,
    pub etag: String,
    /// The number of the line in its object, from 0.
    pub number: u64,
    pub batch: BatchId,
    /// Whether the batch is loaded.
    pub is_loaded: bool,
    /// Whether the batch is a replay.
    pub is_replay: bool,
}

/// A row of a table of rejects.
#[derive(Clone, Copy, Debug)]
struct Reject<'a> {
    object: ObjectId,
    batch: BatchId,
    text: &'a [u8],
}

/// The sorting key of the tables of rejects: path, etag and number of a line.
type Key<'a> = (&'a str, &'a str, u64);

type Rejects<'a> = BTreeMap<Key<'a>, Reject<'a>>;

/// The path, the etag, the kind and the reason of lines in a preview.
type Group<'a> = (&'a str, &'a str, &'a str, &'a str);

impl Layout {
    fn table_of(&self, kind: RejectKind) -> TableId {
        match kind {
            RejectKind::Rejected => self.rejected,
            RejectKind::Unmatched => self.unmatched,
        }
    }
}

impl State {
    /// Returns the rejects that a table shows of loaded batches. If there are several rows of a line,
    /// the table shows the last one.
    fn rejects(&self, table: TableId, view: View) -> Rejects<'_> {
        let mut rejects = Rejects::new();
        for (batch, row) in self.tables.rows_in(table, &self.log, view) {
            let Some(line) = &row.line else { continue };
            let (path, etag) = self.tables.source(row.object);
            let reject = Reject {
                object: row.object,
                batch,
                text: &line.text,
            };
            rejects.insert((path, etag, line.number), reject);
        }
        let mut are_loaded: BTreeMap<BatchId, bool> = BTreeMap::new();
        rejects.retain(|_, reject| {
            let (ledger, log) = (&self.ledger, &self.log);
            let is_loaded = || ledger.has_event(reject.batch, &[Event::Loaded], log, view);
            *are_loaded.entry(reject.batch).or_insert_with(is_loaded)
        });
        rejects
    }

    /// Returns the selected rejects of a table after a line.
    fn selected_rejects(
        &self,
        table: TableId,
        selector: &RejectSelector,
        after: Option<&LineKey>,
        view: View,
    ) -> Rejects<'_> {
        let prefix = selector.prefix.as_ref().map(|prefix| prefix.path());
        let prefix = prefix.unwrap_or_default();
        let mut rejects = self.rejects(table, view);
        rejects.retain(|key, _| {
            key.0.starts_with(&prefix) && after.is_none_or(|after| *key > key_of(after))
        });
        rejects
    }

    fn rejects_of_page(&self, layout: &Layout, page: &RejectPage, view: View) -> Rejects<'_> {
        let table = layout.table_of(page.kept);
        let mut rejects = self.selected_rejects(table, &page.selector, page.after.as_ref(), view);
        rejects.retain(|key, _| *key <= key_of(&page.last));
        rejects
    }

    /// Returns the next page of selected rejects after a line, or `None` at the end.
    pub(super) fn page(
        &self,
        layout: &Layout,
        kept: RejectKind,
        selector: &RejectSelector,
        after: Option<&LineKey>,
        view: View,
    ) -> Option<RejectPage> {
        let table = layout.table_of(kept);
        let rejects = self.selected_rejects(table, selector, after, view);
        let keys: Vec<&Key<'_>> = rejects.keys().take(PAGE_LINES).collect();
        let (path, etag, number) = **keys.last()?;
        Some(RejectPage {
            kept,
            selector: selector.clone(),
            after: after.cloned(),
            last: LineKey {
                source_path: path.to_owned(),
                source_etag: etag.to_owned(),
                row_number: number,
            },
            lines: keys.len() as u64,
        })
    }

    /// Returns what the rejects of a page would become.
    pub(super) fn preview(
        &self,
        planner: &Planner,
        layout: &Layout,
        page: &RejectPage,
        view: View,
    ) -> Vec<PreviewRow> {
        let mut counts: BTreeMap<Group<'_>, u64> = BTreeMap::new();
        for ((path, etag, _), reject) in self.rejects_of_page(layout, page, view) {
            let (_, key) = path.split_once('/').unwrap_or_default();
            let kind = kind_of(planner, layout, key, reject.text);
            let reason = match kind {
                Kind::Of(table) if table == layout.unmatched => UNMATCHED,
                Kind::Of(table) if table != layout.rejected => "",
                Kind::Of(_) if is_too_long(planner, reject.text) => TOO_LONG,
                Kind::Of(_) => REJECTED,
                Kind::Blank => "",
            };
            let group = (path, etag, self.tables.kind(kind), reason);
            *counts.entry(group).or_default() += 1;
        }
        let row = |(group, lines): (Group<'_>, u64)| {
            let (path, etag, kind, reason) = group;
            PreviewRow {
                source_path: path.to_owned(),
                source_etag: etag.to_owned(),
                kind: kind.to_owned(),
                reason: reason.to_owned(),
                lines,
            }
        };
        counts.into_iter().map(row).collect()
    }

    /// Returns the lines of a snapshot: the rejects of a page that are valid rows now, of the objects
    /// of the plan.
    pub(super) fn valid_rejects(&self, plan: &Plan, page: &RejectPage, view: View) -> Vec<Line> {
        let rejects = self.rejects_of_page(&plan.layout, page, view);
        let line = |((_, _, number), reject): (Key<'_>, Reject<'_>)| {
            let object = plan.position(reject.object)?;
            let row = LineRow {
                number,
                text: reject.text.to_vec(),
                rejected_by: Some(reject.batch),
            };
            plan.valid_line(object, row)
        };
        rejects.into_iter().filter_map(line).collect()
    }

    /// Returns the lines in the snapshot of a plan's batch, as the plan parses them.
    pub(super) fn lines_of_snapshot(&self, plan: &Plan, view: View) -> Vec<Line> {
        let rows = self.tables.snapshot(plan.batch, &self.log, view);
        let line = |row: &PartRows| {
            let (object, line) = (plan.position(row.object)?, row.line.as_ref()?);
            Some(plan.line(object, line.number, &line.text))
        };
        rows.iter().filter_map(line).collect()
    }

    /// Returns a condition as a statement has it that runs now: the rejects that a replay has moved
    /// are those of the snapshot that the server shows.
    pub(super) fn resolved(&self, condition: Condition, view: View) -> Condition {
        let Condition::MovedBy(batch) = condition else {
            return condition;
        };
        let mut lines: BTreeMap<BatchId, BTreeSet<(ObjectId, u64)>> = BTreeMap::new();
        for (object, number, rejected_by) in self.moved_by(batch, view) {
            let of_batch = lines.entry(rejected_by).or_default();
            of_batch.insert((object, number));
        }
        Condition::Lines(lines)
    }

    /// Returns the lines in the snapshot of a replay: the object, the number, and the batch whose
    /// reject each is.
    fn moved_by(&self, batch: BatchId, view: View) -> BTreeSet<(ObjectId, u64, BatchId)> {
        let rows = self.tables.snapshot(batch, &self.log, view);
        let moved = rows.iter().filter_map(|row| {
            let line = row.line.as_ref()?;
            Some((row.object, line.number, line.rejected_by?))
        });
        moved.collect()
    }

    /// Returns an object of which a replay has not inserted and counted each line of its snapshot
    /// once.
    pub(super) fn incomplete_replay(&self, batch: BatchId) -> Option<ObjectId> {
        let view = self.whole();
        let mut inserted: BTreeMap<ObjectId, Vec<u64>> = BTreeMap::new();
        let mut counted: BTreeMap<ObjectId, u64> = BTreeMap::new();
        for (_, row) in self.tables.of_batch(batch, &self.log, view) {
            match &row.line {
                Some(line) => inserted.entry(row.object).or_default().push(line.number),
                None => *counted.entry(row.object).or_default() += row.rows,
            }
        }
        let mut moved: BTreeMap<ObjectId, Vec<u64>> = BTreeMap::new();
        for (object, number, _) in self.moved_by(batch, view) {
            moved.entry(object).or_default().push(number);
        }
        let is_incomplete = |object: &ObjectId| {
            let mut inserted = inserted.get(object).cloned().unwrap_or_default();
            inserted.sort_unstable();
            let moved = moved.get(object).cloned().unwrap_or_default();
            let counted = counted.get(object).copied().unwrap_or_default();
            inserted != moved || counted != moved.len() as u64
        };
        let claims = self.ledger.claims_of(batch, &self.log, view);
        let mut objects = claims.map(|claim| claim.row.object.id());
        objects.find(is_incomplete)
    }

    /// Returns another loaded replay whose snapshot has one of the rejects in the snapshot of this
    /// one.
    pub(super) fn moved_beside(&self, batch: BatchId, view: View) -> Option<(BatchId, ObjectId)> {
        if !self.ledger.is_replay(batch) {
            return None;
        }
        let moved = self.moved_by(batch, view);
        let all = self.whole();
        let claims = self.ledger.claims_of(batch, &self.log, all);
        let on_same = claims.flat_map(|claim| {
            let object = claim.row.object.id();
            self.ledger.claims_on(object, &self.log, all)
        });
        let others = on_same.map(|claim| &claim.row);
        let others = others.filter(|it| it.batch != batch && replays(it.shape.read_by));
        let mut others: BTreeSet<BatchId> = others.map(|it| it.batch).collect();
        let loaded = [Event::Loaded];
        others.retain(|other| self.ledger.has_event(*other, &loaded, &self.log, view));
        others.into_iter().find_map(|other| {
            let moved_by_other = self.moved_by(other, view);
            let mut both = moved.intersection(&moved_by_other);
            let (object, ..) = both.next()?;
            Some((other, *object))
        })
    }

    /// Returns all lines that are rows of event types or rejects, whatever the replicas show.
    pub(super) fn lines(&self) -> Vec<TableLine> {
        let view = self.whole();
        let of_batch = move |batch: BatchId| {
            let is_loaded = self
                .ledger
                .has_event(batch, &[Event::Loaded], &self.log, view);
            let is_replay = self.ledger.is_replay(batch);
            let rows = self.tables.of_batch(batch, &self.log, view);
            rows.filter_map(move |(table, row)| {
                let (path, etag) = self.tables.source(row.object);
                Some(TableLine {
                    table: self.tables.name(table).to_owned(),
                    path: path.to_owned(),
                    etag: etag.to_owned(),
                    number: row.line.as_ref()?.number,
                    batch,
                    is_loaded,
                    is_replay,
                })
            })
        };
        self.tables.batches().flat_map(of_batch).collect()
    }
}

fn key_of(key: &LineKey) -> Key<'_> {
    (&key.source_path, &key.source_etag, key.row_number)
}
