//! Finds the user's view in which an insert failed, from the text of ClickHouse's error.

use super::WarehouseError;
use crate::statements::ddl::LANDING_PREFIX;

/// The text before the name of each view in which an insert has failed, the innermost view first.
const PUSHING: &str = ": while pushing to view ";

/// A view in which an insert has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// `database.view`, in ClickHouse's spelling.
    pub view: String,
    /// The table of Sluice that the view reads, or `None` if the insert had no landing table.
    pub table: Option<String>,
}

/// Returns the user's view in which the insert failed, if it failed in one.
pub fn failing_view(error: &WarehouseError) -> Option<Failing> {
    let WarehouseError::Server { text, .. } = error else {
        return None;
    };
    // The views are followed by the name of the code and the version. Any text can precede them,
    // such as the name of an object.
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

#[cfg(test)]
mod tests {
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
    fn a_users_view_is_distinguished_from_sluices_own() {
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
    fn the_name_of_an_object_is_not_mistaken_for_a_view() {
        assert_eq!(
            of(
                "Bad: (while reading 'b/k: while pushing to view d.v'): while executing S3. (X) (v)"
            ),
            None
        );
    }
}
