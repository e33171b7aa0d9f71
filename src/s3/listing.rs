//! Lists the objects of a bucket, a part at a time, and selects from them.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use crate::Env;
use crate::notification::filter::Filter;
use crate::object::ObjectUrl;
use crate::s3::{Listed, Page, Store, StoreError};
use crate::util::key_time::KeyTime;
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
    /// Where a key names the time of its object.
    pub key_time: KeyTime,
}

/// Whether a selection contains an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Selected {
    Yes,
    No,
    /// It was uploaded within the time range, and its key names a time more than a day away from
    /// that, outside of the range.
    OtherTimeInKey,
}

impl Selection {
    fn takes(&self, listed: &Listed) -> Selected {
        let key = &listed.object.key;
        if !self.filters.iter().all(|filter| filter.takes_key(key)) {
            return Selected::No;
        }
        if self.since.is_none() && self.until.is_none() {
            return Selected::Yes;
        }
        let uploaded = listed.last_modified;
        let upload = uploaded..uploaded + Duration::from_nanos(1);
        let named = self.key_time.of(key);
        let is_within = |time: &Range<SystemTime>| {
            self.since.is_none_or(|since| time.end > since)
                && self.until.is_none_or(|until| time.start < until)
        };
        match named {
            None if is_within(&upload) => Selected::Yes,
            Some(named) if is_within(&named) => Selected::Yes,
            Some(named)
                if is_within(&upload)
                    && (named.end + DAY < uploaded || uploaded + DAY < named.start) =>
            {
                Selected::OtherTimeInKey
            }
            _ => Selected::No,
        }
    }
}

const DAY: Duration = Duration::from_secs(86_400);

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
    left_out: LeftOut,
    /// The pause before a retry, while S3 is unavailable.
    retry: Backoff,
    env: Env,
}

/// The objects that were left out because of the time in their keys.
#[derive(Default)]
struct LeftOut {
    count: u64,
    /// The key of the first one.
    example: String,
}

enum Position {
    Start,
    After(String),
}

/// The number of objects in one lookup in the ledger. In a large ledger, a lookup of fewer objects
/// reads almost as much.
pub const CHUNK: usize = 5000;

impl LeftOut {
    fn add(&mut self, listed: Listed) {
        if self.count == 0 {
            self.example = listed.object.into_parts().key;
        }
        self.count += 1;
    }

    fn log(&self) {
        if self.count > 0 {
            warn!(
                objects = self.count,
                example = self.example,
                "objects that were uploaded within the time range were left out, since their keys \
                 name other days; if these are not the days of the objects, set s3.key_time"
            );
        }
    }
}

impl<L: Listing> Lister<L> {
    pub fn new(listing: L, selection: Selection, retry: Backoff, env: Env) -> Self {
        Self {
            listing,
            selection,
            position: Some(Position::Start),
            left_out: LeftOut::default(),
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
            for listed in page.objects {
                match self.selection.takes(&listed) {
                    Selected::Yes => chunk.push(listed),
                    Selected::No => {}
                    Selected::OtherTimeInKey => self.left_out.add(listed),
                }
            }
            if self.position.is_none() {
                self.left_out.log();
            }
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
                key_time: KeyTime::Auto,
            };
            selection.takes(&listed(key)) == Selected::Yes
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

    #[test]
    fn objects_whose_keys_name_other_days_than_that_of_their_upload_are_mentioned() {
        let selection = Selection {
            prefix: "s3://b".parse().unwrap(),
            filters: Vec::new(),
            since: Some(at("2026-07-10T00:00:00Z")),
            until: Some(at("2026-07-11T00:00:00Z")),
            key_time: KeyTime::Auto,
        };
        let takes = |key: &str, uploaded: &str| {
            selection.takes(&Listed {
                object: object("b", key, "e"),
                last_modified: at(uploaded),
            })
        };
        let within = "2026-07-10T12:00:00Z";
        assert_eq!(takes("2024-01-15/a", within), Selected::OtherTimeInKey);
        assert_eq!(takes("2027-01-15/a", within), Selected::OtherTimeInKey);
        // Uploaded at the end of the day before, or after it.
        assert_eq!(takes("2026-07-09/a", within), Selected::No);
        assert_eq!(takes("2026-07-11/a", within), Selected::No);
        assert_eq!(takes("2024-01-15/a", "2024-01-15T12:00:00Z"), Selected::No);
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
            key_time: KeyTime::Auto,
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
