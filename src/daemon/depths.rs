//! How deep the queue and its dead-letter queue are, asked at times.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::queue::depth::Depth;
use crate::queue::sqs::SqsQueue;
use crate::queue::{Queue, QueueError};
use crate::telemetry::metrics::{self, SqsOperation};
use crate::util::outage::OutageLog;

/// Two requests each time: a long poll that finds nothing costs as much.
const INTERVAL: Duration = Duration::from_secs(15);

/// Asks for as long as it is polled, and tells the metrics and whoever else is to know.
pub async fn watch(queue: SqsQueue, tell: impl Fn(Depth)) {
    let mut depths = Depths {
        queue,
        dead_letters: None,
    };
    let mut outage = OutageLog::once();
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Err(error) = depths.ask(&tell).await else {
            outage.succeeded();
            continue;
        };
        metrics::sqs_failures(SqsOperation::Attributes, 1);
        if outage.failed(error.clone()).is_mentioned {
            let advice = match error {
                QueueError::Denied(_) => "; `sluice check --print-policy` prints the rights",
                QueueError::Transient(_) | QueueError::Gone(_) => "",
            };
            warn!(%error, "how deep the queues are is not known; trying on{advice}");
        }
    }
}

struct Depths {
    queue: SqsQueue,
    /// By the ARN that the redrive policy names, once it was found.
    dead_letters: Option<(String, SqsQueue)>,
}

impl Depths {
    async fn ask(&mut self, tell: impl Fn(Depth)) -> Result<(), QueueError> {
        let attributes = self.queue.attributes().await?;
        let mut depth = Depth {
            visible: attributes.visible,
            in_flight: attributes.in_flight,
            dead_letters: None,
        };
        let asked = match attributes.redrive_policy {
            Some(policy) => self
                .dead_letters(policy.dead_letter_target_arn)
                .await
                .map(Some),
            None => Ok(None),
        };
        let asked = asked.map(|count| depth.dead_letters = count);
        metrics::depth(depth);
        tell(depth);
        asked
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
