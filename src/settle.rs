//! Which messages are held, what each still waits for, and what then becomes of it.
//!
//! A message is deleted only when every object that it announces is done. Pure: time is an
//! argument, and what is to be done with the queue is returned, not done.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::object::ObjectId;
use crate::queue::{Message, ReceiptHandle};

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its rows are in the tables, now or since before.
    Done,
    /// It could not be loaded now; its messages go back to the queue.
    Failed,
}

/// What is to be done with a message that waits for nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    Delete(ReceiptHandle),
    /// Back to the queue, to be seen again after `delay`.
    Release { handle: ReceiptHandle, delay: Duration },
}

/// How long messages are held, and when they come back.
#[derive(Clone, Copy, Debug)]
pub struct VisibilityPolicy {
    /// What each receive and each heartbeat asks for.
    pub timeout: Duration,
    pub retry_min: Duration,
    pub retry_max: Duration,
}

impl VisibilityPolicy {
    /// A heartbeat is due this long after the last: early enough for two to fail.
    pub fn heartbeat(&self) -> Duration {
        self.timeout / 3
    }

    /// Exponential in the number of receives, with jitter (`jitter` in 0..1) so that messages of
    /// one failed batch do not all come back at once.
    pub fn retry_delay(&self, receive_count: u32, jitter: f64) -> Duration {
        let doublings = receive_count.saturating_sub(1).min(20);
        let full = self.retry_min.saturating_mul(1 << doublings).min(self.retry_max);
        full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0).max(Duration::from_secs(1))
    }
}

/// SQS ends the visibility of a message 12 hours after its receive, whatever is asked for.
/// Messages are given back before that, while a change of visibility still works.
const HELD_AT_MOST: Duration = Duration::from_secs(11 * 3600 + 1800);

/// The messages that are held.
#[derive(Debug)]
pub struct Held {
    policy: VisibilityPolicy,
    messages: HashMap<String, HeldMessage>,
    /// Which messages (by id) wait for an object.
    waiting: BTreeMap<ObjectId, Vec<String>>,
}

#[derive(Debug)]
struct HeldMessage {
    handle: ReceiptHandle,
    receive_count: u32,
    received_at: Instant,
    visible_at: Instant,
    outstanding: usize,
    failed: bool,
}

impl Held {
    pub fn new(policy: VisibilityPolicy) -> Self {
        Self { policy, messages: HashMap::new(), waiting: BTreeMap::new() }
    }

    /// Holds a message until every one of `objects` (each named once) has met its fate; gives those
    /// that no other held message waits for already.
    ///
    /// A message that is held and comes again (its visibility ran out) is not held twice: the new
    /// receipt handle replaces the old one.
    pub fn hold(&mut self, message: &Message, objects: &[ObjectId], now: Instant) -> Vec<ObjectId> {
        let visible_at = now + self.policy.timeout;
        if let Some(held) = self.messages.get_mut(&message.id) {
            held.handle = message.handle.clone();
            held.receive_count = message.receive_count;
            held.received_at = now;
            held.visible_at = visible_at;
            return Vec::new();
        }
        self.messages.insert(
            message.id.clone(),
            HeldMessage {
                handle: message.handle.clone(),
                receive_count: message.receive_count,
                received_at: now,
                visible_at,
                outstanding: objects.len(),
                failed: false,
            },
        );
        let mut new = Vec::new();
        for object in objects {
            let waiters = self.waiting.entry(*object).or_default();
            if waiters.is_empty() {
                new.push(*object);
            }
            waiters.push(message.id.clone());
        }
        new
    }

    /// Notes the fate of an object; gives what is to be done with the messages that waited for
    /// nothing else.
    pub fn resolve(&mut self, object: ObjectId, fate: &Fate, jitter: f64) -> Vec<Settlement> {
        let mut settlements = Vec::new();
        for id in self.waiting.remove(&object).unwrap_or_default() {
            let Some(message) = self.messages.get_mut(&id) else { continue };
            message.outstanding -= 1;
            message.failed |= *fate == Fate::Failed;
            if message.outstanding > 0 {
                continue;
            }
            if let Some(message) = self.messages.remove(&id) {
                settlements.push(if message.failed {
                    let delay = self.policy.retry_delay(message.receive_count, jitter);
                    Settlement::Release { handle: message.handle, delay }
                } else {
                    Settlement::Delete(message.handle)
                });
            }
        }
        settlements
    }

    /// The messages whose visibility is to be extended now, to the policy's timeout. Those held
    /// for close to SQS's limit are let go instead: they come back by themselves.
    pub fn take_heartbeats(&mut self, now: Instant) -> Vec<ReceiptHandle> {
        let due = now + self.policy.timeout - self.policy.heartbeat();
        let mut handles = Vec::new();
        for message in self.messages.values_mut() {
            if message.visible_at <= due && now < message.received_at + HELD_AT_MOST {
                message.visible_at = now + self.policy.timeout;
                handles.push(message.handle.clone());
            }
        }
        handles
    }

    /// Everything that is still held goes back to the queue at once.
    pub fn release_all(&mut self) -> Vec<Settlement> {
        self.waiting.clear();
        self.messages
            .drain()
            .map(|(_, message)| Settlement::Release {
                handle: message.handle,
                delay: Duration::ZERO,
            })
            .collect()
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The age of the message that has been held longest.
    pub fn oldest(&self, now: Instant) -> Option<Duration> {
        self.messages.values().map(|message| now - message.received_at).max()
    }
}
