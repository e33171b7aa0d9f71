//! Benchmarks; `cargo xtask bench` builds and runs them. See docs/performance.md.

mod backfill;
mod baseline;
mod compare;
mod contenders;
mod formats;
mod growth;
mod harness;
mod in_flight;
mod meter;
mod objects;
mod plot;
mod queue;
mod report;
mod steady;
mod workers;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use sluice_bench::gate::{Policy, Verdict, overall};
use sluice_testkit::Keeper;
use sluice_testkit::install::target_directory;

use contenders::Contender;
use harness::Harness;
use workload::Workload;

#[derive(Parser)]
#[command(
    name = "cargo xtask bench",
    about = "Measures Sluice; results go to target/bench"
)]
struct Arguments {
    /// The program that is measured
    #[arg(long, hide = true)]
    sluice: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare Sluice with the bare engine and other ways of loading, or with an older Sluice
    Compare(Compare),
    /// Run one, two and four workers on one queue
    Workers {
        /// Load this share of the tiny workload
        #[arg(long, default_value_t = 0.25)]
        share: f64,
        #[arg(long, default_value_t = 5)]
        samples: usize,
        /// Delay each S3 response by this time
        #[arg(long, default_value_t = 0)]
        latency_ms: u64,
    },
    /// Load a batch with an empty ledger and with a full one
    Growth {
        #[arg(long, default_value_t = 10_000_000)]
        ledger_objects: u64,
        /// Load this share of the tiny workload
        #[arg(long, default_value_t = 0.1)]
        share: f64,
        #[arg(long, default_value_t = 5)]
        samples: usize,
    },
    /// Measure the memory of a worker with messages in flight
    InFlight {
        #[arg(default_values_t = [10_000, 100_000])]
        messages: Vec<usize>,
    },
    /// Load objects that arrive steadily: lag, parts, and memory over time
    Steady {
        /// Objects per second
        #[arg(long, default_value_t = 50.0)]
        rate: f64,
        #[arg(long, default_value_t = 3.0)]
        minutes: f64,
        /// Name of the results
        #[arg(long, default_value = "steady")]
        name: String,
        /// Additional configuration of the worker, as YAML
        #[arg(long, default_value = "")]
        configuration: String,
        /// Let the bare engine load the same objects at the same time, once per window
        #[arg(long)]
        beside_engine: bool,
    },
    /// Run a backfill of keys that are all loaded
    Backfill {
        #[arg(default_values_t = [100_000, 1_000_000])]
        keys: Vec<u64>,
    },
    /// Load the same records in each format, and by the bare insert that a person would write
    Formats {
        #[command(flatten)]
        selection: formats::Selection,
        /// Exit with 1 if a format's insert takes more than this times as long as the bare insert
        #[arg(long, value_name = "RATIO")]
        limit: Option<f64>,
    },
    /// Write the results of target/bench to docs/performance.md
    Report,
}

#[derive(Args)]
struct Compare {
    /// Run only these workloads
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Run only these ways of loading
    #[arg(long, value_delimiter = ',', conflicts_with = "baseline")]
    ways: Vec<String>,
    /// Load this share of each workload
    #[arg(long, default_value_t = 1.0)]
    share: f64,
    /// Number of runs of each way
    #[arg(long, default_value_t = 5)]
    samples: usize,
    /// Delay each S3 response by this time
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Compare processor time with this older sluice instead; exits with 1 if a workload is over
    /// the limit, and with 3 if the machine was too busy to compare
    #[arg(long, value_name = "BINARY")]
    baseline: Option<PathBuf>,
    /// Allow this median ratio of processor times
    #[arg(long, default_value_t = 1.05, requires = "baseline")]
    limit: f64,
    /// Discard a sample when other programs used more than this share of the cores
    #[arg(long, default_value_t = 0.1, requires = "baseline")]
    max_other_load: f64,
    /// Discard and repeat at most COUNT samples of each workload
    #[arg(
        long,
        default_value_t = 10,
        value_name = "COUNT",
        requires = "baseline"
    )]
    max_discarded: usize,
    /// Keep further disturbed samples, instead of exiting with 3
    #[arg(long, requires = "baseline")]
    accept_disturbed: bool,
}

/// The exit code if the machine was too busy. (2 is the code for invalid arguments.)
const UNDECIDED: u8 = 3;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let Arguments { sluice, command } = Arguments::parse();
    match command {
        Command::Compare(options) => {
            return match &options.baseline {
                None => compare_ways(sluice, &options).await,
                Some(baseline) => compare_with(baseline, sluice, &options).await,
            };
        }
        Command::Workers {
            share,
            samples,
            latency_ms,
        } => {
            let harness = Harness::start(sluice, None, Duration::from_millis(latency_ms)).await?;
            let workers = workers::run(&harness, &tiny(), share, samples, latency_ms).await?;
            write_result(&result_name("workers", latency_ms), &workers)
        }
        Command::Growth {
            ledger_objects,
            share,
            samples,
        } => {
            let harness = Harness::start(sluice, None, Duration::ZERO).await?;
            let growth = growth::run(&harness, &tiny(), share, ledger_objects, samples).await?;
            write_result("growth", &growth)
        }
        Command::InFlight { messages } => {
            let harness = Harness::start(sluice, None, Duration::ZERO).await?;
            let mut results = Vec::new();
            for messages in messages {
                results.push(in_flight::run(&harness, messages).await?);
            }
            write_result("in-flight", &results)
        }
        Command::Steady {
            rate,
            minutes,
            name,
            configuration,
            beside_engine,
        } => {
            let harness = Harness::start(sluice, None, Duration::ZERO).await?;
            let plan = steady::Plan {
                objects_per_second: rate,
                minutes,
                configuration,
                beside_engine,
            };
            write_result(&name, &steady::run(&harness, plan).await?)
        }
        Command::Backfill { keys } => {
            let harness = Harness::start(sluice, None, Duration::ZERO).await?;
            write_result("backfill", &backfill::run(&harness, &keys).await?)
        }
        Command::Formats { selection, limit } => {
            let harness = Harness::start(sluice, None, Duration::ZERO).await?;
            let results = formats::run(&harness, &selection).await?;
            write_result(selection.name(), &results)?;
            note(&formats::table(&results));
            let is_over = |limit| results.iter().any(|result| result.ratio() > limit);
            return Ok(match limit {
                Some(limit) if is_over(limit) => ExitCode::FAILURE,
                _ => ExitCode::SUCCESS,
            });
        }
        Command::Report => report::write(),
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn compare_ways(sluice: PathBuf, options: &Compare) -> Result<ExitCode> {
    let mut contenders = select(&options.ways, Contender::ALL.to_vec(), |it| it.name())?;
    let needs_keeper = contenders.contains(&Contender::S3Queue);
    let keeper = needs_keeper.then(Keeper::start).transpose();
    let keeper = keeper.unwrap_or_else(|error| {
        note(&format!("skipping s3queue: {error:#}"));
        contenders.retain(|contender| *contender != Contender::S3Queue);
        None
    });
    let harness = Harness::start(sluice, keeper, Duration::from_millis(options.latency_ms)).await?;
    for workload in options.workloads()? {
        let mut comparison = compare::compare(
            &harness,
            &workload,
            &contenders,
            options.samples,
            options.share,
        )
        .await?;
        comparison.workload = result_name(workload.name, options.latency_ms);
        write_result(&format!("compare-{}", comparison.workload), &comparison)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn compare_with(baseline: &Path, sluice: PathBuf, options: &Compare) -> Result<ExitCode> {
    let baseline = fs::canonicalize(baseline)
        .with_context(|| format!("cannot find the baseline {}", baseline.display()))?;
    let criteria = baseline::Criteria {
        baseline: &baseline,
        limit: options.limit,
        samples: options.samples,
        share: options.share,
        policy: Policy {
            max_other_load: options.max_other_load,
            max_discarded: options.max_discarded,
            accept_disturbed: options.accept_disturbed,
        },
    };
    let workloads = options.workloads()?;
    let harness = Harness::start(sluice, None, Duration::from_millis(options.latency_ms)).await?;
    let mut results = Vec::new();
    for workload in workloads {
        let mut result = baseline::compare(&harness, &workload, &criteria).await?;
        result.workload = result_name(workload.name, options.latency_ms);
        write_result(
            &format!("{}{}", report::BASELINE_PREFIX, result.workload),
            &result,
        )?;
        results.push(result);
    }
    for result in &results {
        note(&format!("{}\n{}", result.line(), result.details()));
    }
    let verdicts: Vec<Verdict> = results.iter().map(|it| it.verdict).collect();
    Ok(match overall(&verdicts) {
        Verdict::WithinLimit => ExitCode::SUCCESS,
        Verdict::OverLimit => ExitCode::FAILURE,
        Verdict::Undecided => ExitCode::from(UNDECIDED),
    })
}

impl Compare {
    fn workloads(&self) -> Result<Vec<Workload>> {
        select(&self.workloads, workload::all().to_vec(), |it| it.name)
    }
}

/// Results with a delayed S3 have a different name.
fn result_name(what: &str, latency_ms: u64) -> String {
    if latency_ms > 0 {
        format!("{what}-{latency_ms}ms")
    } else {
        what.to_owned()
    }
}

fn tiny() -> Workload {
    let [tiny, ..] = workload::all();
    tiny
}

/// Returns the named items, or all if none is named.
fn select<T>(names: &[String], mut all: Vec<T>, name: fn(&T) -> &'static str) -> Result<Vec<T>> {
    let known: Vec<&str> = all.iter().map(name).collect();
    if let Some(unknown) = names.iter().find(|it| !known.contains(&it.as_str())) {
        bail!("unknown name {unknown}; known names: {}", known.join(", "));
    }
    all.retain(|it| names.is_empty() || names.iter().any(|named| named == name(it)));
    Ok(all)
}

/// Returns the directory of raw results.
fn results() -> PathBuf {
    target_directory().join("bench")
}

fn write_result(name: &str, result: &impl Serialize) -> Result<()> {
    fs::create_dir_all(results())?;
    let path = results().join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(result)?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    note(&format!("wrote {}", path.display()));
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a person waits for this")]
fn note(text: &str) {
    eprintln!("{text}");
}
