//! Programs that some tests need and that not every machine has.
//!
//! A test that cannot run prints one line about it and passes. `cargo xtask test` repeats these
//! lines at its end. If [`SKIP_VARIABLE`] is `deny`, as in `.ci/run`, such a test fails instead.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::{Aws, CLUSTER_VARIABLE, account, cluster, install};

/// The environment variable that makes a test that cannot run fail, if it is `deny`.
pub const SKIP_VARIABLE: &str = "SLUICE_TEST_SKIP";
/// The environment variable with the file to which the lines of skipped tests are appended.
pub const SKIPPED_FILE_VARIABLE: &str = "SLUICE_TEST_SKIPPED_FILE";

/// A program that only some tests need.
#[derive(Clone, Copy, Debug)]
pub enum Requirement {
    /// Chromium, for the tests of the live page.
    Chromium,
    /// `prometheus` and `promtool`, for the tests of alerts and dashboards.
    Prometheus,
    /// Java and ZooKeeper, for the tests that need a Keeper.
    ZooKeeper,
    /// A replicated ClickHouse, for tests that use one: servers that [`crate::CLUSTER_VARIABLE`]
    /// names, or what is needed to start them.
    Cluster,
    /// A replicated ClickHouse of the test's own, for tests that kill its servers: Java and
    /// ZooKeeper, and the one build of the engine that can be a replica (Linux on x86-64). It is not
    /// met where [`crate::CLUSTER_VARIABLE`] names a cluster.
    OwnCluster,
    /// An S3 behind a proxy that injects faults. AWS itself is not: its signatures cover the host.
    FaultyS3,
}

impl Requirement {
    /// All requirements.
    pub const ALL: [Self; 6] = [
        Self::Chromium,
        Self::Prometheus,
        Self::ZooKeeper,
        Self::Cluster,
        Self::OwnCluster,
        Self::FaultyS3,
    ];

    /// Installs the program if possible, and returns whether the test can run.
    ///
    /// # Panics
    ///
    /// Panics if the program is missing and [`SKIP_VARIABLE`] is `deny`.
    #[must_use]
    pub fn is_met(self) -> bool {
        let Err(missing) = self.install() else {
            return true;
        };
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let line = format!("SKIPPED {test}: {missing:#}").replace('\n', " ");
        let is_denied = std::env::var_os(SKIP_VARIABLE).is_some_and(|value| value == "deny");
        assert!(!is_denied, "{line}");
        report(&line);
        false
    }

    /// Installs the program if possible.
    ///
    /// # Errors
    ///
    /// Fails if the program is missing and cannot be installed; the error includes what to do.
    pub fn install(self) -> Result<()> {
        match self {
            Self::Chromium => install::chromium().map(drop),
            Self::Prometheus => install::install_prometheus().map(drop),
            Self::ZooKeeper => install::install_zookeeper().map(drop),
            Self::Cluster if cluster::is_given() => Ok(()),
            Self::OwnCluster if cluster::is_given() => bail!(
                "it kills servers, and those that {CLUSTER_VARIABLE} names were started elsewhere"
            ),
            Self::Cluster | Self::OwnCluster => install::install_cluster().map(drop),
            Self::FaultyS3 => {
                let aws = account::is_requested().then(Aws::account);
                let is_plain = |aws: &Aws| aws.endpoint().starts_with("http://");
                ensure!(
                    aws.as_ref().is_none_or(is_plain),
                    "it injects faults between S3 and its clients, which AWS does not allow"
                );
                Ok(())
            }
        }
    }
}

#[expect(clippy::print_stderr, reason = "a person reads it")]
fn report(line: &str) {
    eprintln!("{line}");
    let Some(file) = std::env::var_os(SKIPPED_FILE_VARIABLE).map(PathBuf::from) else {
        return;
    };
    let append = || -> Result<()> {
        let mut file = File::options().create(true).append(true).open(&file)?;
        // The line is written at once, so that lines of concurrent tests do not mix.
        Ok(file.write_all(format!("{line}\n").as_bytes())?)
    };
    append()
        .with_context(|| format!("cannot write to {}", file.display()))
        .expect("a skipped test is reported");
}
