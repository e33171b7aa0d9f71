//! Every metric that Sluice exports: declared here, once, and counted by the functions below.
//! Prometheus reads them at `/metrics`; they are also sent to a collector if this is configured.
//!
//! Labels have few values: never a key, a message or a batch.

mod instruments;
mod metric;
mod reference;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::metrics::Meter;

use crate::batch::CloseReason;
use crate::clickhouse::error_class::{ErrorClass, PauseReason};
use crate::event_types::Catalog;
use crate::ledger::protocol::End;
use crate::notification::{EnvelopeKind, Ignorable};
use crate::queue::depth::Depth;
use crate::statements::select::{Target, rejection_reasons};
pub use sluice_core::daemon::InFlightStats;
use sluice_core::labelled;
use sluice_core::outcome::Outcome;

pub use reference::reference_markdown;

use metric::{Kind, Label, Metric, Values};

use Kind::{Counter, Gauge, Histogram};
use Values::{Declared, Only, Open};

/// Declares each metric as a constant, and all of them as `ALL`.
macro_rules! declare {
    ($($id:ident: $kind:expr, $name:literal $({ $($label:ident: $values:expr),+ })?, $help:literal;)*) => {
        $(const $id: Metric = Metric {
            name: $name,
            kind: $kind,
            labels: &[$($(Label { name: stringify!($label), values: $values }),+)?],
            help: $help,
        };)*

        /// Every metric, in the order of docs/metrics.md.
        const ALL: &[Metric] = &[$($id),*];
    };
}

declare! {
    MESSAGES_RECEIVED: Counter, "sluice_sqs_messages_received_total",
        "Messages received from SQS.";
    MESSAGES_DELETED: Counter, "sluice_sqs_messages_deleted_total",
        "Messages deleted: all their objects are done, or they announce nothing to load.";
    MESSAGES_RELEASED: Counter, "sluice_sqs_messages_released_total",
        "Messages returned to the queue.";
    HEARTBEATS: Counter, "sluice_sqs_heartbeats_total",
        "Extensions of the visibility timeout of messages in flight.";
    HEARTBEATS_MISSED: Counter, "sluice_sqs_heartbeats_missed_total",
        "Messages in flight whose visibility timeout was not extended in time. They are redelivered, which counts towards `maxReceiveCount`.";
    SQS_FAILURES: Counter, "sluice_sqs_failures_total" { operation: Only(&[SqsOperation::LABELS]) },
        "Requests to SQS that failed, and failed entries of batch requests. `attributes` is the poll for the depths of the queues.";
    SQS_REQUESTS: Counter, "sluice_sqs_requests_total" { operation: Only(&[SQS_OPERATIONS]) },
        "Requests sent to SQS, by the operation of its API, repeated ones included. SQS bills each.";
    S3_REQUESTS: Counter, "sluice_s3_requests_total" { operation: Only(&[S3_OPERATIONS]) },
        "Requests that the worker sent to S3, by the operation of its API, repeated ones included. S3 bills each. ClickHouse sends two more for each object that it reads, which are not counted here.";
    S3_BYTES: Counter, "sluice_s3_read_bytes_total",
        "Size of the objects, or ranges of objects, that the worker requested from S3.";
    QUEUE_VISIBLE: Gauge, "sluice_queue_messages_visible",
        "Approximate number of visible messages in the queue.";
    QUEUE_IN_FLIGHT: Gauge, "sluice_queue_messages_in_flight",
        "Approximate number of messages of the queue in flight, across all workers.";
    DEAD_LETTERS: Gauge, "sluice_dlq_messages",
        "Approximate number of messages in the dead-letter queue. Absent if there is no such queue, or no permission to query it.";
    QUEUE_AGE: Histogram(QUEUE_AGES), "sluice_queue_age_seconds",
        "Time that a message had been in the queue, measured at each receive. SQS reports the age of the oldest message only to CloudWatch.";
    NOTIFICATIONS: Counter, "sluice_notifications_total" { form: Only(&[EnvelopeKind::LABELS]), outcome: Only(&[&["objects"], Ignorable::LABELS, &["malformed"]]) },
        "Message bodies parsed. `form` is how the body is written: `s3` and `event_bridge` are events sent directly or by SNS with raw delivery, `sns` and `event_bridge_sns` the same in an SNS envelope, `declared` is an envelope of `notifications.envelopes`, and `unknown` is any other body.";
    MESSAGES_HELD: Gauge, "sluice_messages_held",
        "Messages in flight in this worker: received and not yet settled.";
    OLDEST_HELD: Gauge, "sluice_oldest_held_message_age_seconds",
        "Time the longest-held message has been in flight.";
    OBJECTS_WAITING: Gauge, "sluice_objects_waiting_for_window",
        "Objects in open batches whose window has not ended.";
    BACKLOG: Gauge, "sluice_backlog_messages",
        "Messages in flight, without those that only wait for a window: `sluice_messages_held` minus `sluice_objects_waiting_for_window`, at least 0. For autoscaling, together with `sluice_queue_messages_visible`.";
    OBJECTS: Counter, "sluice_objects_total" { outcome: Only(&[Outcome::LABELS, &["filtered"]]) },
        "Objects by outcome. `busy`: in progress elsewhere, and looked up again. `abandoned`: returned at a shutdown. `filtered`: excluded by `notifications`.";
    OBJECT_BYTES: Counter, "sluice_object_bytes_total",
        "Size of the loaded objects, as stored in S3.";
    OBJECTS_STREAMED: Counter, "sluice_objects_streamed_total",
        "Objects streamed by the worker.";
    BATCHES_CLOSED: Counter, "sluice_batches_closed_total" { reason: Only(&[CloseReason::LABELS]) },
        "Batches closed and passed to a load, by the reason for closing them.";
    BATCHES_IN_FLIGHT: Gauge, "sluice_batches_in_flight",
        "Batches being loaded.";
    BATCHES: Counter, "sluice_batches_total" { outcome: Only(&[End::LABELS, &["abandoned"]]) },
        "Batches that have ended in the ledger, by outcome. `nothing_free`: all objects were loaded or busy. `yielded`: another batch claims the same objects. `fenced`: another worker took over the batch. `released`: nothing was loaded, and the objects are loaded in another way or fail. `abandoned`: left unfinished at a shutdown.";
    LEFT_IN_VIEWS: Counter, "sluice_rollbacks_left_in_views_total",
        "Batches that were rolled back while users' views read the tables: rows that the views inserted stay in the views' target tables.";
    STRAY_ROWS_DELETED: Counter, "sluice_stray_rows_deleted_total",
        "Rows of released batches that were found after the release, and deleted: a server that was frozen or cut off had committed them.";
    BATCH_SPLITS: Counter, "sluice_batch_splits_total",
        "Batches split in two because some of their objects could not be loaded.";
    ROWS: Counter, "sluice_rows_total" { kind: ROW_KINDS },
        "Lines loaded, by the kind of row that they became.";
    REJECTED_LINES: Counter, "sluice_rejected_lines_total" { reason: REJECTION_REASONS },
        "Lines kept in `rejected_lines`. `sluice_rows_total` also counts them.";
    LAG: Histogram(LAGS), "sluice_lag_seconds",
        "Time from the creation of an object, as given by its event, until its rows can be queried.";
    INSERT_DURATION: Histogram(INSERT_DURATIONS), "sluice_insert_duration_seconds",
        "Duration of the insert of a batch, including failed inserts.";
    LEDGER_DURATION: Histogram(LEDGER_DURATIONS), "sluice_ledger_duration_seconds" { operation: Only(&[LEDGER_OPERATIONS]) },
        "Duration of the small statements in each step of the ledger protocol, including failed ones. `insert` is the query that counts the inserted rows.";
    CLICKHOUSE_ERRORS: Counter, "sluice_clickhouse_errors_total" { code: ERROR_CODES, verdict: Only(&[ErrorClass::LABELS]) },
        "Statements that failed, by error code and error class.";
    BREAKER_OPEN: Gauge, "sluice_breaker_open" { reason: Only(&[PauseReason::LABELS]) },
        "1 while intake is paused for this reason, otherwise 0. `/readyz` has the full reason.";
    BUILD_INFO: Gauge, "sluice_build_info" { version: VERSION },
        "Always 1; the version is the label.";
    START_TIME: Gauge, "sluice_start_time_seconds",
        "Start time of the worker, in seconds since 1970.";
}

labelled! {
    /// A request to SQS.
    pub enum SqsOperation {
        Receive = "receive",
        Delete = "delete",
        Release = "release",
        Heartbeat = "heartbeat",
        Attributes = "attributes",
    }
}

/// The operations of SQS that a worker requests. The last stands for all others.
const SQS_OPERATIONS: &[&str] = &[
    "ReceiveMessage",
    "DeleteMessageBatch",
    "ChangeMessageVisibilityBatch",
    "GetQueueAttributes",
    "GetQueueUrl",
    "other",
];
/// The same of S3.
const S3_OPERATIONS: &[&str] = &["GetObject", "HeadObject", "ListObjectsV2", "other"];
/// The steps of the ledger protocol that send small statements.
const LEDGER_OPERATIONS: &[&str] = &[
    "look_up",
    "seal",
    "verify",
    "insert",
    "record",
    "kill",
    "fence",
    "check_rows",
    "check_complete",
    "take_back",
    "release",
];
const ROW_KINDS: Values = Declared {
    by: |catalog| {
        let kinds = Target::all(catalog).into_iter().filter_map(|it| it.kind());
        kinds.map(str::to_owned).collect()
    },
    text: "the name of an event type, `rejected` or `unmatched`",
};
const REJECTION_REASONS: Values = Declared {
    by: rejection_reasons,
    text: "`too large`, `bad UTF-8`, `not JSON`, `not an object`, `missing` or `invalid` and the \
           name of a required column, or the name of a column and `out of range`",
};
const ERROR_CODES: Values = Open {
    known: &["none"],
    text: "ClickHouse's error code, or `none` if no response came or the worker failed to read from S3",
};
const VERSION: Values = Open {
    known: &[],
    text: "the version of Sluice",
};

/// In seconds, as all buckets are.
const QUEUE_AGES: &[f64] = &[
    0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0,
];
const LAGS: &[f64] = &[
    1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14400.0,
];
const INSERT_DURATIONS: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const LEDGER_DURATIONS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Installs the recorder, and the instruments of `meter` if metrics are sent to a collector. The
/// handle renders the text of `/metrics`.
#[expect(clippy::disallowed_methods, reason = "the start time of the process")]
pub fn install(catalog: &Catalog, meter: Option<&Meter>) -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Histogram(buckets) = metric.kind {
            let name = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(name, buckets)?;
        }
    }
    let handle = builder.install_recorder()?;
    if let Some(meter) = meter {
        instruments::install(meter, ALL);
    }
    for metric in ALL {
        metric.begin(catalog);
    }
    BUILD_INFO.set(1.0, &[env!("CARGO_PKG_VERSION")]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    START_TIME.set(now.unwrap_or_default().as_secs_f64(), &[]);
    stats(&InFlightStats {
        pause_class: Some("starting".to_owned()),
        ..InFlightStats::default()
    });
    Ok(handle)
}

pub fn messages_received(count: usize) {
    MESSAGES_RECEIVED.add(count as u64, &[]);
}

pub fn messages_deleted(count: usize) {
    MESSAGES_DELETED.add(count as u64, &[]);
}

pub fn messages_released(count: usize) {
    MESSAGES_RELEASED.add(count as u64, &[]);
}

pub fn heartbeats(count: usize) {
    HEARTBEATS.add(count as u64, &[]);
}

pub fn heartbeat_missed() {
    HEARTBEATS_MISSED.add(1, &[]);
}

pub fn sqs_failures(operation: SqsOperation, count: usize) {
    SQS_FAILURES.add(count as u64, &[operation.label()]);
}

pub fn sqs_request(operation: &str) {
    SQS_REQUESTS.add(1, &[known(operation, SQS_OPERATIONS)]);
}

pub fn s3_request(operation: &str) {
    S3_REQUESTS.add(1, &[known(operation, S3_OPERATIONS)]);
}

pub fn s3_bytes(bytes: u64) {
    S3_BYTES.add(bytes, &[]);
}

/// Returns the value of a label for an operation.
fn known(operation: &str, operations: &[&'static str]) -> &'static str {
    let found = operations.iter().find(|known| **known == operation);
    found.copied().unwrap_or("other")
}

pub fn depth(depth: Depth) {
    QUEUE_VISIBLE.set(depth.visible as f64, &[]);
    QUEUE_IN_FLIGHT.set(depth.in_flight as f64, &[]);
    if let Some(count) = depth.dead_letters {
        DEAD_LETTERS.set(count as f64, &[]);
    }
}

pub fn queue_age(age: Duration) {
    QUEUE_AGE.record(age, &[]);
}

pub fn notification(form: EnvelopeKind, outcome: &'static str) {
    NOTIFICATIONS.add(1, &[form.label(), outcome]);
}

pub fn objects(outcome: &'static str, count: usize) {
    OBJECTS.add(count as u64, &[outcome]);
}

pub fn object_bytes(bytes: u64) {
    OBJECT_BYTES.add(bytes, &[]);
}

pub fn objects_streamed(count: usize) {
    OBJECTS_STREAMED.add(count as u64, &[]);
}

pub fn batch_closed(reason: &'static str) {
    BATCHES_CLOSED.add(1, &[reason]);
}

pub fn left_in_views() {
    LEFT_IN_VIEWS.add(1, &[]);
}

pub fn stray_rows_deleted(rows: u64) {
    STRAY_ROWS_DELETED.add(rows, &[]);
}

pub fn batch_ended(outcome: &'static str) {
    BATCHES.add(1, &[outcome]);
}

pub fn batch_split() {
    BATCH_SPLITS.add(1, &[]);
}

pub fn rows_loaded(kind: &str, rows: u64) {
    ROWS.add(rows, &[kind]);
}

pub fn lines_rejected(reason: &str, lines: u64) {
    REJECTED_LINES.add(lines, &[reason]);
}

pub fn lag(lag: Duration) {
    LAG.record(lag, &[]);
}

pub fn insert_duration(duration: Duration) {
    INSERT_DURATION.record(duration, &[]);
}

pub fn ledger_duration(operation: &'static str, duration: Duration) {
    LEDGER_DURATION.record(duration, &[operation]);
}

pub fn clickhouse_error(code: Option<u32>, class: ErrorClass) {
    let code = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
    CLICKHOUSE_ERRORS.add(1, &[&code, class.label()]);
}

pub fn stats(stats: &InFlightStats) {
    MESSAGES_HELD.set(stats.messages as f64, &[]);
    OLDEST_HELD.set(stats.oldest_seconds, &[]);
    OBJECTS_WAITING.set(stats.objects_waiting as f64, &[]);
    BACKLOG.set(stats.backlog() as f64, &[]);
    BATCHES_IN_FLIGHT.set(stats.batches_in_flight as f64, &[]);
    let paused = stats.pause_class.as_deref();
    // Every reason has a series, so that the end of a pause is visible as well as its beginning.
    for reason in PauseReason::LABELS {
        let open = paused == Some(*reason);
        BREAKER_OPEN.set(f64::from(u8::from(open)), &[reason]);
    }
}
