//! Compares the cost of a batch with a large and with an empty ledger, in turns.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sluice_bench::gate::median;

use crate::contenders::sluice::load_with;
use crate::harness::{Database, Harness};
use crate::note;
use crate::workload::Workload;

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Growth {
    ledger_objects: u64,
    objects: usize,
    empty_seconds: Vec<f64>,
    full_seconds: Vec<f64>,
    ratio: f64,
}

impl Growth {
    /// Returns a row of a Markdown table.
    pub(crate) fn row(&self) -> String {
        format!(
            "| {} objects with a ledger of {}: time relative to an empty ledger | {:.2} |\n",
            self.objects, self.ledger_objects, self.ratio
        )
    }
}

pub(crate) async fn run(
    harness: &Harness,
    workload: &Workload,
    share: f64,
    ledger_objects: u64,
    samples: usize,
) -> Result<Growth> {
    let uploaded = workload.upload(&harness.objects, share);
    let full = harness.migrated().await?;
    note(&format!("filling a ledger with {ledger_objects} objects"));
    fill(harness, &full, ledger_objects).await?;
    let (mut empty_seconds, mut full_seconds) = (Vec::new(), Vec::new());
    for round in 0..=samples {
        let empty = harness.database().await?;
        let seconds = load_with(&harness.sluice, 1, "", harness, &uploaded, &empty)
            .await?
            .seconds;
        empty.remove().await?;
        let with_full = load_with(&harness.sluice, 1, "", harness, &uploaded, &full)
            .await?
            .seconds;
        remove_loaded(harness, &full, ledger_objects).await?;
        note(&format!(
            "{round}/{samples}: {seconds:.2} s, and {with_full:.2} s with a full ledger"
        ));
        if round > 0 {
            empty_seconds.push(seconds);
            full_seconds.push(with_full);
        }
    }
    full.remove().await?;
    Ok(Growth {
        ledger_objects,
        objects: uploaded.objects.len(),
        ratio: median(&full_seconds) / median(&empty_seconds),
        empty_seconds,
        full_seconds,
    })
}

/// Fills the ledger with loaded batches of a thousand objects.
async fn fill(harness: &Harness, database: &Database<'_>, objects: u64) -> Result<()> {
    let name = &database.name;
    let batch = "toUUID(concat('00000000-0000-7000-8000-', \
                 leftPad(toString(intDiv(number, 1000)), 12, '0')))";
    for sql in [
        format!(
            "INSERT INTO {name}.ledger_objects (object_id, bucket, key, etag, batch_id) \
             SELECT generateUUIDv4(), 'bucket', concat('section/', toString(number)), \
             lower(hex(sipHash128(number))), {batch} FROM numbers({objects})"
        ),
        format!(
            "INSERT INTO {name}.ledger_batches (batch_id, event) \
             SELECT DISTINCT {batch}, 'loaded' FROM numbers({objects})"
        ),
        format!("OPTIMIZE TABLE {name}.ledger_objects FINAL"),
    ] {
        harness.clickhouse.execute(&sql).await?;
    }
    Ok(())
}

/// Removes the loaded data, so that it can be loaded again.
async fn remove_loaded(harness: &Harness, database: &Database<'_>, kept: u64) -> Result<()> {
    let name = &database.name;
    for table in ["ledger_objects", "ledger_batches", "object_rows"] {
        let sql = format!(
            "DELETE FROM {name}.{table} WHERE toString(batch_id) NOT LIKE '00000000-0000-7000-%' \
             SETTINGS mutations_sync = 1, lightweight_deletes_sync = 1"
        );
        harness.clickhouse.execute(&sql).await?;
    }
    let left = format!("SELECT count() FROM {name}.ledger_objects");
    let left: u64 = harness.clickhouse.scalar(&left).await?;
    anyhow::ensure!(
        left == kept,
        "{left} objects are left in the ledger, not {kept}"
    );
    for kind in sluice_testkit::xapi::EventType::ALL {
        let sql = format!("TRUNCATE TABLE {name}.{}", kind.table());
        harness.clickhouse.execute(&sql).await?;
    }
    Ok(())
}
