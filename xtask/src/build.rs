//! Builds the programs of this workspace.

use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, ensure};
use sluice_testkit::install::target_directory;

use crate::console::note;

/// The packages and features with which the tests are built.
pub(crate) const TEST_FEATURES: &str = "sluice/failpoints";

/// Builds the daemon as the tests do, so that they share all compiled code, and returns the path of
/// its binary.
pub(crate) fn sluice() -> Result<PathBuf> {
    let options = ["--workspace", "--features", TEST_FEATURES];
    build("sluice", "debug", &options)
}

/// Builds a program with optimisations, and returns the path of its binary.
pub(crate) fn release(program: &str) -> Result<PathBuf> {
    build(program, "release", &["--release", "--package", program])
}

/// Builds the simulation in the profile of that name, and returns the path of its binary.
pub(crate) fn simulation() -> Result<PathBuf> {
    let program = "sluice-sim";
    build(program, "sim", &["--profile", "sim", "--package", program])
}

/// Returns a program's own exit code if it fits, and a failure if a signal killed it.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

fn build(program: &str, profile: &str, options: &[&str]) -> Result<PathBuf> {
    note(&format!("building {program}"));
    let status = Command::new(crate::test::cargo())
        .args(["build", "--quiet", "--bin", program])
        .args(options)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "{program} does not build: see above");
    Ok(target_directory().join(profile).join(program))
}
