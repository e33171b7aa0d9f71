//! What `/status.json` and `/events` say.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::WorkerHandles;
use super::condition::{Condition, HealthInputs};
use crate::queue::depth::Depth;
use crate::telemetry::activity::Snapshot;
use crate::telemetry::metrics::InFlightStats;

/// How the worker is.
#[derive(Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub version: String,
    pub uptime_seconds: u64,
    /// Why intake is paused, if it is.
    pub paused: Option<String>,
    /// Why nothing comes from the queue, if that is so.
    pub queue_away: Option<String>,
    #[serde(flatten)]
    pub holdings: InFlightStats,
}

/// All that the live page shows.
#[derive(Debug, Serialize)]
pub(super) struct LiveStatus {
    /// Now, by the worker's clock.
    at: String,
    condition: Condition,
    /// None until SQS has told.
    depth: Option<Depth>,
    #[serde(flatten)]
    worker: WorkerStatus,
    #[serde(flatten)]
    activity: Snapshot,
}

impl LiveStatus {
    pub(super) fn of(vitals: &WorkerHandles, stop: &CancellationToken) -> Self {
        let WorkerHandles {
            health,
            breaker,
            activity,
        } = vitals;
        let now = Instant::now();
        let condition = Condition::of(HealthInputs::of(vitals, stop.is_cancelled(), now));
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
