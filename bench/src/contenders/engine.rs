//! ClickHouse alone: the statements that load the data, sent one after the other.

use std::time::Duration;

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};
use sluice::batch::{Batch, BatchLimits, Batcher};
use sluice::object::ObjectRef;
use sluice::statements::ddl::landing_name;
use sluice::statements::select::{Lines, landing_select};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Run, timed};
use crate::harness::{Database, Harness};
use crate::workload::Uploaded;

/// The defaults of Sluice.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);
const LIMITS: BatchLimits = BatchLimits {
    window: WINDOW,
    flush_when_idle: true,
    max_objects: 1_000,
    max_bytes: 128 << 20,
};
const CONCURRENCY: usize = 2;

/// Without these an insert of many objects would be refused, or its rows would make many parts. The
/// values are the fastest that were found.
const SETTINGS: &str = "SETTINGS glob_expansion_max_elements = 1000000, async_insert = 0, \
    throw_on_max_partitions_per_insert_block = 0, use_hive_partitioning = 0, \
    min_insert_block_size_rows = 1000000000, min_insert_block_size_bytes = 100000000000, \
    max_insert_threads = 1, optimize_on_insert = 0, query_plan_remove_redundant_sorting = 0, \
    parallel_view_processing = 1";
/// Additional settings for small objects.
const SMALL: &str = ", max_threads = 16, remote_filesystem_read_prefetch = 0";

pub(super) async fn count(harness: &Harness, uploaded: &Uploaded) -> Result<Run> {
    let statements = batches(&uploaded.objects).into_iter().map(|batch| {
        let source = source(harness, &batch);
        // ClickHouse would answer a count() alone from cached counts, without reading.
        let settings = settings(&batch);
        format!("SELECT count(), sum(length(line)) FROM {source} {settings}")
    });
    let ((), took) = timed(execute_all(harness, statements.collect())).await?;
    Ok(Run::of(uploaded.objects.len(), took))
}

pub(super) async fn limit(harness: &Harness, uploaded: &Uploaded) -> Result<Run> {
    let database = harness.migrated().await?;
    let ((), took) = timed(load(harness, &uploaded.objects, &database)).await?;
    database.ensure_rows(&uploaded.expected_rows).await?;
    database.remove().await?;
    Ok(Run::of(uploaded.objects.len(), took))
}

/// Loads objects as fast as the engine can.
pub(crate) async fn load(
    harness: &Harness,
    objects: &[ObjectRef],
    database: &Database<'_>,
) -> Result<()> {
    let landing = landing_name(&harness.catalog);
    let statements = batches(objects).into_iter().map(|batch| {
        let lines = Lines::of_objects(coalesced(&source(harness, &batch), &batch), Uuid::now_v7());
        let select = landing_select(&harness.catalog, &lines);
        format!(
            "INSERT INTO {}.{landing} {select} {}",
            database.name,
            settings(&batch)
        )
    });
    execute_all(harness, statements.collect()).await
}

async fn execute_all(harness: &Harness, statements: Vec<String>) -> Result<()> {
    let clickhouse = &harness.clickhouse;
    let sent = stream::iter(&statements).map(|sql| clickhouse.execute(sql));
    sent.buffer_unordered(CONCURRENCY).try_collect().await
}

/// Returns the objects in the batches that Sluice would make.
pub(super) fn batches(objects: &[ObjectRef]) -> Vec<Vec<ObjectRef>> {
    let mut batcher = Batcher::new(LIMITS);
    let now = Instant::now();
    let full = objects.iter().flat_map(|it| batcher.add(it.clone(), now));
    let mut batches: Vec<Batch> = full.collect();
    batches.extend(batcher.take_all(now));
    batches.into_iter().map(|batch| batch.objects).collect()
}

/// Sorting small objects is worthwhile: it puts their lines into common blocks.
fn coalesced(source: &str, batch: &[ObjectRef]) -> String {
    if are_small(batch) {
        format!("(SELECT line, _path, _etag, _row_number FROM {source} ORDER BY _path)")
    } else {
        source.to_owned()
    }
}

fn settings(batch: &[ObjectRef]) -> String {
    let small = if are_small(batch) { SMALL } else { "" };
    format!("{SETTINGS}{small}")
}

fn are_small(batch: &[ObjectRef]) -> bool {
    let bytes: u64 = batch.iter().filter_map(|object| object.size).sum();
    bytes < batch.len() as u64 * 100_000
}

/// Returns a table expression for the lines of these objects.
pub(super) fn source(harness: &Harness, objects: &[ObjectRef]) -> String {
    let keys: Vec<&str> = objects.iter().map(|object| object.key.as_str()).collect();
    let keys = match keys.as_slice() {
        [only] => (*only).to_owned(),
        several => format!("{{{}}}", several.join(",")),
    };
    let bucket = objects.first().map_or("", |object| &object.bucket);
    let endpoint = harness.objects.endpoint();
    format!("s3('{endpoint}/{bucket}/{keys}', 'test', 'test', 'LineAsString', 'line String')")
}
