//! The comparison of a newer program with an older one: which samples count, the median of their
//! ratios, and whether it is within the limit.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

/// One of the two programs that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The older program.
    Baseline,
    /// The program under test.
    Candidate,
}

/// Returns the order of the two programs in a round. They alternate, so that a machine that becomes
/// slower or faster favors neither.
pub fn order(round: usize) -> [Side; 2] {
    if round.is_multiple_of(2) {
        [Side::Baseline, Side::Candidate]
    } else {
        [Side::Candidate, Side::Baseline]
    }
}

/// One run of one program.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Processor time of the worker.
    pub worker_seconds: f64,
    /// Processor time of ClickHouse for the worker's statements.
    pub clickhouse_seconds: f64,
    /// The wall-clock time, for information only: it depends on all other load on the machine.
    pub wall_seconds: f64,
    /// The share of the cores that other programs used during the run.
    pub other_load: f64,
}

impl Sample {
    /// Returns the processor time that the gate compares.
    pub fn processor_seconds(&self) -> f64 {
        self.worker_seconds + self.clickhouse_seconds
    }
}

/// The rule for disturbed samples.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// A sample is disturbed when other programs used more than this share of the cores.
    pub max_other_load: f64,
    /// The number of disturbed samples of a workload that are discarded and repeated.
    pub max_discarded: usize,
    /// Whether further disturbed samples are kept, instead of ending without an outcome.
    pub accept_disturbed: bool,
}

/// The decision on a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Keep,
    /// The sample is disturbed, and repeated.
    Discard,
    /// The sample is disturbed, but enough others were repeated.
    KeepDisturbed,
    /// The machine is too busy to compare.
    GiveUp,
}

impl Policy {
    /// Decides on a sample after `discarded` others of the workload were discarded.
    pub fn decide(&self, sample: &Sample, discarded: usize) -> Decision {
        if sample.other_load <= self.max_other_load {
            Decision::Keep
        } else if discarded < self.max_discarded {
            Decision::Discard
        } else if self.accept_disturbed {
            Decision::KeepDisturbed
        } else {
            Decision::GiveUp
        }
    }
}

/// Whether the newer program costs more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    WithinLimit,
    OverLimit,
    /// The machine was too busy.
    Undecided,
}

/// Returns the ratio of the newer program's processor time to the older one's, round by round.
///
/// The speed of a machine changes from minute to minute (of a virtual one by 40 %), but much less
/// within a round. Medians of all rounds would compare one program's slow minutes with the other's
/// fast ones.
pub fn ratios(baseline: &[Sample], candidate: &[Sample]) -> Vec<f64> {
    let rounds = baseline.iter().zip(candidate);
    rounds
        .map(|(older, newer)| newer.processor_seconds() / older.processor_seconds())
        .collect()
}

/// Returns the verdict on a ratio. One that is not a number is over every limit.
pub fn verdict(ratio: f64, limit: f64) -> Verdict {
    if ratio <= limit {
        Verdict::WithinLimit
    } else {
        Verdict::OverLimit
    }
}

/// Returns the most severe outcome: a workload over its limit, then one without an outcome.
pub fn overall(verdicts: &[Verdict]) -> Verdict {
    [Verdict::OverLimit, Verdict::Undecided]
        .into_iter()
        .find(|severe| verdicts.contains(severe))
        .unwrap_or(Verdict::WithinLimit)
}

/// The median, minimum and maximum of some times in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(seconds: impl IntoIterator<Item = f64>) -> Self {
        let seconds: Vec<f64> = seconds.into_iter().collect();
        Self {
            median: median(&seconds),
            min: seconds.iter().copied().fold(f64::NAN, f64::min),
            max: seconds.iter().copied().fold(f64::NAN, f64::max),
        }
    }
}

impl Display for Spread {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = self;
        write!(f, "{median:.3} s ({min:.3} to {max:.3})")
    }
}

/// Returns the median; of an even number of values, the lower of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len().saturating_sub(1) / 2;
    sorted.get(middle).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(worker_seconds: f64, clickhouse_seconds: f64) -> Sample {
        Sample {
            worker_seconds,
            clickhouse_seconds,
            wall_seconds: 1.0,
            other_load: 0.0,
        }
    }

    fn disturbed(other_load: f64) -> Sample {
        Sample {
            other_load,
            ..sample(1.0, 1.0)
        }
    }

    #[test]
    fn the_programs_alternate_in_going_first() {
        let firsts = [0, 1, 2, 3].map(|round| order(round)[0]);
        let [one, other] = order(0);
        assert_eq!(firsts, [one, other, one, other]);
        for round in 0..4 {
            let [first, second] = order(round);
            assert_ne!(first, second);
        }
    }

    #[test]
    fn medians_ignore_order_and_outliers() {
        assert!((median(&[5.0, 1.0, 100.0, 2.0, 3.0]) - 3.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_spread_shows_the_median_the_minimum_and_the_maximum() {
        let spread = Spread::of([2.0, 1.0, 4.0]);
        assert_eq!(spread.to_string(), "2.000 s (1.000 to 4.000)");
    }

    #[test]
    fn the_ratio_of_a_round_is_of_worker_and_clickhouse_time_together() {
        // The machine becomes ten times slower, for both.
        let baseline = [sample(1.0, 3.0), sample(2.0, 2.0), sample(10.0, 30.0)];
        let candidate = [sample(2.0, 3.0), sample(0.5, 0.5), sample(20.0, 30.0)];
        assert_eq!(ratios(&baseline, &candidate), [1.25, 0.25, 1.25]);
        assert_eq!(ratios(&candidate, &baseline), [0.8, 4.0, 0.8]);
    }

    #[test]
    fn a_ratio_above_the_limit_is_over_it() {
        assert_eq!(verdict(1.05, 1.05), Verdict::WithinLimit);
        assert_eq!(verdict(0.5, 1.05), Verdict::WithinLimit);
        assert_eq!(verdict(1.051, 1.05), Verdict::OverLimit);
    }

    #[test]
    fn a_ratio_that_is_not_a_number_is_over_the_limit() {
        let of = |samples: &[Sample]| verdict(median(&ratios(samples, samples)), 1.05);
        assert_eq!(of(&[]), Verdict::OverLimit);
        assert_eq!(of(&[sample(0.0, 0.0)]), Verdict::OverLimit);
    }

    #[test]
    fn one_workload_over_its_limit_decides_the_overall_verdict() {
        use Verdict::{OverLimit, Undecided, WithinLimit};
        assert_eq!(overall(&[WithinLimit, Undecided, OverLimit]), OverLimit);
        assert_eq!(overall(&[WithinLimit, Undecided]), Undecided);
        assert_eq!(overall(&[WithinLimit, WithinLimit]), WithinLimit);
    }

    #[test]
    fn disturbed_samples_are_repeated_a_bounded_number_of_times() {
        let policy = Policy {
            max_other_load: 0.1,
            max_discarded: 2,
            accept_disturbed: false,
        };
        assert_eq!(policy.decide(&disturbed(0.1), 0), Decision::Keep);
        assert_eq!(policy.decide(&disturbed(0.1), 2), Decision::Keep);
        assert_eq!(policy.decide(&disturbed(0.11), 0), Decision::Discard);
        assert_eq!(policy.decide(&disturbed(0.11), 1), Decision::Discard);
        assert_eq!(policy.decide(&disturbed(0.11), 2), Decision::GiveUp);
    }

    #[test]
    fn disturbed_samples_are_kept_if_that_is_accepted() {
        let policy = Policy {
            max_other_load: 0.1,
            max_discarded: 1,
            accept_disturbed: true,
        };
        assert_eq!(policy.decide(&disturbed(0.5), 0), Decision::Discard);
        assert_eq!(policy.decide(&disturbed(0.5), 1), Decision::KeepDisturbed);
        assert_eq!(policy.decide(&disturbed(0.0), 1), Decision::Keep);
    }
}
