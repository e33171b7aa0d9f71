//! Waits until all uploaded objects are loaded and the queue is empty, and shows the progress.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use sluice_testkit::{Site, Stack};
use tokio::task::JoinSet;

use super::Arguments;
use super::daemon::Daemon;
use super::tables::count;
use super::upload::Uploads;
use crate::console::Progress;

const INTERVAL: Duration = Duration::from_millis(250);
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn wait_until_loaded(
    arguments: &Arguments,
    stack: &Stack,
    site: &Site,
    daemon: &mut Daemon,
    uploads: &Uploads,
    mut tasks: JoinSet<Result<()>>,
) -> Result<()> {
    // A slow rate is not a stall.
    let stall_timeout = arguments.rate.map_or(STALL_TIMEOUT, |rate| {
        STALL_TIMEOUT.max(Duration::from_secs_f64((3.0 / rate).min(86_400.0)))
    });
    let mut progress = Progress::new();
    let mut last = None;
    let mut changed_at = Instant::now();
    loop {
        while let Some(uploader) = tasks.try_join_next() {
            uploader??;
        }
        daemon.ensure_running()?;

        let (uploaded, expected) = {
            let totals = uploads.lock();
            (
                totals.expected_rows.objects,
                totals.expected_rows.statements(),
            )
        };
        let rows = count(&stack.clickhouse, site).await?.all();
        let (visible, in_flight) = site.queue_depth().await?;
        progress.show(&format!(
            "uploaded {uploaded}/{} objects, loaded {rows} rows of {expected}, \
             queue {visible} visible, {in_flight} in flight",
            arguments.objects
        ));
        // Surplus rows do not disappear, and the report shows them.
        if tasks.is_empty() && rows >= expected && visible + in_flight == 0 {
            return Ok(());
        }

        let state = (uploaded, rows, visible, in_flight);
        if last != Some(state) {
            last = Some(state);
            changed_at = Instant::now();
        } else if changed_at.elapsed() > stall_timeout {
            bail!(
                "no progress for {} s: uploaded {uploaded} objects, loaded {rows} rows of \
                 {expected}, queue {visible} visible and {in_flight} in flight, {} in the \
                 dead-letter queue",
                stall_timeout.as_secs(),
                site.dlq_depth().await?
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
