//! Implements [`Queue`] on SQS. Only this module uses the SQS SDK.

pub mod move_task;
pub mod whole;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::operation::receive_message::builders::ReceiveMessageFluentBuilder;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry,
    DeleteMessageBatchRequestEntry, MessageSystemAttributeName, QueueAttributeName,
};

use crate::util::aws_requests::{ObserveRequests, RequestObserver, Service};
use crate::util::error_chain::with_sources;

use super::{
    FailedEntries, Message, Queue, QueueAttributes, QueueError, ReceiptHandle, except_gone,
};

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

    /// Returns the queue of this URL, with the credentials and the region of `aws`.
    #[expect(
        clippy::disallowed_methods,
        reason = "the only place that creates a client"
    )]
    pub fn at(aws: &SdkConfig, url: impl Into<String>) -> Self {
        Self::new(Client::new(aws), url)
    }

    /// Returns the same queue, whose requests are observed.
    #[expect(
        clippy::disallowed_methods,
        reason = "the client has the configuration of the one that it replaces"
    )]
    #[must_use]
    pub fn observed(self, observer: Arc<dyn RequestObserver>) -> Self {
        let interceptor = ObserveRequests {
            service: Service::Sqs,
            observer,
        };
        let config = self.client.config().to_builder().interceptor(interceptor);
        Self {
            client: Client::from_conf(config.build()),
            ..self
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the dead-letter queue of this queue, if it has one.
    pub async fn dead_letter_queue(&self) -> Result<Option<Self>, QueueError> {
        let Some(policy) = self.attributes().await?.redrive_policy else {
            return Ok(None);
        };
        self.of_arn(&policy.dead_letter_target_arn).await.map(Some)
    }

    /// Returns another queue of this region.
    pub async fn of_arn(&self, arn: &str) -> Result<Self, QueueError> {
        // arn:aws:sqs:region:account:name
        let mut parts = arn.rsplit(':');
        let (Some(name), Some(account)) = (parts.next(), parts.next()) else {
            return Err(QueueError::Denied(format!(
                "`{arn}` is not a valid queue ARN"
            )));
        };
        let request = self.client.get_queue_url().queue_name(name);
        let request = request.queue_owner_aws_account_id(account);
        let output = request.send().await.map_err(classify)?;
        let url = output
            .queue_url
            .ok_or_else(|| QueueError::Transient(format!("SQS returned no URL for {arn}")))?;
        Ok(Self {
            client: self.client.clone(),
            url,
        })
    }

    fn receive_request(
        &self,
        max: usize,
        wait: Duration,
        visibility: Duration,
    ) -> ReceiveMessageFluentBuilder {
        self.client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(i32::try_from(max).unwrap_or(i32::MAX))
            .wait_time_seconds(whole_seconds(wait))
            .visibility_timeout(whole_seconds(visibility))
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
            .receive_request(max, wait, visibility)
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
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
        Ok(except_gone(failed_entries(&output.failed)))
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
        let number = |name: QueueAttributeName| -> Option<u64> {
            attributes.get(&name).and_then(|value| value.parse().ok())
        };
        let count = |name| number(name).unwrap_or_default();
        Ok(QueueAttributes {
            arn: attributes
                .get(&QueueAttributeName::QueueArn)
                .cloned()
                .unwrap_or_default(),
            visible: count(QueueAttributeName::ApproximateNumberOfMessages),
            in_flight: count(QueueAttributeName::ApproximateNumberOfMessagesNotVisible),
            retention: number(QueueAttributeName::MessageRetentionPeriod).map(Duration::from_secs),
            redrive_policy: attributes
                .get(&QueueAttributeName::RedrivePolicy)
                .and_then(|policy| serde_json::from_str(policy).ok()),
        })
    }
}

/// Reads a message. Returns `None` without an id or a receipt handle, which SQS always sends.
#[expect(
    clippy::disallowed_methods,
    reason = "the age of a message is relative to the wall clock"
)]
fn read_message(message: aws_sdk_sqs::types::Message) -> Option<Message> {
    let attributes = message.attributes.as_ref();
    let number = |name| -> Option<u64> { attributes?.get(&name)?.parse().ok() };
    let receive_count = number(MessageSystemAttributeName::ApproximateReceiveCount);
    let sent_at = number(MessageSystemAttributeName::SentTimestamp)
        .map_or_else(SystemTime::now, |millis| {
            UNIX_EPOCH + Duration::from_millis(millis)
        });
    Some(Message {
        id: message.message_id?,
        handle: ReceiptHandle(message.receipt_handle?),
        body: message.body.unwrap_or_default(),
        receive_count: receive_count
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(1),
        age: sent_at.elapsed().unwrap_or_default(),
    })
}

fn whole_seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs_f64().ceil() as i64).unwrap_or(i32::MAX)
}

fn failed_entries(failed: &[BatchResultErrorEntry]) -> FailedEntries {
    failed
        .iter()
        .filter_map(|entry| Some((entry.id.parse().ok()?, classify_entry(entry))))
        .collect()
}

fn classify_entry(entry: &BatchResultErrorEntry) -> QueueError {
    let text = refusal(entry);
    if is_gone(&entry.code, entry.message.as_deref().unwrap_or_default()) {
        QueueError::Gone(text)
    } else {
        QueueError::Transient(text)
    }
}

fn refusal(entry: &BatchResultErrorEntry) -> String {
    let reason = entry.message.as_deref().unwrap_or("no reason given");
    format!("{}: {reason}", entry.code)
}

/// Returns whether the error means that the message is deleted, or is visible again and therefore
/// not this consumer's any more.
fn is_gone(code: &str, message: &str) -> bool {
    let says = ["ReceiptHandleIsInvalid", "MessageNotInflight"];
    // SQS uses this code for any invalid parameter.
    let is_of_handle = || {
        let message = message.to_ascii_lowercase();
        message.contains("receipthandle") || message.contains("receipt handle")
    };
    says.iter().any(|gone| code.ends_with(gone))
        || code.ends_with("InvalidParameterValue") && is_of_handle()
}

/// The error codes of SQS for which a retry does not help.
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
