//! `cargo xtask mutants`: shows that the simulation finds bugs.
//!
//! Each mutant of `sim/mutants.yaml` is one bug: a small edit of one file. Production code has no
//! switches for them, so they are put into a copy of the sources, one at a time.

mod list;
mod tree;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use sluice_testkit::install::target_directory;

use crate::console::{note, print};
use crate::interrupt::Interrupt;
use list::Mutant;
use tree::{Outcome, Tree};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Try the mutant NAME, and no others; can be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Try N seeds with each mutant, instead of the number in sim/mutants.yaml
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
}

impl Arguments {
    /// Returns the mutants to try, each with its number of seeds.
    fn select(&self, mutants: Vec<Mutant>) -> Result<Vec<(Mutant, u64)>> {
        for name in &self.only {
            let exists = mutants.iter().any(|mutant| mutant.name == *name);
            ensure!(exists, "{} has no mutant {name}", list::FILE);
        }
        let selected = mutants.into_iter().map(|mutant| {
            let seeds = self.seeds.unwrap_or(mutant.seeds);
            (mutant, seeds)
        });
        let is_selected = |name: &String| self.only.is_empty() || self.only.contains(name);
        Ok(selected
            .filter(|(mutant, _)| is_selected(&mutant.name))
            .collect())
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let mutants = arguments.select(list::read()?)?;
    let mut interrupt = Interrupt::new()?;
    tokio::select! {
        outcome = try_all(&mutants) => outcome,
        () = interrupt.wait() => {
            note("interrupted");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn try_all(mutants: &[(Mutant, u64)]) -> Result<ExitCode> {
    let tree = Tree::copy(target_directory().join("mutants"))?;
    let most = mutants.iter().map(|(_, seeds)| *seeds).max().unwrap_or(1);
    try_unchanged(&tree, most).await?;
    let mut missed = 0;
    for (mutant, seeds) in mutants {
        let begun = Instant::now();
        let outcome = try_one(&tree, mutant, *seeds).await?;
        let took = begun.elapsed().as_secs();
        print(&format!("{}: {outcome} ({took} s)", mutant.name));
        if !matches!(outcome, Outcome::Failed { .. }) {
            missed += 1;
            print(&format!("    {}", mutant.why));
            print(&format!("    see {}", tree.log(&mutant.name).display()));
        }
    }
    let tried = mutants.len();
    if missed > 0 {
        print(&format!("{missed} of {tried} mutants were not found"));
        return Ok(ExitCode::FAILURE);
    }
    print(&format!("all {tried} mutants were found"));
    Ok(ExitCode::SUCCESS)
}

/// Ensures that the simulation passes without a mutant: otherwise its failures would show nothing.
async fn try_unchanged(tree: &Tree, seeds: u64) -> Result<()> {
    const NAME: &str = "unchanged";
    note(&format!("running {seeds} seeds without a mutant"));
    match tree.simulate(NAME, seeds).await? {
        Outcome::Passed { .. } => Ok(()),
        outcome => bail!(
            "without a mutant: {outcome}; see {}",
            tree.log(NAME).display()
        ),
    }
}

async fn try_one(tree: &Tree, mutant: &Mutant, seeds: u64) -> Result<Outcome> {
    let original = tree.apply(mutant)?;
    let outcome = tree.simulate(&mutant.name, seeds).await?;
    // If this is not reached, the next copy restores the file.
    tree.restore(mutant, &original)?;
    Ok(outcome)
}
