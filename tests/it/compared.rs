//! After every insert the tables are compared with what was counted as it was inserted. Rows that
//! somebody else has kept from a table are found; rows that merges have collapsed are not missed.

use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{Bundle, EventType, Generator, gzip};
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, assert_rows, drained, line, names, upload};

async fn site(name: &str) -> (&'static Stack, Site, Sluice) {
    let stack = Stack::shared();
    let site = stack.site(name).await.unwrap();
    let sluice = Sluice::new(stack, &site);
    sluice.migrate();
    (stack, site, sluice)
}

/// The view that fills a table.
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
async fn a_view_that_is_gone_pauses_intake_until_it_is_back() {
    for table in ["video_events", "object_rows"] {
        let (stack, site, mut sluice) = site("view-gone").await;
        let view = view_of(stack, &site, table).await;
        let drop = format!("DROP VIEW {}.{view} SYNC", site.database);
        stack.clickhouse.execute(&drop).await.unwrap();
        let bundles: Vec<_> = Generator::new(81).take(10).collect();
        let reckoning = upload(&site, &bundles).await;
        assert!(reckoning.rows(EventType::Video) > 0);
        sluice.start();
        let why = sluice.not_ready(&view).await;
        assert!(why.contains("sluice migrate"), "{why}");
        assert_eq!(events(stack, &site, "loaded").await, 0);

        sluice.migrate();
        drained(&site).await;
        assert_rows(&stack.clickhouse, &site.database, &reckoning).await;
        assert_eq!(site.dlq_depth().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn rows_that_merges_collapse_are_not_missed() {
    let (stack, site, sluice) = site("merged-away").await;
    let mut sluice = sluice
        .set("batch.max_objects", 2)
        .set("batch.window", "100ms");
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
    // Each with the same events as another, in its own batch and in that of the other.
    let bundles: Vec<_> = Generator::new(82).take(12).collect();
    let twin = |(number, bundle): (usize, &Bundle)| Bundle {
        key: format!("twin-{number}/{}", bundle.key),
        ..bundle.clone()
    };
    let twins: Vec<_> = bundles.iter().enumerate().map(twin).collect();
    sluice.start();
    let reckoning = upload(&site, &bundles).await;
    upload(&site, &twins).await;
    drained(&site).await;
    merges.abort();
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
        assert_eq!(rows, reckoning.rows(kind), "{table}");
    }
}

/// What S3 answers to ClickHouse's first read of an object has no content.
#[tokio::test]
async fn a_compressed_object_of_which_nothing_was_read_is_read_again() {
    let (stack, site, sluice) = site("nothing-read").await;
    let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
    proxy.inject(Fault::Status(200), 1, |request, _| {
        request.method == "GET" && request.uri.path().ends_with(".gz")
    });
    let mut sluice = sluice.set("s3.clickhouse_endpoint", proxy.url());
    sluice.start();
    site.put("a.jsonl.gz", gzip(line("a").as_bytes()))
        .await
        .unwrap();
    site.put("nothing.jsonl.gz", gzip(b"")).await.unwrap();
    drained(&site).await;
    assert_eq!(names(stack, &site).await, ["a"]);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}
