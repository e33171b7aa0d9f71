//! The filter of announced objects.

use super::{Announced, names};
use crate::glob::Globs;
use crate::notification::announce;

/// A filter by event and key. Messages that announce only objects that it excludes are
/// acknowledged.
#[derive(Debug, Default)]
pub struct Filter {
    /// What may follow `ObjectCreated:`; empty for anything.
    events: Vec<String>,
    /// `None` for all keys.
    include: Option<Globs>,
    exclude: Option<Globs>,
}

impl Filter {
    /// Creates a filter from names of events and globs of keys.
    ///
    /// # Errors
    ///
    /// Names the first event or glob that is not valid.
    pub fn new(events: &[String], include: &[String], exclude: &[String]) -> Result<Self, String> {
        let read: Result<Vec<String>, String> =
            events.iter().map(|event| created_event(event)).collect();
        let mut events = read?;
        if events.iter().any(|event| event == names::ANY) {
            events.clear();
        }
        Ok(Self {
            events,
            include: some(include)?,
            exclude: some(exclude)?,
        })
    }

    /// Returns whether an announced object is to be loaded. An event that does not say how its
    /// object was created matches every entry of `events`.
    pub fn takes(&self, announced: &Announced) -> bool {
        let event = &announced.event;
        let any_kind = [names::ANY, announce::EVENT];
        (self.events.is_empty()
            || self.events.contains(event)
            || any_kind.contains(&event.as_str()))
            && self.takes_key(&announced.object.key)
    }

    /// Returns whether an object of this key is to be loaded, whatever its event.
    pub fn takes_key(&self, key: &str) -> bool {
        let is_in = |globs: &Globs| globs.take(key);
        self.include.as_ref().is_none_or(is_in) && !self.exclude.as_ref().is_some_and(is_in)
    }
}

fn some(globs: &[String]) -> Result<Option<Globs>, String> {
    if globs.is_empty() {
        return Ok(None);
    }
    Globs::new(globs).map(Some)
}

/// Returns what follows `ObjectCreated:` in the name of an event; `*` for anything. The names are
/// those of a bucket's notification configuration, with or without `s3:`.
///
/// # Errors
///
/// Names an event that does not create objects.
pub fn created_event(name: &str) -> Result<String, String> {
    let bare = name.strip_prefix("s3:").unwrap_or(name);
    let event = bare.strip_prefix("ObjectCreated:").unwrap_or_default();
    let is_word = !event.is_empty() && event.chars().all(|c| c.is_ascii_alphabetic());
    if is_word || event == names::ANY {
        Ok(names::kind(event))
    } else {
        Err(format!("`{name}` is not an event that creates an object"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::object;

    fn takes(filter: &Filter, event: &str, key: &str) -> bool {
        filter.takes(&Announced {
            event: event.to_owned(),
            at: None,
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
    fn a_filter_without_restrictions_matches_everything() {
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
            assert!(takes(&all, "*", "/.\n"));
        }
    }

    #[test]
    fn events_are_matched_by_name() {
        let puts = filter(&["s3:ObjectCreated:Put", "ObjectCreated:Post"], &[], &[]);
        assert!(takes(&puts, "Put", "a") && takes(&puts, "Post", "a"));
        assert!(takes(&puts, announce::EVENT, "a"));
        assert!(takes(&puts, "*", "a") && !takes(&puts, "Copy", "a"));
        assert!(takes(
            &filter(&["ObjectCreated:PutObject"], &[], &[]),
            "Put",
            "a"
        ));
    }

    #[test]
    fn keys_are_matched_by_globs_and_exclusions_win() {
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
    fn an_invalid_pattern_is_refused() {
        for event in [
            "",
            "*",
            "ObjectRemoved:*",
            "ObjectCreated:",
            "ObjectCreated:Pu*",
        ] {
            assert!(created_event(event).is_err(), "{event}");
        }
        assert!(Filter::new(&[], &["a[".to_owned()], &[]).is_err());
    }
}
