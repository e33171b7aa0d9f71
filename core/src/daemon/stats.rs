//! What the daemon has in hand.

use serde::{Deserialize, Serialize};

use crate::sliding_window::Summary;

/// What the daemon holds at this moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InFlightStats {
    pub messages: usize,
    /// Of the message held longest.
    pub oldest_seconds: f64,
    pub objects_waiting: usize,
    pub batches_in_flight: usize,
    /// Why intake is paused, in one word.
    pub pause_class: Option<String>,
    /// From the creation of objects to their being loaded.
    pub lag: Option<Summary>,
    /// How long messages had been in the queue when they came.
    pub queue_age: Option<Summary>,
}

impl InFlightStats {
    /// Messages that this worker has to work on now. An object that waits for its window stands for
    /// the message that announced it.
    pub fn backlog(&self) -> usize {
        self.messages.saturating_sub(self.objects_waiting)
    }
}
