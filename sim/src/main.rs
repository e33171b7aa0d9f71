//! `sluice-sim`: runs worlds on all cores, and reports the seeds of those that fail. `cargo xtask
//! sim` builds it with optimisations and runs it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use sluice_sim::on_all_cores;
use sluice_sim::world::{Plan, Report, run, run_plan, shrink};

/// The largest number of failing seeds that are described, of their violations, and of seeds whose
/// plans are made smaller.
const MAX_DESCRIBED: usize = 10;
const MAX_VIOLATIONS: usize = 5;
const MAX_SHRUNK: usize = 3;

#[derive(Parser)]
#[command(
    name = "cargo xtask sim",
    about = "Run whole workers against simulated servers that fail, a world for each seed"
)]
struct Arguments {
    /// Run COUNT worlds [default: 1000; with --trace: 1]
    #[arg(long, value_name = "COUNT")]
    seeds: Option<u64>,
    /// Seed of the first world; the others have the next ones
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Print what happens in each world, with the seconds since its beginning
    #[arg(long)]
    trace: bool,
    /// With --trace: print a failing world with the smallest plan that still fails
    #[arg(long, requires = "trace")]
    smallest: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let count = arguments
        .seeds
        .unwrap_or(if arguments.trace { 1 } else { 1_000 });
    let seeds = arguments.seed..arguments.seed.saturating_add(count);
    let have_failed = if arguments.trace {
        // One after the other, so that the traces are not mixed.
        let mut have_failed = false;
        for seed in seeds {
            have_failed |= trace(seed, arguments.smallest);
        }
        have_failed
    } else {
        run_all(seeds)
    };
    if have_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Prints the trace of a world. Returns whether it has failed.
fn trace(seed: u64, smallest: bool) -> bool {
    let mut report = run(seed, true);
    if smallest && !report.violations.is_empty() {
        report = run_plan(seed, &shrink(seed, &Plan::of(seed)), true);
    }
    for line in &report.trace {
        print(line);
    }
    for violation in &report.violations {
        print(&format!("seed {seed}: {violation}"));
    }
    !report.violations.is_empty()
}

/// Runs the worlds of these seeds, and prints a summary. Returns whether any has failed.
fn run_all(seeds: std::ops::Range<u64>) -> bool {
    let begun = Instant::now();
    let summary = Mutex::new(Summary::default());
    let threads = on_all_cores(seeds, |seed| {
        let report = run(seed, false);
        let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
        summary.add(report);
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.failed.sort_by_key(|report| report.seed);
    summary.print(begun.elapsed(), threads);
    !summary.failed.is_empty()
}

#[derive(Default)]
struct Summary {
    worlds: u64,
    objects: usize,
    virtual_time: Duration,
    faults: BTreeMap<&'static str, u64>,
    failed: Vec<Report>,
}

impl Summary {
    fn add(&mut self, report: Report) {
        self.worlds += 1;
        self.objects += report.objects;
        self.virtual_time += report.virtual_time;
        for (fault, count) in &report.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        if !report.violations.is_empty() {
            self.failed.push(report);
        }
    }

    fn print(&self, took: Duration, threads: usize) {
        for (fault, count) in &self.faults {
            print(&format!("{count:>10}  {fault}"));
        }
        let seconds = took.as_secs_f64();
        print(&format!(
            "{} worlds with {} objects and {:.1} simulated days in {seconds:.1} s: {:.0} worlds a \
             second and core",
            self.worlds,
            self.objects,
            self.virtual_time.as_secs_f64() / 86_400.0,
            self.worlds as f64 / seconds / threads as f64
        ));
        for report in self.failed.iter().take(MAX_DESCRIBED) {
            describe(report);
        }
        for report in self.failed.iter().take(MAX_SHRUNK) {
            let smallest = shrink(report.seed, &Plan::of(report.seed));
            print(&format!(
                "the smallest plan with which seed {} fails: {smallest}",
                report.seed
            ));
        }
        if !self.failed.is_empty() {
            print(&format!("{} worlds failed", self.failed.len()));
        }
    }
}

/// Prints the violations of a world, and how to see its trace.
fn describe(report: &Report) {
    let seed = report.seed;
    print(&format!("seed {seed} failed ({})", Plan::of(seed)));
    for violation in report.violations.iter().take(MAX_VIOLATIONS) {
        print(&format!("    {violation}"));
    }
    let more = report.violations.len().saturating_sub(MAX_VIOLATIONS);
    if more > 0 {
        print(&format!("    and {more} more"));
    }
    print(&format!(
        "    to see what happened: cargo xtask sim --seed {seed} --trace [--smallest]"
    ));
}

#[expect(clippy::print_stdout, reason = "the result is for standard output")]
fn print(line: &str) {
    println!("{line}");
}
