//! `sluice dlq` dies in the middle of its work. A second run finishes it.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;

use anyhow::{Result, ensure};
use serde_json::Value;
use sluice_testkit::wait_for;

use crate::harness::{BOUND, Harness, concurrently, scenario};

const SIGABRT: i32 = 6;

/// The number of objects in the dead-letter queue that are loaded already.
const LOADED: usize = 6;
const NOT_LOADED: usize = 14;

/// Creates a dead-letter queue with more messages than one request returns.
async fn with_dead_letters(name: &str) -> Result<Harness<'static>> {
    let mut harness = Harness::shared_with(name, 1).await?;
    harness.put_bundles(LOADED).await?;
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    daemon.wait_until_ready().await;
    daemon.stop().await?;
    for bundle in &harness.expected {
        harness.site.put(&bundle.key, bundle.bytes.clone()).await?;
    }
    harness.put_bundles(NOT_LOADED).await?;
    wait_for("the dead letters", BOUND, async || {
        // Messages that were received once and returned may not be received again.
        let receive = harness.site.sqs.receive_message();
        let receive = receive
            .queue_url(&harness.site.queue_url)
            .visibility_timeout(0);
        receive.max_number_of_messages(10).send().await?;
        let dead = harness.site.dlq_depth().await?;
        ensure!(dead == (LOADED + NOT_LOADED) as u64, "{dead}");
        Ok(Some(()))
    })
    .await;
    Ok(harness)
}

/// Runs the command until nothing is left, since messages that a killed one had in flight reappear
/// later.
async fn repeat_until_empty(harness: &Harness<'_>, mut arguments: impl FnMut() -> Vec<String>) {
    wait_for("the dead-letter queue to be empty", BOUND, async || {
        let output = harness.command(&arguments(), "").await?;
        ensure!(output.status.success(), "{output:?}");
        let left = harness.site.dlq_depth().await?;
        ensure!(left == 0, "{left} left: {output:?}");
        Ok(Some(()))
    })
    .await;
}

async fn redrive_dies_at(failpoint: &'static str, nth: &'static str) -> Result<()> {
    let harness = with_dead_letters(&failpoint.replace('.', "-")).await?;
    let armed = format!("{failpoint}={nth}return");
    let output = harness.command(&["dlq", "redrive"], &armed).await?;
    ensure!(output.status.signal() == Some(SIGABRT), "{output:?}");
    repeat_until_empty(&harness, || vec!["dlq".into(), "redrive".into()]).await;
    let daemon = harness.start("")?;
    harness.finish(vec![daemon]).await
}

#[tokio::test]
async fn a_redrive_that_dies_is_completed_by_the_next() -> Result<()> {
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

async fn purge_dies_at(failpoint: &'static str) -> Result<()> {
    let harness = with_dead_letters(&failpoint.replace('.', "-")).await?;
    let before = harness
        .command(&["dlq", "list", "--output", "json"], "")
        .await?;
    let mut expected = ids(serde_json::from_slice::<Value>(&before.stdout)?["messages"].as_array());
    ensure!(expected.len() == LOADED + NOT_LOADED, "{before:?}");
    let armed = format!("{failpoint}=1*off->return");
    let directory = tempfile::tempdir()?;
    let mut runs = 0;
    let mut purge = || -> Vec<String> {
        runs += 1;
        let archive = directory.path().join(format!("{runs}.jsonl"));
        let archive = archive.display().to_string();
        ["dlq", "purge", "--yes", "--archive", &archive]
            .map(str::to_owned)
            .into()
    };
    let output = harness.command(&purge(), &armed).await?;
    ensure!(output.status.signal() == Some(SIGABRT), "{output:?}");
    repeat_until_empty(&harness, purge).await;
    let mut lines = Vec::new();
    for file in std::fs::read_dir(directory.path())? {
        for line in std::fs::read_to_string(file?.path())?.lines() {
            lines.push(serde_json::from_str(line)?);
        }
    }
    expected.retain(|id| !ids(Some(&lines)).contains(id));
    ensure!(expected.is_empty(), "in no archive: {expected:?}");
    Ok(())
}

fn ids(messages: Option<&Vec<Value>>) -> BTreeSet<String> {
    let messages = messages.into_iter().flatten();
    let ids = messages.filter_map(|message| message["message_id"].as_str());
    ids.map(str::to_owned).collect()
}

#[tokio::test]
async fn messages_removed_by_a_purge_that_dies_are_in_an_archive() -> Result<()> {
    concurrently(
        ["purge.archived", "purge.deleted"]
            .map(|failpoint| scenario(failpoint, purge_dies_at(failpoint))),
    )
    .await
}
