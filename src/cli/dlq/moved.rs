//! A redrive by SQS itself (`StartMessageMoveTask`).

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, bail};

use super::DlqSession;
use super::redrive::Report;
use crate::cli::note;
use crate::cli::output::progress;
use crate::cli::stop::stop_on_signals;
use crate::queue::QueueError;
use crate::queue::sqs::move_task::MoveTaskStatus;

const INTERVAL: Duration = Duration::from_secs(1);

/// A move of all messages by SQS.
pub(super) struct SqsMove<'a> {
    session: &'a DlqSession,
    handle: String,
    /// When the previous task was started.
    before: Option<i64>,
}

/// Starts a move. Returns `None`, and prints why, if SQS refuses it, or if it would also move
/// messages of other queues.
pub(super) async fn start(
    session: &DlqSession,
    max_rate: Option<NonZeroU32>,
) -> Option<SqsMove<'_>> {
    match session.dead.sources().await {
        Ok(sources) if sources.len() == 1 => {}
        Ok(_) => {
            note(
                "other queues use this dead-letter queue, and SQS would also move their messages; \
                 sending the messages of this queue one by one instead",
            );
            return None;
        }
        Err(error) => {
            note(&format!(
                "failed to list the queues that use this dead-letter queue; sending the messages \
                 one by one instead: {error}"
            ));
            return None;
        }
    }
    let started = async {
        let before = session.dead.latest_move(&session.dead_arn).await?;
        let handle = session.dead.start_move(&session.dead_arn, max_rate).await?;
        Ok::<_, QueueError>(SqsMove {
            session,
            handle,
            before: before.map(|task| task.started_timestamp),
        })
    };
    match started.await {
        Ok(moving) => Some(moving),
        Err(error) => {
            note(&format!(
                "SQS failed to start the move; sending the messages one by one instead: {error}"
            ));
            None
        }
    }
}

impl SqsMove<'_> {
    /// Waits until the task has ended. A signal to stop cancels it.
    pub(super) async fn follow(self, report: &mut Report) -> anyhow::Result<()> {
        let stop = stop_on_signals()?;
        let bar = progress(self.session.approximately);
        let mut cancelled = false;
        loop {
            tokio::select! {
                () = stop.cancelled(), if !cancelled => {
                    cancelled = true;
                    self.cancel().await;
                }
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let latest = self.session.dead.latest_move(&self.session.dead_arn).await;
            let latest = latest.context("failed to query the progress of the move by SQS")?;
            let Some(task) = latest.filter(|it| Some(it.started_timestamp) != self.before) else {
                continue;
            };
            report.sent = task.moved;
            bar.set_length(task.to_move);
            bar.set_position(task.moved);
            match task.status {
                MoveTaskStatus::Running => {}
                MoveTaskStatus::Completed => return Ok(()),
                MoveTaskStatus::Cancelled => {
                    report.stopped = true;
                    return Ok(());
                }
                MoveTaskStatus::Failed { reason } => {
                    bail!(
                        "SQS failed to move all messages: {reason}; select messages, such as with \
                         --since 14d, to have Sluice send them itself"
                    )
                }
            }
        }
    }

    /// Cancels the task. If it has ended already, the next query shows that.
    async fn cancel(&self) {
        if let Err(error) = self.session.dead.cancel_move(&self.handle).await {
            note(&format!(
                "warning: failed to cancel the move by SQS: {error}"
            ));
        }
    }
}
