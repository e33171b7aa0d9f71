//! Routes: the objects in which an event type is looked for, by their keys.

use crate::glob::Globs;
use crate::sql;

/// A set of keys. The same regular expression decides here and in ClickHouse.
#[derive(Debug, Clone)]
pub struct Route(Globs);

impl Route {
    pub(super) fn new(globs: &[String]) -> Result<Self, String> {
        Globs::new(globs).map(Self)
    }

    /// Returns whether the object of this key is on the route.
    pub fn takes(&self, key: &str) -> bool {
        self.0.take(key)
    }

    /// Returns the condition on `source_path`, which is bucket and key.
    pub(crate) fn sql(&self) -> String {
        let key = "substring(source_path, position(source_path, '/') + 1)";
        format!("match({key}, {})", sql::string(self.0.expression()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(globs: &[&str]) -> Route {
        Route::new(&globs.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn clickhouse_evaluates_the_same_expression() {
        assert_eq!(
            route(&["a.b/*"]).sql(),
            r"match(substring(source_path, position(source_path, '/') + 1), '^(?s:a\\.b/[^/]*)$')"
        );
    }
}
