//! Inputs that are too large for one insert or that would create parts without limit.

use std::collections::BTreeMap;

use sluice_testkit::xapi::{EventType, ExpectedRows, Generator, gzip, zstd};
use sluice_testkit::{Site, Stack};

use crate::harness::{
    Sluice, assert_rows, line, loaded_names, upload, wait_for_dead_letters, wait_until_drained,
};

/// Returns for each object whether its loaded batch had many blocks.
async fn many_blocks(stack: &Stack, site: &Site) -> BTreeMap<String, bool> {
    let sql = format!(
        "SELECT key, many_blocks FROM {0}.ledger_objects \
         WHERE batch_id IN (SELECT batch_id FROM {0}.ledger_batches WHERE event = 'loaded')",
        site.database
    );
    let rows = stack.clickhouse.rows(&sql).await.unwrap();
    let entry = |row: &serde_json::Value| {
        let key = row["key"].as_str().unwrap().to_owned();
        (key, row["many_blocks"].as_bool().unwrap())
    };
    rows.iter().map(entry).collect()
}

async fn count(stack: &Stack, site: &Site, what: &str) -> u64 {
    let sql = format!("SELECT {what} FROM {}.unmatched_statements", site.database);
    stack.clickhouse.scalar(&sql).await.unwrap()
}

/// Loads a large object beside small ones, and asserts that all rows are there and that only the
/// large object was loaded in many blocks.
async fn assert_loaded_in_many_blocks(
    sluice: Sluice,
    site: &Site,
    key: &str,
    large: Vec<u8>,
    lines: u64,
) {
    let stack = Stack::shared();
    let mut sluice = sluice.set("batch.window", "2s");
    sluice.migrate();
    for number in 0..5 {
        let key = format!("small-{number}.jsonl");
        site.put(&key, line("small")).await.unwrap();
    }
    site.put(key, large).await.unwrap();
    sluice.start();
    wait_until_drained(site).await;
    let loaded = many_blocks(stack, site).await;
    assert_eq!(loaded.len(), 6, "{loaded:?}");
    for (loaded, many_blocks) in loaded {
        assert_eq!(many_blocks, loaded == key, "{loaded}");
    }
    assert_eq!(count(stack, site, "count()").await, 5 + lines);
    let different = "uniqExact(source_path, row_number)";
    assert_eq!(count(stack, site, different).await, 5 + lines);
    let log = sluice.log();
    assert!(!log.contains("intake is paused"), "{log}");
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
#[ignore = "two million lines take minutes on a busy machine; the nightly workflow runs it"]
async fn an_object_with_too_many_rows_for_one_block_is_loaded_in_many() {
    let site = Stack::shared()
        .site_with_max_receives("many-rows", 1)
        .await
        .unwrap();
    let lines = 2_000_100;
    let large = gzip("{}\n".repeat(lines).as_bytes());
    let sluice = Sluice::new(Stack::shared(), &site);
    assert_loaded_in_many_blocks(sluice, &site, "large.jsonl.gz", large, lines as u64).await;
}

#[tokio::test]
async fn an_object_that_expands_beyond_one_block_is_loaded_in_many() {
    let site = Stack::shared()
        .site_with_max_receives("expansion", 1)
        .await
        .unwrap();
    let lines = 200_000;
    let wide = format!("{{\"note\":\"{}\"}}\n", "x".repeat(1000));
    let large = zstd(wide.repeat(lines).as_bytes());
    // Its compressed size is small.
    assert!(large.len() < 100 << 10, "{}", large.len());
    // With few columns, a block of it would fit.
    let sluice = Sluice::new(Stack::shared(), &site).with_all_columns();
    let sluice = sluice.set("batch.max_bytes", "1MiB");
    assert_loaded_in_many_blocks(sluice, &site, "large.jsonl.zst", large, lines as u64).await;
}

#[tokio::test]
async fn a_line_that_needs_too_much_memory_fails_alone_and_pauses_nothing() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("one-line", 1).await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("load.max_memory", "256MiB")
        .set("batch.window", "2s");
    sluice.migrate();
    let healthy: Vec<String> = (0..5).map(|number| format!("good-{number}")).collect();
    for name in &healthy {
        site.put(&format!("{name}.jsonl"), line(name))
            .await
            .unwrap();
    }
    let long = gzip(&vec![b'x'; 400 << 20]);
    site.put("long.jsonl.gz", long).await.unwrap();
    sluice.start();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    assert_eq!(loaded_names(stack, &site).await, healthy);
    let sql = format!(
        "SELECT key, class, position(reason, 'load.max_memory') > 0 FROM {}.ledger_failures",
        site.database
    );
    let failures = stack.clickhouse.query(&sql).await.unwrap();
    assert_eq!(failures, "long.jsonl.gz\tunloadable\t1\n");
    let log = sluice.log();
    assert!(!log.contains("intake is paused"), "{log}");
}

/// The start of the year, in seconds since 1970.
const YEAR_2000: u64 = 946_684_800;
const YEAR_2014: u64 = 1_388_534_400;
const YEAR_2025: u64 = 1_735_689_600;

async fn parts(stack: &Stack, site: &Site) -> u64 {
    let tables = EventType::ALL.map(|kind| format!("'{}'", kind.table()));
    let sql = format!(
        "SELECT count() FROM system.parts WHERE database = '{}' AND table IN ({})",
        site.database,
        tables.join(", ")
    );
    stack.clickhouse.scalar(&sql).await.unwrap()
}

#[tokio::test]
async fn implausible_times_are_rejected_and_create_no_parts() {
    let stack = Stack::shared();
    let site = stack
        .site_with_max_receives("implausible", 1)
        .await
        .unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    let too_early = Generator::new(101).times(0..YEAR_2000);
    // These times are in the year 2100 or later.
    let too_late = Generator::new(102).times(4_102_500_000..10_000_000_000);
    let mut expected = ExpectedRows::default();
    let mut implausible = 0;
    for generator in [too_early, too_late] {
        let bundles: Vec<_> = generator.faults(0.0, 0.0).sizes(50..=50).take(3).collect();
        let expected_rows = upload(&site, &bundles).await;
        implausible += expected_rows.loaded();
        expected.objects += expected_rows.objects;
    }
    expected.rejected = implausible;
    sluice.start();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected).await;
    assert_eq!(parts(stack, &site).await, 0);
    let sql = format!(
        "SELECT groupUniqArray(toString(reason)) FROM {}.rejected_lines",
        site.database
    );
    let reasons = stack.clickhouse.query(&sql).await.unwrap();
    assert_eq!(reasons, "['timestamp out of range']\n");

    // The range is configurable.
    let mut wide = Sluice::new(stack, &site)
        .set("event_types.min_year", "1970")
        .set("event_types.max_future", "36500d");
    sluice.stop().await;
    wide.start();
    let late = Generator::new(103).times(4_102_500_000..4_102_600_000);
    let bundles: Vec<_> = late.faults(0.0, 0.0).take(2).collect();
    expected += &upload(&site, &bundles).await;
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected).await;
}

#[tokio::test]
async fn a_batch_of_too_many_partitions_is_split() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("partitions", 1).await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("batch.window", "2s")
        .set("batch.max_objects", "7");
    sluice.migrate();
    // The first three objects have some of 132 months, and the fourth has nearly all.
    let spread = || Generator::new(104).times(YEAR_2014..YEAR_2025);
    let mut bundles: Vec<_> = spread().sizes(10..=20).take(3).collect();
    bundles.extend(spread().sizes(900..=900).only(EventType::Video).take(1));
    bundles.extend(Generator::new(105).take(3));
    for (number, bundle) in bundles.iter_mut().enumerate() {
        bundle.key = format!("{number}-{}", bundle.key);
    }
    let expected = upload(&site, &bundles).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected).await;
    let loaded = many_blocks(stack, &site).await;
    let in_many: Vec<_> = loaded.iter().filter(|(_, many)| **many).collect();
    assert_eq!(in_many.len(), 1, "{loaded:?}");
    assert!(in_many[0].0.starts_with("3-"), "{loaded:?}");
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
    assert!(
        !sluice.log().contains("intake is paused"),
        "{}",
        sluice.log()
    );
}
