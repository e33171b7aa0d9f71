//! `sluice config`

use clap::Subcommand;

use super::print;
use crate::config::{Config, effective_yaml, json_schema};

#[derive(Subcommand)]
pub(super) enum Command {
    /// The effective configuration, secrets redacted
    Show,
    /// The JSON schema of the configuration file
    Schema,
}

pub(super) fn run(config: &Config, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Show => print(effective_yaml(config).trim_end()),
        Command::Schema => schema(),
    }
}

/// Needs no configuration, and so works with a wrong one.
pub(super) fn schema() -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(&json_schema())?)
}
