//! The phases of a shutdown: what it waits for, until when, and what follows.
//!
//! Pure: time is an argument, and what is to be done is returned, not done.

use std::time::Duration;

use tokio::time::Instant;

/// Long polls that are under way when the worker is told to stop have their own time and this much
/// longer to end. A poll that was cut short would leave the messages hidden that it is just being
/// sent, and the queue may go on with it, so that it takes what is given back. For the same reason
/// what is given back waits for the end of the polls.
const LATE_ANSWER: Duration = Duration::from_secs(5);

/// Where a shutdown stands. `T` is what is given back to the queue.
#[derive(Debug)]
pub(super) struct Shutdown<T> {
    last_answer: Duration,
    grace_period: Duration,
    phase: Phase<T>,
}

/// In the order in which they follow each other.
#[derive(Debug)]
enum Phase<T> {
    Running,
    /// The last long polls are under way. They have no longer than the loads.
    LastPolls {
        until: Instant,
        grace_ends: Instant,
        /// In the order in which it is to be given back.
        deferred: Vec<T>,
    },
    /// The loads that had begun are under way.
    LastLoads {
        grace_ends: Instant,
    },
    /// The loads have been cancelled.
    Cancelled,
}

/// What is to be done at a deadline.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due<T> {
    /// End the polls that are still under way, then give this back.
    EndPolls { deferred: Vec<T> },
    /// The grace period is over: cancel the loads.
    CancelLoads,
}

impl<T> Shutdown<T> {
    /// Returns one that has not begun. `wait_time` is how long a poll takes, `grace_period` how long
    /// the loads have.
    pub(super) fn new(wait_time: Duration, grace_period: Duration) -> Self {
        Self {
            last_answer: wait_time + LATE_ANSWER,
            grace_period,
            phase: Phase::Running,
        }
    }

    /// Begins: from now on nothing is received but what the last polls bring.
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

    /// Returns where to put what is given back, while it must wait for the end of the polls.
    pub(super) fn deferred(&mut self) -> Option<&mut Vec<T>> {
        match &mut self.phase {
            Phase::LastPolls { deferred, .. } => Some(deferred),
            Phase::Running | Phase::LastLoads { .. } | Phase::Cancelled => None,
        }
    }

    /// Notes that the last polls have ended: they need no more time.
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

    /// Enters the next phase, and returns what is to be done now.
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

    /// Returns whether nothing is left to wait for. `is_idle`: nothing is held, and no load is under
    /// way.
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
        let (mut shutdown, told) = begun(20 * SECOND, 60 * SECOND);
        assert!(shutdown.has_begun() && shutdown.awaits_polls());
        assert_eq!(shutdown.deadline(), Some(told + 20 * SECOND + LATE_ANSWER));
        assert!(!shutdown.may_end(true));
        let deferred = Vec::new();
        assert_eq!(shutdown.on_deadline(), Some(Due::EndPolls { deferred }));

        assert!(shutdown.has_begun() && !shutdown.awaits_polls());
        assert_eq!(shutdown.deadline(), Some(told + 60 * SECOND));
        assert!(shutdown.may_end(true) && !shutdown.may_end(false));
        assert_eq!(shutdown.on_deadline(), Some(Due::CancelLoads));

        assert_eq!(shutdown.deadline(), None);
        assert_eq!(shutdown.on_deadline(), None);
        assert!(shutdown.has_begun() && shutdown.may_end(false));
    }

    #[test]
    fn the_polls_have_no_longer_than_the_loads_and_end_before_these_are_cancelled() {
        let (mut shutdown, told) = begun(20 * SECOND, 10 * SECOND);
        let end = Some(told + 10 * SECOND);
        assert_eq!(shutdown.deadline(), end);
        assert!(matches!(shutdown.on_deadline(), Some(Due::EndPolls { .. })));
        assert_eq!(shutdown.deadline(), end);
        assert_eq!(shutdown.on_deadline(), Some(Due::CancelLoads));
    }

    #[test]
    fn polls_that_have_ended_are_not_waited_for() {
        let (mut shutdown, told) = begun(20 * SECOND, 60 * SECOND);
        let ended = told + 3 * SECOND;
        shutdown.on_polls_ended(ended);
        assert_eq!(shutdown.deadline(), Some(ended));
        shutdown.on_deadline();
        // The loads keep their time.
        shutdown.on_polls_ended(ended);
        assert_eq!(shutdown.deadline(), Some(told + 60 * SECOND));
    }

    #[test]
    fn what_is_given_back_waits_for_the_end_of_the_polls_alone() {
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
