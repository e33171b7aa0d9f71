//! The current version takes over from each earlier one while a worker of that version is still
//! loading.

mod fixture;
mod write;

use std::collections::BTreeMap;
use std::slice;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_testkit::xapi::Bundle;
use sluice_testkit::{Aws, ClickHouse, Stack, exact};
use uuid::Uuid;

use crate::harness::{Harness, concurrently, scenario};
use fixture::{BUCKET, Fixture, Object, Recorded, Rows, State, placeholders};

/// Returns the shared ClickHouse and an S3 of its own, where no other test has the same bucket.
fn own_aws() -> Result<Stack> {
    Ok(Stack {
        clickhouse: ClickHouse::at(Stack::shared().clickhouse.url()),
        aws: Aws::start()?,
        replicas: None,
    })
}

/// Loads objects as a worker of the fixture's version does, with the requests that such a worker
/// sent. The reads between them are left out, since no other worker uses these objects until they
/// are claimed.
struct OldWorker<'a> {
    harness: &'a Harness<'a>,
    requests: [Recorded; 3],
}

/// A batch of the old worker: the values of the placeholders in its requests.
struct OldBatch(BTreeMap<&'static str, String>);

impl OldWorker<'_> {
    fn batch(&self, object: &Object, bundle: &Bundle) -> OldBatch {
        let rows: u64 = object.rows.values().sum();
        let mut values = placeholders(self.harness);
        values.extend([
            ("{batch}", Uuid::now_v7().to_string()),
            ("{unique}", Uuid::now_v7().to_string()),
            ("{object_id}", object.id.clone()),
            ("{key}", object.key.clone()),
            ("{etag}", object.etag.clone()),
            ("{size}", bundle.bytes.len().to_string()),
            ("{rows}", rows.to_string()),
            // 2100-01-01: later than the time of any statement.
            ("{latest_time}", "4102444800".to_owned()),
        ]);
        OldBatch(values)
    }

    async fn claim(&self, batch: &OldBatch) -> Result<()> {
        self.send(0, batch).await.context("the old worker's claim")
    }

    async fn insert(&self, batch: &OldBatch) -> Result<()> {
        self.send(1, batch).await.context("the old worker's insert")
    }

    async fn record(&self, batch: &OldBatch) -> Result<()> {
        self.send(2, batch).await.context("the old worker's record")
    }

    async fn load(&self, batch: &OldBatch) -> Result<()> {
        self.claim(batch).await?;
        self.insert(batch).await?;
        self.record(batch).await
    }

    async fn send(&self, step: usize, batch: &OldBatch) -> Result<()> {
        let url = self.harness.clickhouse.url();
        self.requests[step].send(url, &batch.0).await
    }
}

/// Uploads the objects of the fixture, including those that the old worker loads itself.
async fn upload(fixture: &Fixture, harness: &mut Harness<'_>) -> Result<()> {
    for object in &fixture.manifest.objects {
        let bundle = fixture.bundle(object)?;
        let etag = harness.site.put(&bundle.key, bundle.bytes.clone()).await?;
        ensure!(
            etag == object.etag,
            "{} has another etag: {etag}",
            object.key
        );
        harness.expected.push(bundle);
    }
    Ok(())
}

async fn announce_all(fixture: &Fixture, harness: &Harness<'_>) -> Result<()> {
    for (object, bundle) in fixture.manifest.objects.iter().zip(&harness.expected) {
        let body = harness.site.announcement(bundle, &object.etag);
        harness.site.send(&body).await?;
    }
    Ok(())
}

/// Accepts the error of an old worker's statement if a worker of this version has taken over its
/// batch.
fn unless_taken_over(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if format!("{error:#}").contains(sluice::statements::guard::FENCED_TEXT) => {
            Ok(())
        }
        other => other,
    }
}

/// Checks that every row from before is still there, and that no further object has failed.
fn ensure_nothing_is_lost(before: &Rows, after: &Rows) -> Result<()> {
    for (table, rows) in before {
        let lost: Vec<_> = rows.difference(&after[table]).collect();
        ensure!(lost.is_empty(), "{table} has lost rows: {lost:#?}");
    }
    let [failures, now] = [before, after].map(|rows| rows.get("ledger_failures"));
    ensure!(failures == now, "more objects have failed: {now:#?}");
    Ok(())
}

/// Creates a harness with the bucket that a fixture names, without tables.
async fn with_bucket_of_fixtures<'a>(stack: &'a Stack, name: &str) -> Result<Harness<'a>> {
    let mut harness =
        Harness::unmigrated(slice::from_ref(&stack.clickhouse), stack, name, 20).await?;
    harness.use_all_columns();
    let create = harness.site.s3.create_bucket().bucket(BUCKET);
    create.send().await?;
    BUCKET.clone_into(&mut harness.site.bucket);
    Ok(harness)
}

async fn upgrade(fixture: Fixture) -> Result<()> {
    let stack = own_aws()?;
    let mut harness = with_bucket_of_fixtures(&stack, "upgrade").await?;
    fixture.restore(&harness, SystemTime::now()).await?;
    exact::keep_duplicates(harness.servers, &harness.site).await?;
    upload(&fixture, &mut harness).await?;
    let before = fixture.settled_rows(&harness).await?;

    let old = OldWorker {
        harness: &harness,
        requests: fixture.worker()?,
    };
    let later = fixture.objects(State::Later);
    let batches = later.iter().map(|object| {
        let bundle = fixture.bundle(object)?;
        Ok(old.batch(object, &bundle))
    });
    let batches: Vec<OldBatch> = batches.collect::<Result<_>>()?;
    let [first, across, during, after, dying, overtaken] = batches.as_slice() else {
        anyhow::bail!(
            "expected six objects to load later, found {}",
            batches.len()
        )
    };

    old.load(first).await?;
    old.claim(across).await?;
    let loading = async {
        old.insert(across).await?;
        old.load(during).await
    };
    tokio::try_join!(harness.migrate(), loading)?;
    old.record(across).await?;
    old.load(after).await?;
    old.claim(dying).await?;
    old.insert(dying).await?;
    old.claim(overtaken).await?;

    announce_all(&fixture, &harness).await?;
    let worker = harness.start("")?;
    worker.wait_until_ready().await;
    unless_taken_over(old.insert(overtaken).await)?;
    unless_taken_over(old.record(overtaken).await)?;
    harness.wait_until_drained(&[&worker]).await;

    let recovered = worker.count_recovered("Loaded")? + worker.count_recovered("Released")?;
    ensure!(
        recovered >= 5,
        "{recovered} batches recovered\n{}",
        harness.logs()
    );
    harness.finish(vec![worker]).await?;
    ensure_nothing_is_lost(&before, &fixture.settled_rows(&harness).await?)?;

    let again = harness
        .command(&["migrate", "--output", "json"], "")
        .await?;
    let again: Value = serde_json::from_slice(&again.stdout)?;
    ensure!(again["statements"] == json!([]), "{again}");
    Ok(())
}

#[tokio::test]
async fn every_earlier_version_is_upgraded_while_its_worker_is_loading() -> Result<()> {
    let fixtures = Fixture::all()?;
    ensure!(!fixtures.is_empty(), "there is no fixture");
    concurrently(fixtures.into_iter().map(|fixture| {
        let version = fixture.manifest.version.clone();
        scenario(version, upgrade(fixture))
    }))
    .await
}
