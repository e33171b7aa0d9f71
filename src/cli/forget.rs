//! `sluice forget`

use std::fmt;

use anyhow::{Context, ensure};
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;

use super::app::App;
use super::output::{Output, shown};
use crate::ledger::history::History;
use crate::object::ObjectUrl;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Failed objects to dismiss, such as s3://bucket/key
    #[arg(value_name = "S3-URL", required = true)]
    objects: Vec<ObjectUrl>,

    /// Reason to record; `sluice status s3://bucket/key` shows it
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    reason: String,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let warehouse = app.warehouse()?;
    let url = &app.config.clickhouse.url;
    let history = History::new(warehouse.clone());
    let mut failed = Vec::new();
    for object in &arguments.objects {
        let found = history.failed_object(object).await;
        let found = found.with_context(|| format!("failed to query ClickHouse at {url}"))?;
        ensure!(
            !found.is_empty(),
            "{object} is not recorded as failed, so nothing was changed: it never failed, has been \
             loaded since, or is already dismissed; see `sluice status {object}`"
        );
        failed.extend(found);
    }
    app.ledger(warehouse)
        .dismiss(&failed, &arguments.reason)
        .await
        .with_context(|| format!("failed to record the dismissal in ClickHouse at {url}"))?;
    arguments.output.show(&Report {
        objects: arguments.objects.iter().map(ToString::to_string).collect(),
    })
}

#[derive(Serialize)]
struct Report {
    /// The dismissed objects.
    objects: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for object in &self.objects {
            writeln!(f, "{}", shown(object))?;
        }
        writeln!(
            f,
            "{} objects dismissed; they are listed again if they fail again",
            self.objects.len()
        )
    }
}
