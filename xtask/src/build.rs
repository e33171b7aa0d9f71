//! Builds the programs of this workspace.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sluice_testkit::install::target_directory;

use crate::console::note;

/// Builds the daemon, and says where its binary is.
pub(crate) fn sluice(release: bool, features: &[&str]) -> Result<PathBuf> {
    let mut options: Vec<&str> = features.iter().flat_map(|it| ["--features", it]).collect();
    if release {
        options.push("--release");
    }
    build("sluice", &options)
}

/// Builds a program with optimisations.
pub(crate) fn release(program: &str) -> Result<PathBuf> {
    build(program, &["--release"])
}

fn build(program: &str, options: &[&str]) -> Result<PathBuf> {
    note(&format!("building {program}"));
    let status = Command::new(crate::test::cargo())
        .args(["build", "--quiet", "--package", program, "--bin", program])
        .args(options)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "{program} does not build: see above");
    let release = options.contains(&"--release");
    let profile = if release { "release" } else { "debug" };
    Ok(target_directory().join(profile).join(program))
}
