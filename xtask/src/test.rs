//! `cargo xtask test`: all tests, with one stack for all of them.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use sluice_testkit::requirement::SKIPPED_FILE_VARIABLE;
use sluice_testkit::{AWS_ENDPOINT_VARIABLE, CLICKHOUSE_URL_VARIABLE, Requirement, Stack, install};
use tokio::process::{Child, Command};

use crate::console::note;
use crate::interrupt::Interrupt;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Passed on to cargo-nextest, such as the name of a test
    #[arg(last = true)]
    nextest: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let nextest = install::install_cargo_tools()?.join("cargo-nextest");
    std::thread::spawn(install_while_tests_compile);
    let stack = Stack::given_or_started()?;
    let skipped = tempfile::NamedTempFile::new()?;
    let mut interrupt = Interrupt::new()?;
    let mut tests = Command::new(nextest)
        .args(["nextest", "run", "--workspace", "--no-fail-fast"])
        .args(["--features", crate::build::TEST_FEATURES])
        .args(arguments.nextest)
        .env(CLICKHOUSE_URL_VARIABLE, stack.clickhouse.url())
        .env(AWS_ENDPOINT_VARIABLE, stack.aws.endpoint())
        .env(SKIPPED_FILE_VARIABLE, skipped.path())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run cargo-nextest")?;
    let status = tokio::select! {
        status = tests.wait() => status?,
        () = interrupt.wait() => {
            end(&mut tests).await?;
            return Ok(ExitCode::FAILURE);
        }
    };
    report_skipped(skipped.path())?;
    Ok(crate::build::exit_code(status))
}

/// Asks nextest to end the tests and what they have started, and waits for that. (A Ctrl-C reaches it
/// by itself; whatever else ends us must end it, too.)
async fn end(nextest: &mut Child) -> Result<()> {
    if let Some(pid) = nextest.id() {
        let kill = Command::new("kill").arg(pid.to_string()).status();
        kill.await.context("cannot run kill")?;
    }
    nextest.wait().await?;
    Ok(())
}

/// Installs what some tests need. A test that comes first waits for it, or does it again and says
/// what is wrong.
fn install_while_tests_compile() {
    drop(install::install_deploy_tools());
    for requirement in Requirement::ALL {
        drop(requirement.install());
    }
}

/// Repeats why tests were skipped: what a test that passes prints is not shown.
fn report_skipped(lines: &Path) -> Result<()> {
    for line in std::fs::read_to_string(lines)?.lines() {
        note(line);
    }
    Ok(())
}

/// The cargo that runs us, else the one in the path.
pub(crate) fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
