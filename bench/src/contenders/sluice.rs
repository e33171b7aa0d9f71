//! Sluice: a queue full of messages, and a worker that starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sluice_testkit::free_port;
use sluice_testkit::install::install;
use sluice_testkit::launch::{Mode, Place, Process};
use tempfile::TempDir;
use tokio::time::sleep;

use super::Run;
use crate::harness::{Database, Harness};
use crate::meter::{Meter, processor_seconds};
use crate::objects::Requests;
use crate::queue::{Addresses, QueueServer};
use crate::workload::Uploaded;

const POLL: Duration = Duration::from_millis(50);
/// The time that a worker may take for a clean shutdown.
const GRACE: Duration = Duration::from_secs(10);

/// The worker's own costs of a run.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Cost {
    pub(crate) cpu_seconds: f64,
    /// The peak resident memory.
    pub(crate) peak_mib: f64,
    /// The number of requests to SQS, if they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sqs_requests: Option<u64>,
    /// The number of requests to S3 including ClickHouse's, if they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) s3_requests: Option<Requests>,
    /// ClickHouse's processor time for the statements of the run, if it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clickhouse_cpu_seconds: Option<f64>,
    /// The share of the cores that other programs used, if it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) other_load: Option<f64>,
}

/// Runs the program `sluice`. `extra` is additional configuration, as YAML.
pub(crate) async fn run(
    sluice: &Path,
    harness: &Harness,
    uploaded: &Uploaded,
    extra: &str,
) -> Result<Run> {
    let database = harness.database().await?;
    let run = load_with(sluice, 1, extra, harness, uploaded, &database).await?;
    database.remove().await?;
    Ok(run)
}

/// Measures from the first receive from a full queue until the last message is deleted.
pub(crate) async fn load_with(
    sluice: &Path,
    workers: usize,
    extra: &str,
    harness: &Harness,
    uploaded: &Uploaded,
    database: &Database<'_>,
) -> Result<Run> {
    let before = harness.objects.requests();
    let queue = QueueServer::start(&uploaded.objects).await?;
    let at = queue.addresses(&harness.objects);
    let workers = (0..workers).map(|_| Worker::prepare(sluice, harness, &at, database, "", extra));
    let workers: Vec<Worker> = workers.collect::<Result<_>>()?;
    let meter = Meter::start(harness)?;
    let running = workers.into_iter().map(Worker::start);
    let mut running: Vec<Running> = running.collect::<Result<_>>()?;
    let Some(first) = running.first_mut() else {
        bail!("no workers");
    };
    first
        .wait_until(async || Ok(queue.depth().await? == (0, 0)))
        .await?;
    let took = queue.processing_time()?;
    let cost = Cost {
        sqs_requests: Some(queue.requests()),
        s3_requests: Some(harness.objects.requests().since(before)),
        ..first.cost()?
    };
    let programs: Vec<u32> = running.iter().flat_map(|it| it.process.pids()).collect();
    let used = meter.stop(harness, &programs).await?;
    let cost = Cost {
        clickhouse_cpu_seconds: Some(used.clickhouse_seconds),
        other_load: Some(used.other_load),
        ..cost
    };
    drop(running);
    database.ensure_rows(&uploaded.expected_rows).await?;
    Ok(Run {
        cost: Some(cost),
        ..Run::of(uploaded.objects.len(), took)
    })
}

/// A worker that is configured and whose tables exist.
pub(crate) struct Worker {
    sluice: PathBuf,
    directory: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Worker {
    /// Lets the program `sluice` create the tables. `queue` and `extra` are additional YAML for the
    /// section `queue` and for the top level. All versions accept the rest.
    pub(crate) fn prepare(
        sluice: &Path,
        harness: &Harness,
        at: &Addresses,
        database: &Database<'_>,
        queue: &str,
        extra: &str,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sluice-bench-").tempdir()?;
        let mut environment = harness.objects.aws.environment().to_vec();
        environment.push(("AWS_ENDPOINT_URL_S3", at.s3.clone()));
        environment.push(("AWS_ENDPOINT_URL_SQS", at.sqs.clone()));
        let worker = Self {
            sluice: sluice.to_owned(),
            directory,
            environment,
        };
        let text = format!(
            r#"queue:
  url: {}
{queue}clickhouse:
  url: {}
  database: {}
s3:
  clickhouse_endpoint: {}
  clickhouse_access:
    kind: keys
    access_key_id: test
    secret_access_key: test
admin:
  listen: 127.0.0.1:{}
{extra}"#,
            at.queue_url,
            harness.clickhouse.url(),
            database.name,
            at.s3,
            free_port()?,
        );
        fs::write(worker.configuration(), text)?;
        let migrated = worker.command(&["migrate"]).output()?;
        let stderr = String::from_utf8_lossy(&migrated.stderr);
        ensure!(migrated.status.success(), "sluice migrate failed: {stderr}");
        Ok(worker)
    }

    /// Runs another command of the program.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.sluice);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.configuration())
            .envs(self.environment.clone());
        command
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("sluice.yaml")
    }

    pub(crate) fn start(self) -> Result<Running> {
        let configuration = self.configuration().display().to_string();
        let arguments = ["run", "--config", &configuration].map(str::to_owned);
        let log = self.directory.path().join("sluice.log");
        let place = Place {
            directory: None,
            log: &log,
            environment: &self.environment,
            grace: GRACE,
        };
        let mode = Mode::Command(&self.sluice, &arguments);
        let process = Process::start(&install()?, &mode, &place)?;
        Ok(Running {
            process,
            _worker: self,
        })
    }
}

/// A running worker, which is stopped when it is dropped.
pub(crate) struct Running {
    process: Process,
    /// Keeps the worker's directory.
    _worker: Worker,
}

impl Running {
    /// Waits until the condition is true.
    pub(crate) async fn wait_until(
        &mut self,
        condition: impl AsyncFn() -> Result<bool>,
    ) -> Result<()> {
        while !condition().await? {
            self.ensure_running()?;
            sleep(POLL).await;
        }
        Ok(())
    }

    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.process.ended()? {
            bail!(
                "sluice exited unexpectedly ({status}):\n{}",
                self.process.log_tail()
            );
        }
        Ok(())
    }

    /// Returns the costs so far.
    pub(crate) fn cost(&self) -> Result<Cost> {
        Ok(Cost {
            cpu_seconds: processor_seconds(self.pid())?,
            peak_mib: memory(self.pid(), "VmHWM:")?,
            sqs_requests: None,
            s3_requests: None,
            clickhouse_cpu_seconds: None,
            other_load: None,
        })
    }

    /// Returns the current resident memory.
    pub(crate) fn rss_mib(&self) -> Result<f64> {
        memory(self.pid(), "VmRSS:")
    }

    fn pid(&self) -> u32 {
        let [_, pid] = self.process.pids();
        pid
    }
}

/// Returns a memory figure of a running process in MiB, by its name in `/proc/PID/status`.
pub(crate) fn memory(pid: u32, name: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: f64 = kib.with_context(|| format!("no {name}"))?.parse()?;
    Ok(kib / 1024.0)
}
