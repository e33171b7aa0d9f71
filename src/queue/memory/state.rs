//! The messages of a queue in memory, and what requests do to them. Time is an argument.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Manners;
use crate::queue::{FailedEntries, Message, QueueError, ReceiptHandle};

/// A duplicate is delivered within this time after the delivery that it repeats.
const DUPLICATE_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct State {
    pub(super) max_receive_count: u32,
    pub(super) messages: VecDeque<Stored>,
    pub(super) manners: Manners,
    pub(super) failing: Option<QueueError>,
    /// Whether a message of a group was ever sent.
    pub(super) has_groups: bool,
    /// Deleted messages that are delivered once more when they become visible.
    copies: Vec<Stored>,
    /// The number of deliveries so far, from which receipt handles are made.
    deliveries: u64,
    sent: u64,
}

#[derive(Debug)]
pub(super) struct Stored {
    id: String,
    pub(super) body: String,
    pub(super) group: Option<Arc<str>>,
    /// The receipt handle of the latest delivery.
    handle: Option<ReceiptHandle>,
    /// The receipt handles of earlier deliveries.
    outdated: Vec<ReceiptHandle>,
    pub(super) receive_count: u32,
    sent_at: Instant,
    received_at: Instant,
    visible_at: Instant,
    /// When the message is delivered once more although it is in flight.
    duplicate_at: Option<Instant>,
}

impl Stored {
    pub(super) fn is_visible(&self, now: Instant) -> bool {
        self.visible_at <= now
    }

    fn is_deliverable(&self, now: Instant) -> bool {
        self.is_visible(now) || self.duplicate_at.is_some_and(|at| at <= now)
    }

    /// Records a delivery.
    fn deliver(&mut self, now: Instant, handle: ReceiptHandle, visibility: Duration) -> Message {
        self.outdated.extend(self.handle.replace(handle.clone()));
        self.receive_count += 1;
        self.received_at = now;
        self.visible_at = now + visibility;
        self.duplicate_at = None;
        Message {
            id: self.id.clone(),
            handle,
            body: self.body.clone(),
            receive_count: self.receive_count,
            age: now.duration_since(self.sent_at),
        }
    }
}

impl State {
    pub(super) fn new(max_receive_count: u32) -> Self {
        Self {
            max_receive_count,
            messages: VecDeque::new(),
            manners: Manners::default(),
            failing: None,
            has_groups: false,
            copies: Vec::new(),
            deliveries: 0,
            sent: 0,
        }
    }

    pub(super) fn send(&mut self, now: Instant, body: String, group: Option<Arc<str>>) {
        self.sent += 1;
        self.has_groups |= group.is_some();
        self.messages.push_back(Stored {
            id: format!("message-{}", self.sent),
            body,
            group,
            handle: None,
            outdated: Vec::new(),
            receive_count: 0,
            sent_at: now,
            received_at: now,
            visible_at: now,
            duplicate_at: None,
        });
    }

    /// Adds dead letters of another queue.
    pub(super) fn accept(&mut self, messages: Vec<Stored>) {
        self.has_groups |= messages.iter().any(|message| message.group.is_some());
        self.messages.extend(messages);
    }

    /// Removes and returns the messages that were received as often as allowed, and are visible
    /// again. They keep their ids, ages and receive counts.
    pub(super) fn take_exhausted(&mut self, now: Instant) -> Vec<Stored> {
        let max = self.max_receive_count;
        self.take(|message| message.is_visible(now) && message.receive_count >= max)
    }

    /// Removes and returns the messages that are not in flight.
    pub(super) fn take_visible(&mut self, now: Instant) -> Vec<Stored> {
        self.take(|message| message.is_visible(now))
    }

    fn take(&mut self, is_taken: impl Fn(&Stored) -> bool) -> Vec<Stored> {
        // Nearly always there is nothing to take.
        if !self.messages.iter().any(&is_taken) {
            return Vec::new();
        }
        let (mut taken, kept): (Vec<_>, Vec<_>) = self.messages.drain(..).partition(is_taken);
        self.messages = kept.into();
        for message in &mut taken {
            message.handle = None;
            message.outdated.clear();
            message.duplicate_at = None;
        }
        taken
    }

    pub(super) fn receive(
        &mut self,
        now: Instant,
        max: usize,
        visibility: Duration,
    ) -> Vec<Message> {
        let restored = self.copies.extract_if(.., |copy| copy.is_visible(now));
        self.messages.extend(restored);
        let busy = self.groups_in_flight(now);
        let is_held_back = |message: &Stored| {
            let group = message.group.as_ref();
            group.is_some_and(|group| busy.contains(group))
        };
        let deliverable = self
            .messages
            .iter_mut()
            .filter(|message| message.is_deliverable(now) && !is_held_back(message));
        let mut received = Vec::new();
        for message in deliverable.take(max) {
            self.deliveries += 1;
            let handle = ReceiptHandle(format!("receipt-{}", self.deliveries));
            received.push(message.deliver(now, handle, visibility));
            let may_repeat =
                message.group.is_none() && message.receive_count < self.max_receive_count;
            if may_repeat && self.manners.happens(self.manners.duplicates) {
                let after = DUPLICATE_WITHIN.mul_f64(self.manners.env.fraction());
                message.duplicate_at = Some(now + after);
            }
        }
        received
    }

    /// Returns the groups with a message in flight. A receive does not add to them: it may return
    /// several messages of a group.
    fn groups_in_flight(&self, now: Instant) -> BTreeSet<Arc<str>> {
        if !self.has_groups {
            return BTreeSet::new();
        }
        let in_flight = self.messages.iter().filter(|it| !it.is_visible(now));
        in_flight.filter_map(|it| it.group.clone()).collect()
    }

    /// Returns when the next message can be received or moved to the dead-letter queue, if no
    /// request comes before.
    pub(super) fn next_visible(&self, now: Instant) -> Option<Instant> {
        let stored = self.messages.iter().chain(&self.copies);
        let times = stored.flat_map(|it| [Some(it.visible_at), it.duplicate_at]);
        times.flatten().filter(|at| *at > now).min()
    }

    pub(super) fn delete(&mut self, handles: &[ReceiptHandle]) -> FailedEntries {
        let mut failed = Vec::new();
        for (index, handle) in handles.iter().enumerate() {
            if self.manners.happens(self.manners.failed_entries) {
                failed.push((index, internal_error()));
            } else if let Some(position) = self.position(handle)
                && !self.manners.happens(self.manners.lost_deletes)
            {
                self.remove(position);
            }
        }
        failed
    }

    /// Deletes a message. If a duplicate of it is due, it is only set apart until then.
    fn remove(&mut self, position: usize) {
        if let Some(mut message) = self.messages.remove(position)
            && let Some(at) = message.duplicate_at.take()
        {
            message.visible_at = at;
            self.copies.push(message);
        }
    }

    /// Returns the position of the message that a request with this handle affects.
    fn position(&self, handle: &ReceiptHandle) -> Option<usize> {
        let is_current = |message: &Stored| message.handle.as_ref() == Some(handle);
        let current = self.messages.iter().position(is_current);
        current.or_else(|| {
            let is_outdated = |message: &Stored| message.outdated.contains(handle);
            let position = self.messages.iter().position(is_outdated)?;
            let takes_effect = self.manners.happens(self.manners.outdated_handles);
            takes_effect.then_some(position)
        })
    }

    pub(super) fn change_visibility(
        &mut self,
        now: Instant,
        entries: &[(ReceiptHandle, Duration)],
    ) -> FailedEntries {
        let mut failed = Vec::new();
        for (index, (handle, timeout)) in entries.iter().enumerate() {
            if let Err(error) = self.change_one(now, handle, *timeout) {
                failed.push((index, error));
            }
        }
        failed
    }

    fn change_one(
        &mut self,
        now: Instant,
        handle: &ReceiptHandle,
        timeout: Duration,
    ) -> Result<(), QueueError> {
        if self.manners.happens(self.manners.failed_entries) {
            return Err(internal_error());
        }
        let limit = self.manners.visibility_limit;
        let message = self
            .position(handle)
            .and_then(|position| self.messages.get_mut(position))
            .filter(|message| !message.is_visible(now))
            .ok_or_else(|| QueueError::Gone("not in flight".to_owned()))?;
        if let Some(limit) = limit
            && now + timeout > message.received_at + limit
        {
            return Err(QueueError::Transient(format!(
                "InvalidParameterValue: Total VisibilityTimeout for the message is beyond the \
                 limit [{} seconds]",
                limit.as_secs()
            )));
        }
        message.visible_at = now + timeout;
        Ok(())
    }
}

/// The error of an entry for which SQS itself is at fault.
fn internal_error() -> QueueError {
    QueueError::Transient("InternalError: the entry was not processed".to_owned())
}
