//! Which of the announced objects are to be loaded.

use globset::{GlobBuilder, GlobMatcher};

use super::Announced;
use crate::announce;

/// By event and key; what it leaves out is acknowledged.
#[derive(Debug, Default)]
pub struct Filter {
    /// What may stand behind `ObjectCreated:`; empty for anything.
    events: Vec<String>,
    /// Empty for all keys.
    include: Vec<GlobMatcher>,
    exclude: Vec<GlobMatcher>,
}

impl Filter {
    /// The error names the pattern that is none.
    pub fn new(events: &[String], include: &[String], exclude: &[String]) -> Result<Self, String> {
        let mut events = each(events, created_event)?;
        if events.iter().any(|event| event == "*") {
            events.clear();
        }
        Ok(Self {
            events,
            include: each(include, key_pattern)?,
            exclude: each(exclude, key_pattern)?,
        })
    }

    pub fn takes(&self, announced: &Announced) -> bool {
        let matches = |patterns: &[GlobMatcher]| {
            let key = &announced.object.key;
            patterns.iter().any(|pattern| pattern.is_match(key))
        };
        let event = &announced.event;
        (self.events.is_empty() || self.events.contains(event) || event == announce::EVENT)
            && (self.include.is_empty() || matches(&self.include))
            && !matches(&self.exclude)
    }
}

fn each<T>(texts: &[String], read: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    texts.iter().map(|text| read(text)).collect()
}

/// What stands behind `ObjectCreated:` in the name of an event; `*` for anything. The names are
/// those of a bucket's notification configuration, with or without its `s3:`.
pub fn created_event(name: &str) -> Result<String, String> {
    let bare = name.strip_prefix("s3:").unwrap_or(name);
    let event = bare.strip_prefix("ObjectCreated:").unwrap_or_default();
    let is_word = !event.is_empty() && event.chars().all(|c| c.is_ascii_alphabetic());
    if is_word || event == "*" {
        Ok(event.to_owned())
    } else {
        Err(format!("`{name}` is no event that creates an object"))
    }
}

/// A glob over whole keys; `*` and `?` stop at a slash, `**` does not.
pub fn key_pattern(glob: &str) -> Result<GlobMatcher, String> {
    GlobBuilder::new(glob)
        .literal_separator(true)
        .empty_alternates(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|error| format!("`{glob}` is no glob: {}", error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::tests::object;

    fn takes(filter: &Filter, event: &str, key: &str) -> bool {
        filter.takes(&Announced {
            event: event.to_owned(),
            object: object("bucket", key, "etag"),
        })
    }

    fn filter(events: &[&str], include: &[&str], exclude: &[&str]) -> Filter {
        let [events, include, exclude] = [events, include, exclude].map(|texts| {
            texts
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        });
        Filter::new(&events, &include, &exclude).unwrap()
    }

    #[test]
    fn everything_is_taken_unless_something_is_said() {
        for all in [
            Filter::default(),
            filter(&["ObjectCreated:*"], &[], &[]),
            filter(
                &["s3:ObjectCreated:Put", "s3:ObjectCreated:*"],
                &["**"],
                &[],
            ),
        ] {
            assert!(takes(&all, "Put", "a/b/c.jsonl"));
            assert!(takes(&all, "", "/.\n"));
        }
    }

    #[test]
    fn events_are_taken_by_name() {
        let puts = filter(&["s3:ObjectCreated:Put", "ObjectCreated:Post"], &[], &[]);
        assert!(takes(&puts, "Put", "a") && takes(&puts, "Post", "a"));
        assert!(takes(&puts, announce::EVENT, "a"));
        assert!(!takes(&puts, "Copy", "a") && !takes(&puts, "", "a"));
    }

    #[test]
    fn keys_are_taken_by_globs_and_an_exclusion_wins() {
        let filter = filter(
            &[],
            &["section/*/video/*.jsonl{,.gz}", "flat-[0-9]", "**/deep/**"],
            &["**/_tmp*", "section/7/**"],
        );
        for (key, expected) in [
            ("section/1/video/a.jsonl", true),
            ("section/1/video/a b+c%é.jsonl.gz", true),
            ("section/1/2/video/a.jsonl", false),
            ("section/1/video/sub/a.jsonl", false),
            ("section/1/video/a.json", false),
            ("flat-1", true),
            ("flat-12", false),
            ("a/b/deep/c/d", true),
            ("deep/c", true),
            ("a/deep/_tmp1", false),
            ("section/7/video/a.jsonl", false),
            ("Section/1/video/a.jsonl", false),
            ("", false),
        ] {
            assert_eq!(takes(&filter, "Put", key), expected, "{key}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for event in [
            "",
            "*",
            "ObjectRemoved:*",
            "ObjectCreated:",
            "ObjectCreated:Pu*",
        ] {
            assert!(created_event(event).is_err(), "{event}");
        }
        for glob in ["a[", "{a", "[z-a]"] {
            assert!(key_pattern(glob).is_err(), "{glob}");
        }
    }
}
