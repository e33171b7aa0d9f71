//! `sluice backfill` dies at every step. A second run finishes its work.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Result, ensure};

use crate::harness::{Harness, concurrently, scenario};

const SIGABRT: i32 = 6;

/// Creates a harness with some objects that are not announced.
async fn with_history(name: &str) -> Result<Harness<'static>> {
    let mut harness = Harness::shared(&name.replace(['.', '_'], "-")).await?;
    harness.site.stop_notifications().await?;
    harness.put_bundles(8).await?;
    harness.set("batch.max_objects", 3);
    Ok(harness)
}

fn backfill(harness: &Harness<'_>) -> Vec<String> {
    vec![
        "backfill".to_owned(),
        format!("s3://{}", harness.site.bucket),
    ]
}

/// Runs a command, and asserts that it dies at this failpoint. `nth` selects the occurrence, such
/// as `1*off->` for the second one.
async fn die_at(
    harness: &Harness<'_>,
    arguments: &[String],
    nth: &str,
    failpoint: &str,
) -> Result<()> {
    let armed = format!("{failpoint}={nth}return");
    let output = harness.command(arguments, &armed).await?;
    ensure!(output.status.signal() == Some(SIGABRT), "{output:?}");
    Ok(())
}

async fn run_to_end(harness: &Harness<'_>, arguments: &[String]) -> Result<()> {
    let output = harness.command(arguments, "").await?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

async fn resume_after_death_at(failpoint: String, nth: &'static str) -> Result<()> {
    let harness = with_history(&failpoint).await?;
    let arguments = backfill(&harness);
    die_at(&harness, &arguments, nth, &failpoint).await?;
    run_to_end(&harness, &arguments).await?;
    harness.assert_exact().await
}

fn forced(harness: &Harness<'_>) -> Vec<String> {
    let mut arguments = backfill(harness);
    arguments.push("--force".to_owned());
    arguments
}

/// Kills a forced backfill of loaded objects, and finishes it by another forced run or by a plain
/// one.
async fn finish_forced_after_death_at(
    failpoint: String,
    nth: &'static str,
    again: bool,
) -> Result<()> {
    let harness = with_history(&failpoint).await?;
    run_to_end(&harness, &backfill(&harness)).await?;
    die_at(&harness, &forced(&harness), nth, &failpoint).await?;
    let rest = if again {
        forced(&harness)
    } else {
        backfill(&harness)
    };
    run_to_end(&harness, &rest).await?;
    harness.assert_exact().await
}

#[tokio::test]
async fn a_forced_backfill_that_dies_at_any_step_is_recovered() -> Result<()> {
    for steps in [["look_up", "seal", "verify"], ["insert", "record", "clean"]] {
        let deaths = steps.iter().flat_map(|step| {
            let places = [
                (format!("{step}.before"), true),
                (format!("{step}.after"), false),
            ];
            places.map(|(failpoint, again)| {
                scenario(
                    failpoint.clone(),
                    finish_forced_after_death_at(failpoint, "", again),
                )
            })
        });
        concurrently(deaths).await?;
    }
    let between_tables = [("", true), ("3*off->", false)];
    concurrently(between_tables.map(|(nth, again)| {
        scenario(
            "clean.table",
            finish_forced_after_death_at("clean.table".to_owned(), nth, again),
        )
    }))
    .await
}

/// The run that recovers the forced backfill dies, too.
async fn recover_after_second_death_at(second: &'static str) -> Result<()> {
    let harness = with_history(&format!("second-{second}")).await?;
    run_to_end(&harness, &backfill(&harness)).await?;
    die_at(&harness, &forced(&harness), "", "insert.after").await?;
    die_at(&harness, &backfill(&harness), "", second).await?;
    run_to_end(&harness, &backfill(&harness)).await?;
    harness.assert_exact().await
}

#[tokio::test]
async fn a_backfill_that_dies_while_it_finishes_a_forced_one_is_recovered() -> Result<()> {
    let seconds = [
        "fence.after",
        "check_rows.after",
        "insert.before",
        "record.before",
        "record.after",
        "clean.table",
    ];
    concurrently(seconds.map(|second| scenario(second, recover_after_second_death_at(second))))
        .await
}

/// Two forced backfills run at the same time, beside a worker.
#[tokio::test]
async fn concurrent_forced_backfills_duplicate_no_rows() -> Result<()> {
    let mut harness = Harness::shared("forced-together").await?;
    harness.set("batch.max_objects", 3);
    harness.put_bundles(9).await?;
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    let arguments = forced(&harness);
    let (first, second) = tokio::join!(
        harness.command(&arguments, ""),
        harness.command(&arguments, "")
    );
    for output in [first?, second?] {
        ensure!(output.status.success(), "{output:?}");
    }
    harness.finish(vec![daemon]).await
}

#[tokio::test]
async fn a_backfill_that_dies_at_any_step_is_resumed() -> Result<()> {
    let steps = ["look_up", "seal", "verify", "insert", "record"];
    // The run dies in the first batch, or in the second.
    concurrently(steps.iter().flat_map(|step| {
        let places = [
            (format!("{step}.before"), ""),
            (format!("{step}.after"), "1*off->"),
        ];
        places.map(|(failpoint, nth)| {
            scenario(failpoint.clone(), resume_after_death_at(failpoint, nth))
        })
    }))
    .await
}
