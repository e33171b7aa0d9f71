//! `sluice backfill`

pub(super) mod announce;
mod dry_run;
mod load;

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

    /// Only say how many objects there are, and how long it would take
    #[arg(long)]
    dry_run: bool,

    /// Announce the objects to the queue instead, so that the workers load them
    #[arg(long)]
    via_queue: bool,

    /// Load again what is loaded, and replace its rows
    ///
    /// The earlier rows of an object go once its new ones are on record. Until then queries see
    /// both for a moment.
    #[arg(long)]
    force: bool,

    /// With --force: only what was loaded before then; the rest of a forced backfill that broke off
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "force", conflicts_with = "dry_run")]
    loaded_before: Option<SystemTime>,

    /// Load so many objects at most
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,

    /// Load so many batches at a time (unless given: load.concurrency)
    #[arg(long, value_name = "COUNT", conflicts_with = "via_queue")]
    concurrency: Option<NonZeroUsize>,

    /// Load, or announce, so many objects a second at most
    #[arg(long, value_name = "COUNT")]
    max_rate: Option<NonZeroU32>,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.force && arguments.via_queue {
        return Err(Misuse(
            "--force cannot go with --via-queue: workers skip what is loaded. Leave one of them \
             out; --force alone loads in this process, beside the workers",
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

/// Says beforehand what a replacement does not reach.
async fn note_views(warehouse: &Warehouse, catalog: &Catalog) -> anyhow::Result<()> {
    let filled = filled_by_views(warehouse, catalog).await;
    if let Some(filled) = filled.map_err(|error| anyhow::anyhow!(with_advice(&error)))? {
        note(&format!(
            "what is replaced stays in {filled}: Sluice deletes rows of its own tables alone. \
             Rebuild these tables afterwards"
        ));
    }
    Ok(())
}

impl Arguments {
    fn concurrency(&self, config: &Config) -> usize {
        self.concurrency
            .map_or(config.load.concurrency, NonZeroUsize::get)
    }

    /// What was loaded before then is loaded again; none unless forced.
    fn replace_before(&self) -> Option<SystemTime> {
        self.force
            .then(|| self.loaded_before.unwrap_or_else(SystemTime::now))
    }
}
