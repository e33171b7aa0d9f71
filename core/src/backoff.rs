//! Pauses before retries.

use std::time::Duration;

/// Pauses that double with every failure, from `min` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub min: Duration,
    pub max: Duration,
}

impl Backoff {
    /// Returns the pause after `failures` failures in a row, at least one. `jitter`, from 0 to 1,
    /// scales it from half to all of it, so that requests that failed together are not retried
    /// together.
    pub fn pause(self, failures: u32, jitter: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let full = self.min.saturating_mul(1 << doublings).min(self.max);
        full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff {
            min: Duration::from_secs(10),
            max: Duration::from_secs(900),
        };
        let seconds = |failures, jitter| backoff.pause(failures, jitter).as_secs();
        assert_eq!(
            [0, 1, 2, 3, 7, 8, u32::MAX].map(|failures| seconds(failures, 1.0)),
            [10, 10, 20, 40, 640, 900, 900]
        );
        assert_eq!(seconds(2, 0.0), 10);
    }
}
