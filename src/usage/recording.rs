//! Records what a process uses, every few minutes and at its end.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Usage;
use crate::clickhouse::error_class::with_advice;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::statements::ddl::USAGE_TABLE;
use crate::util::outage::OutageLog;

/// Each record is an insert of about ten rows.
const INTERVAL: Duration = Duration::from_secs(300);
/// The time that the last record may take, since a stop waits for it.
const LAST: Duration = Duration::from_secs(2);

/// A task that records until it is ended.
#[derive(Debug)]
pub struct Recording {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

#[derive(Serialize)]
struct Row<'a> {
    worker: &'a str,
    kind: &'a str,
    operation: &'a str,
    amount: u64,
}

struct Recorder {
    usage: Arc<Usage>,
    warehouse: Warehouse,
    worker: String,
}

impl Recording {
    /// Starts recording under the name of a worker. The first record is written after some minutes.
    pub fn start(usage: Arc<Usage>, warehouse: Warehouse, worker: impl Into<String>) -> Self {
        let recorder = Recorder {
            usage,
            warehouse,
            worker: worker.into(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(recorder.run(stop.clone()));
        Self { stop, task }
    }

    /// Writes the last record, which is given up if ClickHouse does not answer soon.
    pub async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            debug!(%error, "failed to record the usage of the worker");
        }
    }
}

impl Recorder {
    async fn run(self, stop: CancellationToken) {
        let mut outage = OutageLog::once();
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            match self.record().await {
                Ok(()) => drop(outage.succeeded()),
                Err(error) => {
                    if outage.failed(error.code()).is_mentioned {
                        let error = with_advice(&error);
                        warn!(error, "failed to record the usage of the worker; retrying");
                    }
                }
            }
        }
        match timeout(LAST, self.record()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!(%error, "failed to record the usage of the worker since its last record");
            }
            Err(_) => debug!("ClickHouse did not record the usage of the worker in time"),
        }
    }

    async fn record(&self) -> Result<(), WarehouseError> {
        let amounts = self.usage.take();
        let rows: Vec<Row<'_>> = amounts
            .iter()
            .map(|amount| Row {
                worker: &self.worker,
                kind: amount.kind,
                operation: &amount.operation,
                amount: amount.amount,
            })
            .collect();
        let written = self.warehouse.insert(USAGE_TABLE, &rows).await;
        if written.is_err() {
            self.usage.put_back(amounts);
        }
        written
    }
}
