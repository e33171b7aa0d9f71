//! A batch is recovered by a worker that would use different statements for it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::write_lean_declarations;
use tempfile::TempDir;

use crate::harness::{Harness, Statement, concurrently, scenario, wait_for_hits};

/// The worker dies when all rows are committed but not yet recorded. The rows stay.
async fn complete(before: &'static str, after: &'static str) -> Result<()> {
    let mut harness = Harness::shared("plan-complete").await?;
    harness.set("load.strategy", before);
    harness.put_bundles(4).await?;
    let death = "insert.after";
    harness
        .start(&format!("{death}=return"))?
        .aborted(death)
        .await?;
    harness.set("load.strategy", after);
    let last = harness.start("")?;
    harness.wait_until_drained(&[&last]).await;
    ensure!(
        last.count_logged("another configuration")? == 1,
        "{}",
        harness.logs()
    );
    ensure!(
        last.count_logged("rolling back a batch")? == 0,
        "{}",
        harness.logs()
    );
    harness.finish(vec![last]).await
}

/// The worker dies when some tables have their rows. Another worker cannot retry its statements, so
/// the rows are rolled back and the objects are loaded again, even if a worker dies on the way.
async fn halfway(
    change: fn(&mut Harness<'_>, &Path) -> Result<()>,
    death: &'static str,
) -> Result<()> {
    let mut harness = Harness::shared_with("plan-halfway", 6).await?;
    harness.set("load.strategy", "per_type");
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    harness.put_bundles(6).await?;
    let insert = || Statement::Insert.matcher();
    proxy.inject(Fault::Delay(Duration::ZERO), 5, insert());
    proxy.inject(Fault::Delay(Duration::from_secs(600)), 1, insert());
    let first = harness.start("")?;
    wait_for_hits(&proxy, 6).await;
    first.kill()?;
    proxy.heal();
    let directory = TempDir::new()?;
    change(&mut harness, directory.path())?;
    harness.migrate().await?;
    if !death.is_empty() {
        harness
            .start(&format!("{death}=return"))?
            .aborted(death)
            .await?;
    }
    let last = harness.start("")?;
    harness.wait_until_drained(&[&last]).await;
    ensure!(last.count_recovered("Loaded")? == 0, "{}", harness.logs());
    if death.is_empty() {
        ensure!(
            last.count_logged("another configuration")? == 1,
            "{}",
            harness.logs()
        );
        ensure!(
            last.count_logged("rolling back a batch")? == 1,
            "{}",
            harness.logs()
        );
    }
    harness.finish(vec![last]).await
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the signature of the other changes"
)]
fn other_strategy(harness: &mut Harness<'_>, _: &Path) -> Result<()> {
    harness.set("load.strategy", "single_pass");
    Ok(())
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the signature of the other changes"
)]
fn other_limit(harness: &mut Harness<'_>, _: &Path) -> Result<()> {
    harness.set("batch.max_bytes", "64MiB");
    Ok(())
}

/// Adds an event type that matches no existing statement.
fn other_event_types(harness: &mut Harness<'_>, directory: &Path) -> Result<()> {
    write_lean_declarations(directory)?;
    let more = "table: mores\nrule: {path: [more], equals: yes}\norder_by: [id]\n\
                columns:\n- {name: id, type: String, path: [id], identifies: true}\n";
    std::fs::write(directory.join("more.yaml"), more)?;
    harness.set("event_types.dir", directory.display().to_string());
    Ok(())
}

#[tokio::test]
async fn a_batch_is_not_retried_under_another_configuration() -> Result<()> {
    concurrently([
        scenario("to per_type", complete("single_pass", "per_type")),
        scenario("to single_pass", complete("per_type", "single_pass")),
        scenario("strategy", halfway(other_strategy, "")),
        scenario("limit", halfway(other_limit, "")),
        scenario("event types", halfway(other_event_types, "")),
        scenario("death", halfway(other_strategy, "take_back.after")),
    ])
    .await
}

/// Until `migrate` has added what an earlier version's ledger lacks, nothing is loaded or lost.
#[tokio::test]
async fn intake_pauses_until_an_earlier_ledger_is_migrated() -> Result<()> {
    let mut harness = Harness::shared("earlier").await?;
    let table = harness.table("ledger_objects");
    for column in ["plan", "many_blocks"] {
        let sql = format!("ALTER TABLE {table} DROP COLUMN {column}");
        harness.clickhouse.execute(&sql).await?;
    }
    harness.put_bundles(3).await?;
    let daemon = harness.start("")?;
    daemon.wait_for_readiness(503, "sluice migrate").await;
    harness.migrate().await?;
    harness.wait_until_drained(&[&daemon]).await;
    harness.assert_received(&daemon, 3).await?;
    harness.finish(vec![daemon]).await
}
