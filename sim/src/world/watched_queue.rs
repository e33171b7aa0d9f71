//! The queue of a worker, which checks what the worker does with its messages.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice::queue::{
    FailedEntries, MAX_BATCH, Message, Queue, QueueAttributes, QueueError, ReceiptHandle,
};

use super::bounds::Bounds;
use super::objects::Objects;
use super::violations::Violations;
use crate::queue::SimQueue;
use crate::server::SimServer;

/// What a [`WatchedQueue`] compares with.
pub(super) struct Expectations {
    pub(super) objects: Arc<Objects>,
    pub(super) server: SimServer,
    pub(super) violations: Violations,
    pub(super) acknowledge_missing: bool,
    pub(super) visibility: Duration,
    pub(super) bounds: Arc<Bounds>,
    /// The largest number of messages in flight, unless the queue fails, so that deletions wait.
    pub(super) max_in_flight: Option<usize>,
}

/// Checks that a message is deleted only when its objects are done, and that no more messages are
/// in flight than the configuration allows. Whenever the worker sends a request, also checks the
/// bounds of its memory.
pub(super) struct WatchedQueue {
    queue: SimQueue,
    worker: Arc<str>,
    expectations: Expectations,
    in_flight: Mutex<InFlight>,
}

/// The messages that the worker has received, and has neither deleted nor returned.
#[derive(Debug, Default)]
struct InFlight {
    /// The body and the id of each message that is not deleted, by each of its handles: SQS can
    /// deliver a message that is in flight once more, and the worker may delete it by either handle.
    received: BTreeMap<String, (String, String)>,
    /// The last handle of each message, by its id.
    handles: BTreeMap<String, String>,
}

impl InFlight {
    fn receive(&mut self, message: &Message) {
        let handle = message.handle.0.clone();
        let received = (message.body.clone(), message.id.clone());
        self.received.insert(handle.clone(), received);
        self.handles.insert(message.id.clone(), handle);
    }

    /// Notes that a message is deleted, and returns its body, unless that was noted before.
    fn delete(&mut self, handle: &ReceiptHandle) -> Option<String> {
        self.put_back(handle);
        let (body, _) = self.received.remove(&handle.0)?;
        Some(body)
    }

    /// Notes that a message is returned, unless it has been delivered once more since. It can still
    /// be deleted: a heartbeat that the limit of total visibility shortens looks like a return.
    fn put_back(&mut self, handle: &ReceiptHandle) {
        if let Some((_, id)) = self.received.get(&handle.0)
            && self.handles.get(id) == Some(&handle.0)
        {
            self.handles.remove(id);
        }
    }
}

/// Returns how many messages a worker may have in flight. Receives that are under way come on top,
/// those that wait for the event loop, and the requests that settle messages.
pub(super) fn max_in_flight(max_held: usize, receivers: usize) -> usize {
    max_held + (2 * receivers + 1) * MAX_BATCH
}

impl WatchedQueue {
    pub(super) fn new(queue: SimQueue, worker: Arc<str>, expectations: Expectations) -> Self {
        Self {
            queue,
            worker,
            expectations,
            in_flight: Mutex::default(),
        }
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn on_received(&self, messages: &[Message]) {
        let mut in_flight = self.in_flight();
        for message in messages {
            in_flight.receive(message);
        }
        let count = in_flight.handles.len();
        if let Some(max) = self.expectations.max_in_flight
            && count > max
        {
            self.report(format_args!(
                "has {count} messages in flight, more than {max}"
            ));
        }
    }

    fn check_deletion(&self, handle: &ReceiptHandle) {
        // A request that is repeated was checked before.
        let Some(body) = self.in_flight().delete(handle) else {
            return;
        };
        let Expectations {
            objects,
            server,
            acknowledge_missing,
            ..
        } = &self.expectations;
        if let Some(why) = objects.must_not_be_deleted(&body, server, *acknowledge_missing) {
            self.report(format_args!("deletes a message although {why}"));
        }
    }

    fn report(&self, what: std::fmt::Arguments<'_>) {
        let violations = &self.expectations.violations;
        violations.report(format_args!("{} {what}", self.worker));
    }
}

impl Queue for WatchedQueue {
    async fn receive(
        &self,
        max: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        self.expectations.bounds.check();
        let received = self.queue.receive(max, wait, visibility).await?;
        self.on_received(&received);
        Ok(received)
    }

    async fn delete(&self, handles: &[ReceiptHandle]) -> Result<FailedEntries, QueueError> {
        self.expectations.bounds.check();
        for handle in handles {
            self.check_deletion(handle);
        }
        self.queue.delete(handles).await
    }

    async fn change_visibility(
        &self,
        entries: &[(ReceiptHandle, Duration)],
    ) -> Result<FailedEntries, QueueError> {
        self.expectations.bounds.check();
        for (handle, visibility) in entries {
            // Heartbeats request the whole visibility timeout.
            if *visibility != self.expectations.visibility {
                self.in_flight().put_back(handle);
            }
        }
        self.queue.change_visibility(entries).await
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        self.queue.attributes().await
    }
}
