//! How the worker is, in a word and a sentence.

use std::time::Duration;

use serde::Serialize;

use super::health::Contact;
use crate::load::breaker::STARTING;

/// New messages that wait longer than this in the queue mean that the worker is behind.
const LONG_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Condition {
    word: Word,
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Starting,
    Well,
    /// It loads, and not as fast as objects are announced.
    Behind,
    Paused,
    Stopping,
    Stuck,
}

/// What decides it.
#[derive(Debug)]
pub(super) struct Signs {
    /// Since when the event loop has been stuck.
    pub(super) stuck_for: Option<Duration>,
    pub(super) stopping: bool,
    /// Why intake is paused: its class and the reason.
    pub(super) pause: Option<(&'static str, String)>,
    pub(super) queue: Contact,
    /// How long new messages had been in the queue: the median.
    pub(super) wait: Option<Duration>,
}

impl Condition {
    pub(super) fn of(signs: Signs) -> Self {
        let (word, reason) = Self::judge(signs);
        Self { word, reason }
    }

    fn judge(signs: Signs) -> (Word, String) {
        if let Some(silent) = signs.stuck_for {
            let seconds = silent.as_secs();
            let reason = format!("The event loop has been stuck for {seconds} s.");
            return (Word::Stuck, reason);
        }
        if signs.stopping {
            let reason = "What is in flight is finished, the rest goes back to the queue.";
            return (Word::Stopping, reason.to_owned());
        }
        match (signs.pause, signs.queue) {
            (Some((class, why)), _) if class != STARTING => (Word::Paused, why),
            (_, Contact::Away(why)) => {
                (Word::Paused, format!("Nothing comes from the queue: {why}"))
            }
            (Some((_, why)), _) => (Word::Starting, why),
            (None, queue @ Contact::NotYet) => (Word::Starting, queue.away().unwrap_or_default()),
            (None, Contact::Answers) => Self::pace(signs.wait),
        }
    }

    fn pace(wait: Option<Duration>) -> (Word, String) {
        match wait.filter(|wait| *wait > LONG_WAIT) {
            Some(wait) => {
                let wait = humantime::format_duration(Duration::from_secs(wait.as_secs()));
                let reason = format!("New messages wait {wait} in the queue, by the median.");
                (Word::Behind, reason)
            }
            None => (
                Word::Well,
                "Objects are loaded as they are announced.".to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Signs = Signs {
        stuck_for: None,
        stopping: false,
        pause: None,
        queue: Contact::Answers,
        wait: None,
    };

    #[test]
    fn the_gravest_sign_decides() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let away = || Contact::Away("no route".to_owned());
        let pause = |class| Some((class, "refused".to_owned()));
        let cases = [
            (WELL, Word::Well, "as they are announced"),
            (
                Signs {
                    wait: seconds(60),
                    ..WELL
                },
                Word::Well,
                "",
            ),
            (
                Signs {
                    wait: seconds(61),
                    ..WELL
                },
                Word::Behind,
                "1m 1s",
            ),
            (
                Signs {
                    queue: Contact::NotYet,
                    ..WELL
                },
                Word::Starting,
                "not been reached",
            ),
            (
                Signs {
                    pause: pause(STARTING),
                    ..WELL
                },
                Word::Starting,
                "refused",
            ),
            (
                Signs {
                    pause: pause("schema"),
                    wait: seconds(61),
                    ..WELL
                },
                Word::Paused,
                "refused",
            ),
            (
                Signs {
                    queue: away(),
                    ..WELL
                },
                Word::Paused,
                "no route",
            ),
            (
                Signs {
                    queue: away(),
                    pause: pause(STARTING),
                    ..WELL
                },
                Word::Paused,
                "no route",
            ),
            (
                Signs {
                    stopping: true,
                    pause: pause("schema"),
                    ..WELL
                },
                Word::Stopping,
                "goes back",
            ),
            (
                Signs {
                    stuck_for: seconds(31),
                    stopping: true,
                    ..WELL
                },
                Word::Stuck,
                "31 s",
            ),
        ];
        for (signs, word, reason) in cases {
            let shown = format!("{signs:?}");
            let condition = Condition::of(signs);
            assert_eq!(condition.word, word, "{shown}");
            assert!(condition.reason.contains(reason), "{condition:?}");
        }
    }
}
