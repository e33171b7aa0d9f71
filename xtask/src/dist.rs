//! `cargo xtask dist`: the release archive, its bill of materials, and their checksums.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use sluice_testkit::install::{self, target_directory};
use sluice_testkit::project;

use crate::console::note;

/// Writes the bill of materials, in CycloneDX.
const CYCLONEDX: &str = "cargo-cyclonedx@0.5.9";
/// The files in the archive in addition to the program.
const FILES: &[&str] = &[
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "SECURITY.md",
    "config",
    "deploy",
    "docs",
    "helm",
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Skip the bill of materials, which needs cargo-cyclonedx
    #[arg(long)]
    no_sbom: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = project::path("");
    let built = crate::build::release("sluice")?;
    let dist = target_directory().join("dist");
    if dist.exists() {
        fs::remove_dir_all(&dist)?;
    }
    let name = format!("sluice-{}-{}", env!("CARGO_PKG_VERSION"), host()?);
    let directory = dist.join(&name);
    fs::create_dir_all(&directory)?;
    let program = directory.join("sluice");
    install::run(
        Command::new("strip")
            .arg("--output-file")
            .arg(&program)
            .arg(built),
    )?;
    install::run(
        Command::new("cp")
            .arg("--recursive")
            .args(FILES.iter().map(|file| root.join(file)))
            .arg(&directory),
    )?;
    // The same sources must produce the same archive.
    let archive = format!("{name}.tar.gz");
    install::run(
        Command::new("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
            .args(["--mtime=2000-01-01 00:00Z", "--mode=go-w"])
            .args([
                "--use-compress-program=gzip --no-name",
                "--create",
                "--file",
            ])
            .args([&archive, &name])
            .current_dir(&dist),
    )?;
    fs::remove_dir_all(&directory)?;
    let mut files = vec![archive];
    if !arguments.no_sbom {
        files.push(bill_of_materials(&root, &dist)?);
    }
    let sums = Command::new("sha256sum")
        .args(&files)
        .current_dir(&dist)
        .output()?;
    ensure!(sums.status.success(), "sha256sum failed");
    fs::write(dist.join("SHA256SUMS"), &sums.stdout)?;
    note(&format!("{}:", dist.display()));
    note(String::from_utf8_lossy(&sums.stdout).trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Returns the target triple of this platform.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output()?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc printed no host")
}

fn bill_of_materials(root: &Path, dist: &Path) -> Result<String> {
    let tools = target_directory().join("tools");
    let program: PathBuf = tools.join("bin/cargo-cyclonedx");
    if !program.exists() {
        note(&format!("installing {CYCLONEDX} (once)"));
        install::run(
            Command::new(crate::test::cargo())
                .args(["install", "--quiet", "--locked", "--root"])
                .arg(&tools)
                .arg(CYCLONEDX),
        )?;
    }
    let name = "sluice.cdx";
    install::run(
        Command::new(program)
            .args(["cyclonedx", "--quiet", "--format", "json"])
            .args(["--override-filename", name])
            .current_dir(root),
    )?;
    let file = format!("{name}.json");
    fs::rename(root.join(&file), dist.join(&file))?;
    // These belong to the packages that are not released.
    for package in ["core", "testkit", "xtask"] {
        fs::remove_file(root.join(package).join(&file))?;
    }
    Ok(file)
}
