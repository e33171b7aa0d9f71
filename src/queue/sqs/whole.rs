//! Messages with all their attributes, to be shown or sent to another queue.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeName, SendMessageBatchRequestEntry,
};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;
use uuid::Uuid;

use super::{SqsQueue, classify, read_message, refusal};
use crate::queue::{MAX_BATCH, Message, QueueError};

/// A message of a dead-letter queue.
#[derive(Clone, Debug)]
pub struct WholeMessage {
    pub message: Message,
    pub sent_at: SystemTime,
    pub first_received_at: SystemTime,
    /// The ARN of the queue that it was moved from, or `None` if it was sent to this one.
    pub source: Option<String>,
    pub attributes: Attributes,
}

/// The message attributes that the sender added to the body.
#[derive(Clone, Debug, Default)]
pub struct Attributes(HashMap<String, MessageAttributeValue>);

/// A message to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub body: &'a str,
    pub attributes: Option<&'a Attributes>,
}

/// The largest size of a batch of messages. (SQS now accepts 1 MiB; not every emulator does.)
const MAX_BATCH_BYTES: usize = 256 * 1024;

impl SqsQueue {
    /// Receives up to [`MAX_BATCH`] messages with all their attributes.
    pub async fn receive_whole(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<WholeMessage>, QueueError> {
        let output = self
            .receive_request(MAX_BATCH, wait, visibility)
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All")
            .send()
            .await
            .map_err(classify)?;
        let messages = output.messages.unwrap_or_default().into_iter();
        Ok(messages.filter_map(read_whole).collect())
    }

    /// Sends messages.
    ///
    /// # Errors
    ///
    /// Fails if a message is not sent. Others may have been sent.
    pub async fn send(&self, bodies: &[String]) -> Result<(), QueueError> {
        for bodies in bodies.chunks(MAX_BATCH) {
            let messages = bodies.iter().map(|body| Outgoing {
                body,
                attributes: None,
            });
            for sent in self.send_each(&messages.collect::<Vec<_>>()).await {
                sent?;
            }
        }
        Ok(())
    }

    /// Sends messages, and returns the new id of each, or why it was not sent.
    ///
    /// In a FIFO queue, each is a message group of its own, without an order.
    pub async fn send_each(&self, messages: &[Outgoing<'_>]) -> Vec<Result<String, QueueError>> {
        let mut outcomes = Vec::with_capacity(messages.len());
        for batch in batches(messages) {
            match self.send_batch(batch).await {
                Ok(sent) => outcomes.extend(sent),
                Err(error) => outcomes.extend(batch.iter().map(|_| Err(error.clone()))),
            }
        }
        outcomes
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "an id for the deduplication of FIFO queues"
    )]
    async fn send_batch(
        &self,
        batch: &[Outgoing<'_>],
    ) -> Result<Vec<Result<String, QueueError>>, QueueError> {
        let mut request = self.client.send_message_batch().queue_url(&self.url);
        for (index, message) in batch.iter().enumerate() {
            let unique = self.is_fifo().then(|| Uuid::now_v7().to_string());
            request = request.entries(
                SendMessageBatchRequestEntry::builder()
                    .id(index.to_string())
                    .message_body(message.body)
                    .set_message_attributes(message.attributes.map(|it| it.0.clone()))
                    .set_message_group_id(unique.clone())
                    .set_message_deduplication_id(unique)
                    .build()
                    .map_err(|error| QueueError::Transient(error.to_string()))?,
            );
        }
        let output = request.send().await.map_err(classify)?;
        let unanswered = || Err(QueueError::Transient("no result from SQS".to_owned()));
        let mut outcomes: Vec<_> = batch.iter().map(|_| unanswered()).collect();
        let sent = output.successful.into_iter();
        let sent = sent.map(|entry| (entry.id, Ok(entry.message_id)));
        let failed = output.failed.into_iter().map(|entry| {
            let error = QueueError::Transient(refusal(&entry));
            (entry.id, Err(error))
        });
        for (id, outcome) in sent.chain(failed) {
            if let Some(place) = id.parse().ok().and_then(|at: usize| outcomes.get_mut(at)) {
                *place = outcome;
            }
        }
        Ok(outcomes)
    }

    fn is_fifo(&self) -> bool {
        self.url.ends_with(".fifo")
    }
}

/// Divides messages, in order, into as few batches as the limits of SQS allow.
fn batches<'m, 'a>(mut messages: &'m [Outgoing<'a>]) -> Vec<&'m [Outgoing<'a>]> {
    let mut batches = Vec::new();
    while !messages.is_empty() {
        let mut bytes = 0;
        let fitting = messages.iter().take(MAX_BATCH).take_while(|message| {
            bytes += message.bytes();
            bytes <= MAX_BATCH_BYTES
        });
        // A message that is too large by itself is left for SQS to reject.
        let (batch, rest) = messages.split_at(fitting.count().max(1));
        batches.push(batch);
        messages = rest;
    }
    batches
}

impl Outgoing<'_> {
    fn bytes(&self) -> usize {
        self.body.len() + self.attributes.map_or(0, Attributes::bytes)
    }
}

impl Attributes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&self) -> usize {
        let attributes = self.0.iter().map(|(name, value)| {
            let text = value.string_value().map_or(0, str::len);
            let binary = value.binary_value().map_or(0, |blob| blob.as_ref().len());
            name.len() + value.data_type().len() + text + binary
        });
        attributes.sum()
    }
}

/// Serializes text as a string, and bytes as a list of numbers.
impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            let content = match (value.string_value(), value.binary_value()) {
                (Some(text), _) => text.into(),
                (None, Some(blob)) => blob.as_ref().into(),
                (None, None) => serde_json::Value::Null,
            };
            map.serialize_entry(name, &json!({"type": value.data_type(), "value": content}))?;
        }
        map.end()
    }
}

fn read_whole(mut message: aws_sdk_sqs::types::Message) -> Option<WholeMessage> {
    let attributes = Attributes(message.message_attributes.take().unwrap_or_default());
    let system = message.attributes.clone().unwrap_or_default();
    let time = |name: MessageSystemAttributeName| {
        let millis = system.get(&name).and_then(|millis| millis.parse().ok());
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis.unwrap_or_default())
    };
    let source = system.get(&MessageSystemAttributeName::DeadLetterQueueSourceArn);
    Some(WholeMessage {
        sent_at: time(MessageSystemAttributeName::SentTimestamp),
        first_received_at: time(MessageSystemAttributeName::ApproximateFirstReceiveTimestamp),
        source: source.cloned(),
        attributes,
        message: read_message(message)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_within_the_limits_of_count_and_size() {
        let sizes = |lengths: &[usize]| -> Vec<usize> {
            let bodies: Vec<String> = lengths.iter().map(|length| "x".repeat(*length)).collect();
            let messages: Vec<_> = bodies
                .iter()
                .map(|body| Outgoing {
                    body,
                    attributes: None,
                })
                .collect();
            batches(&messages).iter().map(|batch| batch.len()).collect()
        };
        let most = MAX_BATCH_BYTES;
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1; 21]), [10, 10, 1]);
        assert_eq!(sizes(&[most / 2, most / 2, 1]), [2, 1]);
        assert_eq!(sizes(&[1, most, 1, most + 1]), [1, 1, 1, 1]);
    }
}
