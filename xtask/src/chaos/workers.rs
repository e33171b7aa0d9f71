//! Starts, kills and terminates the workers, whose configurations differ at most in the URL of
//! ClickHouse.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use sluice_testkit::Cluster;
use sluice_testkit::install::{Installed, install};
use sluice_testkit::launch::{Mode, Place, Process, tail};
use sluice_testkit::xapi::write_lean_declarations;
use tokio::task::{JoinSet, spawn_blocking};

use super::world::World;
use super::{Logs, MIXED, Tally};

/// The time that a worker may take after SIGTERM, longer than Sluice's grace period and clean-up.
const GRACE: Duration = Duration::from_secs(30);
/// 128 + SIGABRT, the exit code of a failpoint.
const ABORTED: i32 = 134;

/// The first strategy needs views, which do not affect the other.
const STRATEGIES: [&str; 2] = ["single_pass", "per_type"];

/// The settings with which every worker is started.
pub(super) struct Setup {
    binary: PathBuf,
    installed: Installed,
    directory: tempfile::TempDir,
    /// One for each URL of ClickHouse.
    configurations: Vec<PathBuf>,
    /// Picks the strategy of each worker, if they are mixed.
    mixed: Option<Rng>,
    environment: Vec<(&'static str, String)>,
}

impl Setup {
    pub(super) fn new(binary: PathBuf, world: &World, strategy: &str, rng: Rng) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sluice-chaos-").tempdir()?;
        let mixed = (strategy == MIXED).then_some(rng);
        let strategy = if mixed.is_some() {
            STRATEGIES[0]
        } else {
            strategy
        };
        let types = directory.path().join("event_types");
        write_lean_declarations(&types)?;
        let mut configurations = Vec::new();
        for (number, proxy) in world.to_clickhouse.iter().enumerate() {
            let path = directory.path().join(format!("sluice-{number}.yaml"));
            let text = worker_configuration(world, &proxy.url(), strategy, &types);
            std::fs::write(&path, text)?;
            configurations.push(path);
        }
        let mut environment = world.aws.environment().to_vec();
        for (name, value) in &mut environment {
            if *name == "AWS_ENDPOINT_URL" {
                *value = world.to_sqs.url();
            }
        }
        Ok(Self {
            binary,
            installed: install()?,
            directory,
            configurations,
            mixed,
            environment,
        })
    }

    pub(super) async fn migrate(&self, world: &World) -> Result<()> {
        let configuration = self.configuration(0).display().to_string();
        let mut arguments = vec!["migrate".to_owned(), "--config".to_owned(), configuration];
        if let Some(first) = world.servers.cluster().map(|cluster| cluster.server(1, 1)) {
            // All servers take part in each statement, which can take a while. A balancer would
            // send each to another.
            for setting in ["query_timeout=5m", &format!("url={}", first.url())] {
                arguments.extend(["--set".to_owned(), format!("clickhouse.{setting}")]);
            }
        }
        let output = tokio::process::Command::new(&self.binary)
            .args(arguments)
            .envs(world.aws.environment())
            .output()
            .await
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        ensure!(
            output.status.success(),
            "sluice migrate failed ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn start(&mut self, number: usize, failpoints: &str) -> Result<Process> {
        let configuration = self.configuration(number).display().to_string();
        let mut arguments = ["run", "--config", &configuration]
            .map(str::to_owned)
            .to_vec();
        if let Some(rng) = &mut self.mixed {
            let strategy = STRATEGIES[rng.usize(..STRATEGIES.len())];
            arguments.extend(["--set".to_owned(), format!("load.strategy={strategy}")]);
        }
        let mut environment = self.environment.clone();
        environment.push(("FAILPOINTS", failpoints.to_owned()));
        let place = Place {
            directory: None,
            log: &self.log(number),
            environment: &environment,
            grace: GRACE,
        };
        Process::start(
            &self.installed,
            &Mode::Command(&self.binary, &arguments),
            &place,
        )
    }

    /// Returns the configuration of the worker with this number.
    fn configuration(&self, number: usize) -> &Path {
        &self.configurations[number % self.configurations.len()]
    }

    fn log(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("worker-{number}.log"))
    }
}

/// All times are short, so that as much as possible happens in a minute.
fn worker_configuration(world: &World, clickhouse: &str, strategy: &str, types: &Path) -> String {
    let (queue, database) = (&world.site.queue_url, &world.site.database);
    let types = types.display();
    let s3 = world.to_s3.url();
    let (engine, janitor) = match world.servers.cluster() {
        None => (String::new(), ""),
        Some(_) => (
            format!("\n  engine: replicated\n  cluster: {}", Cluster::NAME),
            "\n  janitor_interval: 1s",
        ),
    };
    format!(
        r#"queue:
  url: {queue}
  wait_time: 1s
  visibility_timeout: 10s
  retry_backoff_min: 1s
  retry_backoff_max: 2s
clickhouse:
  url: {clickhouse}
  database: {database}
  connect_timeout: 2s
  query_timeout: 5s
  insert_timeout: 20s{engine}
s3:
  clickhouse_endpoint: {s3}
  clickhouse_access:
    kind: keys
    access_key_id: test
    secret_access_key: test
batch:
  window: 500ms
  max_objects: 50
load:
  strategy: {strategy}
  retry_backoff_min: 100ms
  retry_backoff_max: 1s
  probe_interval: 500ms{janitor}
shutdown:
  grace_period: 5s
event_types:
  dir: {types}
admin:
  listen: 127.0.0.1:0
log:
  format: json
  level: info,sluice=debug
"#
    )
}

/// The place of one worker, which is empty while the worker is down.
struct Slot {
    process: Option<Process>,
    /// Workers that have received SIGTERM and are shutting down.
    stopping: JoinSet<Result<()>>,
}

pub(super) struct Workers {
    setup: Setup,
    slots: Vec<Slot>,
}

impl Workers {
    pub(super) fn start(setup: Setup, count: u64) -> Result<Self> {
        let mut workers = Self {
            setup,
            slots: Vec::new(),
        };
        for _ in 0..count {
            workers.slots.push(Slot {
                process: None,
                stopping: JoinSet::new(),
            });
        }
        for slot in 0..workers.slots.len() {
            workers.start_worker(slot, "")?;
        }
        Ok(workers)
    }

    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Starts a worker unless the slot has one. Returns whether it did.
    pub(super) fn start_worker(&mut self, number: usize, failpoints: &str) -> Result<bool> {
        let slot = &mut self.slots[number];
        if slot.process.is_some() || !slot.stopping.is_empty() {
            return Ok(false);
        }
        slot.process = Some(self.setup.start(number, failpoints)?);
        Ok(true)
    }

    /// Sends SIGKILL. Returns whether the slot had a worker.
    pub(super) fn kill(&mut self, number: usize) -> Result<bool> {
        match self.slots[number].process.take() {
            Some(process) => process.kill().map(|()| true),
            None => Ok(false),
        }
    }

    /// Sends SIGTERM without waiting. Returns whether the slot had a worker.
    pub(super) fn terminate(&mut self, number: usize) -> bool {
        let log = self.setup.log(number);
        let slot = &mut self.slots[number];
        let Some(process) = slot.process.take() else {
            return false;
        };
        slot.stopping
            .spawn(async move { stop(process, &log).await });
        true
    }

    /// Clears the slots of workers that have exited, which only a failpoint may cause.
    pub(super) fn reap(&mut self, tally: &mut Tally) -> Result<()> {
        for number in 0..self.slots.len() {
            let log = self.setup.log(number);
            let slot = &mut self.slots[number];
            while let Some(stopped) = slot.stopping.try_join_next() {
                stopped??;
            }
            let Some(process) = &mut slot.process else {
                continue;
            };
            let Some(status) = process.ended()? else {
                continue;
            };
            slot.process = None;
            ensure!(
                status.code() == Some(ABORTED),
                "worker {number} exited unexpectedly ({status}):\n{}",
                tail(&log)
            );
            tally.add("workers aborted at a failpoint");
        }
        Ok(())
    }

    /// Starts a worker without failpoints in every slot, in place of the one that runs there.
    pub(super) async fn restart_without_failpoints(&mut self, tally: &mut Tally) -> Result<()> {
        for number in 0..self.slots.len() {
            while let Some(stopped) = self.slots[number].stopping.join_next().await {
                stopped??;
            }
            self.reap(tally)?;
            // A running worker may have a failpoint.
            self.kill(number)?;
            self.start_worker(number, "")?;
        }
        Ok(())
    }

    pub(super) fn ensure_running(&mut self) -> Result<()> {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if let Some(process) = &mut slot.process
                && let Some(status) = process.ended()?
            {
                bail!("worker {number} exited unexpectedly ({status})");
            }
        }
        Ok(())
    }

    /// Sends SIGTERM to all workers and returns their logs.
    pub(super) async fn stop(mut self) -> Result<Logs> {
        for number in 0..self.slots.len() {
            self.terminate(number);
        }
        for slot in &mut self.slots {
            while let Some(stopped) = slot.stopping.join_next().await {
                stopped??;
            }
        }
        Ok(Logs(self.setup.directory))
    }
}

/// Sends SIGTERM, and requires that the worker exits as one may.
async fn stop(process: Process, log: &Path) -> Result<()> {
    let status = spawn_blocking(|| process.end()).await??;
    // A worker that dies at a failpoint while it shuts down, or that gets SIGTERM before it handles
    // signals, has also exited.
    let is_expected = matches!(status.code(), Some(0 | ABORTED | 143));
    ensure!(
        is_expected,
        "a worker exited with {status} after SIGTERM:\n{}",
        tail(log)
    );
    Ok(())
}
