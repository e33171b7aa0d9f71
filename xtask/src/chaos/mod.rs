//! `cargo xtask chaos`: injects random faults for a while, and then checks that every row of every
//! object exists once.

mod arrivals;
mod faults;
mod workers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use sluice_testkit::proxy::Proxy;
use sluice_testkit::xapi::EventType;
use sluice_testkit::{Aws, ClickHouse, Site, SiteOptions, exact};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::console::{Progress, note, print};
use crate::interrupt::Interrupt;
use arrivals::Arrivals;
use workers::{Setup, Workers};

/// The minimum that the configuration allows. A lease lasts equally long.
const VISIBILITY: Duration = Duration::from_secs(10);
/// Worker crashes use up receives and must not make messages dead letters.
const MAX_RECEIVE_COUNT: u32 = 1000;
/// After the faults end, the queue must become shorter within this time.
const STALL_TIMEOUT: Duration = Duration::from_secs(180);
const MAX_PROBLEMS_SHOWN: usize = 40;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Inject faults for MINUTES
    #[arg(long, default_value_t = 1.0, value_parser = minutes)]
    minutes: f64,
    /// Seed of the faults; the same seed requests the same faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of workers that share the queue
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=20))]
    workers: u64,
    /// Load strategy; with "mixed", every worker picks one at each start
    #[arg(long, default_value = "single_pass", value_parser = ["single_pass", "per_type", MIXED])]
    strategy: String,
    /// Run this Sluice binary instead of building one; it must have failpoints
    #[arg(long, value_name = "PATH")]
    sluice: Option<PathBuf>,
}

/// Workers of several configurations, as during a rollout.
const MIXED: &str = "mixed";

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if minutes > 0.0 && minutes <= 10_000.0 => Ok(minutes),
        _ => Err(String::from("must be a number above 0")),
    }
}

/// The faults so far.
#[derive(Default)]
struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    fn add(&mut self, what: &'static str) {
        self.add_many(what, 1);
    }

    fn add_many(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }
}

/// The services that Sluice connects to, and the proxies in front of them.
struct World {
    clickhouse: Arc<ClickHouse>,
    aws: Aws,
    site: Site,
    /// The proxy between Sluice and ClickHouse.
    to_clickhouse: Proxy,
    /// The proxy between ClickHouse and S3.
    to_s3: Proxy,
    /// The proxy between Sluice and SQS.
    to_sqs: Proxy,
}

impl World {
    async fn start() -> Result<Self> {
        let clickhouse = Arc::new(spawn_blocking(ClickHouse::start).await??);
        let aws = spawn_blocking(Aws::start).await??;
        let options = SiteOptions {
            max_receive_count: MAX_RECEIVE_COUNT,
            visibility_timeout: VISIBILITY,
        };
        let site = aws.site("chaos", options).await?;
        Ok(Self {
            to_clickhouse: Proxy::start(clickhouse.url()).await?,
            to_s3: Proxy::start(aws.endpoint()).await?,
            to_sqs: Proxy::start(aws.endpoint()).await?,
            clickhouse,
            aws,
            site,
        })
    }

    fn proxies(&self) -> [(&'static str, &Proxy); 3] {
        [
            ("Sluice to ClickHouse", &self.to_clickhouse),
            ("ClickHouse to S3", &self.to_s3),
            ("Sluice to SQS", &self.to_sqs),
        ]
    }

    /// Stops all faults.
    fn heal(&self) {
        for (_, proxy) in self.proxies() {
            proxy.heal();
        }
    }

    /// Returns the number of requests that will still reach their servers late.
    fn late(&self) -> usize {
        self.proxies().iter().map(|(_, proxy)| proxy.late()).sum()
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let binary = match &arguments.sluice {
        Some(binary) => binary.clone(),
        None => crate::build::sluice()?,
    };
    let mut interrupt = Interrupt::new()?;
    let world = World::start().await?;
    let mut rng = Rng::with_seed(arguments.seed);
    let setup = Setup::new(binary, &world, &arguments.strategy, rng.fork())?;
    setup.migrate(&world).await?;
    exact::keep_duplicates(&world.clickhouse, &world.site).await?;
    tokio::select! {
        outcome = inject_and_verify(&arguments, &world, setup, rng) => outcome,
        () = interrupt.wait() => {
            note("interrupted");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn inject_and_verify(
    arguments: &Arguments,
    world: &World,
    setup: Setup,
    mut rng: Rng,
) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut tally = Tally::default();
    let mut workers = Workers::start(setup, arguments.workers)?;
    let arrivals = Arrivals::start(world.site.clone(), rng.fork());
    faults::inject(
        &mut rng,
        Duration::from_secs_f64(arguments.minutes * 60.0),
        world,
        &mut workers,
        &arrivals,
        &mut tally,
    )
    .await?;

    note("faults ended; waiting for the queue to drain");
    world.heal();
    let arrived = arrivals.stop().await?;
    workers.restart_without_failpoints(&mut tally).await?;
    let drained = drain(world, &mut workers).await;
    let logs = workers.stop().await?;
    if let Err(error) = drained {
        bail!(
            "{error:#}; the workers' logs are in {}",
            logs.keep()?.display()
        );
    }

    tally.add_many("duplicate announcements", arrived.duplicates);
    let mut problems = exact::differences(&world.clickhouse, &world.site, &arrived.bundles).await?;
    let dead = world.site.dlq_depth().await?;
    if dead > 0 {
        problems.push_str(&format!("{dead} messages are in the dead-letter queue\n"));
    }
    print("");
    for (what, count) in &tally.0 {
        print(&format!("{count:>8}  {what}"));
    }
    for (connection, proxy) in world.proxies() {
        for (fault, count) in proxy.hits_by_fault() {
            print(&format!("{count:>8}  {connection}: {fault}"));
        }
    }
    let rows: u64 = EventType::ALL
        .iter()
        .flat_map(|kind| arrived.bundles.iter().map(|b| b.expected_rows.rows(*kind)))
        .sum();
    let objects = arrived.bundles.len();
    let (seed, seconds) = (arguments.seed, begun.elapsed().as_secs());
    if problems.is_empty() {
        print(&format!(
            "passed: seed {seed}, {seconds} s, {objects} objects, {rows} event rows, \
             each exactly once"
        ));
        return Ok(ExitCode::SUCCESS);
    }
    print("");
    for line in problems.lines().take(MAX_PROBLEMS_SHOWN) {
        print(line);
    }
    print(&format!(
        "seed {seed}, {objects} objects: {} differences; the workers' logs are in {}",
        problems.lines().count(),
        logs.keep()?.display()
    ));
    Ok(ExitCode::FAILURE)
}

/// Waits until the queue is empty and every delayed request has reached its server.
async fn drain(world: &World, workers: &mut Workers) -> Result<()> {
    let (mut lowest, mut lowest_since) = (u64::MAX, Instant::now());
    let mut progress = Progress::new();
    loop {
        let (visible, in_flight) = world.site.queue_depth().await?;
        let late = world.late();
        if visible + in_flight == 0 && late == 0 {
            return Ok(());
        }
        progress.show(&format!(
            "{visible} messages visible, {in_flight} in flight, {late} requests delayed"
        ));
        workers.ensure_running()?;
        if visible + in_flight < lowest {
            (lowest, lowest_since) = (visible + in_flight, Instant::now());
        }
        if lowest_since.elapsed() > STALL_TIMEOUT {
            bail!(
                "no progress for {} s after the faults ended: {visible} messages visible, \
                 {in_flight} in flight",
                STALL_TIMEOUT.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// A directory that is removed on drop unless it is kept.
struct Logs(tempfile::TempDir);

impl Logs {
    fn keep(self) -> Result<PathBuf> {
        let kept = sluice_testkit::install::target_directory().join("stack/chaos");
        std::fs::create_dir_all(&kept)?;
        for entry in std::fs::read_dir(self.0.path())? {
            let path = entry?.path();
            let name = path.file_name().context("a file has a name")?;
            if path.is_file() {
                std::fs::copy(&path, kept.join(name))?;
            }
        }
        Ok(kept)
    }
}
