//! ClickHouse or the queue is unavailable or misconfigured. The daemon waits, reports why, and
//! resumes by itself.

use std::time::Duration;

use anyhow::ensure;
use aws_sdk_sqs::types::QueueAttributeName;
use sluice::queue::Queue;
use sluice::queue::sqs::SqsQueue;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::Generator;
use sluice_testkit::{ClickHouse, ClickHouseOptions, Site, Stack, free_port, wait_for};

use crate::harness::{BOUND, Sluice, assert_rows, upload, wait_until_drained};

/// The maximum number of lines in the log of an outage, however long it lasts.
const FEW_LINES: usize = 12;

fn assert_few_lines(sluice: &Sluice) {
    let log = sluice.log();
    assert!(log.lines().count() <= FEW_LINES, "{log}");
}

/// Waits until `count` requests have hit a fault.
async fn wait_for_hits(proxy: &Proxy, count: usize) {
    wait_for("requests to fail", BOUND, async || {
        let hits = proxy.hits();
        ensure!(hits >= count, "{hits} hits");
        Ok(Some(()))
    })
    .await;
}

/// Asserts that none of these messages has ever been received.
async fn assert_never_received(site: &Site, messages: u64) {
    assert_eq!(site.queue_depth().await.unwrap(), (messages, 0));
    let queue = SqsQueue::new(site.sqs.clone(), &site.queue_url);
    let received = queue
        .receive(10, Duration::ZERO, Duration::ZERO)
        .await
        .unwrap();
    assert!(!received.is_empty());
    assert!(
        received.iter().all(|message| message.receive_count == 1),
        "{received:?}"
    );
}

#[tokio::test]
async fn clickhouse_and_its_tables_may_appear_after_the_start() {
    let stack = Stack::shared();
    let site = stack.site("later").await.unwrap();
    let bundles: Vec<_> = Generator::new(11).take(5).collect();
    let expected_rows = upload(&site, &bundles).await;
    let port = free_port().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let mut sluice = Sluice::new(stack, &site).set("clickhouse.url", url);
    sluice.start();
    let why = sluice
        .wait_until_not_ready("no response from ClickHouse")
        .await;
    assert!(why.contains("clickhouse.url"), "{why}");
    assert_eq!(sluice.get("/healthz").await.unwrap().0, 200);

    let options = ClickHouseOptions {
        http_port: Some(port),
        ..ClickHouseOptions::default()
    };
    let clickhouse = tokio::task::spawn_blocking(|| ClickHouse::start_with(options))
        .await
        .unwrap()
        .unwrap();
    let why = sluice.wait_until_not_ready("sluice migrate").await;
    assert!(why.contains("video_events"), "{why}");
    assert_eq!(sluice.metric("sluice_breaker_open").await.unwrap(), 1.0);
    assert_few_lines(&sluice);
    assert_never_received(&site, 6).await;

    sluice.migrate();
    sluice.wait_until_ready().await;
    wait_until_drained(&site).await;
    assert_rows(&clickhouse, &site.database, &expected_rows).await;
    sluice.assert_running();
}

#[tokio::test]
async fn while_clickhouse_is_unavailable_nothing_is_received_and_the_log_stays_short() {
    let stack = Stack::shared();
    let site = stack.site("unavailable").await.unwrap();
    let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.url", proxy.url())
        .set("load.probe_interval", "100ms");
    Sluice::new(stack, &site).migrate();
    proxy.inject(Fault::CutBeforeRequest, usize::MAX, |_, _| true);
    let bundles: Vec<_> = Generator::new(12).take(5).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice.start();
    sluice
        .wait_until_not_ready("no response from ClickHouse")
        .await;
    wait_for_hits(&proxy, 40).await;
    assert_few_lines(&sluice);
    assert_never_received(&site, 6).await;
    proxy.heal();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
}

#[tokio::test]
async fn messages_in_flight_when_clickhouse_becomes_unavailable_are_kept_and_loaded_later() {
    let stack = Stack::shared();
    let site = stack.site("becomes-unavailable").await.unwrap();
    let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.url", proxy.url())
        .set("load.probe_interval", "100ms");
    Sluice::new(stack, &site).migrate();
    sluice.start();
    sluice.wait_until_ready().await;
    wait_until_drained(&site).await;
    proxy.inject(Fault::CutBeforeRequest, usize::MAX, |_, _| true);
    let bundles: Vec<_> = Generator::new(13).take(5).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice
        .wait_until_not_ready("no response from ClickHouse")
        .await;
    wait_for_hits(&proxy, 40).await;
    proxy.heal();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    // The test event and five objects were received once each.
    let received = sluice.metric("sluice_sqs_messages_received_total").await;
    assert_eq!(received.unwrap(), 6.0);
}

#[tokio::test]
async fn a_wrong_password_is_named_and_uses_up_no_receives() {
    let stack = Stack::shared();
    let site = stack.site("password").await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.user", "secured")
        .environment("SLUICE__CLICKHOUSE__PASSWORD", "battery-staple".into());
    site.put("a.jsonl", "{}\n").await.unwrap();
    sluice.start();
    let why = sluice.wait_until_not_ready("516").await;
    assert!(why.contains("clickhouse.password"), "{why}");
    assert!(!sluice.log().contains("battery-staple"));
    assert!(!why.contains("battery-staple"), "{why}");
    assert_few_lines(&sluice);
    assert_never_received(&site, 2).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
}

#[tokio::test]
async fn a_user_who_may_not_insert_is_named_and_uses_up_no_further_receives() {
    let stack = Stack::shared();
    let site = stack.site("reader").await.unwrap();
    Sluice::new(stack, &site).migrate();
    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.user", "reader")
        .environment("SLUICE__CLICKHOUSE__PASSWORD", "look-only".into());
    site.put("a.jsonl", "{}\n").await.unwrap();
    sluice.start();
    let why = sluice.wait_until_not_ready("497").await;
    assert!(why.contains("grant"), "{why}");
    let received = sluice.metric("sluice_sqs_messages_received_total").await;
    assert!(received.unwrap() <= 2.0);
    sluice.assert_running();
}

#[tokio::test]
async fn an_unavailable_queue_logs_few_lines_until_it_is_back() {
    let stack = Stack::shared();
    let site = stack.site("queue-unavailable").await.unwrap();
    let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
    proxy.inject(Fault::CutBeforeRequest, usize::MAX, |_, _| true);
    let mut sluice = Sluice::new(stack, &site).environment("AWS_ENDPOINT_URL", proxy.url());
    sluice.migrate();
    sluice.start();
    wait_for_hits(&proxy, 4).await;
    wait_for("a log line about the queue", BOUND, async || {
        Ok(sluice
            .log()
            .contains("failed to receive from SQS")
            .then_some(()))
    })
    .await;
    assert_few_lines(&sluice);
    assert_eq!(sluice.get("/healthz").await.unwrap().0, 200);
    proxy.heal();
    let bundles: Vec<_> = Generator::new(14).take(2).collect();
    let expected_rows = upload(&site, &bundles).await;
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;

    // The same holds for an outage after the start.
    let before = proxy.hits();
    proxy.inject(Fault::Status(503), usize::MAX, |_, _| true);
    wait_for_hits(&proxy, before + 8).await;
    wait_for("a log line about the queue", BOUND, async || {
        let logged = sluice.log().contains("failed to receive from SQS");
        Ok(logged.then_some(()))
    })
    .await;
    proxy.heal();
    site.put("a.jsonl", "{}\n").await.unwrap();
    wait_until_drained(&site).await;
    let log = sluice.log();
    assert!(log.lines().count() <= 3 * FEW_LINES, "{log}");
}

#[tokio::test]
async fn a_queue_that_does_not_exist_is_named() {
    let stack = Stack::shared();
    let site = stack.site("no-queue").await.unwrap();
    let url = format!("{}-misspelt", site.queue_url);
    let mut sluice = Sluice::new(stack, &site).set("queue.url", url);
    sluice.start();
    wait_for("a log line about the queue", BOUND, async || {
        Ok(sluice
            .log()
            .contains("failed to receive from SQS")
            .then_some(()))
    })
    .await;
    sluice
        .wait_until_not_ready("no messages are received")
        .await;
    wait_for("the failures to be counted", BOUND, async || {
        let failures = sluice.metric("sluice_sqs_failures_total").await?;
        Ok((failures > 1.0).then_some(()))
    })
    .await;
    let status = sluice.status().await;
    assert_eq!(status["condition"]["word"], "paused", "{status}");
    sluice.assert_running();
    assert_eq!(sluice.stop().await.code(), Some(0));
}

#[tokio::test]
async fn a_queue_without_redrive_policy_is_refused_unless_allowed() {
    let stack = Stack::shared();
    let site = stack.site("no-dlq").await.unwrap();
    site.sqs
        .set_queue_attributes()
        .queue_url(&site.queue_url)
        .attributes(QueueAttributeName::RedrivePolicy, "")
        .send()
        .await
        .unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    sluice.start();
    assert_eq!(sluice.exit_status().await.code(), Some(1));
    let log = sluice.log();
    for word in [
        "no redrive policy",
        "RedrivePolicy",
        "queue.allow_missing_dlq",
    ] {
        assert!(log.contains(word), "{log}");
    }

    let mut sluice = sluice.set("queue.allow_missing_dlq", true);
    sluice.start();
    let bundles: Vec<_> = Generator::new(15).take(2).collect();
    let expected_rows = upload(&site, &bundles).await;
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
}

#[tokio::test]
async fn a_taken_admin_port_is_named() {
    let stack = Stack::shared();
    let site = stack.site("taken").await.unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut sluice = Sluice::new(stack, &site).set("admin.listen", address);
    sluice.start();
    assert_eq!(sluice.exit_status().await.code(), Some(1));
    let log = sluice.log();
    assert!(log.contains("admin.listen"), "{log}");
}

#[tokio::test]
async fn missing_tables_are_named_and_intake_resumes_once_they_are_back() {
    let stack = Stack::shared();
    let site = stack.site("dropped").await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    sluice.start();
    sluice.wait_until_ready().await;
    let landing = site.landing_table(&stack.clickhouse).await.unwrap();
    let drop = format!("DROP TABLE {landing}");
    stack.clickhouse.execute(&drop).await.unwrap();
    let bundles: Vec<_> = Generator::new(16).take(3).collect();
    let expected_rows = upload(&site, &bundles).await;
    let why = sluice.wait_until_not_ready("sluice migrate").await;
    assert!(why.contains("landing"), "{why}");
    sluice.migrate();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn too_many_parts_pause_intake_and_duplicate_no_rows() {
    let stack = Stack::shared();
    let site = stack.site("parts").await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    sluice.start();
    let bundles: Vec<_> = Generator::new(17).take(40).collect();
    let mut expected_rows = upload(&site, &bundles[..20]).await;
    wait_until_drained(&site).await;
    // One table is full and the others are not. The rows that the others accepted must not be
    // inserted twice.
    let table = format!("{}.part_attempt_events", site.database);
    let limit = format!("ALTER TABLE {table} MODIFY SETTING parts_to_throw_insert = 1");
    stack.clickhouse.execute(&limit).await.unwrap();
    expected_rows += &upload(&site, &bundles[20..]).await;
    let why = sluice.wait_until_not_ready("252").await;
    assert!(why.contains("merges"), "{why}");
    let before = sluice.metric("sluice_clickhouse_errors_total").await;
    let before = before.unwrap();
    wait_for("a few more tries", BOUND, async || {
        let errors = sluice.metric("sluice_clickhouse_errors_total").await?;
        Ok((errors > before + 2.0).then_some(()))
    })
    .await;
    let raise = format!("ALTER TABLE {table} RESET SETTING parts_to_throw_insert");
    stack.clickhouse.execute(&raise).await.unwrap();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

/// If the user's profile forbids a setting that an insert needs, no object is at fault.
#[tokio::test]
async fn a_constraint_on_a_setting_pauses_intake_and_blames_no_object() {
    let stack = Stack::shared();
    let site = stack.site("confined").await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(18).take(3).collect();
    let expected_rows = upload(&site, &bundles).await;
    let mut confined = Sluice::new(stack, &site).set("clickhouse.user", "confined");
    confined.start();
    let why = confined
        .wait_until_not_ready("parallel_view_processing")
        .await;
    assert!(why.contains("profile"), "{why}");
    assert_eq!(confined.stop().await.code(), Some(0));
    let failures = format!("SELECT count() FROM {}.ledger_failures", site.database);
    let failures: u64 = stack.clickhouse.scalar(&failures).await.unwrap();
    assert_eq!(failures, 0);
    sluice.start();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}
