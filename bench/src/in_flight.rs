//! The memory of a worker with messages in flight.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sluice::object::ObjectRef;

use crate::contenders::sluice::Worker;
use crate::harness::Harness;
use crate::note;
use crate::queue::QueueServer;
use crate::workload::object;

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct InFlight {
    messages: usize,
    rss_mib: f64,
}

impl InFlight {
    /// Returns a row of a Markdown table.
    pub(crate) fn row(&self) -> String {
        format!(
            "| resident memory with {} messages in flight | {:.0} MiB |\n",
            self.messages, self.rss_mib
        )
    }
}

/// Batches do not close, so that all received messages stay in flight.
const CONFIGURATION: &str = "batch:
  window: 1h
  flush_when_idle: false
  max_objects: 5000
";
/// Fewer messages than close a batch. Each bucket has its own batch.
const MESSAGES_PER_BUCKET: usize = 4_000;

pub(crate) async fn run(harness: &Harness, messages: usize) -> Result<InFlight> {
    let database = harness.database().await?;
    let objects: Vec<ObjectRef> = (0..messages).map(numbered_object).collect();
    let server = QueueServer::start(&objects).await?;
    let queue = format!("  max_held: {messages}\n  visibility_timeout: 1h\n");
    let at = server.addresses(&harness.objects);
    let mut worker = Worker::prepare(
        &harness.sluice,
        harness,
        &at,
        &database,
        &queue,
        CONFIGURATION,
    )?
    .start()?;
    let all = messages as u64;
    worker
        .wait_until(async || Ok(server.depth().await?.1 >= all))
        .await?;
    let rss_mib = worker.rss_mib()?;
    drop(worker);
    database.remove().await?;
    note(&format!("{messages} messages in flight: {rss_mib:.1} MiB"));
    Ok(InFlight { messages, rss_mib })
}

fn numbered_object(number: usize) -> ObjectRef {
    let bucket = format!("uploads-{}", number / MESSAGES_PER_BUCKET);
    let key = format!(
        "section/{}/attempt_evaluated/2026-07-14T12-00-00.{number:06}Z_{number:017x}.jsonl",
        4000 + number % 800
    );
    object(&bucket, key, format!("{number:032x}"), Some(1_500))
}
