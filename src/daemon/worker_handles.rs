//! What the parts of the daemon tell of themselves.

use std::sync::Arc;
use std::time::Duration;

use crate::load::breaker::Breaker;
use crate::telemetry::activity::Activity;
use crate::telemetry::health::Health;

/// What the parts of the daemon tell of themselves.
#[derive(Clone, Debug)]
pub struct WorkerHandles {
    pub health: Arc<Health>,
    pub breaker: Arc<Breaker>,
    pub activity: Arc<Activity>,
}

impl WorkerHandles {
    /// Nothing has been heard of yet. `probe_interval` is the breaker's.
    pub fn new(probe_interval: Duration, activity: Activity) -> Self {
        Self {
            health: Arc::default(),
            breaker: Arc::new(Breaker::new(probe_interval)),
            activity: Arc::new(activity),
        }
    }
}
