//! Builds the daemon.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sluice_testkit::install::target_directory;

use crate::console::note;

/// Builds it, and says where its binary is.
pub(crate) fn sluice(release: bool, features: &[&str]) -> Result<PathBuf> {
    note("building sluice");
    let mut cargo = Command::new(crate::test::cargo());
    cargo.args(["build", "--quiet", "--package", "sluice", "--bin", "sluice"]);
    for feature in features {
        cargo.args(["--features", feature]);
    }
    if release {
        cargo.arg("--release");
    }
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "sluice does not build: see above");
    let profile = if release { "release" } else { "debug" };
    Ok(target_directory().join(profile).join("sluice"))
}
