//! A ledger that does not return all that was written to it, here because of row policies. Stale
//! replicas are tested elsewhere.

use anyhow::ensure;
use sluice_testkit::{ClickHouse, ClickHouseOptions, Site, Stack, wait_for};

use crate::access;
use crate::harness::{BOUND, Sluice, line, wait_until_drained};

const DATABASE: &str = "hidden";

/// Starts a server with a user from whom all rows of this table are hidden.
async fn clickhouse_that_hides(table: &str) -> ClickHouse {
    access::clickhouse(ClickHouseOptions {
        users: format!(
            "<blinded><password></password><networks><ip>127.0.0.1</ip></networks>\
             <profile>default</profile><quota>default</quota>\
             <databases><{DATABASE}><{table}><filter>0</filter></{table}></{DATABASE}></databases>\
             </blinded>"
        ),
        ..ClickHouseOptions::default()
    })
    .await
}

async fn lines_of(clickhouse: &ClickHouse) -> u64 {
    let sql = format!("SELECT count() FROM {DATABASE}.unmatched_statements");
    clickhouse.scalar(&sql).await.unwrap()
}

fn sluice(clickhouse: &ClickHouse, site: &Site, user: &str) -> Sluice {
    Sluice::new(Stack::shared(), site)
        .set("clickhouse.url", clickhouse.url())
        .set("clickhouse.database", DATABASE)
        .set("clickhouse.user", user)
}

#[tokio::test]
async fn nothing_is_loaded_while_the_ledger_hides_claims() {
    let site = Stack::shared().site("hidden-claims").await.unwrap();
    let clickhouse = clickhouse_that_hides("ledger_objects").await;
    let mut sighted = sluice(&clickhouse, &site, "default");
    sighted.migrate();
    site.put("a.jsonl", line("a")).await.unwrap();

    let mut blinded = sluice(&clickhouse, &site, "blinded");
    blinded.start();
    let why = blinded
        .wait_until_not_ready("ledger_objects shows 0 of 1 rows")
        .await;
    assert!(why.contains("row policy"), "{why}");
    blinded.kill();
    assert_eq!(lines_of(&clickhouse).await, 0);

    sighted.start();
    wait_until_drained(&site).await;
    assert_eq!(lines_of(&clickhouse).await, 1);
}

#[tokio::test]
async fn nothing_is_loaded_twice_while_the_ledger_hides_events() {
    let site = Stack::shared().site("hidden-events").await.unwrap();
    let clickhouse = clickhouse_that_hides("ledger_batches").await;
    let mut blinded = sluice(&clickhouse, &site, "blinded");
    blinded.migrate();
    blinded.start();
    let etag = site.put("a.jsonl", line("a")).await.unwrap();
    wait_until_drained(&site).await;
    let body = crate::harness::announcement(&site, "a.jsonl", &etag);
    site.send(&body).await.unwrap();
    let why = blinded
        .wait_until_not_ready("ledger_batches shows 0 of 1 rows")
        .await;
    assert!(why.contains("row policy"), "{why}");
    assert_eq!(lines_of(&clickhouse).await, 1);

    wait_for("the reason to be exported", BOUND, async || {
        let (_, metrics) = blinded.get("/metrics").await?;
        ensure!(metrics.contains("sluice_breaker_open{reason=\"ledger\"} 1"));
        Ok(Some(()))
    })
    .await;
}
