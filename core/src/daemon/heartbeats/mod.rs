//! Tracks when the visibility of each message in flight ends, and decides which messages to extend
//! next.
//!
//! Messages are extended nearest deadline first, with a bounded number of requests in flight. How
//! long the requests take decides how many messages may be in flight at all. Pure: time is an
//! argument, and requests are returned, not sent.

mod pace;
mod spell;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::pace::Pace;
use self::spell::Spell;
use crate::backoff::Backoff;
use crate::daemon::Observer;
use crate::queue::{FailedEntries, MAX_BATCH, QueueError, ReceiptHandle, VISIBILITY_LIMIT};

/// The maximum number of extension requests in flight.
pub const CONCURRENCY: usize = 8;

/// The time after its receive from which a message of SQS is not extended any more: 11.5 hours.
pub const MAX_HOLD: Duration = max_hold(VISIBILITY_LIMIT);

/// Returns the time after its receive from which a message is not extended any more. The queue makes
/// a message visible again `limit` after its receive, however often it was extended; heartbeats end
/// before that, and the message becomes visible by itself.
const fn max_hold(limit: Duration) -> Duration {
    Duration::from_secs(limit.as_secs() * 23 / 24)
}

/// Returns the latest end of an extension, counted from the receive. The queue rejects one that ends
/// later than `limit` after the receive, and starts to count before its response arrives: hence the
/// difference, a minute of 12 hours.
fn max_hidden(limit: Duration) -> Duration {
    limit - limit / 720
}

/// The pause after the first failed extension of a message; doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(500);

/// When a message was received and hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub received_at: Instant,
    /// The queue hid the message at this moment or later, so that it stays hidden at least for the
    /// visibility timeout after this moment.
    pub hidden_since: Instant,
}

impl Delivery {
    /// Returns the times for the messages of one receive, which could wait up to `wait` for
    /// messages to arrive.
    ///
    /// The queue hides messages when it responds, and it is unknown how much of a receive's time
    /// was spent waiting for messages and how much on the response. The response is assumed to be
    /// slow: a third of the visibility timeout, or longer if the receive exceeded its wait by more.
    /// The first heartbeat is due early enough for that, so the assumption costs no request.
    pub fn of_receive(
        sent_at: Instant,
        answered_at: Instant,
        wait: Duration,
        visibility: Duration,
    ) -> Self {
        let overdue = (answered_at - sent_at).saturating_sub(wait);
        let under_way = overdue.max(visibility / 3).min(answered_at - sent_at);
        Self {
            received_at: answered_at,
            hidden_since: answered_at - under_way,
        }
    }
}

/// A request that extends the visibility of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Identifies the request in [`Heartbeats::on_extended`].
    pub number: u64,
    pub entries: Vec<(ReceiptHandle, Duration)>,
    /// The latest deadline of the entries, after which a response is useless.
    pub give_up: Instant,
}

/// The deadlines of the messages in flight.
#[derive(Debug)]
pub struct Heartbeats {
    visibility: Duration,
    /// How long after its receive or its last extension a message becomes due.
    interval: Duration,
    /// How long the queue hides a message after a receive at most.
    limit: Duration,
    messages: HashMap<u64, Message>,
    numbers: HashMap<ReceiptHandle, u64>,
    /// Messages that are not due before the given time.
    resting: BTreeSet<(Instant, u64)>,
    /// Messages to be extended now. Those whose deadline has passed come last: they may be lost,
    /// and must not delay the others.
    due: BTreeSet<(bool, Instant, u64)>,
    /// The deadlines that have not passed.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Since when there have been more messages due than requests may be in flight.
    backlog_since: Option<Instant>,
    requests: BTreeMap<u64, Request>,
    /// The last number that was assigned to a message or a request.
    last_number: u64,
    pace: Pace,
    spell: Spell,
    observer: Arc<dyn Observer>,
}

#[derive(Debug)]
struct Message {
    handle: ReceiptHandle,
    received_at: Instant,
    /// The queue hides the message at least until then.
    deadline: Instant,
    /// Whether the deadline has passed, and the message has been counted as missed.
    is_late: bool,
    /// Whether it waits only for its deletion.
    is_settled: bool,
    failures: u32,
    stage: Stage,
}

impl Message {
    /// Returns how long a request that is sent now may hide the message. The queue hides it for
    /// `limit` after its receive at most.
    fn extension(&self, visibility: Duration, limit: Duration, now: Instant) -> Duration {
        let held = now.saturating_duration_since(self.received_at);
        visibility.min(max_hidden(limit).saturating_sub(held))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Until the given time.
    Resting(Instant),
    Due,
    /// Part of a request in flight.
    Requested,
}

#[derive(Debug)]
struct Request {
    sent_at: Instant,
    messages: Vec<u64>,
}

impl Heartbeats {
    /// Creates a state without messages. The queue hides a message for `limit` after its receive at
    /// most.
    pub fn new(
        visibility: Duration,
        interval: Duration,
        limit: Duration,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            visibility,
            interval,
            limit,
            messages: HashMap::new(),
            numbers: HashMap::new(),
            resting: BTreeSet::new(),
            due: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            backlog_since: None,
            requests: BTreeMap::new(),
            last_number: 0,
            pace: Pace::default(),
            spell: Spell::default(),
            observer,
        }
    }

    /// Returns the number of messages that are kept hidden, those that wait only for their deletion
    /// included.
    pub fn tracked(&self) -> usize {
        self.messages.len()
    }

    /// Keeps a received message hidden from now on.
    pub fn track(&mut self, handle: &ReceiptHandle, delivery: Delivery) {
        self.forget(handle);
        let number = self.next_number();
        let deadline = delivery.hidden_since + self.visibility;
        let latest = deadline.checked_sub(self.visibility / 3);
        let due = delivery.received_at + self.interval;
        let due = latest.map_or(due, |latest| due.min(latest));
        let message = Message {
            handle: handle.clone(),
            received_at: delivery.received_at,
            deadline,
            is_late: false,
            is_settled: false,
            failures: 0,
            stage: Stage::Resting(due),
        };
        self.messages.insert(number, message);
        self.numbers.insert(handle.clone(), number);
        self.resting.insert((due, number));
        self.deadlines.insert((deadline, number));
    }

    /// Ends the heartbeats of a message that is deleted or returned. Returns whether it had any: a
    /// message that is gone, or close to SQS's limit, has none.
    pub fn forget(&mut self, handle: &ReceiptHandle) -> bool {
        let number = self.numbers.get(handle).copied();
        number.is_some_and(|number| self.remove(number).is_some())
    }

    /// Marks a message that is to be deleted. It is kept hidden until [`Heartbeats::forget`].
    pub fn settle(&mut self, handle: &ReceiptHandle) {
        let number = self.numbers.get(handle);
        if let Some(message) = number.and_then(|it| self.messages.get_mut(it)) {
            message.is_settled = true;
        }
    }

    /// Handles a message that was delivered again: the extensions of this delivery came too late.
    pub fn on_redelivered(&mut self, handle: &ReceiptHandle, now: Instant) {
        let Some(number) = self.numbers.get(handle).copied() else {
            return;
        };
        if let Some(message) = self.remove(number) {
            self.note_missed(&message, now);
        }
    }

    /// Determines which messages are due, and which deadlines have passed. Call it at intervals
    /// rather than for each message, so that requests are full.
    pub fn tick(&mut self, now: Instant) {
        while let Some((at, number)) = self.resting.first().copied()
            && at <= now
        {
            self.resting.pop_first();
            self.make_due(number, now);
        }
        while let Some((deadline, number)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.on_deadline(number, now);
        }
        if !self.due.is_empty() {
            self.backlog_since.get_or_insert(now);
        }
        if self.is_behind(now) {
            self.spell
                .is_behind(self.messages.len(), self.pace.at(now), now);
        }
        self.spell.tick(self.visibility, now);
    }

    /// Returns the next request, if a message is due and fewer than [`CONCURRENCY`] requests are in
    /// flight.
    pub fn take(&mut self, now: Instant) -> Option<Extension> {
        if self.requests.len() >= CONCURRENCY || self.due.is_empty() {
            return None;
        }
        let mut messages = Vec::new();
        let mut entries = Vec::new();
        // A request whose deadlines have all passed must also end.
        let mut give_up = now + self.visibility / 6;
        while messages.len() < MAX_BATCH
            && let Some((_, _, number)) = self.due.pop_first()
        {
            if let Some(message) = self.messages.get_mut(&number) {
                message.stage = Stage::Requested;
                let visibility = message.extension(self.visibility, self.limit, now);
                entries.push((message.handle.clone(), visibility));
                messages.push(number);
                give_up = give_up.max(message.deadline);
            }
        }
        self.end_backlog_if_empty();
        let number = self.next_number();
        let sent_at = now;
        self.requests.insert(number, Request { sent_at, messages });
        Some(Extension {
            number,
            entries,
            give_up,
        })
    }

    /// Handles the end of a request. `jitter`, from 0 to 1, spreads the retries of failed entries.
    pub fn on_extended(
        &mut self,
        request: u64,
        result: Result<FailedEntries, QueueError>,
        now: Instant,
        jitter: f64,
    ) {
        let Some(Request { sent_at, messages }) = self.requests.remove(&request) else {
            return;
        };
        self.pace.record(now - sent_at, now, self.visibility);
        let mut failed: HashMap<usize, QueueError> = match result {
            Ok(failed) => failed.into_iter().collect(),
            Err(error) => (0..messages.len()).map(|it| (it, error.clone())).collect(),
        };
        let mut extended = 0;
        let mut refused = 0;
        for (index, number) in messages.into_iter().enumerate() {
            match failed.remove(&index) {
                None => {
                    extended += 1;
                    self.on_success(number, sent_at);
                }
                Some(QueueError::Gone(_)) => self.on_gone(number, now),
                Some(error) => {
                    refused += 1;
                    self.on_failure(number, &error, now, jitter);
                }
            }
        }
        self.observer.extended(extended, refused);
    }

    fn missed(&mut self, error: Option<&QueueError>, now: Instant) {
        self.observer.heartbeat_missed();
        self.spell.missed(error, now);
    }

    /// Returns how many more messages can be kept hidden: as many as successive waves of requests
    /// extend in a quarter of the visibility timeout, at the current pace, and none while a
    /// deadline is close. (The capacity is never less than one request, so that the pace is
    /// measured again.)
    pub fn room(&self, now: Instant) -> usize {
        if self.is_behind(now) {
            return 0;
        }
        self.capacity(now).saturating_sub(self.messages.len())
    }

    fn capacity(&self, now: Instant) -> usize {
        let oldest = self.requests.values().map(|it| now - it.sent_at).max();
        let pace = self.pace.at(now).max(oldest.unwrap_or_default());
        let waves = (self.visibility / 4).as_secs_f64() / pace.as_secs_f64();
        // Infinite if nothing has been measured; the cast saturates.
        let capacity = ((CONCURRENCY * MAX_BATCH) as f64 * waves) as usize;
        capacity.max(MAX_BATCH)
    }

    /// Returns whether heartbeats have fallen behind. On a healthy queue, each message is extended
    /// long before its deadline is this close, and no message stays due for long.
    fn is_behind(&self, now: Instant) -> bool {
        let first = self.deadlines.first();
        first.is_some_and(|(deadline, _)| *deadline < now + self.visibility / 6)
            || self
                .backlog_since
                .is_some_and(|since| now - since > self.visibility / 12)
    }

    /// Makes a message due, unless it is close to the queue's limit: it then becomes visible by
    /// itself.
    fn make_due(&mut self, number: u64, now: Instant) {
        let Some(message) = self.messages.get_mut(&number) else {
            return;
        };
        if now >= message.received_at + max_hold(self.limit) {
            self.remove(number);
            return;
        }
        message.stage = Stage::Due;
        self.due.insert((message.is_late, message.deadline, number));
    }

    /// Handles a deadline that has passed. A message of a request in flight is not counted as
    /// missed before the request has failed.
    fn on_deadline(&mut self, number: u64, now: Instant) {
        let Some(message) = self.messages.get_mut(&number) else {
            return;
        };
        if message.stage == Stage::Requested {
            return;
        }
        message.is_late = true;
        if self.due.remove(&(false, message.deadline, number)) {
            self.due.insert((true, message.deadline, number));
        }
        self.missed(None, now);
    }

    fn on_success(&mut self, number: u64, sent_at: Instant) {
        let Some(message) = self.messages.get_mut(&number) else {
            return;
        };
        self.deadlines.remove(&(message.deadline, number));
        message.deadline = sent_at + message.extension(self.visibility, self.limit, sent_at);
        message.is_late = false;
        message.failures = 0;
        let due = sent_at + self.interval;
        message.stage = Stage::Resting(due);
        self.deadlines.insert((message.deadline, number));
        self.resting.insert((due, number));
    }

    /// Handles a message that is gone from the queue or visible again. Extending it again would
    /// change nothing. Its objects are still loaded, and it is then deleted, which works as long as
    /// nobody else has received it. A message that is being deleted was not missed: the response to
    /// its deletion has not arrived yet.
    fn on_gone(&mut self, number: u64, now: Instant) {
        if let Some(message) = self.remove(number)
            && !message.is_settled
        {
            self.note_missed(&message, now);
        }
    }

    fn on_failure(&mut self, number: u64, error: &QueueError, now: Instant, jitter: f64) {
        let Some(message) = self.messages.get_mut(&number) else {
            return;
        };
        message.failures += 1;
        // Short enough for several retries before the deadline.
        let backoff = Backoff {
            min: BACKOFF,
            max: self.visibility / 12,
        };
        let until = now + backoff.pause(message.failures, jitter);
        message.stage = Stage::Resting(until);
        self.resting.insert((until, number));
        if message.deadline <= now && !message.is_late {
            message.is_late = true;
            self.missed(Some(error), now);
        }
        self.spell.failed_again(now);
    }

    fn note_missed(&mut self, message: &Message, now: Instant) {
        if !message.is_late {
            self.missed(None, now);
        }
    }

    fn remove(&mut self, number: u64) -> Option<Message> {
        let message = self.messages.remove(&number)?;
        self.numbers.remove(&message.handle);
        self.deadlines.remove(&(message.deadline, number));
        match message.stage {
            Stage::Resting(until) => self.resting.remove(&(until, number)),
            Stage::Due => self
                .due
                .remove(&(message.is_late, message.deadline, number)),
            Stage::Requested => false,
        };
        self.end_backlog_if_empty();
        Some(message)
    }

    fn end_backlog_if_empty(&mut self) {
        if self.due.is_empty() {
            self.backlog_since = None;
        }
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::Unobserved;

    const VISIBILITY: Duration = Duration::from_secs(120);
    const INTERVAL: Duration = Duration::from_secs(40);
    const SECOND: Duration = Duration::from_secs(1);

    fn heartbeats(visibility: Duration, interval: Duration) -> Heartbeats {
        Heartbeats::new(visibility, interval, VISIBILITY_LIMIT, Arc::new(Unobserved))
    }

    fn handle(number: usize) -> ReceiptHandle {
        ReceiptHandle(format!("h{number}"))
    }

    fn at(received_at: Instant) -> Delivery {
        Delivery {
            received_at,
            hidden_since: received_at,
        }
    }

    fn names(extension: Option<Extension>) -> Vec<String> {
        let entries = extension.map(|it| it.entries).unwrap_or_default();
        entries.into_iter().map(|(handle, _)| handle.0).collect()
    }

    fn failed(error: &str) -> Result<FailedEntries, QueueError> {
        Err(QueueError::Transient(error.to_owned()))
    }

    /// Tracks `count` messages, a millisecond apart, and lets all of them become due.
    fn due(count: usize, start: Instant) -> (Heartbeats, Instant) {
        let mut heartbeats = heartbeats(VISIBILITY, INTERVAL);
        for number in (0..count).rev() {
            let received_at = start + Duration::from_millis(number as u64);
            heartbeats.track(&handle(number), at(received_at));
        }
        let now = start + INTERVAL + Duration::from_millis(count as u64);
        heartbeats.tick(now);
        (heartbeats, now)
    }

    #[test]
    fn messages_that_are_forgotten_before_their_turn_leave_no_backlog() {
        let count = (CONCURRENCY + 1) * MAX_BATCH;
        let (mut heartbeats, now) = due(count, Instant::now());
        while heartbeats.take(now).is_some() {}
        for number in 0..count {
            heartbeats.forget(&handle(number));
        }
        assert!(heartbeats.room(now + VISIBILITY) > 0);
    }

    #[test]
    fn visibility_is_extended_well_before_it_ends() {
        let mut heartbeats = heartbeats(VISIBILITY, INTERVAL);
        let start = Instant::now();
        heartbeats.track(&handle(0), at(start));
        heartbeats.tick(start + SECOND * 39);
        assert_eq!(heartbeats.take(start + SECOND * 39), None);
        for beat in 1..=3 {
            let now = start + INTERVAL * beat;
            heartbeats.tick(now);
            let request = heartbeats.take(now).unwrap();
            assert_eq!(request.entries, [(handle(0), VISIBILITY)], "beat {beat}");
            // Not a second time while the request is in flight.
            heartbeats.tick(now + SECOND);
            assert_eq!(heartbeats.take(now + SECOND), None, "beat {beat}");
            heartbeats.on_extended(request.number, Ok(vec![]), now + SECOND, 0.0);
        }
        heartbeats.tick(start + MAX_HOLD);
        assert_eq!(heartbeats.take(start + MAX_HOLD), None);
        assert!(!heartbeats.forget(&handle(0)));
    }

    #[test]
    fn an_extended_deadline_counts_from_when_the_extension_was_sent() {
        let mut heartbeats = heartbeats(VISIBILITY, INTERVAL);
        let start = Instant::now();
        heartbeats.track(&handle(0), at(start));
        let sent_at = start + INTERVAL;
        heartbeats.tick(sent_at);
        let request = heartbeats.take(sent_at).unwrap();
        heartbeats.on_extended(request.number, Ok(vec![]), sent_at + SECOND, 0.0);
        assert!(heartbeats.room(sent_at + VISIBILITY / 2) > 0);
        // The deadline is close.
        assert_eq!(heartbeats.room(sent_at + VISIBILITY - SECOND), 0);
    }

    /// SQS refuses to hide a message for longer than 12 hours after its receive.
    #[test]
    fn an_extension_ends_before_the_queue_ends_the_visibility() {
        let hour = SECOND * 3600;
        let (visibility, interval) = (hour * 12 - SECOND * 60, hour * 4);
        let mut heartbeats = heartbeats(visibility, interval);
        let start = Instant::now();
        heartbeats.track(&handle(0), at(start));
        let now = start + hour * 4;
        heartbeats.tick(now);
        let request = heartbeats.take(now).unwrap();
        let left = hour * 8 - SECOND * 60;
        assert_eq!(request.entries, [(handle(0), left)]);
    }

    #[test]
    fn the_nearest_deadlines_come_first_and_few_requests_are_in_flight() {
        let (mut heartbeats, now) = due(CONCURRENCY * MAX_BATCH + 5, Instant::now());
        let first = heartbeats.take(now).unwrap();
        let expected: Vec<String> = (0..MAX_BATCH).map(|it| handle(it).0).collect();
        assert_eq!(names(Some(first.clone())), expected);
        for _ in 1..CONCURRENCY {
            assert_eq!(names(heartbeats.take(now)).len(), MAX_BATCH);
        }
        assert_eq!(heartbeats.take(now), None);
        heartbeats.on_extended(first.number, Ok(vec![]), now, 0.0);
        assert_eq!(names(heartbeats.take(now)).len(), 5);
    }

    #[test]
    fn a_message_past_its_deadline_comes_after_those_that_can_still_be_kept() {
        let start = Instant::now();
        let mut heartbeats = heartbeats(VISIBILITY, INTERVAL);
        heartbeats.track(&handle(0), at(start));
        let later = start + VISIBILITY;
        heartbeats.track(&handle(1), at(later - INTERVAL));
        heartbeats.tick(later);
        assert_eq!(names(heartbeats.take(later)), ["h1", "h0"]);
    }

    #[test]
    fn a_failed_heartbeat_is_retried_before_the_deadline_unless_the_message_is_lost() {
        let (mut heartbeats, now) = due(2, Instant::now());
        let request = heartbeats.take(now).unwrap();
        let gone = QueueError::Gone("gone".to_owned());
        let away = QueueError::Transient("away".to_owned());
        let answer = Ok(vec![(0, gone), (1, away)]);
        heartbeats.on_extended(request.number, answer, now, 1.0);
        let mut tries = 0;
        let mut now = now;
        while now < request.give_up {
            now += SECOND;
            heartbeats.tick(now);
            if let Some(request) = heartbeats.take(now) {
                assert!(request.give_up >= now);
                assert_eq!(names(Some(request.clone())), ["h1"]);
                heartbeats.on_extended(request.number, failed("away"), now, 1.0);
                tries += 1;
            }
        }
        assert!((5..20).contains(&tries), "{tries}");
        assert!(!heartbeats.forget(&handle(0)));
        assert!(heartbeats.forget(&handle(1)));
        assert_eq!(heartbeats.take(now), None);
    }

    #[test]
    fn a_slow_queue_has_room_for_the_messages_that_it_can_extend_in_time() {
        let start = Instant::now();
        let (mut heartbeats, mut now) = due(100, start);
        assert!(heartbeats.room(now) > 1_000_000);
        // Three seconds per request: ten waves of 80 messages.
        while let Some(request) = heartbeats.take(now) {
            now += 3 * SECOND;
            heartbeats.on_extended(request.number, Ok(vec![]), now, 0.0);
        }
        let room = heartbeats.room(now);
        assert!((700..=800).contains(&room), "{room}");
        // A request without a response also counts as slow.
        heartbeats.tick(now + INTERVAL);
        assert!(heartbeats.take(now + INTERVAL).is_some());
        assert!(heartbeats.room(now + INTERVAL + 6 * SECOND) < 400);
    }

    #[test]
    fn the_response_time_of_a_receive_counts() {
        let sent = Instant::now();
        let of = |took, wait| Delivery::of_receive(sent, sent + took, wait, VISIBILITY);
        // Immediately, after the longest wait, and long after it.
        assert_eq!(of(SECOND, 20 * SECOND).hidden_since, sent);
        assert_eq!(of(20 * SECOND, 20 * SECOND).hidden_since, sent);
        assert_eq!(
            of(90 * SECOND, 20 * SECOND).hidden_since,
            sent + 20 * SECOND
        );
        assert_eq!(
            of(90 * SECOND, 90 * SECOND).hidden_since,
            sent + 50 * SECOND
        );
    }
}
