//! Workers that stop, several workers at once, other kinds of queues, and unusable messages.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::json;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::wait_for;

use crate::harness::{BOUND, Daemon, Harness, Statement, concurrently, scenario, wait_for_hits};

/// Waits until the daemon has `messages` messages in flight.
async fn wait_until_received(daemon: &Daemon, messages: u64) {
    wait_for("messages to be received", BOUND, async || {
        let received = daemon.metric("sluice_sqs_messages_received_total").await?;
        ensure!(received >= messages, "{received}");
        Ok(Some(()))
    })
    .await;
}

/// Objects in the open window are returned at once when the worker stops.
async fn stopped_in_the_window() -> Result<()> {
    let mut harness = Harness::shared("window").await?;
    harness.set("batch.window", "10m");
    harness.put_bundles(4).await?;
    let first = harness.start("")?;
    wait_until_received(&first, 4).await;
    first.stop().await?;
    let depth = harness.site.queue_depth().await?;
    ensure!(depth == (4, 0), "{depth:?} messages visible and in flight");
    harness.set("batch.window", "500ms");
    let second = harness.start("")?;
    harness.wait_until_drained(&[&second]).await;
    harness.assert_received(&second, 4).await?;
    harness.finish(vec![second]).await
}

/// An insert that ends within the grace period is finished, recorded and settled.
async fn stopped_during_an_insert() -> Result<()> {
    let mut harness = Harness::shared("grace").await?;
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    let delay = Fault::Delay(Duration::from_secs(4));
    proxy.inject(delay, 1, Statement::Insert.matcher());
    harness.put_bundles(4).await?;
    let daemon = harness.start("")?;
    wait_for_hits(&proxy, 1).await;
    daemon.stop().await?;
    let depth = harness.site.queue_depth().await?;
    ensure!(depth == (0, 0), "{depth:?} messages visible and in flight");
    harness.finish(vec![]).await
}

/// An insert that takes longer is cancelled, and its messages are visible at once, without waiting
/// for the lease.
async fn stopped_beyond_the_grace_period() -> Result<()> {
    let mut harness = Harness::shared("beyond").await?;
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    harness.set("shutdown.grace_period", "2s");
    let delay = Fault::Delay(Duration::from_secs(600));
    proxy.inject(delay, 1, Statement::Insert.matcher());
    harness.put_bundles(4).await?;
    let first = harness.start("")?;
    wait_for_hits(&proxy, 1).await;
    first.stop().await?;
    let depth = harness.site.queue_depth().await?;
    ensure!(depth == (4, 0), "{depth:?} messages visible and in flight");
    proxy.heal();
    let second = harness.start("")?;
    harness.finish(vec![second]).await
}

/// The same while the statement runs on the server, so that there is something to cancel.
async fn stopped_beyond_the_grace_period_while_the_server_reads() -> Result<()> {
    let mut harness = Harness::shared("reading").await?;
    let s3 = Proxy::start(harness.aws.endpoint()).await?;
    harness.set("s3.clickhouse_endpoint", s3.url());
    harness.set("shutdown.grace_period", "2s");
    s3.inject(Fault::Delay(Duration::from_secs(6)), 1, |parts, _| {
        parts.method == "GET"
    });
    harness.put_bundles(4).await?;
    let first = harness.start("")?;
    wait_for_hits(&s3, 1).await;
    first.stop().await?;
    let second = harness.start("")?;
    harness.finish(vec![second]).await
}

/// The parts of a batch that was split are finished too.
async fn stopped_during_a_split() -> Result<()> {
    let mut harness = Harness::shared_with("split", 6).await?;
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    proxy.inject(Fault::Delay(Duration::ZERO), 1, Statement::Insert.matcher());
    let delay = Fault::Delay(Duration::from_secs(3));
    proxy.inject(delay, 1, Statement::Insert.matcher());
    harness.put_bundles(5).await?;
    let gone = harness.expected.remove(2);
    harness.site.delete(&gone.key).await?;
    let first = harness.start("")?;
    wait_for_hits(&proxy, 2).await;
    first.stop().await?;
    let (visible, in_flight) = harness.site.queue_depth().await?;
    ensure!(
        visible + in_flight == 1,
        "{visible} visible, {in_flight} in flight"
    );
    harness.assert_exact().await?;
    harness.put(gone).await?;
    let second = harness.start("")?;
    harness.finish(vec![second]).await
}

/// A second signal exits at once.
async fn stopped_twice() -> Result<()> {
    let mut harness = Harness::shared("twice").await?;
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    let delay = Fault::Delay(Duration::from_secs(600));
    proxy.inject(delay, 1, Statement::Insert.matcher());
    harness.put_bundles(4).await?;
    let first = harness.start("")?;
    wait_for_hits(&proxy, 1).await;
    first.terminate()?;
    first.wait_for_log("stopping").await;
    first.terminate()?;
    let code = first.exit_code().await?;
    ensure!(code == 130, "exited with {code}");
    proxy.heal();
    let second = harness.start("")?;
    harness.finish(vec![second]).await
}

#[tokio::test]
async fn a_stopping_worker_finishes_or_returns_its_messages() -> Result<()> {
    concurrently([
        scenario("in the window", stopped_in_the_window()),
        scenario("during an insert", stopped_during_an_insert()),
        scenario("beyond the grace period", stopped_beyond_the_grace_period()),
        scenario(
            "beyond the grace period, the server reads",
            stopped_beyond_the_grace_period_while_the_server_reads(),
        ),
        scenario("during a split", stopped_during_a_split()),
        scenario("twice", stopped_twice()),
    ])
    .await
}

/// Sends the announcement of every object again, `times` times.
async fn announce_again(harness: &Harness<'static>, times: usize) -> Result<()> {
    for bundle in &harness.expected {
        let head = harness.site.s3.head_object().bucket(&harness.site.bucket);
        let head = head.key(&bundle.key).send().await?;
        let etag = head.e_tag().unwrap_or_default().trim_matches('"');
        for _ in 0..times {
            harness
                .site
                .send(&harness.site.announcement(bundle, etag))
                .await?;
        }
    }
    Ok(())
}

/// Each object is announced three times, to three workers at once.
async fn three_workers_with_duplicates() -> Result<()> {
    let mut harness = Harness::shared_with("three", 10).await?;
    harness.set("batch.window", "200ms");
    harness.set("batch.max_objects", 7);
    harness.put_bundles(40).await?;
    announce_again(&harness, 2).await?;
    let daemons: Vec<Daemon> = (0..3).map(|_| harness.start("")).collect::<Result<_>>()?;
    harness.finish(daemons).await
}

/// FIFO queues hold a group's messages back while one of them is in flight.
async fn fifo_queue() -> Result<()> {
    let mut harness = Harness::shared("fifo").await?;
    // The queue that S3 sends to is not read. The same messages are sent to a FIFO queue.
    harness.put_bundles(12).await?;
    let sqs = harness.site.sqs.clone();
    let create = |name: String, redrive: Option<String>| {
        let request = sqs
            .create_queue()
            .queue_name(format!("{name}.fifo"))
            .attributes(QueueAttributeName::FifoQueue, "true")
            .attributes(QueueAttributeName::ContentBasedDeduplication, "true");
        match redrive {
            Some(redrive) => request.attributes(QueueAttributeName::RedrivePolicy, redrive),
            None => request,
        }
    };
    let arn_of = async |url: &str| {
        let name = QueueAttributeName::QueueArn;
        let request = sqs.get_queue_attributes().queue_url(url);
        let output = request.attribute_names(name.clone()).send().await?;
        let arn = output.attributes().and_then(|all| all.get(&name)).cloned();
        arn.context("no ARN")
    };
    let name = format!("{}-ordered", harness.site.bucket);
    let dead = create(format!("{name}-dead"), None).send().await?;
    let dead = dead.queue_url().context("no url")?.to_owned();
    let policy = json!({"deadLetterTargetArn": arn_of(&dead).await?, "maxReceiveCount": 3});
    let queue = create(name, Some(policy.to_string())).send().await?;
    let queue = queue.queue_url().context("no url")?.to_owned();
    for (number, bundle) in harness.expected.iter().enumerate() {
        let head = harness.site.s3.head_object().bucket(&harness.site.bucket);
        let head = head.key(&bundle.key).send().await?;
        let etag = head.e_tag().unwrap_or_default().trim_matches('"');
        let message = sqs
            .send_message()
            .queue_url(&queue)
            .message_body(harness.site.announcement(bundle, etag))
            .message_group_id(format!("group-{}", number % 4));
        message.send().await?;
    }
    let purge = sqs.purge_queue().queue_url(&harness.site.queue_url);
    purge.send().await?;
    harness.set("queue.url", queue.clone());
    harness.site.queue_url = queue;
    harness.site.dlq_url = dead;
    let daemon = harness.start("")?;
    harness.finish(vec![daemon]).await
}

/// Unreadable messages become dead letters unchanged. Each is logged once.
async fn malformed_messages() -> Result<()> {
    let mut harness = Harness::shared("malformed").await?;
    harness.put_bundles(3).await?;
    let whole = harness.site.announcement(&harness.expected[0], "0123");
    let noise: String = std::iter::repeat_with(|| fastrand::char('!'..='~'))
        .take(250 * 1024)
        .collect();
    let malformed = [
        "garbage".to_owned(),
        whole[..whole.len() / 2].to_owned(),
        noise,
        json!({"Records": {"not": "a list"}}).to_string(),
        json!({"Records": [{"eventName": "ObjectCreated:Put", "s3": {}}]}).to_string(),
        json!([1, 2, 3]).to_string(),
    ];
    for body in &malformed {
        harness.site.send(body).await?;
    }
    let nothing_to_load = [
        json!({"Service": "Amazon S3", "Event": "s3:TestEvent"}),
        json!({"Records": [{"eventName": "ObjectRemoved:Delete", "s3": {
            "bucket": {"name": harness.site.bucket}, "object": {"key": "gone"}}}]}),
    ];
    for body in &nothing_to_load {
        harness.site.send(&body.to_string()).await?;
    }
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    let lines = daemon.log_lines()?;
    let mut mentioned: Vec<&str> = lines
        .iter()
        .filter(|line| {
            let message = line["message"].as_str().unwrap_or_default();
            message.contains("malformed message")
        })
        .filter_map(|line| line["message.id"].as_str())
        .collect();
    let lines = mentioned.len();
    mentioned.sort_unstable();
    mentioned.dedup();
    ensure!(
        (lines, mentioned.len()) == (malformed.len(), malformed.len()),
        "{mentioned:?} in {lines} lines"
    );
    daemon.stop().await?;
    harness.assert_exact().await?;
    harness.assert_dlq(malformed.len() as u64).await
}

#[tokio::test]
async fn workers_share_queues_with_duplicates_groups_and_malformed_messages() -> Result<()> {
    concurrently([
        scenario("three workers", three_workers_with_duplicates()),
        scenario("fifo", fifo_queue()),
        scenario("malformed messages", malformed_messages()),
    ])
    .await
}
