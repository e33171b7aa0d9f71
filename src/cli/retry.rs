//! `sluice retry`

use std::fmt;

use anyhow::{Context, ensure};
use aws_sdk_sqs::Client;
use serde::Serialize;

use super::output::{Output, shown};
use super::{Misuse, aws, classes, warehouse};
use crate::announce::announcement;
use crate::config::{Config, HumanDuration};
use crate::history::{FailedObject, FailureFilter, History};
use crate::object::{ObjectRef, ObjectUrl};
use crate::queue::sqs::SqsQueue;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Objects that failed, such as s3://bucket/key
    #[arg(value_name = "S3-URL")]
    objects: Vec<ObjectUrl>,

    /// Every object that failed and has not been loaded since
    #[arg(long, conflicts_with = "objects")]
    all: bool,

    /// Those that failed with this class
    #[arg(long, value_name = "CLASS", value_parser = classes::of_objects(), conflicts_with = "objects")]
    error_class: Option<String>,

    /// Those that failed for the last time within this time, such as 2h
    #[arg(long, value_name = "DURATION", conflicts_with = "objects")]
    since: Option<HumanDuration>,

    /// Those under this, such as s3://bucket/2026/
    #[arg(long, value_name = "S3-URL", conflicts_with = "objects")]
    prefix: Option<ObjectUrl>,

    /// Only say which
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> anyhow::Result<()> {
    let history = History::new(warehouse(config)?);
    let unanswered = || format!("ClickHouse at {} does not tell", config.clickhouse.url);
    let failed = if arguments.objects.is_empty() {
        let filter = filter(arguments)?;
        history
            .failed(&filter, u64::MAX)
            .await
            .with_context(unanswered)?
    } else {
        let mut failed = Vec::new();
        for url in &arguments.objects {
            let found = history.failed_object(url).await.with_context(unanswered)?;
            ensure!(
                !found.is_empty(),
                "{url} is not on record as failed, or has been loaded since: see `sluice status {url}`"
            );
            failed.extend(found);
        }
        failed
    };
    let mut report = Report {
        dry_run: arguments.dry_run,
        objects: failed
            .iter()
            .map(|f| format!("s3://{}/{}", f.bucket, f.key))
            .collect(),
    };
    report.objects.dedup();
    if !arguments.dry_run {
        let queue = SqsQueue::new(Client::new(&aws(config).await), config.queue.require_url()?);
        let bodies: Vec<String> = failed.iter().map(|f| announcement(&f.into())).collect();
        queue
            .send(&bodies)
            .await
            .context("not all could be announced; run it again")?;
    }
    arguments.output.show(&report)
}

fn filter(arguments: &Arguments) -> Result<FailureFilter, Misuse> {
    let filter = FailureFilter {
        class: arguments.error_class.clone(),
        since: arguments.since.map(HumanDuration::get),
        prefix: arguments.prefix.clone(),
    };
    if filter == FailureFilter::default() && !arguments.all {
        let advice = "name objects, choose by --error-class, --since or --prefix, or pass --all";
        return Err(Misuse(advice));
    }
    Ok(filter)
}

impl From<&FailedObject> for ObjectRef {
    fn from(failed: &FailedObject) -> Self {
        Self {
            bucket: failed.bucket.clone(),
            key: failed.key.clone(),
            etag: failed.etag.clone(),
            size: None,
            version_id: None,
            sequencer: None,
            region: None,
        }
    }
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    /// The objects announced again.
    objects: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for object in &self.objects {
            writeln!(f, "{}", shown(object))?;
        }
        let count = self.objects.len();
        if self.dry_run {
            writeln!(f, "{count} objects would be announced again")
        } else {
            writeln!(
                f,
                "{count} objects announced again: `sluice status --failed` tells what fails anew"
            )
        }
    }
}
