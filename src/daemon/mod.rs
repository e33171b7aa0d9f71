//! The daemon: the only event loop.
//!
//! Receivers, loads, settlements and heartbeats run as tasks of their own; their results arrive
//! here as events. The loop itself waits for nothing else, so that it stays responsive.

pub mod depths;
mod receiver;
mod settler;
mod shutdown;
#[cfg(test)]
mod tests;
mod worker_handles;

use std::sync::Arc;
use std::time::Duration;

use crate::Env;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::core::{Action, Core, Limits};
pub use self::receiver::QueueOutage;
use self::receiver::{Received, Receivers};
use self::shutdown::{Due, Shutdown};
pub use self::worker_handles::WorkerHandles;
use crate::clickhouse::error_class::PauseReason;
use crate::daemon::in_flight::Settlement;
use crate::load::breaker::Breaker;
use crate::load::{Load, Outcomes};
use crate::notification::Envelopes;
use crate::notification::filter::Filter;
use crate::object::ObjectRef;
use crate::queue::{FailedEntries, Queue, QueueError, ReceiptHandle};
use crate::telemetry::health::Health;
use crate::telemetry::metrics;
use crate::telemetry::observer::Telemetry;
use crate::telemetry::trace::{self, BatchTrace, Settling};
pub use sluice_core::daemon::{core, heartbeats, in_flight};

/// The interval at which gauges and the liveness of the event loop are updated.
const TICK: Duration = Duration::from_secs(1);
/// The time for cancelled loads to clean up, and for the last settlements to be sent.
const CLEAN_UP: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub limits: Limits,
    /// Receives in flight at a time.
    pub receivers: usize,
    /// The length of a long poll.
    pub wait_time: Duration,
    /// How long batches in flight may take after a stop.
    pub grace_period: Duration,
}

/// The parts of a daemon.
pub struct Daemon<Q, L> {
    pub queue: Arc<Q>,
    pub loader: Arc<L>,
    pub handles: WorkerHandles,
    pub envelopes: Envelopes,
    pub filter: Filter,
    pub options: Options,
    pub env: Env,
}

/// Runs until `stop` is cancelled and all messages in flight are deleted or returned.
pub async fn run<Q: Queue, L: Load>(daemon: Daemon<Q, L>, stop: CancellationToken) {
    let (settle, settlements) = mpsc::unbounded_channel();
    let (report_deleted, deleted) = mpsc::unbounded_channel();
    let settler = tokio::spawn(settler::run(
        daemon.queue.clone(),
        daemon.env.clone(),
        daemon.handles.activity.clone(),
        settlements,
        report_deleted,
    ));
    let receivers = Receivers::start(&daemon, &stop);
    let mut event_loop = EventLoop::new(daemon, receivers, settle, deleted);
    event_loop.run(&stop).await;
    event_loop.end_loads().await;
    event_loop.end().await;
    if timeout(CLEAN_UP, settler).await.is_err() {
        warn!(
            "some messages were not settled in time; they reappear after their visibility timeout"
        );
    }
    info!("stopped");
}

/// Waits until `time`, or forever if there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The number of a heartbeat, and its result.
type Extended = (u64, Result<FailedEntries, QueueError>);

type Loaded = (Vec<ObjectRef>, Outcomes, BatchTrace);

/// A settlement, and the trace of which it is a part.
type Traced = (Settlement, Option<Settling>);

struct EventLoop<Q, L> {
    core: Core,
    queue: Arc<Q>,
    loader: Arc<L>,
    health: Arc<Health>,
    breaker: Arc<Breaker>,
    receivers: Receivers,
    loads: JoinSet<Loaded>,
    cancel_loads: CancellationToken,
    extensions: JoinSet<Extended>,
    settle: mpsc::UnboundedSender<Traced>,
    deleted: mpsc::UnboundedReceiver<Vec<ReceiptHandle>>,
    shutdown: Shutdown<Traced>,
}

impl<Q: Queue, L: Load> EventLoop<Q, L> {
    fn new(
        daemon: Daemon<Q, L>,
        receivers: Receivers,
        settle: mpsc::UnboundedSender<Traced>,
        deleted: mpsc::UnboundedReceiver<Vec<ReceiptHandle>>,
    ) -> Self {
        let Daemon {
            queue,
            loader,
            handles,
            envelopes,
            filter,
            options,
            env,
        } = daemon;
        let observer = Arc::new(Telemetry(handles.activity));
        Self {
            core: Core::new(options.limits, envelopes, filter, observer, env),
            queue,
            loader,
            health: handles.health,
            breaker: handles.breaker,
            receivers,
            loads: JoinSet::new(),
            cancel_loads: CancellationToken::new(),
            extensions: JoinSet::new(),
            settle,
            deleted,
            shutdown: Shutdown::new(options.wait_time, options.grace_period),
        }
    }

    /// Handles events until the shutdown has nothing left to wait for.
    async fn run(&mut self, stop: &CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // In a fixed order, so that the same events produce the same run. Messages come last:
            // there may always be another one, while the number of all other events is bounded.
            tokio::select! {
                biased;
                Some(ended) = self.loads.join_next() => self.on_load_ended(ended),
                Some(handles) = self.deleted.recv() => self.core.on_deleted(&handles),
                Some(ended) = self.extensions.join_next() => self.on_extension_ended(ended),
                () = at(self.core.next_wake()) => self.on_time(),
                _ = tick.tick() => self.on_tick(),
                () = stop.cancelled(), if !self.shutdown.has_begun() => self.on_stop(),
                () = at(self.shutdown.deadline()) => self.on_shutdown_deadline().await,
                // After the deadline that it sets: without receivers, this branch is always ready.
                ended = self.receivers.tasks.join_next(), if self.shutdown.awaits_polls() => {
                    if ended.is_none() {
                        self.shutdown.on_polls_ended(Instant::now());
                    }
                }
                Some(received) = self.receivers.messages.recv() => self.take(received),
            }
            self.after_event();
            let is_idle = self.core.is_idle() && self.loads.is_empty();
            if self.shutdown.may_end(is_idle) {
                break;
            }
        }
    }

    fn on_time(&mut self) {
        let actions = self.core.on_time(Instant::now());
        self.perform(actions);
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        self.core.on_tick(now);
        let paused = self.breaker.pause_reason().map(PauseReason::label);
        let stats = self.core.stats(now, paused);
        metrics::stats(&stats);
        self.health.holds(stats);
    }

    fn on_stop(&mut self) {
        self.shutdown.begin(Instant::now());
        info!("stopping; finishing batches in flight and returning all other messages");
        let actions = self.core.drain();
        self.perform(actions);
    }

    async fn on_shutdown_deadline(&mut self) {
        match self.shutdown.on_deadline() {
            Some(Due::EndPolls { deferred }) => {
                self.receivers.tasks.shutdown().await;
                for settlement in deferred {
                    self.settle(settlement);
                }
                while let Ok(received) = self.receivers.messages.try_recv() {
                    self.take(received);
                }
            }
            Some(Due::CancelLoads) => {
                warn!("the grace period is over; cancelling the inserts in flight");
                self.cancel_loads.cancel();
            }
            None => {}
        }
    }

    /// Performs work that any event may have made possible.
    fn after_event(&mut self) {
        self.health.beat();
        self.health.note_counts(self.core.counts());
        let now = Instant::now();
        while let Some(extension) = self.core.take_extension(now) {
            let extend = settler::extend(self.queue.clone(), extension);
            self.extensions.spawn(extend);
        }
        self.receivers.set_room(self.core.room(now));
    }

    fn take(&mut self, (messages, delivery): Received) {
        for message in messages {
            let _within = trace::message(&message.id).entered();
            let actions = self.core.on_message(&message, delivery, Instant::now());
            self.perform(actions);
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        self.perform_within(None, actions);
    }

    /// Performs actions. Those that follow from a load are a part of its trace.
    fn perform_within(&mut self, settling: Option<&Settling>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Settle(settlement) => self.settle((settlement, settling.cloned())),
                Action::Load(batch) => {
                    let trace = BatchTrace::begin(&batch, || self.core.messages_of(&batch));
                    let (loader, cancel) = (self.loader.clone(), self.cancel_loads.clone());
                    let objects = batch.objects.clone();
                    self.loads.spawn(async move {
                        // A task of its own, so that its objects are known if it panics.
                        let load = async move { loader.load(batch, cancel).await };
                        let load = tokio::spawn(trace.around(load));
                        let outcomes = load.await.unwrap_or_else(|failed| {
                            error!(error = %failed, "load task panicked; returning its messages");
                            Outcomes::new()
                        });
                        (objects, outcomes, trace)
                    });
                }
            }
        }
    }

    fn settle(&mut self, settlement: Traced) {
        if let ((Settlement::Return { .. }, _), Some(deferred)) =
            (&settlement, self.shutdown.deferred())
        {
            deferred.push(settlement);
            return;
        }
        // The settler ends only after this sender is gone.
        if self.settle.send(settlement).is_err() {
            error!("the settler has ended; messages reappear after their visibility timeout");
        }
    }

    fn on_extension_ended(&mut self, ended: Result<Extended, JoinError>) {
        match ended {
            Ok((number, result)) => self.core.on_extended(number, result, Instant::now()),
            Err(failed) => error!(
                error = %failed,
                "heartbeat task failed; its messages reappear after their visibility timeout"
            ),
        }
    }

    fn on_load_ended(&mut self, ended: Result<Loaded, JoinError>) {
        match ended {
            Ok((objects, outcomes, trace)) => {
                let settling = trace.settle(&outcomes);
                let actions = self.core.on_loaded(objects, outcomes, Instant::now());
                self.perform_within(Some(&settling), actions);
            }
            Err(failed) => error!(
                error = %failed,
                "load task failed; its messages reappear after their visibility timeout"
            ),
        }
    }

    /// Waits up to [`CLEAN_UP`] for cancelled loads, if there are any. Messages that are still in
    /// flight after that are returned.
    async fn end_loads(&mut self) {
        let until = Instant::now() + CLEAN_UP;
        while let Ok(Some(ended)) = timeout_at(until, self.loads.join_next()).await {
            self.on_load_ended(ended);
        }
        if !self.loads.is_empty() {
            warn!(
                "some inserts did not stop in time; the worker that recovers their batches fences \
                 and kills them"
            );
            self.loads.abort_all();
            let actions = self.core.return_all();
            self.perform(actions);
        }
    }

    /// Ends the heartbeats, and drops the sender of the settler, which ends it.
    async fn end(mut self) {
        self.extensions.shutdown().await;
    }
}
