//! The daemon dies at every step of the ledger protocol, and another one finishes its work.

use anyhow::Result;

use crate::harness::{Harness, concurrently, scenario};

/// Runs daemons that die one after the other, each at its failpoint, and a last one without any.
async fn recover_after_deaths_at(deaths: Vec<String>, strategy: &'static str) -> Result<()> {
    let name = deaths
        .last()
        .map_or("none", String::as_str)
        .replace('.', "-");
    let mut harness = Harness::shared(&name).await?;
    harness.set("load.strategy", strategy);
    harness.put_bundles(4).await?;
    for death in &deaths {
        harness
            .start(&format!("{death}=return"))?
            .aborted(death)
            .await?;
    }
    let last = harness.start("")?;
    harness.finish(vec![last]).await
}

async fn run_all(scenarios: Vec<(Vec<String>, &'static str)>) -> Result<()> {
    concurrently(scenarios.into_iter().map(|(deaths, strategy)| {
        let name = format!("{strategy}, {deaths:?}");
        scenario(name, recover_after_deaths_at(deaths, strategy))
    }))
    .await
}

#[tokio::test]
async fn a_worker_that_dies_at_any_step_is_recovered() -> Result<()> {
    let mut scenarios = Vec::new();
    for step in ["look_up", "seal", "verify", "insert", "record", "delete"] {
        for when in ["before", "after"] {
            scenarios.push((vec![format!("{step}.{when}")], "single_pass"));
        }
    }
    run_all(scenarios).await
}

/// After `insert.after` the batch has rows, and is rolled forward; after `verify.after` it has
/// none, and is released.
#[tokio::test]
async fn a_worker_that_dies_while_it_recovers_is_recovered() -> Result<()> {
    let mut scenarios = Vec::new();
    for when in ["before", "after"] {
        for (first, steps) in [
            (
                "insert.after",
                &["fence", "kill", "check_rows", "record"][..],
            ),
            ("verify.after", &["check_rows", "release"][..]),
        ] {
            for step in steps {
                let second = format!("{step}.{when}");
                scenarios.push((vec![first.to_owned(), second], "single_pass"));
            }
        }
    }
    run_all(scenarios).await
}

#[tokio::test]
async fn a_worker_that_dies_between_per_type_statements_is_recovered() -> Result<()> {
    let deaths = [
        &["insert.before"][..],
        &["insert.after", "insert.after"],
        &["record.before"],
        &["verify.after", "release.before"],
    ];
    let owned = |deaths: &[&str]| deaths.iter().map(ToString::to_string).collect();
    run_all(deaths.map(|deaths| (owned(deaths), "per_type")).into()).await
}
