//! Collects announced objects into batches, and decides when each is closed.
//!
//! Pure: time is an argument. Objects of different buckets never share a batch, since one `s3()`
//! call names keys of one bucket.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Batch, CloseReason, estimated_bytes};
use crate::object::ObjectRef;

/// The limits of a batch. The first that is reached closes it.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// The longest that a batch stays open, counted from its first object.
    pub window: Duration,
    /// Whether an idle worker closes a batch before its window ends.
    pub flush_when_idle: bool,
    pub max_objects: usize,
    /// The limit of the estimated uncompressed size, in bytes.
    pub max_bytes: u64,
}

/// The maximum number of open batches: objects of more buckets are not collected at the same time.
const MAX_OPEN: usize = 100;
/// An idle worker closes a batch once no object has been added for this long, so that objects that
/// are announced together are loaded together.
const LINGER: Duration = Duration::from_millis(100);
/// After a batch was closed by time, no batch is closed early for this long for each object of it.
/// It is more than a second, so that a worker that receives one object per second does not count as
/// idle.
const PAUSE: Duration = Duration::from_millis(1500);

/// Collects objects into batches, with one open batch for each bucket.
#[derive(Debug)]
pub struct Batcher {
    limits: BatchLimits,
    open: BTreeMap<String, OpenBatch>,
    /// The time until which no batch is closed before its window ends.
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct OpenBatch {
    /// The objects by their keys, by which statements name them.
    objects: BTreeMap<String, ObjectRef>,
    bytes: u64,
    opened_at: Instant,
    joined_at: Instant,
    window_ends: Instant,
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
            paused_until: None,
        }
    }

    /// Adds an object, and returns the batches that this closes. Adding an object that is already
    /// in the open batch has no effect.
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
        if self.open.len() >= MAX_OPEN && !self.open.contains_key(&object.bucket) {
            closed.extend(self.close_first(now));
        }
        let bucket = object.bucket.clone();
        let open = self
            .open
            .entry(bucket.clone())
            .or_insert_with(|| OpenBatch {
                objects: BTreeMap::new(),
                bytes: 0,
                opened_at: now,
                joined_at: now,
                window_ends: now + self.limits.window,
            });
        open.joined_at = now;
        open.bytes += bytes;
        open.objects.insert(object.key.clone(), object);
        if open.objects.len() >= self.limits.max_objects {
            closed.extend(self.close(&bucket, CloseReason::Count, now));
        }
        closed
    }

    /// Closes the batch that has been due longest, and returns it; `None` if none is due. `idle` is
    /// whether a load slot is free and no closed batch waits for one.
    pub fn take_due(&mut self, now: Instant, idle: bool) -> Option<Batch> {
        let (due, bucket) = self.first_due(idle)?;
        if due > now {
            return None;
        }
        let bucket = bucket.to_owned();
        let reason = if self.open[&bucket].window_ends <= now {
            CloseReason::Window
        } else {
            CloseReason::Idle
        };
        let batch = self.close(&bucket, reason, now)?;
        self.pause(batch.objects.len(), now);
        Some(batch)
    }

    /// Closes and returns every open batch, due or not.
    pub fn take_all(&mut self, now: Instant) -> Vec<Batch> {
        let buckets: Vec<String> = self.open.keys().cloned().collect();
        buckets
            .iter()
            .filter_map(|bucket| self.close(bucket, CloseReason::Window, now))
            .collect()
    }

    /// Returns when [`Batcher::take_due`] will next return a batch.
    pub fn next_due(&self, idle: bool) -> Option<Instant> {
        self.first_due(idle).map(|(due, _)| due)
    }

    /// Returns how many objects wait for the window of their batch.
    pub fn waiting(&self, now: Instant) -> usize {
        let waiting = self.open.values().filter(|open| open.window_ends > now);
        waiting.map(|open| open.objects.len()).sum()
    }

    /// Returns the number of open batches.
    pub fn open_batches(&self) -> usize {
        self.open.len()
    }

    /// Returns the number of objects in open batches.
    pub fn objects(&self) -> usize {
        self.open.values().map(|open| open.objects.len()).sum()
    }

    fn first_due(&self, idle: bool) -> Option<(Instant, &str)> {
        let open = self.open.iter();
        open.map(|(bucket, open)| (self.due(open, idle), bucket.as_str()))
            .min()
    }

    fn due(&self, open: &OpenBatch, idle: bool) -> Instant {
        if !idle || !self.limits.flush_when_idle {
            return open.window_ends;
        }
        let gathered = open.joined_at + LINGER;
        let early = self.paused_until.map_or(gathered, |it| it.max(gathered));
        early.min(open.window_ends)
    }

    /// Postpones early closing after time closed a batch of `objects`.
    fn pause(&mut self, objects: usize, now: Instant) {
        let objects = u32::try_from(objects).unwrap_or(u32::MAX);
        // Bounded, so that a burst is forgotten; long enough that in a steady stream the next batch
        // waits for its own window.
        let longest = self.limits.window + PAUSE;
        let pause = PAUSE.saturating_mul(objects).min(longest);
        self.paused_until = self.paused_until.max(Some(now + pause));
    }

    /// Closes the batch whose window ends first, to make room for one of another bucket.
    fn close_first(&mut self, now: Instant) -> Option<Batch> {
        let (_, bucket) = self.first_due(false)?;
        let bucket = bucket.to_owned();
        self.close(&bucket, CloseReason::Buckets, now)
    }

    fn close(&mut self, bucket: &str, reason: CloseReason, now: Instant) -> Option<Batch> {
        let (bucket, open) = self.open.remove_entry(bucket)?;
        Some(open.close(bucket, reason, now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::object;
    use crate::object::ObjectParts;

    const LIMITS: BatchLimits = BatchLimits {
        window: Duration::from_secs(10),
        flush_when_idle: false,
        max_objects: 3,
        max_bytes: 1000,
    };

    fn sized(key: &str, size: u64) -> ObjectRef {
        ObjectRef::from(ObjectParts {
            size: Some(size),
            ..object("b", key, "e").into_parts()
        })
    }

    /// Returns the keys of each batch, and why it was closed.
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
        assert_eq!(batcher.waiting(now), waiting);
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
        assert_eq!(batcher.next_due(true), None);
        batcher.add(sized("a", 1), start);
        batcher.add(sized("b", 1), start + Duration::from_secs(9));
        assert_eq!(batcher.next_due(true), Some(start + LIMITS.window));
        assert_eq!(batcher.take_due(start + ms(9999), true), None);
        assert_eq!(batcher.waiting(start + ms(9999)), 2);
        // Due, but not taken: objects still join it, and it counts as work.
        assert_eq!(batcher.waiting(start + LIMITS.window), 0);
        assert_eq!(batcher.add(sized("c", 1), start + ms(11_000)).len(), 1);
        batcher.add(sized("d", 1), start + ms(12_000));
        let due = batcher.take_due(start + ms(22_000), false).unwrap();
        assert_eq!(summary(&[due]), [("d".to_owned(), CloseReason::Window)]);
        assert_eq!(batcher.next_due(true), None);
    }

    #[test]
    fn the_batch_that_has_been_due_longest_is_taken_first() {
        let mut batcher = Batcher::new(LIMITS);
        let start = Instant::now();
        for (bucket, at) in [("c", 0), ("a", 1), ("b", 2)] {
            batcher.add(object(bucket, "k", "e"), start + ms(at));
        }
        let late = start + 2 * LIMITS.window;
        let buckets: Vec<_> = std::iter::from_fn(|| batcher.take_due(late, false))
            .map(|batch| batch.bucket)
            .collect();
        assert_eq!(buckets, ["c", "a", "b"]);
    }

    #[test]
    fn the_number_of_open_batches_is_bounded() {
        let mut batcher = Batcher::new(LIMITS);
        let start = Instant::now();
        let buckets: Vec<String> = (0..3 * MAX_OPEN).map(|it| format!("b{it:03}")).collect();
        let mut closed = Vec::new();
        for (at, bucket) in (0..).zip(&buckets) {
            closed.extend(batcher.add(object(bucket, "k", "e"), start + ms(at)));
            assert!(batcher.open.len() <= MAX_OPEN);
        }
        // An object of a bucket that has an open batch closes none.
        let last = buckets.last().unwrap();
        assert_eq!(batcher.add(object(last, "l", "e"), start + ms(1000)), []);
        let first = buckets.iter().take(2 * MAX_OPEN);
        assert!(closed.iter().map(|batch| &batch.bucket).eq(first));
        let why = |batch: &Batch| batch.reason == CloseReason::Buckets;
        assert!(closed.iter().all(why));
        assert_eq!(batcher.waiting(start + ms(1000)), MAX_OPEN + 1);
    }

    /// A window of an hour, so that a batch that does not wait for it is easy to detect.
    const PATIENT: BatchLimits = BatchLimits {
        window: Duration::from_secs(3600),
        flush_when_idle: true,
        max_objects: usize::MAX,
        max_bytes: u64::MAX,
    };

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn an_idle_worker_closes_a_batch_that_no_object_joins() {
        let mut batcher = Batcher::new(PATIENT);
        let start = Instant::now();
        for (key, at) in [("a", 0), ("b", 90), ("c", 180)] {
            batcher.add(sized(key, 1), start + ms(at));
        }
        let gathered = start + ms(180) + LINGER;
        assert_eq!(batcher.next_due(true), Some(gathered));
        assert_eq!(batcher.take_due(gathered - ms(1), true), None);
        assert_eq!(batcher.take_due(gathered, false), None);
        let batch = batcher.take_due(gathered, true).unwrap();
        assert_eq!(summary(&[batch]), [("a b c".to_owned(), CloseReason::Idle)]);
        // Three objects, three pauses.
        batcher.add(sized("d", 1), gathered);
        assert_eq!(batcher.next_due(true), Some(gathered + 3 * PAUSE));
        assert_eq!(batcher.next_due(false), Some(gathered + PATIENT.window));
    }

    #[test]
    fn closing_a_full_batch_does_not_postpone_early_closing() {
        let mut batcher = Batcher::new(BatchLimits {
            max_objects: 3,
            ..PATIENT
        });
        let start = Instant::now();
        for key in ["a", "b", "c", "d"] {
            batcher.add(sized(key, 1), start);
        }
        let rest = batcher.take_due(start + LINGER, true).unwrap();
        assert_eq!(summary(&[rest]), [("d".to_owned(), CloseReason::Idle)]);
    }

    #[test]
    fn a_burst_is_forgotten_after_a_window() {
        let limits = BatchLimits {
            window: Duration::from_secs(10),
            ..PATIENT
        };
        let mut batcher = Batcher::new(limits);
        let start = Instant::now();
        for key in 0..1000 {
            batcher.add(sized(&key.to_string(), 1), start);
        }
        let closed = start + LINGER;
        assert_eq!(batcher.take_due(closed, true).unwrap().objects.len(), 1000);
        let later = closed + limits.window + PAUSE;
        batcher.add(sized("z", 1), later);
        assert_eq!(batcher.next_due(true), Some(later + LINGER));
    }

    /// Returns the batches of objects that arrive with these gaps, in milliseconds, over `buckets`,
    /// and the times of arrival. One load runs at a time and takes `load`; each batch is closed as
    /// soon as it may be.
    fn simulate(
        limits: BatchLimits,
        gaps: &[u64],
        buckets: usize,
        load: Duration,
    ) -> (Vec<Batch>, Vec<Instant>) {
        let mut batcher = Batcher::new(limits);
        let start = Instant::now();
        let (mut batches, mut free_from) = (Vec::new(), start);
        let (mut arrivals, mut came) = (Vec::new(), start);
        for gap in gaps {
            came += ms(*gap);
            arrivals.push(came);
        }
        let mut coming = arrivals.iter().copied().enumerate().peekable();
        loop {
            let due = batcher.next_due(true).map(|due| due.max(free_from));
            match (coming.peek().copied(), due) {
                (Some((number, at)), due) if due.is_none_or(|due| at <= due) => {
                    let bucket = format!("b{}", number % buckets);
                    let new = object(&bucket, &number.to_string(), "e");
                    assert_eq!(batcher.add(new, at), []);
                    coming.next();
                }
                (_, Some(due)) => {
                    batches.push(batcher.take_due(due, true).expect("it is due"));
                    free_from = due + load;
                }
                (_, None) => return (batches, arrivals),
            }
        }
    }

    fn windowed(flush_when_idle: bool) -> BatchLimits {
        BatchLimits {
            window: Duration::from_secs(10),
            flush_when_idle,
            ..PATIENT
        }
    }

    #[test]
    fn early_closing_adds_batches_in_the_first_minute_and_then_only_at_low_rates() {
        // One object every five seconds; one, five and fifty objects per second.
        let count = |flush_when_idle: bool| {
            [5000, 1000, 200, 20].map(|gap| {
                let gaps: Vec<u64> = (0..600_000 / gap).map(|_| gap).collect();
                let limits = windowed(flush_when_idle);
                let (batches, arrivals) = simulate(limits, &gaps, 1, ms(300));
                let minute = arrivals[0] + Duration::from_secs(60);
                let first = batches.partition_point(|batch| batch.closed_at < minute);
                (first, batches.len() - first)
            })
        };
        assert_eq!(count(false), [(4, 36), (5, 50), (5, 54), (5, 55)]);
        assert_eq!(count(true), [(12, 108), (10, 50), (7, 54), (5, 55)]);
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
                let (bucket, key) = (format!("b{bucket}"), format!("k{key}"));
                let new = ObjectRef::from(ObjectParts {
                    size: Some(size),
                    ..object(&bucket, &key, &format!("e{etag}")).into_parts()
                });
                // An object of a closed batch may be added again; the ledger recognises it.
                *arrived.entry(new.id()).or_insert(0) += 1;
                batches.extend(batcher.add(new, now));
            }
            let end = now + LIMITS.window;
            batches.extend(std::iter::from_fn(|| batcher.take_due(end, false)));
            prop_assert_eq!(batcher.next_due(false), None);
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

        #[test]
        fn early_batches_are_a_pause_apart_and_no_object_waits_longer_than_the_window(
            gaps in prop::collection::vec(0..8000u64, 1..150),
            buckets in 1..4usize,
        ) {
            let limits = windowed(true);
            let (batches, arrivals) = simulate(limits, &gaps, buckets, Duration::ZERO);
            let objects: usize = batches.iter().map(|batch| batch.objects.len()).sum();
            prop_assert_eq!(objects, arrivals.len());
            for batch in &batches {
                prop_assert!(batch.closed_at <= batch.opened_at + limits.window);
            }
            for pair in batches.windows(2) {
                let apart = pair[1].closed_at - pair[0].closed_at;
                prop_assert!(pair[1].reason == CloseReason::Window || apart >= PAUSE);
            }
        }

        /// From one object a second on, batches wait for the full window. Until that rate is
        /// apparent, a few are closed early, each larger than the one before.
        #[test]
        fn under_load_no_more_batches_are_closed_than_by_the_window_alone(
            gaps in prop::collection::vec(0..=1000u64, 100..800),
            load in 0..3000u64,
        ) {
            const UNTIL_KNOWN: usize = 8;
            let [fixed, adaptive] = [false, true].map(|flush_when_idle| {
                simulate(windowed(flush_when_idle), &gaps, 1, ms(load)).0
            });
            let early = adaptive.iter().filter(|batch| batch.reason == CloseReason::Idle);
            // The last one is closed when no more objects arrive.
            prop_assert!(early.count() <= UNTIL_KNOWN + 1);
            prop_assert!(adaptive.len() <= fixed.len() + UNTIL_KNOWN);
        }
    }
}
