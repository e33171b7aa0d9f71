//! Starts, kills and stops the workers, which have the same configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use sluice_testkit::install::{Installed, install};
use sluice_testkit::launch::{Mode, Place, Process, tail};
use sluice_testkit::xapi::write_lean_declarations;
use tokio::task::{JoinSet, spawn_blocking};

use super::{Logs, MIXED, Tally, World};

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
    configuration: PathBuf,
    /// Picks the strategy of each worker, if they are mixed.
    mixed: Option<Rng>,
    environment: Vec<(&'static str, String)>,
}

impl Setup {
    pub(super) fn new(binary: PathBuf, world: &World, strategy: &str, rng: Rng) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sluice-chaos-").tempdir()?;
        let configuration = directory.path().join("sluice.yaml");
        let mixed = (strategy == MIXED).then_some(rng);
        let strategy = if mixed.is_some() {
            STRATEGIES[0]
        } else {
            strategy
        };
        let types = directory.path().join("event_types");
        write_lean_declarations(&types)?;
        std::fs::write(&configuration, configure(world, strategy, &types))?;
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
            configuration,
            mixed,
            environment,
        })
    }

    pub(super) async fn migrate(&self, world: &World) -> Result<()> {
        let output = tokio::process::Command::new(&self.binary)
            .args(["migrate", "--config"])
            .arg(&self.configuration)
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
        let configuration = self.configuration.display().to_string();
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

    fn log(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("worker-{number}.log"))
    }
}

/// All times are short, so that as much as possible happens in a minute.
fn configure(world: &World, strategy: &str, types: &Path) -> String {
    let (queue, database) = (&world.site.queue_url, &world.site.database);
    let types = types.display();
    let (clickhouse, s3) = (world.to_clickhouse.url(), world.to_s3.url());
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
  insert_timeout: 20s
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
  probe_interval: 500ms
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

/// A seat for one worker, which is empty while the worker is down.
struct Seat {
    process: Option<Process>,
    /// The worker has received SIGTERM and is shutting down.
    stopping: JoinSet<Result<()>>,
}

pub(super) struct Workers {
    setup: Setup,
    seats: Vec<Seat>,
}

impl Workers {
    pub(super) fn start(setup: Setup, count: u64) -> Result<Self> {
        let mut workers = Self {
            setup,
            seats: Vec::new(),
        };
        for _ in 0..count {
            workers.seats.push(Seat {
                process: None,
                stopping: JoinSet::new(),
            });
        }
        for seat in 0..workers.seats.len() {
            workers.fill(seat, "")?;
        }
        Ok(workers)
    }

    pub(super) fn count(&self) -> usize {
        self.seats.len()
    }

    /// Starts a worker unless the seat has one.
    pub(super) fn fill(&mut self, seat: usize, failpoints: &str) -> Result<bool> {
        let place = &mut self.seats[seat];
        if place.process.is_some() || !place.stopping.is_empty() {
            return Ok(false);
        }
        place.process = Some(self.setup.start(seat, failpoints)?);
        Ok(true)
    }

    /// Sends SIGKILL.
    pub(super) fn kill(&mut self, seat: usize) -> Result<bool> {
        match self.seats[seat].process.take() {
            Some(process) => process.kill().map(|()| true),
            None => Ok(false),
        }
    }

    /// Sends SIGTERM without waiting.
    pub(super) fn stop_one(&mut self, seat: usize) -> bool {
        let log = self.setup.log(seat);
        let place = &mut self.seats[seat];
        let Some(process) = place.process.take() else {
            return false;
        };
        place
            .stopping
            .spawn(async move { end(process, &log).await });
        true
    }

    /// Clears the seats of workers that have exited, which only a failpoint may cause.
    pub(super) fn bury(&mut self, tally: &mut Tally) -> Result<()> {
        for number in 0..self.seats.len() {
            let log = self.setup.log(number);
            let place = &mut self.seats[number];
            while let Some(stopped) = place.stopping.try_join_next() {
                stopped??;
            }
            let Some(process) = &mut place.process else {
                continue;
            };
            let Some(status) = process.ended()? else {
                continue;
            };
            place.process = None;
            ensure!(
                status.code() == Some(ABORTED),
                "worker {number} ended by itself ({status}):\n{}",
                tail(&log)
            );
            tally.add("workers that died at a failpoint");
        }
        Ok(())
    }

    /// Gives every seat a worker without failpoints.
    pub(super) async fn all_well(&mut self, tally: &mut Tally) -> Result<()> {
        for seat in 0..self.seats.len() {
            while let Some(stopped) = self.seats[seat].stopping.join_next().await {
                stopped??;
            }
            self.bury(tally)?;
            // A running worker may have a failpoint.
            self.kill(seat)?;
            self.fill(seat, "")?;
        }
        Ok(())
    }

    pub(super) fn must_run(&mut self) -> Result<()> {
        for (number, seat) in self.seats.iter_mut().enumerate() {
            if let Some(process) = &mut seat.process
                && let Some(status) = process.ended()?
            {
                bail!("worker {number} ended by itself ({status})");
            }
        }
        Ok(())
    }

    /// Sends SIGTERM to all workers and returns their logs.
    pub(super) async fn stop(mut self) -> Result<Logs> {
        for seat in 0..self.seats.len() {
            self.stop_one(seat);
        }
        for seat in &mut self.seats {
            while let Some(stopped) = seat.stopping.join_next().await {
                stopped??;
            }
        }
        Ok(Logs(self.setup.directory))
    }
}

async fn end(process: Process, log: &Path) -> Result<()> {
    let status = spawn_blocking(|| process.end()).await??;
    // A worker that dies at a failpoint while it shuts down, or that gets SIGTERM before it handles
    // signals, has also exited.
    let fine = matches!(status.code(), Some(0 | ABORTED | 143));
    ensure!(
        fine,
        "a worker that was told to stop ended with {status}:\n{}",
        tail(log)
    );
    Ok(())
}
