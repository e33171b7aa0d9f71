//! Decides what the daemon does next, as a pure function of what has happened.
//!
//! Nothing here waits or does I/O: the event loop (src/daemon) passes in what has happened, and
//! performs the [`Action`]s that are returned.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::Env;
use crate::batch::{Batch, BatchLimits, Batcher};
use crate::daemon::heartbeats::{Delivery, Extension, Heartbeats};
use crate::daemon::in_flight::{Disposition, InFlightMessages, Settlement, VisibilityPolicy};
use crate::daemon::{InFlightCounts, InFlightStats, Observer};
use crate::notification::filter::Filter;
use crate::notification::{
    Announced, EnvelopeKind, Envelopes, Ignorable, Notification, parse_with_envelope_kind,
};
use crate::object::{ObjectId, ObjectRef};
use crate::outcome::{Outcome, Outcomes};
use crate::queue::{FailedEntries, MAX_BATCH, Message, QueueError, ReceiptHandle};
use crate::sliding_window::SlidingWindow;

/// How long to wait before an object that another batch claims is looked up again.
const BUSY_PAUSE: Duration = Duration::from_secs(5);

/// An action for the event loop to perform.
#[derive(Debug, PartialEq)]
pub enum Action {
    Load(Batch),
    Settle(Settlement),
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub batch: BatchLimits,
    pub visibility: VisibilityPolicy,
    /// The maximum number of batches that are loaded at the same time.
    pub concurrency: usize,
    /// The maximum number of messages in flight.
    pub max_held: usize,
}

pub struct Core {
    limits: Limits,
    envelopes: Envelopes,
    filter: Filter,
    batcher: Batcher,
    in_flight: InFlightMessages,
    heartbeats: Heartbeats,
    /// Closed batches that wait for a load slot.
    ready: VecDeque<Batch>,
    /// The objects that are being loaded.
    loading: HashSet<ObjectId>,
    batches_in_flight: usize,
    /// Objects that another batch claims, each with the time at which it is looked up again.
    revisit: HashMap<ObjectId, (Instant, ObjectRef)>,
    /// When the outstanding objects were created, if their events say so.
    created: HashMap<ObjectId, Instant>,
    /// The times from the creation of objects to the end of their load.
    lags: SlidingWindow,
    observer: Arc<dyn Observer>,
    env: Env,
    /// How long messages had been in the queue when they were received.
    ages: SlidingWindow,
    draining: bool,
}

impl Core {
    pub fn new(
        limits: Limits,
        envelopes: Envelopes,
        filter: Filter,
        observer: Arc<dyn Observer>,
        env: Env,
    ) -> Self {
        Self {
            envelopes,
            filter,
            batcher: Batcher::new(limits.batch),
            in_flight: InFlightMessages::new(limits.visibility),
            heartbeats: Heartbeats::new(
                limits.visibility.timeout,
                limits.visibility.heartbeat(),
                limits.visibility.limit,
                observer.clone(),
            ),
            ready: VecDeque::new(),
            loading: HashSet::new(),
            batches_in_flight: 0,
            revisit: HashMap::new(),
            created: HashMap::new(),
            lags: SlidingWindow::default(),
            observer,
            env,
            ages: SlidingWindow::default(),
            draining: false,
            limits,
        }
    }

    /// Handles a received message.
    pub fn on_message(
        &mut self,
        message: &Message,
        delivery: Delivery,
        now: Instant,
    ) -> Vec<Action> {
        if self.draining {
            let delay = Duration::ZERO;
            let handle = message.handle.clone();
            return vec![Action::Settle(Settlement::Return { handle, delay })];
        }
        self.ages.record(now, message.age);
        self.observer.received(message, now);
        let (form, notification) = parse_with_envelope_kind(&message.body, &self.envelopes);
        match notification {
            Ok(Notification::Objects(announced)) => {
                let objects = self.wanted(announced);
                if objects.is_empty() {
                    return self.ignore(message, delivery, form, Ignorable::Filtered);
                }
                self.observer.notification(form, "objects");
                self.keep_hidden(message, delivery, now);
                self.on_objects(message, objects, now)
            }
            Ok(Notification::Ignorable(why)) => self.ignore(message, delivery, form, why),
            Err(malformed) => {
                // Logged once for each message: it is received again until the redrive policy moves
                // it.
                let is_new = message.receive_count <= 1;
                self.observer.malformed(message, form, &malformed, is_new);
                if is_new {
                    warn!(
                        error = %malformed,
                        "malformed message; returning it to the queue until the redrive policy \
                         moves it to the dead-letter queue"
                    );
                }
                let policy = self.limits.visibility;
                let delay = policy.retry_delay(message.receive_count, self.env.fraction());
                let handle = message.handle.clone();
                vec![Action::Settle(Settlement::Return { handle, delay })]
            }
        }
    }

    fn wanted(&self, announced: Vec<Announced>) -> Vec<Announced> {
        let (wanted, filtered): (Vec<_>, Vec<_>) =
            announced.into_iter().partition(|it| self.filter.takes(it));
        self.observer.objects("filtered", filtered.len());
        wanted
    }

    fn on_objects(
        &mut self,
        message: &Message,
        announced: Vec<Announced>,
        now: Instant,
    ) -> Vec<Action> {
        // Two records can announce the same version of an object.
        let mut by_id: HashMap<ObjectId, ObjectRef> = HashMap::new();
        for Announced { at, object, .. } in announced {
            let id = object.id();
            let age = at.and_then(|at| self.env.wall_clock().duration_since(at).ok());
            if let Some(created) = age.and_then(|age| now.checked_sub(age)) {
                self.created.entry(id).or_insert(created);
            }
            by_id.entry(id).or_insert(object);
        }
        let mut ids: Vec<ObjectId> = by_id.keys().copied().collect();
        ids.sort_unstable();
        for id in self.in_flight.track(message, &ids, now) {
            if let Some(object) = by_id.remove(&id) {
                self.ready.extend(self.batcher.add(object, now));
            }
        }
        self.start_loads(now)
    }

    /// Handles the end of a load.
    pub fn on_loaded(
        &mut self,
        objects: Vec<ObjectRef>,
        outcomes: Outcomes,
        now: Instant,
    ) -> Vec<Action> {
        self.batches_in_flight -= 1;
        let mut outcomes: HashMap<ObjectId, Outcome> = outcomes.into_iter().collect();
        let mut actions = Vec::new();
        for object in objects {
            let id = object.id();
            self.loading.remove(&id);
            // A load without an outcome for an object has panicked, and may do so again. The object
            // counts as failed, so that its messages are returned with growing delays.
            let outcome = outcomes.remove(&id).unwrap_or(Outcome::Failed);
            self.observer.objects(outcome.label(), 1);
            self.note_lag(id, &outcome, now);
            let disposition = match outcome {
                Outcome::Loaded | Outcome::Duplicate | Outcome::Missing { acknowledge: true } => {
                    Disposition::Done
                }
                Outcome::Failed | Outcome::Missing { acknowledge: false } => Disposition::Failed,
                Outcome::Busy if !self.draining => {
                    self.revisit.insert(id, (now + BUSY_PAUSE, object));
                    continue;
                }
                Outcome::Busy | Outcome::Abandoned => Disposition::Returned,
            };
            actions.extend(self.resolve(id, disposition));
        }
        actions.extend(self.start_loads(now));
        actions
    }

    /// Looks up again the objects whose pause is over, and starts the loads that are due.
    pub fn on_time(&mut self, now: Instant) -> Vec<Action> {
        let mut due: Vec<ObjectId> = self
            .revisit
            .iter()
            .filter(|(_, (at, _))| *at <= now)
            .map(|(id, _)| *id)
            .collect();
        // The map has no order of its own, and the same events must lead to the same batches.
        due.sort_unstable();
        for id in due {
            if let Some((_, object)) = self.revisit.remove(&id) {
                self.ready.extend(self.batcher.add(object, now));
            }
        }
        self.start_loads(now)
    }

    /// Returns when [`Core::on_time`] next has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        let revisit = self.revisit.values().map(|(at, _)| *at).min();
        // While every load slot is busy, a batch that is due waits for the end of a load.
        let due = self
            .may_load()
            .then(|| self.batcher.next_due(self.is_quiet()));
        [due.flatten(), revisit].into_iter().flatten().min()
    }

    /// Determines which messages need a heartbeat.
    pub fn on_tick(&mut self, now: Instant) {
        self.heartbeats.tick(now);
    }

    /// Returns the next request that extends the visibility of messages, if one is to be sent now.
    pub fn take_extension(&mut self, now: Instant) -> Option<Extension> {
        self.heartbeats.take(now)
    }

    /// Handles the end of a request of [`Core::take_extension`].
    pub fn on_extended(
        &mut self,
        request: u64,
        result: Result<FailedEntries, QueueError>,
        now: Instant,
    ) {
        self.heartbeats
            .on_extended(request, result, now, self.env.fraction());
    }

    /// Handles messages whose deletion has succeeded or was given up.
    pub fn on_deleted(&mut self, handles: &[ReceiptHandle]) {
        for handle in handles {
            self.heartbeats.forget(handle);
        }
    }

    /// Ends intake, starts no more loads, and returns the messages of objects that are not being
    /// loaded.
    pub fn drain(&mut self) -> Vec<Action> {
        self.draining = true;
        self.batcher = Batcher::new(self.limits.batch);
        self.ready.clear();
        self.revisit.clear();
        let mut actions = Vec::new();
        for object in self.in_flight.outstanding() {
            if !self.loading.contains(&object) {
                self.observer.objects(Outcome::Abandoned.label(), 1);
                actions.extend(self.resolve(object, Disposition::Returned));
            }
        }
        actions
    }

    /// Returns every message in flight to the queue, whatever is still being done with its objects.
    pub fn return_all(&mut self) -> Vec<Action> {
        let outstanding = self.in_flight.outstanding().into_iter();
        outstanding
            .flat_map(|object| self.resolve(object, Disposition::Returned))
            .collect()
    }

    /// Returns the ids of the messages that wait for the objects of a batch.
    pub fn messages_of(&self, batch: &Batch) -> Vec<String> {
        self.in_flight
            .waiting_for(batch.objects.iter().map(ObjectRef::id))
    }

    /// Returns how many receives may be in flight. Messages that the next loads do not need, or
    /// that heartbeats could not keep hidden, are left to other workers and cost no heartbeats.
    pub fn room(&self, now: Instant) -> usize {
        let is_ahead = self.ready.len() >= self.limits.concurrency;
        if self.draining || is_ahead || self.held() >= self.limits.max_held {
            return 0;
        }
        self.heartbeats.room(now).div_ceil(MAX_BATCH)
    }

    /// Returns the number of messages in flight and of those that wait for their deletion.
    fn held(&self) -> usize {
        // A message whose visibility cannot be extended any more is in flight without heartbeats.
        self.in_flight.len().max(self.heartbeats.tracked())
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.batches_in_flight == 0
    }

    /// Returns the state for the gauges and the live page.
    pub fn stats(&self, now: Instant, paused: Option<&'static str>) -> InFlightStats {
        InFlightStats {
            messages: self.in_flight.len(),
            oldest_seconds: self.in_flight.oldest(now).unwrap_or_default().as_secs_f64(),
            objects_waiting: self.batcher.waiting(now),
            batches_in_flight: self.batches_in_flight,
            pause_class: paused.map(str::to_owned),
            lag: self.lags.summary(now),
            queue_age: self.ages.summary(now),
        }
    }

    /// Returns how much the core holds in memory.
    pub fn counts(&self) -> InFlightCounts {
        let ready = self.ready.iter().map(|batch| batch.objects.len());
        let ready: usize = ready.sum();
        InFlightCounts {
            messages: self.held(),
            objects: self.in_flight.objects(),
            unfinished: self.batcher.objects() + ready + self.loading.len() + self.revisit.len(),
            open_batches: self.batcher.open_batches(),
            loads: self.batches_in_flight,
        }
    }

    fn note_lag(&mut self, id: ObjectId, outcome: &Outcome, now: Instant) {
        if *outcome != Outcome::Loaded {
            return;
        }
        if let Some(created) = self.created.get(&id) {
            let lag = now.duration_since(*created);
            self.observer.lag(lag, now);
            self.lags.record(now, lag);
        }
    }

    fn resolve(&mut self, object: ObjectId, disposition: Disposition) -> Vec<Action> {
        self.created.remove(&object);
        let settlements = self
            .in_flight
            .resolve(object, disposition, self.env.fraction());
        let settlements = settlements.into_iter();
        settlements.filter_map(|it| self.settle(it)).collect()
    }

    /// Returns the action that settles a message. It stays hidden until it is deleted. A message
    /// whose heartbeats have ended is not returned: another worker may have received it by now.
    fn settle(&mut self, settlement: Settlement) -> Option<Action> {
        let is_needed = match &settlement {
            Settlement::Delete(handle) => {
                self.heartbeats.settle(handle);
                true
            }
            Settlement::Return { handle, .. } => self.heartbeats.forget(handle),
        };
        is_needed.then_some(Action::Settle(settlement))
    }

    fn keep_hidden(&mut self, message: &Message, delivery: Delivery, now: Instant) {
        if let Some(before) = self.in_flight.handle(&message.id) {
            self.heartbeats.on_redelivered(before, now);
        }
        self.heartbeats.track(&message.handle, delivery);
    }

    /// Deletes a message that announces nothing to load.
    fn ignore(
        &mut self,
        message: &Message,
        delivery: Delivery,
        form: EnvelopeKind,
        why: Ignorable,
    ) -> Vec<Action> {
        self.observer.notification(form, why.label());
        debug!(why = why.label(), "nothing to load");
        self.heartbeats.track(&message.handle, delivery);
        let delete = Settlement::Delete(message.handle.clone());
        self.settle(delete).into_iter().collect()
    }

    fn start_loads(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.may_load() {
            let Some(batch) = self.next_batch(now) else {
                break;
            };
            self.observer.batch_closed(batch.reason);
            self.batches_in_flight += 1;
            self.loading.extend(batch.objects.iter().map(ObjectRef::id));
            actions.push(Action::Load(batch));
        }
        actions
    }

    fn may_load(&self) -> bool {
        self.batches_in_flight < self.limits.concurrency && !self.draining
    }

    /// Returns whether a load slot is free, and no closed batch waits for one.
    fn is_quiet(&self) -> bool {
        self.may_load() && self.ready.is_empty()
    }

    /// Returns the batch that was opened first, of those that are closed and those that are due. A
    /// batch that is due stays open until its turn, and objects still join it.
    fn next_batch(&mut self, now: Instant) -> Option<Batch> {
        let quiet = self.is_quiet();
        let turn = self.ready.front().map_or(now, |closed| {
            now.min(closed.opened_at + self.limits.batch.window)
        });
        match self.batcher.next_due(quiet) {
            Some(due) if due <= turn => self.batcher.take_due(now, quiet),
            _ => self.ready.pop_front(),
        }
    }
}
