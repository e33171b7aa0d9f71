//! Logs outages: a line when one begins, reminders while it lasts, and a line when it is over.

use std::time::Duration;

use tokio::time::Instant;

/// Decides which failures of an outage the log mentions, so that a long one writes few lines.
///
/// The caller writes the lines and takes its own pauses. `C` is the cause of a failure, for callers
/// that mention each change of it.
#[derive(Debug)]
pub struct OutageLog<C = ()> {
    reminder: Option<Duration>,
    current: Option<Outage<C>>,
}

#[derive(Debug)]
struct Outage<C> {
    since: Instant,
    failures: u32,
    /// The cause of the last failure.
    cause: Option<C>,
    mentioned_at: Instant,
}

/// A counted failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The number of failures in this outage so far, this one included.
    pub failures: u32,
    /// Whether it is the first of the outage, or has another cause than the one before.
    pub is_news: bool,
    /// Whether the log should mention it: it is news, or a reminder is due.
    pub is_mentioned: bool,
}

/// An outage that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    pub lasted: Duration,
    pub failures: u32,
}

impl<C: PartialEq> OutageLog<C> {
    /// Mentions an outage when it begins, and when its cause changes.
    pub fn once() -> Self {
        Self {
            reminder: None,
            current: None,
        }
    }

    /// Mentions an outage also whenever it has not been mentioned for this long.
    pub fn with_reminder(every: Duration) -> Self {
        Self {
            reminder: Some(every),
            current: None,
        }
    }

    /// Begins an outage now, without a failure, for a system that is not known to work yet.
    #[must_use]
    pub fn begun(self) -> Self {
        Self {
            current: Some(Outage::begin(Instant::now())),
            ..self
        }
    }

    /// Counts a failure. Begins an outage unless there is one.
    pub fn failed(&mut self, cause: C) -> Failure {
        let now = Instant::now();
        let outage = self.current.get_or_insert_with(|| Outage::begin(now));
        let cause = Some(cause);
        let is_news = outage.cause != cause;
        let is_due = |every: Duration| now >= outage.mentioned_at + every;
        let is_mentioned = is_news || self.reminder.is_some_and(is_due);
        if is_mentioned {
            outage.mentioned_at = now;
        }
        outage.cause = cause;
        outage.failures = outage.failures.saturating_add(1);
        Failure {
            failures: outage.failures,
            is_news,
            is_mentioned,
        }
    }

    /// Ends the outage and returns it, if there was one.
    pub fn succeeded(&mut self) -> Option<Recovery> {
        let outage = self.current.take()?;
        Some(Recovery {
            lasted: outage.since.elapsed(),
            failures: outage.failures,
        })
    }
}

impl<C> Outage<C> {
    fn begin(now: Instant) -> Self {
        Self {
            since: now,
            failures: 0,
            cause: None,
            mentioned_at: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_mentioned_at_first_and_then_once_an_interval() {
        let mut log = OutageLog::with_reminder(MINUTE);
        let mut mentioned = Vec::new();
        for second in 0..150 {
            if log.failed(()).is_mentioned {
                mentioned.push(second);
            }
            advance(SECOND).await;
        }
        assert_eq!(mentioned, [0, 60, 120]);
        let (lasted, failures) = (150 * SECOND, 150);
        assert_eq!(log.succeeded(), Some(Recovery { lasted, failures }));
    }

    #[tokio::test(start_paused = true)]
    async fn without_reminders_an_outage_is_mentioned_once() {
        let mut log = OutageLog::once();
        for _ in 0..2 {
            let first = Failure {
                failures: 1,
                is_news: true,
                is_mentioned: true,
            };
            assert_eq!(log.failed(()), first);
            advance(1000 * MINUTE).await;
            let second = Failure {
                failures: 2,
                is_news: false,
                is_mentioned: false,
            };
            assert_eq!(log.failed(()), second);
            assert!(log.succeeded().is_some());
            assert_eq!(log.succeeded(), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_cause_is_mentioned_and_postpones_the_reminder() {
        let mut log = OutageLog::with_reminder(MINUTE);
        let mut mentioned = Vec::new();
        for (second, cause) in "aaabbbab".chars().enumerate() {
            let failure = log.failed(cause);
            assert_eq!(failure.is_news, failure.is_mentioned, "{second}");
            if failure.is_mentioned {
                mentioned.push(second);
            }
            advance(SECOND).await;
        }
        assert_eq!(mentioned, [0, 3, 6, 7]);
        advance(MINUTE - 2 * SECOND).await;
        assert!(!log.failed('b').is_mentioned);
        advance(SECOND).await;
        let reminder = log.failed('b');
        assert!(reminder.is_mentioned && !reminder.is_news);
    }

    #[tokio::test(start_paused = true)]
    async fn a_system_not_known_to_work_yet_counts_as_an_outage_without_failures() {
        let mut log = OutageLog::<()>::once().begun();
        advance(MINUTE).await;
        let (lasted, failures) = (MINUTE, 0);
        assert_eq!(log.succeeded(), Some(Recovery { lasted, failures }));
        let mut log = OutageLog::once().begun();
        assert!(log.failed(()).is_mentioned);
    }
}
