//! The log of a run: machine-readable, short during outages, and linked to the statements of
//! ClickHouse in both directions.

use serde_json::{Map, Value};
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::Generator;
use sluice_testkit::{Site, Stack, wait_for};

use crate::harness::{
    BOUND, Sluice, assert_rows, upload, wait_for_dead_letters, wait_until_drained,
};

type Line = Map<String, Value>;

/// Returns every line, parsed.
fn lines(log: &str) -> Vec<Line> {
    let parse =
        |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not an object: {line}"));
    log.lines().map(parse).collect()
}

fn text<'a>(line: &'a Line, field: &str) -> &'a str {
    let value = line.get(field).and_then(Value::as_str);
    value.unwrap_or_else(|| panic!("no {field}: {line:?}"))
}

fn number(line: &Line, field: &str) -> u64 {
    let value = line.get(field).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("no {field}: {line:?}"))
}

fn lines_with_message<'a>(lines: &'a [Line], what: &str) -> Vec<&'a Line> {
    let mut found: Vec<&Line> = lines.iter().collect();
    found.retain(|line| text(line, "message").starts_with(what));
    found
}

/// Returns how often the message was logged, including the repetitions that were only counted.
fn written_and_counted(lines: &[Line], what: &str) -> (u64, u64) {
    let repeats = lines_with_message(lines, "… and ").into_iter();
    let of_this = repeats.filter(|line| text(line, "message").contains(what));
    let counted = of_this.map(|line| number(line, "repeated")).sum();
    (lines_with_message(lines, what).len() as u64, counted)
}

fn failures(lines: &[Line]) -> usize {
    let is_failure = |line: &&Line| ["WARN", "ERROR"].contains(&text(line, "level"));
    lines.iter().filter(is_failure).count()
}

async fn site(name: &str, max_receive_count: u32) -> (&'static Stack, Site) {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives(name, max_receive_count).await;
    (stack, site.unwrap())
}

#[tokio::test]
async fn every_log_line_is_a_flat_object_and_is_linked_with_the_query_log() {
    let (stack, site) = site("json-log", 1).await;
    let mut sluice = Sluice::new(stack, &site).set("log.format", "json");
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(41).take(3).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice.start();
    wait_until_drained(&site).await;
    site.put("bad.jsonl.gz", "no gzip").await.unwrap();
    site.send("hello").await.unwrap();
    wait_for_dead_letters(&site, 2).await;
    assert_eq!(sluice.stop().await.code(), Some(0));

    let log = sluice.log();
    assert!(!log.contains('\u{1b}'), "{log}");
    let lines = lines(&log);
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            text(line, field);
        }
        let is_nested = |value: &Value| match value {
            Value::Object(_) | Value::Array(_) => true,
            Value::String(text) => serde_json::from_str::<Line>(text).is_ok(),
            _ => false,
        };
        assert!(!line.values().any(is_nested), "{line:?}");
    }

    let loaded = lines_with_message(&lines, "batch loaded");
    let sum = |field| loaded.iter().map(|line| number(line, field)).sum::<u64>();
    assert_eq!(sum("objects"), expected_rows.objects);
    assert_eq!(sum("rows"), expected_rows.statements());
    let bytes: usize = bundles.iter().map(|bundle| bundle.bytes.len()).sum();
    assert_eq!(sum("bytes"), bytes as u64);
    assert!(loaded.iter().all(|line| text(line, "read_by") == "s3"));

    let failed = lines_with_message(&lines, "object cannot be loaded");
    assert_eq!(failed.len(), 1, "{log}");
    let bad = format!("s3://{}/bad.jsonl.gz", site.bucket);
    assert_eq!(text(failed[0], "object"), bad);
    assert_eq!(text(failed[0], "class"), "unloadable");
    assert!(text(failed[0], "error").contains("bad.jsonl.gz"), "{log}");
    let malformed = lines_with_message(&lines, "malformed message");
    assert_eq!(malformed.len(), 1, "{log}");
    assert!(!text(malformed[0], "message.id").is_empty());
    assert_eq!(failures(&lines), 2, "{log}");

    stack.clickhouse.execute("SYSTEM FLUSH LOGS").await.unwrap();
    let batch = text(loaded[0], "batch.id");
    // The line leads to the statements, and the comment of each statement leads back to the batch.
    let inserts = stack
        .clickhouse
        .rows(&format!(
            "SELECT log_comment FROM system.query_log WHERE type = 'QueryFinish' \
             AND startsWith(query_id, '{batch}-1-') AND query_kind = 'Insert'"
        ))
        .await
        .unwrap();
    assert_eq!(inserts.len(), 1, "{inserts:?}");
    let comment = inserts[0]["log_comment"].as_str().unwrap();
    assert!(
        comment.starts_with(&format!("sluice batch {batch}")),
        "{comment}"
    );
    let tables = stack
        .clickhouse
        .query(&format!(
            "SELECT DISTINCT replaceOne(arrayJoin(tables), '{database}.', '') AS written \
             FROM system.query_log WHERE type = 'QueryFinish' AND query_kind = 'Insert' \
             AND startsWith(log_comment, 'sluice batch {batch}') \
             AND written IN ('ledger_objects', 'ledger_batches', 'object_rows') ORDER BY written",
            database = site.database,
        ))
        .await
        .unwrap();
    assert_eq!(tables, "ledger_batches\nledger_objects\nobject_rows\n");
    let anonymous = format!(
        "SELECT count() FROM system.query_log WHERE startsWith(http_user_agent, 'sluice/') \
         AND has(databases, '{}') AND is_initial_query AND NOT startsWith(log_comment, 'sluice')",
        site.database
    );
    let anonymous: u64 = stack.clickhouse.scalar(&anonymous).await.unwrap();
    assert_eq!(anonymous, 0);
}

/// Lines have the fields even if only failures are logged.
#[tokio::test]
async fn a_failure_names_its_batch_at_every_log_level() {
    let (stack, site) = site("warn-log", 5).await;
    let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.url", proxy.url())
        .set("log.format", "json")
        .set("log.level", "warn");
    Sluice::new(stack, &site).migrate();
    proxy.inject(Fault::Status(503), 1, |_, body| {
        String::from_utf8_lossy(body).contains(" s3(")
    });
    let expected_rows = upload(&site, &[Generator::new(42).bundle()]).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    let log = sluice.log();
    let lines = lines(&log);
    let failed = lines_with_message(&lines, "a statement failed");
    assert_eq!(failed.len(), 1, "{log}");
    let query_id = text(failed[0], "query_id");
    assert!(
        query_id.starts_with(text(failed[0], "batch.id")),
        "{query_id}"
    );
    assert!(text(failed[0], "error").contains("injected"), "{log}");
}

#[tokio::test]
async fn outages_log_few_lines_and_count_every_failure() {
    let (stack, site) = site("flood", 20).await;
    let clickhouse = Proxy::start(stack.clickhouse.url()).await.unwrap();
    let sqs = Proxy::start(stack.aws.endpoint()).await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.url", clickhouse.url())
        .environment("AWS_ENDPOINT_URL", sqs.url())
        .set("batch.max_objects", 1)
        .set("load.concurrency", 20)
        .set("log.format", "json");
    Sluice::new(stack, &site).migrate();
    // A proxy in front of ClickHouse refuses only inserts, and too rarely for a load to search for
    // the object at fault: each load retries.
    clickhouse.inject(Fault::Status(503), 40, |_, body| {
        String::from_utf8_lossy(body).contains(" s3(")
    });
    let bundles: Vec<_> = Generator::new(43).sizes(1..=2).take(20).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice.start();
    let wait_for_hits = async |proxy: &Proxy, count| {
        wait_for("requests to fail", BOUND, async || {
            Ok((proxy.hits() >= count).then_some(()))
        })
        .await;
    };
    wait_for_hits(&clickhouse, 20).await;
    sqs.inject(Fault::Status(503), usize::MAX, |_, _| true);
    wait_for_hits(&sqs, 20).await;
    wait_for_hits(&clickhouse, 40).await;
    sqs.heal();
    wait_until_drained(&site).await;
    assert_eq!(sluice.stop().await.code(), Some(0));

    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    let log = sluice.log();
    let lines = lines(&log);
    let (written, counted) = written_and_counted(&lines, "a statement failed");
    assert_eq!(written + counted, clickhouse.hits() as u64, "{log}");
    assert!(failures(&lines) <= 60, "{log}");
    assert_eq!(
        lines_with_message(&lines, "batch loaded").len() as u64,
        expected_rows.objects
    );
}

#[tokio::test]
async fn hundreds_of_broken_objects_log_few_lines_and_each_is_recorded() {
    const OBJECTS: u64 = 200;
    let (stack, site) = site("broken-many", 2).await;
    let mut sluice = Sluice::new(stack, &site)
        .set("load.fallback", "never")
        .set("log.format", "json");
    sluice.migrate();
    for number in 0..OBJECTS {
        // A key that ClickHouse cannot address.
        site.put(&format!("broken-*-{number}"), "{}").await.unwrap();
    }
    sluice.start();
    wait_for_dead_letters(&site, OBJECTS).await;
    assert_eq!(sluice.stop().await.code(), Some(0));

    let log = sluice.log();
    let lines = lines(&log);
    assert!(failures(&lines) <= 60, "{log}");
    let count = |what: &str| format!("SELECT {what} FROM {}.ledger_failures", site.database);
    let objects: u64 = stack
        .clickhouse
        .scalar(&count("uniqExact(key)"))
        .await
        .unwrap();
    assert_eq!(objects, OBJECTS);
    let recorded: u64 = stack.clickhouse.scalar(&count("count()")).await.unwrap();
    let (written, counted) = written_and_counted(&lines, "object cannot be loaded");
    assert_eq!(written + counted, recorded, "{log}");
    assert!(recorded >= 2 * OBJECTS, "{recorded}");
}
