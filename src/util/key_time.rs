//! The time that a key names.

use std::ops::Range;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use regex::Regex;

/// Where a key names the time of its object.
#[derive(Clone, Debug)]
pub enum KeyTime {
    /// In its last segment; or else in the nearest segments before it that are nothing but a date.
    Auto,
    /// Nowhere: the time of an object is that of its upload.
    Upload,
    /// In the text that the group of this expression matches.
    Group(Regex),
}

impl KeyTime {
    /// Reads `auto`, `upload` or a regular expression with one group.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the expression.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "upload" => return Ok(Self::Upload),
            _ => {}
        }
        let expression = Regex::new(text).map_err(|_| {
            format!("`{text}` is neither `auto` nor `upload`, nor a valid regular expression")
        })?;
        // The whole match counts as a group.
        match expression.captures_len() {
            2 => Ok(Self::Group(expression)),
            _ => Err(format!(
                "the regular expression `{text}` must have exactly one group"
            )),
        }
    }

    /// Returns the day or hour, in UTC, that a key names.
    pub fn of(&self, key: &str) -> Option<Range<SystemTime>> {
        match self {
            Self::Auto => {
                let (folders, name) = key.rsplit_once('/').unwrap_or(("", key));
                first_in(name).or_else(|| of_folders(folders))
            }
            Self::Upload => None,
            Self::Group(expression) => first_in(expression.captures(key)?.get(1)?.as_str()),
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// Returns the day or hour that a text names first: `2026-11-23`, `2026-11-23T15…`, `20261123` or
/// `2026/11/23`.
fn first_in(text: &str) -> Option<Range<SystemTime>> {
    static DATE: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(
            "(?:^|[^0-9])([0-9]{4})(?:/([0-9]{2})/([0-9]{2})(?:/|$)|\
             -([0-9]{2})-([0-9]{2})(?:T([0-9]{2})|[^0-9]|$)|\
             ([0-9]{2})([0-9]{2})(?:[^0-9]|$))",
        )
        .ok()
    });
    let date = DATE.as_ref()?;
    let mut at = 0;
    while let Some(found) = date.captures_at(text, at) {
        let parts: Vec<&str> = found
            .iter()
            .skip(1)
            .flatten()
            .map(|it| it.as_str())
            .collect();
        let (day, hour) = parts.split_at(3);
        if let Some(time) = day_or_hour(day, hour.first().copied()) {
            return Some(time);
        }
        // Digits that are not a date may overlap with a date.
        at = found.get(1)?.start() + 1;
    }
    None
}

/// Returns the day that the last of these folders name that are nothing but a date: `2026-11-23`,
/// `20261123`, `2026/11/23`, `year=2026/month=11/day=23`, and with any name before `=` in the first
/// two. A date that is a part of a folder's name, or the id of a section, is that of something else.
fn of_folders(folders: &str) -> Option<Range<SystemTime>> {
    static DATE: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(
            "^(?:(?:[^/=]+=)?([0-9]{4})-?([0-9]{2})-?([0-9]{2})|\
             (?:year=)?([0-9]{4})/(?:month=)?([0-9]{2})/(?:day=)?([0-9]{2}))(?:/|$)",
        )
        .ok()
    });
    let date = DATE.as_ref()?;
    let starts = folders.match_indices('/').map(|(slash, _)| slash + 1);
    let starts: Vec<usize> = std::iter::once(0).chain(starts).collect();
    let mut from_last = starts.into_iter().rev();
    from_last.find_map(|start| {
        let (before, folder) = folders.split_at(start);
        if before == "section/" || before.ends_with("/section/") {
            return None;
        }
        let found = date.captures(folder)?;
        let day: Vec<&str> = found
            .iter()
            .skip(1)
            .flatten()
            .map(|it| it.as_str())
            .collect();
        day_or_hour(&day, None)
    })
}

/// Returns the time of a day, given as year, month and day, or of an hour of it.
fn day_or_hour(day: &[&str], hour: Option<&str>) -> Option<Range<SystemTime>> {
    let text = format!("{}T{}:00:00Z", day.join("-"), hour.unwrap_or("00"));
    let start = humantime::parse_rfc3339(&text).ok()?;
    let length = if hour.is_none() { HOUR * 24 } else { HOUR };
    Some(start..start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    fn day(day: &str) -> Option<Range<SystemTime>> {
        let start = at(&format!("{day}T00:00:00Z"));
        Some(start..start + HOUR * 24)
    }

    fn hour(hour: &str) -> Option<Range<SystemTime>> {
        let start = at(&format!("{hour}:00:00Z"));
        Some(start..start + HOUR)
    }

    #[test]
    fn the_time_stands_in_the_last_segment_or_in_folders_that_are_dates() {
        for (key, expected) in [
            ("2026/11/23/a.jsonl", day("2026-11-23")),
            ("section/1/2026/11/23/15/a.jsonl", day("2026-11-23")),
            ("dt=2026-11-23/a.jsonl", day("2026-11-23")),
            ("dt=20261123/hour=15/a.jsonl", day("2026-11-23")),
            ("year=2026/month=11/day=23/a.jsonl", day("2026-11-23")),
            ("20261123/a.jsonl", day("2026-11-23")),
            ("events-2026-11-23", day("2026-11-23")),
            ("a/2026-11-23T15-10-00Z.jsonl", hour("2026-11-23T15")),
            ("a/2026-11-23Today.jsonl", day("2026-11-23")),
            ("a_20261123.jsonl", day("2026-11-23")),
            ("20261123", day("2026-11-23")),
            (
                "2025-01-01/from-2026-11-23-to-2026-11-24",
                day("2026-11-23"),
            ),
            ("2025-01-01/2026-11-23/a", day("2026-11-23")),
            ("2026-13-01/2026-12-01/a", day("2026-12-01")),
            ("a/20269999-11-23_20261124", day("2026-11-24")),
            ("section/chem_2024-01-15/video/a.jsonl", None),
            ("section/20240115/video/a.jsonl", None),
            ("uploads/section/2024-01-15/video/a.jsonl", None),
            ("section/20240115/2026-11-23/a.jsonl", day("2026-11-23")),
            ("batch-2024-01-15/a.jsonl", None),
            ("1202611231.jsonl", None),
            ("2026/11/a.jsonl", None),
            ("2026/02/30/a", None),
            ("no date", None),
        ] {
            assert_eq!(KeyTime::Auto.of(key), expected, "{key}");
        }
    }

    #[test]
    fn a_section_that_is_named_after_a_date_has_objects_of_other_days() {
        for section in ["4711", "chem_2024-01-15_intro", "20240115"] {
            let key = format!("section/{section}/video/2026-07-14T12-00-00.123456Z_0F1E.jsonl");
            assert_eq!(KeyTime::Auto.of(&key), hour("2026-07-14T12"), "{key}");
        }
    }

    #[test]
    fn a_group_names_the_part_of_the_key_that_counts() {
        let key = "logs/2026/11/23/rotated-2026-11-25.gz";
        let time = |text: &str| KeyTime::parse(text).unwrap().of(key);
        assert_eq!(time("auto"), day("2026-11-25"));
        assert_eq!(time("upload"), None);
        assert_eq!(time("^logs/(.*)/[^/]*$"), day("2026-11-23"));
        assert_eq!(time("-(.*)"), day("2026-11-25"));
        assert_eq!(time("^other/(.*)"), None);
    }

    #[test]
    fn an_expression_without_exactly_one_group_is_refused() {
        for text in ["", "logs/.*", "(a)(b)", "("] {
            assert!(KeyTime::parse(text).is_err(), "{text}");
        }
    }
}
