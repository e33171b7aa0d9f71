//! A batch is recovered by a worker that would use different statements for it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::write_lean_declarations;
use tempfile::TempDir;

use crate::harness::{Lab, Statement, concurrently, hits, scenario};

/// The worker dies when all rows are committed but not yet recorded. The rows stay.
async fn complete(before: &'static str, after: &'static str) -> Result<()> {
    let mut lab = Lab::shared("plan-complete").await?;
    lab.set("load.strategy", before);
    lab.put_bundles(4).await?;
    let code = lab.start("insert.after=return")?.ended().await?;
    ensure!(code == 134, "ended with {code}");
    lab.set("load.strategy", after);
    let last = lab.start("")?;
    lab.drained(&[&last]).await;
    ensure!(last.said("another configuration")? == 1, "{}", lab.logs());
    ensure!(last.said("rolling back a batch")? == 0, "{}", lab.logs());
    lab.finish(vec![last]).await
}

/// The worker dies when some tables have their rows. Another worker cannot retry its statements, so
/// the rows are rolled back and the objects are loaded again. Workers that die during this are
/// recovered from, too.
async fn halfway(change: fn(&mut Lab<'_>, &Path) -> Result<()>, death: &'static str) -> Result<()> {
    let mut lab = Lab::shared_with("plan-halfway", 6).await?;
    lab.set("load.strategy", "per_type");
    let proxy = Proxy::start(lab.clickhouse.url()).await?;
    lab.set("clickhouse.url", proxy.url());
    lab.put_bundles(6).await?;
    let insert = || Statement::Insert.matcher();
    proxy.inject(Fault::Delay(Duration::ZERO), 5, insert());
    proxy.inject(Fault::Delay(Duration::from_secs(600)), 1, insert());
    let first = lab.start("")?;
    hits(&proxy, 6).await;
    first.kill()?;
    proxy.heal();
    let directory = TempDir::new()?;
    change(&mut lab, directory.path())?;
    lab.migrate().await?;
    if !death.is_empty() {
        let code = lab.start(&format!("{death}=return"))?.ended().await?;
        ensure!(code == 134, "{death}: ended with {code}");
    }
    let last = lab.start("")?;
    lab.drained(&[&last]).await;
    ensure!(last.recovered("Loaded")? == 0, "{}", lab.logs());
    if death.is_empty() {
        ensure!(last.said("another configuration")? == 1, "{}", lab.logs());
        ensure!(last.said("rolling back a batch")? == 1, "{}", lab.logs());
    }
    lab.finish(vec![last]).await
}

#[expect(clippy::unnecessary_wraps, reason = "as the other changes")]
fn other_strategy(lab: &mut Lab<'_>, _: &Path) -> Result<()> {
    lab.set("load.strategy", "single_pass");
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "as the other changes")]
fn other_limit(lab: &mut Lab<'_>, _: &Path) -> Result<()> {
    lab.set("batch.max_bytes", "64MiB");
    Ok(())
}

/// Adds an event type that matches no existing statement.
fn other_event_types(lab: &mut Lab<'_>, directory: &Path) -> Result<()> {
    write_lean_declarations(directory)?;
    let more = "table: mores\nrule: {path: [more], equals: yes}\norder_by: [id]\n\
                columns:\n- {name: id, type: String, path: [id], identifies: true}\n";
    std::fs::write(directory.join("more.yaml"), more)?;
    lab.set("event_types.dir", directory.display().to_string());
    Ok(())
}

#[tokio::test]
async fn a_batch_is_not_replayed_under_another_configuration() -> Result<()> {
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
async fn an_earlier_ledger_is_waited_for() -> Result<()> {
    let mut lab = Lab::shared("earlier").await?;
    let table = lab.table("ledger_objects");
    for column in ["plan", "many_blocks"] {
        let sql = format!("ALTER TABLE {table} DROP COLUMN {column}");
        lab.clickhouse.execute(&sql).await?;
    }
    lab.put_bundles(3).await?;
    let daemon = lab.start("")?;
    daemon.readiness(503, "sluice migrate").await;
    lab.migrate().await?;
    lab.drained(&[&daemon]).await;
    lab.assert_received(&daemon, 3).await?;
    lab.finish(vec![daemon]).await
}
