//! Long-polls the queue while there is room and the breaker is closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Daemon;
use crate::Env;
use crate::daemon::heartbeats::Delivery;
use crate::load::breaker::Breaker;
use crate::queue::{MAX_BATCH, Message, Queue, QueueError};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::{self, SqsOperation};
use crate::util::outage::{OutageLog, Recovery};
use sluice_core::backoff::Backoff;

/// The receivers of a daemon, and the messages that they receive.
pub(super) struct Receivers {
    pub(super) tasks: JoinSet<()>,
    pub(super) messages: mpsc::Receiver<Received>,
    /// Whether each receiver may poll. Each has a channel of its own: Tokio wakes those that wait
    /// for the same one in random order, and the same events must lead to the same run.
    may_poll: Vec<watch::Sender<bool>>,
}

impl Receivers {
    /// Starts the receivers. When `stop` is cancelled, they end as soon as their polls have
    /// returned.
    pub(super) fn start<Q: Queue, L>(daemon: &Daemon<Q, L>, stop: &CancellationToken) -> Self {
        let options = daemon.options;
        // A short channel: messages that wait here get no heartbeats.
        let (send_messages, messages) = mpsc::channel(options.receivers);
        let mut may_poll = Vec::new();
        let mut tasks = JoinSet::new();
        for _ in 0..options.receivers {
            let (set_may_poll, may_poll_now) = watch::channel(true);
            may_poll.push(set_may_poll);
            tasks.spawn(run(
                daemon.queue.clone(),
                daemon.handles.breaker.clone(),
                daemon.handles.health.clone(),
                may_poll_now,
                send_messages.clone(),
                Options {
                    env: daemon.env.clone(),
                    wait_time: options.wait_time,
                    visibility: options.limits.visibility.timeout,
                },
                stop.clone(),
            ));
        }
        Self {
            tasks,
            messages,
            may_poll,
        }
    }

    /// Sets how many receives may be in flight.
    pub(super) fn set_room(&self, receives: usize) {
        for (number, may_poll) in self.may_poll.iter().enumerate() {
            let may = number < receives;
            may_poll.send_if_modified(|before| std::mem::replace(before, may) != may);
        }
    }
}

#[derive(Clone, Debug)]
struct Options {
    env: Env,
    wait_time: Duration,
    visibility: Duration,
}

/// The messages of one receive.
pub(super) type Received = (Vec<Message>, Delivery);

/// The pauses after failed receives.
const BACKOFF: Backoff = Backoff {
    min: Duration::from_secs(1),
    max: Duration::from_secs(30),
};
/// The interval at which a lasting outage of the queue is logged again.
const REMINDER: Duration = Duration::from_secs(60);

async fn run<Q: Queue>(
    queue: Arc<Q>,
    breaker: Arc<Breaker>,
    health: Arc<Health>,
    mut may_poll: watch::Receiver<bool>,
    messages: mpsc::Sender<Received>,
    options: Options,
    stop: CancellationToken,
) {
    let mut outage = QueueOutage::new(options.env);
    loop {
        let may_receive = async {
            breaker.closed().await;
            // An error means that the event loop is gone: this task also ends.
            may_poll.wait_for(|may| *may).await.is_ok()
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            is_running = may_receive => if !is_running { return },
        }
        let sent_at = Instant::now();
        match queue
            .receive(MAX_BATCH, options.wait_time, options.visibility)
            .await
        {
            Ok(received) => {
                outage.end();
                health.queue_answers();
                metrics::messages_received(received.len());
                // Measured before the messages wait for the loop.
                let (wait, visibility) = (options.wait_time, options.visibility);
                let delivery = Delivery::of_receive(sent_at, Instant::now(), wait, visibility);
                if !received.is_empty() && messages.send((received, delivery)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                metrics::sqs_failures(SqsOperation::Receive, 1);
                health.queue_fails(error.to_string());
                let pause = outage.note(&error);
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

/// An outage of the queue: decides when it is logged, and when to retry.
pub struct QueueOutage {
    log: OutageLog,
    env: Env,
}

impl QueueOutage {
    /// Creates a state in which nothing has failed yet.
    pub fn new(env: Env) -> Self {
        let log = OutageLog::with_reminder(REMINDER);
        Self { log, env }
    }

    /// Counts a failure, logs it unless that would be too often, and returns how long to wait.
    pub fn note(&mut self, error: &QueueError) -> Duration {
        let failure = self.log.failed(());
        if failure.is_mentioned {
            let advice = match error {
                QueueError::Denied(_) => "; check `queue.url` and the worker's IAM permissions",
                QueueError::Transient(_) | QueueError::Gone(_) => "",
            };
            warn!(
                failures = failure.failures,
                error = %error,
                "failed to receive from SQS; retrying{advice}"
            );
        }
        BACKOFF.pause(failure.failures, self.env.fraction())
    }

    fn end(&mut self) {
        if let Some(Recovery { lasted, failures }) = self.log.succeeded() {
            info!(
                away_seconds = lasted.as_secs(),
                failures, "SQS has recovered; receiving resumed"
            );
        }
    }
}
