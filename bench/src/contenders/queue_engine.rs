//! ClickHouse's S3Queue engine, which lists the bucket and records in a Keeper what it has loaded.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sluice::statements::ddl::landing_name;
use sluice::statements::select::{Lines, landing_select};
use tokio::time::sleep;
use uuid::Uuid;

use super::Run;
use crate::harness::Harness;
use crate::workload::Uploaded;

const POLL: Duration = Duration::from_millis(50);
const BOUND: Duration = Duration::from_secs(600);

/// The fastest setting that was found for many small objects. Keys arrive in no order, so that the
/// faster mode 'ordered' would lose some.
const SETTINGS: &str = "mode = 'unordered', tracked_files_limit = 1000000, \
    max_processed_files_before_commit = 1000, metadata_cache_size_elements = 1000000, \
    polling_min_timeout_ms = 100, polling_max_timeout_ms = 500, polling_backoff_ms = 0, \
    enable_logging_to_queue_log = 0, deduplication_v2 = 0";

pub(super) async fn run(harness: &Harness, uploaded: &Uploaded) -> Result<Run> {
    let database = harness.migrated().await?;
    let (name, landing) = (&database.name, landing_name(&harness.catalog));
    let (endpoint, bucket) = (harness.objects.endpoint(), uploaded.bucket());
    let clickhouse = &harness.clickhouse;
    clickhouse
        .execute(&format!(
            "CREATE TABLE {name}.queue (line String) \
             ENGINE = S3Queue('{endpoint}/{bucket}/**', 'test', 'test', 'LineAsString') \
             SETTINGS keeper_path = '/s3queue/{name}', {SETTINGS}"
        ))
        .await?;
    let lines = Lines {
        // Its path has no bucket.
        source_path: format!("concat('{bucket}/', _path)"),
        ..Lines::of_objects(format!("{name}.queue"), Uuid::nil())
    };
    let select = landing_select(&harness.catalog, &lines);
    let begun = Instant::now();
    clickhouse
        .execute(&format!(
            "CREATE MATERIALIZED VIEW {name}.queue_to_landing TO {name}.{landing} AS {select}"
        ))
        .await?;
    let processed = format!(
        "SELECT countIf(status = 'Processed') FROM system.s3queue_metadata_cache \
         WHERE zookeeper_path LIKE '%{name}'"
    );
    while clickhouse.scalar::<usize>(&processed).await? < uploaded.objects.len() {
        ensure!(
            begun.elapsed() < BOUND,
            "S3Queue is not done after {BOUND:?}"
        );
        sleep(POLL).await;
    }
    let took = begun.elapsed();
    for table in ["queue_to_landing", "queue"] {
        clickhouse
            .execute(&format!("DROP TABLE {name}.{table} SYNC"))
            .await?;
    }
    database.ensure_rows(&uploaded.expected_rows).await?;
    database.remove().await?;
    Ok(Run::of(uploaded.objects.len(), took))
}
