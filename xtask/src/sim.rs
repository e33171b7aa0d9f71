//! `cargo xtask sim`: builds the simulation with optimisations, and runs it.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// The arguments of the simulation: `cargo xtask sim --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    sim: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let sim = crate::build::simulation()?;
    let status = Command::new(&sim)
        .args(&arguments.sim)
        .status()
        .with_context(|| format!("cannot run {}", sim.display()))?;
    Ok(crate::build::exit_code(status))
}
