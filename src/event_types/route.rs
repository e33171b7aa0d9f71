//! Routes: which objects an event type is looked for in, by their keys.

use regex::Regex;

use crate::sql;

/// Globs on keys, of which one must match. The same regular expression decides here and in
/// ClickHouse, whose syntax for it is the same.
#[derive(Debug, Clone)]
pub struct Route(Regex);

impl Route {
    /// `*` stands for anything but a slash, `**` for anything.
    pub(super) fn new(globs: &[String]) -> Result<Self, regex::Error> {
        let globs: Vec<String> = globs.iter().map(|glob| expression(glob)).collect();
        Regex::new(&format!("^(?s:{})$", globs.join("|"))).map(Self)
    }

    pub fn takes(&self, key: &str) -> bool {
        self.0.is_match(key)
    }

    /// The condition on `source_path`, which is bucket and key.
    pub(super) fn sql(&self) -> String {
        let key = "substring(source_path, position(source_path, '/') + 1)";
        format!("match({key}, {})", sql::string(self.0.as_str()))
    }
}

fn expression(glob: &str) -> String {
    let mut out = String::new();
    let mut rest = glob;
    while let Some((text, after)) = rest.split_once('*') {
        out += &regex::escape(text);
        let (wildcard, after) = match after.strip_prefix('*') {
            Some(after) => (".*", after),
            None => ("[^/]*", after),
        };
        out += wildcard;
        rest = after;
    }
    out + &regex::escape(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(globs: &[&str]) -> Route {
        Route::new(&globs.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn stars_stand_for_names_and_two_for_whole_paths() {
        for (glob, key, takes) in [
            ("video/*.jsonl", "video/a.jsonl", true),
            ("video/*.jsonl", "video/b/a.jsonl", false),
            ("video/*.jsonl", "video/a.jsonl.gz", false),
            ("video/*.jsonl", "a/video/a.jsonl", false),
            ("**/video/*", "section/1/video/a", true),
            ("**/video/*", "video/a", false),
            ("video/**", "video/b/a.jsonl", true),
            ("**", "", true),
            ("a.b+c(d)", "a.b+c(d)", true),
            ("a.b", "aXb", false),
            ("é*", "éa", true),
        ] {
            assert_eq!(route(&[glob]).takes(key), takes, "{glob} {key}");
        }
        let either = route(&["a/**", "b/*"]);
        assert!(either.takes("a/x/y") && either.takes("b/x") && !either.takes("xb/x"));
    }

    #[test]
    fn clickhouse_is_asked_the_same() {
        assert_eq!(
            route(&["a.b/*"]).sql(),
            r"match(substring(source_path, position(source_path, '/') + 1), '^(?s:a\\.b/[^/]*)$')"
        );
    }
}
