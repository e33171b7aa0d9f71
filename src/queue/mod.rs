//! The queue: receives and deletes messages, and changes their visibility.
//!
//! [`Queue`] has two implementations, [`sqs`] and [`memory`], which pass the same contract tests
//! (`tests/it/queue_contract.rs`).

pub mod depth;
pub mod memory;
pub mod payload;
pub mod sqs;

use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
pub use sluice_core::queue::{
    FailedEntries, MAX_BATCH, Message, QueueError, ReceiptHandle, VISIBILITY_LIMIT,
};

/// The attributes of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueAttributes {
    pub arn: String,
    /// The approximate number of messages that can be received.
    pub visible: u64,
    /// The approximate number of messages that were received, and are neither deleted nor visible
    /// again.
    pub in_flight: u64,
    /// How long a message is kept, if the queue reports it.
    pub retention: Option<Duration>,
    /// The redrive policy, if there is one.
    pub redrive_policy: Option<RedrivePolicy>,
}

impl QueueAttributes {
    pub fn is_fifo(&self) -> bool {
        self.arn.ends_with(".fifo")
    }
}

/// The dead-letter queue of a queue, and when a message is moved to it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedrivePolicy {
    pub dead_letter_target_arn: String,
    /// A number, which some clients write as a string.
    #[serde(deserialize_with = "number_or_text")]
    pub max_receive_count: u32,
}

fn number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u32),
        Text(String),
    }
    match Written::deserialize(deserializer)? {
        Written::Number(number) => Ok(number),
        Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

/// Removes the entries of messages that are gone, for callers that return messages or test
/// permissions and need not act on them.
pub fn except_gone(mut failed: FailedEntries) -> FailedEntries {
    failed.retain(|(_, error)| !matches!(error, QueueError::Gone(_)));
    failed
}

/// A queue with visibility timeouts.
pub trait Queue: Send + Sync + 'static {
    /// Waits up to `wait` for up to `max` messages ([`MAX_BATCH`] at most), which then stay
    /// invisible to others for `visibility`.
    fn receive(
        &self,
        max: usize,
        wait: Duration,
        visibility: Duration,
    ) -> impl Future<Output = Result<Vec<Message>, QueueError>> + Send;

    /// Deletes up to [`MAX_BATCH`] messages. Deleting a message again succeeds.
    fn delete(
        &self,
        handles: &[ReceiptHandle],
    ) -> impl Future<Output = Result<FailedEntries, QueueError>> + Send;

    /// Makes up to [`MAX_BATCH`] messages visible again after the given time from now. The entry of
    /// a message that is deleted, or that another consumer has received, fails with
    /// [`QueueError::Gone`].
    fn change_visibility(
        &self,
        entries: &[(ReceiptHandle, Duration)],
    ) -> impl Future<Output = Result<FailedEntries, QueueError>> + Send;

    fn attributes(&self) -> impl Future<Output = Result<QueueAttributes, QueueError>> + Send;
}
