//! Users' views that fail: is it an object's fault, or the view's?
//!
//! ClickHouse runs the views of a table as a part of the insert into it. A view that throws over one
//! object fails every insert that has the object; a view that throws over everything fails every
//! insert. What tells them apart is whether other objects get through.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::object::ObjectId;
use crate::schema::LANDING_PREFIX;
use crate::warehouse::WarehouseError;

/// With which ClickHouse leads to a view in which an insert has failed, the innermost first.
const PUSHING: &str = ": while pushing to view ";

/// A view that has failed an insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failing {
    /// `database.view`, as ClickHouse writes it.
    pub(super) view: String,
    /// The table of Sluice whose rows it reads; none where the insert had no landing table.
    pub(super) table: Option<String>,
}

/// Returns the user's view that the error comes from, if it comes from one.
pub(super) fn failing_view(error: &WarehouseError) -> Option<Failing> {
    let WarehouseError::Server { text, .. } = error else {
        return None;
    };
    // Behind the views stand the code's name and the version; before them anything, such as the name
    // of an object.
    let text = text
        .rsplit_once(". (")
        .map_or(text.as_str(), |(text, _)| text);
    let mut views: Vec<&str> = text.split(PUSHING).skip(1).collect();
    let first = views
        .iter()
        .rposition(|view| view.contains([':', '\'', '\n']));
    views.drain(..first.map_or(0, |at| at + 1));
    let own = views.iter().find_map(|view| {
        let (_, name) = view.split_once('.')?;
        name.trim_matches('`').strip_prefix(LANDING_PREFIX)
    });
    let innermost = *views.first()?;
    if own.is_some() && views.len() == 1 {
        return None;
    }
    Some(Failing {
        view: innermost.to_owned(),
        table: own.and_then(|name| Some(name.split_once("_to_")?.1.to_owned())),
    })
}

/// What inserts have brought to tables whose views can fail.
#[derive(Debug, Default)]
pub struct Views {
    state: Mutex<State>,
}

/// The inserts that have brought rows, by table.
pub(super) type Successes = BTreeMap<String, u64>;

#[derive(Debug, Default)]
struct State {
    successes: Successes,
    /// The objects that have failed alone since an insert last brought rows to the table that the
    /// view reads; by table and view.
    failed_alone: BTreeMap<(Option<String>, String), BTreeSet<ObjectId>>,
}

impl Views {
    /// Notes that an insert has brought rows to these tables.
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

    /// Returns whether an insert has since brought rows to the table that the view reads.
    pub(super) fn has_passed_since(&self, before: &Successes, failing: &Failing) -> bool {
        let state = self.state();
        match &failing.table {
            Some(table) => state.successes.get(table) > before.get(table),
            None => state.successes != *before,
        }
    }

    /// Notes that an object has failed alone, and returns how many objects have, one after the other.
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

    fn error(text: &str) -> WarehouseError {
        WarehouseError::Server {
            code: 395,
            text: text.to_owned(),
        }
    }

    fn of(text: &str) -> Option<(String, Option<String>)> {
        failing_view(&error(text)).map(|it| (it.view, it.table))
    }

    #[test]
    fn a_users_view_is_told_from_sluices_own() {
        assert_eq!(
            of(
                "DB::Exception: seven: while executing 'FUNCTION f(x) :: 1': while pushing to view \
                d.deep: while pushing to view d.user_view: while pushing to view \
                s.landing_bfa74211_to_video_events. (FUNCTION_THROW_IF) (version 26.7.2.1)"
            ),
            Some(("d.deep".to_owned(), Some("video_events".to_owned())))
        );
        assert_eq!(
            of("seven: while pushing to view d.user_view. (THROW) (version 26.7.2.1)"),
            Some(("d.user_view".to_owned(), None))
        );
        assert_eq!(
            of("Bad: while pushing to view s.landing_bfa74211_to_video_events. (X) (version 1)"),
            None
        );
        assert_eq!(of("Bad. (X) (version 1)"), None);
        assert_eq!(
            of("Bad. (At row 1): while pushing to view d.user_view. (X) (version 1)"),
            Some(("d.user_view".to_owned(), None))
        );
    }

    #[test]
    fn the_name_of_an_object_is_no_view() {
        assert_eq!(
            of(
                "Bad: (while reading 'b/k: while pushing to view d.v'): while executing S3. (X) (v)"
            ),
            None
        );
    }

    #[test]
    fn what_passes_through_one_table_says_nothing_of_the_views_of_another() {
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
