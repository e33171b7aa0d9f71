//! What the janitor finds: rows of released batches, and whether they are copies.

use sluice::batch::BatchId;
use sluice::load::janitor::StrayRows;

use super::conditions::Condition;
use super::ledger_rows::Event;
use super::log::View;
use super::parts::{Kind, PartOfBatch, PartRows, TableId};
use super::state::State;

impl State {
    /// Returns the batches that were released since then and have rows in a table.
    pub(super) fn strays(&self, table: TableId, since: u64, view: View) -> Vec<BatchId> {
        let is_stray = |batch: &BatchId| {
            let mut events = self.ledger.events(*batch, &self.log, view);
            events.any(|it| it.row.event == Event::Released && it.at > since)
                && !self.shows(*batch, Event::Loaded, view)
                && self
                    .tables
                    .has_rows(table, &Condition::Of(*batch), &self.log, view)
        };
        self.ledger.batches().filter(is_stray).collect()
    }

    /// Returns the rows that a released batch has in a table, by part.
    pub(super) fn stray_rows(&self, table: TableId, batch: BatchId, view: View) -> Vec<StrayRows> {
        let parts = self.tables.parts_with_rows(table, batch, &self.log, view);
        let stray = |PartOfBatch { name, rows }: PartOfBatch| {
            let is_count = rows.iter().any(|row| row.kind != Kind::Of(table));
            let number = |rows: u64| if is_count { 1 } else { rows };
            let only_copies = |row: &PartRows| match is_count {
                true => 0,
                false => self.only_copies(table, batch, row, view),
            };
            StrayRows {
                name,
                rows: rows.iter().map(|row| number(row.rows)).sum(),
                only_copies: rows.iter().map(only_copies).sum(),
            }
        };
        parts.into_iter().map(stray).collect()
    }

    /// Returns how many of these rows of an object no other batch has that claims the object: 0 if
    /// none does.
    fn only_copies(&self, table: TableId, batch: BatchId, row: &PartRows, view: View) -> u64 {
        let claims = self.ledger.claims_on(row.object, &self.log, view);
        let mut others: Vec<BatchId> = claims.map(|claim| claim.row.batch).collect();
        others.sort_unstable();
        others.dedup();
        others.retain(|other| *other != batch && !self.shows(*other, Event::Released, view));
        if others.is_empty() {
            return 0;
        }
        let is_copy = |other: &PartRows| {
            // Batches of objects have the same lines of an object, and replays have some of them.
            let numbers = [other, row].map(|it| it.line.as_ref().map(|line| line.number));
            other.object == row.object && numbers[0] == numbers[1]
        };
        let copies = |other: &BatchId| {
            let of_other = self.tables.of_batch(*other, &self.log, view);
            let copies = of_other.filter(|(of, other)| *of == table && is_copy(other));
            copies.map(|(_, other)| other.rows).sum::<u64>()
        };
        row.rows.saturating_sub(others.iter().map(copies).sum())
    }

    /// Returns whether a loaded batch has inserted rows into a table since the user's view on it
    /// was changed.
    pub(super) fn has_passed(&self, table: TableId, view: View) -> bool {
        let has_passed = |batch: BatchId| {
            let since = self.faults.view_changed_at;
            self.shows(batch, Event::Loaded, view) && self.tables.has_written(batch, table, since)
        };
        self.ledger.batches().any(has_passed)
    }

    fn shows(&self, batch: BatchId, event: Event, view: View) -> bool {
        self.ledger.has_event(batch, &[event], &self.log, view)
    }
}
