//! Implements [`Queue`] in memory, on Tokio's clock, for tests that pause time.
//!
//! It redelivers messages, counts receives, keeps the messages of a group in order and moves
//! messages to its dead-letter queue as SQS does. [`Manners`] switch on what SQS does rarely.

mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::state::State;
use super::{
    FailedEntries, Message, Queue, QueueAttributes, QueueError, ReceiptHandle, RedrivePolicy,
};
use crate::Env;

/// What SQS may do, but rarely does. By default, none of it happens.
///
/// A rate is a number of cases in 1,000.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Decides in which cases something happens.
    pub env: Env,
    /// The rate of deliveries after which the message is delivered once more within a minute, even
    /// if it is in flight or deleted. A deleted message that is delivered again is back in the
    /// queue. Messages of a group, and those that were received as often as allowed, are exempt.
    pub duplicates: u32,
    /// The rate of deletions that are reported as successful and have no effect.
    pub lost_deletes: u32,
    /// The rate of entries that fail while others of the same request succeed.
    pub failed_entries: u32,
    /// The rate of entries with the receipt handle of an earlier delivery that take effect. If such
    /// an entry has no effect, a deletion is reported as successful, and a change of visibility
    /// fails.
    pub outdated_handles: u32,
    /// How long a message can be hidden after it was received at most, which in SQS is
    /// [`VISIBILITY_LIMIT`](super::VISIBILITY_LIMIT). A change that would hide it for longer fails.
    pub visibility_limit: Option<Duration>,
}

impl Manners {
    fn happens(&self, rate: u32) -> bool {
        rate > 0 && self.env.fraction() * 1000.0 < f64::from(rate)
    }
}

#[derive(Clone, Debug)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// `None` for a dead-letter queue.
    dead_letters: Option<MemoryQueue>,
    state: Mutex<State>,
    changed: Notify,
}

impl MemoryQueue {
    /// Creates a queue, which moves a message to its dead-letter queue instead of delivering it
    /// more than `max_receive_count` times.
    pub fn new(max_receive_count: u32) -> Self {
        let dead_letters = Self::with(u32::MAX, None);
        Self::with(max_receive_count, Some(dead_letters))
    }

    fn with(max_receive_count: u32, dead_letters: Option<Self>) -> Self {
        Self {
            shared: Arc::new(Shared {
                dead_letters,
                state: Mutex::new(State::new(max_receive_count)),
                changed: Notify::new(),
            }),
        }
    }

    /// Replaces the manners. The duplicates of earlier deliveries are still delivered.
    pub fn set_manners(&self, manners: Manners) {
        self.state().manners = manners;
    }

    pub fn send(&self, body: impl Into<String>) {
        self.state().send(Instant::now(), body.into(), None);
        self.shared.changed.notify_waiters();
    }

    /// Sends a message as to a FIFO queue: it is not delivered while an earlier message of its group
    /// is in flight, except in the same receive.
    pub fn send_to_group(&self, group: &str, body: impl Into<String>) {
        let group = Some(Arc::from(group));
        self.state().send(Instant::now(), body.into(), group);
        self.shared.changed.notify_waiters();
    }

    /// Makes every request fail with `error`, until this is called with `None`.
    pub fn fail_with(&self, error: Option<QueueError>) {
        self.state().failing = error;
    }

    /// Returns the dead-letter queue. It is a queue as any other, but has none itself.
    pub fn dead_letter_queue(&self) -> Option<&Self> {
        self.shared.dead_letters.as_ref()
    }

    /// Returns the bodies of the messages in the dead-letter queue.
    pub fn dead_letters(&self) -> Vec<String> {
        self.dead_letter_queue().map_or_else(Vec::new, Self::bodies)
    }

    /// Moves all visible dead letters back to this queue, as a move task of SQS does: each becomes a
    /// new message. Returns their number.
    pub fn redrive(&self) -> usize {
        let now = Instant::now();
        let Some(dead_letters) = self.dead_letter_queue() else {
            return 0;
        };
        let moved = dead_letters.state().take_visible(now);
        let count = moved.len();
        {
            let mut state = self.state();
            for message in moved {
                state.send(now, message.body, message.group);
            }
        }
        self.shared.changed.notify_waiters();
        count
    }

    /// Returns the bodies of the messages that are not deleted.
    pub fn bodies(&self) -> Vec<String> {
        let state = self.state();
        let bodies = state.messages.iter().map(|message| message.body.clone());
        bodies.collect()
    }

    /// Returns the receive counts of the messages that are not deleted.
    pub fn receive_counts(&self) -> Vec<u32> {
        let state = self.state();
        let counts = state.messages.iter().map(|message| message.receive_count);
        counts.collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is consistent between statements, so a panic elsewhere does not corrupt it.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state, unless requests fail.
    fn answering(&self) -> Result<MutexGuard<'_, State>, QueueError> {
        let state = self.state();
        if let Some(error) = &state.failing {
            return Err(error.clone());
        }
        Ok(state)
    }

    /// Returns the messages that can be received now or, if there are none, when there may be some.
    fn try_receive(
        &self,
        max: usize,
        visibility: Duration,
    ) -> Result<(Vec<Message>, Option<Instant>), QueueError> {
        let now = Instant::now();
        let (dead, received, next) = {
            let mut state = self.answering()?;
            let dead = state.take_exhausted(now);
            let received = state.receive(now, max, visibility);
            let is_waiting = received.is_empty();
            let next = is_waiting.then(|| state.next_visible(now)).flatten();
            (dead, received, next)
        };
        if let Some(dead_letters) = self.dead_letter_queue()
            && !dead.is_empty()
        {
            dead_letters.state().accept(dead);
            dead_letters.shared.changed.notify_waiters();
        }
        Ok((received, next))
    }
}

impl Queue for MemoryQueue {
    async fn receive(
        &self,
        max: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let give_up = Instant::now() + wait;
        loop {
            let changed = self.shared.changed.notified();
            let (received, next) = self.try_receive(max, visibility)?;
            if !received.is_empty() || Instant::now() >= give_up {
                return Ok(received);
            }
            let next = next.map_or(give_up, |visible| visible.min(give_up));
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    async fn delete(&self, handles: &[ReceiptHandle]) -> Result<FailedEntries, QueueError> {
        let (failed, has_groups) = {
            let mut state = self.answering()?;
            (state.delete(handles), state.has_groups)
        };
        // The next message of a group can be received now.
        if has_groups {
            self.shared.changed.notify_waiters();
        }
        Ok(failed)
    }

    async fn change_visibility(
        &self,
        entries: &[(ReceiptHandle, Duration)],
    ) -> Result<FailedEntries, QueueError> {
        let failed = self.answering()?.change_visibility(Instant::now(), entries);
        self.shared.changed.notify_waiters();
        Ok(failed)
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        let now = Instant::now();
        let state = self.answering()?;
        let visible = state
            .messages
            .iter()
            .filter(|message| message.is_visible(now))
            .count();
        let redrive_policy = self.dead_letter_queue().map(|_| RedrivePolicy {
            dead_letter_target_arn: "arn:aws:sqs:memory:000000000000:dead-letters".to_owned(),
            max_receive_count: state.max_receive_count,
        });
        Ok(QueueAttributes {
            arn: "arn:aws:sqs:memory:000000000000:queue".to_owned(),
            visible: visible as u64,
            in_flight: (state.messages.len() - visible) as u64,
            retention: None,
            redrive_policy,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::queue::VISIBILITY_LIMIT;

    const LONG: Duration = Duration::from_secs(300);
    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);
    const ALWAYS: u32 = 1000;

    /// Creates a queue with one message.
    fn queue_with(manners: Manners) -> MemoryQueue {
        let queue = MemoryQueue::new(3);
        queue.set_manners(manners);
        queue.send("m");
        queue
    }

    fn manners() -> Manners {
        Manners {
            env: Env::seeded(7, SystemTime::UNIX_EPOCH),
            ..Manners::default()
        }
    }

    async fn receive_one(queue: &MemoryQueue, wait: Duration, visibility: Duration) -> Message {
        let mut received = queue.receive(10, wait, visibility).await.unwrap();
        assert_eq!(received.len(), 1, "{received:?}");
        received.remove(0)
    }

    async fn assert_nothing_received(queue: &MemoryQueue, wait: Duration) {
        assert_eq!(queue.receive(10, wait, LONG).await, Ok(vec![]));
    }

    async fn delete(queue: &MemoryQueue, message: &Message) {
        let handles = std::slice::from_ref(&message.handle);
        assert_eq!(queue.delete(handles).await, Ok(vec![]));
    }

    async fn change(queue: &MemoryQueue, message: &Message, timeout: Duration) -> FailedEntries {
        let entries = [(message.handle.clone(), timeout)];
        queue.change_visibility(&entries).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_message_can_be_delivered_once_more() {
        let queue = queue_with(Manners {
            duplicates: ALWAYS,
            ..manners()
        });
        let first = receive_one(&queue, SECOND, LONG).await;
        queue.set_manners(Manners::default());
        delete(&queue, &first).await;
        assert_eq!(queue.receive_counts(), Vec::<u32>::new());
        let second = receive_one(&queue, 60 * SECOND, SECOND).await;
        assert_eq!((&second.id, second.receive_count), (&first.id, 2));
        // It is back in the queue until it is deleted again.
        let third = receive_one(&queue, 2 * SECOND, LONG).await;
        assert_eq!(third.receive_count, 3);
        delete(&queue, &third).await;
        assert_nothing_received(&queue, HOUR).await;
        assert_eq!(queue.dead_letters(), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_in_flight_can_be_delivered_once_more() {
        let queue = queue_with(Manners {
            duplicates: ALWAYS,
            ..manners()
        });
        let first = receive_one(&queue, SECOND, LONG).await;
        queue.set_manners(Manners::default());
        let second = receive_one(&queue, 60 * SECOND, LONG).await;
        assert_eq!((&second.id, second.receive_count), (&first.id, 2));
        // The first handle is out of date now.
        delete(&queue, &first).await;
        let failed = change(&queue, &first, SECOND).await;
        assert!(
            matches!(failed[..], [(0, QueueError::Gone(_))]),
            "{failed:?}"
        );
        assert_eq!(queue.receive_counts(), [2]);
        delete(&queue, &second).await;
        assert_nothing_received(&queue, HOUR).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_duplicate_never_exceeds_the_receive_count() {
        let queue = queue_with(Manners {
            duplicates: ALWAYS,
            ..manners()
        });
        for count in 1..=3 {
            let message = receive_one(&queue, HOUR, LONG).await;
            assert_eq!(message.receive_count, count);
            delete(&queue, &message).await;
        }
        assert_nothing_received(&queue, HOUR).await;
        assert_eq!(queue.dead_letters(), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_deletion_is_reported_as_successful() {
        let queue = queue_with(Manners {
            lost_deletes: ALWAYS,
            ..manners()
        });
        let first = receive_one(&queue, SECOND, SECOND).await;
        delete(&queue, &first).await;
        assert_eq!(receive_one(&queue, 2 * SECOND, LONG).await.receive_count, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn some_entries_of_a_request_fail_and_the_others_take_effect() {
        let queue = queue_with(Manners {
            failed_entries: 500,
            ..manners()
        });
        for _ in 1..10 {
            queue.send("m");
        }
        let received = queue.receive(10, SECOND, LONG).await.unwrap();
        let handles: Vec<_> = received.iter().map(|it| it.handle.clone()).collect();
        let entries: Vec<_> = handles.iter().map(|it| (it.clone(), SECOND)).collect();
        let unchanged = queue.change_visibility(&entries).await.unwrap();
        assert!((1..10).contains(&unchanged.len()), "{unchanged:?}");
        tokio::time::sleep(2 * SECOND).await;
        let attributes = queue.attributes().await.unwrap();
        assert_eq!(attributes.in_flight, unchanged.len() as u64);

        let left = queue.delete(&handles).await.unwrap();
        assert!((1..10).contains(&left.len()), "{left:?}");
        assert_eq!(queue.receive_counts().len(), left.len());
        let is_transient =
            |(_, error): &(usize, QueueError)| matches!(error, QueueError::Transient(_));
        assert!(left.iter().all(is_transient), "{left:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_handle_that_is_out_of_date_can_take_effect() {
        let queue = queue_with(Manners {
            outdated_handles: ALWAYS,
            ..manners()
        });
        let first = receive_one(&queue, SECOND, SECOND).await;
        let second = receive_one(&queue, 2 * SECOND, LONG).await;
        assert_eq!(change(&queue, &first, SECOND).await, vec![]);
        let third = receive_one(&queue, 2 * SECOND, LONG).await;
        assert_eq!(third.receive_count, 3);
        delete(&queue, &second).await;
        assert_eq!(queue.receive_counts(), Vec::<u32>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_hidden_for_at_most_twelve_hours() {
        let queue = queue_with(Manners {
            visibility_limit: Some(VISIBILITY_LIMIT),
            ..manners()
        });
        let message = receive_one(&queue, SECOND, 7 * HOUR).await;
        tokio::time::sleep(6 * HOUR).await;
        let failed = change(&queue, &message, 7 * HOUR).await;
        assert!(
            matches!(failed[..], [(0, QueueError::Transient(_))]),
            "{failed:?}"
        );
        assert_eq!(change(&queue, &message, 6 * HOUR - SECOND).await, vec![]);
        assert_nothing_received(&queue, 6 * HOUR - 2 * SECOND).await;
        // The limit begins again with each receive.
        let message = receive_one(&queue, 2 * SECOND, HOUR).await;
        assert_eq!(change(&queue, &message, 12 * HOUR).await, vec![]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_redrive_makes_new_messages_of_dead_letters() {
        let queue = queue_with(Manners::default());
        let mut id = String::new();
        for _ in 0..3 {
            id = receive_one(&queue, 2 * SECOND, SECOND).await.id;
        }
        assert_nothing_received(&queue, 2 * SECOND).await;
        assert_eq!(queue.dead_letters(), ["m"]);
        assert_eq!(queue.redrive(), 1);
        assert_eq!(queue.dead_letters(), Vec::<String>::new());
        let again = receive_one(&queue, SECOND, LONG).await;
        assert_eq!((again.body.as_str(), again.receive_count), ("m", 1));
        assert_ne!(again.id, id);
    }
}
