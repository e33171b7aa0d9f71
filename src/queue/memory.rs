//! Implements [`Queue`] in memory, on Tokio's clock, for tests that pause time.
//!
//! It redelivers messages, counts receives and moves messages to its dead letters as SQS does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{
    FailedEntries, Message, Queue, QueueAttributes, QueueError, ReceiptHandle, RedrivePolicy,
};

#[derive(Clone, Debug)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max_receive_count: u32,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<Stored>,
    dead: Vec<String>,
    /// The number of deliveries so far, from which receipt handles are made.
    deliveries: u64,
    sent: u64,
    failing: Option<QueueError>,
}

#[derive(Debug)]
struct Stored {
    id: String,
    body: String,
    handle: Option<ReceiptHandle>,
    receive_count: u32,
    sent_at: Instant,
    visible_at: Instant,
}

impl MemoryQueue {
    /// Creates a queue, which moves a message to its dead letters instead of delivering it more
    /// than `max_receive_count` times.
    pub fn new(max_receive_count: u32) -> Self {
        let shared = Shared {
            max_receive_count,
            state: Mutex::default(),
            changed: Notify::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    pub fn send(&self, body: impl Into<String>) {
        let mut state = self.state();
        state.sent += 1;
        let message = Stored {
            id: format!("message-{}", state.sent),
            body: body.into(),
            handle: None,
            receive_count: 0,
            sent_at: Instant::now(),
            visible_at: Instant::now(),
        };
        state.messages.push_back(message);
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Makes every request fail with `error`, until this is called with `None`.
    pub fn fail_with(&self, error: Option<QueueError>) {
        self.state().failing = error;
    }

    /// Returns the bodies of the messages that were moved to the dead-letter queue.
    pub fn dead_letters(&self) -> Vec<String> {
        self.state().dead.clone()
    }

    /// Returns the receive counts of the messages that are not deleted.
    pub fn receive_counts(&self) -> Vec<u32> {
        self.state()
            .messages
            .iter()
            .map(|message| message.receive_count)
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is consistent between statements, so a panic elsewhere does not corrupt it.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn try_receive(&self, max: usize, visibility: Duration) -> Result<Vec<Message>, QueueError> {
        let now = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        if let Some(error) = &state.failing {
            return Err(error.clone());
        }
        let dead_letters = &mut state.dead;
        state.messages.retain(|message| {
            let dead =
                message.visible_at <= now && message.receive_count >= self.shared.max_receive_count;
            if dead {
                dead_letters.push(message.body.clone());
            }
            !dead
        });
        let visible = state
            .messages
            .iter_mut()
            .filter(|message| message.visible_at <= now);
        let mut received = Vec::new();
        for message in visible.take(max) {
            state.deliveries += 1;
            let handle = ReceiptHandle(format!("receipt-{}", state.deliveries));
            message.handle = Some(handle.clone());
            message.receive_count += 1;
            message.visible_at = now + visibility;
            received.push(Message {
                id: message.id.clone(),
                handle,
                body: message.body.clone(),
                receive_count: message.receive_count,
                age: now.duration_since(message.sent_at),
            });
        }
        Ok(received)
    }

    fn next_visible(&self) -> Option<Instant> {
        self.state()
            .messages
            .iter()
            .map(|message| message.visible_at)
            .min()
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
            let received = self.try_receive(max, visibility)?;
            if !received.is_empty() || Instant::now() >= give_up {
                return Ok(received);
            }
            let next = self
                .next_visible()
                .map_or(give_up, |visible| visible.min(give_up));
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    async fn delete(&self, handles: &[ReceiptHandle]) -> Result<FailedEntries, QueueError> {
        let mut state = self.state();
        if let Some(error) = &state.failing {
            return Err(error.clone());
        }
        state.messages.retain(|message| {
            !message
                .handle
                .as_ref()
                .is_some_and(|handle| handles.contains(handle))
        });
        Ok(Vec::new())
    }

    async fn change_visibility(
        &self,
        entries: &[(ReceiptHandle, Duration)],
    ) -> Result<FailedEntries, QueueError> {
        let now = Instant::now();
        let mut failed = Vec::new();
        {
            let mut state = self.state();
            if let Some(error) = &state.failing {
                return Err(error.clone());
            }
            for (index, (handle, timeout)) in entries.iter().enumerate() {
                let in_flight = state.messages.iter_mut().find(|message| {
                    message.handle.as_ref() == Some(handle) && message.visible_at > now
                });
                match in_flight {
                    Some(message) => message.visible_at = now + *timeout,
                    None => failed.push((index, QueueError::Gone("not in flight".to_owned()))),
                }
            }
        }
        self.shared.changed.notify_waiters();
        Ok(failed)
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        let now = Instant::now();
        let state = self.state();
        if let Some(error) = &state.failing {
            return Err(error.clone());
        }
        let visible = state
            .messages
            .iter()
            .filter(|m| m.visible_at <= now)
            .count();
        Ok(QueueAttributes {
            arn: "arn:aws:sqs:memory:000000000000:queue".to_owned(),
            visible: visible as u64,
            in_flight: (state.messages.len() - visible) as u64,
            retention: None,
            redrive_policy: Some(RedrivePolicy {
                dead_letter_target_arn: "arn:aws:sqs:memory:000000000000:dead-letters".to_owned(),
                max_receive_count: self.shared.max_receive_count,
            }),
        })
    }
}
