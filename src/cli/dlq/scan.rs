//! One pass through a dead-letter queue.
//!
//! Every message that is received is held until the pass ends, since it would be received again
//! otherwise.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::queue::sqs::SqsQueue;
use crate::queue::sqs::whole::WholeMessage;
use crate::queue::{MAX_BATCH, Queue, QueueError, ReceiptHandle, except_gone};

/// After a crash of ours, everything is visible again in this time.
pub(super) const VISIBILITY: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(1);
/// So many long polls without a message, and the queue is empty.
const EMPTY_POLLS: u32 = 2;

pub(super) struct DlqScan {
    queue: SqsQueue,
    source_arn: String,
    stop: CancellationToken,
    held: HashMap<String, Held>,
    /// Ids of messages that were handed out, or are none of this pass.
    seen: HashSet<String>,
    others: usize,
}

struct Held {
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

    /// Messages that were not met before; none when all were, or a stop is asked.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Vec<WholeMessage>>> {
        let mut empty = 0;
        while empty < EMPTY_POLLS && !self.stopped() {
            self.keep().await?;
            let until = Instant::now() + VISIBILITY;
            let received = self.queue.receive_whole(WAIT, VISIBILITY).await;
            let received = received.with_context(|| format!("{} fails", self.queue.url()))?;
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

    /// Messages that came from other queues than ours.
    pub(super) fn others(&self) -> usize {
        self.others
    }

    /// Waits, unless a stop is asked.
    pub(super) async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    /// A message of this id is never handed out: it was sent by us, and may come back.
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
            let failed = failed.with_context(|| format!("{} fails", self.queue.url()))?;
            if let Some((_, error)) = failed.first() {
                bail!("{} messages cannot be deleted: {error}", failed.len());
            }
        }
        Ok(())
    }

    /// True if it is to be handed out.
    fn hold(&mut self, whole: &WholeMessage, until: Instant) -> bool {
        let message = &whole.message;
        let handle = message.handle.clone();
        self.held.insert(message.id.clone(), Held { handle, until });
        let new = self.seen.insert(message.id.clone());
        let ours = whole
            .source
            .as_ref()
            .is_none_or(|it| *it == self.source_arn);
        self.others += usize::from(new && !ours);
        new && ours
    }

    /// Extends what would soon be visible to others.
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
        let kept = self.change_visibility(&due, VISIBILITY).await;
        kept.context("what was received cannot be held")
    }

    /// Makes visible what is held still.
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
