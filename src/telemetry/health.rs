//! The liveness of the event loop, and the connectivity of the queue.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_core::daemon::InFlightCounts;
use tokio::time::Instant;

use crate::queue::depth::Depth;
use crate::telemetry::metrics::InFlightStats;

/// An event loop without an iteration for this long is stuck: there is one every second.
const STUCK: Duration = Duration::from_secs(30);

/// The state of the event loop and of the queue that `/healthz` and `/readyz` show.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Milliseconds after `started`.
    last_beat: AtomicU64,
    queue: Mutex<QueueConnectivity>,
    depth: Mutex<Option<Depth>>,
    holdings: Mutex<InFlightStats>,
    peak: Mutex<InFlightCounts>,
}

/// Whether the queue responds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QueueConnectivity {
    NotYet,
    Answers,
    /// With the error.
    Away(String),
}

impl QueueConnectivity {
    /// Returns why no messages are received, if so.
    pub(crate) fn away(self) -> Option<String> {
        match self {
            Self::NotYet => Some("the queue has not been reached yet".to_owned()),
            Self::Answers => None,
            Self::Away(why) => Some(why),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            last_beat: AtomicU64::new(0),
            queue: Mutex::new(QueueConnectivity::NotYet),
            depth: Mutex::default(),
            holdings: Mutex::default(),
            peak: Mutex::default(),
        }
    }
}

impl Health {
    /// Records an iteration of the event loop.
    pub fn beat(&self) {
        let now = u64::try_from(self.uptime().as_millis()).unwrap_or(u64::MAX);
        self.last_beat.store(now, Ordering::Relaxed);
    }

    pub fn queue_answers(&self) {
        *lock(&self.queue) = QueueConnectivity::Answers;
    }

    pub fn queue_fails(&self, why: String) {
        *lock(&self.queue) = QueueConnectivity::Away(why);
    }

    pub fn queue_is(&self, depth: Depth) {
        *lock(&self.depth) = Some(depth);
    }

    pub fn holds(&self, holdings: InFlightStats) {
        *lock(&self.holdings) = holdings;
    }

    /// Records what the event loop holds in memory after an event.
    pub fn note_counts(&self, counts: InFlightCounts) {
        let mut peak = lock(&self.peak);
        *peak = peak.largest(counts);
    }

    /// Returns the largest of each count that was recorded: what the event loop has held at most.
    pub fn peak(&self) -> InFlightCounts {
        *lock(&self.peak)
    }

    /// Returns for how long the event loop has been stuck, if it is.
    pub fn stuck_for(&self) -> Option<Duration> {
        let beat = Duration::from_millis(self.last_beat.load(Ordering::Relaxed));
        let silent = self.uptime().saturating_sub(beat);
        (silent >= STUCK).then_some(silent)
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn queue(&self) -> QueueConnectivity {
        lock(&self.queue).clone()
    }

    pub(crate) fn depth(&self) -> Option<Depth> {
        *lock(&self.depth)
    }

    pub(crate) fn holdings(&self) -> InFlightStats {
        lock(&self.holdings).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
