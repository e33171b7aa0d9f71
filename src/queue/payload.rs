//! Reads message bodies that are stored in S3, as the SQS extended client does with large ones.

use std::time::Duration;

use futures_util::future::join_all;
use tracing::warn;

use super::{FailedEntries, Message, Queue, QueueAttributes, QueueError, ReceiptHandle};
use crate::notification::payload_pointer;
use crate::s3::Store;

/// The largest body that is read, in bytes. The limit of SQS itself is 1 MiB.
const MAX_BYTES: u64 = 16 << 20;

/// A queue that replaces pointers to S3 with the bodies that they point to. If a body cannot be
/// read, the pointer stays, and the message is returned as malformed.
pub struct WithPayloads<Q> {
    queue: Q,
    store: Store,
}

impl<Q: Queue> WithPayloads<Q> {
    pub fn new(queue: Q, store: Store) -> Self {
        Self { queue, store }
    }

    async fn unpack(&self, message: &mut Message) {
        let Some(object) = payload_pointer(&message.body) else {
            return;
        };
        match self.store.text(&object, MAX_BYTES).await {
            Ok(body) => message.body = body,
            Err(error) => warn!(
                message = message.id,
                %object,
                %error,
                "failed to read the body of a message from S3; returning the message to the queue"
            ),
        }
    }
}

impl<Q: Queue> Queue for WithPayloads<Q> {
    async fn receive(
        &self,
        max: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let mut messages = self.queue.receive(max, wait, visibility).await?;
        join_all(messages.iter_mut().map(|message| self.unpack(message))).await;
        Ok(messages)
    }

    async fn delete(&self, handles: &[ReceiptHandle]) -> Result<FailedEntries, QueueError> {
        self.queue.delete(handles).await
    }

    async fn change_visibility(
        &self,
        entries: &[(ReceiptHandle, Duration)],
    ) -> Result<FailedEntries, QueueError> {
        self.queue.change_visibility(entries).await
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        self.queue.attributes().await
    }
}
