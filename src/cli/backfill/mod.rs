//! `sluice backfill`

pub(super) mod announce;
mod dry_run;
pub(super) mod load;

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::SystemTime;

use super::app::App;
use super::output::Output;
use super::selection::SelectionArguments;
use super::time_argument::parse_time_arg;
use super::{Misuse, note};
use crate::clickhouse::Warehouse;
use crate::clickhouse::dependents::filled_by_views;
use crate::clickhouse::error_class::with_advice;
use crate::config::Config;
use crate::event_types::Catalog;
use crate::util::failpoint;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    selection: SelectionArguments,

    /// Print the number of objects and the estimated time instead of loading
    #[arg(long)]
    dry_run: bool,

    /// Announce the objects to the queue instead, for the workers to load
    #[arg(long)]
    via_queue: bool,

    /// Reload objects that are already loaded, and replace their rows
    ///
    /// The earlier rows of an object are deleted after the new ones are recorded; until then,
    /// queries see both.
    #[arg(long)]
    force: bool,

    /// With --force: only objects loaded before TIME, to resume an interrupted backfill
    #[arg(long, value_name = "TIME", value_parser = parse_time_arg, requires = "force", conflicts_with = "dry_run")]
    loaded_before: Option<SystemTime>,

    /// Load at most COUNT objects
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,

    /// Load COUNT batches at a time [default: load.concurrency]
    #[arg(long, value_name = "COUNT", conflicts_with = "via_queue")]
    concurrency: Option<NonZeroUsize>,

    /// Load or announce at most COUNT objects per second
    #[arg(long, value_name = "COUNT")]
    max_rate: Option<NonZeroU32>,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.force && arguments.via_queue {
        return Err(Misuse(
            "--force cannot be used with --via-queue, since workers skip loaded objects; omit \
             --via-queue to reload the objects in this process",
        )
        .into());
    }
    let _armed = failpoint::arm();
    if arguments.dry_run {
        dry_run::run(app, arguments).await
    } else if arguments.via_queue {
        announce::run(app, arguments).await
    } else {
        load::run(app, arguments).await
    }
}

/// Prints a note about rows that a replacement does not delete, if there are any.
pub(super) async fn note_views(warehouse: &Warehouse, catalog: &Catalog) -> anyhow::Result<()> {
    let filled = filled_by_views(warehouse, catalog).await;
    if let Some(filled) = filled.map_err(|error| anyhow::anyhow!(with_advice(&error)))? {
        note(&format!(
            "replaced rows remain in {filled}, since Sluice deletes rows only from its own tables; \
             rebuild these tables afterwards"
        ));
    }
    Ok(())
}

impl Arguments {
    fn concurrency(&self, config: &Config) -> usize {
        self.concurrency
            .map_or(config.load.concurrency, NonZeroUsize::get)
    }

    /// Returns the time before which loaded objects are loaded again; `None` without `--force`.
    #[expect(clippy::disallowed_methods, reason = "a command that runs once")]
    fn replace_before(&self) -> Option<SystemTime> {
        self.force
            .then(|| self.loaded_before.unwrap_or_else(SystemTime::now))
    }
}
