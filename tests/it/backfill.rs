//! `sluice backfill` loads history once, beside the workers and in parts.

use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use serde_json::{Value, json as object};
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{Bundle, EventType, ExpectedRows, Generator};
use sluice_testkit::{Site, Stack, wait_for};

use crate::harness::{
    BOUND, Sluice, assert_rows, line, loaded, loaded_names, rows, terminate, upload,
    wait_for_messages, wait_until_drained,
};

/// The exit code if some objects are not loaded.
const INCOMPLETE: Option<i32> = Some(3);

/// Creates a site with its tables that no longer announces objects.
async fn site_without_notifications(name: &str) -> (&'static Stack, Site, Sluice) {
    let stack = Stack::shared();
    let site = stack.site(name).await.unwrap();
    site.stop_notifications().await.unwrap();
    let sluice = Sluice::new(stack, &site);
    sluice.migrate();
    (stack, site, sluice)
}

/// Runs a backfill, and returns its exit code, which need not be 0, and its report.
fn run_backfill(
    sluice: &Sluice,
    site: &Site,
    under: &str,
    arguments: &[&str],
) -> (Option<i32>, Value) {
    let url = format!("s3://{}/{under}", site.bucket);
    let command = [&["backfill", &url, "--output", "json"], arguments].concat();
    let output = sluice.command(&command);
    let report = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        report.unwrap_or_else(|_| panic!("{output:?}")),
    )
}

fn backfill(sluice: &Sluice, site: &Site, arguments: &[&str]) -> Value {
    let (code, report) = run_backfill(sluice, site, "", arguments);
    assert_eq!(code, Some(0), "{report}");
    report
}

/// Asserts that a backfill exits with this code, and returns its error.
fn backfill_error(sluice: &Sluice, code: i32, arguments: &[&str]) -> String {
    let output = sluice.command(&[&["backfill"], arguments].concat());
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn bundles(seed: u64, count: usize) -> Vec<Bundle> {
    Generator::new(seed).take(count).collect()
}

async fn put_notes(site: &Site, keys: &[&str]) {
    for key in keys {
        site.put(key, line(key)).await.unwrap();
    }
}

/// Returns the number of rows in each of the ledger's tables.
async fn ledger(stack: &Stack, site: &Site) -> Vec<u64> {
    let mut counts = Vec::new();
    for table in ["ledger_objects", "ledger_batches", "ledger_failures"] {
        let sql = format!("SELECT count() FROM {}.{table}", site.database);
        counts.push(stack.clickhouse.scalar(&sql).await.unwrap());
    }
    counts
}

#[tokio::test]
async fn history_is_loaded_once_beside_workers_and_not_again() {
    let stack = Stack::shared();
    let site = stack.site("backfill").await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("batch.max_objects", 7)
        .set("load.concurrency", 3);
    sluice.migrate();
    let bundles = bundles(31, 90);
    let expected_rows = upload(&site, &bundles).await;
    // The queue announces all objects, and the backfill lists them all.
    sluice.start();
    let url = format!("s3://{}", site.bucket);
    let first = sluice.spawn(&["backfill", &url, "--output", "json"]);
    let second = sluice.spawn(&["backfill", &url, "--output", "json"]);
    let mut by_backfills = 0;
    for child in [first, second] {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["found"], 90, "{report}");
        by_backfills += report["loaded"].as_u64().unwrap();
    }
    wait_until_drained(&site).await;
    sluice.assert_running();
    assert!(by_backfills <= 90);
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;

    let again = backfill(&sluice, &site, &[]);
    assert_eq!(
        (&again["loaded"], &again["already_loaded"]),
        (&0.into(), &90.into())
    );
    assert_eq!(again["rows"], object!({}));
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
}

#[tokio::test]
async fn the_report_has_rows_by_kind_and_a_dry_run_writes_nothing() {
    let (stack, site, sluice) = site_without_notifications("backfill-report").await;
    let bundles = bundles(32, 25);
    let expected_rows = upload(&site, &bundles).await;
    let bytes: usize = bundles.iter().map(|bundle| bundle.bytes.len()).sum();
    let some = format!("s3://{}/{}", site.bucket, bundles[0].key);
    assert!(sluice.command(&["backfill", &some]).status.success());

    let before = (
        ledger(stack, &site).await,
        rows(&stack.clickhouse, &site.database).await,
    );
    let planned = backfill(&sluice, &site, &["--dry-run"]);
    assert_eq!(
        (&planned["found"], &planned["bytes"]),
        (&25.into(), &bytes.into())
    );
    assert_eq!(
        (&planned["already_loaded"], &planned["to_load"]),
        (&1.into(), &24.into())
    );
    assert!(planned["estimated_seconds"].is_u64(), "{planned}");
    let limited = backfill(
        &sluice,
        &site,
        &["--dry-run", "--limit", "3", "--max-rate", "1"],
    );
    assert_eq!(limited["to_load"], 3);
    assert!(
        limited["estimated_seconds"].as_u64() >= Some(3),
        "{limited}"
    );
    let after = (
        ledger(stack, &site).await,
        rows(&stack.clickhouse, &site.database).await,
    );
    assert_eq!(after, before);

    let mut report = backfill(&sluice, &site, &[]);
    let reported_rows: u64 = report["rows"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(
        reported_rows,
        expected_rows.statements() - bundles[0].expected_rows.statements()
    );
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    report["seconds"] = 0.into();
    let report = serde_json::to_string_pretty(&report).unwrap();
    insta::assert_snapshot!("backfill_report", report);

    let text = sluice.command(&["backfill", &format!("s3://{}", site.bucket)]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("already loaded         25\n"), "{text}");
}

#[tokio::test]
async fn objects_are_selected_by_section_date_and_glob() {
    let (stack, site, sluice) = site_without_notifications("backfill-selected").await;
    let sluice = sluice.set("notifications.exclude", r#"["**/_tmp*"]"#);
    put_notes(
        &site,
        &[
            "section/1/video/2026/01/10/a.jsonl",
            "section/1/video/2026/01/11/a.jsonl",
            "section/1/page/dt=2026-01-11/a.jsonl",
            "section/12/video/2026/01/11/a.jsonl",
            "section/2/20260112.jsonl",
            "section/2/undated.jsonl",
            "section/2/_tmp",
        ],
    )
    .await;
    let found = |under: &str, arguments: &[&str]| {
        let (code, report) =
            run_backfill(&sluice, &site, under, &[&["--dry-run"], arguments].concat());
        assert_eq!(code, Some(0));
        report["found"].as_u64().unwrap()
    };
    assert_eq!(found("", &[]), 6);
    assert_eq!(found("section/1", &[]), 4);
    assert_eq!(found("", &["--section", "1"]), 3);
    assert_eq!(found("", &["--section", "nobody"]), 0);
    assert_eq!(found("", &["--until", "2026-01-11"]), 1);
    assert_eq!(
        found("", &["--since", "2026-01-11", "--until", "2026-01-12"]),
        3
    );
    assert_eq!(
        found(
            "",
            &["--since", "2026-01-11T23:00:00Z", "--until", "2026-01-13"]
        ),
        4
    );
    // The object without a date in its key is dated by its upload, which was just now.
    assert_eq!(found("", &["--since", "1h"]), 1);
    assert_eq!(
        found("", &["--include", "**/video/**", "--include", "**/page/**"]),
        4
    );
    assert_eq!(
        found(
            "",
            &["--include", "**/video/**", "--exclude", "section/12/**"]
        ),
        2
    );

    for (arguments, expected) in [
        (["--section", "a/b"], "without slashes"),
        (["--include", "a["], "is not a valid glob"),
        (["--since", "yesterday"], "yesterday"),
        (["--max-rate", "0"], "--max-rate"),
    ] {
        let stderr = backfill_error(&sluice, 2, &[&["s3://bucket"], &arguments[..]].concat());
        assert!(stderr.contains(expected), "{stderr}");
    }
    assert!(backfill_error(&sluice, 1, &["s3://b/a", "--section", "1"]).contains("slash"));

    // The first run loads four objects, and the second one the rest.
    let some = backfill(&sluice, &site, &["--limit", "4", "--max-rate", "2"]);
    assert_eq!(
        (&some["loaded"], &some["left"]),
        (&4.into(), &2.into()),
        "{some}"
    );
    let rest = backfill(&sluice, &site, &["--limit", "4", "--concurrency", "1"]);
    assert_eq!(
        (&rest["loaded"], &rest["already_loaded"]),
        (&2.into(), &4.into())
    );
    assert_eq!(loaded_names(stack, &site).await.len(), 6);
}

#[tokio::test]
async fn objects_of_a_versioned_bucket_are_the_same_whether_listed_or_announced() {
    let stack = Stack::shared();
    let site = stack.site("backfill-versions").await.unwrap();
    let versioning = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled);
    let request = site.s3.put_bucket_versioning().bucket(&site.bucket);
    let request = request.versioning_configuration(versioning.build());
    request.send().await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    put_notes(&site, &["a", "b"]).await;
    assert_eq!(backfill(&sluice, &site, &[])["loaded"], 2);
    // The queue announces the objects with their versions.
    wait_for_messages(&site, 3).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_eq!(loaded_names(stack, &site).await, ["a", "b"]);
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 2);
}

#[tokio::test]
async fn an_unloadable_object_fails_alone_and_changes_the_exit_code() {
    let (stack, site, sluice) = site_without_notifications("backfill-bad").await;
    put_notes(&site, &["a.jsonl", "folder/", "z.jsonl"]).await;
    site.put("empty", "").await.unwrap();
    site.put("b.jsonl.gz", "no gzip").await.unwrap();
    let (code, report) = run_backfill(&sluice, &site, "", &[]);
    assert_eq!(code, INCOMPLETE, "{report}");
    assert_eq!(
        (&report["loaded"], &report["failed"]),
        (&4.into(), &1.into()),
        "{report}"
    );
    assert_eq!(
        loaded_names(stack, &site).await,
        ["a.jsonl", "folder/", "z.jsonl"]
    );
    let failed = sluice.command(&["status", "--failed"]);
    let failed = String::from_utf8(failed.stdout).unwrap();
    assert!(failed.contains("b.jsonl.gz"), "{failed}");
}

#[tokio::test]
async fn a_backfill_that_cannot_start_fails_at_once() {
    let stack = Stack::shared();
    let site = stack.site("backfill-wrong").await.unwrap();
    let sluice = Sluice::new(stack, &site);
    let url = format!("s3://{}", site.bucket);
    assert!(backfill_error(&sluice, 1, &[&url]).contains("sluice migrate"));
    sluice.migrate();
    assert!(backfill_error(&sluice, 1, &["s3://no-such-bucket-here"]).contains("NoSuchBucket"));
    let unreachable = sluice.set("clickhouse.url", "http://127.0.0.1:1");
    assert!(backfill_error(&unreachable, 1, &[&url]).contains("no response from ClickHouse"));
}

#[tokio::test]
async fn a_stopped_backfill_exits_cleanly_and_resumes_when_run_again() {
    let (stack, site, sluice) = site_without_notifications("backfill-stop").await;
    let bundles = bundles(33, 40);
    let expected_rows = upload(&site, &bundles).await;
    let url = format!("s3://{}", site.bucket);
    let child = sluice.spawn(&["backfill", &url, "--max-rate", "2", "--output", "json"]);
    wait_for("the first object to be loaded", BOUND, async || {
        let loaded = loaded(&stack.clickhouse, &site.database).await;
        Ok((loaded > 0).then_some(()))
    })
    .await;
    terminate(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), INCOMPLETE, "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("run it again"), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["stopped"], true, "{report}");
    let first = report["loaded"].as_u64().unwrap();
    assert!((1..40).contains(&first), "{report}");
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, first);
    let open = format!(
        "SELECT count() FROM {0}.ledger_objects WHERE batch_id NOT IN \
         (SELECT batch_id FROM {0}.ledger_batches WHERE event IN ('loaded', 'released'))",
        site.database
    );
    assert_eq!(stack.clickhouse.scalar::<u64>(&open).await.unwrap(), 0);

    let rest = backfill(&sluice, &site, &[]);
    assert_eq!(rest["loaded"], 40 - first, "{rest}");
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
}

#[tokio::test]
async fn a_backfill_via_the_queue_is_loaded_by_the_workers() {
    let (stack, site, mut sluice) = site_without_notifications("backfill-queue").await;
    let bundles = bundles(34, 25);
    let expected_rows: ExpectedRows = upload(&site, &bundles).await;
    let one = format!("s3://{}/{}", site.bucket, bundles[0].key);
    assert!(sluice.command(&["backfill", &one]).status.success());
    let some = backfill(
        &sluice,
        &site,
        &["--via-queue", "--limit", "4", "--max-rate", "100"],
    );
    assert_eq!(
        (&some["announced"], &some["already_loaded"]),
        (&4.into(), &1.into()),
        "{some}"
    );
    // One of the messages is the test event.
    wait_for_messages(&site, 5).await;
    let report = backfill(&sluice, &site, &["--via-queue"]);
    assert_eq!(
        (&report["found"], &report["announced"]),
        (&25.into(), &24.into()),
        "{report}"
    );
    wait_for_messages(&site, 29).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    let nothing = backfill(&sluice, &site, &["--via-queue"]);
    assert_eq!(
        (&nothing["announced"], &nothing["already_loaded"]),
        (&0.into(), &25.into())
    );
}

// The runtime has several threads, since the proxies run while a command blocks one.
#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_waits_for_the_end_of_an_outage_of_s3_or_clickhouse() {
    let (stack, site, sluice) = site_without_notifications("backfill-outage").await;
    put_notes(&site, &["a", "b", "c"]).await;
    let s3 = Proxy::start(stack.aws.endpoint()).await.unwrap();
    let clickhouse = Proxy::start(stack.clickhouse.url()).await.unwrap();
    let sluice = sluice
        .environment("AWS_ENDPOINT_URL", s3.url())
        .set("clickhouse.url", clickhouse.url());
    // There are more failures than the SDK's own retries cover.
    s3.inject(Fault::Status(503), 7, |parts, _| {
        parts.uri.to_string().contains("list-type")
    });
    clickhouse.inject(Fault::Status(502), 4, |_, body| {
        String::from_utf8_lossy(body).contains("WITH claims AS")
    });
    assert_eq!(backfill(&sluice, &site, &[])["loaded"], 3);
    assert_eq!((s3.hits(), clickhouse.hits()), (7, 4));
    assert_eq!(loaded_names(stack, &site).await, ["a", "b", "c"]);
}

/// ClickHouse refuses lightweight deletes of a table with a projection.
#[tokio::test]
async fn forced_rows_are_replaced_in_a_table_with_a_projection() {
    let (stack, site, sluice) = site_without_notifications("backfill-projection").await;
    let bundles = bundles(37, 5);
    let expected_rows = upload(&site, &bundles).await;
    for kind in EventType::ALL {
        let table = format!("{}.{}", site.database, kind.table());
        for change in [
            "MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild'",
            "ADD PROJECTION objects (SELECT source_path, count() GROUP BY source_path)",
        ] {
            let alter = format!("ALTER TABLE {table} {change}");
            stack.clickhouse.execute(&alter).await.unwrap();
        }
    }
    assert_eq!(backfill(&sluice, &site, &[])["loaded"], 5);
    let report = backfill(&sluice, &site, &["--force"]);
    assert_eq!(report["replaced"], 5, "{report}");
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
}

/// The same lines are read differently, since one of them now exceeds the maximum length.
#[tokio::test]
async fn a_forced_backfill_replaces_rows_and_the_history_shows_it() {
    let (stack, site, sluice) = site_without_notifications("backfill-force").await;
    let long = line(&"x".repeat(5000));
    site.put("a", format!("{}{long}", line("short")))
        .await
        .unwrap();
    site.put("b", line("b")).await.unwrap();
    assert_eq!(backfill(&sluice, &site, &[])["loaded"], 2);
    site.put("new", line("new")).await.unwrap();

    let sluice = sluice.set("load.max_line_bytes", "1KiB");
    assert_eq!(
        backfill(&sluice, &site, &["--force", "--dry-run"])["to_load"],
        3
    );
    let report = backfill(&sluice, &site, &["--force"]);
    assert_eq!(
        (&report["loaded"], &report["replaced"]),
        (&3.into(), &2.into()),
        "{report}"
    );
    assert_eq!(loaded_names(stack, &site).await, ["b", "new", "short"]);
    let rejects = format!("SELECT count() FROM {}.rejected_lines", site.database);
    assert_eq!(stack.clickhouse.scalar::<u64>(&rejects).await.unwrap(), 1);
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 3);

    let output = sluice.command(&[
        "status",
        &format!("s3://{}/a", site.bucket),
        "--output",
        "json",
    ]);
    let history: Value = serde_json::from_slice(&output.stdout).unwrap();
    let version = &history["versions"][0];
    assert_eq!(version["loaded"], true, "{history}");
    assert_eq!(
        version["rows"],
        object!({"rejected": 1, "unmatched": 1}),
        "{history}"
    );
    let states = [0, 1].map(|at| version["batches"][at]["state"].as_str().unwrap());
    assert_eq!(states, ["loaded", "superseded"], "{history}");

    // Objects that were loaded more recently are skipped.
    let none = backfill(&sluice, &site, &["--force", "--loaded-before", "1h"]);
    assert_eq!(
        (&none["loaded"], &none["already_loaded"]),
        (&0.into(), &3.into()),
        "{none}"
    );
    let stderr = backfill_error(&sluice, 2, &["s3://bucket", "--force", "--via-queue"]);
    assert!(stderr.contains("omit --via-queue to reload"), "{stderr}");
}
