//! When is a batch full, and what is in it.
//!
//! Pure: time is an argument. Objects of different buckets never share a batch, since one `s3()`
//! call names keys of one bucket.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use crate::object::{Compression, ObjectRef};

/// Time-ordered (UUID version 7). It is the stem of the batch's query ids, its dedup token and the
/// `batch_id` of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub Uuid);

impl BatchId {
    pub fn now() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who reads the objects of a batch; `ledger_objects.read_by` says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadBy {
    /// ClickHouse, with `s3()`.
    #[default]
    S3,
    /// This worker, which streams them into its insert.
    Stream,
    /// ClickHouse, of what it kept of them: lines that are replayed.
    RejectedLines,
    UnmatchedStatements,
}

impl ReadBy {
    pub fn label(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Stream => "stream",
            Self::RejectedLines => "rejected_lines",
            Self::UnmatchedStatements => "unmatched_statements",
        }
    }
}

/// What closes a batch, whichever comes first.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Counted from the first object.
    pub window: Duration,
    pub max_objects: usize,
    /// Estimated uncompressed bytes.
    pub max_bytes: u64,
}

/// Why a batch was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    Window,
    Count,
    Bytes,
    /// The next object is another version of a key that the batch holds: they cannot be read side
    /// by side.
    SameKey,
    /// The object is too large to share a batch.
    Large,
}

impl CloseReason {
    pub fn label(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::SameKey => "same_key",
            Self::Large => "large",
        }
    }
}

/// A closed batch: its list never changes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub bucket: String,
    /// Sorted by key, every key once.
    pub objects: Vec<ObjectRef>,
    pub reason: CloseReason,
    /// When its first object came.
    pub opened_at: Instant,
    pub closed_at: Instant,
}

/// Gathers objects into batches, one open batch a bucket.
#[derive(Debug)]
pub struct Batcher {
    limits: BatchLimits,
    open: BTreeMap<String, OpenBatch>,
}

#[derive(Debug)]
struct OpenBatch {
    /// By key: what is read is named by its key.
    objects: BTreeMap<String, ObjectRef>,
    bytes: u64,
    opened_at: Instant,
    due: Instant,
}

impl OpenBatch {
    fn close(self, bucket: String, reason: CloseReason, now: Instant) -> Batch {
        Batch {
            bucket,
            objects: self.objects.into_values().collect(),
            reason,
            opened_at: self.opened_at,
            closed_at: now,
        }
    }
}

impl Batcher {
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            open: BTreeMap::new(),
        }
    }

    /// Takes an object in; gives the batches that this closes. An object that is in the open batch
    /// already changes nothing.
    pub fn add(&mut self, object: ObjectRef, now: Instant) -> Vec<Batch> {
        let mut closed = Vec::new();
        let bytes = estimated_bytes(&object);
        if bytes > self.limits.max_bytes {
            let bucket = object.bucket.clone();
            closed.push(Batch {
                bucket,
                objects: vec![object],
                reason: CloseReason::Large,
                opened_at: now,
                closed_at: now,
            });
            return closed;
        }
        if let Some(open) = self.open.get(&object.bucket) {
            let displaced = match open.objects.get(&object.key) {
                Some(held) if held.id() == object.id() => return closed,
                Some(_) => Some(CloseReason::SameKey),
                None if open.bytes.saturating_add(bytes) > self.limits.max_bytes => {
                    Some(CloseReason::Bytes)
                }
                None => None,
            };
            if let Some(reason) = displaced {
                closed.extend(self.close(&object.bucket, reason, now));
            }
        }
        let bucket = object.bucket.clone();
        let open = self
            .open
            .entry(bucket.clone())
            .or_insert_with(|| OpenBatch {
                objects: BTreeMap::new(),
                bytes: 0,
                opened_at: now,
                due: now + self.limits.window,
            });
        open.bytes += bytes;
        open.objects.insert(object.key.clone(), object);
        if open.objects.len() >= self.limits.max_objects {
            closed.extend(self.close(&bucket, CloseReason::Count, now));
        }
        closed
    }

    /// The batches whose window has ended.
    pub fn take_due(&mut self, now: Instant) -> Vec<Batch> {
        let due: Vec<String> = self
            .open
            .iter()
            .filter(|(_, open)| open.due <= now)
            .map(|(bucket, _)| bucket.clone())
            .collect();
        due.iter()
            .filter_map(|bucket| self.close(bucket, CloseReason::Window, now))
            .collect()
    }

    /// Every open batch, due or not.
    pub fn take_all(&mut self, now: Instant) -> Vec<Batch> {
        let buckets: Vec<String> = self.open.keys().cloned().collect();
        buckets
            .iter()
            .filter_map(|bucket| self.close(bucket, CloseReason::Window, now))
            .collect()
    }

    /// When [`Batcher::take_due`] next has something to give.
    pub fn next_due(&self) -> Option<Instant> {
        self.open.values().map(|open| open.due).min()
    }

    /// Objects that wait for their window.
    pub fn waiting(&self) -> usize {
        self.open.values().map(|open| open.objects.len()).sum()
    }

    fn close(&mut self, bucket: &str, reason: CloseReason, now: Instant) -> Option<Batch> {
        let (bucket, open) = self.open.remove_entry(bucket)?;
        Some(open.close(bucket, reason, now))
    }
}

/// JSON of events compresses to a tenth or so: a batch must not surprise the server's memory.
const ASSUMED_COMPRESSION_RATIO: u64 = 10;
/// What an object without an announced size is taken for.
const ASSUMED_BYTES: u64 = 64 * 1024;

/// The bytes that an object will be once uncompressed, estimated upwards.
pub fn estimated_bytes(object: &ObjectRef) -> u64 {
    let stored = object.size.unwrap_or(ASSUMED_BYTES);
    match Compression::of(&object.key) {
        Compression::None => stored,
        _ => stored.saturating_mul(ASSUMED_COMPRESSION_RATIO),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::object::tests::object;

    const LIMITS: BatchLimits = BatchLimits {
        window: Duration::from_secs(10),
        max_objects: 3,
        max_bytes: 1000,
    };

    fn sized(key: &str, size: u64) -> ObjectRef {
        ObjectRef {
            size: Some(size),
            ..object("b", key, "e")
        }
    }

    /// The keys of each batch, and why it was closed.
    fn summary(batches: &[Batch]) -> Vec<(String, CloseReason)> {
        let keys = |batch: &Batch| {
            batch
                .objects
                .iter()
                .map(|object| object.key.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        };
        batches
            .iter()
            .map(|batch| (keys(batch), batch.reason))
            .collect()
    }

    #[track_caller]
    fn check(objects: &[ObjectRef], closed: &[(&str, CloseReason)], waiting: usize) {
        let mut batcher = Batcher::new(LIMITS);
        let now = Instant::now();
        let batches: Vec<Batch> = objects
            .iter()
            .flat_map(|object| batcher.add(object.clone(), now))
            .collect();
        let closed: Vec<_> = closed
            .iter()
            .map(|(keys, why)| ((*keys).to_owned(), *why))
            .collect();
        assert_eq!(summary(&batches), closed);
        assert_eq!(batcher.waiting(), waiting);
    }

    #[test]
    fn closes_when_full() {
        use CloseReason::{Bytes, Count, Large, SameKey};
        check(&[sized("b", 1), sized("a", 1)], &[], 2);
        check(
            &[sized("b", 1), sized("a", 1), sized("c", 1)],
            &[("a b c", Count)],
            0,
        );
        check(&[sized("a", 1), sized("a", 1)], &[], 1);
        check(
            &[sized("a", 600), sized("b", 400), sized("c", 1)],
            &[("a b", Bytes)],
            1,
        );
        check(&[sized("a", 1), sized("z", 1001)], &[("z", Large)], 1);
        check(&[sized("a.gz", 101)], &[("a.gz", Large)], 0);
        check(&[sized("A.GZ", 101)], &[("A.GZ", Large)], 0);
        check(
            &[object("b", "a", "1"), object("b", "a", "2")],
            &[("a", SameKey)],
            1,
        );
        check(&[object("b", "a", "1"), object("c", "a", "1")], &[], 2);
    }

    #[test]
    fn closes_when_its_window_ends() {
        let mut batcher = Batcher::new(LIMITS);
        let start = Instant::now();
        assert_eq!(batcher.next_due(), None);
        batcher.add(sized("a", 1), start);
        batcher.add(sized("b", 1), start + Duration::from_secs(9));
        assert_eq!(batcher.next_due(), Some(start + LIMITS.window));
        assert_eq!(batcher.take_due(start + Duration::from_millis(9999)), []);
        let due = batcher.take_due(start + LIMITS.window);
        assert_eq!(summary(&due), [("a b".to_owned(), CloseReason::Window)]);
        assert_eq!(batcher.next_due(), None);
    }

    proptest! {
        #[test]
        fn no_object_is_lost_or_doubled_and_limits_hold(
            arrivals in prop::collection::vec((0..2u8, 0..12u8, 0..3u8, 0..1500u64), 0..60),
        ) {
            let mut batcher = Batcher::new(LIMITS);
            let now = Instant::now();
            let mut arrived = BTreeMap::new();
            let mut batches = Vec::new();
            for (bucket, key, etag, size) in arrivals {
                let new = ObjectRef {
                    size: Some(size),
                    ..object(&format!("b{bucket}"), &format!("k{key}"), &format!("e{etag}"))
                };
                // What has been closed may come again: that is the ledger's concern.
                *arrived.entry(new.id()).or_insert(0) += 1;
                batches.extend(batcher.add(new, now));
            }
            batches.extend(batcher.take_due(now + LIMITS.window));
            prop_assert_eq!(batcher.waiting(), 0);
            let mut batched = BTreeMap::new();
            for batch in &batches {
                prop_assert!(!batch.objects.is_empty());
                prop_assert!(batch.objects.len() <= LIMITS.max_objects);
                prop_assert!(batch.objects.is_sorted_by(|a, b| a.key < b.key));
                let bytes: u64 = batch.objects.iter().map(estimated_bytes).sum();
                prop_assert!(bytes <= LIMITS.max_bytes || batch.objects.len() == 1);
                for object in &batch.objects {
                    prop_assert_eq!(&object.bucket, &batch.bucket);
                    *batched.entry(object.id()).or_insert(0) += 1;
                }
            }
            prop_assert!(arrived.keys().eq(batched.keys()));
            prop_assert!(batched.iter().all(|(id, count)| *count <= arrived[id]));
        }
    }
}
