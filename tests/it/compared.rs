//! After every insert the tables are compared with the rows counted during it. Missing rows are
//! detected, and rows that merges have collapsed do not count as missing.

use std::time::Duration;

use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{Bundle, EventType, Generator, gzip};
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, assert_rows, line, loaded_names, upload, wait_until_drained};

async fn site(name: &str) -> (&'static Stack, Site, Sluice) {
    let stack = Stack::shared();
    let site = stack.site(name).await.unwrap();
    let sluice = Sluice::new(stack, &site);
    sluice.migrate();
    (stack, site, sluice)
}

/// Returns the name of the view that fills a table.
async fn view_of(stack: &Stack, site: &Site, table: &str) -> String {
    let sql = format!(
        "SELECT name FROM system.tables WHERE database = '{}' AND endsWith(name, '_to_{table}')",
        site.database
    );
    stack.clickhouse.scalar(&sql).await.unwrap()
}

async fn events(stack: &Stack, site: &Site, event: &str) -> u64 {
    let sql = format!(
        "SELECT count() FROM {}.ledger_batches WHERE event = '{event}'",
        site.database
    );
    stack.clickhouse.scalar(&sql).await.unwrap()
}

#[tokio::test]
async fn a_missing_view_pauses_intake_until_it_is_back() {
    for table in ["video_events", "object_rows"] {
        let (stack, site, mut sluice) = site("view-missing").await;
        let view = view_of(stack, &site, table).await;
        let drop = format!("DROP VIEW {}.{view} SYNC", site.database);
        stack.clickhouse.execute(&drop).await.unwrap();
        let bundles: Vec<_> = Generator::new(81).take(10).collect();
        let expected_rows = upload(&site, &bundles).await;
        assert!(expected_rows.rows(EventType::Video) > 0);
        sluice.start();
        let why = sluice.wait_until_not_ready(&view).await;
        assert!(why.contains("sluice migrate"), "{why}");
        assert_eq!(events(stack, &site, "loaded").await, 0);

        sluice.migrate();
        wait_until_drained(&site).await;
        assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
        assert_eq!(site.dlq_depth().await.unwrap(), 0);
    }
}

/// A part of the statement that counts the rows of a batch in its tables.
const IN_TABLE: &[u8] = b"count() AS rows, 0 AS blocks";

#[tokio::test]
async fn rows_that_merges_collapse_are_not_reported_missing() {
    let (stack, site, sluice) = site("merged").await;
    let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
    // The delay leaves time for merges between an insert and its comparison.
    let compares = |sql: &[u8]| sql.windows(IN_TABLE.len()).any(|part| part == IN_TABLE);
    let delay = Fault::Delay(Duration::from_secs(2));
    proxy.inject(delay, usize::MAX, move |_, sql| compares(sql));
    let mut sluice = sluice
        .set("clickhouse.url", proxy.url())
        .set("batch.max_objects", 6)
        .set("load.concurrency", 4);
    let database = site.database.clone();
    let merges = tokio::spawn(async move {
        loop {
            for kind in EventType::ALL {
                let table = kind.table();
                let merge = format!("OPTIMIZE TABLE {database}.{table} FINAL");
                stack.clickhouse.execute(&merge).await.unwrap();
            }
        }
    });
    // Each object has a twin with the same events, in the same batch or in another.
    let bundles: Vec<_> = Generator::new(82).take(12).collect();
    let twin = |(number, bundle): (usize, &Bundle)| Bundle {
        key: format!("twin-{number}/{}", bundle.key),
        ..bundle.clone()
    };
    let twins: Vec<_> = bundles.iter().enumerate().map(twin).collect();
    sluice.start();
    let expected_rows = upload(&site, &bundles).await;
    upload(&site, &twins).await;
    wait_until_drained(&site).await;
    merges.abort();
    assert!(
        proxy.hits_by_fault().contains_key("delayed"),
        "{:?}",
        proxy.hits_by_fault()
    );
    assert_eq!(
        events(stack, &site, "released").await,
        0,
        "{}",
        sluice.log()
    );
    for kind in EventType::ALL {
        let table = format!("{}.{}", site.database, kind.table());
        let merge = format!("OPTIMIZE TABLE {table} FINAL");
        stack.clickhouse.execute(&merge).await.unwrap();
        let count = format!("SELECT count() FROM {table}");
        let rows: u64 = stack.clickhouse.scalar(&count).await.unwrap();
        assert_eq!(rows, expected_rows.rows(kind), "{table}");
    }
}

/// A gzip stream without content.
const EMPTY: &[u8] = &[
    0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// ClickHouse's first read of the object returns no lines.
#[tokio::test]
async fn a_compressed_object_that_was_read_as_empty_is_read_again() {
    let (stack, site, sluice) = site("nothing-read").await;
    let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
    proxy.inject(Fault::Content(EMPTY), 1, |request, _| {
        request.method == "GET" && request.uri.path().ends_with("a.jsonl.gz")
    });
    let mut sluice = sluice.set("s3.clickhouse_endpoint", proxy.url());
    sluice.start();
    site.put("a.jsonl.gz", gzip(line("a").as_bytes()))
        .await
        .unwrap();
    site.put("nothing.jsonl.gz", gzip(b"")).await.unwrap();
    wait_until_drained(&site).await;
    assert_eq!(loaded_names(stack, &site).await, ["a"], "{}", sluice.log());
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}
