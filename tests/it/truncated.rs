//! Truncated objects, which some readers accept as complete.

use std::collections::BTreeMap;

use sluice::clickhouse::replicas::Topology;
use sluice::clickhouse::{Access, Warehouse};
use sluice::config::{Secret, SecretSource};
use sluice::load::truncation::{Truncation, Truncations};
use sluice::object::Compression;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, line, wait_for_dead_letters, wait_until_drained};

/// A complete object of 3,000 page views.
const WHOLE: (&str, &[u8]) = (
    "whole.jsonl.zst",
    include_bytes!("../fixtures/truncated/whole.jsonl.zst"),
);
/// Objects that are cut in the middle of a block, after a header, and in the second of two frames.
const CUT: [(&str, &[u8]); 4] = [
    (
        "half.jsonl.lz4",
        include_bytes!("../fixtures/truncated/half.jsonl.lz4"),
    ),
    (
        "half.jsonl.zst",
        include_bytes!("../fixtures/truncated/half.jsonl.zst"),
    ),
    (
        "header-only.jsonl.zst",
        include_bytes!("../fixtures/truncated/header-only.jsonl.zst"),
    ),
    (
        "second-frame-cut.jsonl.zst",
        include_bytes!("../fixtures/truncated/second-frame-cut.jsonl.zst"),
    ),
];

/// Uploads all objects below one prefix, so that one batch reads them.
async fn put_all(site: &Site) {
    for (name, bytes) in CUT.into_iter().chain([WHOLE]) {
        site.put(&format!("section/7/{name}"), bytes.to_vec())
            .await
            .unwrap();
    }
    site.put("section/7/plain.jsonl", line("plain"))
        .await
        .unwrap();
    // An empty object is not a frame, so it cannot be truncated.
    site.put("section/7/empty.jsonl.zst", "").await.unwrap();
}

async fn site(stack: &Stack, name: &str) -> Site {
    stack.site_with_max_receives(name, 1).await.unwrap()
}

/// Returns the class and the reason of each failure by the name of its object.
async fn failures(stack: &Stack, site: &Site) -> BTreeMap<String, (String, String)> {
    let sql = format!(
        "SELECT replaceOne(key, 'section/7/', '') AS name, any(class) AS class, \
         any(reason) AS reason FROM {}.ledger_failures GROUP BY key",
        site.database
    );
    let rows = stack.clickhouse.rows(&sql).await.unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    rows.iter()
        .map(|row| {
            (
                text(&row["name"]),
                (text(&row["class"]), text(&row["reason"])),
            )
        })
        .collect()
}

/// Returns the number of page views by the name of their object.
async fn page_views(stack: &Stack, site: &Site) -> BTreeMap<String, u64> {
    let sql = format!(
        "SELECT splitByChar('/', toString(source_path))[-1] AS name, toUInt64(sum(rows)) AS count \
         FROM {0}.object_rows WHERE kind = 'page_viewed' AND batch_id IN (\
           SELECT batch_id FROM {0}.ledger_batches WHERE event = 'loaded') GROUP BY name",
        site.database
    );
    let rows = stack.clickhouse.rows(&sql).await.unwrap();
    let count = |row: &serde_json::Value| {
        let name = row["name"].as_str().unwrap().to_owned();
        (name, row["count"].as_u64().unwrap())
    };
    rows.iter().map(count).collect()
}

async fn rows_of_page_views(stack: &Stack, site: &Site) -> String {
    let sql = format!("SELECT count() FROM {}.page_viewed_events", site.database);
    stack
        .clickhouse
        .query(&sql)
        .await
        .unwrap()
        .trim()
        .to_owned()
}

/// Asserts that each truncated object fails alone and leaves no rows, and that the others are
/// loaded.
async fn assert_truncated_fail_alone(fallback: &str, stream_below: &str) {
    let stack = Stack::shared();
    let site = site(stack, "truncated-objects").await;
    let mut sluice = Sluice::new(stack, &site)
        .set("load.fallback", fallback)
        .set("load.stream_below", stream_below);
    sluice.migrate();
    put_all(&site).await;
    sluice.start();
    wait_for_dead_letters(&site, 4).await;
    wait_until_drained(&site).await;
    let failures = failures(stack, &site).await;
    let names: Vec<&str> = failures.keys().map(String::as_str).collect();
    assert_eq!(names, CUT.map(|(name, _)| name), "{failures:#?}");
    for (class, reason) in failures.values() {
        assert_eq!(class, "unloadable", "{failures:#?}");
        if fallback != "always" {
            assert!(reason.contains("cut short"), "{failures:#?}");
        }
    }
    let whole = BTreeMap::from([(WHOLE.0.to_owned(), 3000)]);
    assert_eq!(page_views(stack, &site).await, whole);
    assert_eq!(rows_of_page_views(stack, &site).await, "3000");
}

#[tokio::test]
async fn truncated_objects_fail_alone_and_leave_no_rows() {
    assert_truncated_fail_alone("auto", "0B").await;
}

/// A proof is not a fallback, so it takes place without one.
#[tokio::test]
async fn truncated_objects_fail_without_a_fallback_too() {
    assert_truncated_fail_alone("never", "0B").await;
}

#[tokio::test]
async fn truncated_objects_that_are_streamed_fail_too() {
    assert_truncated_fail_alone("always", "0B").await;
    assert_truncated_fail_alone("auto", "1MiB").await;
}

/// A worker that is denied access cannot prove anything. The runtime has several threads, since the
/// proxy runs while `check` blocks one.
#[tokio::test(flavor = "multi_thread")]
async fn objects_that_nobody_can_prove_whole_fail_unless_that_is_accepted() {
    let stack = Stack::shared();
    let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
    proxy.inject(Fault::Status(403), usize::MAX, |_, _| true);
    let site = site(stack, "unproven-objects").await;
    let mut sluice = Sluice::new(stack, &site).environment("AWS_ENDPOINT_URL_S3", proxy.url());
    sluice.migrate();
    put_all(&site).await;
    sluice.start();
    wait_for_dead_letters(&site, 5).await;
    wait_until_drained(&site).await;
    let failures = failures(stack, &site).await;
    assert_eq!(failures.len(), 5, "{failures:#?}");
    for (class, reason) in failures.values() {
        assert_eq!(class, "unproven", "{failures:#?}");
        for advice in ["s3:GetObject", "gzip", "load.accept_unproven"] {
            assert!(reason.contains(advice), "{reason}");
        }
    }
    assert_eq!(rows_of_page_views(stack, &site).await, "0");
    let checked = sluice.command(&["check", "--bucket", &site.bucket]);
    let checked = String::from_utf8(checked.stdout).unwrap();
    let check = checked.lines().find(|line| line.contains("whole objects"));
    assert!(check.is_some_and(|it| it.starts_with("warn")), "{checked}");
}

#[tokio::test]
async fn objects_accepted_without_proof_are_recorded_as_such() {
    let stack = Stack::shared();
    let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
    proxy.inject(Fault::Status(403), usize::MAX, |_, _| true);
    let site = site(stack, "accepted").await;
    let mut sluice = Sluice::new(stack, &site)
        .set("load.accept_unproven", r#"["zst", "lz4"]"#)
        .environment("AWS_ENDPOINT_URL_S3", proxy.url());
    sluice.migrate();
    put_all(&site).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
    assert_eq!(page_views(stack, &site).await[WHOLE.0], 3000);
    for (name, _) in CUT.into_iter().chain([WHOLE]) {
        let object = format!("s3://{}/section/7/{name}", site.bucket);
        let history = sluice.command(&["status", &object]);
        let history = String::from_utf8(history.stdout).unwrap();
        assert!(history.contains("not proven to be whole"), "{history}");
    }
}

/// A server of another version may behave differently. This table and docs/guarantees.md then have
/// to change.
#[tokio::test]
async fn the_compressions_whose_truncation_is_noticed_are_known() {
    let stack = Stack::shared();
    let access = Access {
        url: stack.clickhouse.url().to_owned(),
        user: "default".to_owned(),
        password: SecretSource::Given(Secret::new("")),
        secrets: Vec::new(),
        database: "default".to_owned(),
        connect_timeout: std::time::Duration::from_secs(10),
        query_timeout: std::time::Duration::from_secs(60),
        ca_file: None,
        cluster: None,
        topology: Topology::Auto,
        accept_unproven: false,
    };
    let warehouse = Warehouse::connect(&access).unwrap();
    let truncations = Truncations::default();
    for (compression, expected) in [
        (Compression::Gzip, Truncation::Noticed),
        (Compression::Zstd, Truncation::Silent),
        (Compression::Lz4, Truncation::Silent),
        (Compression::Brotli, Truncation::Noticed),
        // The embedded engine is built without bzip2.
        (Compression::Bzip2, Truncation::Unreadable),
        (Compression::Xz, Truncation::Noticed),
        (Compression::Snappy, Truncation::Noticed),
        (Compression::Deflate, Truncation::Noticed),
    ] {
        let found = truncations.ask(compression, &warehouse).await.unwrap();
        assert_eq!(found, expected, "{compression:?}");
        assert_eq!(truncations.known(compression), Some(expected));
    }
}
