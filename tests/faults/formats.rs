//! Objects of other formats, through deaths, cuts and crashes: each record has its row once.

use std::path::Path;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::http::request::Parts;
use sluice_testkit::flat::{self, Form};
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::{ClickHouse, Cluster, Stack, exact, wait_for};
use tokio::task::spawn_blocking;

use crate::harness::{BOUND, Harness, concurrently, scenario, text_of};
use crate::streams::kill_and_restart;

/// One form for each way in which ClickHouse finds records. The nightly run has all of them.
const SOME: [Form; 4] = [Form::Documents, Form::Csv, Form::Log, Form::Parquet];

/// Records of an object that fit into one block.
const FEW: u64 = 500;
/// Records that need several blocks, in an object above `batch.max_bytes`.
const MANY: u64 = 400_000;
/// The records of an object that is inserted in several blocks, slowly.
const SEVERAL_BLOCKS: u64 = 120_000;

/// Creates a harness with the declarations of all forms.
async fn harness_on<'a>(
    servers: &'a [ClickHouse],
    stack: &'a Stack,
    name: &str,
) -> Result<Harness<'a>> {
    let mut harness = Harness::unmigrated(servers, stack, name, 6).await?;
    if harness.is_replicated() {
        harness.set("clickhouse.cluster", Cluster::NAME);
    }
    let types = harness.config["event_types"]["dir"].as_str();
    let types = Path::new(types.context("no event types")?);
    std::fs::remove_dir_all(types)?;
    flat::write_declarations(types)?;
    harness.migrate().await?;
    exact::keep_duplicates(servers, &harness.site).await?;
    Ok(harness)
}

async fn harness(name: &str, form: Form) -> Result<Harness<'static>> {
    let stack = Stack::shared();
    let name = format!("{name}-{form:?}");
    harness_on(stack.servers(), stack, &name).await
}

async fn put(harness: &mut Harness<'_>, form: Form, name: &str, records: u64) -> Result<()> {
    let bundle = flat::bundle(harness.clickhouse, form, name, records).await?;
    harness.put(bundle).await
}

async fn dies_at(form: Form, death: &'static str, settings: &[(&str, &str)]) -> Result<()> {
    let mut harness = harness("death", form).await?;
    for (field, value) in settings {
        harness.set(field, *value);
    }
    for name in ["a", "b"] {
        put(&mut harness, form, name, FEW).await?;
    }
    harness
        .start(&format!("{death}=return"))?
        .aborted(death)
        .await?;
    let last = harness.start("")?;
    harness.finish(vec![last]).await
}

async fn deaths(forms: &[Form]) -> Result<()> {
    let mut scenarios = Vec::new();
    for form in forms {
        for (death, settings) in [
            ("verify.after", &[][..]),
            ("insert.after", &[]),
            ("insert.after", &[("load.strategy", "per_type")]),
            ("stream.piece", &[("load.fallback", "always")]),
            ("insert.after", &[("load.fallback", "always")]),
        ] {
            let name = format!("{form:?}, {death}, {settings:?}");
            scenarios.push(scenario(name, dies_at(*form, death, settings)));
        }
    }
    concurrently(scenarios).await
}

#[tokio::test]
async fn a_worker_that_dies_with_any_format_is_recovered() -> Result<()> {
    deaths(&SOME).await
}

/// Whether a request streams an object into an insert.
fn is_stream(parts: &Parts, body: &[u8]) -> bool {
    let text = text_of(parts, body);
    text.contains("INSERT INTO") && text.contains("input('")
}

/// Cuts streams on their way to ClickHouse. The next attempt finds what the first has left behind.
async fn cut_on_the_way_to_clickhouse(form: Form, fault: Fault) -> Result<()> {
    let mut harness = harness("cut", form).await?;
    harness.set("load.fallback", "always");
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    put(&mut harness, form, "a", FEW).await?;
    proxy.inject(fault, 2, is_stream);
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    ensure!(proxy.hits() == 2, "{} streams hit the fault", proxy.hits());
    ensure!(daemon.metric("sluice_objects_streamed_total").await? > 0);
    harness.finish(vec![daemon]).await
}

/// Cuts the content on its way from S3 to the worker, or to ClickHouse.
async fn cut_on_the_way_from_s3(form: Form, reader: &'static str) -> Result<()> {
    let mut harness = harness("cut-read", form).await?;
    harness.set("load.fallback", reader);
    let s3 = Proxy::start(harness.aws.endpoint()).await?;
    put(&mut harness, form, "a", FEW).await?;
    s3.inject(Fault::CutInResponse, 2, |parts, _| parts.method == "GET");
    let daemon = if reader == "always" {
        harness.start_with("", &[("AWS_ENDPOINT_URL_S3", s3.url())])?
    } else {
        harness.set("s3.clickhouse_endpoint", s3.url());
        harness.start("")?
    };
    harness.wait_until_drained(&[&daemon]).await;
    ensure!(s3.hits() == 2, "{} reads hit the fault", s3.hits());
    harness.finish(vec![daemon]).await
}

async fn cuts(forms: &[Form]) -> Result<()> {
    let mut scenarios = Vec::new();
    for form in forms {
        for fault in [
            Fault::CutInRequest,
            Fault::CutBeforeResponse,
            Fault::Late(Duration::from_secs(2)),
        ] {
            let name = format!("{form:?}, {fault:?} to ClickHouse");
            scenarios.push(scenario(name, cut_on_the_way_to_clickhouse(*form, fault)));
        }
        for reader in ["always", "never"] {
            let name = format!("{form:?}, cut from S3, fallback {reader}");
            scenarios.push(scenario(name, cut_on_the_way_from_s3(*form, reader)));
        }
    }
    concurrently(scenarios).await
}

#[tokio::test]
async fn an_object_of_any_format_that_is_cut_on_its_way_is_loaded_once() -> Result<()> {
    cuts(&SOME).await
}

async fn wait_for_rows_in(clickhouse: &ClickHouse, table: &str) {
    let count = format!("SELECT count() FROM {table}");
    wait_for(&format!("rows in {table}"), BOUND, async || {
        let rows: u64 = clickhouse.scalar(&count).await?;
        Ok((rows > 0).then_some(()))
    })
    .await;
}

/// The worker and its insert are killed when some blocks are committed.
async fn interrupted(form: Form) -> Result<()> {
    let mut harness = harness("interrupted", form).await?;
    harness.set("batch.max_bytes", "1MiB");
    harness.set("load.fallback", "never");
    put(&mut harness, form, "many", MANY).await?;
    let first = harness.start("")?;
    let table = harness.table("video_events");
    wait_for_rows_in(harness.clickhouse, &table).await;
    let kill = format!(
        "KILL QUERY WHERE query_kind = 'Insert' AND position(query, '{}') > 0 SYNC",
        harness.site.bucket
    );
    harness.clickhouse.execute(&kill).await?;
    first.kill()?;
    let last = harness.start("")?;
    harness.finish(vec![last]).await
}

async fn interruptions(forms: &[Form]) -> Result<()> {
    // One after the other: each keeps all cores busy.
    for form in forms {
        interrupted(*form)
            .await
            .with_context(|| format!("{form:?}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn many_blocks_of_any_format_are_completed_exactly() -> Result<()> {
    interruptions(&SOME).await
}

/// A failpoint that slows streams down, so that a server can die in mid-stream.
const SLOW_STREAM: &str = "stream.piece=sleep(200)";

/// Kills ClickHouse while it receives these objects.
async fn clickhouse_dies(forms: &[Form]) -> Result<()> {
    let clickhouse = Arc::new(spawn_blocking(ClickHouse::start).await??);
    let servers = slice::from_ref(&*clickhouse);
    let mut harness = harness_on(servers, Stack::shared(), "crash-formats").await?;
    harness.set("load.fallback", "always");
    harness.set("batch.max_bytes", "1MiB");
    harness.set("load.concurrency", forms.len());
    for form in forms {
        put(&mut harness, *form, "many", SEVERAL_BLOCKS).await?;
    }
    let daemon = harness.start(SLOW_STREAM)?;
    wait_for_rows_in(&clickhouse, &harness.table("video_events")).await;
    kill_and_restart(&clickhouse, &daemon).await?;
    harness.wait_until_drained(&[&daemon]).await;
    harness.finish(vec![daemon]).await
}

#[tokio::test]
async fn a_crash_of_clickhouse_loses_nothing_of_any_format() -> Result<()> {
    clickhouse_dies(&SOME).await
}

#[tokio::test]
#[ignore = "ten minutes: each fault with every format"]
async fn all_formats_survive_all_faults() -> Result<()> {
    deaths(&Form::ALL).await?;
    cuts(&Form::ALL).await?;
    interruptions(&Form::ALL).await?;
    clickhouse_dies(&Form::ALL).await
}
