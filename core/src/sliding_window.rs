//! A sliding window over recent durations, for the status page: medians and worst cases without a
//! metrics server.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How far back a summary looks.
pub const WINDOW: Duration = Duration::from_secs(600);
/// Above this number, the oldest samples are dropped before they leave the window.
const MAX_SAMPLES: usize = 10_000;

#[derive(Debug, Default)]
pub struct SlidingWindow {
    durations: VecDeque<(Instant, Duration)>,
}

/// A summary of recent durations, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub count: usize,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl SlidingWindow {
    pub fn record(&mut self, now: Instant, duration: Duration) {
        let is_old = |at: Instant| now.duration_since(at) > WINDOW;
        while self.durations.front().is_some_and(|(at, _)| is_old(*at)) {
            self.durations.pop_front();
        }
        if self.durations.len() == MAX_SAMPLES {
            self.durations.pop_front();
        }
        self.durations.push_back((now, duration));
    }

    /// Returns a summary of the window; `None` if nothing was recorded in it.
    pub fn summary(&self, now: Instant) -> Option<Summary> {
        self.summary_within(WINDOW, now)
    }

    /// Returns a summary of what was recorded within `period` before `now`.
    pub fn summary_within(&self, period: Duration, now: Instant) -> Option<Summary> {
        let recent = self.durations.iter().rev();
        let recent = recent.take_while(|(at, _)| now.duration_since(*at) <= period);
        let mut seconds: Vec<f64> = recent.map(|(_, it)| it.as_secs_f64()).collect();
        seconds.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| seconds[(seconds.len() - 1) * percent / 100];
        (!seconds.is_empty()).then(|| Summary {
            count: seconds.len(),
            p50: at(50),
            p99: at(99),
            max: at(100),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_covers_recent_durations_and_its_size_is_bounded() {
        let mut recent = SlidingWindow::default();
        let start = Instant::now();
        assert_eq!(recent.summary(start), None);
        recent.record(start, Duration::from_secs(3600));
        let later = start + WINDOW + Duration::from_secs(1);
        for seconds in 1..=100 {
            recent.record(later, Duration::from_secs(seconds));
        }
        let summary = Summary {
            count: 100,
            p50: 50.0,
            p99: 99.0,
            max: 100.0,
        };
        assert_eq!(recent.summary(later), Some(summary));
        // What has left the window is dropped.
        assert_eq!(recent.durations.len(), 100);
        for _ in 0..MAX_SAMPLES {
            recent.record(later, Duration::ZERO);
        }
        let bounded = recent.summary(later).unwrap();
        assert_eq!((bounded.count, bounded.max), (MAX_SAMPLES, 0.0));
    }
}
