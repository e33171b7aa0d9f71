//! Worlds of many seeds: each is deterministic, and nothing is lost, doubled or stuck in any.

use std::sync::Mutex;

use sluice_sim::on_all_cores;
use sluice_sim::world::{Fault, Plan, Report, run};

/// Runs `check` for each seed, on all cores. Returns the problems in the order of the seeds.
fn problems(
    seeds: std::ops::Range<u64>,
    check: impl Fn(u64) -> Vec<String> + Sync,
) -> Vec<(u64, String)> {
    let found = Mutex::new(Vec::new());
    on_all_cores(seeds, |seed| {
        let problems: Vec<_> = check(seed).into_iter().map(|it| (seed, it)).collect();
        found.lock().unwrap().extend(problems);
    });
    let mut found = found.into_inner().unwrap();
    found.sort();
    found
}

/// Returns what differs between two runs of one world: the first line at which their traces part.
fn difference(one: &Report, other: &Report) -> Option<String> {
    let mut lines = one.trace.iter().zip(&other.trace);
    if let Some((one, other)) = lines.find(|(one, other)| one != other) {
        return Some(format!("`{one}`, and then `{other}`"));
    }
    (one.digest != other.digest).then(|| "one trace is longer than the other".to_owned())
}

#[test]
fn the_same_seed_yields_the_same_trace() {
    let found = problems(0..100, |seed| {
        let [one, other] = [(); 2].map(|()| run(seed, true));
        assert!(!one.trace.is_empty());
        let mut problems = one.violations.clone();
        problems.extend(difference(&one, &other));
        problems
    });
    assert_eq!(found, []);
}

#[test]
fn nothing_is_lost_doubled_or_stuck_in_any_world() {
    let found = problems(100..400, |seed| run(seed, false).violations);
    assert_eq!(found, []);
}

/// Seeds of worlds in which something was lost, doubled or stuck, at the time.
const FAILED_BEFORE: [u64; 10] = [
    36, 257, 1_390, 2_777, 2_812, 10_689, 11_532, 12_079, 307_640, 310_742,
];

#[test]
fn worlds_that_have_failed_before_do_not_fail_again() {
    let found = problems(0..FAILED_BEFORE.len() as u64, |index| {
        run(FAILED_BEFORE[index as usize], false).violations
    });
    assert_eq!(found, []);
}

#[test]
fn every_world_has_workers_objects_crashes_and_other_faults() {
    for seed in 0..1_000 {
        let plan = Plan::of(seed);
        assert!(plan.workers >= 2 && plan.objects >= 50, "{plan}");
        assert!(plan.faults.len() >= 3, "{plan}");
        let crashes = [Fault::WorkerCrash, Fault::ServerCrash];
        assert!(crashes.iter().any(|crash| plan.has(*crash)), "{plan}");
    }
}
