//! Generates the fixture of the current version by running it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use regex::Regex;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{Bundle, Compression, EventType, Generator};
use sluice_testkit::{SiteOptions, Stack, exact};

use super::fixture::{
    BUCKET, Fixture, Manifest, Object, Recorded, STEPS, State, placeholders, unfill,
};
use super::{own_aws, with_bucket_of_fixtures};
use crate::harness::{
    Daemon, Harness, Statement, VISIBILITY, remove_test_event, text_of, wait_for_hits,
};

/// The number of objects that a worker of the version loads during an upgrade.
const LATER: usize = 6;

/// Regenerates tests/fixtures/upgrade/VERSION.
#[tokio::test]
#[ignore = "writes the fixture of this version, once a release: docs/releasing.md"]
async fn write_the_fixture_of_this_version() -> Result<()> {
    let stack = own_aws()?;
    let mut writer = Writer::new(&stack).await?;
    writer.load(3).await?;
    writer.replace().await?;
    writer.announce_a_missing_object().await?;
    writer.die(State::Claimed, &["verify.after"]).await?;
    writer
        .die(State::Fenced, &["verify.after", "fence.after"])
        .await?;
    writer.die(State::Committed, &["insert.after"]).await?;
    writer.abort().await?;
    let dumped_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    writer.write_schema().await?;
    writer.write_rows().await?;
    writer.record().await?;
    writer.write_manifest(dumped_at).await
}

struct Writer<'a> {
    harness: Harness<'a>,
    /// Statements of all kinds, with a few lines that do not become rows.
    mixed: Generator,
    objects: Vec<(State, Bundle, String)>,
}

impl<'a> Writer<'a> {
    async fn new(stack: &'a Stack) -> Result<Self> {
        let harness = with_bucket_of_fixtures(stack, "fixture").await?;
        harness.migrate().await?;
        exact::keep_duplicates(harness.servers, &harness.site).await?;
        let directory = Fixture::directory(env!("CARGO_PKG_VERSION"));
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        Ok(Self {
            harness,
            mixed: Generator::new(15)
                .sizes(3..=4)
                .faults(0.3, 0.2)
                .compressed(0.0, Compression::Gzip),
            objects: Vec::new(),
        })
    }

    /// Switches to a queue that has no messages of earlier steps.
    async fn empty_queue(&mut self) -> Result<()> {
        let options = SiteOptions {
            max_receive_count: 20,
            visibility_timeout: VISIBILITY,
        };
        let site = self.harness.aws.site("fixture", options).await?;
        remove_test_event(&site).await?;
        self.harness.set("queue.url", site.queue_url.clone());
        self.harness.site.queue_url = site.queue_url;
        self.harness.site.dlq_url = site.dlq_url;
        Ok(())
    }

    /// Uploads an object, and returns the body of its announcement.
    async fn put(&mut self, state: State, is_wanted: impl Fn(&Bundle) -> bool) -> Result<String> {
        let mut bundle = self.mixed.bundle();
        while !is_wanted(&bundle) {
            bundle = self.mixed.bundle();
        }
        let number = self.objects.iter().filter(|it| it.0 == state).count() + 1;
        bundle.key = format!("{}/{number}.jsonl", state.folder());
        let etag = self
            .harness
            .site
            .put(&bundle.key, bundle.bytes.clone())
            .await?;
        let body = self.harness.site.announcement(&bundle, &etag);
        self.write(
            &format!("objects/{}", bundle.key),
            &String::from_utf8(bundle.bytes.clone())?,
        )?;
        self.objects.push((state, bundle, etag));
        Ok(body)
    }

    /// Loads the objects that are in the queue.
    async fn run(&self) -> Result<()> {
        let worker = self.start("")?;
        self.harness.wait_until_drained(&[&worker]).await;
        worker.wait_until_ready().await;
        worker.stop().await
    }

    fn start(&self, failpoints: &str) -> Result<Daemon> {
        // The name is fixed, since the rows of the fixture contain it.
        let name = ("HOSTNAME", "worker".to_owned());
        self.harness.start_with(failpoints, &[name])
    }

    async fn load(&mut self, count: usize) -> Result<()> {
        self.empty_queue().await?;
        for _ in 0..count {
            let has_rejects = |bundle: &Bundle| {
                let it = &bundle.expected_rows;
                it.loaded() > 0 && it.rejected + it.unmatched > 1
            };
            let body = self.put(State::Loaded, has_rejects).await?;
            self.harness.site.send(&body).await?;
        }
        self.run().await
    }

    async fn replace(&mut self) -> Result<()> {
        self.put(State::Replaced, |bundle| bundle.expected_rows.loaded() > 0)
            .await?;
        let prefix = format!("s3://{BUCKET}/{}", State::Replaced.folder());
        for arguments in [
            vec!["backfill", &prefix],
            vec!["backfill", &prefix, "--force"],
        ] {
            let output = self.harness.command(&arguments, "").await?;
            ensure!(output.status.success(), "{output:?}");
        }
        Ok(())
    }

    async fn announce_a_missing_object(&mut self) -> Result<()> {
        self.empty_queue().await?;
        let body = self.put(State::Missing, |_| true).await?;
        let key = format!("{}/1.jsonl", State::Missing.folder());
        self.harness.site.delete(&key).await?;
        self.harness.site.send(&body).await?;
        self.harness.set("load.on_missing", "acknowledge");
        self.run().await
    }

    /// Workers die one after the other.
    async fn die(&mut self, state: State, failpoints: &[&str]) -> Result<()> {
        self.empty_queue().await?;
        let body = self
            .put(state, |bundle| bundle.expected_rows.loaded() > 1)
            .await?;
        self.harness.site.send(&body).await?;
        for failpoint in failpoints {
            self.die_at(failpoint).await?;
        }
        Ok(())
    }

    async fn die_at(&self, failpoint: &str) -> Result<()> {
        self.start(&format!("{failpoint}=return"))?
            .aborted(failpoint)
            .await?;
        Ok(())
    }

    async fn abort(&mut self) -> Result<()> {
        self.empty_queue().await?;
        let proxy = Proxy::start(self.harness.clickhouse.url()).await?;
        self.harness.set("clickhouse.url", proxy.url());
        self.harness.set("load.strategy", "per_type");
        let has_several_types = |bundle: &Bundle| {
            let types = EventType::ALL.into_iter();
            types
                .filter(|kind| bundle.expected_rows.rows(*kind) > 0)
                .count()
                > 1
        };
        let body = self.put(State::Aborted, has_several_types).await?;
        self.harness.site.send(&body).await?;
        let insert = || Statement::Insert.matcher();
        proxy.inject(Fault::Delay(Duration::ZERO), 5, insert());
        proxy.inject(Fault::Hold, 1, insert());
        let worker = self.start("")?;
        wait_for_hits(&proxy, 6).await;
        worker.kill()?;
        self.harness.set("load.strategy", "single_pass");
        self.harness
            .set("clickhouse.url", self.harness.clickhouse.url());
        self.die_at("take_back.before").await
    }

    /// Records what a worker sends for each of the objects that are loaded later, which must be the
    /// same.
    async fn record(&mut self) -> Result<()> {
        self.empty_queue().await?;
        let proxy = Proxy::start(self.harness.clickhouse.url()).await?;
        self.harness.set("clickhouse.url", proxy.url());
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let recorder = recorded.clone();
        proxy.inject(
            Fault::Delay(Duration::ZERO),
            usize::MAX,
            move |parts, body| {
                let text = text_of(parts, body);
                if STEPS.iter().any(|(step, _)| step.is_in(&text)) {
                    let mut requests = recorder.lock().unwrap_or_else(PoisonError::into_inner);
                    requests.push(Recorded::of(parts, body));
                }
                false
            },
        );
        let worker = self.start("")?;
        let mut templates = Vec::new();
        for _ in 0..LATER {
            let body = self
                .put(State::Later, |bundle| bundle.expected_rows.loaded() > 1)
                .await?;
            self.harness.site.send(&body).await?;
            self.harness.wait_until_drained(&[&worker]).await;
            let requests: Vec<Recorded> = {
                let mut requests = recorded.lock().unwrap_or_else(PoisonError::into_inner);
                requests.drain(..).collect()
            };
            templates.push(self.template(&requests).await?);
        }
        worker.stop().await?;
        self.harness
            .set("clickhouse.url", self.harness.clickhouse.url());
        let first = templates.first().context("no requests were recorded")?;
        ensure!(templates.iter().all(|it| it == first), "{templates:#?}");
        for ((_, name), request) in STEPS.iter().zip(first) {
            self.write(&format!("worker/{name}"), &request.text()?)?;
        }
        Ok(())
    }

    /// Returns the requests for the latest object, with placeholders.
    async fn template(&self, requests: &[Recorded]) -> Result<Vec<Recorded>> {
        let [_, insert, _] = requests else {
            anyhow::bail!("expected three requests: {requests:#?}")
        };
        let batch = insert
            .parameter("insert_deduplication_token")
            .context("no token")?;
        let (_, bundle, etag) = self.objects.last().context("no object")?;
        let id = self.id_of(&bundle.key).await?;
        let size = bundle.bytes.len();
        let (size, rows) = (
            format!("\"size\":{size}"),
            Regex::new(r", 1, \d+, '' WHERE ")?,
        );
        // It follows from the time of the batch.
        let latest_time = Regex::new(r">= toDateTime64\(\d{10}, 0, 'UTC'\)")?;
        let unique = Regex::new(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$")?;
        let mut placeholders = placeholders(&self.harness);
        let more = [
            ("{batch}", batch),
            ("{key}", &bundle.key),
            ("{etag}", etag),
            ("{object_id}", &id),
        ];
        placeholders.extend(more.map(|(name, value)| (name, value.to_owned())));
        Ok(requests
            .iter()
            .map(|request| {
                request.map(|text| {
                    let text = unfill(text, &placeholders).replace(&size, "\"size\":{size}");
                    let text = rows.replace(&text, ", 1, {rows}, '' WHERE ");
                    let text =
                        latest_time.replace_all(&text, ">= toDateTime64({latest_time}, 0, 'UTC')");
                    unique.replace(&text, "{unique}").into_owned()
                })
            })
            .collect())
    }

    async fn id_of(&self, key: &str) -> Result<String> {
        let table = self.harness.table("ledger_objects");
        let sql = format!("SELECT DISTINCT object_id FROM {table} WHERE key = '{key}'");
        self.harness.clickhouse.scalar(&sql).await
    }

    async fn write_schema(&self) -> Result<()> {
        let output = self.harness.command(&["migrate", "--print"], "").await?;
        ensure!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout)?;
        self.write("schema.sql", &unfill(&text, &placeholders(&self.harness)))
    }

    async fn write_rows(&self) -> Result<()> {
        let sql = format!(
            "SELECT name FROM system.tables WHERE database = '{}' AND engine LIKE '%MergeTree' \
             AND total_rows > 0 ORDER BY name",
            self.harness.site.database
        );
        for row in self.harness.clickhouse.rows(&sql).await? {
            let table = row["name"].as_str().context("no name")?;
            let sql = format!("SELECT * FROM {} ORDER BY ALL", self.harness.table(table));
            let rows = self.harness.clickhouse.rows(&sql).await?;
            let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
            let text = unfill(&lines, &placeholders(&self.harness));
            self.write(&format!("rows/{table}.jsonl"), &text)?;
        }
        Ok(())
    }

    async fn write_manifest(&self, dumped_at: Duration) -> Result<()> {
        let mut objects = Vec::new();
        for (state, bundle, etag) in &self.objects {
            objects.push(Object {
                key: bundle.key.clone(),
                state: *state,
                etag: etag.clone(),
                id: self.id_of(&bundle.key).await?,
                rows: rows(bundle),
            });
        }
        let manifest = Manifest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            clickhouse: self.harness.clickhouse.scalar("SELECT version()").await?,
            dumped_at: u64::try_from(dumped_at.as_millis())?,
            objects,
        };
        let text = serde_json::to_string_pretty(&manifest)?;
        self.write("manifest.json", &format!("{text}\n"))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = Fixture::directory(env!("CARGO_PKG_VERSION")).join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::write(&path, text).with_context(|| path.display().to_string())
    }
}

fn rows(bundle: &Bundle) -> BTreeMap<String, u64> {
    let expected_rows = &bundle.expected_rows;
    let types = EventType::ALL.into_iter();
    types
        .map(|kind| (kind.name(), expected_rows.rows(kind)))
        .chain([
            ("rejected", expected_rows.rejected),
            ("unmatched", expected_rows.unmatched),
        ])
        .filter(|(_, rows)| *rows > 0)
        .map(|(kind, rows)| (kind.to_owned(), rows))
        .collect()
}
