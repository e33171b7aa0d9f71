//! A proxy between Sluice and ClickHouse injects faults into every statement of the protocol.

use std::time::Duration;

use anyhow::{Result, ensure};
use sluice::event_types::Catalog;
use sluice::statements::select::Target;
use sluice_testkit::Stack;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::EventType;

use crate::harness::{Harness, Statement, concurrently, scenario, wait_for_hits};

/// The number of tables that `per_type` fills: those of five event types, and three of Sluice.
const TABLES: usize = 8;

/// Every statement of one batch hits the fault once. The fault of the insert leads to a kill, which
/// hits it as well.
async fn every_statement_hits(fault: Fault, strategy: &'static str) -> Result<()> {
    let mut harness = Harness::shared("statements").await?;
    harness.set("load.strategy", strategy);
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    harness.put_bundles(5).await?;
    let statements = [
        Statement::LookUp,
        Statement::Claim,
        Statement::Verify,
        Statement::Insert,
        Statement::Kill,
        Statement::ReadBack,
        Statement::Record,
    ];
    for statement in statements {
        proxy.inject(fault, 1, statement.matcher());
    }
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    // A delayed insert succeeds, so that nothing is killed.
    let expected = match fault {
        Fault::Delay(_) => statements.len() - 1,
        _ => statements.len(),
    };
    ensure!(
        proxy.hits() == expected,
        "{} of {expected} statements hit the fault",
        proxy.hits()
    );
    harness.assert_received(&daemon, 5).await?;
    harness.finish(vec![daemon]).await
}

async fn every_statement_hits_every_fault(strategy: &'static str) -> Result<()> {
    let delay = Duration::from_secs(2);
    let faults = [
        Fault::CutBeforeRequest,
        Fault::CutInRequest,
        Fault::CutBeforeResponse,
        Fault::CutInResponse,
        Fault::Delay(delay),
        Fault::Late(delay),
        Fault::Status(500),
        Fault::Status(502),
        Fault::Status(503),
    ];
    concurrently(
        faults.map(|fault| scenario(format!("{fault:?}"), every_statement_hits(fault, strategy))),
    )
    .await
}

#[tokio::test]
async fn every_statement_tolerates_cuts_errors_delays_and_late_arrival() -> Result<()> {
    every_statement_hits_every_fault("single_pass").await
}

#[tokio::test]
async fn every_per_type_statement_tolerates_cuts_errors_delays_and_late_arrival() -> Result<()> {
    every_statement_hits_every_fault("per_type").await
}

/// The worker dies when some of the tables are filled. The recovering worker must fill the others.
#[tokio::test]
async fn a_batch_whose_worker_dies_between_its_statements_is_rolled_forward() -> Result<()> {
    let mut harness = Harness::shared("between").await?;
    harness.set("load.strategy", "per_type");
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    harness.put_bundles(6).await?;
    // Some statements pass; the next one is held until the worker is dead.
    let insert = Statement::Insert.matcher();
    proxy.inject(Fault::Delay(Duration::ZERO), 4, insert);
    let delay = Duration::from_secs(600);
    proxy.inject(Fault::Delay(delay), 1, Statement::Insert.matcher());
    let first = harness.start("")?;
    wait_for_hits(&proxy, 5).await;
    first.kill()?;
    proxy.heal();
    let second = harness.start("")?;
    harness.wait_until_drained(&[&second]).await;
    ensure!(
        second.count_logged("recovering")? == 1,
        "{}",
        harness.logs()
    );
    ensure!(second.count_recovered("Loaded")? == 1, "{}", harness.logs());
    harness.finish(vec![second]).await
}

/// The worker is killed while its insert runs, and the statement continues without it.
async fn killed_during_insert(strategy: &'static str) -> Result<()> {
    let mut harness = Harness::shared("killed").await?;
    harness.set("load.strategy", strategy);
    let s3 = Proxy::start(harness.aws.endpoint()).await?;
    harness.set("s3.clickhouse_endpoint", s3.url());
    harness.put_bundles(5).await?;
    s3.inject(Fault::Delay(Duration::from_secs(8)), 1, |parts, _| {
        parts.method == "GET"
    });
    let first = harness.start("")?;
    wait_for_hits(&s3, 1).await;
    first.kill()?;
    let second = harness.start("")?;
    harness.finish(vec![second]).await
}

#[tokio::test]
async fn a_worker_killed_during_its_insert_is_recovered() -> Result<()> {
    concurrently(
        ["single_pass", "per_type"]
            .map(|strategy| scenario(strategy, killed_during_insert(strategy))),
    )
    .await
}

/// Changes one table, or all, before an insert is retried. The retry detects it.
async fn torn(change: &'static str, to_all: bool, strategy: &'static str) -> Result<()> {
    let mut harness = Harness::shared("torn").await?;
    harness.set("load.strategy", strategy);
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    while !harness.expects(EventType::PageViewed) {
        harness.put_bundles(1).await?;
    }
    // The last one is sent when all other tables are filled.
    let passing = match strategy {
        "per_type" => TABLES - 1,
        _ => 0,
    };
    let insert = || Statement::Insert.matcher();
    proxy.inject(Fault::Delay(Duration::ZERO), passing, insert());
    proxy.inject(Fault::CutBeforeResponse, 1, insert());
    proxy.inject(Fault::Hold, 1, Statement::Kill.matcher());
    // The kill is held for as long as the changes take.
    harness.set("clickhouse.query_timeout", "5m");
    let daemon = harness.start("")?;
    wait_for_hits(&proxy, passing + 2).await;
    let catalog = Catalog::builtin();
    for target in Target::all(&catalog) {
        if to_all || target.table() == EventType::PageViewed.table() {
            let statement = change.replace("{table}", &harness.table(target.table()));
            harness.clickhouse.execute(&statement).await?;
        }
    }
    proxy.heal();
    harness.wait_until_drained(&[&daemon]).await;
    ensure!(
        daemon.count_logged("rolling back a batch")? == 1,
        "{}",
        harness.logs()
    );
    harness.finish(vec![daemon]).await
}

/// Cases: a token that is remembered although its rows are missing, and rows that exist although
/// their token is not remembered.
#[tokio::test]
async fn a_batch_torn_by_a_crash_of_clickhouse_is_loaded_again() -> Result<()> {
    let lost = "DELETE FROM {table} WHERE 1";
    let doubled = "INSERT INTO {table} SELECT * FROM {table}";
    concurrently(
        ["single_pass", "per_type"]
            .into_iter()
            .flat_map(|strategy| {
                [lost, doubled].map(|change| {
                    let name = format!("{strategy}, {change}");
                    scenario(name, torn(change, false, strategy))
                })
            }),
    )
    .await
}

/// The owner can change how many tokens the tables remember. Sluice does not rely on it.
#[tokio::test]
async fn a_repeated_insert_that_clickhouse_does_not_recognise_is_loaded_again() -> Result<()> {
    let forget = match Stack::shared().servers() {
        [_] => "ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 0",
        _ => "ALTER TABLE {table} MODIFY SETTING replicated_deduplication_window = 0",
    };
    concurrently(
        ["single_pass", "per_type"]
            .map(|strategy| scenario(strategy, torn(forget, true, strategy))),
    )
    .await
}
