//! From the PUT of an object to its rows, with the real binary, S3, SQS and ClickHouse.

use std::time::Duration;

use anyhow::ensure;
use std::slice;

use sluice_testkit::exact::keep_duplicates;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{ExpectedRows, Generator, gzip};
use sluice_testkit::{Site, SiteOptions, Stack, wait_for};

use crate::harness::{
    BOUND, Sluice, announcement, assert_rows, line, loaded, loaded_names, upload,
    wait_for_dead_letters, wait_until_drained,
};

/// Creates a site with its tables, and starts its daemon.
async fn running(name: &str) -> (&'static Stack, Site, Sluice) {
    running_with(name, SiteOptions::default()).await
}

async fn running_with(name: &str, options: SiteOptions) -> (&'static Stack, Site, Sluice) {
    let stack = Stack::shared();
    let site = stack.site_with(name, options).await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    sluice.start();
    (stack, site, sluice)
}

async fn check(stack: &Stack, site: &Site, expected_rows: &ExpectedRows) {
    assert_rows(&stack.clickhouse, &site.database, expected_rows).await;
}

#[tokio::test]
async fn every_line_reaches_its_table_and_health_and_metrics_are_exposed() {
    let (stack, site, mut sluice) = running("every-line").await;
    let bundles: Vec<_> = Generator::new(1).take(120).collect();
    let expected_rows = upload(&site, &bundles).await;
    wait_until_drained(&site).await;
    check(stack, &site, &expected_rows).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);

    assert_eq!(sluice.get("/healthz").await.unwrap(), (200, "ok\n".into()));
    assert_eq!(sluice.get("/readyz").await.unwrap().0, 200);
    assert_eq!(sluice.get("/nothing").await.unwrap().0, 404);
    // The test event adds one message to those of the objects.
    let received = sluice.metric("sluice_sqs_messages_received_total").await;
    assert_eq!(received.unwrap(), 121.0);
    let total = sluice.metric("sluice_rows_total").await.unwrap();
    assert_eq!(total as u64, expected_rows.statements());
    let objects = sluice.metric("sluice_objects_total").await.unwrap();
    assert_eq!(objects as u64, expected_rows.objects);
    assert_eq!(sluice.stop().await.code(), Some(0));
}

#[tokio::test]
async fn a_repeated_statement_in_an_object_is_two_rows_until_they_are_merged() {
    let (stack, site, _sluice) = running("twice-in-one").await;
    keep_duplicates(slice::from_ref(&stack.clickhouse), &site)
        .await
        .unwrap();
    let statement = r#"{"id":"1","timestamp":"2026-07-14T12:00:00Z","verb":{"id":"https://w3id.org/xapi/video/verbs/played"}}"#;
    let twice = format!("{statement}\n{statement}\n");
    site.put("twice.jsonl", twice).await.unwrap();
    wait_until_drained(&site).await;
    let count = format!("SELECT count() FROM {}.video_events", site.database);
    let rows: u64 = stack.clickhouse.scalar(&count).await.unwrap();
    let merged: u64 = stack
        .clickhouse
        .scalar(&format!("{count} FINAL"))
        .await
        .unwrap();
    assert_eq!((rows, merged), (2, 1));
}

#[tokio::test]
async fn an_object_that_is_announced_again_is_not_loaded_again() {
    let (stack, site, sluice) = running("again").await;
    let bundles: Vec<_> = Generator::new(2).take(5).collect();
    let expected_rows = upload(&site, &bundles).await;
    wait_until_drained(&site).await;
    check(stack, &site, &expected_rows).await;
    // The same content is the same object, whoever announces it.
    upload(&site, &bundles).await;
    for bundle in &bundles {
        let etag = site.put(&bundle.key, bundle.bytes.clone()).await.unwrap();
        site.send(&announcement(&site, &bundle.key, &etag))
            .await
            .unwrap();
    }
    wait_for("the announcements to be received", BOUND, async || {
        let received = sluice.metric("sluice_sqs_messages_received_total").await?;
        ensure!(received >= 21.0, "{received}");
        Ok(Some(()))
    })
    .await;
    wait_until_drained(&site).await;
    check(stack, &site, &expected_rows).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn a_key_with_new_content_is_a_new_object() {
    let (stack, site, _sluice) = running("overwritten").await;
    for name in ["one", "two", "three"] {
        site.put("key.jsonl", line(name)).await.unwrap();
        wait_until_drained(&site).await;
    }
    assert_eq!(loaded_names(stack, &site).await, ["one", "three", "two"]);
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 3);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn a_missing_object_fails_alone() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("missing", 2).await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(3).take(50).collect();
    let expected_rows = upload(&site, &bundles).await;
    let missing = "section/1/video/never-there.jsonl";
    let etag = "d41d8cd98f00b204e9800998ecf8427e";
    site.send(&announcement(&site, missing, etag))
        .await
        .unwrap();
    sluice.start();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    check(stack, &site, &expected_rows).await;
    // Every existing object was received once, and the missing one twice. The test event adds one.
    let received = sluice.metric("sluice_sqs_messages_received_total").await;
    assert_eq!(received.unwrap(), 53.0);
    assert_failure_is_recorded(stack, &site, missing, "missing").await;
    assert_nothing_left_but_dead_letters(&site, 1).await;
}

async fn assert_nothing_left_but_dead_letters(site: &Site, messages: u64) {
    assert_eq!(site.dlq_depth().await.unwrap(), messages);
    assert_eq!(site.queue_depth().await.unwrap(), (0, 0));
}

async fn assert_failure_is_recorded(stack: &Stack, site: &Site, key: &str, class: &str) {
    let sql = format!(
        "SELECT DISTINCT key, class, reason != '' FROM {}.ledger_failures",
        site.database
    );
    let failures = stack.clickhouse.query(&sql).await.unwrap();
    assert_eq!(failures, format!("{key}\t{class}\t1\n"));
}

#[tokio::test]
async fn a_truncated_gzip_fails_alone() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("truncated", 2).await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(4).take(12).collect();
    let expected_rows = upload(&site, &bundles).await;
    let whole = gzip(line("truncated").repeat(2000).as_bytes());
    let key = "section/1/video/truncated.jsonl.gz";
    site.put(key, &whole[..whole.len() / 2]).await.unwrap();
    sluice.start();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    check(stack, &site, &expected_rows).await;
    assert_failure_is_recorded(stack, &site, key, "unloadable").await;
    assert_nothing_left_but_dead_letters(&site, 1).await;
}

#[tokio::test]
async fn a_failed_object_is_loaded_once_it_is_uploaded_or_announced_again() {
    let options = SiteOptions {
        max_receive_count: 1,
        ..SiteOptions::default()
    };
    let (stack, site, _sluice) = running_with("failed-before", options).await;
    let whole = gzip(line("whole").repeat(2000).as_bytes());
    site.put("a.jsonl.gz", &whole[..whole.len() / 2])
        .await
        .unwrap();
    // This object has the etag that c.jsonl will have.
    let etag = site.put("b.jsonl", line("late")).await.unwrap();
    let lost = announcement(&site, "c.jsonl", &etag);
    site.send(&lost).await.unwrap();
    wait_for_dead_letters(&site, 2).await;

    // One object gets other content. The missing one is created, and announced by the same message
    // again.
    site.put("a.jsonl.gz", gzip(line("fixed").as_bytes()))
        .await
        .unwrap();
    site.put("c.jsonl", line("late")).await.unwrap();
    site.send(&lost).await.unwrap();
    wait_until_drained(&site).await;
    assert_eq!(loaded_names(stack, &site).await, ["fixed", "late", "late"]);
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 3);
}

#[tokio::test]
async fn empty_objects_are_loaded_without_rows() {
    let (stack, site, _sluice) = running("empty").await;
    site.put("nothing.jsonl.gz", Vec::new()).await.unwrap();
    site.put("zipped-nothing.jsonl.gz", gzip(b""))
        .await
        .unwrap();
    site.put("nothing.jsonl", Vec::new()).await.unwrap();
    site.put("blank.jsonl", "\n\n\n").await.unwrap();
    site.put("something.jsonl", line("something"))
        .await
        .unwrap();
    wait_until_drained(&site).await;
    assert_eq!(loaded_names(stack, &site).await, ["something"]);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 5);
}

#[tokio::test]
async fn loading_does_not_list_the_bucket() {
    let stack = Stack::shared();
    let site = stack.site("listed").await.unwrap();
    let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
    // This fault is harmless, and only counts.
    let count = Fault::Delay(Duration::ZERO);
    proxy.inject(count, usize::MAX, |request, _| {
        let query = request.uri.query().unwrap_or_default();
        query.contains("list-type") || query.contains("prefix")
    });
    Sluice::new(stack, &site).migrate();
    let mut sluice = Sluice::new(stack, &site).set("s3.clickhouse_endpoint", proxy.url());
    let bundles: Vec<_> = Generator::new(8).take(40).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice.start();
    wait_until_drained(&site).await;
    check(stack, &site, &expected_rows).await;
    assert_eq!(proxy.hits(), 0);
    // A listing would have been counted.
    let list = format!(
        "SELECT count() FROM s3('{}/{}/*', 'test', 'test', 'One')",
        proxy.url(),
        site.bucket
    );
    stack.clickhouse.query(&list).await.unwrap();
    assert!(proxy.hits() > 0);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn keys_with_special_characters_are_read_literally() {
    let (stack, site, _sluice) = running("keys").await;
    let mut keys = [
        "plain.jsonl",
        "a b c.jsonl",
        "a+b.jsonl",
        "a%41.jsonl",
        "a%2Fb.jsonl",
        "a#b.jsonl",
        "a&b=c;d.jsonl",
        "é.jsonl",
        "😀.jsonl",
        "year=2026/month=07/a=b.jsonl",
        "it's \"quoted\".jsonl",
        "back\\slash.jsonl",
        "(round) [square].jsonl",
        "a:b@c$d!e~f|g<h>i^j`k.jsonl",
        "ends with space .jsonl",
        "no-extension",
        "1..3",
        "...",
        // ClickHouse interprets these as syntax, so each is read alone.
        "a,b.jsonl",
        "open{.jsonl",
        "close}.jsonl",
        "a,}b{.jsonl",
    ];
    for key in keys {
        let note = serde_json::json!({"note": key}).to_string();
        site.put(key, note).await.unwrap();
    }
    wait_until_drained(&site).await;
    keys.sort_unstable();
    let sql = format!(
        "SELECT JSONExtractString(raw, 'note') AS note, source_path \
         FROM {}.unmatched_statements ORDER BY note",
        site.database
    );
    let found = stack.clickhouse.rows(&sql).await.unwrap();
    let found: Vec<&str> = found
        .iter()
        .filter_map(|row| {
            let note = row["note"].as_str()?;
            let path = row["source_path"].as_str()?;
            assert_eq!(path, format!("{}/{note}", site.bucket));
            Some(note)
        })
        .collect();
    assert_eq!(found, keys);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn without_fallback_a_key_that_clickhouse_cannot_address_becomes_a_dead_letter() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("unnameable", 2).await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("load.fallback", "never");
    sluice.migrate();
    sluice.start();
    // A pattern would match these keys.
    for key in ["a1.jsonl", "b.jsonl", "c1"] {
        site.put(key, line(key)).await.unwrap();
    }
    let odd = [
        "a*.jsonl",
        "a?.jsonl",
        "{b}.jsonl",
        "{b,d}.jsonl",
        "c{1..3}",
        "e{1..3}",
        "f//g",
    ];
    for key in odd {
        site.put(key, line(key)).await.unwrap();
    }
    wait_for_dead_letters(&site, odd.len() as u64).await;
    wait_until_drained(&site).await;
    assert_eq!(
        loaded_names(stack, &site).await,
        ["a1.jsonl", "b.jsonl", "c1"]
    );
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 3);
    let sql = format!(
        "SELECT uniqExact(key) FROM {}.ledger_failures WHERE class = 'unnameable'",
        site.database
    );
    let failed: usize = stack.clickhouse.scalar(&sql).await.unwrap();
    assert_eq!(failed, odd.len());
}

#[tokio::test]
async fn every_record_of_a_message_is_loaded() {
    let (stack, site, _sluice) = running("records").await;
    wait_until_drained(&site).await;
    let mut records = Vec::new();
    for name in ["a", "b", "c"] {
        let key = format!("{name}.jsonl");
        let etag = site.put(&key, line(name)).await.unwrap();
        let body = announcement(&site, &key, &etag);
        let mut body: serde_json::Value = serde_json::from_str(&body).unwrap();
        records.append(body["Records"].as_array_mut().unwrap());
    }
    let body = serde_json::json!({"Records": records}).to_string();
    site.send(&body).await.unwrap();
    wait_until_drained(&site).await;
    assert_eq!(loaded_names(stack, &site).await, ["a", "b", "c"]);
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 3);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn malformed_messages_become_dead_letters() {
    let options = SiteOptions {
        max_receive_count: 2,
        ..SiteOptions::default()
    };
    let (stack, site, mut sluice) = running_with("odd", options).await;
    site.send("not a notification").await.unwrap();
    site.send("{\"Records\":[{\"eventName\":\"ObjectRemoved:Delete\"}]}")
        .await
        .unwrap();
    site.put("good.jsonl", line("good")).await.unwrap();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    assert_eq!(loaded_names(stack, &site).await, ["good"]);
    sluice.assert_running();
}

#[tokio::test]
async fn a_stop_loses_nothing_and_a_second_start_loads_the_rest() {
    let (stack, site, mut sluice) = running("stopped").await;
    let bundles: Vec<_> = Generator::new(5).take(60).collect();
    let mut expected_rows = upload(&site, &bundles[..30]).await;
    wait_for("the first rows", BOUND, async || {
        let loaded = loaded(&stack.clickhouse, &site.database).await;
        Ok((loaded > 0).then_some(()))
    })
    .await;
    expected_rows += &upload(&site, &bundles[30..]).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    // No message is left in flight, so nothing has to wait for a visibility timeout.
    let (_, in_flight) = site.queue_depth().await.unwrap();
    assert_eq!(in_flight, 0);
    sluice.start();
    wait_until_drained(&site).await;
    check(stack, &site, &expected_rows).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn a_worker_that_is_killed_repeatedly_loads_every_row_once() {
    let options = SiteOptions {
        max_receive_count: 20,
        ..SiteOptions::default()
    };
    let (stack, site, mut sluice) = running_with("killed", options).await;
    let bundles: Vec<_> = Generator::new(6).take(90).collect();
    let mut expected_rows = ExpectedRows::default();
    for (round, bundles) in bundles.chunks(30).enumerate() {
        expected_rows += &upload(&site, bundles).await;
        let claimed = format!(
            "SELECT uniqExact(batch_id) FROM {}.ledger_objects",
            site.database
        );
        wait_for("a batch to be claimed", BOUND, async || {
            let claimed: usize = stack.clickhouse.scalar(&claimed).await?;
            Ok((claimed > round).then_some(()))
        })
        .await;
        sluice.kill();
        sluice.start();
    }
    wait_until_drained(&site).await;
    check(stack, &site, &expected_rows).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn two_daemons_share_a_queue_and_load_every_row_once() {
    let (stack, site, _one) = running("shared").await;
    let mut two = Sluice::new(stack, &site).set("batch.max_objects", 7);
    two.start();
    let bundles: Vec<_> = Generator::new(7).take(80).collect();
    let expected_rows = upload(&site, &bundles).await;
    // The objects are announced again, so that both daemons may have the same one at a time.
    upload(&site, &bundles[60..]).await;
    wait_until_drained(&site).await;
    check(stack, &site, &expected_rows).await;
    assert_eq!(two.stop().await.code(), Some(0));
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}
