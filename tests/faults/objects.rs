//! A proxy between ClickHouse and S3, and objects that are broken, missing or overwritten.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::http::request::Parts;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::wait_for;
use sluice_testkit::xapi::{Bundle, Generator, gzip};
use tokio::task::JoinSet;

use crate::harness::{
    BOUND, Harness, Scenario, Statement, VISIBILITY, concurrently, scenario, wait_for_hits,
};

/// Longer than any test.
const FOREVER: Duration = Duration::from_secs(600);

fn reads_key(key: &str) -> impl Fn(&Parts, &[u8]) -> bool + Send + 'static {
    let key = key.to_owned();
    move |parts, _| parts.uri.path().ends_with(&key)
}

fn is_get(parts: &Parts, _: &[u8]) -> bool {
    parts.method == "GET"
}

async fn harness_behind_s3_proxy(
    name: &str,
    max_receive_count: u32,
) -> Result<(Harness<'static>, Proxy)> {
    let mut harness = Harness::shared_with(name, max_receive_count).await?;
    let proxy = Proxy::start(harness.aws.endpoint()).await?;
    harness.set("s3.clickhouse_endpoint", proxy.url());
    Ok((harness, proxy))
}

async fn reads_hit(fault: Fault) -> Result<()> {
    let (mut harness, s3) = harness_behind_s3_proxy("reads", 3).await?;
    harness.put_bundles(8).await?;
    s3.inject(fault, 5, is_get);
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    ensure!(s3.hits() == 5, "{} reads hit the fault", s3.hits());
    harness.assert_received(&daemon, 8).await?;
    harness.finish(vec![daemon]).await
}

#[tokio::test]
async fn reads_of_s3_tolerate_cuts_errors_and_delays() -> Result<()> {
    let faults = [
        Fault::CutBeforeRequest,
        Fault::CutBeforeResponse,
        Fault::CutInResponse,
        Fault::Delay(Duration::from_secs(2)),
        Fault::Status(500),
        Fault::Status(503),
    ];
    concurrently(faults.map(|fault| scenario(format!("{fault:?}"), reads_hit(fault)))).await
}

/// One object always returns 404. The others of its batch are loaded at their first receive.
async fn one_is_missing_forever(strategy: &'static str) -> Result<()> {
    let (mut harness, s3) = harness_behind_s3_proxy("missing", 3).await?;
    harness.set("load.strategy", strategy);
    harness.put_bundles(10).await?;
    let missing = harness.expected.remove(4);
    s3.inject(Fault::Status(404), usize::MAX, reads_key(&missing.key));
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    // The missing one is received three times.
    harness.assert_received(&daemon, 9 + 3).await?;
    daemon.wait_until_ready().await;
    daemon.stop().await?;
    harness.assert_exact().await?;
    harness.assert_dlq(1).await?;
    let failures = harness.failures().await?;
    let expected = [(missing.key.clone(), "missing".to_owned())];
    ensure!(failures == expected, "{failures:?}");

    // Once the object is readable, a redrive loads it. Another message for a loaded object is
    // recognised.
    s3.heal();
    harness.redrive().await?;
    harness.expected.push(missing);
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    harness.assert_exact().await?;
    let bundle = harness.expected.first().context("a bundle")?;
    let head = harness.site.s3.head_object().bucket(&harness.site.bucket);
    let head = head.key(&bundle.key).send().await?;
    let etag = head.e_tag().unwrap_or_default().trim_matches('"');
    harness
        .site
        .send(&harness.site.announcement(bundle, etag))
        .await?;
    harness.wait_until_drained(&[&daemon]).await;
    ensure!(daemon.metric("sluice_objects_total").await? == 2);
    harness.finish(vec![daemon]).await
}

async fn missing_is_acknowledged() -> Result<()> {
    let mut harness = Harness::shared("acknowledged").await?;
    harness.set("load.on_missing", "acknowledge");
    harness.put_bundles(5).await?;
    let missing = harness.expected.remove(2);
    harness.site.delete(&missing.key).await?;
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    harness.assert_received(&daemon, 5).await?;
    let failures = harness.failures().await?;
    ensure!(
        failures == [(missing.key, "missing".to_owned())],
        "{failures:?}"
    );
    harness.finish(vec![daemon]).await
}

/// A truncated gzip file among a thousand objects is found at once, since the error names it.
async fn one_bad_object_among_a_thousand() -> Result<()> {
    let mut harness = Harness::shared_with("thousand", 1).await?;
    harness.set("batch.window", "10m");
    harness.set("batch.max_objects", 1000);
    harness.set("queue.receivers", 8);
    // A thousand messages in flight are as many as a busy stand-in for SQS can extend in time.
    harness.set("queue.visibility_timeout", "60s");
    harness.generator = Generator::new(1000).sizes(1..=5);
    let bundles: Vec<Bundle> = harness.generator.by_ref().take(999).collect();
    let mut whole = gzip(b"{\"a\":1}\n".repeat(1000).as_slice());
    whole.truncate(whole.len() / 2);
    harness.site.put("section/1/broken.jsonl.gz", whole).await?;
    let mut uploads = JoinSet::new();
    for part in bundles.chunks(100) {
        let (part, s3, bucket) = (
            part.to_vec(),
            harness.site.s3.clone(),
            harness.site.bucket.clone(),
        );
        uploads.spawn(async move {
            for bundle in part {
                let put = s3.put_object().bucket(&bucket).key(bundle.key);
                put.body(bundle.bytes.into()).send().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(uploaded) = uploads.join_next().await {
        uploaded??;
    }
    harness.expected = bundles;
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    daemon.stop().await?;
    harness.assert_exact().await?;
    harness.assert_dlq(1).await?;
    // One of all objects, one of all but the bad one, and one of the bad one.
    let inserts = harness.inserts_started().await?;
    ensure!(inserts == 3, "{inserts} inserts");
    let failures = harness.failures().await?;
    let expected = [(
        "section/1/broken.jsonl.gz".to_owned(),
        "unloadable".to_owned(),
    )];
    ensure!(failures == expected, "{failures:?}");
    Ok(())
}

/// If an error names no object, the batch is halved.
async fn one_bad_object_that_no_error_names() -> Result<()> {
    let mut harness = Harness::shared_with("halves", 1).await?;
    harness.set("batch.window", "10m");
    harness.set("batch.max_objects", 16);
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    harness.put_bundles(16).await?;
    let bad = harness.expected.remove(11);
    let stem = bad.key.rsplit('/').next().context("a name")?.to_owned();
    let is_insert = Statement::Insert.matcher();
    proxy.inject(
        Fault::Error("Code: 117. DB::Exception: Something is wrong somewhere. (INCORRECT_DATA)"),
        usize::MAX,
        move |parts, body| is_insert(parts, body) && String::from_utf8_lossy(body).contains(&stem),
    );
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    daemon.stop().await?;
    harness.assert_exact().await?;
    harness.assert_dlq(1).await?;
    // With the bad one: 16, 8, 4, 2, 1 objects. Without: 8, 4, 2, 1.
    ensure!(
        proxy.hits() == 5,
        "{} inserts with the bad object",
        proxy.hits()
    );
    let inserts = harness.inserts_started().await?;
    ensure!(inserts == 4, "{inserts} inserts without the bad object");
    Ok(())
}

#[tokio::test]
async fn bad_objects_fail_alone() -> Result<()> {
    concurrently([
        scenario("missing", one_is_missing_forever("single_pass")),
        scenario("missing, per_type", one_is_missing_forever("per_type")),
        scenario("acknowledged", missing_is_acknowledged()),
        scenario("a thousand", one_bad_object_among_a_thousand()),
        scenario("halves", one_bad_object_that_no_error_names()),
    ])
    .await
}

/// An object is overwritten after it was announced and before it was read. The content that is read
/// is loaded once.
async fn overwritten_before_it_is_read() -> Result<()> {
    let mut harness = Harness::shared("overwritten").await?;
    harness.put_bundles(4).await?;
    let old = harness.expected.remove(1);
    let new = harness.generator.bundle();
    let new = Bundle {
        key: old.key.clone(),
        bytes: compress_for(&old.key, new.bytes),
        ..new
    };
    let etag = harness.site.put(&new.key, new.bytes.clone()).await?;
    let path = format!("{}/{}", harness.site.bucket, new.key);
    harness.expected.push(new);
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    harness.assert_received(&daemon, 5).await?;
    let etags = harness
        .clickhouse
        .query(&format!(
            "SELECT DISTINCT source_etag FROM {} WHERE source_path = '{path}'",
            harness.table("object_rows")
        ))
        .await?;
    ensure!(etags.trim() == etag, "{etags:?} is not {etag}");
    harness.finish(vec![daemon]).await
}

/// What happens to an object while no worker processes its batch.
#[derive(Clone, Copy, Debug)]
enum Change {
    Overwritten,
    Gone,
}

async fn change(harness: &mut Harness<'static>, bundle: &Bundle, change: Change) -> Result<()> {
    match change {
        Change::Gone => {
            harness.set("load.on_missing", "acknowledge");
            harness.site.delete(&bundle.key).await
        }
        Change::Overwritten => {
            let new = harness.generator.bundle();
            let (key, bytes) = (bundle.key.clone(), compress_for(&bundle.key, new.bytes));
            harness.put(Bundle { key, bytes, ..new }).await
        }
    }
}

/// All rows were committed, but the commit was not recorded yet. The rows stay, since they are
/// complete.
async fn changed_before_the_record(how: Change) -> Result<()> {
    let mut harness = Harness::shared("complete").await?;
    harness.put_bundles(4).await?;
    let death = "insert.after";
    harness
        .start(&format!("{death}=return"))?
        .aborted(death)
        .await?;
    let old = harness.expected.get(1).context("a bundle")?.clone();
    change(&mut harness, &old, how).await?;
    let last = harness.start("")?;
    harness.finish(vec![last]).await
}

/// Kills the worker when some of the tables have their rows.
async fn killed_in_the_middle(name: &str) -> Result<(Harness<'static>, Proxy)> {
    let mut harness = Harness::shared_with(name, 6).await?;
    harness.set("load.strategy", "per_type");
    harness.put_bundles(4).await?;
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    proxy.inject(Fault::Delay(Duration::ZERO), 5, Statement::Insert.matcher());
    proxy.inject(Fault::Delay(FOREVER), 1, Statement::Insert.matcher());
    let first = harness.start("")?;
    wait_for_hits(&proxy, 6).await;
    first.kill()?;
    proxy.heal();
    Ok((harness, proxy))
}

/// Some of the tables had their rows. The batch can no longer be completed, so its rows are rolled
/// back, and its other objects are loaded again. `deaths` are the steps at which workers die on the
/// way.
async fn changed_in_the_middle(how: Change, deaths: &'static [&'static str]) -> Result<()> {
    let (mut harness, _proxy) = killed_in_the_middle("rolled-back").await?;
    let old = harness.expected.remove(1);
    change(&mut harness, &old, how).await?;
    for death in deaths {
        harness
            .start(&format!("{death}=return"))?
            .aborted(death)
            .await?;
    }
    let last = harness.start("")?;
    harness.wait_until_drained(&[&last]).await;
    if deaths.is_empty() {
        ensure!(
            last.count_logged("rolling back a batch")? == 1,
            "{}",
            harness.logs()
        );
    }
    harness.finish(vec![last]).await
}

/// A worker dies while it rolls rows back, and one of its statements arrives long after another
/// worker has found the batch. That worker must not have recorded the batch as loaded.
async fn a_delete_arrives_late() -> Result<()> {
    let (harness, proxy) = killed_in_the_middle("late-delete").await?;
    let gone = harness.expected[1].clone();
    harness.site.delete(&gone.key).await?;
    let seen = proxy.hits();
    proxy.inject(Fault::Late(VISIBILITY * 3), 1, Statement::Delete.matcher());
    proxy.inject(Fault::Delay(FOREVER), 1, Statement::Delete.matcher());
    let second = harness.start("")?;
    wait_for_hits(&proxy, seen + 2).await;
    second.kill()?;
    proxy.heal();
    harness.site.put(&gone.key, gone.bytes).await?;
    let last = harness.start("")?;
    harness.wait_until_drained(&[&last]).await;
    wait_for("the delete to arrive", BOUND, async || {
        Ok((proxy.late() == 0).then_some(()))
    })
    .await;
    harness.finish(vec![last]).await
}

#[tokio::test]
async fn an_object_that_changes_during_a_load_is_loaded_whole_or_not_at_all() -> Result<()> {
    let deaths: [&[&str]; 6] = [
        &[],
        &["check_complete.after"],
        &["take_back.before"],
        &["take_back.after"],
        &["release.before"],
        &["release.after"],
    ];
    let mut scenarios: Vec<(String, Scenario)> = deaths
        .into_iter()
        .map(|deaths| {
            let name = format!("overwritten, {deaths:?}");
            scenario(name, changed_in_the_middle(Change::Overwritten, deaths))
        })
        .collect();
    scenarios.push(scenario("gone", changed_in_the_middle(Change::Gone, &[])));
    for how in [Change::Overwritten, Change::Gone] {
        let name = format!("{how:?}, complete");
        scenarios.push(scenario(name, changed_before_the_record(how)));
    }
    scenarios.push(scenario("late delete", a_delete_arrives_late()));
    scenarios.push(scenario("unread", overwritten_before_it_is_read()));
    concurrently(scenarios).await
}

/// Returns the content, compressed if the key ends in `.gz`.
fn compress_for(key: &str, bytes: Vec<u8>) -> Vec<u8> {
    use std::io::Read;
    let mut text = Vec::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::GzDecoder::new(bytes.as_slice())
            .read_to_end(&mut text)
            .expect("the generator's own gzip");
    } else {
        text = bytes;
    }
    if key.ends_with(".gz") {
        gzip(&text)
    } else {
        text
    }
}

/// S3 refuses a single object. The object is at fault, since others can be read.
#[tokio::test]
async fn an_object_that_s3_refuses_fails_alone() -> Result<()> {
    let (mut harness, s3) = harness_behind_s3_proxy("refused", 2).await?;
    harness.put_bundles(6).await?;
    harness.set("load.fallback", "never");
    let refused = harness.expected.remove(2);
    s3.inject(Fault::Status(403), usize::MAX, reads_key(&refused.key));
    let daemon = harness.start("")?;
    wait_for_hits(&s3, 1).await;
    harness.wait_until_drained(&[&daemon]).await;
    daemon.wait_until_ready().await;
    daemon.stop().await?;
    harness.assert_exact().await?;
    harness.assert_dlq(1).await?;
    let failures = harness.failures().await?;
    ensure!(
        failures == [(refused.key, "denied".to_owned())],
        "{failures:?}"
    );
    Ok(())
}
