//! Logs a period in which heartbeats fall behind: once at its start, and once at its end with the
//! number of messages that were missed.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::queue::QueueError;

#[derive(Debug, Default)]
pub(super) struct Spell {
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    began: Instant,
    last_sign: Instant,
    missed: u64,
}

impl Spell {
    /// Records that a deadline is close and its message has not been extended.
    pub(super) fn is_behind(&mut self, in_flight: usize, request: Duration, now: Instant) {
        if self.trouble.is_none() {
            warn!(
                in_flight,
                request_seconds = request.as_secs_f64(),
                "heartbeats are falling behind; intake is paused until they catch up. Give the \
                 worker more CPU, raise `queue.visibility_timeout`, or lower `queue.max_held`"
            );
        }
        self.sign(now);
    }

    /// Records that a message was not extended in time.
    pub(super) fn missed(&mut self, error: Option<&QueueError>, now: Instant) {
        let trouble = self.sign(now);
        trouble.missed += 1;
        if trouble.missed == 1 {
            let error = error.map(tracing::field::display);
            warn!(
                error,
                "failed to extend the visibility of a message in time; it will be redelivered, \
                 which counts towards `maxReceiveCount`. Give the worker more CPU, or raise \
                 `queue.visibility_timeout`"
            );
        }
    }

    /// Records that an extension failed, so that a period that has begun does not end yet.
    pub(super) fn failed_again(&mut self, now: Instant) {
        if let Some(trouble) = &mut self.trouble {
            trouble.last_sign = now;
        }
    }

    /// Ends the period once there has been no sign of trouble for `quiet`.
    pub(super) fn tick(&mut self, quiet: Duration, now: Instant) {
        let Some(trouble) = &self.trouble else {
            return;
        };
        if now - trouble.last_sign >= quiet {
            info!(
                seconds = (trouble.last_sign - trouble.began).as_secs(),
                missed = trouble.missed,
                "heartbeats have caught up"
            );
            self.trouble = None;
        }
    }

    fn sign(&mut self, now: Instant) -> &mut Trouble {
        let trouble = self.trouble.get_or_insert(Trouble {
            began: now,
            last_sign: now,
            missed: 0,
        });
        trouble.last_sign = now;
        trouble
    }
}
