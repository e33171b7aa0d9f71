//! Tracks which messages are in flight, what each of them waits for, and how it is settled.
//! ([`crate::daemon::heartbeats`] keeps them hidden.)
//!
//! A message is deleted only when every object that it announces is done. Pure: time is an
//! argument, and requests to the queue are returned, not sent.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::object::ObjectId;
use crate::queue::{Message, ReceiptHandle};

/// What became of an object, as far as its messages are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disposition {
    /// Its rows are in the tables, from this load or an earlier one, or it is acknowledged as
    /// missing.
    Done,
    /// It could not be loaded; its messages are returned with a delay that grows with the number of
    /// their receives.
    Failed,
    /// Its load was not completed; its messages are returned without delay.
    Returned,
}

/// How a message that no longer waits for anything is settled (the term is that of AMQP).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    Delete(ReceiptHandle),
    /// Returned to the queue, to become visible after `delay`.
    Return {
        handle: ReceiptHandle,
        delay: Duration,
    },
}

/// How long messages are hidden, and when they become visible after a failure.
#[derive(Clone, Copy, Debug)]
pub struct VisibilityPolicy {
    /// The visibility timeout that each receive and each heartbeat requests.
    pub timeout: Duration,
    /// How long the queue hides a message after a receive at most: in SQS
    /// [`VISIBILITY_LIMIT`](crate::queue::VISIBILITY_LIMIT).
    pub limit: Duration,
    pub retry_min: Duration,
    pub retry_max: Duration,
}

impl VisibilityPolicy {
    /// Returns the time from one heartbeat to the next, which leaves room for two to fail.
    pub fn heartbeat(&self) -> Duration {
        self.timeout / 3
    }

    /// Returns the delay before a message that failed becomes visible again: exponential in the
    /// number of receives, and at least a second. `jitter`, from 0 to 1, spreads the messages of
    /// one batch.
    pub fn retry_delay(&self, receive_count: u32, jitter: f64) -> Duration {
        let backoff = Backoff {
            min: self.retry_min,
            max: self.retry_max,
        };
        let pause = backoff.pause(receive_count, jitter);
        pause.max(Duration::from_secs(1))
    }
}

/// The messages in flight.
#[derive(Debug)]
pub struct InFlightMessages {
    policy: VisibilityPolicy,
    messages: HashMap<String, InFlightMessage>,
    /// The ids of the messages that wait for each object.
    waiting: BTreeMap<ObjectId, Vec<String>>,
}

#[derive(Debug)]
struct InFlightMessage {
    handle: ReceiptHandle,
    receive_count: u32,
    received_at: Instant,
    outstanding: usize,
    /// The worst disposition of its objects so far.
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

    /// Tracks a message until each of `objects`, which are distinct, has a disposition. Returns
    /// those that no other message in flight waits for.
    ///
    /// A message in flight that is received again (its visibility timeout ended) is not tracked
    /// twice: the new receipt handle replaces the old one.
    pub fn track(
        &mut self,
        message: &Message,
        objects: &[ObjectId],
        now: Instant,
    ) -> Vec<ObjectId> {
        if let Some(known) = self.messages.get_mut(&message.id) {
            known.handle = message.handle.clone();
            known.receive_count = message.receive_count;
            known.received_at = now;
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

    /// Records the disposition of an object, and returns the settlements of the messages that
    /// waited for nothing else.
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

    /// Returns the receipt handle of a message in flight.
    pub fn handle(&self, message_id: &str) -> Option<&ReceiptHandle> {
        self.messages.get(message_id).map(|it| &it.handle)
    }

    /// Returns the objects that messages wait for.
    pub fn outstanding(&self) -> Vec<ObjectId> {
        self.waiting.keys().copied().collect()
    }

    /// Returns the ids of the messages that wait for one of these objects, each once.
    pub fn waiting_for(&self, objects: impl IntoIterator<Item = ObjectId>) -> Vec<String> {
        let waiting = objects.into_iter().filter_map(|it| self.waiting.get(&it));
        let ids: BTreeSet<&String> = waiting.flatten().collect();
        ids.into_iter().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Returns the number of objects that messages wait for.
    pub fn objects(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns how long the oldest message has been in flight.
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
        limit: Duration::from_secs(12 * 3600),
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
        let mut in_flight = InFlightMessages::new(POLICY);
        let now = Instant::now();
        assert_eq!(
            in_flight
                .track(&message(1, 1), &[object(1), object(2)], now)
                .len(),
            2
        );
        assert_eq!(in_flight.resolve(object(1), Disposition::Done, 0.0), []);
        assert_eq!(
            deleted(&in_flight.resolve(object(2), Disposition::Done, 0.0)),
            ["h1.1"]
        );
        assert!(in_flight.is_empty());

        in_flight.track(&message(2, 3), &[object(1), object(2)], now);
        in_flight.resolve(object(1), Disposition::Failed, 1.0);
        let handle = ReceiptHandle("h2.3".into());
        // The third receive: 10 s, 20 s, 40 s.
        let delay = Duration::from_secs(40);
        let settled = in_flight.resolve(object(2), Disposition::Done, 1.0);
        assert_eq!(settled, [Settlement::Return { handle, delay }]);
    }

    #[test]
    fn messages_that_announce_one_object_share_its_disposition() {
        let mut in_flight = InFlightMessages::new(POLICY);
        let now = Instant::now();
        assert_eq!(
            in_flight.track(&message(1, 1), &[object(1)], now),
            [object(1)]
        );
        assert_eq!(in_flight.track(&message(2, 1), &[object(1)], now), []);
        assert_eq!(
            deleted(&in_flight.resolve(object(1), Disposition::Done, 0.0)),
            ["h1.1", "h2.1"]
        );
    }

    #[test]
    fn a_redelivered_message_is_tracked_once_under_its_new_handle() {
        let mut in_flight = InFlightMessages::new(POLICY);
        let now = Instant::now();
        in_flight.track(&message(1, 1), &[object(1)], now);
        assert_eq!(in_flight.track(&message(1, 2), &[object(1)], now), []);
        assert_eq!(in_flight.len(), 1);
        assert_eq!(
            deleted(&in_flight.resolve(object(1), Disposition::Done, 0.0)),
            ["h1.2"]
        );
    }

    #[test]
    fn each_retry_is_delayed_longer() {
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
            dispositions in prop::collection::vec(0..3u8, 8),
        ) {
            let mut in_flight = InFlightMessages::new(POLICY);
            let now = Instant::now();
            for (id, objects) in messages.iter().enumerate() {
                let objects: Vec<ObjectId> = objects.iter().map(|number| object(*number)).collect();
                in_flight.track(&message(id as u8, 1), &objects, now);
            }
            let disposition = |number: u8| match dispositions[usize::from(number)] {
                0 => Disposition::Done,
                1 => Disposition::Failed,
                _ => Disposition::Returned,
            };
            let mut settled = 0;
            for number in 0..8 {
                for settlement in in_flight.resolve(object(number), disposition(number), 0.5) {
                    settled += 1;
                    if let Settlement::Delete(handle) = settlement {
                        let id: usize = handle.0[1..].trim_end_matches(".1").parse().unwrap();
                        prop_assert!(messages[id].iter().all(|n| disposition(*n) == Disposition::Done));
                    }
                }
            }
            prop_assert_eq!(settled, messages.len());
            prop_assert!(in_flight.is_empty() && in_flight.outstanding().is_empty());
        }
    }
}
