//! [`Queue`] on SQS: the only user of its SDK.

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry,
    DeleteMessageBatchRequestEntry, MessageSystemAttributeName, QueueAttributeName,
};

use crate::telemetry::with_sources;

use super::{FailedEntries, Message, Queue, QueueAttributes, QueueError, ReceiptHandle};

#[derive(Clone, Debug)]
pub struct SqsQueue {
    client: Client,
    url: String,
}

impl SqsQueue {
    pub fn new(client: Client, url: impl Into<String>) -> Self {
        Self {
            client,
            url: url.into(),
        }
    }
}

impl Queue for SqsQueue {
    async fn receive(
        &self,
        max: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let output = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(i32::try_from(max).unwrap_or(i32::MAX))
            .wait_time_seconds(whole_seconds(wait))
            .visibility_timeout(whole_seconds(visibility))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .send()
            .await
            .map_err(classify)?;
        let messages = output.messages.unwrap_or_default().into_iter();
        Ok(messages.filter_map(read_message).collect())
    }

    async fn delete(&self, handles: &[ReceiptHandle]) -> Result<FailedEntries, QueueError> {
        let mut request = self.client.delete_message_batch().queue_url(&self.url);
        for (index, handle) in handles.iter().enumerate() {
            request = request.entries(
                DeleteMessageBatchRequestEntry::builder()
                    .id(index.to_string())
                    .receipt_handle(&handle.0)
                    .build()
                    .map_err(|error| QueueError::Transient(error.to_string()))?,
            );
        }
        let output = request.send().await.map_err(classify)?;
        Ok(failed_entries(&output.failed))
    }

    async fn change_visibility(
        &self,
        entries: &[(ReceiptHandle, Duration)],
    ) -> Result<FailedEntries, QueueError> {
        let mut request = self
            .client
            .change_message_visibility_batch()
            .queue_url(&self.url);
        for (index, (handle, timeout)) in entries.iter().enumerate() {
            request = request.entries(
                ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(index.to_string())
                    .receipt_handle(&handle.0)
                    .visibility_timeout(whole_seconds(*timeout))
                    .build()
                    .map_err(|error| QueueError::Transient(error.to_string()))?,
            );
        }
        let output = request.send().await.map_err(classify)?;
        Ok(failed_entries(&output.failed))
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        let output = self
            .client
            .get_queue_attributes()
            .queue_url(&self.url)
            .attribute_names(QueueAttributeName::All)
            .send()
            .await
            .map_err(classify)?;
        let attributes = output.attributes.unwrap_or_default();
        let number = |name: QueueAttributeName| {
            attributes
                .get(&name)
                .and_then(|value| value.parse().ok())
                .unwrap_or_default()
        };
        Ok(QueueAttributes {
            visible: number(QueueAttributeName::ApproximateNumberOfMessages),
            in_flight: number(QueueAttributeName::ApproximateNumberOfMessagesNotVisible),
            has_redrive_policy: attributes
                .get(&QueueAttributeName::RedrivePolicy)
                .is_some_and(|policy| policy.contains("deadLetterTargetArn")),
        })
    }
}

/// A message without id or receipt handle cannot be worked with; SQS sends none.
fn read_message(message: aws_sdk_sqs::types::Message) -> Option<Message> {
    let receive_count = message
        .attributes
        .as_ref()
        .and_then(|a| a.get(&MessageSystemAttributeName::ApproximateReceiveCount))
        .and_then(|count| count.parse().ok())
        .unwrap_or(1);
    Some(Message {
        id: message.message_id?,
        handle: ReceiptHandle(message.receipt_handle?),
        body: message.body.unwrap_or_default(),
        receive_count,
    })
}

fn whole_seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs_f64().ceil() as i64).unwrap_or(i32::MAX)
}

fn failed_entries(failed: &[BatchResultErrorEntry]) -> FailedEntries {
    failed
        .iter()
        .filter(|entry| !is_gone(&entry.code))
        .filter_map(|entry| {
            let reason = entry.message.as_deref().unwrap_or("no reason given");
            let error = QueueError::Transient(format!("{}: {reason}", entry.code));
            Some((entry.id.parse().ok()?, error))
        })
        .collect()
}

/// The message is deleted, or visible again and so not ours any more.
fn is_gone(code: &str) -> bool {
    [
        "ReceiptHandleIsInvalid",
        "MessageNotInflight",
        "InvalidParameterValue",
    ]
    .iter()
    .any(|gone| code.ends_with(gone))
}

/// SQS's own words for what trying again does not mend.
const DENIED: &[&str] = &[
    "NonExistentQueue",
    "QueueDoesNotExist",
    "AccessDenied",
    "AccessDeniedException",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
    "ExpiredToken",
    "KmsAccessDenied",
];

fn classify<E, R>(error: SdkError<E, R>) -> QueueError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    if let Some(service) = error.as_service_error() {
        let code = service.code().unwrap_or("unknown");
        let text = format!("{code}: {}", service.message().unwrap_or("no reason given"));
        if DENIED.iter().any(|denied| code.ends_with(denied)) {
            return QueueError::Denied(text);
        }
        return QueueError::Transient(text);
    }
    QueueError::Transient(with_sources(&error))
}
