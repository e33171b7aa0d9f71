//! A copy of the sources, into which mutants are put, and the simulation that is built from it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_testkit::project;
use tokio::process::Command;
use tokio::time::timeout;

use super::list::Mutant;

/// What cargo reads to build the simulation: it resolves all members of the workspace.
const SOURCES: &[&str] = &[
    ".cargo",
    "Cargo.lock",
    "Cargo.toml",
    "rust-toolchain.toml",
    "bench",
    "config",
    "core",
    "sim",
    "src",
    "testkit",
    "tests",
    "xtask",
];
const PROGRAM: &str = "sluice-sim";

/// The simulation is built once for each mutant, and mostly runs for seconds: fewer optimisations
/// than in its profile, and nothing is compiled again that has not changed.
const PROFILE: &[(&str, &str)] = &[
    ("CARGO_INCREMENTAL", "1"),
    ("CARGO_PROFILE_SIM_CODEGEN_UNITS", "64"),
    ("CARGO_PROFILE_SIM_DEBUG", "0"),
    ("CARGO_PROFILE_SIM_OPT_LEVEL", "1"),
    // A mutant may leave a variable or a function unused.
    ("RUSTFLAGS", "--cap-lints allow"),
];
/// Would have Clippy compile the mutants, and refuse them for its lints (.ci/run).
const WRAPPER: &str = "RUSTC_WORKSPACE_WRAPPER";

/// The simulation runs without waiting. One that takes longer than this does not end.
const TIME_LIMIT: Duration = Duration::from_secs(900);

/// The result of a run of the simulation.
pub(super) enum Outcome {
    DoesNotBuild,
    /// A world has failed.
    Failed {
        seed: u64,
        /// The number of seeds that were tried, if the simulation reports it.
        tried: Option<u64>,
    },
    Passed {
        seeds: u64,
    },
    TooSlow,
    /// It has ended without a result, for instance because it was called with an unknown argument.
    Ended(ExitStatus),
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::DoesNotBuild => write!(f, "DOES NOT BUILD"),
            Self::Failed { seed, tried: None } => write!(f, "found by seed {seed}"),
            Self::Failed {
                seed,
                tried: Some(tried),
            } => write!(f, "found by seed {seed} after {tried} seeds"),
            Self::Passed { seeds } => write!(f, "NOT FOUND in {seeds} seeds"),
            Self::TooSlow => write!(f, "NOT FOUND in {} s", TIME_LIMIT.as_secs()),
            Self::Ended(status) => write!(f, "NOT FOUND, the simulation ended with {status}"),
        }
    }
}

/// The copy, the programs that are built from it, and their logs, in one directory.
pub(super) struct Tree {
    directory: PathBuf,
}

impl Tree {
    /// Copies the sources. Files that are the same keep their times, by which cargo recognises that
    /// they need not be compiled again.
    pub(super) fn copy(directory: PathBuf) -> Result<Self> {
        let tree = Self { directory };
        fs::create_dir_all(tree.source(""))?;
        fs::create_dir_all(tree.directory.join("logs"))?;
        for source in SOURCES {
            copy(&project::path(source), &tree.source(source))
                .with_context(|| format!("cannot copy {source}"))?;
        }
        Ok(tree)
    }

    fn source(&self, file: &str) -> PathBuf {
        self.directory.join("tree").join(file)
    }

    fn target(&self) -> PathBuf {
        self.directory.join("target")
    }

    /// Returns the file that has the output of the last command under this name.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{name}.log"))
    }

    /// Puts a mutant into its file, and returns the file's text without it.
    pub(super) fn apply(&self, mutant: &Mutant) -> Result<String> {
        let path = self.source(&mutant.file);
        let original = fs::read_to_string(&path).with_context(|| mutant.file.clone())?;
        fs::write(&path, mutant.applied_to(&original)?)?;
        Ok(original)
    }

    /// Restores the file of a mutant.
    pub(super) fn restore(&self, mutant: &Mutant, original: &str) -> Result<()> {
        Ok(fs::write(self.source(&mutant.file), original)?)
    }

    /// Builds the simulation and runs it.
    pub(super) async fn simulate(&self, name: &str, seeds: u64) -> Result<Outcome> {
        if self.build(name).await? {
            self.run(name, seeds).await
        } else {
            Ok(Outcome::DoesNotBuild)
        }
    }

    /// Returns whether the simulation compiles.
    async fn build(&self, name: &str) -> Result<bool> {
        let mut build = Command::new(crate::test::cargo());
        build
            .args(["build", "--quiet", "--profile", "sim", "--package", PROGRAM])
            .arg("--target-dir")
            .arg(self.target())
            .envs(PROFILE.iter().copied())
            .env_remove(WRAPPER);
        let status = self.log_output(&mut build, name).await;
        Ok(status.context("cannot run cargo")?.success())
    }

    async fn run(&self, name: &str, seeds: u64) -> Result<Outcome> {
        let program = self.target().join("sim").join(PROGRAM);
        let mut simulation = Command::new(program);
        simulation.arg("--seeds").arg(seeds.to_string());
        let Ok(status) = timeout(TIME_LIMIT, self.log_output(&mut simulation, name)).await else {
            return Ok(Outcome::TooSlow);
        };
        let status = status.context("cannot run the simulation")?;
        let output = fs::read(self.log(name))?;
        let failure = failed_seed(&String::from_utf8_lossy(&output));
        Ok(match (status.code(), failure) {
            (Some(0), _) => Outcome::Passed { seeds },
            (Some(1), Some((seed, tried))) => Outcome::Failed { seed, tried },
            _ => Outcome::Ended(status),
        })
    }

    /// Runs a command in the copy, with its output in the log.
    async fn log_output(&self, command: &mut Command, name: &str) -> Result<ExitStatus> {
        let log = File::create(self.log(name))?;
        let status = command
            .current_dir(self.source(""))
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .status();
        Ok(status.await?)
    }
}

/// Makes `to` the same as `from`, a file or a directory. Writes only what differs.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        let content = fs::read(from)?;
        if fs::read(to).is_ok_and(|before| before == content) {
            return Ok(());
        }
        return Ok(fs::write(to, content)?);
    }
    fs::create_dir_all(to)?;
    let names = names_in(from)?;
    for old in names_in(to)?.difference(&names) {
        remove(&to.join(old))?;
    }
    for name in names {
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn names_in(directory: &Path) -> Result<BTreeSet<OsString>> {
    let entries = fs::read_dir(directory)?;
    entries.map(|entry| Ok(entry?.file_name())).collect()
}

fn remove(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(fs::remove_dir_all(path)?);
    }
    Ok(fs::remove_file(path)?)
}

/// Returns the seed that has failed, and the number of seeds until then: `seed 7 failed after 8
/// seeds`.
fn failed_seed(output: &str) -> Option<(u64, Option<u64>)> {
    let mut lines = output.lines();
    lines.find_map(|line| Some((number_after(line, "seed ")?, number_after(line, " after "))))
}

/// Returns the first number that follows these words.
fn number_after(line: &str, words: &str) -> Option<u64> {
    line.match_indices(words).find_map(|(at, _)| {
        let rest = &line[at + words.len()..];
        let end = rest.find(|it: char| !it.is_ascii_digit());
        rest[..end.unwrap_or(rest.len())].parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_seed_is_found_in_the_output() {
        let found = "running 20 seeds\nseed 17 failed after 18 seeds: a row is missing\n";
        assert_eq!(failed_seed(found), Some((17, Some(18))));
        assert_eq!(failed_seed("seed 17: stuck"), Some((17, None)));
        assert_eq!(failed_seed("20 seeds passed"), None);
    }

    #[test]
    fn a_copy_becomes_the_same_and_keeps_the_times_of_what_has_not_changed() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("a")).unwrap();
        fs::write(from.join("a/same"), "1").unwrap();
        fs::write(from.join("a/other"), "1").unwrap();
        copy(&from, &to).unwrap();
        let written = |file: &str| fs::metadata(to.join(file)).unwrap().modified().unwrap();
        let before = written("a/same");

        fs::write(to.join("a/other"), "mutated").unwrap();
        fs::write(to.join("a/gone"), "1").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(written("a/same"), before);
        assert_eq!(fs::read_to_string(to.join("a/other")).unwrap(), "1");
        assert!(!to.join("a/gone").exists());
    }
}
