//! The phases of a shutdown: what it waits for, until when, and what follows.
//!
//! It is pure: time is an argument, and actions are returned, not performed.

use std::time::Duration;

use tokio::time::Instant;

/// At a stop, long polls in flight have their wait time plus this long to end. If a poll were
/// cancelled, messages on their way to it would stay hidden, and the queue could continue to serve
/// it and hide messages that have just been returned. For the same reason, returns are deferred
/// until the polls have ended.
const LATE_ANSWER: Duration = Duration::from_secs(5);

/// The state of a shutdown. `T` is the return of a message.
#[derive(Debug)]
pub(super) struct Shutdown<T> {
    last_answer: Duration,
    grace_period: Duration,
    phase: Phase<T>,
}

/// The phases, in their order.
#[derive(Debug)]
enum Phase<T> {
    Running,
    /// The last long polls are in flight. They have no more time than the loads.
    LastPolls {
        until: Instant,
        grace_ends: Instant,
        /// In the order in which they are to be performed.
        deferred: Vec<T>,
    },
    /// The loads that had begun are in flight.
    LastLoads {
        grace_ends: Instant,
    },
    /// The loads have been cancelled.
    Cancelled,
}

/// The action that is due at a deadline.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due<T> {
    /// End the polls that are still in flight, then perform these returns.
    EndPolls { deferred: Vec<T> },
    /// The grace period is over: cancel the loads.
    CancelLoads,
}

impl<T> Shutdown<T> {
    /// Creates a shutdown that has not begun. `wait_time` is the length of a long poll,
    /// `grace_period` the time that the loads have.
    pub(super) fn new(wait_time: Duration, grace_period: Duration) -> Self {
        Self {
            last_answer: wait_time + LATE_ANSWER,
            grace_period,
            phase: Phase::Running,
        }
    }

    /// Begins the shutdown: from now on, only the last polls receive messages.
    pub(super) fn begin(&mut self, now: Instant) {
        self.phase = Phase::LastPolls {
            until: now + self.last_answer.min(self.grace_period),
            grace_ends: now + self.grace_period,
            deferred: Vec::new(),
        };
    }

    pub(super) fn has_begun(&self) -> bool {
        !matches!(self.phase, Phase::Running)
    }

    pub(super) fn awaits_polls(&self) -> bool {
        matches!(self.phase, Phase::LastPolls { .. })
    }

    /// Returns the list of deferred returns while returns must wait for the end of the polls.
    pub(super) fn deferred(&mut self) -> Option<&mut Vec<T>> {
        match &mut self.phase {
            Phase::LastPolls { deferred, .. } => Some(deferred),
            Phase::Running | Phase::LastLoads { .. } | Phase::Cancelled => None,
        }
    }

    /// Records that the last polls have ended: they need no more time.
    pub(super) fn on_polls_ended(&mut self, now: Instant) {
        if let Phase::LastPolls { until, .. } = &mut self.phase {
            *until = now;
        }
    }

    /// Returns the time at which [`Shutdown::on_deadline`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::LastPolls { until, .. } => Some(until),
            Phase::LastLoads { grace_ends } => Some(grace_ends),
            Phase::Running | Phase::Cancelled => None,
        }
    }

    /// Enters the next phase, and returns the action that is due.
    pub(super) fn on_deadline(&mut self) -> Option<Due<T>> {
        match std::mem::replace(&mut self.phase, Phase::Cancelled) {
            Phase::LastPolls {
                grace_ends,
                deferred,
                ..
            } => {
                self.phase = Phase::LastLoads { grace_ends };
                Some(Due::EndPolls { deferred })
            }
            Phase::LastLoads { .. } => Some(Due::CancelLoads),
            other @ (Phase::Running | Phase::Cancelled) => {
                self.phase = other;
                None
            }
        }
    }

    /// Returns whether nothing is left to wait for. `is_idle` means that no messages and no loads
    /// are in flight.
    pub(super) fn may_end(&self, is_idle: bool) -> bool {
        match self.phase {
            Phase::Running | Phase::LastPolls { .. } => false,
            Phase::LastLoads { .. } => is_idle,
            Phase::Cancelled => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn begun(wait_time: Duration, grace_period: Duration) -> (Shutdown<u8>, Instant) {
        let mut shutdown = Shutdown::new(wait_time, grace_period);
        let now = Instant::now();
        shutdown.begin(now);
        (shutdown, now)
    }

    #[test]
    fn nothing_is_due_and_nothing_ends_before_a_stop() {
        let mut shutdown = Shutdown::<u8>::new(SECOND, SECOND);
        shutdown.on_polls_ended(Instant::now());
        assert_eq!(shutdown.deadline(), None);
        assert_eq!(shutdown.on_deadline(), None);
        assert_eq!(shutdown.deferred(), None);
        assert!(!shutdown.has_begun() && !shutdown.awaits_polls());
        assert!(!shutdown.may_end(true));
    }

    #[test]
    fn the_polls_end_and_then_the_loads() {
        let (mut shutdown, began) = begun(20 * SECOND, 60 * SECOND);
        assert!(shutdown.has_begun() && shutdown.awaits_polls());
        assert_eq!(shutdown.deadline(), Some(began + 20 * SECOND + LATE_ANSWER));
        assert!(!shutdown.may_end(true));
        let deferred = Vec::new();
        assert_eq!(shutdown.on_deadline(), Some(Due::EndPolls { deferred }));

        assert!(shutdown.has_begun() && !shutdown.awaits_polls());
        assert_eq!(shutdown.deadline(), Some(began + 60 * SECOND));
        assert!(shutdown.may_end(true) && !shutdown.may_end(false));
        assert_eq!(shutdown.on_deadline(), Some(Due::CancelLoads));

        assert_eq!(shutdown.deadline(), None);
        assert_eq!(shutdown.on_deadline(), None);
        assert!(shutdown.has_begun() && shutdown.may_end(false));
    }

    #[test]
    fn the_polls_have_no_more_time_than_the_loads_and_end_before_loads_are_cancelled() {
        let (mut shutdown, began) = begun(20 * SECOND, 10 * SECOND);
        let end = Some(began + 10 * SECOND);
        assert_eq!(shutdown.deadline(), end);
        assert!(matches!(shutdown.on_deadline(), Some(Due::EndPolls { .. })));
        assert_eq!(shutdown.deadline(), end);
        assert_eq!(shutdown.on_deadline(), Some(Due::CancelLoads));
    }

    #[test]
    fn polls_that_have_ended_are_not_waited_for() {
        let (mut shutdown, began) = begun(20 * SECOND, 60 * SECOND);
        let ended = began + 3 * SECOND;
        shutdown.on_polls_ended(ended);
        assert_eq!(shutdown.deadline(), Some(ended));
        shutdown.on_deadline();
        // The loads keep their time.
        shutdown.on_polls_ended(ended);
        assert_eq!(shutdown.deadline(), Some(began + 60 * SECOND));
    }

    #[test]
    fn returns_are_deferred_only_until_the_polls_have_ended() {
        let (mut shutdown, _) = begun(20 * SECOND, 60 * SECOND);
        shutdown.deferred().unwrap().extend([1, 2]);
        shutdown.deferred().unwrap().push(3);
        let deferred = vec![1, 2, 3];
        assert_eq!(shutdown.on_deadline(), Some(Due::EndPolls { deferred }));
        assert_eq!(shutdown.deferred(), None);
        shutdown.on_deadline();
        assert_eq!(shutdown.deferred(), None);
    }
}
