//! Lists the objects of a bucket, a part at a time, and selects from them.

use std::ops::Range;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use regex::Regex;
use tracing::{info, warn};

use crate::Env;
use crate::notification::filter::Filter;
use crate::object::ObjectUrl;
use crate::s3::{Listed, Page, Store, StoreError};
use crate::util::outage::OutageLog;
use sluice_core::backoff::Backoff;

/// A selection of objects.
#[derive(Debug)]
pub struct Selection {
    pub prefix: ObjectUrl,
    /// A key must match each of these filters.
    pub filters: Vec<Filter>,
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
}

impl Selection {
    /// Returns whether the selection contains an object.
    pub fn takes(&self, listed: &Listed) -> bool {
        let key = &listed.object.key;
        self.filters.iter().all(|filter| filter.takes_key(key)) && self.takes_time(listed)
    }

    /// Returns whether an object's time, or the day or hour that its key names, overlaps with the
    /// time range.
    fn takes_time(&self, listed: &Listed) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let modified = listed.last_modified;
        let moment = modified..modified + Duration::from_nanos(1);
        let time = time_in(&listed.object.key).unwrap_or(moment);
        self.since.is_none_or(|since| time.end > since)
            && self.until.is_none_or(|until| time.start < until)
    }
}

/// Returns the day or hour, in UTC, that a key names first: `2026/11/23/`, `2026-11-23` (as in
/// `dt=2026-11-23`), `2026-11-23T15…` or `20261123`.
pub fn time_in(key: &str) -> Option<Range<SystemTime>> {
    static DATE: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(
            "(?:^|[^0-9])([0-9]{4})(?:/([0-9]{2})/([0-9]{2})/|\
             -([0-9]{2})-([0-9]{2})(?:T([0-9]{2})|[^0-9]|$)|\
             ([0-9]{2})([0-9]{2})(?:[^0-9]|$))",
        )
        .ok()
    });
    const HOUR: Duration = Duration::from_secs(3600);
    let date = DATE.as_ref()?;
    let mut at = 0;
    while let Some(found) = date.captures_at(key, at) {
        let parts: Vec<&str> = found
            .iter()
            .skip(1)
            .flatten()
            .map(|it| it.as_str())
            .collect();
        let (day, hour) = parts.split_at(3);
        let text = format!("{}T{}:00:00Z", day.join("-"), hour.first().unwrap_or(&"00"));
        if let Ok(start) = humantime::parse_rfc3339(&text) {
            let length = if hour.is_empty() { HOUR * 24 } else { HOUR };
            return Some(start..start + length);
        }
        // Digits that are not a date may overlap with a date.
        at = found.get(1)?.start() + 1;
    }
    None
}

/// Where a [`Lister`] reads its pages. A simulation can replace it.
pub trait Listing: Send + Sync + 'static {
    /// Returns a page of the objects whose keys begin with that of `prefix`, in the order of S3.
    /// `after` is [`Page::next`] of the page before, if there is one.
    fn list(
        &self,
        prefix: &ObjectUrl,
        after: Option<&str>,
    ) -> impl Future<Output = Result<Page, StoreError>> + Send;
}

impl Listing for Store {
    async fn list(&self, prefix: &ObjectUrl, after: Option<&str>) -> Result<Page, StoreError> {
        self.list(prefix, after).await
    }
}

/// Reads a listing to its end.
pub struct Lister<L: Listing = Store> {
    listing: L,
    selection: Selection,
    /// Where the next page begins, or `None` at the end.
    position: Option<Position>,
    /// The pause before a retry, while S3 is unavailable.
    retry: Backoff,
    env: Env,
}

enum Position {
    Start,
    After(String),
}

/// The number of objects in one lookup in the ledger. In a large ledger, a lookup of fewer objects
/// reads almost as much.
pub const CHUNK: usize = 5000;

impl<L: Listing> Lister<L> {
    pub fn new(listing: L, selection: Selection, retry: Backoff, env: Env) -> Self {
        Self {
            listing,
            selection,
            position: Some(Position::Start),
            retry,
            env,
        }
    }

    /// Returns the next selected objects, or `None` at the end. Retries while S3 is unavailable.
    pub async fn next(&mut self) -> Result<Option<Vec<Listed>>, StoreError> {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK
            && let Some(position) = &self.position
        {
            let after = match position {
                Position::Start => None,
                Position::After(token) => Some(token.as_str()),
            };
            let page = self.page(after).await?;
            self.position = page.next.map(Position::After);
            let objects = page.objects.into_iter();
            chunk.extend(objects.filter(|listed| self.selection.takes(listed)));
        }
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }

    async fn page(&self, after: Option<&str>) -> Result<Page, StoreError> {
        let mut outage = OutageLog::once();
        loop {
            match self.listing.list(&self.selection.prefix, after).await {
                Err(error) if error.is_transient() => {
                    let failure = outage.failed(());
                    if failure.is_mentioned {
                        warn!(
                            error = %error,
                            "failed to list objects; listing is paused until S3 responds"
                        );
                    }
                    let pause = self.retry.pause(failure.failures, self.env.fraction());
                    tokio::time::sleep(pause).await;
                }
                page => {
                    if outage.succeeded().is_some() {
                        info!("S3 has recovered; listing resumed");
                    }
                    return page;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use sluice_core::fixtures::object;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn the_first_date_of_a_key_counts() {
        let day = |day: &str| {
            let start = at(&format!("{day}T00:00:00Z"));
            Some(start..start + Duration::from_secs(86_400))
        };
        let hour = |hour: &str| {
            let start = at(&format!("{hour}:00:00Z"));
            Some(start..start + Duration::from_secs(3600))
        };
        for (key, expected) in [
            ("2026/11/23/a.jsonl", day("2026-11-23")),
            ("section/1/2026/11/23/15/a.jsonl", day("2026-11-23")),
            ("dt=2026-11-23/a.jsonl", day("2026-11-23")),
            ("events-2026-11-23", day("2026-11-23")),
            ("a/2026-11-23T15-10-00Z.jsonl", hour("2026-11-23T15")),
            ("a/2026-11-23Today.jsonl", day("2026-11-23")),
            ("a_20261123.jsonl", day("2026-11-23")),
            ("20261123", day("2026-11-23")),
            ("2026-11-23/copy-of-2025-01-01", day("2026-11-23")),
            ("2026-13-01/2026-12-01", day("2026-12-01")),
            ("20269999-11-23/20261124", day("2026-11-24")),
            ("1202611231.jsonl", None),
            ("2026/11/a.jsonl", None),
            ("2026/02/30/a", None),
            ("no date", None),
        ] {
            assert_eq!(time_in(key), expected, "{key}");
        }
    }

    #[test]
    fn the_time_is_that_of_the_key_or_else_of_the_object() {
        let listed = |key: &str| Listed {
            object: object("b", key, "e"),
            last_modified: at("2026-01-10T12:00:00Z"),
        };
        let within = |since: Option<&str>, until: Option<&str>, key: &str| {
            let selection = Selection {
                prefix: "s3://b".parse().unwrap(),
                filters: Vec::new(),
                since: since.map(at),
                until: until.map(at),
            };
            selection.takes(&listed(key))
        };
        let (day, noon, next) = (
            "2026-01-10T00:00:00Z",
            "2026-01-10T12:00:00Z",
            "2026-01-11T00:00:00Z",
        );
        // A key without a date has the time of its upload.
        assert!(within(Some(noon), None, "a") && within(Some(day), Some(next), "a"));
        assert!(!within(None, Some(noon), "a") && !within(Some(next), None, "a"));
        // The day overlaps with the range.
        assert!(within(Some(noon), Some(next), "2026/01/10/a"));
        assert!(!within(Some(next), None, "2026/01/10/a"));
        assert!(!within(None, Some(day), "2026/01/10/a"));
        // The date is that of the key, and not of the object.
        assert!(!within(Some(day), Some(next), "2025/01/10/a"));
        assert!(within(None, None, "2025/01/10/a"));
    }

    /// The page that must be requested, and the answer.
    type Answer = (Option<&'static str>, Result<Page, StoreError>);

    /// Gives these answers, in order.
    struct Script(Mutex<VecDeque<Answer>>);

    impl Listing for Script {
        async fn list(&self, _: &ObjectUrl, after: Option<&str>) -> Result<Page, StoreError> {
            let (expected, answer) = self.0.lock().unwrap().pop_front().unwrap();
            assert_eq!(after, expected);
            answer
        }
    }

    fn lister(answers: impl IntoIterator<Item = Answer>) -> Lister<Script> {
        let selection = Selection {
            prefix: "s3://b".parse().unwrap(),
            filters: vec![Filter::new(&[], &[], &["*.tmp".to_owned()]).unwrap()],
            since: None,
            until: None,
        };
        let retry = Backoff {
            min: Duration::from_secs(1),
            max: Duration::from_secs(60),
        };
        let env = Env::seeded(7, SystemTime::UNIX_EPOCH);
        let script = Script(Mutex::new(answers.into_iter().collect()));
        Lister::new(script, selection, retry, env)
    }

    fn page(keys: &[&str], next: Option<&str>) -> Page {
        let listed = |key: &&str| Listed {
            object: object("b", key, "e"),
            last_modified: SystemTime::UNIX_EPOCH,
        };
        Page {
            objects: keys.iter().map(listed).collect(),
            next: next.map(str::to_owned),
        }
    }

    fn refused(status: u16, code: &str) -> StoreError {
        StoreError::Refused {
            status,
            code: code.to_owned(),
            path: "b/".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_waits_for_s3_and_continues_at_the_same_page() {
        let mut lister = lister([
            (None, Ok(page(&["1", "2.tmp"], Some("second")))),
            (Some("second"), Err(refused(503, "SlowDown"))),
            (Some("second"), Err(refused(500, "InternalError"))),
            (Some("second"), Ok(page(&[], Some("third")))),
            (Some("third"), Ok(page(&["3"], None))),
        ]);
        let listed = lister.next().await.unwrap().unwrap();
        let keys: Vec<&str> = listed.iter().map(|it| it.object.key.as_str()).collect();
        assert_eq!(keys, ["1", "3"]);
        assert_eq!(lister.next().await, Ok(None));
        assert!(lister.listing.0.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_that_s3_denies_ends_with_the_error() {
        let denied = refused(403, "AccessDenied");
        let mut lister = lister([(None, Err(denied.clone()))]);
        assert_eq!(lister.next().await, Err(denied));
    }
}
