//! Shared handles to the state of a worker.

use std::sync::Arc;
use std::time::Duration;

use crate::load::breaker::Breaker;
use crate::telemetry::activity::Activity;
use crate::telemetry::health::Health;

/// Shared handles to the state that the parts of a worker report, and the admin listener shows.
#[derive(Clone, Debug)]
pub struct WorkerHandles {
    pub health: Arc<Health>,
    pub breaker: Arc<Breaker>,
    pub activity: Arc<Activity>,
}

impl WorkerHandles {
    /// Creates the state of a worker that starts. `probe_interval` is that of the breaker.
    pub fn new(probe_interval: Duration, activity: Activity) -> Self {
        Self {
            health: Arc::default(),
            breaker: Arc::new(Breaker::new(probe_interval)),
            activity: Arc::new(activity),
        }
    }
}
