//! Sluice as a child process of the demo: built, configured, migrated and started.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use sluice_testkit::install::{install, target_directory};
use sluice_testkit::launch::{Mode, Place, Process, tail};
use sluice_testkit::{Site, Stack, free_port};
use tempfile::TempDir;

/// Long enough to finish a batch, and short enough that the worker of a killed demo soon exits.
const GRACE: Duration = Duration::from_secs(3);

pub(crate) struct Daemon {
    // The process must exit before its directory is removed.
    process: Process,
    directory: TempDir,
    admin_port: u16,
}

impl Daemon {
    pub(crate) async fn start(binary: &Path, stack: &Stack, site: &Site) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sluice-demo-").tempdir()?;
        let admin_port = free_port()?;
        let path = directory.path().join("sluice.yaml");
        std::fs::write(&path, configuration(stack, site, admin_port))?;

        stack
            .clickhouse
            .execute(&format!("CREATE DATABASE IF NOT EXISTS {}", site.database))
            .await?;
        migrate(binary, &path, stack)?;

        let arguments = ["run", "--config", &path.display().to_string()].map(str::to_owned);
        let place = Place {
            directory: Some(directory.path()),
            log: &directory.path().join("sluice.log"),
            environment: &stack.aws.environment(),
            grace: GRACE,
        };
        let process = Process::start(&install()?, &Mode::Command(binary, &arguments), &place)?;
        Ok(Self {
            process,
            directory,
            admin_port,
        })
    }

    /// Returns an error if the process has exited, which it must not do by itself.
    pub(super) fn ensure_running(&mut self) -> Result<()> {
        match self.process.ended()? {
            Some(status) => bail!("sluice exited unexpectedly ({status})"),
            None => Ok(()),
        }
    }

    /// Adds the end of Sluice's log to an error, and copies the whole log to where it outlives the
    /// demo.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let kept = target_directory().join("stack").join("demo-sluice.log");
        let full_log = match std::fs::copy(self.log(), &kept) {
            Ok(_) => format!("the full log is in {}", kept.display()),
            Err(problem) => format!("cannot copy the log: {problem}"),
        };
        anyhow!(
            "{error:#}\nsluice's log ends with:\n{}\n{full_log}",
            tail(&self.log())
        )
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.path().join("sluice.log")
    }

    pub(crate) fn configuration(&self) -> PathBuf {
        self.directory.path().join("sluice.yaml")
    }

    pub(super) fn metrics_url(&self) -> String {
        format!("http://127.0.0.1:{}/metrics", self.admin_port)
    }
}

fn migrate(binary: &Path, configuration: &Path, stack: &Stack) -> Result<()> {
    let output = Command::new(binary)
        .args(["migrate", "--config"])
        .arg(configuration)
        .envs(stack.aws.environment())
        .output()
        .with_context(|| format!("cannot run {}", binary.display()))?;
    ensure!(
        output.status.success(),
        "sluice migrate failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn configuration(stack: &Stack, site: &Site, admin_port: u16) -> String {
    let (queue, database) = (&site.queue_url, &site.database);
    let (clickhouse, s3) = (stack.clickhouse.url(), stack.aws.endpoint());
    format!(
        r#"queue:
  url: {queue}
clickhouse:
  url: {clickhouse}
  user: default
  password: ""
  database: {database}
s3:
  clickhouse_endpoint: {s3}
  clickhouse_access:
    kind: keys
    access_key_id: test
    secret_access_key: test
batch:
  window: 1s
admin:
  listen: 127.0.0.1:{admin_port}
log:
  format: text
  level: info
"#
    )
}
