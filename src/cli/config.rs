//! `sluice config`

use clap::Subcommand;

use super::app::App;
use super::print;
use crate::config::{effective_yaml, json_schema};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print the effective configuration, with secrets redacted
    Show,
    /// Print the JSON schema of the configuration file
    Schema,
}

pub(super) fn run(app: &App<'_>, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Show => print(effective_yaml(app.config).trim_end()),
        Command::Schema => schema(),
    }
}

/// Prints the schema. It loads no configuration, and so works with an invalid one.
pub(super) fn schema() -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(&json_schema())?)
}
