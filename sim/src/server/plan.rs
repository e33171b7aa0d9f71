//! Statements as the simulation builds them: what a guard refuses, what a line is, and how lines
//! are cut into blocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sluice::batch::{BatchId, StatementShape};
use sluice::ledger::Permit;
use sluice::object::{Compression, ObjectId, ObjectRef};
use sluice::rejects::RejectPage;
use sluice::statements::framing::{OBJECT_DIGITS, ROW_DIGITS};
use sluice::statements::insert::Planner;
use uuid::Uuid;

use super::errors;
use super::ledger_rows::Event;
use super::log::View;
use super::parts::{Kind, Layout, LineRow, PartRows, TableId};
use super::state::{Answer, State};

/// The number of lines in a block, where there are many: small, so that small objects have many.
const LINES_OF_A_BLOCK: usize = 4;

/// The condition under which a statement must not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guard {
    pub(super) batch: BatchId,
    pub(super) attempt: u32,
    /// By the servers' clock, in milliseconds since 1970.
    deadline: Option<i64>,
}

/// Where the lines of a statement come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The objects, which the server reads or the client sends.
    Objects,
    /// The rejects of a page that are valid rows now. The statement writes the snapshot of a replay.
    Rejects(Box<RejectPage>),
    /// The snapshot of the batch, which is a replay.
    Snapshot,
}

/// A statement that loads objects, or moves rejects of them.
pub(super) struct Plan {
    pub(super) batch: BatchId,
    pub(super) guard: Guard,
    pub(super) shape: StatementShape,
    pub(super) objects: Vec<ObjectRef>,
    pub(super) source: Source,
    /// Whether the tables keep each line by itself.
    pub(super) keeps_lines: bool,
    pub(super) planner: Arc<Planner>,
    pub(super) layout: Arc<Layout>,
    /// The only table that it fills, or `None` if it fills all of them.
    pub(super) only: Option<TableId>,
}

/// A line of an object of a plan.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// The position of the object in the plan.
    object: usize,
    kind: Kind,
    is_first: bool,
    looks_compressed: bool,
    /// The line itself, if the tables keep it.
    row: Option<Box<LineRow>>,
}

impl Guard {
    pub(super) fn of(permit: &Permit) -> Self {
        Self {
            batch: permit.batch(),
            attempt: permit.attempt(),
            deadline: permit.deadline_millis(),
        }
    }

    /// Returns the guard as the text that a statement has.
    pub(super) fn text(&self) -> String {
        let Self {
            batch,
            attempt,
            deadline,
        } = self;
        let deadline = deadline.map_or(String::new(), |at| format!(" {at}"));
        format!("{batch} {attempt}{deadline}")
    }

    /// Returns the guard of a text.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let batch = BatchId(Uuid::parse_str(words.next()?).ok()?);
        let attempt = words.next()?.parse().ok()?;
        let deadline = words.next().map(str::parse).transpose().ok()?;
        Some(Self {
            batch,
            attempt,
            deadline,
        })
    }

    /// Checks whether a statement may start.
    ///
    /// # Errors
    ///
    /// The error of the guard if the view shows a fence of the attempt or one of these events, or
    /// if the permit has expired.
    pub(super) fn check(&self, state: &State, ended_by: &[Event], view: View) -> Answer<()> {
        let State { ledger, log, .. } = state;
        let now = i64::try_from(view.now).unwrap_or(i64::MAX);
        let is_refused = self.deadline.is_some_and(|deadline| now >= deadline)
            || ledger.has_event(self.batch, ended_by, log, view)
            || ledger.is_fenced(self.batch, self.attempt, log, view);
        match is_refused {
            true => Err(errors::fenced()),
            false => Ok(()),
        }
    }
}

impl Plan {
    /// Returns how long the statement may run.
    pub(super) fn time_limit(&self) -> Duration {
        self.planner.options().insert_timeout
    }

    /// Returns the tables that it fills, of all those in this order.
    pub(super) fn tables(&self, mut order: Vec<TableId>) -> Vec<TableId> {
        if let Some(only) = self.only {
            return vec![only];
        }
        order.retain(|table| self.layout.tables.contains(table));
        order
    }

    pub(super) fn reads_objects(&self) -> bool {
        matches!(self.source, Source::Objects)
    }

    /// Returns the position of an object in this plan.
    pub(super) fn position(&self, object: ObjectId) -> Option<usize> {
        let mut objects = self.objects.iter();
        objects.position(|listed| listed.id() == object)
    }

    /// Appends the lines of an object of this plan.
    pub(super) fn parse(&self, object: usize, content: &[u8], lines: &mut Vec<Line>) {
        for (number, line) in (0..).zip(lines_of(content)) {
            lines.push(self.line(object, number, line));
        }
    }

    /// Returns the lines of a body in which each line has a prefix.
    pub(super) fn parse_framed(&self, body: &[u8]) -> Option<Vec<Line>> {
        let of_framed = |framed: &[u8]| {
            let (object, rest) = framed.split_at_checked(OBJECT_DIGITS)?;
            let (row, line) = rest.split_at_checked(ROW_DIGITS)?;
            let object = usize::try_from(number(object)?).ok()?.checked_sub(1)?;
            self.objects.get(object)?;
            Some(self.line(object, number(row)?, line))
        };
        lines_of(body).map(of_framed).collect()
    }

    /// Returns the line of this number and text in an object of this plan.
    pub(super) fn line(&self, object: usize, number: u64, text: &[u8]) -> Line {
        let kind = kind_of(&self.planner, &self.layout, &self.objects[object].key, text);
        let row = || {
            let text: &[u8] = if self.layout.is_reject(kind) {
                text
            } else {
                &[]
            };
            Box::new(LineRow {
                number,
                text: text.to_vec(),
                rejected_by: None,
            })
        };
        Line {
            object,
            kind,
            is_first: number == 0,
            looks_compressed: Compression::seen("", text) != Compression::None,
            row: self.keeps_lines.then(row),
        }
    }

    /// Returns the line of a reject if it is a valid row now.
    pub(super) fn valid_line(&self, object: usize, row: LineRow) -> Option<Line> {
        let line = self.line(object, row.number, &row.text);
        let is_valid = self.layout.is_event(line.kind);
        is_valid.then(|| Line {
            row: Some(Box::new(row)),
            ..line
        })
    }

    /// Returns the lines in blocks. A retry cuts the same blocks.
    pub(super) fn blocks<'a>(
        &self,
        lines: &'a [Line],
    ) -> impl Iterator<Item = &'a [Line]> + use<'a> {
        let size = match self.shape.many_blocks {
            true => LINES_OF_A_BLOCK,
            false => lines.len().max(1),
        };
        lines.chunks(size)
    }

    /// Returns the rows of a block in a table.
    pub(super) fn rows(&self, block: &[Line], table: TableId) -> Vec<PartRows> {
        let is_count = table == self.layout.counts;
        if self.keeps_lines && !is_count {
            return self.rows_by_line(block, table);
        }
        let mut rows: BTreeMap<(usize, Kind), PartRows> = BTreeMap::new();
        for line in block {
            if !is_count && line.kind != Kind::Of(table) {
                continue;
            }
            let object = self.objects[line.object].id();
            let row = rows.entry((line.object, line.kind));
            let row = row.or_insert_with(|| PartRows::new(object, line.kind));
            row.rows += 1;
            row.looks_compressed |= line.is_first && line.looks_compressed;
        }
        rows.into_values().collect()
    }

    /// Returns the rows of a block in a table that is not that of the counts, one for each line. A
    /// snapshot has lines of all kinds.
    fn rows_by_line(&self, block: &[Line], table: TableId) -> Vec<PartRows> {
        let is_snapshot = table == self.layout.snapshots;
        let lines = block.iter();
        let lines = lines.filter(|line| is_snapshot || line.kind == Kind::Of(table));
        let row = |line: &Line| {
            let mut row = PartRows::new(self.objects[line.object].id(), line.kind);
            row.rows = 1;
            row.looks_compressed = line.is_first && line.looks_compressed;
            row.line.clone_from(&line.row);
            row
        };
        lines.map(row).collect()
    }

    /// Returns the number of lines of each kind in each object.
    pub(super) fn counts(&self, lines: &[Line]) -> Vec<(ObjectId, BTreeMap<Kind, u64>)> {
        let objects = self.objects.iter();
        let mut counts: Vec<_> = objects.map(|it| (it.id(), BTreeMap::new())).collect();
        for line in lines {
            *counts[line.object].1.entry(line.kind).or_default() += 1;
        }
        counts
    }
}

impl Layout {
    /// Returns whether lines of this kind are rejects.
    pub(super) fn is_reject(&self, kind: Kind) -> bool {
        [self.rejected, self.unmatched]
            .map(Kind::Of)
            .contains(&kind)
    }

    /// Returns whether lines of this kind are rows of an event type.
    pub(super) fn is_event(&self, kind: Kind) -> bool {
        kind != Kind::Blank && !self.is_reject(kind)
    }
}

/// Returns what a line in the object of this key is. Its text is a word.
pub(super) fn kind_of(planner: &Planner, layout: &Layout, key: &str, text: &[u8]) -> Kind {
    let Layout {
        tables,
        rejected,
        unmatched,
        ..
    } = layout;
    let word = match std::str::from_utf8(text) {
        Ok(text) if !is_too_long(planner, text.as_bytes()) => text.trim(),
        _ => return Kind::Of(*rejected),
    };
    let types = planner.catalog().types();
    match word {
        "" => Kind::Blank,
        "unmatched" => Kind::Of(*unmatched),
        _ => match types.iter().position(|it| it.name == word) {
            None => Kind::Of(*rejected),
            Some(index) if types[index].is_looked_for_in(key) => Kind::Of(tables[index]),
            Some(_) => Kind::Of(*unmatched),
        },
    }
}

/// Returns whether a line is rejected without being parsed.
pub(super) fn is_too_long(planner: &Planner, text: &[u8]) -> bool {
    text.len() as u64 > planner.options().max_line_bytes
}

/// Returns lines as `LineAsString` splits them.
fn lines_of(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    lines.map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
