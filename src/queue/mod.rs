//! The queue: receive, delete, change visibility.
//!
//! [`Queue`] has two implementations, [`sqs`] and [`memory`], which pass the same contract suite
//! (`tests/it/queue_contract.rs`).

pub mod depth;
pub mod memory;
pub mod payload;
pub mod sqs;

use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
pub use sluice_core::queue::{FailedEntries, MAX_BATCH, Message, QueueError, ReceiptHandle};

/// What is known of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueAttributes {
    pub arn: String,
    /// Messages to be received, approximately.
    pub visible: u64,
    /// Messages received and neither deleted nor visible again, approximately.
    pub in_flight: u64,
    /// How long a message is kept, where the queue says so.
    pub retention: Option<Duration>,
    /// What the redrive policy says, where there is one.
    pub redrive_policy: Option<RedrivePolicy>,
}

impl QueueAttributes {
    pub fn is_fifo(&self) -> bool {
        self.arn.ends_with(".fifo")
    }
}

/// When a message goes to which dead-letter queue.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedrivePolicy {
    pub dead_letter_target_arn: String,
    /// A number, and by some clients written as text.
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

/// Removes the messages of which nothing is left to change: whoever gives messages back, or tries
/// what is permitted, has nothing to do for them.
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

    /// Deletes up to [`MAX_BATCH`] messages. Deleting what is deleted already is a success.
    fn delete(
        &self,
        handles: &[ReceiptHandle],
    ) -> impl Future<Output = Result<FailedEntries, QueueError>> + Send;

    /// Makes up to [`MAX_BATCH`] messages visible again after the given time from now. The entry of a
    /// message that is gone, or somebody else's by now, fails with [`QueueError::Gone`].
    fn change_visibility(
        &self,
        entries: &[(ReceiptHandle, Duration)],
    ) -> impl Future<Output = Result<FailedEntries, QueueError>> + Send;

    fn attributes(&self) -> impl Future<Output = Result<QueueAttributes, QueueError>> + Send;
}
