//! What this process is doing and has done recently, for the live page.
//!
//! The loading code reports to it with one-line calls, and never reads it. Its size is bounded.

mod meter;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use self::meter::{Meter, STEPS, push_bounded};
use crate::batch::{BatchId, ReadBy};
use crate::queue::Message;
use crate::statements::select::Target;
use sluice_core::sliding_window::{SlidingWindow, Summary};

pub use self::meter::STEP;

/// The number of loaded batches and of failures that are remembered.
const REMEMBERED: usize = 20;
/// The length to which a reason is cut, in characters: an error of ClickHouse can be as long as a
/// statement.
const LONGEST_REASON: usize = 1000;
/// The waiting time in the queue is summarised over the messages received within this period.
const WAIT_PERIOD: Duration = Duration::from_secs(60);

/// The activity of this process.
#[derive(Debug, Default)]
pub struct Activity(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    received: Meter,
    deleted: Meter,
    released: Meter,
    loaded: Meter,
    failed: Meter,
    rows: Meter,
    rows_by_kind: BTreeMap<String, Meter>,
    /// How long messages that were received for the first time had been in the queue.
    waits: SlidingWindow,
    /// Since the last step.
    lags: SlidingWindow,
    lag_history: VecDeque<Option<Summary>>,
    pauses: VecDeque<bool>,
    in_flight: BTreeMap<BatchId, Begun>,
    last_loaded: Option<Instant>,
    batches: VecDeque<LoadedBatch>,
    failures: VecDeque<Failure>,
}

impl State {
    fn meters(&mut self) -> impl Iterator<Item = &mut Meter> {
        let own = [
            &mut self.received,
            &mut self.deleted,
            &mut self.released,
            &mut self.loaded,
            &mut self.failed,
            &mut self.rows,
        ];
        own.into_iter().chain(self.rows_by_kind.values_mut())
    }
}

/// What is known about a batch when it begins.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BatchInfo {
    #[serde(serialize_with = "as_text")]
    pub id: BatchId,
    pub objects: usize,
    /// As stored, if the announcements have sizes.
    pub bytes: u64,
    pub read_by: ReadBy,
}

#[derive(Debug)]
struct Begun {
    info: BatchInfo,
    at: Instant,
    step: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub struct BatchInFlight {
    #[serde(flatten)]
    info: BatchInfo,
    age_seconds: f64,
    /// The current step of the ledger protocol.
    step: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub struct LoadedBatch {
    #[serde(flatten)]
    info: BatchInfo,
    #[serde(serialize_with = "as_time")]
    at: SystemTime,
    rows: u64,
    seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    #[serde(serialize_with = "as_time")]
    at: SystemTime,
    /// An object's URL, or a message.
    what: String,
    class: &'static str,
    reason: String,
}

/// A count since the start, and its recent rate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Count {
    total: u64,
    per_second: f64,
}

impl From<&Meter> for Count {
    fn from(meter: &Meter) -> Self {
        Self {
            total: meter.total(),
            per_second: meter.per_second(),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct RowsOfKind {
    kind: String,
    #[serde(flatten)]
    rows: Count,
}

/// All of the activity, at one moment.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    /// Messages.
    received: Count,
    deleted: Count,
    released: Count,
    /// Objects.
    loaded: Count,
    /// Objects, each time that they fail, and messages.
    failed: Count,
    rows: Count,
    rows_by_kind: Vec<RowsOfKind>,
    in_flight: Vec<BatchInFlight>,
    /// The latest first.
    batches: Vec<LoadedBatch>,
    failures: Vec<Failure>,
    history: History,
}

/// A value for each [`STEP`], the oldest first.
#[derive(Debug, Serialize)]
struct History {
    step_seconds: u64,
    received: Vec<u64>,
    loaded: Vec<u64>,
    rows: Vec<u64>,
    lag_p50: Vec<Option<f64>>,
    lag_max: Vec<Option<f64>>,
    paused: Vec<bool>,
}

impl Activity {
    /// Creates an activity that lists rows of these kinds from the start.
    pub fn of_kinds<'a>(kinds: impl IntoIterator<Item = &'a str>) -> Self {
        let kinds = kinds
            .into_iter()
            .map(|kind| (kind.to_owned(), Meter::default()));
        Self(Mutex::new(State {
            rows_by_kind: kinds.collect(),
            ..State::default()
        }))
    }

    pub fn received(&self, message: &Message, now: Instant) {
        let mut state = self.state();
        state.received.add(1);
        // A message that is redelivered has waited because of its failure.
        if message.receive_count <= 1 {
            state.waits.record(now, message.age);
        }
    }

    pub fn deleted(&self, messages: usize) {
        self.state().deleted.add(messages as u64);
    }

    pub fn released(&self, messages: usize) {
        self.state().released.add(messages as u64);
    }

    /// Records the time from the creation of an object to its rows.
    pub fn lag(&self, lag: Duration, now: Instant) {
        self.state().lags.record(now, lag);
    }

    /// Begins a batch. It is in flight until the result is dropped.
    pub fn begin(self: &Arc<Self>, info: BatchInfo) -> InFlight {
        let begun = Begun {
            info,
            at: Instant::now(),
            step: "",
        };
        self.state().in_flight.insert(info.id, begun);
        InFlight {
            activity: self.clone(),
            batch: info.id,
            step: "",
        }
    }

    #[expect(clippy::disallowed_methods, reason = "shown in the status")]
    pub fn loaded(&self, info: BatchInfo, rows: &BTreeMap<&str, u64>, took: Duration) {
        let mut state = self.state();
        for (kind, rows) in rows {
            let meter = state.rows_by_kind.entry((*kind).to_owned()).or_default();
            meter.add(*rows);
        }
        let rows = rows.values().sum();
        state.rows.add(rows);
        state.loaded.add(info.objects as u64);
        state.last_loaded = Some(Instant::now());
        let batch = LoadedBatch {
            info,
            at: SystemTime::now(),
            rows,
            seconds: took.as_secs_f64(),
        };
        push_bounded(&mut state.batches, batch, REMEMBERED);
    }

    /// Records that an object or a message cannot be loaded.
    #[expect(clippy::disallowed_methods, reason = "shown in the status")]
    pub fn failed(&self, what: String, class: &'static str, reason: &str) {
        let mut state = self.state();
        state.failed.add(1);
        let failure = Failure {
            at: SystemTime::now(),
            what,
            class,
            reason: shortened(reason),
        };
        push_bounded(&mut state.failures, failure, REMEMBERED);
    }

    /// Returns the rows that were recorded, by kind.
    pub fn rows(&self) -> BTreeMap<String, u64> {
        let state = self.state();
        let rows = state.rows_by_kind.iter();
        rows.map(|(kind, meter)| (kind.clone(), meter.total()))
            .collect()
    }

    /// Returns for how long nothing has been loaded while batches are in flight; `None` if none
    /// are.
    pub fn unloaded_for(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        let oldest = state.in_flight.values().map(|begun| begun.at).min()?;
        let since = state.last_loaded.map_or(oldest, |last| last.max(oldest));
        Some(now.saturating_duration_since(since))
    }

    /// Returns the ratio of rejected lines in the last 15 minutes; `None` if there were no lines.
    pub fn rejected_ratio(&self) -> Option<f64> {
        let state = self.state();
        let rejected = Target::RejectedLines.kind();
        let rejected = rejected.and_then(|kind| state.rows_by_kind.get(kind));
        let lines = state.rows.recent();
        (lines > 0).then(|| rejected.map_or(0, Meter::recent) as f64 / lines as f64)
    }

    /// Returns how long the messages that were received for the first time within the last minute
    /// had been in the queue.
    pub fn waits(&self, now: Instant) -> Option<Summary> {
        self.state().waits.summary_within(WAIT_PERIOD, now)
    }

    /// Records that another [`STEP`] has passed.
    pub fn step(&self, now: Instant, paused: bool) {
        let mut state = self.state();
        state.meters().for_each(Meter::step);
        let lags = std::mem::take(&mut state.lags).summary(now);
        push_bounded(&mut state.lag_history, lags, STEPS);
        push_bounded(&mut state.pauses, paused, STEPS);
    }

    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let state = self.state();
        let lags = |of: fn(Summary) -> f64| {
            let lags = state.lag_history.iter();
            lags.map(|lag| lag.map(of)).collect()
        };
        Snapshot {
            received: (&state.received).into(),
            deleted: (&state.deleted).into(),
            released: (&state.released).into(),
            loaded: (&state.loaded).into(),
            failed: (&state.failed).into(),
            rows: (&state.rows).into(),
            rows_by_kind: state
                .rows_by_kind
                .iter()
                .map(|(kind, meter)| RowsOfKind {
                    kind: kind.clone(),
                    rows: meter.into(),
                })
                .collect(),
            in_flight: state
                .in_flight
                .values()
                .map(|begun| BatchInFlight {
                    info: begun.info,
                    age_seconds: now.duration_since(begun.at).as_secs_f64(),
                    step: begun.step,
                })
                .collect(),
            batches: state.batches.iter().rev().cloned().collect(),
            failures: state.failures.iter().rev().cloned().collect(),
            history: History {
                step_seconds: STEP.as_secs(),
                received: state.received.history(),
                loaded: state.loaded.history(),
                rows: state.rows.history(),
                lag_p50: lags(|lag| lag.p50),
                lag_max: lags(|lag| lag.max),
                paused: state.pauses.iter().copied().collect(),
            },
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A batch in flight.
#[derive(Debug)]
pub struct InFlight {
    activity: Arc<Activity>,
    batch: BatchId,
    step: &'static str,
}

impl InFlight {
    /// Records the current step of the ledger protocol.
    pub fn step(&mut self, name: &'static str) {
        self.step = name;
        if let Some(begun) = self.activity.state().in_flight.get_mut(&self.batch) {
            begun.step = name;
        }
    }

    /// Returns the last step that was recorded.
    pub fn at(&self) -> &'static str {
        self.step
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.activity.state().in_flight.remove(&self.batch);
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST_REASON) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn as_text<S: Serializer>(id: &BatchId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn as_time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(objects: usize) -> BatchInfo {
        BatchInfo {
            id: BatchId::new(&crate::Env::default()),
            objects,
            bytes: 10,
            read_by: ReadBy::S3,
        }
    }

    #[test]
    fn a_batch_is_in_flight_until_it_is_dropped() {
        let activity = Arc::new(Activity::default());
        let first = activity.begin(info(1));
        let mut second = activity.begin(info(2));
        second.step("insert");
        drop(first);
        let snapshot = activity.snapshot(Instant::now());
        let [left] = snapshot.in_flight.as_slice() else {
            panic!("{snapshot:?}");
        };
        assert_eq!((left.info.objects, left.step), (2, "insert"));
        drop(second);
        assert!(activity.snapshot(Instant::now()).in_flight.is_empty());
    }

    #[test]
    fn only_the_latest_batches_and_failures_are_remembered() {
        let activity = Activity::of_kinds(["video", "rejected"]);
        for objects in 1..=REMEMBERED + 5 {
            let rows = BTreeMap::from([("video", 2), ("odd", 1)]);
            activity.loaded(info(objects), &rows, Duration::from_secs(1));
            let reason = "é".repeat(objects * LONGEST_REASON / 2);
            activity.failed(format!("s3://b/{objects}"), "missing", &reason);
        }
        let snapshot = activity.snapshot(Instant::now());
        assert_eq!(snapshot.batches.len(), REMEMBERED);
        assert_eq!(snapshot.batches[0].info.objects, REMEMBERED + 5);
        assert_eq!(snapshot.failures.len(), REMEMBERED);
        assert_eq!(snapshot.failures[0].what, "s3://b/25");
        let reason = &snapshot.failures[0].reason;
        assert_eq!(reason.chars().count(), LONGEST_REASON + 1);
        assert_eq!((snapshot.rows.total, snapshot.failed.total), (75, 25));
        let rows = [("odd", 25), ("rejected", 0), ("video", 50)];
        let rows = rows.map(|(kind, rows)| (kind.to_owned(), rows));
        assert_eq!(activity.rows(), BTreeMap::from(rows));
    }

    #[test]
    fn every_step_has_a_point() {
        let activity = Activity::of_kinds(["video"]);
        let now = Instant::now();
        activity.lag(Duration::from_secs(4), now);
        activity.lag(Duration::from_secs(2), now);
        activity.step(now, false);
        activity.loaded(info(3), &BTreeMap::from([("video", 8)]), Duration::ZERO);
        activity.step(now, true);
        let Snapshot { history, rows, .. } = activity.snapshot(now);
        assert_eq!(history.rows, [0, 8]);
        assert_eq!(history.loaded, [0, 3]);
        assert_eq!(history.lag_p50, [Some(2.0), None]);
        assert_eq!(history.lag_max, [Some(4.0), None]);
        assert_eq!(history.paused, [false, true]);
        assert_eq!(rows.per_second, 2.0);
        for _ in 0..STEPS {
            activity.step(now, false);
        }
        let history = activity.snapshot(now).history;
        assert_eq!(
            (history.paused.len(), history.lag_p50.len()),
            (STEPS, STEPS)
        );
    }

    #[test]
    fn only_first_deliveries_count_towards_the_waiting_time() {
        let activity = Activity::default();
        let now = Instant::now();
        let mut message = Message {
            id: "m".to_owned(),
            handle: crate::queue::ReceiptHandle("h".to_owned()),
            body: String::new(),
            receive_count: 2,
            age: Duration::from_secs(500),
        };
        activity.received(&message, now);
        assert_eq!(activity.waits(now), None);
        message.receive_count = 1;
        message.age = Duration::from_secs(3);
        activity.received(&message, now);
        assert_eq!(activity.waits(now).map(|waits| waits.p50), Some(3.0));
        assert_eq!(activity.waits(now + 2 * WAIT_PERIOD), None);
    }
}
