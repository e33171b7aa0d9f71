//! The content of `/status.json` and `/events`.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::WorkerHandles;
use super::condition::{Condition, HealthInputs};
use crate::queue::depth::Depth;
use crate::telemetry::activity::Snapshot;
use crate::telemetry::metrics::InFlightStats;

/// The status of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub version: String,
    pub uptime_seconds: u64,
    /// Why intake is paused, if it is.
    pub paused: Option<String>,
    /// Why no messages are received, if so.
    pub queue_away: Option<String>,
    #[serde(flatten)]
    pub holdings: InFlightStats,
}

/// Everything that the live page shows.
#[derive(Debug, Serialize)]
pub(super) struct LiveStatus {
    /// The time of the status, by the worker's clock.
    at: String,
    condition: Condition,
    /// `None` until SQS has answered.
    depth: Option<Depth>,
    #[serde(flatten)]
    worker: WorkerStatus,
    #[serde(flatten)]
    activity: Snapshot,
}

impl LiveStatus {
    #[expect(clippy::disallowed_methods, reason = "shown on the live page")]
    pub(super) fn of(handles: &WorkerHandles, stop: &CancellationToken) -> Self {
        let WorkerHandles {
            health,
            breaker,
            activity,
        } = handles;
        let now = Instant::now();
        let condition = Condition::of(HealthInputs::of(handles, stop.is_cancelled(), now));
        Self {
            at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            condition,
            depth: health.depth(),
            worker: WorkerStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                uptime_seconds: health.uptime().as_secs(),
                paused: breaker.reason(),
                queue_away: health.queue().away(),
                holdings: health.holdings(),
            },
            activity: activity.snapshot(now),
        }
    }
}
