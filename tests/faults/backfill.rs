//! `sluice backfill` dies at every step of its work; run again, it ends it.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Result, ensure};

use crate::harness::{Lab, concurrently, scenario};

const SIGABRT: i32 = 6;

/// A lab that announces nothing, with some objects.
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

/// It dies at this place, the `nth` time that it comes there.
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

/// In the first batch, or in another one.
const TIMES: [&str; 2] = ["", "1*off->"];

async fn resumed(failpoint: String, nth: &'static str) -> Result<()> {
    let lab = with_history(&failpoint).await?;
    let arguments = backfill(&lab);
    dies(&lab, &arguments, nth, &failpoint).await?;
    ends(&lab, &arguments).await?;
    lab.assert_exact().await
}

#[tokio::test]
async fn pain_8_a_backfill_that_dies_at_any_step_is_resumed() -> Result<()> {
    let mut scenarios = Vec::new();
    for step in ["look_up", "seal", "verify", "insert", "record"] {
        for when in ["before", "after"] {
            for nth in TIMES {
                let failpoint = format!("{step}.{when}");
                let name = format!("{failpoint} {nth}");
                scenarios.push(scenario(name, resumed(failpoint, nth)));
            }
        }
    }
    concurrently(scenarios).await
}
