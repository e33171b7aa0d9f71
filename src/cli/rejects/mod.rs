//! `sluice rejects`: lines that became no row.

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
    /// Count the kept lines by reason, or by object and reason
    List(list::Arguments),
    /// Show the kept lines of one object, with their reasons
    Show(show::Arguments),
    /// Move the kept lines that are rows by now to their tables
    ///
    /// For when an event type was mended or added, after `sluice migrate`. Each line is judged as
    /// the event types are now; what is no row stays where it is. Stopped or killed at any point,
    /// this loses and doubles nothing; the next replay finishes what it has begun.
    Replay(replay::Arguments),
}

pub(super) async fn run(app: &App<'_>, command: &Command) -> anyhow::Result<()> {
    let _armed = failpoint::arm();
    let warehouse = app.warehouse()?;
    let timeout = app.config.clickhouse.insert_timeout.get();
    let kept = Rejects::new(warehouse.clone(), timeout);
    let unanswered = || format!("ClickHouse at {} does not tell", app.config.clickhouse.url);
    match command {
        Command::List(arguments) => list::run(&kept, arguments).await.with_context(unanswered),
        Command::Show(arguments) => show::run(&kept, arguments).await.with_context(unanswered),
        Command::Replay(arguments) => {
            let catalog = app.catalog()?;
            let problem = app.preflight(&catalog)?.problem().await;
            if let Some((_, why)) = problem.with_context(unanswered)? {
                bail!(why);
            }
            let replayer = app.replayer(catalog, warehouse)?;
            replay::run(&kept, &replayer, arguments).await
        }
    }
}
