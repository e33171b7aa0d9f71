//! `sluice retry`

use std::fmt;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, future, stream};
use serde::Serialize;

use super::app::App;
use super::output::{Output, shown};
use super::{Misuse, classes};
use crate::config::HumanDuration;
use crate::ledger::history::{FailedObject, FailureFilter};
use crate::load::FailureClass;
use crate::notification::announce::announcement;
use crate::object::{ObjectParts, ObjectRef, ObjectUrl};
use crate::s3::Store;

/// Requests to S3 in flight at a time.
const CONCURRENCY: usize = 16;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Failed objects to announce, such as s3://bucket/key
    #[arg(value_name = "S3-URL")]
    objects: Vec<ObjectUrl>,

    /// Retry every failed object whose key has not been loaded since
    #[arg(long, conflicts_with = "objects")]
    all: bool,

    /// Retry objects that failed with this class, even if their content is unchanged
    #[arg(long, value_name = "CLASS", value_parser = classes::of_objects(), conflicts_with = "objects")]
    error_class: Option<String>,

    /// Retry objects whose last failure was within DURATION, such as 2h
    #[arg(long, value_name = "DURATION", conflicts_with = "objects")]
    since: Option<HumanDuration>,

    /// Retry objects under this prefix, such as s3://bucket/2026/
    #[arg(long, value_name = "S3-URL", conflicts_with = "objects")]
    prefix: Option<ObjectUrl>,

    /// Print the objects instead of announcing them
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let filter = filter(arguments)?;
    let history = app.history()?;
    let url = &app.config.clickhouse.url;
    let unanswered = || format!("failed to query ClickHouse at {url}");
    let aws = app.aws().await;
    let mut skipped = 0;
    let failed = if arguments.objects.is_empty() {
        let failed = history.failed(&filter, u64::MAX).await;
        let mut failed = failed.with_context(unanswered)?;
        if filter.class.is_none() {
            let before = failed.len();
            failed = worth_retrying(&Store::new(&aws), failed).await;
            skipped = before - failed.len();
        }
        failed
    } else {
        let mut failed = Vec::new();
        for url in &arguments.objects {
            let found = history.failed_object(url).await.with_context(unanswered)?;
            ensure!(
                !found.is_empty(),
                "{url} is not recorded as failed, or has been loaded since; see `sluice status {url}`"
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
        skipped,
    };
    report.objects.dedup();
    if !arguments.dry_run {
        let queue = app.queue(&aws)?;
        let bodies: Vec<String> = failed.iter().map(|f| announcement(&f.into())).collect();
        queue
            .send(&bodies)
            .await
            .context("failed to announce some objects; run it again")?;
    }
    arguments.output.show(&report)
}

fn filter(arguments: &Arguments) -> Result<FailureFilter, Misuse> {
    let filter = FailureFilter {
        class: arguments.error_class.clone(),
        since: arguments.since.map(HumanDuration::get),
        prefix: arguments.prefix.clone(),
    };
    if filter == FailureFilter::default() && !arguments.all && arguments.objects.is_empty() {
        let advice =
            "name objects, select them by --error-class, --since or --prefix, or pass --all";
        return Err(Misuse(advice));
    }
    Ok(filter)
}

/// Leaves out the objects that would fail again in the same way, according to S3.
async fn worth_retrying(store: &Store, failed: Vec<FailedObject>) -> Vec<FailedObject> {
    stream::iter(failed)
        .map(async |failed| {
            let fails = would_fail_again(store, &(&failed).into(), &failed.class).await;
            (!fails).then_some(failed)
        })
        .buffered(CONCURRENCY)
        .filter_map(future::ready)
        .collect()
        .await
}

/// Returns whether the object is still missing, or still has the content that failed. Returns false
/// if S3 does not report that, as without access. `failed_as` is the class of its last failure.
pub(super) async fn would_fail_again(store: &Store, failed: &ObjectRef, failed_as: &str) -> bool {
    let depends_on_content = [
        FailureClass::Unloadable,
        FailureClass::Rejected,
        FailureClass::Unnameable,
    ];
    let is_of = |class: FailureClass| failed_as == class.label();
    let is_missing = is_of(FailureClass::Missing);
    if !is_missing && !depends_on_content.into_iter().any(is_of) {
        return false;
    }
    match store.head(failed).await {
        Ok(present) => !is_missing && !failed.etag.is_empty() && present.etag == failed.etag,
        Err(error) => is_missing && error.is_missing(),
    }
}

impl From<&FailedObject> for ObjectRef {
    fn from(failed: &FailedObject) -> Self {
        Self::from(ObjectParts {
            bucket: failed.bucket.clone(),
            key: failed.key.clone(),
            etag: failed.etag.clone(),
            ..ObjectParts::default()
        })
    }
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    /// The objects that are announced again.
    objects: Vec<String>,
    /// The number of objects left out, since they would fail again.
    skipped: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for object in &self.objects {
            writeln!(f, "{}", shown(object))?;
        }
        if self.skipped > 0 {
            writeln!(
                f,
                "{} objects skipped, since they would fail again: their content in S3 is \
                 unchanged, or they are still missing; to retry them anyway, name them or select \
                 them by --error-class",
                self.skipped
            )?;
        }
        let count = self.objects.len();
        if self.dry_run {
            writeln!(f, "{count} objects would be announced again")
        } else {
            writeln!(
                f,
                "{count} objects announced again; `sluice status --failed` shows which fail again"
            )
        }
    }
}
