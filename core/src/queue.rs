//! Messages of a queue, and the errors of requests about them.

use std::time::Duration;

/// The maximum number of messages in one receive, delete or change of visibility.
pub const MAX_BATCH: usize = 10;

/// How long SQS hides a message after a receive at most, however often its visibility is changed.
pub const VISIBILITY_LIMIT: Duration = Duration::from_secs(12 * 3600);

/// A received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Stays the same when the message is delivered again.
    pub id: String,
    /// Identifies this delivery.
    pub handle: ReceiptHandle,
    pub body: String,
    /// How often the message has been received, this time included.
    pub receive_count: u32,
    /// How long it had been in the queue when it was received, as accurately as the clocks agree.
    pub age: Duration,
}

/// What SQS issues with each delivery of a message, and requires to delete it or to change its
/// visibility.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReceiptHandle(pub String);

/// The entries of a batch request that failed, by their position in the request.
pub type FailedEntries = Vec<(usize, QueueError)>;

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueueError {
    /// A retry may succeed.
    #[error("{0}")]
    Transient(String),
    /// The queue does not exist, or access is denied: a retry succeeds only after somebody has
    /// fixed the cause.
    #[error("{0}")]
    Denied(String),
    /// The message is deleted, or is visible again and thus no longer this worker's: there is
    /// nothing left to change.
    #[error("{0}")]
    Gone(String),
}
