//! The tables: their parts, the deduplication tokens of their blocks, and the rows that a
//! statement sees.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice::batch::BatchId;
use sluice::event_types::Catalog;
use sluice::object::{ObjectId, ObjectRef};
use sluice::statements::ddl::REPLAYED;
use sluice::statements::select::Target;

use super::conditions::Condition;
use super::log::{Deletion, Log, Seq, View};

/// A table that batches are inserted into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TableId(usize);

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Its row is in this table.
    Of(TableId),
    Blank,
}

/// The tables of a catalog.
#[derive(Debug)]
pub(super) struct Layout {
    /// In the order of `Target::all`, which begins with those of the event types.
    pub(super) tables: Vec<TableId>,
    pub(super) rejected: TableId,
    pub(super) unmatched: TableId,
    /// The table of the counts, `object_rows`.
    pub(super) counts: TableId,
    /// The table of the snapshots of replays, which is not among `tables`.
    pub(super) snapshots: TableId,
}

/// A line in a table. Tables have them only if [`keeps_lines`](super::Options::keeps_lines) is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LineRow {
    /// The number of the line in its object, from 0.
    pub(super) number: u64,
    /// The text of a reject; empty for a line that is a row of an event type.
    pub(super) text: Vec<u8>,
    /// In a snapshot, the batch whose reject the line is.
    pub(super) rejected_by: Option<BatchId>,
}

/// Rows of one kind from one object in one block: a single one if the line is known. In the table of
/// the counts, one row.
#[derive(Clone, Debug)]
pub(super) struct PartRows {
    pub(super) object: ObjectId,
    pub(super) kind: Kind,
    /// The number of rows; in the table of the counts, the number that the row has.
    pub(super) rows: u64,
    /// Whether the first row is the first line of the object, and looks compressed.
    pub(super) looks_compressed: bool,
    pub(super) line: Option<Box<LineRow>>,
    deletion: Option<Deletion>,
}

impl PartRows {
    pub(super) fn new(object: ObjectId, kind: Kind) -> Self {
        Self {
            object,
            kind,
            rows: 0,
            looks_compressed: false,
            line: None,
            deletion: None,
        }
    }
}

/// What a block wrote to one table.
#[derive(Debug)]
struct Part {
    seq: Seq,
    table: TableId,
    batch: BatchId,
    /// The number of the block in its table, from 1.
    number: u64,
    at: u64,
    rows: Vec<PartRows>,
}

/// A part, by the order in which parts were committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PartId(usize);

#[derive(Debug)]
struct Table {
    name: String,
    /// The kind of its lines, unless it is the table of the counts.
    kind: Option<String>,
    /// The number of blocks that were inserted.
    blocks: u64,
    mutations: u64,
    mutated_at: u64,
}

/// The token of a block, as a table remembers it.
#[derive(Clone, Copy, Debug)]
struct Token {
    number: u64,
    at: u64,
}

/// How long tables remember the tokens of blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenWindow {
    /// The number of blocks of a table.
    pub(super) blocks: u64,
    /// On replicas.
    pub(super) age: Option<Duration>,
}

/// Live rows of a batch in one table from one object, for the checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRows {
    pub table: String,
    pub path: String,
    pub etag: String,
    pub kind: String,
    pub batch: BatchId,
    /// The number of rows; in `object_rows`, the sum of the counts.
    pub rows: u64,
}

/// A part of a batch in a table.
#[derive(Clone, Debug)]
pub(super) struct PartOfBatch {
    pub(super) name: String,
    pub(super) rows: Vec<PartRows>,
}

/// All tables and their rows.
#[derive(Debug)]
pub(super) struct Tables {
    tables: Vec<Table>,
    /// The order in which a block is committed to the tables.
    order: Vec<TableId>,
    snapshots: Option<TableId>,
    window: TokenWindow,
    parts: Vec<Part>,
    of_batch: BTreeMap<BatchId, Vec<usize>>,
    tokens: BTreeMap<(TableId, BatchId, u32), Token>,
    /// The path and the etag of each object.
    sources: BTreeMap<ObjectId, (String, String)>,
}

impl Tables {
    pub(super) fn new(window: TokenWindow) -> Self {
        Self {
            tables: Vec::new(),
            order: Vec::new(),
            snapshots: None,
            window,
            parts: Vec::new(),
            of_batch: BTreeMap::new(),
            tokens: BTreeMap::new(),
            sources: BTreeMap::new(),
        }
    }

    /// Returns the tables of a catalog, and creates those that do not exist.
    pub(super) fn layout(&mut self, catalog: &Catalog, rng: &mut fastrand::Rng) -> Layout {
        let targets = Target::all(catalog);
        let tables = targets.iter().map(|target| self.create(*target));
        let tables: Vec<TableId> = tables.collect();
        let mut missing = tables.clone();
        missing.retain(|table| !self.order.contains(table));
        rng.shuffle(&mut missing);
        self.order.extend(missing);
        let snapshots = self.create_named(REPLAYED, None);
        self.snapshots = Some(snapshots);
        Layout {
            rejected: self.create(Target::RejectedLines),
            unmatched: self.create(Target::UnmatchedStatements),
            counts: self.create(Target::ObjectRows),
            snapshots,
            tables,
        }
    }

    fn create(&mut self, target: Target<'_>) -> TableId {
        self.create_named(target.table(), target.kind())
    }

    fn create_named(&mut self, name: &str, kind: Option<&str>) -> TableId {
        if let Some(table) = self.named(name) {
            return table;
        }
        self.tables.push(Table {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            blocks: 0,
            mutations: 0,
            mutated_at: 0,
        });
        TableId(self.tables.len() - 1)
    }

    pub(super) fn named(&self, name: &str) -> Option<TableId> {
        let position = self.tables.iter().position(|table| table.name == name);
        position.map(TableId)
    }

    pub(super) fn name(&self, table: TableId) -> &str {
        &self.tables[table.0].name
    }

    /// Returns the name of a kind, as in `object_rows`.
    pub(super) fn kind(&self, kind: Kind) -> &str {
        match kind {
            Kind::Of(table) => self.tables[table.0].kind.as_deref().unwrap_or_default(),
            Kind::Blank => sluice::statements::select::BLANK,
        }
    }

    /// Returns the kinds of all lines that have rows.
    pub(super) fn kinds(&self) -> impl Iterator<Item = Kind> {
        let tables = self.tables.iter().enumerate();
        let with_rows = tables.filter(|(_, table)| table.kind.is_some());
        with_rows.map(|(index, _)| Kind::Of(TableId(index)))
    }

    pub(super) fn order(&self) -> Vec<TableId> {
        self.order.clone()
    }

    pub(super) fn learn(&mut self, object: &ObjectRef) {
        let source = || (object.path(), object.etag.clone());
        self.sources.entry(object.id()).or_insert_with(source);
    }

    /// Returns the path and the etag of an object.
    pub(super) fn source(&self, object: ObjectId) -> (&str, &str) {
        let source = self.sources.get(&object);
        source.map_or(("", ""), |(path, etag)| (path.as_str(), etag.as_str()))
    }

    pub(super) fn path(&self, object: ObjectId) -> &str {
        let source = self.sources.get(&object);
        source.map_or("", |(path, _)| path.as_str())
    }

    /// Inserts a block into one table, unless the table remembers its token. Returns the part.
    pub(super) fn insert(
        &mut self,
        (table, batch, block): (TableId, BatchId, u32),
        rows: Vec<PartRows>,
        now: u64,
        write: impl FnOnce() -> Seq,
    ) -> Option<PartId> {
        let blocks = &mut self.tables[table.0].blocks;
        if let Some(token) = self.tokens.get(&(table, batch, block))
            && self.window.remembers(*token, *blocks, now)
        {
            return None;
        }
        *blocks += 1;
        let number = *blocks;
        let token = Token { number, at: now };
        self.tokens.insert((table, batch, block), token);
        let index = self.parts.len();
        self.parts.push(Part {
            seq: write(),
            table,
            batch,
            number,
            at: now,
            rows,
        });
        self.of_batch.entry(batch).or_default().push(index);
        Some(PartId(index))
    }

    /// Loses the rows of a part, unless another server has them. Its token stays. Returns its table
    /// if the rows are lost.
    pub(super) fn lose(&mut self, part: PartId, log: &mut Log, view: View) -> Option<TableId> {
        let part = &mut self.parts[part.0];
        if log.is_shown_elsewhere(part.seq, view) {
            return None;
        }
        log.forget(part.seq);
        part.rows.clear();
        Some(part.table)
    }

    /// Deletes the rows that were written before `until` and meet the condition. Returns their
    /// number, and the deletions of all rows that met it, those that had begun before among them.
    pub(super) fn delete(
        &mut self,
        (table, condition, until): (TableId, &Condition, Seq),
        log: &mut Log,
        view: View,
        rng: &mut fastrand::Rng,
    ) -> (u64, BTreeSet<Deletion>) {
        let mutations = self.tables[table.0].mutations;
        let of_batch = &self.of_batch;
        let indexes = condition.batches().filter_map(|batch| of_batch.get(&batch));
        let (mut rows, mut deletion) = (0, None);
        let mut deletions = BTreeSet::new();
        for index in indexes.flatten() {
            let part = &mut self.parts[*index];
            if part.table != table
                || part.seq >= until
                || !condition.has_part(|| part.name(mutations))
            {
                continue;
            }
            let batch = part.batch;
            let matching = part.rows.iter_mut();
            for row in matching.filter(|row| condition.has_row(batch, row)) {
                match row.deletion {
                    Some(begun) => log.delete_here(begun, view),
                    None => {
                        let begin = || log.delete(view, rng);
                        row.deletion = Some(*deletion.get_or_insert_with(begin));
                        rows += row.rows;
                    }
                }
                deletions.extend(row.deletion);
            }
        }
        let table = &mut self.tables[table.0];
        table.mutations += 1;
        table.mutated_at = view.now;
        (rows, deletions)
    }

    /// Returns whether a mutation of each of these tables has ended since `since`.
    pub(super) fn are_mutated(&self, tables: &[String], since: u64) -> bool {
        let is_mutated = |it: &Table| it.mutations > 0 && it.mutated_at >= since;
        tables.iter().all(|name| {
            let mut named = self.tables.iter().filter(|table| table.name == *name);
            named.any(is_mutated)
        })
    }

    /// Returns the rows of a table that meet the condition and that the view shows.
    fn rows_of<'a>(
        &'a self,
        table: TableId,
        condition: &'a Condition,
        log: &'a Log,
        view: View,
    ) -> impl Iterator<Item = &'a PartRows> {
        let mutations = self.tables[table.0].mutations;
        let parts = condition
            .batches()
            .flat_map(move |batch| self.parts_of(batch, log, view));
        let parts = parts.filter(move |part| part.table == table);
        let parts = parts.filter(move |part| condition.has_part(|| part.name(mutations)));
        let rows = parts.flat_map(move |part| {
            let rows = part.rows.iter();
            rows.filter(move |row| condition.has_row(part.batch, row))
        });
        rows.filter(move |row| !log.is_deleted(row.deletion, view))
    }

    fn parts_of<'a>(
        &'a self,
        batch: BatchId,
        log: &'a Log,
        view: View,
    ) -> impl Iterator<Item = &'a Part> {
        let indexes = self.of_batch.get(&batch).into_iter().flatten();
        let parts = indexes.map(move |index| &self.parts[*index]);
        parts.filter(move |part| log.shows(part.seq, view))
    }

    pub(super) fn has_rows(
        &self,
        table: TableId,
        condition: &Condition,
        log: &Log,
        view: View,
    ) -> bool {
        let mut rows = self.rows_of(table, condition, log, view);
        rows.next().is_some()
    }

    /// Returns the rows of a batch in all tables that batches fill, each with its table. The
    /// snapshot of a replay is not among them.
    pub(super) fn of_batch<'a>(
        &'a self,
        batch: BatchId,
        log: &'a Log,
        view: View,
    ) -> impl Iterator<Item = (TableId, &'a PartRows)> {
        let parts = self.parts_of(batch, log, view);
        let parts = parts.filter(move |part| Some(part.table) != self.snapshots);
        parts.flat_map(move |part| {
            let rows = part.rows.iter();
            let live = rows.filter(move |row| !log.is_deleted(row.deletion, view));
            live.map(move |row| (part.table, row))
        })
    }

    /// Returns the rows of a table by the order in which they were inserted, each with its batch.
    pub(super) fn rows_in<'a>(
        &'a self,
        table: TableId,
        log: &'a Log,
        view: View,
    ) -> impl Iterator<Item = (BatchId, &'a PartRows)> {
        let parts = self.parts.iter();
        let parts = parts.filter(move |part| part.table == table && log.shows(part.seq, view));
        parts.flat_map(move |part| {
            let rows = part.rows.iter();
            let live = rows.filter(move |row| !log.is_deleted(row.deletion, view));
            live.map(move |row| (part.batch, row))
        })
    }

    /// Returns the rows in the snapshot of a replay, by the order in which they were inserted.
    pub(super) fn snapshot(&self, batch: BatchId, log: &Log, view: View) -> Vec<PartRows> {
        let parts = self.snapshots.into_iter();
        let parts = parts.flat_map(|table| self.parts_with_rows(table, batch, log, view));
        parts.flat_map(|part| part.rows).collect()
    }

    /// Returns all batches that have inserted anything.
    pub(super) fn batches(&self) -> impl Iterator<Item = BatchId> {
        self.of_batch.keys().copied()
    }

    /// Returns the parts of a table in which a batch has rows.
    pub(super) fn parts_with_rows(
        &self,
        table: TableId,
        batch: BatchId,
        log: &Log,
        view: View,
    ) -> Vec<PartOfBatch> {
        let mutations = self.tables[table.0].mutations;
        let parts = self.parts_of(batch, log, view);
        let parts = parts.filter(|part| part.table == table).map(|part| {
            let mut rows = part.rows.clone();
            rows.retain(|row| !log.is_deleted(row.deletion, view));
            PartOfBatch {
                name: part.name(mutations),
                rows,
            }
        });
        parts.filter(|part| !part.rows.is_empty()).collect()
    }

    /// Returns whether a batch has inserted rows into a table since this time.
    pub(super) fn has_written(&self, batch: BatchId, table: TableId, since: u64) -> bool {
        let indexes = self.of_batch.get(&batch).into_iter().flatten();
        let mut parts = indexes.map(|index| &self.parts[*index]);
        parts.any(|part| part.table == table && part.at > since)
    }

    /// Returns all live rows, whatever the replicas show.
    pub(super) fn live(&self, log: &Log, now: u64) -> Vec<TableRows> {
        let view = View::whole(now);
        let mut live: BTreeMap<_, u64> = BTreeMap::new();
        for batch in self.of_batch.keys() {
            for (table, row) in self.of_batch(*batch, log, view) {
                *live
                    .entry((table, row.object, row.kind, *batch))
                    .or_default() += row.rows;
            }
        }
        let live = live
            .into_iter()
            .map(|((table, object, kind, batch), rows)| {
                let (path, etag) = self.sources.get(&object).cloned().unwrap_or_default();
                TableRows {
                    table: self.name(table).to_owned(),
                    path,
                    etag,
                    kind: self.kind(kind).to_owned(),
                    batch,
                    rows,
                }
            });
        live.collect()
    }
}

impl TokenWindow {
    fn remembers(self, token: Token, blocks: u64, now: u64) -> bool {
        let age = Duration::from_millis(now.saturating_sub(token.at));
        blocks - token.number < self.blocks && self.age.is_none_or(|max_age| age < max_age)
    }
}

impl Part {
    /// Returns its name, which changes with every mutation of the table.
    fn name(&self, mutations: u64) -> String {
        let number = self.number;
        match mutations {
            0 => format!("all_{number}_{number}_0"),
            _ => format!("all_{number}_{number}_0_{mutations}"),
        }
    }
}
