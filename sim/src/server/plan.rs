//! Statements as the simulation builds them: what a guard refuses, what a line is, and how lines
//! are cut into blocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sluice::batch::{BatchId, StatementShape};
use sluice::ledger::Permit;
use sluice::object::{Compression, ObjectId, ObjectRef};
use sluice::statements::framing::{OBJECT_DIGITS, ROW_DIGITS};
use sluice::statements::insert::Planner;
use uuid::Uuid;

use super::errors;
use super::ledger_rows::Event;
use super::log::View;
use super::parts::{Kind, Layout, PartRows, TableId};
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

/// A statement that loads objects.
pub(super) struct Plan {
    pub(super) batch: BatchId,
    pub(super) guard: Guard,
    pub(super) shape: StatementShape,
    pub(super) objects: Vec<ObjectRef>,
    pub(super) planner: Arc<Planner>,
    pub(super) layout: Arc<Layout>,
    /// The only table that it fills, or `None` if it fills all of them.
    pub(super) only: Option<TableId>,
}

/// A line of an object of a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// The position of the object in the plan.
    object: usize,
    kind: Kind,
    is_first: bool,
    looks_compressed: bool,
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

    /// Returns whether it fills the table.
    pub(super) fn fills(&self, table: TableId) -> bool {
        match self.only {
            Some(only) => only == table,
            None => self.layout.tables.contains(&table),
        }
    }

    /// Appends the lines of an object of this plan.
    pub(super) fn parse(&self, object: usize, content: &[u8], lines: &mut Vec<Line>) {
        for (row, line) in lines_of(content).enumerate() {
            lines.push(self.line(object, row == 0, line));
        }
    }

    /// Returns the lines of a body in which each line has a prefix.
    pub(super) fn parse_framed(&self, body: &[u8]) -> Option<Vec<Line>> {
        let of_framed = |framed: &[u8]| {
            let (object, rest) = framed.split_at_checked(OBJECT_DIGITS)?;
            let (row, line) = rest.split_at_checked(ROW_DIGITS)?;
            let object = usize::try_from(number(object)?).ok()?.checked_sub(1)?;
            self.objects.get(object)?;
            Some(self.line(object, number(row)? == 0, line))
        };
        lines_of(body).map(of_framed).collect()
    }

    fn line(&self, object: usize, is_first: bool, text: &[u8]) -> Line {
        Line {
            object,
            kind: self.kind(&self.objects[object].key, text),
            is_first,
            looks_compressed: Compression::seen("", text) != Compression::None,
        }
    }

    /// Returns what a line is. Its text is a word.
    fn kind(&self, key: &str, text: &[u8]) -> Kind {
        let Layout {
            tables,
            rejected,
            unmatched,
            ..
        } = &*self.layout;
        let is_too_long = text.len() as u64 > self.planner.options().max_line_bytes;
        let word = match std::str::from_utf8(text) {
            Ok(text) if !is_too_long => text.trim(),
            _ => return Kind::Of(*rejected),
        };
        let types = self.planner.catalog().types();
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

/// Returns lines as `LineAsString` splits them.
fn lines_of(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    lines.map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
