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
            "<restricted><password></password><networks><ip>127.0.0.1</ip></networks>\
             <profile>default</profile><quota>default</quota>\
             <databases><{DATABASE}><{table}><filter>0</filter></{table}></{DATABASE}></databases>\
             </restricted>"
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
    let mut unrestricted = sluice(&clickhouse, &site, "default");
    unrestricted.migrate();
    site.put("a.jsonl", line("a")).await.unwrap();

    let mut restricted = sluice(&clickhouse, &site, "restricted");
    restricted.start();
    let why = restricted
        .wait_until_not_ready("ledger_objects shows 0 of 1 rows")
        .await;
    assert!(why.contains("row policy"), "{why}");
    restricted.kill();
    assert_eq!(lines_of(&clickhouse).await, 0);

    unrestricted.start();
    wait_until_drained(&site).await;
    assert_eq!(lines_of(&clickhouse).await, 1);
}

#[tokio::test]
async fn nothing_is_loaded_twice_while_the_ledger_hides_events() {
    let site = Stack::shared().site("hidden-events").await.unwrap();
    let clickhouse = clickhouse_that_hides("ledger_batches").await;
    let mut restricted = sluice(&clickhouse, &site, "restricted");
    restricted.migrate();
    restricted.start();
    let etag = site.put("a.jsonl", line("a")).await.unwrap();
    wait_until_drained(&site).await;
    let body = crate::harness::announcement(&site, "a.jsonl", &etag);
    site.send(&body).await.unwrap();
    let why = restricted
        .wait_until_not_ready("ledger_batches shows 0 of 1 rows")
        .await;
    assert!(why.contains("row policy"), "{why}");
    assert_eq!(lines_of(&clickhouse).await, 1);

    wait_for("the reason to be exported", BOUND, async || {
        let (_, metrics) = restricted.get("/metrics").await?;
        ensure!(metrics.contains("sluice_breaker_open{reason=\"ledger\"} 1"));
        Ok(Some(()))
    })
    .await;
}
