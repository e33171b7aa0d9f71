//! What loading has used, by day and event type, and what that costs.
//!
//! What ClickHouse used for a batch is divided among the event types of its lines, and what the
//! workers used on a day among those of all lines loaded on that day, in proportion to the lines.
//! Neither ClickHouse nor a worker reads an event type by itself, so no division is measured.

pub mod prices;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::labelled;

/// The event type of what belongs to no line: statements without a batch, batches that loaded
/// nothing, and workers on a day without lines.
pub const NO_EVENT_TYPE: &str = "(none)";

labelled! {
    /// A kind of what a worker uses, as in `worker_usage.kind`.
    pub enum UsageKind {
        /// Requests to SQS, by operation.
        SqsRequests = "sqs_requests",
        /// Requests to S3, by operation.
        S3Requests = "s3_requests",
        /// Bytes of objects read from S3.
        S3Bytes = "s3_bytes",
        /// Microseconds of processor time.
        ProcessorTime = "processor_microseconds",
    }
}

/// The operations of S3 that AWS bills as `GET and all others`; the rest is billed as `PUT, COPY,
/// POST, LIST`.
const READS: &[&str] = &["GetObject", "HeadObject"];

/// A value for each thing that has a price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Items<T> {
    /// Requests to SQS, repeated ones included.
    pub sqs_requests: T,
    /// Requests to S3 that AWS bills as `GET and all others`.
    pub s3_read_requests: T,
    /// Requests to S3 that AWS bills as `PUT, COPY, POST, LIST`.
    pub s3_write_requests: T,
    /// Bytes read from S3.
    pub s3_bytes: T,
    /// Seconds of processor time of ClickHouse.
    pub clickhouse_processor_seconds: T,
    /// Seconds of processor time of workers.
    pub worker_processor_seconds: T,
}

/// How much was used. The shares of an event type are fractions.
pub type Amounts = Items<f64>;

impl<T> Items<T> {
    /// Returns the values with their names, in a fixed order.
    pub fn named(&self) -> [(&'static str, &T); 6] {
        [
            ("sqs_requests", &self.sqs_requests),
            ("s3_read_requests", &self.s3_read_requests),
            ("s3_write_requests", &self.s3_write_requests),
            ("s3_bytes", &self.s3_bytes),
            (
                "clickhouse_processor_seconds",
                &self.clickhouse_processor_seconds,
            ),
            ("worker_processor_seconds", &self.worker_processor_seconds),
        ]
    }

    /// Combines each value with the one of `other`.
    pub fn with<U, V>(&self, other: &Items<U>, combine: impl Fn(&T, &U) -> V) -> Items<V> {
        Items {
            sqs_requests: combine(&self.sqs_requests, &other.sqs_requests),
            s3_read_requests: combine(&self.s3_read_requests, &other.s3_read_requests),
            s3_write_requests: combine(&self.s3_write_requests, &other.s3_write_requests),
            s3_bytes: combine(&self.s3_bytes, &other.s3_bytes),
            clickhouse_processor_seconds: combine(
                &self.clickhouse_processor_seconds,
                &other.clickhouse_processor_seconds,
            ),
            worker_processor_seconds: combine(
                &self.worker_processor_seconds,
                &other.worker_processor_seconds,
            ),
        }
    }
}

impl Amounts {
    /// Adds this fraction of other amounts.
    fn add(&mut self, other: &Self, share: f64) {
        *self = self.with(other, |own, others| own + others * share);
    }

    /// Returns the sum of all values.
    pub fn total(&self) -> f64 {
        self.named().into_iter().map(|(_, value)| value).sum()
    }
}

/// What ClickHouse used on a day for the lines of an event type.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ClickHouseUsage {
    /// In UTC, as all days are.
    pub day: String,
    /// Empty for none.
    pub event_type: String,
    pub read_requests: f64,
    pub write_requests: f64,
    pub bytes_read: f64,
    pub processor_seconds: f64,
}

/// What all workers used on a day of one kind.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct WorkerUsage {
    pub day: String,
    /// A label of [`UsageKind`].
    pub kind: String,
    /// The operation of a request, or empty.
    pub operation: String,
    pub amount: f64,
}

/// The lines of an event type that were loaded on a day.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct LoadedLines {
    pub day: String,
    pub event_type: String,
    pub lines: u64,
}

/// What the lines of an event type used on a day.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    pub day: String,
    /// The name of an event type, `rejected`, `unmatched`, `blank`, or [`NO_EVENT_TYPE`].
    pub event_type: String,
    pub lines: u64,
    pub amounts: Amounts,
}

/// Divides what was used among days and event types. The latest day comes first.
pub fn divide(
    clickhouse: &[ClickHouseUsage],
    workers: &[WorkerUsage],
    loaded: &[LoadedLines],
) -> Vec<Usage> {
    let mut table = Table::default();
    for loaded in loaded {
        table.row(&loaded.day, &loaded.event_type).lines += loaded.lines;
    }
    for used in clickhouse {
        let amounts = Amounts {
            s3_read_requests: used.read_requests,
            s3_write_requests: used.write_requests,
            s3_bytes: used.bytes_read,
            clickhouse_processor_seconds: used.processor_seconds,
            ..Amounts::default()
        };
        let row = table.row(&used.day, &used.event_type);
        row.amounts.add(&amounts, 1.0);
    }
    let mut days: BTreeMap<&str, Amounts> = BTreeMap::new();
    for used in workers {
        let day = days.entry(&used.day).or_default();
        day.add(&of_worker(used), 1.0);
    }
    for (day, amounts) in days {
        table.divide_day(day, &amounts);
    }
    let rows = table.0.into_values();
    rows.rev().collect()
}

/// Returns the amounts of one kind. A kind of a later version is not known, and costs nothing.
fn of_worker(used: &WorkerUsage) -> Amounts {
    let mut amounts = Amounts::default();
    let is_of = |kind: UsageKind| used.kind == kind.label();
    if is_of(UsageKind::SqsRequests) {
        amounts.sqs_requests = used.amount;
    } else if is_of(UsageKind::S3Requests) && READS.contains(&used.operation.as_str()) {
        amounts.s3_read_requests = used.amount;
    } else if is_of(UsageKind::S3Requests) {
        amounts.s3_write_requests = used.amount;
    } else if is_of(UsageKind::S3Bytes) {
        amounts.s3_bytes = used.amount;
    } else if is_of(UsageKind::ProcessorTime) {
        amounts.worker_processor_seconds = used.amount / 1e6;
    }
    amounts
}

/// The rows by day and event type, in the reverse of their order. What has no event type is the last
/// of a day.
#[derive(Default)]
struct Table(BTreeMap<(String, Reverse<(bool, String)>), Usage>);

impl Table {
    fn row(&mut self, day: &str, event_type: &str) -> &mut Usage {
        let event_type = match event_type {
            "" => NO_EVENT_TYPE,
            event_type => event_type,
        };
        let is_none = event_type == NO_EVENT_TYPE;
        let key = (day.to_owned(), Reverse((is_none, event_type.to_owned())));
        self.0.entry(key).or_insert_with(|| Usage {
            day: day.to_owned(),
            event_type: event_type.to_owned(),
            lines: 0,
            amounts: Amounts::default(),
        })
    }

    /// Divides amounts of a day among its event types.
    #[expect(clippy::cast_precision_loss, reason = "it is a share")]
    fn divide_day(&mut self, day: &str, amounts: &Amounts) {
        let of_day = || self.0.values().filter(|row| row.day == day);
        let lines: u64 = of_day().map(|row| row.lines).sum();
        if lines == 0 {
            self.row(day, "").amounts.add(amounts, 1.0);
            return;
        }
        for row in self.0.values_mut().filter(|row| row.day == day) {
            row.amounts.add(amounts, row.lines as f64 / lines as f64);
        }
    }
}
