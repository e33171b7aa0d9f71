//! What workers use: requests to SQS and S3, bytes and processor time. Counted here, recorded in
//! `worker_usage` every few minutes, and reported together with what ClickHouse used ([`report`]).
//!
//! A worker that is killed does not record what it used since its last record, and a record whose
//! response is lost can be counted twice: the figures are for estimates, not for bills.

mod recording;
pub mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sluice_core::cost::UsageKind;

use crate::telemetry::metrics;
use crate::util::aws_requests::{RequestObserver, Service};
pub use recording::Recording;

/// What this process has used and not recorded yet.
#[derive(Debug, Default)]
pub struct Usage(Mutex<Unrecorded>);

#[derive(Debug, Default)]
struct Unrecorded {
    /// By kind and operation.
    amounts: BTreeMap<(&'static str, String), u64>,
    /// The processor time that has been recorded.
    processor_time: Duration,
}

/// An amount that has not been recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Amount {
    kind: &'static str,
    /// The operation of a request, or empty.
    operation: String,
    amount: u64,
}

impl Usage {
    fn add(&self, kind: UsageKind, operation: &str, amount: u64) {
        let mut unrecorded = self.unrecorded();
        let key = (kind.label(), operation.to_owned());
        *unrecorded.amounts.entry(key).or_default() += amount;
    }

    /// Removes and returns all amounts, with the processor time since the last call.
    fn take(&self) -> Vec<Amount> {
        let mut unrecorded = self.unrecorded();
        let used = processor_time();
        let since = used.saturating_sub(unrecorded.processor_time);
        unrecorded.processor_time = used;
        let mut amounts = std::mem::take(&mut unrecorded.amounts);
        let key = (UsageKind::ProcessorTime.label(), String::new());
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        *amounts.entry(key).or_default() += micros;
        let amounts = amounts.into_iter().filter(|(_, amount)| *amount > 0);
        amounts
            .map(|((kind, operation), amount)| Amount {
                kind,
                operation,
                amount,
            })
            .collect()
    }

    /// Adds amounts again that could not be recorded.
    fn put_back(&self, amounts: Vec<Amount>) {
        let mut unrecorded = self.unrecorded();
        for Amount {
            kind,
            operation,
            amount,
        } in amounts
        {
            *unrecorded.amounts.entry((kind, operation)).or_default() += amount;
        }
    }

    fn unrecorded(&self) -> MutexGuard<'_, Unrecorded> {
        // It is consistent between statements, so a panic elsewhere does not corrupt it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RequestObserver for Usage {
    fn sent(&self, service: Service, operation: &str) {
        let kind = match service {
            Service::Sqs => {
                metrics::sqs_request(operation);
                UsageKind::SqsRequests
            }
            Service::S3 => {
                metrics::s3_request(operation);
                UsageKind::S3Requests
            }
        };
        self.add(kind, operation, 1);
    }

    fn content(&self, bytes: u64) {
        metrics::s3_bytes(bytes);
        self.add(UsageKind::S3Bytes, "", bytes);
    }
}

/// Returns the processor time that this process has used, in all threads.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}
