//! Objects that the worker streams, since ClickHouse cannot or must not read them.

use serde_json::Value;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{Bundle, ExpectedRows, Generator, gzip};
use sluice_testkit::{Site, Stack};

use crate::harness::{
    Sluice, assert_rows, line, loaded_names, rows, upload, wait_for_dead_letters,
    wait_until_drained,
};

/// Returns how many of the loaded objects each reader in `ledger_objects` has read.
async fn read_by(stack: &Stack, site: &Site) -> Vec<(String, u64)> {
    let database = &site.database;
    let sql = format!(
        "SELECT read_by, uniqExact(object_id) AS objects FROM {database}.ledger_objects \
         WHERE batch_id IN (SELECT batch_id FROM {database}.ledger_batches WHERE event = 'loaded') \
         GROUP BY read_by ORDER BY read_by"
    );
    let rows = stack.clickhouse.rows(&sql).await.unwrap();
    let row = |row: &Value| {
        let reader = row["read_by"].as_str().unwrap().to_owned();
        (reader, row["objects"].as_u64().unwrap())
    };
    rows.iter().map(row).collect()
}

/// Returns key and class of the recorded failures.
async fn failures(stack: &Stack, site: &Site) -> String {
    let sql = format!(
        "SELECT DISTINCT key, class FROM {}.ledger_failures ORDER BY key",
        site.database
    );
    stack.clickhouse.query(&sql).await.unwrap()
}

/// Returns all values of all rows, except for those that differ between loads.
async fn all_values(stack: &Stack, database: &str) -> Vec<String> {
    let mut values = Vec::new();
    for (table, _) in rows(&stack.clickhouse, database).await {
        if table == "objects loaded" {
            continue;
        }
        let sql = format!(
            "SELECT '{table}', hex(toString(tuple(* EXCEPT (batch_id, ingested_at)))) AS row \
             FROM {database}.{table} ORDER BY row"
        );
        let text = stack.clickhouse.query(&sql).await.unwrap();
        values.extend(text.lines().map(str::to_owned));
    }
    values
}

/// Returns a frame with one raw block, which the format permits for short contents.
fn zstd(text: &str) -> Vec<u8> {
    let size = u8::try_from(text.len()).unwrap();
    let block = (u32::from(size) << 3 | 1).to_le_bytes();
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, size];
    frame.extend_from_slice(&block[..3]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// Returns contents that show where lines begin and end.
fn odd_contents() -> Vec<Bundle> {
    let members = [gzip(b"{\"a\":1}\n{\"a\""), gzip(b":2}\n")].concat();
    let content = |key: &str, bytes: Vec<u8>, [unmatched, rejected]: [u64; 2]| {
        let mut expected_rows = ExpectedRows::default();
        expected_rows.objects = 1;
        expected_rows.unmatched = unmatched;
        expected_rows.rejected = rejected;
        Bundle {
            key: key.to_owned(),
            bytes,
            expected_rows,
        }
    };
    vec![
        content("empty.jsonl", Vec::new(), [0, 0]),
        content("empty.jsonl.gz", Vec::new(), [0, 0]),
        content("zipped-empty.jsonl.gz", gzip(b""), [0, 0]),
        content("blank.jsonl", b"\n\r\n  \n".to_vec(), [0, 0]),
        content(
            "no-final-newline.jsonl",
            b"{\"a\":1}\n{\"a\":2}".to_vec(),
            [2, 0],
        ),
        content(
            "crlf.jsonl",
            b"{\"a\":1}\r\n\r\n{\"a\":2}\r\n".to_vec(),
            [2, 0],
        ),
        content(
            "bom.jsonl",
            b"\xef\xbb\xbf{\"a\":1}\n{\"a\":2}\n".to_vec(),
            [2, 0],
        ),
        content(
            "not-utf8.jsonl",
            b"\xff\xfe\n{\"a\":1}\n\x00\n".to_vec(),
            [1, 2],
        ),
        content(
            "png.png",
            b"\x89PNG\r\n\x1a\n\x00\x00\rIHDR".to_vec(),
            [0, 3],
        ),
        content(
            "parquet.parquet",
            b"PAR1\x15\x04\n\x00PAR1".to_vec(),
            [0, 2],
        ),
        content("two-members.jsonl.gz", members, [2, 0]),
        content("UPPER.JSONL.GZ", gzip(b"{\"a\":1}\n"), [1, 0]),
        content("small.jsonl.zst", zstd("{\"a\":1}\n\n{\"a\":2}"), [2, 0]),
    ]
}

async fn streams_the_same_rows(strategy: &str) {
    let stack = Stack::shared();
    let site = stack.site("both-readers").await.unwrap();
    let mut loaded = Vec::new();
    let bundles: Vec<_> = Generator::new(31).take(40).chain(odd_contents()).collect();
    for fallback in ["never", "always"] {
        let database = format!("{}_{fallback}", site.database);
        let mut sluice = Sluice::new(stack, &site)
            .with_all_columns()
            .set("load.fallback", fallback)
            .set("load.strategy", strategy)
            .set("clickhouse.database", &database);
        sluice.migrate();
        let expected_rows = upload(&site, &bundles).await;
        sluice.start();
        wait_until_drained(&site).await;
        assert_rows(&stack.clickhouse, &database, &expected_rows).await;
        let streamed = sluice.metric("sluice_objects_streamed_total").await;
        let all = if fallback == "always" {
            bundles.len()
        } else {
            0
        };
        assert_eq!(streamed.unwrap_or_default() as usize, all);
        assert_eq!(sluice.stop().await.code(), Some(0));
        loaded.push(all_values(stack, &database).await);
    }
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
    assert_eq!(loaded[0], loaded[1]);
}

#[tokio::test]
async fn streamed_objects_have_the_same_rows() {
    streams_the_same_rows("single_pass").await;
}

#[tokio::test]
async fn objects_streamed_by_type_have_the_same_rows() {
    streams_the_same_rows("per_type").await;
}

#[tokio::test]
async fn objects_that_clickhouse_may_not_read_are_streamed_and_the_likely_cause_is_named() {
    let stack = Stack::shared();
    let site = stack.site("refused-to-clickhouse").await.unwrap();
    let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
    proxy.inject(Fault::Status(403), usize::MAX, |_, _| true);
    let mut sluice = Sluice::new(stack, &site).set("s3.clickhouse_endpoint", proxy.url());
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(32).take(60).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    assert_eq!(read_by(stack, &site).await, [("stream".to_owned(), 60)]);
    let log = sluice.log();
    let warnings = log.matches("ClickHouse could not read any of the last");
    assert_eq!(warnings.count(), 1, "{log}");
    assert!(log.contains("load.fallback"), "{log}");
    // None of this paused intake.
    assert!(!log.contains("intake is paused"), "{log}");
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

/// The host does not exist, or nothing listens there.
#[tokio::test]
async fn objects_that_clickhouse_cannot_reach_are_streamed() {
    let stack = Stack::shared();
    for (index, endpoint) in ["http://s3.invalid", "http://127.0.0.1:1"]
        .iter()
        .enumerate()
    {
        let site = stack.site("unreachable").await.unwrap();
        let mut sluice = Sluice::new(stack, &site).set("s3.clickhouse_endpoint", endpoint);
        sluice.migrate();
        let bundles: Vec<_> = Generator::new(33 + index as u64).take(3).collect();
        let expected_rows = upload(&site, &bundles).await;
        sluice.start();
        wait_until_drained(&site).await;
        assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
        assert_eq!(read_by(stack, &site).await, [("stream".to_owned(), 3)]);
    }
}

/// The worker is denied access as well, so the fallback has no effect.
#[tokio::test]
async fn objects_that_nobody_may_read_pause_intake_until_access_is_granted() {
    let stack = Stack::shared();
    let site = stack.site("refused-to-all").await.unwrap();
    let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
    proxy.inject(Fault::Status(403), usize::MAX, |_, _| true);
    let mut sluice = Sluice::new(stack, &site)
        .set("s3.clickhouse_endpoint", proxy.url())
        .environment("AWS_ENDPOINT_URL_S3", proxy.url());
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(35).take(5).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice.start();
    sluice.wait_until_not_ready("s3.clickhouse_access").await;
    proxy.heal();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

/// ClickHouse cannot address the key, and the worker is denied access. Nothing else waits for the
/// object.
#[tokio::test]
async fn an_object_that_nobody_can_read_fails_alone() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("unreadable", 2).await.unwrap();
    let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
    proxy.inject(Fault::Status(403), usize::MAX, |_, _| true);
    let mut sluice = Sluice::new(stack, &site).environment("AWS_ENDPOINT_URL_S3", proxy.url());
    sluice.migrate();
    site.put("a*.jsonl", line("odd")).await.unwrap();
    let bundles: Vec<_> = Generator::new(37).take(5).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice.start();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    sluice.wait_until_ready().await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    assert_eq!(failures(stack, &site).await, "a*.jsonl\tdenied\n");
}

/// Bad objects among good ones fail as they would without streaming.
#[tokio::test]
async fn a_bad_object_among_streamed_ones_fails_alone() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("bad-stream", 2).await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("load.fallback", "always");
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(36).take(20).collect();
    let mut expected_rows = upload(&site, &bundles).await;
    let whole = gzip(line("truncated").repeat(2000).as_bytes());
    let half = &whole[..whole.len() / 2];
    site.put("a/truncated.jsonl.gz", half).await.unwrap();
    site.put("b/garbage.jsonl.gz", "no gzip").await.unwrap();
    site.put("c/missing.jsonl", line("missing")).await.unwrap();
    site.delete("c/missing.jsonl").await.unwrap();
    // The object is overwritten before it is read. Its current content is loaded, once.
    site.put("d/overwritten.jsonl", line("old")).await.unwrap();
    site.put("d/overwritten.jsonl", line("new")).await.unwrap();
    expected_rows.unmatched += 1;
    expected_rows.objects += 1;
    sluice.start();
    wait_for_dead_letters(&site, 3).await;
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    assert_eq!(
        failures(stack, &site).await,
        "a/truncated.jsonl.gz\tunloadable\nb/garbage.jsonl.gz\tunloadable\n\
         c/missing.jsonl\tmissing\n"
    );
}

/// Content is compressed under a name of plain text, or the other way round.
#[tokio::test]
async fn content_that_does_not_match_its_name_is_streamed() {
    let stack = Stack::shared();
    let contents = [
        ("gzip.jsonl", gzip(line("a").as_bytes())),
        ("zstd.jsonl", zstd(&line("b"))),
        ("zstd.jsonl.gz", zstd(&line("c"))),
        ("plain.jsonl.gz", line("d").into_bytes()),
        ("plain.jsonl.bz2", line("e").into_bytes()),
        ("plain.jsonl", line("f").into_bytes()),
    ];
    for (fallback, expected) in [
        ("auto", &["a", "b", "c", "d", "e", "f"][..]),
        ("never", &["f"]),
    ] {
        let site = stack.site_with_max_receives("misnamed", 1).await.unwrap();
        let mut sluice = Sluice::new(stack, &site).set("load.fallback", fallback);
        sluice.migrate();
        for (key, bytes) in &contents {
            site.put(key, bytes.clone()).await.unwrap();
        }
        site.put("broken.jsonl.gz", "neither").await.unwrap();
        sluice.start();
        wait_until_drained(&site).await;
        assert_eq!(loaded_names(stack, &site).await, expected, "{fallback}");
        let failed = failures(stack, &site).await;
        assert!(failed.contains("broken.jsonl.gz\tunloadable"), "{failed}");
        let dead = if fallback == "auto" { 1 } else { 4 };
        wait_for_dead_letters(&site, dead).await;
    }
}

/// The worker reads small objects, which is faster, and ClickHouse reads large ones.
#[tokio::test]
async fn small_objects_are_streamed_if_configured() {
    let stack = Stack::shared();
    let site = stack.site("small").await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("load.stream_below", "64KiB");
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(38).take(20).collect();
    let mut expected_rows = upload(&site, &bundles).await;
    sluice.start();
    wait_until_drained(&site).await;
    let lines = line("large").repeat(10_000);
    site.put("large.jsonl", lines).await.unwrap();
    expected_rows.unmatched += 10_000;
    expected_rows.objects += 1;
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    let readers = [("s3".to_owned(), 1), ("stream".to_owned(), 20)];
    assert_eq!(read_by(stack, &site).await, readers);
}

/// If the worker cannot read small objects, ClickHouse loads them.
#[tokio::test]
async fn small_objects_that_the_worker_cannot_stream_are_read_by_clickhouse() {
    let stack = Stack::shared();
    for status in [403, 503] {
        let site = stack.site("small-by-clickhouse").await.unwrap();
        let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
        proxy.inject(Fault::Status(status), usize::MAX, |_, _| true);
        let mut sluice = Sluice::new(stack, &site)
            .set("load.stream_below", "64KiB")
            .environment("AWS_ENDPOINT_URL_S3", proxy.url());
        sluice.migrate();
        let bundles: Vec<_> = Generator::new(39).take(5).collect();
        let expected_rows = upload(&site, &bundles).await;
        sluice.start();
        wait_until_drained(&site).await;
        assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
        assert_eq!(read_by(stack, &site).await, [("s3".to_owned(), 5)]);
        let log = sluice.log();
        assert!(log.contains("ClickHouse reads them"), "{log}");
        assert_eq!(site.dlq_depth().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_bad_object_among_small_ones_fails_alone() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("bad-small", 2).await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("load.stream_below", "1MiB");
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(40).take(10).collect();
    let expected_rows = upload(&site, &bundles).await;
    site.put("garbage.jsonl.gz", "no gzip").await.unwrap();
    sluice.start();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    assert_eq!(
        failures(stack, &site).await,
        "garbage.jsonl.gz\tunloadable\n"
    );
}
