//! Tells the metrics how deep the queue and its dead-letter queue are.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::metrics;
use crate::queue::sqs::SqsQueue;
use crate::queue::{Queue, QueueError};

/// Two requests each time: a long poll that finds nothing costs as much.
const INTERVAL: Duration = Duration::from_secs(15);

/// Asks for as long as it is polled.
pub async fn watch(queue: SqsQueue) {
    let mut depths = Depths {
        queue,
        dead_letters: None,
    };
    let mut mentioned = None;
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let trouble = depths.tell().await.err();
        if let Some(error) = &trouble {
            metrics::sqs_failures("attributes", 1);
            if trouble != mentioned {
                let advice = match error {
                    QueueError::Denied(_) => "; `sluice check --print-policy` prints the rights",
                    QueueError::Transient(_) => "",
                };
                warn!("how deep the queues are is not known; trying on: {error}{advice}");
            }
        }
        mentioned = trouble;
    }
}

struct Depths {
    queue: SqsQueue,
    /// By the ARN that the redrive policy names, once it was found.
    dead_letters: Option<(String, SqsQueue)>,
}

impl Depths {
    async fn tell(&mut self) -> Result<(), QueueError> {
        let attributes = self.queue.attributes().await?;
        metrics::queue_depth(attributes.visible, attributes.in_flight);
        let Some(policy) = attributes.redrive_policy else {
            return Ok(());
        };
        let dead_letters = self
            .dead_letter_queue(policy.dead_letter_target_arn)
            .await?;
        let attributes = dead_letters.attributes().await?;
        metrics::dead_letters(attributes.visible + attributes.in_flight);
        Ok(())
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
