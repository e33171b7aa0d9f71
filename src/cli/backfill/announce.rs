//! `sluice backfill --via-queue`

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::Arguments;
use crate::cli::Incomplete;
use crate::cli::app::App;
use crate::cli::listing_with_status::ListingWithStatus;
use crate::cli::stop::stop_on_signals;
use crate::ledger::protocol::ClaimStatus;
use crate::notification::announce::announcement;
use crate::object::ObjectRef;
use crate::queue::MAX_BATCH;
use crate::queue::sqs::SqsQueue;
use crate::s3::Store;
use crate::telemetry::start_logging;
use crate::util::failpoint;

#[derive(Default, Serialize)]
struct Report {
    found: u64,
    already_loaded: u64,
    /// In progress in a worker.
    in_other_hands: u64,
    announced: u64,
    /// Whether it was stopped before the end.
    stopped: bool,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    start_logging(&app.config.log)?;
    let stop = stop_on_signals()?;
    let aws = app.aws().await;
    let queue = app.queue(&aws)?;
    let mut listing = ListingWithStatus::new(app, &arguments.selection, Store::new(&aws))?;
    let mut report = Report::default();
    let result = each(&mut listing, &queue, arguments, &stop, &mut report).await;
    arguments.output.show(&report)?;
    result?;
    if report.stopped {
        let text = "stopped before the end; run it again to announce the rest";
        return Err(Incomplete(text.to_owned()).into());
    }
    Ok(())
}

async fn each(
    listing: &mut ListingWithStatus,
    queue: &SqsQueue,
    arguments: &Arguments,
    stop: &CancellationToken,
    report: &mut Report,
) -> anyhow::Result<()> {
    while let Some(objects) = listing.next().await? {
        report.found += objects.len() as u64;
        let mut due = Vec::new();
        for (listed, status) in objects {
            match status {
                ClaimStatus::Loaded => report.already_loaded += 1,
                ClaimStatus::Busy {
                    lease_expired: false,
                    ..
                } => report.in_other_hands += 1,
                ClaimStatus::Free
                | ClaimStatus::Busy {
                    lease_expired: true,
                    ..
                } => due.push(listed.object),
            }
        }
        if let Some(limit) = arguments.limit {
            let room = limit.saturating_sub(report.announced);
            due.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        }
        for objects in due.chunks(MAX_BATCH) {
            if stop.is_cancelled() {
                report.stopped = true;
                return Ok(());
            }
            announce(queue, objects).await?;
            failpoint::reach("backfill.announced");
            report.announced += objects.len() as u64;
            if let Some(rate) = arguments.max_rate {
                let share = Duration::from_secs(objects.len() as u64) / rate.get();
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(share) => {}
                }
            }
        }
        if arguments
            .limit
            .is_some_and(|limit| report.announced >= limit)
        {
            break;
        }
    }
    Ok(())
}

/// Sends an announcement of each object.
pub(in crate::cli) async fn announce(
    queue: &SqsQueue,
    objects: &[ObjectRef],
) -> anyhow::Result<()> {
    let bodies: Vec<String> = objects.iter().map(announcement).collect();
    let sent = queue.send(&bodies).await;
    sent.context("failed to announce some objects; run it again")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "found                  {}", self.found)?;
        writeln!(f, "already loaded         {}", self.already_loaded)?;
        writeln!(f, "in progress elsewhere  {}", self.in_other_hands)?;
        writeln!(f, "announced              {}", self.announced)
    }
}
