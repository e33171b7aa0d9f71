//! What the daemon does next, as a pure function of what has happened.
//!
//! Nothing here waits or talks to anybody: the shell in [`super`] tells it what came, and performs
//! the [`Action`]s that it returns.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::Env;
use crate::batch::{Batch, BatchLimits, Batcher};
use crate::daemon::heartbeats::{Delivery, Extension, Heartbeats};
use crate::daemon::in_flight::{Disposition, InFlightMessages, Settlement, VisibilityPolicy};
use crate::daemon::{InFlightStats, Observer};
use crate::notification::filter::Filter;
use crate::notification::{
    Announced, EnvelopeKind, Envelopes, Ignorable, Notification, parse_with_form,
};
use crate::object::{ObjectId, ObjectRef};
use crate::outcome::{Outcome, Outcomes};
use crate::queue::{FailedEntries, MAX_BATCH, Message, QueueError, ReceiptHandle};
use crate::sliding_window::SlidingWindow;

/// How long an object that another batch has in hand is left alone before it is looked up again.
const BUSY_PAUSE: Duration = Duration::from_secs(5);

/// What the shell is to do.
#[derive(Debug, PartialEq)]
pub enum Action {
    Load(Batch),
    Settle(Settlement),
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub batch: BatchLimits,
    pub visibility: VisibilityPolicy,
    /// Batches being loaded at a time.
    pub concurrency: usize,
    /// Messages held at most.
    pub max_held: usize,
}

pub struct Core {
    limits: Limits,
    envelopes: Envelopes,
    filter: Filter,
    batcher: Batcher,
    held: InFlightMessages,
    heartbeats: Heartbeats,
    /// Closed, and waiting for a place among the loads.
    ready: VecDeque<Batch>,
    /// Being loaded.
    loading: HashSet<ObjectId>,
    batches_in_flight: usize,
    /// In another batch's hands, to be looked up again at the given time.
    revisit: HashMap<ObjectId, (Instant, ObjectRef)>,
    /// When what is outstanding was created, where its event said so.
    created: HashMap<ObjectId, Instant>,
    /// From creation to being loaded.
    lags: SlidingWindow,
    observer: Arc<dyn Observer>,
    env: Env,
    /// How long messages had been in the queue.
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
            held: InFlightMessages::new(limits.visibility),
            heartbeats: Heartbeats::new(
                limits.visibility.timeout,
                limits.visibility.heartbeat(),
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

    /// A message came.
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
        let (form, notification) = parse_with_form(&message.body, &self.envelopes);
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
                // Once a message: it comes back until the redrive policy takes it away.
                let is_new = message.receive_count <= 1;
                self.observer.malformed(message, form, &malformed, is_new);
                if is_new {
                    warn!(
                        error = %malformed,
                        "not a notification; it stays in the queue, and the redrive policy will \
                         move it to the dead-letter queue"
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
        for id in self.held.track(message, &ids, now) {
            if let Some(object) = by_id.remove(&id) {
                self.ready.extend(self.batcher.add(object, now));
            }
        }
        self.start_loads(now)
    }

    /// A load ended.
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
            // A load that says nothing of an object has died. It may do so again, so the object comes
            // back as one that failed, later each time.
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

    /// Time has passed.
    pub fn on_time(&mut self, now: Instant) -> Vec<Action> {
        let due: Vec<ObjectId> = self
            .revisit
            .iter()
            .filter(|(_, (at, _))| *at <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some((_, object)) = self.revisit.remove(&id) {
                self.ready.extend(self.batcher.add(object, now));
            }
        }
        self.start_loads(now)
    }

    /// When [`Core::on_time`] next has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        let revisit = self.revisit.values().map(|(at, _)| *at).min();
        // While every load is busy, the end of one is what a batch that is due waits for.
        let due = self
            .may_load()
            .then(|| self.batcher.next_due(self.is_quiet()));
        [due.flatten(), revisit].into_iter().flatten().min()
    }

    /// Looks which messages are to be extended.
    pub fn on_tick(&mut self, now: Instant) {
        self.heartbeats.tick(now);
    }

    /// The next request that extends the visibility of messages, if one is to be sent now.
    pub fn take_extension(&mut self, now: Instant) -> Option<Extension> {
        self.heartbeats.take(now)
    }

    /// A request of [`Core::take_extension`] ended.
    pub fn on_extended(
        &mut self,
        request: u64,
        result: Result<FailedEntries, QueueError>,
        now: Instant,
    ) {
        self.heartbeats
            .on_extended(request, result, now, self.env.fraction());
    }

    /// Messages were deleted, or could not be.
    pub fn on_deleted(&mut self, handles: &[ReceiptHandle]) {
        for handle in handles {
            self.heartbeats.forget(handle);
        }
    }

    /// Takes no more in, starts no more loads, and gives back what no load has begun with.
    pub fn drain(&mut self) -> Vec<Action> {
        self.draining = true;
        self.batcher = Batcher::new(self.limits.batch);
        self.ready.clear();
        self.revisit.clear();
        let mut actions = Vec::new();
        for object in self.held.outstanding() {
            if !self.loading.contains(&object) {
                self.observer.objects(Outcome::Abandoned.label(), 1);
                actions.extend(self.resolve(object, Disposition::Returned));
            }
        }
        actions
    }

    /// Gives back everything that is held, whatever may still be done with it.
    pub fn return_all(&mut self) -> Vec<Action> {
        let outstanding = self.held.outstanding().into_iter();
        outstanding
            .flat_map(|object| self.resolve(object, Disposition::Returned))
            .collect()
    }

    /// The ids of the messages that wait for the objects of a batch.
    pub fn messages_of(&self, batch: &Batch) -> Vec<String> {
        self.held
            .waiting_for(batch.objects.iter().map(ObjectRef::id))
    }

    /// How many receives may be under way. What the next loads do not need is left to others, and
    /// takes no heartbeats; so is what heartbeats could not keep hidden.
    pub fn room(&self, now: Instant) -> usize {
        let is_ahead = self.ready.len() >= self.limits.concurrency;
        if self.draining || is_ahead || self.held.len() >= self.limits.max_held {
            return 0;
        }
        self.heartbeats.room(now).div_ceil(MAX_BATCH)
    }

    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.batches_in_flight == 0
    }

    /// For the gauges.
    pub fn stats(&self, now: Instant, paused: Option<&'static str>) -> InFlightStats {
        InFlightStats {
            messages: self.held.len(),
            oldest_seconds: self.held.oldest(now).unwrap_or_default().as_secs_f64(),
            objects_waiting: self.batcher.waiting(now),
            batches_in_flight: self.batches_in_flight,
            pause_class: paused.map(str::to_owned),
            lag: self.lags.summary(now),
            queue_age: self.ages.summary(now),
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
        let settlements = self.held.resolve(object, disposition, self.env.fraction());
        let settlements = settlements.into_iter();
        settlements.filter_map(|it| self.settle(it)).collect()
    }

    /// A message stays hidden until it is deleted. Nothing is asked for one that is visible again
    /// and would only be given back: by now it may be in another worker's hands.
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
        if let Some(before) = self.held.handle(&message.id) {
            self.heartbeats.on_redelivered(before, now);
        }
        self.heartbeats.track(&message.handle, delivery);
    }

    /// A message that asks for nothing.
    fn ignore(
        &mut self,
        message: &Message,
        delivery: Delivery,
        form: EnvelopeKind,
        why: Ignorable,
    ) -> Vec<Action> {
        self.observer.notification(form, why.label());
        debug!(why = why.label(), "asks for nothing");
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

    /// Whether a load that is free has nothing else to do.
    fn is_quiet(&self) -> bool {
        self.may_load() && self.ready.is_empty()
    }

    /// What was opened first, of the batches that are closed and those that are due. A batch that is
    /// due stays open until its turn, and goes on filling.
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
