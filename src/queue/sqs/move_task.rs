//! Has SQS itself move dead letters back to their source queues.

use std::num::NonZeroU32;

use super::{SqsQueue, classify};
use crate::queue::QueueError;

/// The largest rate that SQS accepts, in messages per second.
const MAX_RATE: u32 = 500;

/// The latest move task of a dead-letter queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveTask {
    pub status: MoveTaskStatus,
    /// Distinguishes the task from earlier ones.
    pub started_timestamp: i64,
    pub moved: u64,
    pub to_move: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveTaskStatus {
    /// Running, or being cancelled.
    Running,
    Completed,
    Cancelled,
    Failed {
        reason: String,
    },
}

impl SqsQueue {
    /// Starts moving all messages of the dead-letter queue with this ARN, and returns the task's
    /// handle.
    pub async fn start_move(
        &self,
        dead_arn: &str,
        max_rate: Option<NonZeroU32>,
    ) -> Result<String, QueueError> {
        let rate = max_rate.map(|rate| rate.get().min(MAX_RATE).cast_signed());
        let request = self.client.start_message_move_task().source_arn(dead_arn);
        let request = request.set_max_number_of_messages_per_second(rate);
        let output = request.send().await.map_err(classify)?;
        Ok(output.task_handle.unwrap_or_default())
    }

    /// Returns the URLs of the queues whose dead-letter queue this is, up to two.
    pub async fn sources(&self) -> Result<Vec<String>, QueueError> {
        let request = self.client.list_dead_letter_source_queues();
        let request = request.queue_url(&self.url).max_results(2);
        let output = request.send().await.map_err(classify)?;
        Ok(output.queue_urls)
    }

    pub async fn latest_move(&self, dead_arn: &str) -> Result<Option<MoveTask>, QueueError> {
        let request = self.client.list_message_move_tasks().source_arn(dead_arn);
        let output = request.max_results(1).send().await.map_err(classify)?;
        let task = output.results.unwrap_or_default().into_iter().next();
        Ok(task.map(|task| MoveTask {
            status: status(task.status.as_deref(), task.failure_reason),
            started_timestamp: task.started_timestamp,
            moved: count(Some(task.approximate_number_of_messages_moved)),
            to_move: count(task.approximate_number_of_messages_to_move),
        }))
    }

    /// Cancels a task. Messages that it has moved stay moved.
    pub async fn cancel_move(&self, handle: &str) -> Result<(), QueueError> {
        let request = self.client.cancel_message_move_task().task_handle(handle);
        request.send().await.map(drop).map_err(classify)
    }
}

fn status(status: Option<&str>, failure_reason: Option<String>) -> MoveTaskStatus {
    match status {
        Some("COMPLETED") => MoveTaskStatus::Completed,
        Some("CANCELLED") => MoveTaskStatus::Cancelled,
        Some("FAILED") => MoveTaskStatus::Failed {
            reason: failure_reason.unwrap_or_else(|| "no reason given".to_owned()),
        },
        _ => MoveTaskStatus::Running,
    }
}

fn count(count: Option<i64>) -> u64 {
    count
        .and_then(|count| u64::try_from(count).ok())
        .unwrap_or_default()
}
