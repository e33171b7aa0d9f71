//! The depth of a queue.

use serde::Serialize;

/// The numbers of messages, which SQS counts approximately.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Depth {
    pub visible: u64,
    pub in_flight: u64,
    /// `None` if there is no dead-letter queue.
    pub dead_letters: Option<u64>,
}
