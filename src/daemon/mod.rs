//! The daemon: the only event loop.
//!
//! Receivers, loads, settlements and heartbeats run as tasks of their own; what they find comes
//! here as events. The loop itself waits for nothing else, so that it always answers.

pub mod depths;
mod receiver;
mod settler;
#[cfg(test)]
mod tests;
mod vitals;

use std::sync::Arc;
use std::time::Duration;

use crate::Env;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::core::{Action, Core, Limits};
pub use self::receiver::QueueOutage;
use self::receiver::Received;
pub use self::vitals::Vitals;
use crate::clickhouse::error_class::PauseReason;
use crate::daemon::in_flight::Settlement;
use crate::load::{Load, Outcomes};
use crate::notification::Envelopes;
use crate::notification::filter::Filter;
use crate::object::ObjectRef;
use crate::queue::{FailedEntries, Queue, QueueError};
use crate::telemetry::metrics;
use crate::telemetry::observer::Telemetry;
use crate::telemetry::trace::{self, BatchTrace, Settling};
pub use sluice_core::daemon::{core, heartbeats, in_flight};

/// Gauges and the sign of life are renewed this often.
const TICK: Duration = Duration::from_secs(1);
/// Long polls that are under way when the worker is told to stop have their own time and this much
/// longer to end. A poll that was cut short would leave the messages hidden that it is just being
/// sent, and the queue may go on with it, so that it takes what is given back. For the same reason
/// what is given back waits for the end of the polls.
const LATE_ANSWER: Duration = Duration::from_secs(5);
/// Loads that are cancelled have this long to clean up, and settlements to be sent.
const CLEAN_UP: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub limits: Limits,
    /// Receives in flight.
    pub receivers: usize,
    /// Long poll.
    pub wait_time: Duration,
    /// After being told to stop, batches in flight have this long to end.
    pub grace_period: Duration,
}

/// A daemon that is to run.
pub struct Daemon<Q, L> {
    pub queue: Arc<Q>,
    pub loader: Arc<L>,
    pub vitals: Vitals,
    pub envelopes: Envelopes,
    pub filter: Filter,
    pub options: Options,
    pub env: Env,
}

/// Runs until `stop` is cancelled and what was held is settled or given back.
pub async fn run<Q: Queue, L: Load>(daemon: Daemon<Q, L>, stop: CancellationToken) {
    let Daemon {
        queue,
        loader,
        vitals: Vitals {
            health,
            breaker,
            activity,
        },
        envelopes,
        filter,
        options,
        env,
    } = daemon;
    let (settle, settlements) = mpsc::unbounded_channel();
    let (report_deleted, mut deleted) = mpsc::unbounded_channel();
    let settler = settler::run(
        queue.clone(),
        env.clone(),
        activity.clone(),
        settlements,
        report_deleted,
    );
    let settler = tokio::spawn(settler);
    // A little room only: what waits here gets no heartbeats.
    let (send_messages, mut messages) = mpsc::channel(options.receivers);
    let room = watch::Sender::new(options.receivers);
    let mut receivers = JoinSet::new();
    for number in 0..options.receivers {
        receivers.spawn(receiver::run(
            queue.clone(),
            breaker.clone(),
            health.clone(),
            room.subscribe(),
            send_messages.clone(),
            receiver::Options {
                env: env.clone(),
                number,
                wait_time: options.wait_time,
                visibility: options.limits.visibility.timeout,
            },
            stop.clone(),
        ));
    }
    drop(send_messages);

    let observer = Arc::new(Telemetry(activity));
    let mut daemon = EventLoop {
        core: Core::new(options.limits, envelopes, filter, observer, env),
        loader,
        loads: JoinSet::new(),
        cancel_loads: CancellationToken::new(),
        settle,
        held_back: None,
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut extensions = JoinSet::new();
    let mut stopping = false;
    let mut last_polls = None;
    let mut give_up = None;
    loop {
        let wake = daemon.core.next_wake();
        // In this order, so that the same events make the same run. Messages come last: there may always
        // be one, and of all others there are only as many as were asked for.
        tokio::select! {
            biased;
            Some(ended) = daemon.loads.join_next() => daemon.on_load_ended(ended),
            Some(handles) = deleted.recv() => daemon.core.on_deleted(&handles),
            Some(ended) = extensions.join_next() => daemon.on_extension_ended(ended),
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                let actions = daemon.core.on_time(Instant::now());
                daemon.perform(actions);
            }
            _ = tick.tick() => {
                let now = Instant::now();
                daemon.core.on_tick(now);
                let paused = breaker.pause_reason().map(PauseReason::label);
                let holdings = daemon.core.holdings(now, paused);
                metrics::holdings(&holdings);
                health.holds(holdings);
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                let last_answer = options.wait_time + LATE_ANSWER;
                last_polls = Some(Instant::now() + last_answer.min(options.grace_period));
                give_up = Some(Instant::now() + options.grace_period);
                info!("stopping: batches in flight are finished, the rest goes back to the queue");
                daemon.held_back = Some(Vec::new());
                let actions = daemon.core.drain();
                daemon.perform(actions);
            }
            () = sleep_until(last_polls.unwrap_or_else(Instant::now)), if last_polls.is_some() => {
                last_polls = None;
                receivers.shutdown().await;
                while let Ok(received) = messages.try_recv() {
                    daemon.take(received);
                }
                daemon.give_back();
            }
            // Behind the timer that it sets: of no receivers, the end is there at once, and again.
            ended = receivers.join_next(), if last_polls.is_some() => {
                if ended.is_none() {
                    last_polls = Some(Instant::now());
                }
            }
            () = sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => {
                warn!("the grace period is over: ending the inserts in flight");
                give_up = None;
                daemon.cancel_loads.cancel();
            }
            received = messages.recv(), if !messages.is_closed() || !messages.is_empty() => {
                if let Some(received) = received {
                    daemon.take(received);
                }
            }
        }
        health.beat();
        let now = Instant::now();
        while let Some(extension) = daemon.core.take_extension(now) {
            extensions.spawn(settler::extend(queue.clone(), extension));
        }
        room.send_if_modified(|room| {
            let before = std::mem::replace(room, daemon.core.room(now).min(options.receivers));
            before != *room
        });
        if !stopping || last_polls.is_some() {
            continue;
        }
        if daemon.core.is_idle() && daemon.loads.is_empty() {
            break;
        }
        if daemon.cancel_loads.is_cancelled() {
            daemon.end_loads().await;
            break;
        }
    }
    drop(daemon);
    extensions.shutdown().await;
    if timeout(CLEAN_UP, settler).await.is_err() {
        warn!(
            "some messages were not settled in time: they come back after their visibility timeout"
        );
    }
    info!("stopped");
}

/// The number of a heartbeat, and what came of it.
type Extended = (u64, Result<FailedEntries, QueueError>);

type Loaded = (Vec<ObjectRef>, Outcomes, BatchTrace);

/// What is to be done with a message, and the trace that this is a part of.
type Traced = (Settlement, Option<Settling>);

struct EventLoop<L> {
    core: Core,
    loader: Arc<L>,
    loads: JoinSet<Loaded>,
    cancel_loads: CancellationToken,
    settle: mpsc::UnboundedSender<Traced>,
    /// What is given back while the last long polls are under way.
    held_back: Option<Vec<Traced>>,
}

impl<L: Load> EventLoop<L> {
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

    /// What follows from a load is a part of its trace.
    fn perform_within(&mut self, settling: Option<&Settling>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Settle(settlement) => self.settle((settlement, settling.cloned())),
                Action::Load(batch) => {
                    let trace = BatchTrace::begin(&batch, || self.core.messages_of(&batch));
                    let (loader, cancel) = (self.loader.clone(), self.cancel_loads.clone());
                    let objects = batch.objects.clone();
                    self.loads.spawn(async move {
                        // A task of its own, so that a panic still says which objects it had.
                        let load = async move { loader.load(batch, cancel).await };
                        let load = tokio::spawn(trace.around(load));
                        let outcomes = load.await.unwrap_or_else(|failed| {
                            error!(error = %failed, "a load died; its objects go back to the queue");
                            Outcomes::new()
                        });
                        (objects, outcomes, trace)
                    });
                }
            }
        }
    }

    fn settle(&mut self, settlement: Traced) {
        if let ((Settlement::Release { .. }, _), Some(held_back)) =
            (&settlement, &mut self.held_back)
        {
            held_back.push(settlement);
            return;
        }
        // The settler ends only after this sender is gone.
        if self.settle.send(settlement).is_err() {
            error!("the settler has ended; messages come back by themselves");
        }
    }

    fn give_back(&mut self) {
        for settlement in self.held_back.take().unwrap_or_default() {
            self.settle(settlement);
        }
    }

    fn on_extension_ended(&mut self, ended: Result<Extended, JoinError>) {
        match ended {
            Ok((number, result)) => self.core.on_extended(number, result, Instant::now()),
            Err(failed) => error!(
                error = %failed,
                "a heartbeat was lost; its messages come back after their visibility timeout"
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
                "a load was lost; its messages come back after their visibility timeout"
            ),
        }
    }

    /// Loads were told to end: what they leave goes back to the queue.
    async fn end_loads(&mut self) {
        let until = Instant::now() + CLEAN_UP;
        while let Ok(Some(ended)) = timeout_at(until, self.loads.join_next()).await {
            self.on_load_ended(ended);
        }
        if !self.loads.is_empty() {
            warn!("some inserts do not end; the ledger keeps what they are still doing apart");
            self.loads.abort_all();
            let actions = self.core.let_go();
            self.perform(actions);
        }
    }
}
