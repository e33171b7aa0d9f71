//! Every metric that Sluice exports: names, help, and the functions that count.
//!
//! Labels have few values: never a key, a message or a batch.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use serde::{Deserialize, Serialize};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::load::verdict::Verdict;
use crate::pipeline::recent::Summary;

const MESSAGES_RECEIVED: &str = "sluice_sqs_messages_received_total";
const MESSAGES_DELETED: &str = "sluice_sqs_messages_deleted_total";
const MESSAGES_RELEASED: &str = "sluice_sqs_messages_released_total";
const HEARTBEATS: &str = "sluice_sqs_heartbeats_total";
const SQS_FAILURES: &str = "sluice_sqs_failures_total";
const MESSAGES_HELD: &str = "sluice_messages_held";
const OLDEST_HELD: &str = "sluice_oldest_held_message_age_seconds";
const OBJECTS_WAITING: &str = "sluice_objects_waiting_for_window";
const NOTIFICATIONS: &str = "sluice_notifications_total";
const OBJECTS: &str = "sluice_objects_total";
const OBJECTS_STREAMED: &str = "sluice_objects_streamed_total";
const BATCHES_CLOSED: &str = "sluice_batches_closed_total";
const BATCHES_IN_FLIGHT: &str = "sluice_batches_in_flight";
const ROWS: &str = "sluice_rows_total";
const LAG_SECONDS: &str = "sluice_lag_seconds";
const INSERT_SECONDS: &str = "sluice_insert_duration_seconds";
const CLICKHOUSE_ERRORS: &str = "sluice_clickhouse_errors_total";
const BREAKER_OPEN: &str = "sluice_breaker_open";

/// Installs the recorder; the handle renders what `/metrics` shows.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(
            Matcher::Full(INSERT_SECONDS.to_owned()),
            &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0],
        )?
        .set_buckets_for_metric(
            Matcher::Full(LAG_SECONDS.to_owned()),
            &[
                1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14400.0,
            ],
        )?
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    describe_counter!(MESSAGES_RECEIVED, "Messages received from SQS");
    describe_counter!(
        MESSAGES_DELETED,
        "Messages deleted: every object of theirs is done"
    );
    describe_counter!(MESSAGES_RELEASED, "Messages given back to the queue");
    describe_counter!(HEARTBEATS, "Extensions of the visibility of held messages");
    describe_counter!(
        SQS_FAILURES,
        "Failed SQS requests and batch entries, by `operation`"
    );
    describe_gauge!(MESSAGES_HELD, "Messages received and not yet settled");
    describe_gauge!(
        OLDEST_HELD,
        Unit::Seconds,
        "Age of the message held longest"
    );
    describe_gauge!(OBJECTS_WAITING, "Objects in open batches");
    describe_counter!(NOTIFICATIONS, "Message bodies read, by `outcome`");
    describe_counter!(OBJECTS, "Objects settled, by `outcome`");
    describe_counter!(
        OBJECTS_STREAMED,
        "Objects loaded that the worker read, and not ClickHouse"
    );
    describe_counter!(BATCHES_CLOSED, "Batches closed, by `reason`");
    describe_gauge!(BATCHES_IN_FLIGHT, "Batches being loaded");
    describe_counter!(
        ROWS,
        "Rows loaded, by `kind`: an event type, rejected or unmatched"
    );
    describe_histogram!(
        LAG_SECONDS,
        Unit::Seconds,
        "From the creation of an object, as its event says, to its rows being loaded"
    );
    describe_histogram!(
        INSERT_SECONDS,
        Unit::Seconds,
        "Duration of insert statements"
    );
    describe_counter!(
        CLICKHOUSE_ERRORS,
        "Failed statements, by `code` and `verdict`"
    );
    describe_gauge!(
        BREAKER_OPEN,
        "1 while intake is paused, for the reason in /readyz"
    );
}

pub fn messages_received(count: usize) {
    counter!(MESSAGES_RECEIVED).increment(count as u64);
}

pub fn messages_deleted(count: usize) {
    counter!(MESSAGES_DELETED).increment(count as u64);
}

pub fn messages_released(count: usize) {
    counter!(MESSAGES_RELEASED).increment(count as u64);
}

pub fn heartbeats(count: usize) {
    counter!(HEARTBEATS).increment(count as u64);
}

pub fn sqs_failures(operation: &'static str, count: usize) {
    counter!(SQS_FAILURES, "operation" => operation).increment(count as u64);
}

pub fn notification(outcome: &'static str) {
    counter!(NOTIFICATIONS, "outcome" => outcome).increment(1);
}

pub fn objects(outcome: &'static str, count: usize) {
    counter!(OBJECTS, "outcome" => outcome).increment(count as u64);
}

pub fn objects_streamed(count: usize) {
    counter!(OBJECTS_STREAMED).increment(count as u64);
}

pub fn batch_closed(reason: &'static str) {
    counter!(BATCHES_CLOSED, "reason" => reason).increment(1);
}

pub fn rows_loaded(kind: &str, rows: u64) {
    counter!(ROWS, "kind" => kind.to_owned()).increment(rows);
}

pub fn lag(lag: Duration) {
    histogram!(LAG_SECONDS).record(lag.as_secs_f64());
}

pub fn insert_seconds(duration: Duration) {
    histogram!(INSERT_SECONDS).record(duration.as_secs_f64());
}

pub fn clickhouse_error(code: Option<u32>, verdict: Verdict) {
    let code = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
    counter!(CLICKHOUSE_ERRORS, "code" => code, "verdict" => verdict.label()).increment(1);
}

/// What the pipeline holds at this moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Holdings {
    pub messages: usize,
    /// Of the message held longest.
    pub oldest_seconds: f64,
    pub objects_waiting: usize,
    pub batches_in_flight: usize,
    /// Why intake is paused, in one word.
    pub pause_class: Option<String>,
    /// From the creation of objects to their being loaded.
    pub lag: Option<Summary>,
    /// How long messages had been in the queue when they came.
    pub queue_age: Option<Summary>,
}

/// Every reason has a series, so that an end is seen as well as a beginning.
const PAUSE_REASONS: &[&str] = &[
    "starting",
    "unreachable",
    "authentication",
    "permission",
    "schema",
    "settings",
    "read_only",
    "too_many_parts",
    "no_space",
    "overload",
    "s3_access",
    "other",
];

pub fn holdings(holdings: &Holdings) {
    gauge!(MESSAGES_HELD).set(holdings.messages as f64);
    gauge!(OLDEST_HELD).set(holdings.oldest_seconds);
    gauge!(OBJECTS_WAITING).set(holdings.objects_waiting as f64);
    gauge!(BATCHES_IN_FLIGHT).set(holdings.batches_in_flight as f64);
    for reason in PAUSE_REASONS {
        let open = holdings.pause_class.as_deref() == Some(*reason);
        gauge!(BREAKER_OPEN, "reason" => *reason).set(f64::from(u8::from(open)));
    }
}
