//! Compares an older Sluice with the one under test: both load the same objects on the same
//! servers, in turns, and the processor time is limited.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sluice_bench::gate::{self, Decision, Policy, Sample, Side, Spread, Verdict};

use crate::contenders::sluice;
use crate::harness::Harness;
use crate::note;
use crate::workload::{Size, Uploaded, Workload};

/// How the two programs are compared.
pub(crate) struct Criteria<'a> {
    /// The older program.
    pub(crate) baseline: &'a Path,
    /// The highest accepted median of the ratios.
    pub(crate) limit: f64,
    /// The number of samples that each program needs.
    pub(crate) samples: usize,
    /// The share of each workload that is loaded.
    pub(crate) share: f64,
    pub(crate) policy: Policy,
}

/// The samples of one workload, and the outcome.
#[derive(Debug, Serialize)]
pub(crate) struct GateResult {
    pub(crate) workload: String,
    size: Size,
    limit: f64,
    ratio: f64,
    pub(crate) verdict: Verdict,
    max_other_load: f64,
    #[serde(flatten)]
    samples: Samples,
}

#[derive(Debug, Default, Serialize)]
struct Samples {
    baseline: Vec<Sample>,
    candidate: Vec<Sample>,
    /// Disturbed samples that are counted anyway.
    kept_disturbed: usize,
    discarded: Vec<Sample>,
}

/// Runs each program once to warm up, then both in turns until each has its samples.
pub(crate) async fn compare(
    harness: &Harness,
    workload: &Workload,
    criteria: &Criteria<'_>,
) -> Result<GateResult> {
    ensure!(criteria.samples > 0, "at least one sample is required");
    note(&format!("{}: uploading", workload.name));
    let runner = Runner {
        harness,
        criteria,
        workload: workload.name,
        uploaded: workload.upload(&harness.objects, criteria.share),
    };
    for side in gate::order(0) {
        runner.measure(side, "warm-up").await?;
    }
    let mut samples = Samples::default();
    let is_complete = runner.collect(&mut samples).await?;
    let ratio = gate::median(&gate::ratios(&samples.baseline, &samples.candidate));
    Ok(GateResult {
        workload: workload.name.to_owned(),
        size: runner.uploaded.size,
        limit: criteria.limit,
        ratio,
        verdict: if is_complete {
            gate::verdict(ratio, criteria.limit)
        } else {
            Verdict::Undecided
        },
        max_other_load: criteria.policy.max_other_load,
        samples,
    })
}

struct Runner<'a> {
    harness: &'a Harness,
    criteria: &'a Criteria<'a>,
    workload: &'a str,
    uploaded: Uploaded,
}

impl Runner<'_> {
    /// Takes all samples. Returns whether the machine was quiet enough.
    async fn collect(&self, samples: &mut Samples) -> Result<bool> {
        for round in 1..=self.criteria.samples {
            for side in gate::order(round) {
                let label = format!("{round}/{}", self.criteria.samples);
                if !self.add(samples, side, &label).await? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Adds a sample, which is repeated while it is disturbed. Returns whether there is one.
    async fn add(&self, samples: &mut Samples, side: Side, label: &str) -> Result<bool> {
        loop {
            let sample = self.measure(side, label).await?;
            let decision = self
                .criteria
                .policy
                .decide(&sample, samples.discarded.len());
            match decision {
                Decision::Keep | Decision::KeepDisturbed => {
                    samples.kept_disturbed += usize::from(decision == Decision::KeepDisturbed);
                    samples.of(side).push(sample);
                    return Ok(true);
                }
                Decision::Discard => {
                    note("  discarded: other programs were using the machine; repeating");
                    samples.discarded.push(sample);
                }
                Decision::GiveUp => {
                    samples.discarded.push(sample);
                    return Ok(false);
                }
            }
        }
    }

    async fn measure(&self, side: Side, label: &str) -> Result<Sample> {
        let (name, program) = match side {
            Side::Baseline => ("baseline", self.criteria.baseline),
            Side::Candidate => ("candidate", self.harness.sluice.as_path()),
        };
        // Each run has its own database, which the program itself migrates: the two versions may
        // need different tables.
        let run = sluice::run(program, self.harness, &self.uploaded, "").await?;
        let cost = run.cost.context("a run of Sluice has a cost")?;
        let sample = Sample {
            worker_seconds: cost.cpu_seconds,
            clickhouse_seconds: cost.clickhouse_cpu_seconds.context("not measured")?,
            wall_seconds: run.seconds,
            other_load: cost.other_load.context("not measured")?,
        };
        note(&format!(
            "{} {label} {name}: {:.3} s of processor time (worker {:.2} s, ClickHouse {:.3} s), \
             other programs {} of the cores; {:.2} s elapsed",
            self.workload,
            sample.processor_seconds(),
            sample.worker_seconds,
            sample.clickhouse_seconds,
            percent(sample.other_load),
            sample.wall_seconds,
        ));
        Ok(sample)
    }
}

impl Samples {
    fn of(&mut self, side: Side) -> &mut Vec<Sample> {
        match side {
            Side::Baseline => &mut self.baseline,
            Side::Candidate => &mut self.candidate,
        }
    }
}

impl GateResult {
    /// Returns the outcome in one line.
    pub(crate) fn line(&self) -> String {
        let (name, limit) = (&self.workload, self.limit);
        let ratio = format!("{:.3} times the processor time of the baseline", self.ratio);
        match self.verdict {
            Verdict::WithinLimit => format!("{name}: ok, {ratio} (limit {limit})"),
            Verdict::OverLimit => format!("{name}: OVER THE LIMIT, {ratio} (limit {limit})"),
            Verdict::Undecided => format!(
                "{name}: NO VERDICT, other programs used more than {} of the cores in {} samples; \
                 measure again on a quieter machine, or pass --accept-disturbed",
                percent(self.max_other_load),
                self.samples.discarded.len(),
            ),
        }
    }

    /// Returns the figures behind the outcome: a line for each program, and one for the disturbed
    /// samples.
    pub(crate) fn details(&self) -> String {
        let of = |name, samples: &[Sample]| {
            if samples.is_empty() {
                return format!("  {name}: no samples\n");
            }
            let spread = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value));
            format!(
                "  {name}: {}; worker {}; ClickHouse {}; elapsed {}\n",
                spread(Sample::processor_seconds),
                spread(|it| it.worker_seconds),
                spread(|it| it.clickhouse_seconds),
                spread(|it| it.wall_seconds),
            )
        };
        let samples = &self.samples;
        let ratios: Vec<String> = gate::ratios(&samples.baseline, &samples.candidate)
            .iter()
            .map(|ratio| format!("{ratio:.3}"))
            .collect();
        let loads = |samples: &[Sample]| {
            let loads: Vec<String> = samples.iter().map(|it| percent(it.other_load)).collect();
            loads.join(", ")
        };
        let mut text = of("baseline", &samples.baseline) + &of("candidate", &samples.candidate);
        text += &format!("  ratios, round by round: {}\n", ratios.join(", "));
        if samples.discarded.is_empty() {
            text += "  no sample was discarded";
        } else {
            text += &format!(
                "  {} samples were discarded: other programs used {} of the cores (at most {})",
                samples.discarded.len(),
                loads(&samples.discarded),
                percent(self.max_other_load),
            );
        }
        if samples.kept_disturbed > 0 {
            text += &format!("; {} disturbed samples were kept", samples.kept_disturbed);
        }
        text
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
