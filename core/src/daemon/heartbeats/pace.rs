//! How long a request currently takes.

use std::time::Duration;

use tokio::time::Instant;

/// A moving average that follows a slower queue at once and a faster one gradually.
#[derive(Debug, Default)]
pub(super) struct Pace {
    measured: Option<Measured>,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    average: Duration,
    at: Instant,
    /// The time after which the average is halved, if nothing is measured.
    half_life: Duration,
}

impl Pace {
    pub(super) fn record(&mut self, took: Duration, now: Instant, half_life: Duration) {
        let before = self.at(now);
        let average = if took > before {
            (before + took) / 2
        } else {
            (before * 7 + took) / 8
        };
        self.measured = Some(Measured {
            average,
            at: now,
            half_life,
        });
    }

    /// Returns the average at `now`; zero if nothing was measured.
    pub(super) fn at(&self, now: Instant) -> Duration {
        let Some(measured) = self.measured else {
            return Duration::ZERO;
        };
        let half_lives = (now - measured.at).div_duration_f64(measured.half_life);
        measured.average.mul_f64(0.5_f64.powf(half_lives))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_queue_is_noticed_at_once_and_forgotten_without_requests() {
        let minute = Duration::from_secs(60);
        let second = Duration::from_secs(1);
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.at(now), Duration::ZERO);
        for _ in 0..3 {
            pace.record(2 * second, now, minute);
        }
        assert!(pace.at(now) > second * 3 / 2);
        pace.record(Duration::ZERO, now, minute);
        assert!(pace.at(now) > second);
        assert!(pace.at(now + 10 * minute) < second / 100);
    }
}
