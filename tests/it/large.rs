//! Large objects and many objects. These tests take minutes and gigabytes, hence they run only on
//! request: `cargo test --test it large -- --ignored --test-threads 1 --nocapture`.

use std::time::{Duration, Instant};

use anyhow::ensure;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures_util::stream::{self, StreamExt};
use sluice_testkit::xapi::Generator;
use sluice_testkit::{Site, Stack, wait_for};

use crate::harness::{Sluice, line};

const LONG: Duration = Duration::from_secs(900);
const MIB: u64 = 1024 * 1024;

async fn wait_until_drained(site: &Site) {
    wait_for("an empty queue", LONG, async || {
        let depth = site.queue_depth().await?;
        ensure!(depth == (0, 0), "{depth:?}");
        Ok(Some(()))
    })
    .await;
}

#[expect(clippy::print_stderr, reason = "results for whoever runs the test")]
fn report(what: &str, bytes: u64, start: Instant, memory: u64) {
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{what}: {:.0} MiB in {seconds:.1} s, {} MiB of the worker's memory above idle",
        bytes as f64 / MIB as f64,
        memory / MIB
    );
}

const PARTS: u64 = 64;

/// Uploads the part as one object, and copies of it as another.
async fn put_repeated(site: &Site, part: Vec<u8>) {
    site.put("part.jsonl", part).await.unwrap();
    let (s3, key) = (&site.s3, "large.jsonl");
    let upload = s3.create_multipart_upload().bucket(&site.bucket).key(key);
    let upload = upload.send().await.unwrap().upload_id.unwrap();
    let mut parts = CompletedMultipartUpload::builder();
    for number in 1..=i32::try_from(PARTS).unwrap() {
        let copy = s3.upload_part_copy().bucket(&site.bucket).key(key);
        let source = format!("{}/part.jsonl", site.bucket);
        let copy = copy
            .copy_source(source)
            .upload_id(&upload)
            .part_number(number);
        let copied = copy.send().await.unwrap().copy_part_result.unwrap();
        let part = CompletedPart::builder().part_number(number);
        parts = parts.parts(part.set_e_tag(copied.e_tag).build());
    }
    let complete = s3.complete_multipart_upload().bucket(&site.bucket).key(key);
    let complete = complete.upload_id(upload).multipart_upload(parts.build());
    complete.send().await.unwrap();
}

/// Loads one object of a GiB, whose rows must be exact while the worker's memory stays flat.
async fn load_a_gibibyte(fallback: &str) {
    let stack = Stack::shared();
    let site = stack.site("gibibyte").await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("load.fallback", fallback);
    sluice.migrate();
    let mut generator = Generator::new(41).sizes(2_000..=2_000);
    let mut bundle = generator
        .find(|bundle| bundle.key.ends_with(".jsonl"))
        .unwrap();
    bundle.bytes.push(b'\n');
    let copies = (16 * MIB).div_ceil(bundle.bytes.len() as u64);
    let part = bundle.bytes.repeat(usize::try_from(copies).unwrap());
    let size = PARTS * part.len() as u64;
    put_repeated(&site, part).await;
    sluice.start();
    sluice.wait_until_ready().await;
    let (idle, _) = sluice.memory();
    let start = Instant::now();
    wait_until_drained(&site).await;
    let (_, peak) = sluice.memory();
    report(
        &format!("one object, fallback {fallback}"),
        size,
        start,
        peak - idle,
    );
    let sql = format!(
        "SELECT sum(rows) FROM {}.object_rows WHERE kind != 'blank'",
        site.database
    );
    let counted: u64 = stack.clickhouse.scalar(&sql).await.unwrap();
    assert_eq!(
        counted,
        bundle.expected_rows.statements() * copies * (PARTS + 1)
    );
    assert!(peak - idle <= 64 * MIB, "{peak} bytes, {idle} when idle");
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
#[ignore = "a minute and 4 GiB"]
async fn an_object_of_a_gibibyte_is_streamed_with_little_memory() {
    load_a_gibibyte("always").await;
}

#[tokio::test]
#[ignore = "a minute and 4 GiB"]
async fn an_object_of_a_gibibyte_is_read_by_clickhouse() {
    load_a_gibibyte("never").await;
}

/// A line that exceeds every buffer passes in pieces, and becomes a row like any other.
#[tokio::test]
#[ignore = "half a minute and 2 GiB"]
async fn a_line_of_100_megabytes_becomes_one_row() {
    let stack = Stack::shared();
    for fallback in ["never", "always"] {
        let site = stack.site("long-line").await.unwrap();
        let mut sluice = Sluice::new(stack, &site).set("load.fallback", fallback);
        sluice.migrate();
        let long = line(&"x".repeat(100_000_000));
        let content = [line("before"), long.clone(), line("after")].concat();
        site.put("long.jsonl", content).await.unwrap();
        sluice.start();
        sluice.wait_until_ready().await;
        let (idle, _) = sluice.memory();
        let start = Instant::now();
        wait_until_drained(&site).await;
        let (_, peak) = sluice.memory();
        let what = format!("a long line, fallback {fallback}");
        report(&what, long.len() as u64, start, peak - idle);
        let sql = format!(
            "SELECT groupArray((row_number, length(raw))) FROM (SELECT * FROM \
             {}.unmatched_statements ORDER BY row_number)",
            site.database
        );
        let found = stack.clickhouse.query(&sql).await.unwrap();
        let lengths = [line("before"), long, line("after")].map(|line| line.len() - 1);
        let [first, second, third] = lengths;
        assert_eq!(found, format!("[(0,{first}),(1,{second}),(2,{third})]\n"));
        assert!(peak - idle <= 64 * MIB, "{peak} bytes, {idle} when idle");
    }
}

/// Ten thousand objects are waiting when the worker starts, and one window takes them all.
#[tokio::test]
#[ignore = "minutes"]
async fn ten_thousand_objects_of_one_window_are_loaded_once() {
    const OBJECTS: u64 = 10_000;
    let stack = Stack::shared();
    let site = stack.site("ten-thousand").await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("batch.window", "1m")
        .set("queue.visibility_timeout", "2m")
        .set("load.fallback", "never");
    sluice.migrate();
    let uploads = (0..OBJECTS).map(async |number| {
        let name = format!("{number:05}");
        site.put(&format!("{name}.jsonl"), line(&name)).await
    });
    stream::iter(uploads)
        .buffer_unordered(16)
        .for_each(async |uploaded| drop(uploaded.unwrap()))
        .await;
    sluice.start();
    sluice.wait_until_ready().await;
    let start = Instant::now();
    wait_until_drained(&site).await;
    let (_, peak) = sluice.memory();
    report(
        "ten thousand objects",
        OBJECTS * line("00000").len() as u64,
        start,
        peak,
    );
    let sql = format!(
        "SELECT uniqExact(raw) = {OBJECTS} AND count() = {OBJECTS} FROM {}.unmatched_statements",
        site.database
    );
    let all: u64 = stack.clickhouse.scalar(&sql).await.unwrap();
    assert_eq!(all, 1);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}
