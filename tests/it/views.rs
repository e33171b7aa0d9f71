//! Users' own materialized views on the tables. Retries are exact through them, and a view that
//! throws is distinguished from an object that it cannot process.

use anyhow::ensure;
use serde_json::Value;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{Bundle, EventType, ExpectedRows, Generator};
use sluice_testkit::{Site, Stack, wait_for};

use crate::harness::{
    BOUND, Sluice, assert_rows, loaded, upload, wait_for_dead_letters, wait_until_drained,
};

struct Harness {
    stack: &'static Stack,
    site: Site,
}

impl Harness {
    async fn assert_rows(&self, expected: &ExpectedRows) {
        assert_rows(&self.stack.clickhouse, &self.site.database, expected).await;
    }

    /// Creates a site with its tables.
    async fn new(name: &str) -> (Self, Sluice) {
        let stack = Stack::shared();
        let site = stack.site_with_max_receives(name, 3).await.unwrap();
        let sluice = Sluice::new(stack, &site);
        sluice.migrate();
        (Self { stack, site }, sluice)
    }

    /// Runs statements. `{db}` is a placeholder for the database.
    async fn execute(&self, statements: &[&str]) {
        for statement in statements {
            let sql = statement.replace("{db}", &self.site.database);
            self.stack.clickhouse.execute(&sql).await.unwrap();
        }
    }

    async fn scalar(&self, sql: &str) -> u64 {
        let sql = sql.replace("{db}", &self.site.database);
        self.stack.clickhouse.scalar(&sql).await.unwrap()
    }

    /// Creates a view that counts videos by day, and one that reads the table that the first one
    /// fills.
    async fn count_videos(&self) {
        self.execute(&[
            "CREATE TABLE {db}.days (day Date, videos UInt64) ENGINE = SummingMergeTree ORDER BY day",
            "CREATE MATERIALIZED VIEW {db}.video_days TO {db}.days AS \
             SELECT toDate(timestamp) AS day, count() AS videos FROM {db}.video_events GROUP BY day",
            "CREATE MATERIALIZED VIEW {db}.video_total ENGINE = SummingMergeTree ORDER BY one AS \
             SELECT 1 AS one, sum(videos) AS total FROM {db}.days",
        ])
        .await;
    }

    async fn counted_videos(&self) -> [u64; 2] {
        [
            self.scalar("SELECT sum(videos) FROM {db}.days").await,
            self.scalar("SELECT sum(total) FROM {db}.video_total").await,
        ]
    }
}

fn bundles(seed: u64) -> (Vec<Bundle>, u64) {
    let bundles: Vec<_> = Generator::new(seed).take(12).collect();
    let mut expected_rows = ExpectedRows::default();
    for bundle in &bundles {
        expected_rows += &bundle.expected_rows;
    }
    let videos = expected_rows.rows(EventType::Video);
    assert!(videos > 0);
    (bundles, videos)
}

/// Returns the line of `check` about views.
fn views_check(sluice: &Sluice) -> Value {
    let output = sluice.command(&["check", "--output", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let of_views = checks.iter().find(|check| check["name"] == "views");
    of_views.unwrap().clone()
}

fn printed(sluice: &Sluice, arguments: &[&str]) -> String {
    let output = sluice.command(arguments);
    assert!(output.status.success(), "{output:?}");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn views_whose_tables_do_not_deduplicate_are_found_and_adopted() {
    let (harness, sluice) = Harness::new("views-found").await;
    assert_eq!(views_check(&sluice)["result"], "pass");
    harness.count_videos().await;
    let check = views_check(&sluice);
    assert_eq!(check["result"], "warn", "{check}");
    for name in ["video_days", "days", "video_total", "inner"] {
        assert!(check["detail"].as_str().unwrap().contains(name), "{check}");
    }
    let text = printed(&sluice, &["migrate"]);
    assert!(
        text.contains("--adopt-views") && text.contains("video_total"),
        "{text}"
    );
    assert_eq!(views_check(&sluice)["result"], "warn");

    let text = printed(&sluice, &["migrate", "--adopt-views"]);
    assert!(!text.contains("warning"), "{text}");
    let check = views_check(&sluice);
    assert_eq!(check["result"], "pass", "{check}");
    let text = printed(&sluice, &["migrate", "--adopt-views"]);
    assert!(text.contains("everything is as declared"), "{text}");

    harness
        .execute(&[
            "CREATE TABLE {db}.fleeting (id String) ENGINE = Memory",
            "CREATE MATERIALIZED VIEW {db}.into_memory TO {db}.fleeting AS \
         SELECT event_id AS id FROM {db}.video_events",
        ])
        .await;
    let text = printed(&sluice, &["migrate", "--adopt-views"]);
    assert!(
        text.contains("into_memory") && text.contains("MergeTree"),
        "{text}"
    );
}

/// The responses to inserts are lost, and the worker is killed before it retries them.
#[tokio::test]
async fn retries_are_exact_in_tables_that_adopted_views_fill() {
    let (harness, sluice) = Harness::new("views-retried").await;
    harness.count_videos().await;
    printed(&sluice, &["migrate", "--adopt-views"]);
    let proxy = Proxy::start(harness.stack.clickhouse.url()).await.unwrap();
    proxy.inject(Fault::CutBeforeResponse, 4, |_, sql| {
        sql.starts_with(b"INSERT INTO") && sql.windows(9).any(|part| part == b"`landing_")
    });
    let mut sluice = sluice.set("clickhouse.url", proxy.url());
    let (bundles, videos) = bundles(91);
    let expected_rows = upload(&harness.site, &bundles).await;
    sluice.start();
    let cut = async |times: usize| {
        wait_for("responses to be lost", BOUND, async || {
            let hits = proxy.hits_by_fault();
            let cut = hits.get("cut before the response").copied();
            ensure!(cut >= Some(times), "{hits:?}");
            Ok(Some(()))
        })
        .await;
    };
    cut(1).await;
    sluice.kill();
    sluice.start();
    cut(4).await;
    wait_until_drained(&harness.site).await;
    harness.assert_rows(&expected_rows).await;
    assert_eq!(
        harness.counted_videos().await,
        [videos; 2],
        "{}",
        sluice.log()
    );
}

#[tokio::test]
async fn an_object_that_a_view_cannot_process_fails_alone() {
    let (harness, mut sluice) = Harness::new("views-one-bad").await;
    harness.count_videos().await;
    printed(&sluice, &["migrate", "--adopt-views"]);
    harness.execute(&[
        "CREATE TABLE {db}.picky (path String) ENGINE = MergeTree ORDER BY path \
         SETTINGS non_replicated_deduplication_window = 1000",
        "CREATE MATERIALIZED VIEW {db}.picky_view TO {db}.picky AS \
         SELECT concat(source_path, if(throwIf(source_path LIKE '%/bad-%', 'bad'), '', '')) AS path \
         FROM {db}.video_events",
    ])
    .await;
    let (mut bundles, _) = bundles(92);
    let is_video = |bundle: &Bundle| bundle.expected_rows.rows(EventType::Video) > 0;
    let at = bundles.iter().position(is_video).unwrap();
    let bad = bundles.remove(at);
    let site = &harness.site;
    site.put("x/bad-one.jsonl.gz", bad.bytes.clone())
        .await
        .unwrap();
    let expected_rows = upload(site, &bundles).await;
    sluice.start();
    wait_for_dead_letters(site, 1).await;
    wait_until_drained(site).await;
    harness.assert_rows(&expected_rows).await;
    let videos = expected_rows.rows(EventType::Video);
    assert_eq!(
        harness.scalar("SELECT count() FROM {db}.picky").await,
        videos
    );
    let failed = "SELECT count() FROM {db}.ledger_failures WHERE class = 'view' \
                  AND key = 'x/bad-one.jsonl.gz' AND position(reason, 'picky_view') > 0";
    assert!(harness.scalar(failed).await > 0, "{}", sluice.log());
    let others = "SELECT count() FROM {db}.ledger_failures WHERE key != 'x/bad-one.jsonl.gz'";
    assert_eq!(harness.scalar(others).await, 0);
    let left = sluice.metric("sluice_rollbacks_left_in_views_total").await;
    assert!(left.unwrap() > 0.0);
    let named = "SELECT count() FROM {db}.ledger_batches WHERE event = 'released' \
                 AND position(reason, '.picky (by the view') > 0";
    assert!(harness.scalar(named).await > 0);
}

#[tokio::test]
async fn a_view_that_always_throws_pauses_intake_and_uses_up_no_receives() {
    let (harness, mut sluice) = Harness::new("views-all-bad").await;
    harness
        .execute(&[
            "CREATE MATERIALIZED VIEW {db}.broken ENGINE = MergeTree ORDER BY n AS \
         SELECT throwIf(1, 'never') AS n FROM {db}.video_events",
        ])
        .await;
    let (bundles, _) = bundles(93);
    let only_videos = |bundle: &Bundle| bundle.expected_rows.rows(EventType::Video) > 0;
    let bundles: Vec<_> = bundles.into_iter().filter(only_videos).collect();
    let expected_rows = upload(&harness.site, &bundles).await;
    sluice.start();
    let why = sluice.wait_until_not_ready("broken").await;
    assert!(why.contains("fix or drop the view"), "{why}");
    wait_for("the reason to be exported", BOUND, async || {
        let (_, metrics) = sluice.get("/metrics").await?;
        ensure!(metrics.contains("sluice_breaker_open{reason=\"view\"} 1"));
        Ok(Some(()))
    })
    .await;
    assert_eq!(
        loaded(&harness.stack.clickhouse, &harness.site.database).await,
        0
    );
    harness.execute(&["DROP VIEW {db}.broken SYNC"]).await;
    wait_until_drained(&harness.site).await;
    harness.assert_rows(&expected_rows).await;
    assert_eq!(harness.site.dlq_depth().await.unwrap(), 0);
    let failed = "SELECT count() FROM {db}.ledger_failures";
    assert_eq!(harness.scalar(failed).await, 0, "{}", sluice.log());
}

/// Rows behind a view cannot be replaced. The command warns the operator about that.
#[tokio::test]
async fn a_forced_backfill_names_the_views_that_it_does_not_reach() {
    let (harness, sluice) = Harness::new("views-forced").await;
    harness.site.stop_notifications().await.unwrap();
    let (bundles, _) = bundles(94);
    upload(&harness.site, &bundles[..2]).await;
    let url = format!("s3://{}/", harness.site.bucket);
    printed(&sluice, &["backfill", &url]);
    let text = printed(&sluice, &["backfill", &url, "--force", "--dry-run"]);
    assert!(!text.contains("replaced rows remain"), "{text}");
    harness.count_videos().await;
    for arguments in [&["--force", "--dry-run"][..], &["--force"]] {
        let text = printed(&sluice, &[&["backfill", &url], arguments].concat());
        assert!(text.contains("replaced rows remain"), "{text}");
        assert!(text.contains("video_days"), "{text}");
    }
}
