//! `sluice rejects`: lines that became no row.

mod choice;
mod list;
mod show;

use clap::Subcommand;

use super::warehouse;
use crate::config::Config;
use crate::kept::KeptLines;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Count the kept lines by reason, or by object and reason
    List(list::Arguments),
    /// Show the kept lines of one object, with their reasons
    Show(show::Arguments),
}

pub(super) async fn run(config: &Config, command: &Command) -> anyhow::Result<()> {
    let timeout = config.clickhouse.insert_timeout.get();
    let kept = KeptLines::new(warehouse(config)?, timeout);
    match command {
        Command::List(arguments) => list::run(&kept, arguments).await,
        Command::Show(arguments) => show::run(&kept, arguments).await,
    }
}
