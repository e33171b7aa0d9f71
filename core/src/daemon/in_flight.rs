//! Which messages are held, what each still waits for, and what then becomes of it. (How they stay
//! hidden meanwhile is [`crate::daemon::heartbeats`].)
//!
//! A message is deleted only when every object that it announces is done. Pure: time is an
//! argument, and what is to be done with the queue is returned, not done.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::object::ObjectId;
use crate::queue::{Message, ReceiptHandle};

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disposition {
    /// Its rows are in the tables, now or since before.
    Done,
    /// It could not be loaded now; its messages go back to the queue, the later the more often
    /// they were received.
    Failed,
    /// It was not tried to the end; its messages go back to the queue at once.
    Returned,
}

/// What is to be done with a message that waits for nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    Delete(ReceiptHandle),
    /// Back to the queue, to be seen again after `delay`.
    Return {
        handle: ReceiptHandle,
        delay: Duration,
    },
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
        let backoff = Backoff {
            min: self.retry_min,
            max: self.retry_max,
        };
        let pause = backoff.pause(receive_count, jitter);
        pause.max(Duration::from_secs(1))
    }
}

/// The messages that are held.
#[derive(Debug)]
pub struct InFlightMessages {
    policy: VisibilityPolicy,
    messages: HashMap<String, InFlightMessage>,
    /// Which messages (by id) wait for an object.
    waiting: BTreeMap<ObjectId, Vec<String>>,
}

#[derive(Debug)]
struct InFlightMessage {
    handle: ReceiptHandle,
    receive_count: u32,
    received_at: Instant,
    outstanding: usize,
    /// The worst fate of its objects so far.
    worst: Disposition,
}

impl InFlightMessages {
    pub fn new(policy: VisibilityPolicy) -> Self {
        Self {
            policy,
            messages: HashMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Holds a message until every one of `objects` (each named once) has met its fate; gives those
    /// that no other held message waits for already.
    ///
    /// A message that is held and comes again (its visibility ran out) is not held twice: the new
    /// receipt handle replaces the old one.
    pub fn track(
        &mut self,
        message: &Message,
        objects: &[ObjectId],
        now: Instant,
    ) -> Vec<ObjectId> {
        if let Some(held) = self.messages.get_mut(&message.id) {
            held.handle = message.handle.clone();
            held.receive_count = message.receive_count;
            held.received_at = now;
            return Vec::new();
        }
        self.messages.insert(
            message.id.clone(),
            InFlightMessage {
                handle: message.handle.clone(),
                receive_count: message.receive_count,
                received_at: now,
                outstanding: objects.len(),
                worst: Disposition::Done,
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
    pub fn resolve(
        &mut self,
        object: ObjectId,
        disposition: Disposition,
        jitter: f64,
    ) -> Vec<Settlement> {
        let mut settlements = Vec::new();
        for id in self.waiting.remove(&object).unwrap_or_default() {
            let Some(message) = self.messages.get_mut(&id) else {
                continue;
            };
            message.outstanding -= 1;
            message.worst = message.worst.max(disposition);
            if message.outstanding > 0 {
                continue;
            }
            if let Some(InFlightMessage {
                handle,
                receive_count,
                worst,
                ..
            }) = self.messages.remove(&id)
            {
                settlements.push(match worst {
                    Disposition::Done => Settlement::Delete(handle),
                    Disposition::Failed => {
                        let delay = self.policy.retry_delay(receive_count, jitter);
                        Settlement::Return { handle, delay }
                    }
                    Disposition::Returned => Settlement::Return {
                        handle,
                        delay: Duration::ZERO,
                    },
                });
            }
        }
        settlements
    }

    /// Returns the receipt handle under which a message is held.
    pub fn handle(&self, message_id: &str) -> Option<&ReceiptHandle> {
        self.messages.get(message_id).map(|held| &held.handle)
    }

    /// The objects that messages wait for.
    pub fn outstanding(&self) -> Vec<ObjectId> {
        self.waiting.keys().copied().collect()
    }

    /// The ids of the messages that wait for one of these objects, once each.
    pub fn waiting_for(&self, objects: impl IntoIterator<Item = ObjectId>) -> Vec<String> {
        let waiting = objects.into_iter().filter_map(|it| self.waiting.get(&it));
        let ids: BTreeSet<&String> = waiting.flatten().collect();
        ids.into_iter().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The age of the message that has been held longest.
    pub fn oldest(&self, now: Instant) -> Option<Duration> {
        self.messages
            .values()
            .map(|message| now - message.received_at)
            .max()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const POLICY: VisibilityPolicy = VisibilityPolicy {
        timeout: Duration::from_secs(120),
        retry_min: Duration::from_secs(10),
        retry_max: Duration::from_secs(900),
    };

    fn object(number: u8) -> ObjectId {
        ObjectId(Uuid::from_u128(number.into()))
    }

    fn message(id: u8, delivery: u8) -> Message {
        Message {
            id: format!("m{id}"),
            handle: ReceiptHandle(format!("h{id}.{delivery}")),
            body: String::new(),
            receive_count: delivery.into(),
            age: Duration::ZERO,
        }
    }

    fn deleted(settlements: &[Settlement]) -> Vec<&str> {
        let deleted = settlements
            .iter()
            .filter_map(|settlement| match settlement {
                Settlement::Delete(handle) => Some(handle.0.as_str()),
                Settlement::Return { .. } => None,
            });
        deleted.collect()
    }

    #[test]
    fn a_message_waits_for_every_record() {
        let mut held = InFlightMessages::new(POLICY);
        let now = Instant::now();
        assert_eq!(
            held.track(&message(1, 1), &[object(1), object(2)], now)
                .len(),
            2
        );
        assert_eq!(held.resolve(object(1), Disposition::Done, 0.0), []);
        assert_eq!(
            deleted(&held.resolve(object(2), Disposition::Done, 0.0)),
            ["h1.1"]
        );
        assert!(held.is_empty());

        held.track(&message(2, 3), &[object(1), object(2)], now);
        held.resolve(object(1), Disposition::Failed, 1.0);
        let handle = ReceiptHandle("h2.3".into());
        // The third receive: 10 s, 20 s, 40 s.
        let delay = Duration::from_secs(40);
        let settled = held.resolve(object(2), Disposition::Done, 1.0);
        assert_eq!(settled, [Settlement::Return { handle, delay }]);
    }

    #[test]
    fn messages_that_announce_one_object_share_its_fate() {
        let mut held = InFlightMessages::new(POLICY);
        let now = Instant::now();
        assert_eq!(held.track(&message(1, 1), &[object(1)], now), [object(1)]);
        assert_eq!(held.track(&message(2, 1), &[object(1)], now), []);
        assert_eq!(
            deleted(&held.resolve(object(1), Disposition::Done, 0.0)),
            ["h1.1", "h2.1"]
        );
    }

    #[test]
    fn a_redelivered_message_is_held_once_under_its_new_handle() {
        let mut held = InFlightMessages::new(POLICY);
        let now = Instant::now();
        held.track(&message(1, 1), &[object(1)], now);
        assert_eq!(held.track(&message(1, 2), &[object(1)], now), []);
        assert_eq!(held.len(), 1);
        assert_eq!(
            deleted(&held.resolve(object(1), Disposition::Done, 0.0)),
            ["h1.2"]
        );
    }

    #[test]
    fn retries_come_back_later_each_time() {
        let seconds = |count, jitter| POLICY.retry_delay(count, jitter).as_secs();
        assert_eq!(
            [1, 2, 3, 7, 8, 99].map(|count| seconds(count, 1.0)),
            [10, 20, 40, 640, 900, 900]
        );
        assert_eq!(seconds(2, 0.0), 10);
    }

    proptest! {
        #[test]
        fn nothing_is_deleted_before_it_is_loaded_and_nothing_leaks(
            messages in prop::collection::vec(prop::collection::btree_set(0..8u8, 1..4), 1..12),
            preview in prop::collection::vec(0..3u8, 8),
        ) {
            let mut held = InFlightMessages::new(POLICY);
            let now = Instant::now();
            for (id, objects) in messages.iter().enumerate() {
                let objects: Vec<ObjectId> = objects.iter().map(|number| object(*number)).collect();
                held.track(&message(id as u8, 1), &objects, now);
            }
            let disposition = |number: u8| match preview[usize::from(number)] {
                0 => Disposition::Done,
                1 => Disposition::Failed,
                _ => Disposition::Returned,
            };
            let mut settled = 0;
            for number in 0..8 {
                for settlement in held.resolve(object(number), disposition(number), 0.5) {
                    settled += 1;
                    if let Settlement::Delete(handle) = settlement {
                        let id: usize = handle.0[1..].trim_end_matches(".1").parse().unwrap();
                        prop_assert!(messages[id].iter().all(|n| disposition(*n) == Disposition::Done));
                    }
                }
            }
            prop_assert_eq!(settled, messages.len());
            prop_assert!(held.is_empty() && held.outstanding().is_empty());
        }
    }
}
