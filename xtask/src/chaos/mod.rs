//! `cargo xtask chaos`: injects random faults for a while, and then checks that every row of every
//! object exists once.

mod arrivals;
mod faults;
mod outages;
mod workers;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use sluice_testkit::proxy::Proxy;
use sluice_testkit::xapi::{Bundle, EventType};
use tokio::time::Instant;

use crate::console::{Progress, note, print};
use crate::interrupt::Interrupt;
use arrivals::Arrivals;
use workers::{Setup, Workers};
use world::World;

/// The minimum that the configuration allows. A lease lasts equally long.
const VISIBILITY: Duration = Duration::from_secs(10);
/// Worker crashes use up receives and must not make messages dead letters.
const MAX_RECEIVE_COUNT: u32 = 1000;
/// After the faults end, the queue must become shorter within this time.
const STALL_TIMEOUT: Duration = Duration::from_secs(180);
/// After that, every server of a cluster must have every row once within this time. A table can be
/// read-only for most of a minute after its server and its Keeper were started.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(180);
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
    /// Load into replicated tables of a cluster, whose servers and Keeper fail as well
    ///
    /// Servers are killed and paused one by one, the Keeper is killed, and replicas stop fetching
    /// rows of a table. The seed chooses whether a balancer gives each connection to the next
    /// server or each worker has its own server.
    #[arg(long)]
    cluster: bool,
    /// Number of replicas in the cluster
    #[arg(
        long,
        default_value_t = 2,
        requires = "cluster",
        value_parser = clap::value_parser!(u8).range(2..=3)
    )]
    replicas: u8,
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

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let binary = match &arguments.sluice {
        Some(binary) => binary.clone(),
        None => crate::build::sluice()?,
    };
    let mut interrupt = Interrupt::new()?;
    let mut rng = Rng::with_seed(arguments.seed);
    let replicas = arguments.cluster.then_some(usize::from(arguments.replicas));
    let world = World::start(replicas, &mut rng).await?;
    if let Some(route) = world.route() {
        note(route);
    }
    let setup = Setup::new(binary, &world, &arguments.strategy, rng.fork())?;
    setup.migrate(&world).await?;
    world.keep_duplicates().await?;
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
    let drained = match drain(world, &mut workers).await {
        Ok(()) => settle(world, &mut workers, &arrived.bundles).await,
        failed => failed,
    };
    let logs = workers.stop().await?;
    if let Err(error) = drained {
        bail!(
            "{error:#}; the workers' logs are in {}",
            logs.keep()?.display()
        );
    }

    tally.add_many("duplicate announcements", arrived.duplicates);
    let mut problems = match world.differences(&arrived.bundles).await {
        Ok(differences) => differences,
        Err(error) => format!("failed to compare the rows: {error:#}\n"),
    };
    let dead = world.site.dlq_depth().await?;
    if dead > 0 {
        problems.push_str(&format!("{dead} messages are in the dead-letter queue\n"));
    }
    print("");
    for (what, count) in &tally.0 {
        print(&format!("{count:>8}  {what}"));
    }
    for (connection, proxies) in world.connections() {
        let mut hits = BTreeMap::new();
        for (fault, count) in proxies.iter().flat_map(Proxy::hits_by_fault) {
            *hits.entry(fault).or_insert(0) += count;
        }
        for (fault, count) in hits {
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
        let place = match world.servers.all().len() {
            1 => String::new(),
            servers => format!(" on each of {servers} servers"),
        };
        print(&format!(
            "passed: seed {seed}, {seconds} s, {objects} objects, {rows} event rows, \
             each exactly once{place}"
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

/// Waits until every server of a cluster has every row once. The rows of statements that outlive
/// their batches are deleted by workers, so these must be running. If it takes too long, the
/// comparison that follows shows the differences.
async fn settle(world: &World, workers: &mut Workers, expected: &[Bundle]) -> Result<()> {
    if world.servers.cluster().is_none() {
        return Ok(());
    }
    let begun = Instant::now();
    let mut progress = Progress::new();
    while begun.elapsed() < SETTLE_TIMEOUT {
        let differences = world.differences(expected).await;
        if differences.as_ref().is_ok_and(String::is_empty) {
            break;
        }
        progress.show("waiting for every server to have every row once");
        workers.ensure_running()?;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
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
