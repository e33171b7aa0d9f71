//! `sluice dlq` dies in the middle of its work; run again, it ends it.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Result, ensure};
use sluice_testkit::wait_for;

use crate::harness::{BOUND, Lab, concurrently, scenario};

const SIGABRT: i32 = 6;

/// Of what is in the dead-letter queue, so many objects are loaded.
const LOADED: usize = 6;
const NOT_LOADED: usize = 14;

/// A dead-letter queue of several requests.
async fn with_dead_letters(name: &str) -> Result<Lab<'static>> {
    let mut lab = Lab::shared_with(name, 1).await?;
    lab.put_bundles(LOADED).await?;
    let daemon = lab.start("")?;
    lab.drained(&[&daemon]).await;
    daemon.is_ready().await;
    daemon.stop().await?;
    for bundle in &lab.expected {
        lab.site.put(&bundle.key, bundle.bytes.clone()).await?;
    }
    lab.put_bundles(NOT_LOADED).await?;
    wait_for("the dead letters", BOUND, async || {
        // Received once and given back, they may not be received again.
        let receive = lab.site.sqs.receive_message();
        let receive = receive.queue_url(&lab.site.queue_url).visibility_timeout(0);
        receive.max_number_of_messages(10).send().await?;
        let dead = lab.site.dlq_depth().await?;
        ensure!(dead == (LOADED + NOT_LOADED) as u64, "{dead}");
        Ok(Some(()))
    })
    .await;
    Ok(lab)
}

/// Until nothing is left, since what a killed one held comes back later.
async fn repeated(lab: &Lab<'_>, arguments: &[&str]) {
    wait_for("the dead-letter queue to be empty", BOUND, async || {
        let output = lab.command(arguments, "").await?;
        ensure!(output.status.success(), "{output:?}");
        let left = lab.site.dlq_depth().await?;
        ensure!(left == 0, "{left} left: {output:?}");
        Ok(Some(()))
    })
    .await;
}

async fn redrive_dies_at(failpoint: &'static str, nth: &'static str) -> Result<()> {
    let lab = with_dead_letters(&failpoint.replace('.', "-")).await?;
    let armed = format!("{failpoint}={nth}return");
    let output = lab.command(&["dlq", "redrive"], &armed).await?;
    ensure!(output.status.signal() == Some(SIGABRT), "{output:?}");
    repeated(&lab, &["dlq", "redrive"]).await;
    let daemon = lab.start("")?;
    lab.finish(vec![daemon]).await
}

#[tokio::test]
async fn a_redrive_that_dies_is_done_again() -> Result<()> {
    let deaths = [
        ("redrive.sent", ""),
        ("redrive.sent", "1*off->"),
        ("redrive.deleted", ""),
    ];
    concurrently(deaths.map(|(failpoint, nth)| {
        let name = format!("{failpoint} {nth}");
        scenario(name, redrive_dies_at(failpoint, nth))
    }))
    .await
}
