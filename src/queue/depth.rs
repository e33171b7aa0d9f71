//! How deep a queue is.

use serde::Serialize;

/// As SQS counts, which is approximate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Depth {
    pub visible: u64,
    pub in_flight: u64,
    /// None where there is no such queue.
    pub dead_letters: Option<u64>,
}
