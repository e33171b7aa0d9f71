//! Decides whether an object or the view is at fault when a user's view fails an insert.
//!
//! ClickHouse runs the views of a table as a part of the insert into it. If a view throws on one
//! object, every insert that contains the object fails; if it throws on everything, every insert
//! fails. What distinguishes them is whether other objects pass through the view.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clickhouse::failing_view::Failing;
use crate::object::ObjectId;

/// Which inserts have succeeded or failed in tables whose views can fail.
#[derive(Debug, Default)]
pub(super) struct Views {
    state: Mutex<State>,
}

/// The number of inserts that have written rows, by table.
pub(super) type Successes = BTreeMap<String, u64>;

#[derive(Debug, Default)]
struct State {
    successes: Successes,
    /// The objects that have failed alone since an insert last wrote rows to the table that the
    /// view reads, by table and view.
    failed_alone: BTreeMap<(Option<String>, String), BTreeSet<ObjectId>>,
}

impl Views {
    /// Records that an insert has written rows to these tables.
    pub(super) fn succeeded(&self, tables: &[&str]) {
        let mut state = self.state();
        for table in tables {
            *state.successes.entry((*table).to_owned()).or_default() += 1;
        }
        state.failed_alone.retain(|(table, _), _| match table {
            Some(table) => !tables.contains(&table.as_str()),
            None => tables.is_empty(),
        });
    }

    pub(super) fn successes(&self) -> Successes {
        self.state().successes.clone()
    }

    /// Returns whether an insert has written rows to the table that the view reads since `before`.
    pub(super) fn has_passed_since(&self, before: &Successes, failing: &Failing) -> bool {
        let state = self.state();
        match &failing.table {
            Some(table) => state.successes.get(table) > before.get(table),
            None => state.successes != *before,
        }
    }

    /// Records that an object has failed alone, and returns how many different objects have done so
    /// since the last success.
    pub(super) fn failed_alone(&self, failing: &Failing, object: ObjectId) -> usize {
        let mut state = self.state();
        let key = (failing.table.clone(), failing.view.clone());
        let objects = state.failed_alone.entry(key).or_default();
        objects.insert(object);
        objects.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn inserts_into_one_table_do_not_count_for_the_views_of_another() {
        let views = Views::default();
        let failing = Failing {
            view: "d.v".to_owned(),
            table: Some("clicks".to_owned()),
        };
        let before = views.successes();
        let [one, other] = [1, 2].map(|id| ObjectId(Uuid::from_u128(id)));
        assert_eq!(views.failed_alone(&failing, one), 1);
        views.succeeded(&["other"]);
        assert!(!views.has_passed_since(&before, &failing));
        assert_eq!(views.failed_alone(&failing, other), 2);
        views.succeeded(&["clicks"]);
        assert!(views.has_passed_since(&before, &failing));
        assert_eq!(views.failed_alone(&failing, one), 1);
    }
}
