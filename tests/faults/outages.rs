//! ClickHouse or the queue becomes unavailable or refuses requests while work is in progress.
//! `tests/it/outages.rs` covers outages that begin before any work.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use hyper::http::request::Parts;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::{ClickHouse, Stack, wait_for};
use tokio::task::spawn_blocking;

use crate::harness::{
    BOUND, Harness, Statement, VISIBILITY, concurrently, scenario, wait_for_hits,
};

/// Messages would become dead letters after two receives, and an outage lasts longer than their
/// visibility timeouts. Every message is received once nevertheless.
async fn clickhouse_is_killed_during_an_insert() -> Result<()> {
    let clickhouse = Arc::new(spawn_blocking(ClickHouse::start).await??);
    let mut harness =
        Harness::new(slice::from_ref(&*clickhouse), Stack::shared(), "crash", 2).await?;
    let s3 = Proxy::start(harness.aws.endpoint()).await?;
    harness.set("s3.clickhouse_endpoint", s3.url());
    harness.put_bundles(12).await?;
    s3.inject(Fault::Delay(Duration::from_secs(60)), 1, |parts, _| {
        parts.method == "GET"
    });
    let daemon = harness.start("")?;
    wait_for_hits(&s3, 1).await;
    let killed = Arc::clone(&clickhouse);
    spawn_blocking(move || killed.kill()).await??;
    daemon
        .wait_for_readiness(503, "no response from ClickHouse")
        .await;
    // These arrive during the outage.
    harness.put_bundles(3).await?;
    // Longer than the visibility timeouts of all allowed receives.
    tokio::time::sleep(Duration::from_secs(25)).await;
    s3.heal();
    let restarted = Arc::clone(&clickhouse);
    spawn_blocking(move || restarted.restart()).await??;
    harness.wait_until_drained(&[&daemon]).await;
    harness.assert_received(&daemon, 15).await?;
    harness.finish(vec![daemon]).await
}

/// The statement is refused until the cause is fixed. Until then nothing more is received, the
/// reason is shown, and the log stays short.
async fn a_statement_is_refused(
    statement: Statement,
    error: &'static str,
    reason: &'static str,
) -> Result<()> {
    let mut harness = Harness::shared_with("refused", 2).await?;
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    proxy.inject(Fault::Error(error), usize::MAX, statement.matcher());
    harness.put_bundles(2).await?;
    let daemon = harness.start("")?;
    wait_for_hits(&proxy, 1).await;
    daemon.wait_for_readiness(503, reason).await;
    let received = daemon.metric("sluice_sqs_messages_received_total").await?;
    harness.put_bundles(20).await?;
    wait_for_hits(&proxy, 12).await;
    daemon.wait_for_readiness(503, reason).await;
    let since = daemon.metric("sluice_sqs_messages_received_total").await?;
    // These come from long polls that were open when intake was paused.
    ensure!(
        since <= received + 20,
        "{received} and then {since} received"
    );
    ensure!(
        daemon.count_logged("loading resumes")? == 1,
        "{}",
        harness.logs()
    );
    ensure!(
        daemon.count_logged("intake is paused")? <= 3,
        "{}",
        harness.logs()
    );
    proxy.heal();
    harness.wait_until_drained(&[&daemon]).await;
    harness.assert_received(&daemon, 22).await?;
    daemon.wait_until_ready().await;
    harness.finish(vec![daemon]).await
}

/// A table that a view fills is detached. Some of the other views have filled theirs.
async fn a_table_is_detached() -> Result<()> {
    let mut harness = Harness::shared_with("detached", 2).await?;
    harness.put_bundles(5).await?;
    let table = harness.table("part_attempt_events");
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    harness
        .clickhouse
        .execute(&format!("DETACH TABLE {table}"))
        .await?;
    harness.put_bundles(20).await?;
    daemon.wait_for_readiness(503, "part_attempt_events").await;
    harness
        .clickhouse
        .execute(&format!("ATTACH TABLE {table}"))
        .await?;
    harness.wait_until_drained(&[&daemon]).await;
    harness.assert_received(&daemon, 25).await?;
    harness.finish(vec![daemon]).await
}

fn operation(name: &'static str) -> impl Fn(&Parts, &[u8]) -> bool + Send + 'static {
    move |parts, _| {
        let target = parts.headers.get("x-amz-target");
        target.is_some_and(|target| target.as_bytes().ends_with(name.as_bytes()))
    }
}

/// The SDK tries three times by itself.
async fn deletes_fail_at_first() -> Result<()> {
    let mut harness = Harness::shared("deletes").await?;
    let sqs = Proxy::start(harness.aws.endpoint()).await?;
    sqs.inject(Fault::Status(503), 5, operation("DeleteMessageBatch"));
    let cut = Fault::CutBeforeResponse;
    sqs.inject(cut, 1, operation("DeleteMessageBatch"));
    harness.put_bundles(4).await?;
    let daemon = harness.start_with("", &[("AWS_ENDPOINT_URL", sqs.url())])?;
    harness.wait_until_drained(&[&daemon]).await;
    ensure!(sqs.hits() == 6, "{} requests hit the fault", sqs.hits());
    harness.assert_received(&daemon, 4).await?;
    harness.finish(vec![daemon]).await
}

/// The queue is unavailable while messages are in flight. They are loaded, and settled when it is
/// back, or reappear and are recognised.
async fn the_queue_is_unavailable() -> Result<()> {
    let mut harness = Harness::shared_with("queue", 5).await?;
    let sqs = Proxy::start(harness.aws.endpoint()).await?;
    let clickhouse = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", clickhouse.url());
    let delay = Fault::Delay(Duration::from_secs(3));
    clickhouse.inject(delay, 1, Statement::Insert.matcher());
    harness.put_bundles(4).await?;
    let daemon = harness.start_with("", &[("AWS_ENDPOINT_URL", sqs.url())])?;
    wait_for_hits(&clickhouse, 1).await;
    sqs.inject(Fault::CutBeforeRequest, usize::MAX, |_, _| true);
    // Every delete fails, including its retries.
    daemon.wait_for_log("giving up on SQS request").await;
    sqs.heal();
    harness.wait_until_drained(&[&daemon]).await;
    let lines = daemon.log_lines()?.len();
    ensure!(lines < 30, "{lines} lines\n{}", harness.logs());
    harness.finish(vec![daemon]).await
}

/// An insert takes several times the visibility timeout. Its messages are received once and deleted
/// once. Another worker receives the same objects and does not load them.
async fn a_long_insert() -> Result<()> {
    let mut harness = Harness::shared_with("long", 2).await?;
    let clickhouse = Proxy::start(harness.clickhouse.url()).await?;
    let s3 = Proxy::start(harness.aws.endpoint()).await?;
    harness.set("clickhouse.url", clickhouse.url());
    harness.set("s3.clickhouse_endpoint", s3.url());
    let delay = Duration::from_secs(13);
    // On replicas, a statement must start within the lease.
    let before_its_start = if harness.is_replicated() {
        VISIBILITY / 3
    } else {
        delay
    };
    clickhouse.inject(
        Fault::Delay(before_its_start),
        1,
        Statement::Insert.matcher(),
    );
    s3.inject(Fault::Delay(delay), 1, |parts, _| parts.method == "GET");
    harness.put_bundles(4).await?;
    let first = harness.start("")?;
    wait_for_hits(&clickhouse, 1).await;
    for bundle in &harness.expected {
        let head = harness.site.s3.head_object().bucket(&harness.site.bucket);
        let head = head.key(&bundle.key).send().await?;
        let etag = head.e_tag().unwrap_or_default().trim_matches('"');
        harness
            .site
            .send(&harness.site.announcement(bundle, etag))
            .await?;
    }
    let second = harness.start("")?;
    harness.wait_until_drained(&[&first, &second]).await;
    ensure!(s3.hits() == 1 && harness.inserts_started().await? == 1);
    ensure!(first.count_logged("recovering")? + second.count_logged("recovering")? == 0);
    let mut received = 0;
    for daemon in [&first, &second] {
        received += daemon.metric("sluice_sqs_messages_received_total").await?;
    }
    ensure!(received == 8, "{received} receives of 8 messages");
    harness.finish(vec![first, second]).await
}

#[tokio::test]
async fn outages_lose_no_rows_and_use_up_no_receives() -> Result<()> {
    concurrently([
        scenario("crash", clickhouse_is_killed_during_an_insert()),
        scenario(
            "no right to claim",
            a_statement_is_refused(
                Statement::Claim,
                "Code: 497. DB::Exception: reader: Not enough privileges. To execute this query, \
                 it's necessary to have the grant INSERT ON ledger_objects. (ACCESS_DENIED)",
                "497",
            ),
        ),
        scenario(
            "read-only",
            a_statement_is_refused(
                Statement::Insert,
                "Code: 242. DB::Exception: Table is in readonly mode. (TABLE_IS_READ_ONLY)",
                "242",
            ),
        ),
        scenario(
            "memory",
            a_statement_is_refused(
                Statement::Insert,
                "Code: 241. DB::Exception: (total) memory limit exceeded: would use 7.00 GiB, \
                 maximum: 6.90 GiB. (MEMORY_LIMIT_EXCEEDED)",
                "241",
            ),
        ),
        scenario("detached", a_table_is_detached()),
        scenario("deletes fail", deletes_fail_at_first()),
        scenario("queue unavailable", the_queue_is_unavailable()),
        scenario("long insert", a_long_insert()),
    ])
    .await
}

/// The landing table is dropped while the daemon runs, and `migrate` creates it again.
#[tokio::test]
async fn intake_pauses_until_a_dropped_landing_table_is_back() -> Result<()> {
    let mut harness = Harness::shared_with("landing", 2).await?;
    harness.put_bundles(5).await?;
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    let landing = harness.site.landing_table(harness.clickhouse).await?;
    let drop = format!("DROP TABLE {landing}");
    harness.clickhouse.execute(&drop).await?;
    harness.put_bundles(5).await?;
    daemon.wait_for_readiness(503, "landing").await;
    harness.migrate().await?;
    wait_for("intake to resume", BOUND, async || {
        Ok((daemon.count_logged("loading resumes")? == 2).then_some(()))
    })
    .await;
    harness.wait_until_drained(&[&daemon]).await;
    harness.assert_received(&daemon, 10).await?;
    harness.finish(vec![daemon]).await
}
