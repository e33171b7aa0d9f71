//! Developer commands: `cargo xtask stack`, `test`, `demo`, `chaos`, `sim`, `mutants`, `tour`, `bench`
//! and `dist`. None needs a running service, and the processes that they start exit with them.

mod bench;
mod build;
mod chaos;
mod console;
mod demo;
mod dist;
mod interrupt;
mod mutants;
mod sim;
mod stack;
mod test;
mod tour;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands for Sluice")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start ClickHouse, S3 and SQS on this machine, until Ctrl-C
    Stack,
    /// Run all tests against one stack; arguments after `--` go to cargo-nextest
    Test(test::Arguments),
    /// Upload generated objects, load them with Sluice, and compare the rows with the generated
    /// data
    Demo(demo::Arguments),
    /// Load while random faults are injected, and compare every row at the end
    Chaos(chaos::Arguments),
    /// Run whole workers against simulated servers that fail, a world for each seed
    Sim(sim::Arguments),
    /// Put bugs into a copy of the sources, one at a time, and have the simulation find each
    Mutants(mutants::Arguments),
    /// Run the operator's commands on a stack with failures, and write their output to docs/tour.md
    Tour,
    /// Build the release archive, its bill of materials and their checksums into target/dist
    Dist(dist::Arguments),
    /// Measure Sluice against the bare engine and other ways of loading
    Bench(bench::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome: Result<ExitCode> = match Arguments::parse().command {
        Command::Stack => stack::run().await,
        Command::Test(arguments) => test::run(arguments).await,
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Chaos(arguments) => chaos::run(arguments).await,
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Mutants(arguments) => mutants::run(arguments).await,
        Command::Tour => tour::run().await,
        Command::Dist(arguments) => dist::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        console::note(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
