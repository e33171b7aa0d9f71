//! `cargo xtask test`: all tests, with one stack for all of them.

use std::process::ExitCode;

use anyhow::{Context, Result};
use sluice_testkit::{AWS_ENDPOINT_VARIABLE, CLICKHOUSE_URL_VARIABLE, Stack, install};
use tokio::process::Command;

use crate::interrupt::Interrupt;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Passed on to cargo test
    #[arg(last = true)]
    cargo: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    // What is missing is better told before the tests than by some of them.
    install::chromium()?;
    let stack = Stack::given_or_started()?;
    let mut interrupt = Interrupt::new()?;
    let mut tests = Command::new(cargo())
        .args(["test", "--workspace", "--features", "sluice/failpoints"])
        .args(arguments.cargo)
        .env(CLICKHOUSE_URL_VARIABLE, stack.clickhouse.url())
        .env(AWS_ENDPOINT_VARIABLE, stack.aws.endpoint())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run cargo")?;
    let status = tokio::select! {
        status = tests.wait() => status?,
        // A Ctrl-C reaches cargo as well; whatever else ends us must end it too.
        () = interrupt.wait() => {
            tests.kill().await?;
            return Ok(ExitCode::FAILURE);
        }
    };
    // Cargo's code, as far as it fits; none when a signal ended it.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The cargo that runs us, else the one in the path.
pub(crate) fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
