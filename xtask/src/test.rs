//! `cargo xtask test`: runs all tests on one shared stack.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use sluice_testkit::requirement::SKIPPED_FILE_VARIABLE;
use sluice_testkit::{
    AWS_ENDPOINT_VARIABLE, CLICKHOUSE_URL_VARIABLE, Cluster, REPLICAS_VARIABLE, Requirement, Stack,
    install,
};
use tokio::process::{Child, Command};

use crate::console::note;
use crate::interrupt::Interrupt;

/// The tests of faults except those that start clusters of their own, and those that restore tables
/// which an earlier version has made on one server.
const ON_REPLICAS: &str = "not test(/^(replicas|upgrade)::/)";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run the tests of faults, and no others, on this many replicas instead of on one server
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=3))]
    replicas: Option<u8>,
    /// Arguments for cargo-nextest, such as the name of a test
    #[arg(last = true)]
    nextest: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let nextest = install::install_cargo_tools()?.join("cargo-nextest");
    std::thread::spawn(install_while_tests_compile);
    let stack = Stack::connect_or_start()?;
    let cluster = arguments.replicas.map(|it| Cluster::start(1, it.into()));
    let cluster = cluster.transpose()?;
    let skipped = tempfile::NamedTempFile::new()?;
    let mut interrupt = Interrupt::new()?;
    let mut tests = Command::new(nextest);
    tests
        .args(["nextest", "run", "--workspace", "--no-fail-fast"])
        .args(["--features", crate::build::TEST_FEATURES])
        .env(CLICKHOUSE_URL_VARIABLE, stack.clickhouse.url())
        .env(AWS_ENDPOINT_VARIABLE, stack.aws.endpoint())
        .env(SKIPPED_FILE_VARIABLE, skipped.path())
        .kill_on_drop(true);
    if let Some(cluster) = &cluster {
        tests
            .args(["--test", "faults", "-E", ON_REPLICAS])
            .env(REPLICAS_VARIABLE, cluster.urls().join(","));
    }
    let mut tests = tests
        .args(arguments.nextest)
        .spawn()
        .context("cannot run cargo-nextest")?;
    let status = tokio::select! {
        status = tests.wait() => status?,
        () = interrupt.wait() => {
            stop(&mut tests).await?;
            return Ok(ExitCode::FAILURE);
        }
    };
    report_skipped(skipped.path())?;
    Ok(crate::build::exit_code(status))
}

/// Sends nextest a signal to stop the tests and their processes, and waits until it exits. (Ctrl-C
/// reaches nextest directly; SIGTERM does not.)
async fn stop(nextest: &mut Child) -> Result<()> {
    if let Some(pid) = nextest.id() {
        let kill = Command::new("kill").arg(pid.to_string()).status();
        kill.await.context("cannot run kill")?;
    }
    nextest.wait().await?;
    Ok(())
}

/// Installs the programs that some tests need. A test that starts earlier waits for the
/// installation, or repeats it and reports the error.
fn install_while_tests_compile() {
    drop(install::install_deploy_tools());
    for requirement in Requirement::ALL {
        drop(requirement.install());
    }
}

/// Prints why tests were skipped, since the output of tests that pass is not shown.
fn report_skipped(lines: &Path) -> Result<()> {
    for line in std::fs::read_to_string(lines)?.lines() {
        note(line);
    }
    Ok(())
}

/// Returns the cargo that started this process, or else the one in the path.
pub(crate) fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
