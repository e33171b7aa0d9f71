//! Statistics of the daemon's core.

use serde::{Deserialize, Serialize};

use crate::sliding_window::Summary;

/// The messages, objects and batches of the daemon at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InFlightStats {
    pub messages: usize,
    /// How long the oldest message has been in flight.
    pub oldest_seconds: f64,
    pub objects_waiting: usize,
    pub batches_in_flight: usize,
    /// Why intake is paused, in one word.
    pub pause_class: Option<String>,
    /// The times from the creation of objects to the end of their load.
    pub lag: Option<Summary>,
    /// How long messages had been in the queue when they were received.
    pub queue_age: Option<Summary>,
}

/// How much a worker holds in memory: the lengths of the collections that its limits must bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlightCounts {
    /// The messages in flight, or else those that also wait for their deletion.
    pub messages: usize,
    /// The objects that these messages wait for.
    pub objects: usize,
    /// The objects in open batches, in closed ones that wait for a load slot, in loads, and those
    /// that are looked up again later.
    pub unfinished: usize,
    pub open_batches: usize,
    /// The batches that are being loaded.
    pub loads: usize,
}

impl InFlightCounts {
    /// Returns the larger of both, count by count.
    #[must_use]
    pub fn largest(self, other: Self) -> Self {
        Self {
            messages: self.messages.max(other.messages),
            objects: self.objects.max(other.objects),
            unfinished: self.unfinished.max(other.unfinished),
            open_batches: self.open_batches.max(other.open_batches),
            loads: self.loads.max(other.loads),
        }
    }
}

impl InFlightStats {
    /// Returns the number of messages that this worker has to work on now. Each object that waits
    /// for its window counts as one message that needs no work yet.
    pub fn backlog(&self) -> usize {
        self.messages.saturating_sub(self.objects_waiting)
    }
}
