//! The bounds of what a worker holds in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluice::daemon::Options;
use sluice::queue::MAX_BATCH;
use sluice::telemetry::health::Health;
use sluice_core::daemon::InFlightCounts;

use super::arrivals::MAX_RECORDS;
use super::violations::Violations;

/// Checks that a worker never holds more than its configuration allows.
///
/// The worker records its counts after each event, so that none of its states is missed, however
/// rarely this is checked.
#[derive(Debug)]
pub(super) struct Bounds {
    worker: Arc<str>,
    health: Arc<Health>,
    max: InFlightCounts,
    violations: Violations,
    /// Whether a violation has been reported: it is there to stay.
    has_reported: AtomicBool,
}

impl Bounds {
    pub(super) fn new(
        worker: Arc<str>,
        health: Arc<Health>,
        options: &Options,
        violations: Violations,
    ) -> Self {
        Self {
            worker,
            health,
            max: max_counts(options),
            violations,
            has_reported: AtomicBool::new(false),
        }
    }

    /// Reports a violation if the worker has held more than it may.
    pub(super) fn check(&self) {
        let (peak, max) = (self.health.peak(), self.max);
        if peak.largest(max) != max && !self.has_reported.swap(true, Ordering::Relaxed) {
            self.violations.report(format_args!(
                "{} has held {peak:?}, more than {max:?}",
                self.worker
            ));
        }
    }
}

/// Returns what a worker with these options may hold.
///
/// - **Messages.** No receive begins while `max_held` messages are in flight or wait for their
///   deletion, which a queue can fail to do while it delivers others. At that moment, each
///   receiver can have a receive in flight or messages that wait for the channel, and the channel
///   has as many places as there are receivers: two receives of [`MAX_BATCH`] messages for each.
///   (A message that is received again is tracked once.)
/// - **Objects.** Each message of a world announces at most [`MAX_RECORDS`] objects. An object of
///   which the load has not ended belongs to a message in flight, however many announce it, so that
///   batches that are open, closed, loaded or looked up again later have no more objects in all.
/// - **Open batches.** One for each bucket, and a world has one.
/// - **Loads.** The concurrency.
fn max_counts(options: &Options) -> InFlightCounts {
    let messages = options.limits.max_held + 2 * options.receivers * MAX_BATCH;
    let objects = messages * MAX_RECORDS;
    InFlightCounts {
        messages,
        objects,
        unfinished: objects,
        open_batches: 1,
        loads: options.limits.concurrency,
    }
}
