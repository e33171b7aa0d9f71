//! Long polls the queue, while there is room and ClickHouse is well.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Env;
use crate::daemon::heartbeats::Delivery;
use crate::load::breaker::Breaker;
use crate::queue::{MAX_BATCH, Message, Queue, QueueError};
use crate::telemetry::health::Health;
use crate::telemetry::metrics;
use sluice_core::backoff::Backoff;

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) env: Env,
    /// From 0. A receiver polls while there is room for more receives than this.
    pub(super) number: usize,
    pub(super) wait_time: Duration,
    pub(super) visibility: Duration,
}

/// What one receive brought.
pub(super) type Received = (Vec<Message>, Delivery);

/// After a failed receive.
const BACKOFF: Backoff = Backoff {
    min: Duration::from_secs(1),
    max: Duration::from_secs(30),
};
/// A queue that stays away is mentioned again this often.
const REMINDER: Duration = Duration::from_secs(60);

pub(super) async fn run<Q: Queue>(
    queue: Arc<Q>,
    breaker: Arc<Breaker>,
    health: Arc<Health>,
    mut room: watch::Receiver<usize>,
    messages: mpsc::Sender<Received>,
    options: Options,
    stop: CancellationToken,
) {
    let mut outage = Outage::new(options.env);
    loop {
        let may_receive = async {
            breaker.closed().await;
            // An error means that the loop is gone, and with it this task.
            room.wait_for(|room| *room > options.number).await.is_ok()
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            room = may_receive => if !room { return },
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
                // Before the messages wait for the loop.
                let (wait, visibility) = (options.wait_time, options.visibility);
                let delivery = Delivery::of_receive(sent_at, Instant::now(), wait, visibility);
                if !received.is_empty() && messages.send((received, delivery)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                metrics::sqs_failures("receive", 1);
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

/// A series of failures: how long to pause, and when to speak of it.
#[derive(Default)]
pub struct Outage {
    env: Env,
    failures: u32,
    since: Option<Instant>,
    mentioned: Option<Instant>,
}

impl Outage {
    /// Returns one in which nothing has failed yet.
    pub fn new(env: Env) -> Self {
        Self {
            env,
            ..Self::default()
        }
    }

    /// Counts a failure, speaks of it now and then, and returns how long to wait.
    pub fn note(&mut self, error: &QueueError) -> Duration {
        self.failures += 1;
        let now = Instant::now();
        self.since.get_or_insert(now);
        if self
            .mentioned
            .is_none_or(|mentioned| now >= mentioned + REMINDER)
        {
            self.mentioned = Some(now);
            let advice = match error {
                QueueError::Denied(_) => ": check `queue.url` and the worker's rights",
                QueueError::Transient(_) | QueueError::Gone(_) => "",
            };
            warn!(
                failures = self.failures,
                error = %error,
                "failed to receive from SQS; retrying{advice}"
            );
        }
        BACKOFF.pause(self.failures, self.env.fraction())
    }

    fn end(&mut self) {
        if let Some(since) = self.since {
            let away_seconds = since.elapsed().as_secs();
            info!(
                away_seconds,
                failures = self.failures,
                "the queue answers again"
            );
        }
        *self = Self::new(self.env.clone());
    }
}
