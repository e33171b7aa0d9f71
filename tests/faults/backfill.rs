//! `sluice backfill` dies at every step. A second run finishes its work.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Result, ensure};

use crate::harness::{Lab, concurrently, scenario};

const SIGABRT: i32 = 6;

/// Creates a lab that announces nothing, with some objects.
async fn with_history(name: &str) -> Result<Lab<'static>> {
    let mut lab = Lab::shared(&name.replace(['.', '_'], "-")).await?;
    lab.site.announce_no_more().await?;
    lab.put_bundles(8).await?;
    lab.set("batch.max_objects", 3);
    Ok(lab)
}

fn backfill(lab: &Lab<'_>) -> Vec<String> {
    vec!["backfill".to_owned(), format!("s3://{}", lab.site.bucket)]
}

/// Asserts that the command dies at this failpoint. `nth` selects the occurrence, such as `1*off->`
/// for the second one.
async fn dies(lab: &Lab<'_>, arguments: &[String], nth: &str, failpoint: &str) -> Result<()> {
    let armed = format!("{failpoint}={nth}return");
    let output = lab.command(arguments, &armed).await?;
    ensure!(output.status.signal() == Some(SIGABRT), "{output:?}");
    Ok(())
}

async fn ends(lab: &Lab<'_>, arguments: &[String]) -> Result<()> {
    let output = lab.command(arguments, "").await?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

async fn resumed(failpoint: String, nth: &'static str) -> Result<()> {
    let lab = with_history(&failpoint).await?;
    let arguments = backfill(&lab);
    dies(&lab, &arguments, nth, &failpoint).await?;
    ends(&lab, &arguments).await?;
    lab.assert_exact().await
}

fn forced(lab: &Lab<'_>) -> Vec<String> {
    let mut arguments = backfill(lab);
    arguments.push("--force".to_owned());
    arguments
}

/// Kills a forced backfill of loaded objects, and finishes it by another forced run or by a plain
/// one.
async fn replaced(failpoint: String, nth: &'static str, again: bool) -> Result<()> {
    let lab = with_history(&failpoint).await?;
    ends(&lab, &backfill(&lab)).await?;
    dies(&lab, &forced(&lab), nth, &failpoint).await?;
    let rest = if again { forced(&lab) } else { backfill(&lab) };
    ends(&lab, &rest).await?;
    lab.assert_exact().await
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
                scenario(failpoint.clone(), replaced(failpoint, "", again))
            })
        });
        concurrently(deaths).await?;
    }
    let in_the_middle = [("", true), ("3*off->", false)];
    concurrently(in_the_middle.map(|(nth, again)| {
        scenario(
            "clean.table",
            replaced("clean.table".to_owned(), nth, again),
        )
    }))
    .await
}

/// Kills the run that recovers the replacement as well.
async fn replaced_at_last(second: &'static str) -> Result<()> {
    let lab = with_history(&format!("second-{second}")).await?;
    ends(&lab, &backfill(&lab)).await?;
    dies(&lab, &forced(&lab), "", "insert.after").await?;
    dies(&lab, &backfill(&lab), "", second).await?;
    ends(&lab, &backfill(&lab)).await?;
    lab.assert_exact().await
}

#[tokio::test]
async fn a_backfill_that_dies_while_it_ends_a_forced_one_is_recovered() -> Result<()> {
    let seconds = [
        "fence.after",
        "check_rows.after",
        "insert.before",
        "record.before",
        "record.after",
        "clean.table",
    ];
    concurrently(seconds.map(|second| scenario(second, replaced_at_last(second)))).await
}

/// Two forced backfills run at the same time, beside a worker.
#[tokio::test]
async fn forced_backfills_at_the_same_time_do_not_double() -> Result<()> {
    let mut lab = Lab::shared("forced-together").await?;
    lab.set("batch.max_objects", 3);
    lab.put_bundles(9).await?;
    let daemon = lab.start("")?;
    lab.drained(&[&daemon]).await;
    let arguments = forced(&lab);
    let (first, second) = tokio::join!(lab.command(&arguments, ""), lab.command(&arguments, ""));
    for output in [first?, second?] {
        ensure!(output.status.success(), "{output:?}");
    }
    lab.finish(vec![daemon]).await
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
        places.map(|(failpoint, nth)| scenario(failpoint.clone(), resumed(failpoint, nth)))
    }))
    .await
}
