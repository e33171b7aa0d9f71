//! `sluice rejects`: lines that did not become rows.

mod choice;
mod list;
mod replay;
mod show;

use anyhow::{Context, bail};
use clap::Subcommand;

use super::app::App;
use crate::rejects::Rejects;
use crate::util::failpoint;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Count rejects by reason, or by object and reason
    List(list::Arguments),
    /// Show the rejects of one object, with their reasons
    Show(show::Arguments),
    /// Move rejects that have become valid rows to their tables
    ///
    /// Use it after an event type was fixed or added, and `sluice migrate` was run. Each line is
    /// parsed with the current event types; lines that are still not valid rows are left where they
    /// are. The command can be stopped or killed at any point without losing or duplicating lines;
    /// the next replay finishes what it began.
    Replay(replay::Arguments),
}

pub(super) async fn run(app: &App<'_>, command: &Command) -> anyhow::Result<()> {
    let _armed = failpoint::arm();
    let warehouse = app.warehouse()?;
    let timeout = app.config.clickhouse.insert_timeout.get();
    let rejects = Rejects::new(warehouse.clone(), timeout);
    let unanswered = || {
        let url = &app.config.clickhouse.url;
        format!("failed to query ClickHouse at {url}")
    };
    match command {
        Command::List(arguments) => {
            let listed = list::run(&rejects, arguments).await;
            listed.with_context(unanswered)
        }
        Command::Show(arguments) => {
            let shown = show::run(&rejects, arguments).await;
            shown.with_context(unanswered)
        }
        Command::Replay(arguments) => {
            let catalog = app.catalog()?;
            let problem = app.preflight(&catalog)?.problem().await;
            if let Some((_, why)) = problem.with_context(unanswered)? {
                bail!(why);
            }
            let replayer = app.replayer(catalog, warehouse)?;
            replay::run(&rejects, &replayer, arguments).await
        }
    }
}
