//! A redrive that SQS does itself.

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

pub(super) struct RejectReplay<'a> {
    session: &'a DlqSession,
    handle: String,
    /// When the task before this one was started.
    before: Option<i64>,
}

/// None where SQS does not do it, or would move the messages of other queues, too; that is said.
pub(super) async fn start(
    session: &DlqSession,
    max_rate: Option<NonZeroU32>,
) -> Option<RejectReplay<'_>> {
    match session.dead.sources().await {
        Ok(sources) if sources.len() == 1 => {}
        Ok(_) => {
            note(
                "other queues use this dead-letter queue, and SQS would move their messages, too: \
                 each message of this queue is sent",
            );
            return None;
        }
        Err(error) => {
            note(&format!(
                "failed to list the queues that use this dead-letter queue, so each message is sent: \
                 {error}"
            ));
            return None;
        }
    }
    let started = async {
        let before = session.dead.latest_move(&session.dead_arn).await?;
        let handle = session.dead.start_move(&session.dead_arn, max_rate).await?;
        Ok::<_, QueueError>(RejectReplay {
            session,
            handle,
            before: before.map(|task| task.started_timestamp),
        })
    };
    match started.await {
        Ok(moving) => Some(moving),
        Err(error) => {
            note(&format!(
                "SQS does not move them itself, so each is sent: {error}"
            ));
            None
        }
    }
}

impl RejectReplay<'_> {
    /// Until it has ended. Told to stop, it cancels the task.
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
            let latest = latest.context("SQS moves the messages, but does not tell how far")?;
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
                        "SQS could not move all messages: {reason}. Where a choice is made, such \
                         as --since 14d, Sluice sends each itself"
                    )
                }
            }
        }
    }

    /// It may have ended meanwhile: what SQS says of it next tells.
    async fn cancel(&self) {
        if let Err(error) = self.session.dead.cancel_move(&self.handle).await {
            note(&format!("warning: SQS does not stop moving: {error}"));
        }
    }
}
