//! Carries out a plan, with what the other commands and the workers use.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use aws_config::SdkConfig;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::assess::Assessed;
use super::has;
use crate::backfill::{Backfill, Options};
use crate::batch::BatchId;
use crate::cli::app::App;
use crate::cli::backfill::announce::announce;
use crate::cli::backfill::load::loader;
use crate::cli::backfill::note_views;
use crate::cli::dlq;
use crate::clickhouse::error_class::with_advice;
use crate::event_types::Catalog;
use crate::load::Loader;
use crate::load::janitor::Janitor;
use crate::object::{ObjectRef, ObjectUrl};
use crate::s3::listing::{Lister, Listing, Selection};
use crate::s3::{Listed, Page, Store, StoreError};
use crate::telemetry::activity::Activity;
use crate::util::key_time::KeyTime;
use sluice_core::verify::{RepairAction, Stray, StrayKind};

/// The number of objects in a page of [`Planned`].
const PAGE: usize = 1_000;

/// What was done.
#[derive(Default, Serialize)]
pub(super) struct Done {
    /// Objects that were loaded again.
    reloaded: u64,
    /// Objects that should have been loaded again, and were not.
    pub(super) not_loaded: u64,
    /// Batches whose rows were deleted.
    deleted_batches: u64,
    announced: u64,
    redriven: u64,
}

impl Done {
    pub(super) fn is_nothing(&self) -> bool {
        let Self {
            reloaded,
            not_loaded,
            deleted_batches,
            announced,
            redriven,
        } = self;
        reloaded + not_loaded + deleted_batches + announced + redriven == 0
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "loaded again           {}", self.reloaded)?;
        writeln!(f, "not loaded             {}", self.not_loaded)?;
        writeln!(f, "batches deleted        {}", self.deleted_batches)?;
        writeln!(f, "announced              {}", self.announced)?;
        writeln!(f, "dead letters sent      {}", self.redriven)
    }
}

pub(super) async fn carry_out(
    app: &App<'_>,
    aws: &SdkConfig,
    catalog: &Catalog,
    assessed: Vec<Assessed>,
    stop: &CancellationToken,
    done: &mut Done,
) -> anyhow::Result<()> {
    let of = |action: RepairAction| assessed.iter().filter(move |it| has(it, action));
    let objects_of = |action| of(action).map(|it| it.object.clone()).collect::<Vec<_>>();
    let strays: Vec<Stray> = of(RepairAction::Delete)
        .flat_map(|it| {
            it.findings
                .iter()
                .flat_map(|finding| finding.strays.clone())
        })
        .collect();
    let forced = objects_of(RepairAction::Force);
    if !strays.is_empty() || !forced.is_empty() {
        let warehouse = app.warehouse()?;
        note_views(&warehouse, catalog).await?;
        let activity = Arc::new(Activity::default());
        let store = Store::new(aws);
        let loader = loader(app, aws, catalog, &warehouse, store, activity).await?;
        let loader = Arc::new(loader);
        delete(app, &loader, &strays, stop, done).await?;
        force(app, loader, forced, stop, done).await?;
    }
    let announced = [RepairAction::Retry, RepairAction::Reconcile]
        .map(objects_of)
        .concat();
    if !announced.is_empty() && !stop.is_cancelled() {
        announce(&app.queue(aws)?, &announced).await?;
        done.announced = announced.len() as u64;
    }
    let ids: BTreeSet<String> = of(RepairAction::Redrive)
        .flat_map(|it| it.dead_letters.clone())
        .collect();
    if !ids.is_empty() && !stop.is_cancelled() {
        done.redriven = dlq::redrive(app, ids.into_iter().collect()).await?;
    }
    Ok(())
}

/// Deletes the rows of batches that are not in force.
async fn delete(
    app: &App<'_>,
    loader: &Arc<Loader>,
    strays: &[Stray],
    stop: &CancellationToken,
    done: &mut Done,
) -> anyhow::Result<()> {
    let batches = |kind: StrayKind| {
        let strays = strays.iter().filter(move |stray| stray.kind == kind);
        let batches: BTreeSet<BatchId> = strays.map(|stray| BatchId(stray.batch)).collect();
        batches.into_iter().collect::<Vec<_>>()
    };
    let (released, superseded) = (batches(StrayKind::Released), batches(StrayKind::Superseded));
    let answer = |error| anyhow::anyhow!(with_advice(&error));
    let mut janitor = Janitor::new(loader.clone());
    let deleted = janitor.delete_rows_of(&released).await;
    deleted
        .map_err(answer)
        .context("failed to delete rows of released batches")?;
    let superseding = app.history()?.superseding(&superseded).await;
    let superseding = superseding.map_err(answer)?;
    if loader.clean_again(&superseding, stop).await {
        done.deleted_batches = (released.len() + superseded.len()) as u64;
    }
    Ok(())
}

/// Loads objects again, as a forced backfill does.
async fn force(
    app: &App<'_>,
    loader: Arc<Loader>,
    objects: Vec<ObjectRef>,
    stop: &CancellationToken,
    done: &mut Done,
) -> anyhow::Result<()> {
    let Some(first) = objects.first() else {
        return Ok(());
    };
    let due = objects.len() as u64;
    let selection = Selection {
        prefix: ObjectUrl {
            bucket: first.bucket.clone(),
            key: String::new(),
        },
        filters: Vec::new(),
        since: None,
        until: None,
        key_time: KeyTime::parse(&app.config.s3.key_time).map_err(anyhow::Error::msg)?,
    };
    let listing = Planned(objects);
    let lister = Lister::new(listing, selection, app.load_backoff(), app.env.clone());
    let options = Options {
        batch: app.batch_limits(),
        concurrency: app.config.load.concurrency,
        max_rate: None,
        limit: None,
        replace_before: Some(app.env.wall_clock()),
        grace_period: app.config.shutdown.grace_period.get(),
    };
    let backfill = Backfill::new(loader, options, stop.clone(), |_| {});
    let (tally, listed) = backfill.run(lister).await;
    done.reloaded = tally.loaded;
    done.not_loaded = due.saturating_sub(tally.loaded);
    listed.context("failed to read the plan")
}

/// The planned objects, as if a bucket had listed them.
struct Planned(Vec<ObjectRef>);

impl Listing for Planned {
    async fn list(&self, _prefix: &ObjectUrl, after: Option<&str>) -> Result<Page, StoreError> {
        let begin = after.and_then(|after| after.parse().ok()).unwrap_or(0);
        let page = self.0.iter().skip(begin).take(PAGE);
        let objects = page.map(|object| Listed {
            object: object.clone(),
            // Nothing is selected by it.
            last_modified: SystemTime::UNIX_EPOCH,
        });
        let end = begin + PAGE;
        Ok(Page {
            objects: objects.collect(),
            next: (end < self.0.len()).then(|| end.to_string()),
        })
    }
}
