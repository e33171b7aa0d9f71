//! Loads objects from an AWS account into a ClickHouse of the user's (docs/testing.md). Nothing here
//! runs unless it is asked for.

use std::time::Duration;

use sluice_testkit::account::{self, ACCOUNT_VARIABLE, PREFIX};
use sluice_testkit::xapi::Generator;
use sluice_testkit::{Stack, wait_for};

use crate::harness::{Sluice, assert_rows, line, loaded, upload};

/// Long polls, and counts that SQS updates once a minute.
const BOUND: Duration = Duration::from_secs(300);

/// Returns the servers.
///
/// # Panics
///
/// Panics unless the account was asked for: otherwise, these tests would pass on the stand-in.
fn stack() -> &'static Stack {
    assert!(
        account::is_requested(),
        "this test needs {ACCOUNT_VARIABLE}=1: docs/testing.md says what it does there"
    );
    Stack::shared()
}

#[tokio::test]
#[ignore = "it uses the AWS account and the ClickHouse that the environment names"]
async fn objects_of_an_account_are_loaded_once() {
    let stack = stack();
    let site = stack.site_with_max_receives("real", 1).await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("queue.visibility_timeout", "30s");
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(55).take(20).collect();
    let mut expected_rows = upload(&site, &bundles).await;
    // The worker streams this object, since ClickHouse cannot address its key.
    site.put("odd*.jsonl", line("odd")).await.unwrap();
    expected_rows.objects += 1;
    expected_rows.unmatched += 1;
    // A message that is not a notification becomes a dead letter.
    site.send("not a notification").await.unwrap();
    let check = sluice.command(&["check"]);
    assert!(check.status.success(), "{check:?}");
    sluice.start();
    wait_for("the objects", BOUND, async || {
        let count = loaded(&stack.clickhouse, &site.database).await;
        Ok((count == expected_rows.objects).then_some(()))
    })
    .await;
    wait_for("the dead letter", BOUND, async || {
        Ok((site.dlq_depth().await? == 1).then_some(()))
    })
    .await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;

    // The bucket lists what the ledger has.
    let bucket = format!("s3://{}", site.bucket);
    let reconciled = sluice.command(&["reconcile", &bucket]);
    assert!(reconciled.status.success(), "{reconciled:?}");
    wait_for("the log of queries", BOUND, async || {
        // It is written within seconds, and SYSTEM FLUSH LOGS needs a grant.
        let cost = sluice.command(&["cost", "--output", "json"]);
        let cost: serde_json::Value = serde_json::from_slice(&cost.stdout)?;
        let reads = cost["total"]["amounts"]["s3_read_requests"].as_f64();
        Ok(reads.is_some_and(|reads| reads >= 20.0).then_some(()))
    })
    .await;
    report(&sluice.command(&["cost"]).stdout);
}

#[expect(clippy::print_stdout, reason = "what the test has cost")]
fn report(cost: &[u8]) {
    println!("{}", String::from_utf8_lossy(cost));
}

/// Removes what killed tests have left behind, in the account and in ClickHouse.
#[tokio::test]
#[ignore = "it removes everything whose name begins with sluice-test-"]
async fn leftovers_are_removed() {
    let clickhouse = &stack().clickhouse;
    let prefix = PREFIX.replace('-', "_");
    let databases = format!("SELECT name FROM system.databases WHERE startsWith(name, '{prefix}')");
    for database in clickhouse.query(&databases).await.unwrap().lines() {
        let drop = format!("DROP DATABASE IF EXISTS {database}");
        clickhouse.execute(&drop).await.unwrap();
    }
    account::remove_leftovers().await.unwrap();
    assert_eq!(clickhouse.query(&databases).await.unwrap(), "");
}
