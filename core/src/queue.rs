//! Messages of a queue, and how requests about them fail.

use std::time::Duration;

/// The most that one receive, delete or change of visibility takes.
pub const MAX_BATCH: usize = 10;

/// A received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Stays the same over redeliveries.
    pub id: String,
    /// Names this delivery.
    pub handle: ReceiptHandle,
    pub body: String,
    /// How often the message has been received, this time included.
    pub receive_count: u32,
    /// How long it had been in the queue when it was received, as far as the clocks agree.
    pub age: Duration,
}

/// What SQS gives with each delivery of a message, to delete it or to change its visibility.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReceiptHandle(pub String);

/// The entries of a batch request that failed, by their position in the request.
pub type FailedEntries = Vec<(usize, QueueError)>;

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueueError {
    /// Worth trying again.
    #[error("{0}")]
    Transient(String),
    /// The queue does not exist, or access is denied: trying again helps only once somebody has
    /// mended it.
    #[error("{0}")]
    Denied(String),
    /// The message is deleted, or visible again and so not this worker's any more: there is nothing
    /// left to change.
    #[error("{0}")]
    Gone(String),
}
