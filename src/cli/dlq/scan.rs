//! One pass through a dead-letter queue.
//!
//! Every received message is kept in flight until the pass ends; otherwise it would be received
//! again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::queue::sqs::SqsQueue;
use crate::queue::sqs::whole::WholeMessage;
use crate::queue::{MAX_BATCH, Queue, QueueError, ReceiptHandle, except_gone};

/// The visibility timeout: after a crash, all messages are visible again within this time.
pub(super) const VISIBILITY: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(1);
/// After this many long polls in a row without a message, the queue is empty.
const EMPTY_POLLS: u32 = 2;

pub(super) struct DlqScan {
    queue: SqsQueue,
    source_arn: String,
    stop: CancellationToken,
    held: HashMap<String, InFlight>,
    /// Ids of messages that were handed out, or do not belong to this pass.
    seen: HashSet<String>,
    others: usize,
}

struct InFlight {
    handle: ReceiptHandle,
    until: Instant,
}

impl DlqScan {
    pub(super) fn new(queue: SqsQueue, source_arn: String, stop: CancellationToken) -> Self {
        Self {
            queue,
            source_arn,
            stop,
            held: HashMap::new(),
            seen: HashSet::new(),
            others: 0,
        }
    }

    /// Returns messages that were not returned before; `None` at the end, or after a signal to
    /// stop.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Vec<WholeMessage>>> {
        let mut empty = 0;
        while empty < EMPTY_POLLS && !self.stopped() {
            self.keep().await?;
            let until = Instant::now() + VISIBILITY;
            let received = self.queue.receive_whole(WAIT, VISIBILITY).await;
            let received =
                received.with_context(|| format!("failed to receive from {}", self.queue.url()))?;
            if received.is_empty() {
                empty += 1;
                continue;
            }
            let new: Vec<_> = received
                .into_iter()
                .filter(|message| self.hold(message, until))
                .collect();
            if !new.is_empty() {
                return Ok(Some(new));
            }
        }
        Ok(None)
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns the number of messages that came from other queues.
    pub(super) fn others(&self) -> usize {
        self.others
    }

    /// Waits for `pause`, or until a signal to stop.
    pub(super) async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    /// Excludes the message with this id: Sluice has sent it itself, and it may come back.
    pub(super) fn ignore(&mut self, id: String) {
        self.seen.insert(id);
    }

    /// Deletes messages that were handed out.
    pub(super) async fn delete(
        &mut self,
        ids: impl IntoIterator<Item = &str>,
    ) -> anyhow::Result<()> {
        let held = ids.into_iter().filter_map(|id| self.held.remove(id));
        let handles: Vec<_> = held.map(|held| held.handle).collect();
        for handles in handles.chunks(MAX_BATCH) {
            let failed = self.queue.delete(handles).await;
            let failed =
                failed.with_context(|| format!("failed to delete from {}", self.queue.url()))?;
            if let Some((_, error)) = failed.first() {
                bail!("failed to delete {} messages: {error}", failed.len());
            }
        }
        Ok(())
    }

    /// Tracks a message in flight, and returns whether to hand it out.
    fn hold(&mut self, whole: &WholeMessage, until: Instant) -> bool {
        let message = &whole.message;
        let handle = message.handle.clone();
        self.held
            .insert(message.id.clone(), InFlight { handle, until });
        let new = self.seen.insert(message.id.clone());
        let ours = whole
            .source
            .as_ref()
            .is_none_or(|it| *it == self.source_arn);
        self.others += usize::from(new && !ours);
        new && ours
    }

    /// Extends the visibility timeout of messages that would soon be visible to others.
    async fn keep(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let due: Vec<_> = self
            .held
            .values_mut()
            .filter(|held| held.until < now + VISIBILITY * 2 / 3)
            .map(|held| {
                held.until = now + VISIBILITY;
                held.handle.clone()
            })
            .collect();
        let extended = self.change_visibility(&due, VISIBILITY).await;
        extended.context("failed to extend the visibility timeout of the received messages")
    }

    /// Returns all messages in flight to the queue, visible at once.
    pub(super) async fn return_all(&self) -> Result<(), QueueError> {
        let handles: Vec<_> = self.held.values().map(|held| held.handle.clone()).collect();
        self.change_visibility(&handles, Duration::ZERO).await
    }

    async fn change_visibility(
        &self,
        handles: &[ReceiptHandle],
        visibility: Duration,
    ) -> Result<(), QueueError> {
        for handles in handles.chunks(MAX_BATCH) {
            let entries: Vec<_> = handles.iter().map(|it| (it.clone(), visibility)).collect();
            let failed = except_gone(self.queue.change_visibility(&entries).await?);
            if let Some((_, error)) = failed.into_iter().next() {
                return Err(error);
            }
        }
        Ok(())
    }
}
