//! Declared paths with typing errors. Their columns stay empty, which every command that reads
//! their rows reports.

use std::path::Path;

use serde_json::{Value, json};
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::{Site, Stack};
use tempfile::TempDir;

use crate::harness::{Sluice, wait_until_drained};

const WARNING: &str = "some columns have no value in any loaded row";

/// Declares clicks, taps and views. The path of the column `rows` of clicks is mistyped. That of
/// `shop` is correct, but no click has a value there. The columns of taps all have values, and
/// views have only a required one.
fn declare(directory: &Path) {
    for (name, more) in [
        (
            "click",
            "- {name: shop, type: Nullable(Float64), path: [shop]}\n\
             - {name: rows, type: UInt32, path: [ruws]}\n",
        ),
        ("tap", ""),
    ] {
        let text = format!(
            "table: {name}s\nrule: {{path: [verb], equals: {name}}}\norder_by: [id]\ncolumns:\n\
             - {{name: id, type: String, path: [id], identifies: true}}\n\
             - {{name: n, type: Int32, path: [n]}}\n\
             - {{name: at, type: \"DateTime64(3, 'UTC')\", path: [at]}}\n{more}"
        );
        std::fs::write(directory.join(format!("{name}.yaml")), text).unwrap();
    }
    let view = "table: views\nrule: {path: [verb], equals: view}\norder_by: [id]\ncolumns:\n\
                - {name: id, type: String, path: [id], required: true}\n";
    std::fs::write(directory.join("view.yaml"), view).unwrap();
}

async fn site(name: &str) -> (&'static Stack, Site, TempDir) {
    let stack = Stack::shared();
    let site = stack.site(name).await.unwrap();
    let types = tempfile::tempdir().unwrap();
    declare(types.path());
    (stack, site, types)
}

fn worker(stack: &Stack, site: &Site, types: &TempDir) -> Sluice {
    Sluice::new(stack, site).set("event_types.dir", types.path().display())
}

/// Returns clicks, taps and views. In all rows but the first of each, `n` and `at` have defaults.
fn lines(name: &str, count: usize) -> String {
    let of_verb = |verb: &'static str| {
        (0..count).map(move |number| {
            let (n, at) = match number {
                0 => (7, "2026-07-14T08:00:00Z"),
                _ => (0, "never"),
            };
            let id = format!("{name}-{number}");
            json!({"verb": verb, "id": id, "n": n, "at": at, "rows": 5}).to_string() + "\n"
        })
    };
    let all = ["click", "tap", "view"].into_iter().flat_map(of_verb);
    all.collect()
}

/// Loads these lines in a batch of their own.
async fn load(site: &Site, name: &str, count: usize) {
    let key = format!("{name}.jsonl");
    site.put(&key, lines(name, count)).await.unwrap();
    wait_until_drained(site).await;
}

async fn rows(stack: &Stack, site: &Site, table: &str) -> u64 {
    let sql = format!("SELECT count() FROM {}.{table}", site.database);
    stack.clickhouse.scalar(&sql).await.unwrap()
}

/// Returns the result and detail of the check of the columns.
fn column_check(sluice: &Sluice) -> (String, String) {
    let output = sluice.command(&["check", "--output", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = document["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "columns");
    let check = check.unwrap_or_else(|| panic!("{document:#}"));
    let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
    (text("result"), text("detail"))
}

#[tokio::test]
async fn an_empty_column_is_logged_once_and_shown_by_check_and_preview() {
    let (stack, site, types) = site("empty-columns").await;
    let mut sluice = worker(stack, &site, &types).set("log.format", "json");
    sluice.migrate();
    sluice.start();
    load(&site, "a", 60).await;
    assert!(!sluice.log().contains(WARNING), "{}", sluice.log());
    assert_eq!(column_check(&sluice).0, "skip");
    for name in ["b", "c", "d"] {
        load(&site, name, 60).await;
    }
    assert_eq!(sluice.stop().await.code(), Some(0));

    let log = sluice.log();
    let warnings: Vec<Value> = log
        .lines()
        .filter(|line| line.contains(WARNING))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert_eq!(warnings[0]["level"], "WARN");
    assert_eq!(warnings[0]["event_type"], "click");
    assert_eq!(warnings[0]["table"], "clicks");
    assert_eq!(warnings[0]["columns"], "shop, rows");

    // Clicks are checked until there are enough of them, and taps once.
    stack.clickhouse.execute("SYSTEM FLUSH LOGS").await.unwrap();
    for (table, expected) in [("clicks", 2), ("taps", 1), ("views", 0)] {
        let checks = format!(
            "SELECT count() FROM system.query_log WHERE type = 'QueryFinish' \
             AND query_kind = 'Select' AND has(tables, '{}.{table}') \
             AND position(query, 'AS looked_at') > 0 AND position(query, 'WHERE batch_id') > 0",
            site.database
        );
        let checks: u64 = stack.clickhouse.scalar(&checks).await.unwrap();
        assert_eq!(checks, expected, "{table}");
    }

    let (result, detail) = column_check(&sluice);
    assert_eq!(result, "warn", "{detail}");
    assert!(detail.ends_with(": clicks (shop, rows)"), "{detail}");

    let url = format!("s3://{}/a.jsonl", site.bucket);
    let preview = |arguments: &[&str]| {
        let preview = [&["types", "preview", &url, "--lines", "1000"], arguments].concat();
        let output = sluice.command(&preview);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let previewed: Value = serde_json::from_str(&preview(&["--output", "json"])).unwrap();
    let expected = json!({"click": ["shop", "rows"], "tap": [], "view": []});
    assert_eq!(previewed["empty_columns"], expected);
    assert_eq!(previewed["click"].as_array().unwrap().len(), 60);
    let text = preview(&[]);
    let found: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("no value"))
        .collect();
    assert_eq!(found, ["  no value in any row: shop, rows"], "{text}");
}

#[tokio::test]
async fn a_failed_column_check_does_not_prevent_loading() {
    let (stack, site, types) = site("empty-unchecked").await;
    let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
    worker(stack, &site, &types).migrate();
    let mut sluice = worker(stack, &site, &types).set("clickhouse.url", proxy.url());
    proxy.inject(Fault::Status(503), usize::MAX, |_, body| {
        String::from_utf8_lossy(body).contains("AS looked_at")
    });
    sluice.start();
    load(&site, "a", 120).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    let log = sluice.log();
    assert!(!log.contains(WARNING) && !log.contains(" WARN "), "{log}");
    assert_eq!(proxy.hits(), 2, "{log}");
    assert_eq!(rows(stack, &site, "clicks").await, 120);
    assert_eq!(rows(stack, &site, "ledger_failures").await, 0);
}
