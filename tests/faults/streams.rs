//! Streams that break at either end, for objects that the worker streams.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{Bundle, ExpectedRows};
use sluice_testkit::{ClickHouse, Stack, wait_for};
use tokio::task::spawn_blocking;

use crate::harness::{BOUND, Daemon, Harness, Statement, concurrently, scenario};

/// The objects of a test, by the number of their blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Objects {
    /// Several objects, in one block per table.
    Small,
    /// One object, in many blocks.
    Large,
}

fn enable_streaming(harness: &mut Harness<'_>) {
    harness.set("load.fallback", "always");
    harness.set("batch.max_bytes", "1MiB");
}

async fn put(harness: &mut Harness<'_>, objects: Objects) -> Result<()> {
    match objects {
        Objects::Small => harness.put_bundles(6).await,
        Objects::Large => put_large(harness).await,
    }
}

/// Uploads an object with more lines than three blocks hold, of all kinds.
async fn put_large(harness: &mut Harness<'_>) -> Result<()> {
    put_large_of(harness, 100_000).await
}

async fn put_large_of(harness: &mut Harness<'_>, lines: u64) -> Result<()> {
    let mut large = Bundle {
        key: "large.jsonl".to_owned(),
        bytes: Vec::new(),
        expected_rows: ExpectedRows::default(),
    };
    for line in 0..lines {
        let line = format!("{{\"line\":{line}}}\n");
        large.bytes.extend_from_slice(line.as_bytes());
    }
    large.expected_rows.unmatched = lines;
    let plain = |bundle: &Bundle| bundle.key.ends_with(".jsonl");
    for bundle in harness.generator.by_ref().filter(plain).take(20) {
        large.bytes.extend_from_slice(&bundle.bytes);
        large.bytes.push(b'\n');
        large.expected_rows += &bundle.expected_rows;
    }
    large.expected_rows.objects = 1;
    harness.put(large).await
}

/// Cuts the connection to ClickHouse. The next attempt finds what the first has left behind.
async fn cut_on_the_way_to_clickhouse(fault: Fault, objects: Objects) -> Result<()> {
    let mut harness = Harness::shared("cut-stream").await?;
    enable_streaming(&mut harness);
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    put(&mut harness, objects).await?;
    proxy.inject(fault, 2, Statement::Stream.matcher());
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    ensure!(proxy.hits() == 2, "{} streams hit the fault", proxy.hits());
    ensure!(daemon.metric("sluice_objects_streamed_total").await? > 0);
    harness.finish(vec![daemon]).await
}

/// Cuts the connection from S3 to the worker.
async fn cut_on_the_way_from_s3(fault: Fault, objects: Objects) -> Result<()> {
    let mut harness = Harness::shared("cut-read").await?;
    enable_streaming(&mut harness);
    let s3 = Proxy::start(harness.aws.endpoint()).await?;
    put(&mut harness, objects).await?;
    s3.inject(fault, 2, |parts, _| parts.method == "GET");
    let daemon = harness.start_with("", &[("AWS_ENDPOINT_URL_S3", s3.url())])?;
    harness.wait_until_drained(&[&daemon]).await;
    ensure!(s3.hits() == 2, "{} reads hit the fault", s3.hits());
    harness.finish(vec![daemon]).await
}

async fn cut_at_either_end(objects: Objects) -> Result<()> {
    let to_clickhouse = [
        Fault::CutBeforeRequest,
        Fault::CutInRequest,
        Fault::CutBeforeResponse,
        Fault::Late(Duration::from_secs(2)),
    ];
    let from_s3 = [
        Fault::CutBeforeRequest,
        Fault::CutInResponse,
        Fault::Status(503),
    ];
    let mut scenarios = Vec::new();
    for fault in to_clickhouse {
        let name = format!("{fault:?} to ClickHouse, {objects:?}");
        scenarios.push(scenario(name, cut_on_the_way_to_clickhouse(fault, objects)));
    }
    for fault in from_s3 {
        let name = format!("{fault:?} from S3, {objects:?}");
        scenarios.push(scenario(name, cut_on_the_way_from_s3(fault, objects)));
    }
    concurrently(scenarios).await
}

#[tokio::test]
async fn a_stream_that_is_cut_at_either_end_is_loaded_once() -> Result<()> {
    cut_at_either_end(Objects::Small).await
}

#[tokio::test]
async fn a_stream_of_many_blocks_that_is_cut_at_either_end_is_loaded_once() -> Result<()> {
    cut_at_either_end(Objects::Large).await
}

/// A failpoint that slows a stream down, so that a process can die in mid-stream.
const SLOW_STREAM: &str = "stream.piece=sleep(200)";
/// The lines of an object whose first rows are there while most of it is still to be sent.
const LINES_OF_SLOW_STREAM: u64 = 300_000;

async fn put_for_slow_stream(harness: &mut Harness<'_>, objects: Objects) -> Result<()> {
    match objects {
        Objects::Small => put(harness, objects).await,
        Objects::Large => put_large_of(harness, LINES_OF_SLOW_STREAM).await,
    }
}

/// The point at which a worker dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// At a failpoint.
    At(&'static str),
    /// In mid-stream, once the first block is committed, which is when the second is full.
    AfterOneBlock,
}

async fn die(harness: &Harness<'_>, death: Death) -> Result<()> {
    match death {
        Death::At(failpoint) => harness.start(failpoint)?.aborted(failpoint).await,
        Death::AfterOneBlock => {
            let daemon = harness.start(SLOW_STREAM)?;
            wait_for_rows_in(harness.clickhouse, &harness.table("unmatched_statements")).await;
            daemon.kill()
        }
    }
}

async fn wait_for_rows_in(clickhouse: &ClickHouse, table: &str) {
    let count = format!("SELECT count() FROM {table}");
    wait_for(&format!("rows in {table}"), BOUND, async || {
        let rows: u64 = clickhouse.scalar(&count).await?;
        Ok((rows > 0).then_some(()))
    })
    .await;
}

/// Workers die one after the other. The last one finishes their work.
async fn workers_die(deaths: Vec<Death>, objects: Objects, fallback: &str) -> Result<()> {
    let mut harness = Harness::shared_with("dead-stream", 6).await?;
    enable_streaming(&mut harness);
    put_for_slow_stream(&mut harness, objects).await?;
    for death in deaths {
        die(&harness, death).await?;
    }
    // A batch that was claimed as streamed is retried as streamed, whatever the configuration is
    // now.
    harness.set("load.fallback", fallback);
    let last = harness.start("")?;
    harness.finish(vec![last]).await
}

#[tokio::test]
async fn a_worker_that_dies_while_it_streams_is_recovered() -> Result<()> {
    use Death::{AfterOneBlock, At};
    use Objects::{Large, Small};
    let first = At("stream.piece=return");
    let later = At("stream.piece=3*off->return");
    let done = At("insert.after=return");
    let cases = [
        (vec![first], Small, "always"),
        (vec![later], Small, "never"),
        (vec![AfterOneBlock], Large, "never"),
        (vec![AfterOneBlock, later], Large, "always"),
        (vec![done], Large, "always"),
    ];
    let scenarios = cases.map(|(deaths, objects, fallback)| {
        let name = format!("{deaths:?}, {objects:?}, then {fallback}");
        scenario(name, workers_die(deaths, objects, fallback))
    });
    concurrently(scenarios).await
}

/// The running streams in `system.processes`.
const STREAMS: &str = "system.processes WHERE query_kind = 'Insert' AND query LIKE '%framed%'";

/// Kills ClickHouse, and restarts it once the daemon has noticed.
pub(crate) async fn kill_and_restart(clickhouse: &Arc<ClickHouse>, daemon: &Daemon) -> Result<()> {
    let killed = Arc::clone(clickhouse);
    spawn_blocking(move || killed.kill()).await??;
    daemon
        .wait_for_readiness(503, "no response from ClickHouse")
        .await;
    let restarted = Arc::clone(clickhouse);
    spawn_blocking(move || restarted.restart()).await?
}

/// Kills ClickHouse when it has received part of the stream.
async fn clickhouse_dies(objects: Objects) -> Result<()> {
    let clickhouse = Arc::new(spawn_blocking(ClickHouse::start).await??);
    let mut harness = Harness::new(
        slice::from_ref(&*clickhouse),
        Stack::shared(),
        "crashed-stream",
        2,
    )
    .await?;
    enable_streaming(&mut harness);
    put_for_slow_stream(&mut harness, objects).await?;
    let daemon = harness.start(SLOW_STREAM)?;
    match objects {
        Objects::Large => {
            wait_for_rows_in(&clickhouse, &harness.table("unmatched_statements")).await
        }
        Objects::Small => wait_for_rows_in(&clickhouse, STREAMS).await,
    }
    kill_and_restart(&clickhouse, &daemon).await?;
    harness.wait_until_drained(&[&daemon]).await;
    harness.finish(vec![daemon]).await
}

#[tokio::test]
async fn a_crash_of_clickhouse_in_mid_stream_loses_nothing() -> Result<()> {
    clickhouse_dies(Objects::Small).await?;
    clickhouse_dies(Objects::Large).await
}

/// ClickHouse reads the object itself. The worker and its insert are killed when some blocks are
/// committed.
#[tokio::test]
async fn an_interrupted_insert_of_many_blocks_is_completed_exactly() -> Result<()> {
    let mut harness = Harness::shared_with("interrupted", 6).await?;
    harness.set("load.fallback", "never");
    harness.set("batch.max_bytes", "1MiB");
    put_large_of(&mut harness, 1_500_000).await?;
    let first = harness.start("")?;
    let table = harness.table("unmatched_statements");
    wait_for_rows_in(harness.clickhouse, &table).await;
    // Recovery would kill the statement as well once the lease has expired.
    let kill = format!(
        "KILL QUERY WHERE query_kind = 'Insert' AND position(query, '{}') > 0 SYNC",
        harness.site.bucket
    );
    harness.clickhouse.execute(&kill).await?;
    first.kill()?;
    let last = harness.start("")?;
    harness.finish(vec![last]).await
}
