//! `sluice backfill`: loads objects in this process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use aws_config::SdkConfig;
use bytesize::ByteSize;
use indicatif::{HumanDuration, ProgressBar, ProgressFinish, ProgressStyle};
use serde::Serialize;

use super::{Arguments, note_views};
use crate::backfill::{Backfill, Options, Tally};
use crate::cli::app::{App, region};
use crate::cli::output::{shown, table};
use crate::cli::stop::stop_on_signals;
use crate::cli::{Incomplete, note};
use crate::clickhouse::Warehouse;
use crate::clickhouse::error_class::with_advice;
use crate::config::LogConfig;
use crate::event_types::Catalog;
use crate::load::Loader;
use crate::load::breaker::{Breaker, Scope};
use crate::s3::Store;
use crate::s3::listing::Lister;
use crate::telemetry::activity::Activity;
use crate::telemetry::start_logging;
use crate::usage::Usage;

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let config = app.config;
    let bar = bar();
    start_logging(&log_beside(&bar, &config.log))?;
    let stop = stop_on_signals()?;
    let aws = app.aws().await;
    let (catalog, warehouse) = (app.catalog()?, app.warehouse()?);
    let activity = Arc::new(Activity::default());
    let usage = Arc::new(Usage::default());
    let store = Store::new(&aws).observed(usage.clone());
    let loader = loader(
        app,
        &aws,
        &catalog,
        &warehouse,
        store.clone(),
        activity.clone(),
    )
    .await?;
    let recording = app.record_usage(usage, warehouse.clone());
    let lister = || arguments.selection.lister(app, store.clone());
    if !bar.is_hidden() {
        tokio::spawn(count(lister()?, bar.clone()));
    }
    let replace_before = arguments.replace_before();
    if let Some(before) = replace_before {
        note_views(&warehouse, &catalog).await?;
        let before = humantime::format_rfc3339_millis(before);
        note(&format!(
            "to resume if interrupted: --force --loaded-before {before}"
        ));
    }
    let options = Options {
        batch: app.batch_limits(),
        concurrency: arguments.concurrency(config),
        max_rate: arguments.max_rate,
        limit: arguments.limit,
        replace_before,
        grace_period: config.shutdown.grace_period.get(),
    };
    let started = Instant::now();
    let show_progress = |tally: &Tally| progress(&bar, tally, &activity, started.elapsed());
    let backfill = Backfill::new(Arc::new(loader), options, stop.clone(), show_progress);
    let (tally, listed) = backfill.run(lister()?).await;
    recording.end().await;
    bar.finish_and_clear();
    let report = Report {
        left: tally.left(),
        tally,
        rows: activity.rows(),
        seconds: started.elapsed().as_secs(),
        stopped: stop.is_cancelled(),
    };
    arguments.output.show(&report)?;
    listed.context("failed to list the bucket; run it again to load the rest")?;
    report.result(arguments.limit.is_some())
}

/// Returns the loader of a command. Fails if loading must not start.
pub(in crate::cli) async fn loader(
    app: &App<'_>,
    aws: &SdkConfig,
    catalog: &Catalog,
    warehouse: &Warehouse,
    store: Store,
    activity: Arc<Activity>,
) -> anyhow::Result<Loader> {
    refuse_what_cannot_work(app, catalog).await?;
    let breaker = Arc::new(Breaker::new(app.config.load.probe_interval.get()));
    breaker.succeeded(Scope::Everything);
    let planner = app.planner(catalog.clone(), region(aws))?;
    Ok(app.loader(planner, warehouse.clone(), store, breaker, activity))
}

/// Fails if loading must not start. A person is waiting, so a problem at the start is reported at
/// once. A later outage is not: loading waits until it ends.
async fn refuse_what_cannot_work(app: &App<'_>, catalog: &Catalog) -> anyhow::Result<()> {
    let problem = app.preflight(catalog)?.problem().await;
    let problem = problem.map_err(|error| anyhow::anyhow!(with_advice(&error)))?;
    if let Some((_, why)) = problem {
        bail!(why);
    }
    Ok(())
}

/// Counts the objects, so that the bar can show the progress.
async fn count(mut lister: Lister, bar: ProgressBar) {
    let mut found = 0;
    while let Ok(Some(listed)) = lister.next().await {
        found += listed.len() as u64;
        bar.set_length(found);
    }
}

/// Returns a progress bar on standard error, hidden unless that is a terminal.
fn bar() -> ProgressBar {
    let template = "{bar:30} {pos} of {len} objects, {msg}, {eta} left";
    let bar = ProgressBar::new(0).with_finish(ProgressFinish::AndClear);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Returns the configuration of the log. If the bar is visible, the level `info` becomes `warn`.
fn log_beside(bar: &ProgressBar, config: &LogConfig) -> LogConfig {
    let mut config = config.clone();
    if !bar.is_hidden() && config.level == "info" {
        config.level = "warn".to_owned();
    }
    config
}

fn progress(bar: &ProgressBar, tally: &Tally, activity: &Activity, elapsed: Duration) {
    bar.set_position(tally.found - tally.left());
    let rows: u64 = activity.rows().values().sum();
    bar.set_message(format!(
        "{}, {rows} rows, {} objects/s",
        ByteSize(tally.bytes),
        tally.loaded / elapsed.as_secs().max(1)
    ));
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    tally: Tally,
    /// Found, but not finished.
    left: u64,
    /// Rows loaded, by kind.
    rows: BTreeMap<String, u64>,
    seconds: u64,
    /// Whether it was stopped before the end.
    stopped: bool,
}

impl Report {
    /// Fails if objects are left for another reason than the limit.
    fn result(&self, limited: bool) -> anyhow::Result<()> {
        let Tally {
            failed,
            missing,
            in_other_hands,
            replacing_elsewhere,
            ..
        } = self.tally;
        let open = if self.stopped {
            "stopped before the end; run it again to load the rest"
        } else if failed + missing > 0 {
            "some objects are not loaded; `sluice status --failed` shows why"
        } else if in_other_hands > 0 {
            "the other objects are in progress elsewhere; run it again to see the result"
        } else if replacing_elsewhere > 0 {
            "other processes are still replacing objects, of which the tables have the old and the \
             new rows; run it again to complete replacements that they leave unfinished"
        } else if self.left > 0 && !limited {
            "some objects were not loaded; run it again"
        } else {
            return Ok(());
        };
        Err(Incomplete(open.to_owned()).into())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = &self.tally;
        writeln!(
            f,
            "found                  {} ({})",
            tally.found,
            ByteSize(tally.bytes)
        )?;
        for (name, count) in [
            ("loaded", tally.loaded),
            ("  replaced", tally.replaced),
            ("already loaded", tally.already_loaded),
            ("failed", tally.failed),
            ("missing", tally.missing),
            ("in progress elsewhere", tally.in_other_hands),
            ("replacing elsewhere", tally.replacing_elsewhere),
            ("left", self.left),
        ] {
            writeln!(f, "{name:<21}  {count}")?;
        }
        let time = HumanDuration(Duration::from_secs(self.seconds));
        writeln!(f, "time                   {time}")?;
        if !self.rows.is_empty() {
            let rows = self.rows.iter();
            let rows = rows.map(|(kind, rows)| vec![shown(kind), rows.to_string()]);
            writeln!(f, "\n{}", table(&["kind", "rows"], rows))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backfill_is_incomplete_while_others_replace_objects() {
        let report = |replacing_elsewhere| Report {
            tally: Tally {
                found: 1,
                already_loaded: 1,
                replacing_elsewhere,
                ..Tally::default()
            },
            left: 0,
            rows: BTreeMap::new(),
            seconds: 1,
            stopped: false,
        };
        assert!(report(0).result(false).is_ok());
        assert!(report(1).result(false).is_err());
    }
}
