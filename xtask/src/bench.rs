//! `cargo xtask bench`: builds Sluice and its benchmarks with optimisations, and runs them.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// The measurement to run: `cargo xtask bench help` lists them
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        default_value = "compare"
    )]
    bench: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let sluice = crate::build::release("sluice")?;
    let bench = crate::build::release("sluice-bench")?;
    let status = Command::new(&bench)
        .arg("--sluice")
        .arg(sluice)
        .args(&arguments.bench)
        .status()
        .with_context(|| format!("cannot run {}", bench.display()))?;
    // The benchmark has one exit code for a program over its limit, and one for a machine too busy
    // to compare.
    Ok(crate::build::exit_code(status))
}
