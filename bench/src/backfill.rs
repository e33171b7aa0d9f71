//! A backfill of objects that are all loaded: the cost of listing and skipping keys.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice::object::ObjectParts;
use sluice_testkit::listing::Listing;
use tokio::time::sleep;

use crate::contenders::sluice::{Worker, memory};
use crate::harness::{Database, Harness};
use crate::note;
use crate::queue::{Addresses, QueueServer};
use crate::workload::object;

const BUCKET: &str = "uploads";
const BATCH: &str = "00000000-0000-7000-8000-000000000001";
const KEYS_PER_INSERT: u64 = 50_000;
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Backfill {
    keys: u64,
    seconds: f64,
    /// The peak resident memory.
    peak_mib: f64,
}

impl Backfill {
    /// Returns a row of a Markdown table.
    #[expect(clippy::cast_precision_loss, reason = "for a person to read")]
    pub(crate) fn row(&self) -> String {
        format!(
            "| backfill of {} keys, all loaded: keys per second, peak resident memory | {:.0}, {:.0} MiB |\n",
            self.keys,
            self.keys as f64 / self.seconds,
            self.peak_mib
        )
    }
}

/// Runs one backfill for each number of keys, one after the other.
pub(crate) async fn run(harness: &Harness, keys: &[u64]) -> Result<Vec<Backfill>> {
    let database = harness.migrated().await?;
    let max_keys = keys.iter().copied().max().unwrap_or_default();
    note(&format!("filling a ledger with {max_keys} keys"));
    fill(harness, &database, max_keys).await?;
    let mut backfills = Vec::new();
    for keys in keys {
        let backfill = skip(harness, &database, *keys).await?;
        note(&format!(
            "{keys} keys: {:.1} s, {:.1} MiB",
            backfill.seconds, backfill.peak_mib
        ));
        backfills.push(backfill);
    }
    database.remove().await?;
    Ok(backfills)
}

async fn skip(harness: &Harness, database: &Database<'_>, keys: u64) -> Result<Backfill> {
    let listing = Listing::start(keys).await?;
    let queue = QueueServer::start([]).await?;
    let at = Addresses {
        s3: listing.url(),
        ..queue.addresses(&harness.objects)
    };
    let worker = Worker::prepare(&harness.sluice, harness, &at, database, "", "")?;
    let bucket = format!("s3://{BUCKET}");
    let mut command = worker.command(&["backfill", &bucket, "--output", "json"]);
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut peak_mib = 0.0;
    while child.try_wait()?.is_none() {
        // The process may be about to exit.
        peak_mib = memory(child.id(), "VmHWM:").unwrap_or(peak_mib);
        sleep(POLL).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let output = child.wait_with_output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["already_loaded"] == keys, "{report}");
    Ok(Backfill {
        keys,
        seconds,
        peak_mib,
    })
}

/// Records the first keys of the listing as one loaded batch.
async fn fill(harness: &Harness, database: &Database<'_>, keys: u64) -> Result<()> {
    let (name, clickhouse) = (&database.name, &harness.clickhouse);
    for first in (0..keys).step_by(KEYS_PER_INSERT as usize) {
        let rows = (first..keys.min(first + KEYS_PER_INSERT)).map(|number| {
            let object = object(BUCKET, Listing::key(number), Listing::etag(number), None);
            let ObjectParts { key, etag, .. } = &*object;
            format!("{}\t{BUCKET}\t{key}\t{etag}\t{BATCH}\n", object.id())
        });
        let rows: String = rows.collect();
        let insert = format!(
            "INSERT INTO {name}.ledger_objects (object_id, bucket, key, etag, batch_id) \
             SETTINGS max_query_size = 100000000 FORMAT TSV\n{rows}"
        );
        clickhouse.execute(&insert).await?;
    }
    let loaded =
        format!("INSERT INTO {name}.ledger_batches (batch_id, event) VALUES ('{BATCH}', 'loaded')");
    clickhouse.execute(&loaded).await
}
