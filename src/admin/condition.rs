//! The worker's health, as a word and a sentence.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::WorkerHandles;
use crate::clickhouse::error_class::PauseReason;
use crate::telemetry::health::QueueConnectivity;

/// If new messages wait longer than this in the queue, the worker is behind.
const LONG_WAIT: Duration = Duration::from_secs(60);
/// If nothing has been loaded for this long while batches are in flight, something is wrong.
const LONG_IDLE: Duration = Duration::from_secs(300);
/// If a larger fraction of the lines is rejected, their producer has probably changed something.
const MANY_REJECTED: f64 = 0.02;

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Condition {
    word: HealthState,
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum HealthState {
    Starting,
    Well,
    /// It loads, but not as fast as objects are announced.
    Behind,
    /// It may load, but an operator should look.
    Attention,
    Paused,
    Stopping,
    Stuck,
}

/// Everything that determines the health.
#[derive(Debug)]
pub(super) struct HealthInputs {
    /// For how long the event loop has been stuck.
    pub(super) stuck_for: Option<Duration>,
    pub(super) stopping: bool,
    /// The reason why intake is paused, and its message.
    pub(super) pause: Option<(PauseReason, String)>,
    pub(super) queue: QueueConnectivity,
    /// The median of how long new messages had been in the queue.
    pub(super) wait: Option<Duration>,
    /// For how long nothing has been loaded although batches are in flight.
    pub(super) unloaded_for: Option<Duration>,
    /// Messages in the dead-letter queue.
    pub(super) dead_letters: u64,
    /// The fraction of the lines of the last 15 minutes that was rejected.
    pub(super) rejected_ratio: f64,
}

impl HealthInputs {
    pub(super) fn of(handles: &WorkerHandles, stopping: bool, now: Instant) -> Self {
        let WorkerHandles {
            health,
            breaker,
            activity,
        } = handles;
        let waits = activity.waits(now);
        Self {
            stuck_for: health.stuck_for(),
            stopping,
            pause: breaker.pause_reason().zip(breaker.reason()),
            queue: health.queue(),
            wait: waits.map(|waits| Duration::from_secs_f64(waits.p50)),
            unloaded_for: activity.unloaded_for(now),
            dead_letters: health
                .depth()
                .and_then(|depth| depth.dead_letters)
                .unwrap_or_default(),
            rejected_ratio: activity.rejected_ratio().unwrap_or_default(),
        }
    }

    /// Returns what an operator should look at, as whole sentences.
    pub(super) fn concerns(&self) -> Vec<String> {
        let mut concerns = Vec::new();
        if let Some(idle) = self.unloaded_for.filter(|idle| *idle >= LONG_IDLE) {
            let idle = in_seconds(idle);
            concerns.push(format!(
                "Nothing has been loaded for {idle}, although batches are in flight; see the log \
                 for their errors."
            ));
        }
        if self.dead_letters > 0 {
            concerns.push(format!(
                "The dead-letter queue contains about {} messages; `sluice dlq list` shows the \
                 reasons.",
                self.dead_letters
            ));
        }
        if self.rejected_ratio > MANY_REJECTED {
            concerns.push(format!(
                "{:.1} % of the lines of the last 15 minutes were rejected; `sluice rejects list` \
                 shows the reasons.",
                self.rejected_ratio * 100.0
            ));
        }
        concerns
    }

    fn delay(&self) -> Option<String> {
        let wait = in_seconds(self.wait.filter(|wait| *wait > LONG_WAIT)?);
        Some(format!("New messages waited {wait} in the queue (median)."))
    }
}

fn in_seconds(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

impl Condition {
    pub(super) fn of(inputs: HealthInputs) -> Self {
        let (word, reason) = Self::judge(inputs);
        Self { word, reason }
    }

    fn judge(inputs: HealthInputs) -> (HealthState, String) {
        if let Some(silent) = inputs.stuck_for {
            let seconds = silent.as_secs();
            let reason = format!("The event loop has been stuck for {seconds} s.");
            return (HealthState::Stuck, reason);
        }
        if inputs.stopping {
            let reason = "Batches in flight are being finished; all other messages are returned.";
            return (HealthState::Stopping, reason.to_owned());
        }
        let concerns = inputs.concerns();
        let delay = inputs.delay();
        match (inputs.pause, inputs.queue) {
            (Some((reason, why)), _) if reason != PauseReason::Starting => {
                (HealthState::Paused, why)
            }
            (_, QueueConnectivity::Away(why)) => (
                HealthState::Paused,
                format!("No messages are received: {why}"),
            ),
            (Some((_, why)), _) => (HealthState::Starting, why),
            (None, queue @ QueueConnectivity::NotYet) => {
                (HealthState::Starting, queue.away().unwrap_or_default())
            }
            (None, QueueConnectivity::Answers) if !concerns.is_empty() => {
                let all: Vec<_> = concerns.into_iter().chain(delay).collect();
                (HealthState::Attention, all.join(" "))
            }
            (None, QueueConnectivity::Answers) => match delay {
                Some(delay) => (HealthState::Behind, delay),
                None => (
                    HealthState::Well,
                    "Objects are loaded as they are announced.".to_owned(),
                ),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: HealthInputs = HealthInputs {
        stuck_for: None,
        stopping: false,
        pause: None,
        queue: QueueConnectivity::Answers,
        wait: None,
        unloaded_for: None,
        dead_letters: 0,
        rejected_ratio: 0.0,
    };

    #[test]
    fn the_gravest_sign_decides() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let away = || QueueConnectivity::Away("no route".to_owned());
        let pause = |class| Some((class, "refused".to_owned()));
        let cases = [
            (WELL, HealthState::Well, "as they are announced"),
            (
                HealthInputs {
                    wait: seconds(60),
                    ..WELL
                },
                HealthState::Well,
                "",
            ),
            (
                HealthInputs {
                    wait: seconds(61),
                    ..WELL
                },
                HealthState::Behind,
                "1m 1s",
            ),
            (
                HealthInputs {
                    unloaded_for: seconds(299),
                    rejected_ratio: 0.02,
                    ..WELL
                },
                HealthState::Well,
                "",
            ),
            (
                HealthInputs {
                    unloaded_for: seconds(300),
                    wait: seconds(61),
                    ..WELL
                },
                HealthState::Attention,
                "for 5m, although batches are in flight; see the log for their errors. New \
                 messages waited 1m 1s",
            ),
            (
                HealthInputs {
                    dead_letters: 1,
                    ..WELL
                },
                HealthState::Attention,
                "about 1 messages",
            ),
            (
                HealthInputs {
                    rejected_ratio: 0.25,
                    ..WELL
                },
                HealthState::Attention,
                "25.0 % of the lines",
            ),
            (
                HealthInputs {
                    dead_letters: 1,
                    pause: pause(PauseReason::Schema),
                    ..WELL
                },
                HealthState::Paused,
                "refused",
            ),
            (
                HealthInputs {
                    queue: QueueConnectivity::NotYet,
                    ..WELL
                },
                HealthState::Starting,
                "not been reached",
            ),
            (
                HealthInputs {
                    pause: pause(PauseReason::Starting),
                    ..WELL
                },
                HealthState::Starting,
                "refused",
            ),
            (
                HealthInputs {
                    pause: pause(PauseReason::Schema),
                    wait: seconds(61),
                    ..WELL
                },
                HealthState::Paused,
                "refused",
            ),
            (
                HealthInputs {
                    queue: away(),
                    ..WELL
                },
                HealthState::Paused,
                "no route",
            ),
            (
                HealthInputs {
                    queue: away(),
                    pause: pause(PauseReason::Starting),
                    ..WELL
                },
                HealthState::Paused,
                "no route",
            ),
            (
                HealthInputs {
                    stopping: true,
                    pause: pause(PauseReason::Schema),
                    ..WELL
                },
                HealthState::Stopping,
                "are returned",
            ),
            (
                HealthInputs {
                    stuck_for: seconds(31),
                    stopping: true,
                    ..WELL
                },
                HealthState::Stuck,
                "31 s",
            ),
        ];
        for (inputs, word, reason) in cases {
            let shown = format!("{inputs:?}");
            let condition = Condition::of(inputs);
            assert_eq!(condition.word, word, "{shown}");
            assert!(condition.reason.contains(reason), "{condition:?}");
        }
    }
}
