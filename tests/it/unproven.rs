//! Setups on which loading each object once is not proven. They are refused unless the operator
//! accepts the risk.

use std::process::Output;

use anyhow::ensure;
use serde_json::Value;
use sluice_testkit::balancer::Balancer;
use sluice_testkit::{ClickHouse, Site, Stack, wait_for};

use crate::harness::{BOUND, Sluice, line, loaded, wait_until_drained};

/// Returns the result and the detail of one line of `sluice check`.
#[track_caller]
fn check(sluice: &Sluice, name: &str) -> (String, String) {
    let output = sluice.command(&["check", "--output", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let checks = document["checks"].as_array().expect("an array");
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no check {name} in {checks:?}"));
    let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
    (text("result"), text("detail"))
}

fn backfill(sluice: &Sluice, site: &Site) -> Output {
    sluice.command(&["backfill", &format!("s3://{}", site.bucket)])
}

fn replay(sluice: &Sluice) -> Output {
    sluice.command(&["rejects", "replay"])
}

/// Asserts that the commands that load exit with code 1, and name this reason and the setting that
/// accepts it.
#[track_caller]
fn assert_refused(sluice: &Sluice, site: &Site, because: &str) {
    for output in [backfill(sluice, site), replay(sluice)] {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        for words in [
            because,
            "can be loaded twice",
            "`clickhouse.unproven: accept`",
        ] {
            assert!(stderr.contains(words), "{stderr}");
        }
    }
}

// The runtime has several threads, since the balancer runs while a command blocks one.
#[tokio::test(flavor = "multi_thread")]
async fn more_than_one_server_is_refused_until_one_is_left() {
    let stack = Stack::shared();
    let site = stack.site("unproven-servers").await.unwrap();
    let other = ClickHouse::start().unwrap();
    for url in [stack.clickhouse.url(), other.url()] {
        Sluice::new(stack, &site)
            .with_any_topology()
            .set("clickhouse.url", url)
            .migrate();
    }
    let balancer = Balancer::start(&[stack.clickhouse.url(), other.url()])
        .await
        .unwrap();
    let balanced = || {
        let sluice = Sluice::new(stack, &site).with_any_topology();
        sluice.set("clickhouse.url", balancer.url())
    };
    site.put("a.jsonl", line("a")).await.unwrap();

    let found = "more than one server answers";
    let mut sluice = balanced();
    sluice.start();
    let why = sluice.wait_until_not_ready(found).await;
    for words in ["can be loaded twice", "`clickhouse.unproven: accept`"] {
        assert!(why.contains(words), "{why}");
    }
    wait_for("the metric", BOUND, async || {
        let (_, metrics) = sluice.get("/metrics").await?;
        let paused = metrics.contains("sluice_breaker_open{reason=\"unproven\"} 1");
        ensure!(paused, "{metrics}");
        Ok(Some(()))
    })
    .await;
    assert!(sluice.log().contains(found), "{}", sluice.log());

    assert_refused(&balanced(), &site, found);
    let (result, detail) = check(&balanced(), "servers");
    assert!(result == "fail" && detail.contains(found), "{detail}");
    let accepting = balanced().set("clickhouse.unproven", "accept");
    let (result, detail) = check(&accepting, "servers");
    assert!(result == "warn" && detail.contains(found), "{detail}");

    sluice.assert_running();
    for clickhouse in [&stack.clickhouse, &other] {
        assert_eq!(loaded(clickhouse, &site.database).await, 0);
    }
    balancer.set_servers(&[stack.clickhouse.url()]);
    sluice.wait_until_ready().await;
    wait_until_drained(&site).await;
    sluice.stop().await;
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 1);
    assert_eq!(loaded(&other, &site.database).await, 0);
}

/// Replaces a table by a replicated one without a Keeper: it has that engine, and accepts no rows.
/// Loading valid objects writes no rows to it.
async fn replicate_a_table(clickhouse: &ClickHouse, site: &Site) {
    let database = &site.database;
    let columns = format!(
        "SELECT arrayStringConcat(groupArray(concat('`', name, '` ', type)), ', ') FROM system.columns \
         WHERE database = '{database}' AND table = 'ledger_failures'"
    );
    let columns: String = clickhouse.scalar(&columns).await.unwrap();
    let columns = columns.replace("\\'", "'");
    for sql in [
        format!("DROP TABLE {database}.ledger_failures SYNC"),
        format!(
            "ATTACH TABLE {database}.ledger_failures UUID '5b9f3f0a-7f0e-4f43-9b8e-2f3f6f0e5a11' \
             ({columns}) ENGINE = ReplicatedMergeTree('/{database}/ledger_failures', 'one') \
             ORDER BY object_id"
        ),
    ] {
        clickhouse.execute(&sql).await.unwrap();
    }
}

#[tokio::test]
async fn replicated_tables_are_refused_unless_accepted() {
    let stack = Stack::shared();
    let site = stack.site("unproven-tables").await.unwrap();
    // A replica without a Keeper cannot be dropped cleanly.
    let clickhouse = ClickHouse::start().unwrap();
    let new_sluice = || {
        let sluice = Sluice::new(stack, &site).with_any_topology();
        sluice.set("clickhouse.url", clickhouse.url())
    };
    new_sluice().migrate();

    replicate_a_table(&clickhouse, &site).await;
    site.put("a.jsonl", line("a")).await.unwrap();
    let found = "table ledger_failures";
    let mut sluice = new_sluice();
    sluice.start();
    let why = sluice.wait_until_not_ready(found).await;
    assert!(why.contains("engine ReplicatedMergeTree"), "{why}");
    assert_refused(&new_sluice(), &site, found);
    let (result, detail) = check(&new_sluice(), "replication");
    assert!(result == "fail" && detail.contains(found), "{detail}");
    assert_eq!(sluice.stop().await.code(), Some(0));
    assert_eq!(loaded(&clickhouse, &site.database).await, 0);

    let mut sluice = new_sluice().set("clickhouse.unproven", "accept");
    let (result, detail) = check(&sluice, "replication");
    assert!(result == "warn" && detail.contains(found), "{detail}");
    sluice.start();
    wait_until_drained(&site).await;
    sluice.wait_until_ready().await;
    let log = sluice.log();
    assert_eq!(log.matches("`clickhouse.unproven` is `accept`").count(), 1);
    assert_eq!(loaded(&clickhouse, &site.database).await, 1);
    let output = backfill(&sluice, &site);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = replay(&sluice);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("warning: `clickhouse.unproven`"),
        "{stderr}"
    );
    sluice.stop().await;
}

#[tokio::test]
async fn clickhouse_cloud_is_refused() {
    let stack = Stack::shared();
    let site = stack.site("unproven-cloud").await.unwrap();
    let sluice = Sluice::new(stack, &site).with_any_topology();
    sluice.migrate();
    let sluice = sluice.set("clickhouse.user", "tenant");
    assert_refused(&sluice, &site, "ClickHouse Cloud");
    assert_eq!(check(&sluice, "replication").0, "fail");
}

// The runtime has several threads, since the balancer runs while a command blocks one.
#[tokio::test(flavor = "multi_thread")]
async fn one_server_with_two_addresses_is_one_server() {
    let stack = Stack::shared();
    let site = stack.site("unproven-one").await.unwrap();
    let (_, port) = stack.clickhouse.url().rsplit_once(':').unwrap();
    // If the machine has IPv6, `localhost` is two addresses, and both lead to this server.
    let _second = Balancer::start_at(&format!("[::1]:{port}"), &[stack.clickhouse.url()]).await;
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("http://{host}:{port}");
        let sluice = Sluice::new(stack, &site)
            .with_any_topology()
            .set("clickhouse.url", url);
        sluice.migrate();
        for name in ["replication", "servers"] {
            let (result, detail) = check(&sluice, name);
            assert_eq!(result, "pass", "{detail}");
        }
        let output = backfill(&sluice, &site);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}
