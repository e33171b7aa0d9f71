//! A count, and its recent growth.

use std::collections::VecDeque;
use std::time::Duration;

/// The length of one step of every history.
pub const STEP: Duration = Duration::from_secs(2);
/// Points of a history: 15 minutes.
pub(super) const STEPS: usize = 450;
/// Steps of a rate: 30 seconds.
const RATE_STEPS: usize = 15;

#[derive(Debug, Default)]
pub(super) struct Meter {
    total: u64,
    /// Since the last step.
    current: u64,
    steps: VecDeque<u64>,
}

impl Meter {
    pub(super) fn add(&mut self, count: u64) {
        self.total += count;
        self.current += count;
    }

    pub(super) fn step(&mut self) {
        let current = std::mem::take(&mut self.current);
        push_bounded(&mut self.steps, current, STEPS);
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Returns the count of each step, the oldest first.
    pub(super) fn history(&self) -> Vec<u64> {
        self.steps.iter().copied().collect()
    }

    /// Returns the sum of all steps of the history and of the present one.
    pub(super) fn recent(&self) -> u64 {
        self.current + self.steps.iter().sum::<u64>()
    }

    #[expect(clippy::cast_precision_loss, reason = "only displayed")]
    pub(super) fn per_second(&self) -> f64 {
        let steps = self.steps.len().min(RATE_STEPS);
        if steps == 0 {
            return 0.0;
        }
        let sum: u64 = self.steps.iter().rev().take(steps).sum();
        sum as f64 / (STEP * steps as u32).as_secs_f64()
    }
}

/// Appends a value, and drops the oldest if there would be more than `max`.
pub(super) fn push_bounded<T>(queue: &mut VecDeque<T>, value: T, max: usize) {
    if queue.len() == max {
        queue.pop_front();
    }
    queue.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_covers_recent_steps_and_a_history_is_bounded() {
        let mut meter = Meter::default();
        assert_eq!((meter.per_second(), meter.history()), (0.0, vec![]));
        meter.add(8);
        meter.step();
        meter.step();
        assert_eq!((meter.per_second(), meter.history()), (2.0, vec![8, 0]));
        for _ in 0..RATE_STEPS {
            meter.add(1);
            meter.add(3);
            meter.step();
        }
        assert_eq!(meter.per_second(), 2.0);
        for _ in 0..STEPS {
            meter.step();
        }
        assert_eq!((meter.total(), meter.per_second()), (68, 0.0));
        assert_eq!(meter.history(), vec![0; STEPS]);
    }
}
