//! Polls the depths of the queue and of its dead-letter queue.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::queue::depth::Depth;
use crate::queue::sqs::SqsQueue;
use crate::queue::{Queue, QueueError};
use crate::telemetry::metrics::{self, SqsOperation};
use crate::util::outage::OutageLog;

/// Each poll sends two requests, which cost as much as two long polls without messages.
const INTERVAL: Duration = Duration::from_secs(15);

/// Polls the depths indefinitely, and reports them to the metrics and to `report`.
pub async fn watch(queue: SqsQueue, report: impl Fn(Depth)) {
    let mut depths = Depths {
        queue,
        dead_letters: None,
    };
    let mut outage = OutageLog::once();
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Err(error) = depths.poll(&report).await else {
            outage.succeeded();
            continue;
        };
        metrics::sqs_failures(SqsOperation::Attributes, 1);
        if outage.failed(error.clone()).is_mentioned {
            let advice = match error {
                QueueError::Denied(_) => {
                    "; `sluice check --print-policy` prints the required permissions"
                }
                QueueError::Transient(_) | QueueError::Gone(_) => "",
            };
            warn!(%error, "failed to read queue depth; retrying{advice}");
        }
    }
}

struct Depths {
    queue: SqsQueue,
    /// The dead-letter queue and its ARN from the redrive policy, once it has been found.
    dead_letters: Option<(String, SqsQueue)>,
}

impl Depths {
    async fn poll(&mut self, report: impl Fn(Depth)) -> Result<(), QueueError> {
        let attributes = self.queue.attributes().await?;
        let mut depth = Depth {
            visible: attributes.visible,
            in_flight: attributes.in_flight,
            dead_letters: None,
        };
        let dead_letters = match attributes.redrive_policy {
            Some(policy) => self
                .dead_letters(policy.dead_letter_target_arn)
                .await
                .map(Some),
            None => Ok(None),
        };
        let result = dead_letters.map(|count| depth.dead_letters = count);
        metrics::depth(depth);
        report(depth);
        result
    }

    async fn dead_letters(&mut self, arn: String) -> Result<u64, QueueError> {
        let queue = self.dead_letter_queue(arn).await?;
        let attributes = queue.attributes().await?;
        Ok(attributes.visible + attributes.in_flight)
    }

    async fn dead_letter_queue(&mut self, arn: String) -> Result<SqsQueue, QueueError> {
        match &self.dead_letters {
            Some((known, queue)) if *known == arn => Ok(queue.clone()),
            _ => {
                let queue = self.queue.of_arn(&arn).await?;
                self.dead_letters = Some((arn, queue.clone()));
                Ok(queue)
            }
        }
    }
}
