//! The depth of a queue.

use serde::Serialize;

/// The approximate numbers of messages, as reported by SQS.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Depth {
    pub visible: u64,
    pub in_flight: u64,
    /// `None` if there is no dead-letter queue.
    pub dead_letters: Option<u64>,
}
