//! Writes why objects could not be loaded.

use serde::Serialize;
use uuid::Uuid;

use super::history::FailedObject;
use super::{DISMISSED, FAILURES_TABLE, Ledger};
use crate::clickhouse::WarehouseError;
use crate::object::ObjectRef;

/// An object that could not be loaded.
#[derive(Debug)]
pub struct Failure<'a> {
    pub object: &'a ObjectRef,
    /// The failure class, one word for statistics and filters.
    pub class: &'static str,
    pub reason: &'a str,
    /// Some of its records, for a failure that they show best.
    pub sample: &'a [String],
}

#[derive(Serialize)]
struct FailureRow<'a> {
    object_id: Uuid,
    bucket: &'a str,
    key: &'a str,
    etag: &'a str,
    class: &'a str,
    reason: &'a str,
    sample: &'a [String],
    worker: &'a str,
}

impl Ledger {
    /// Records why objects could not be loaded.
    pub async fn record_failures(&self, failures: &[Failure<'_>]) -> Result<(), WarehouseError> {
        let rows: Vec<FailureRow<'_>> = failures
            .iter()
            .map(|failure| FailureRow {
                object_id: failure.object.id().0,
                bucket: &failure.object.bucket,
                key: &failure.object.key,
                etag: &failure.object.etag,
                class: failure.class,
                reason: failure.reason,
                sample: failure.sample,
                worker: &self.worker,
            })
            .collect();
        self.warehouse.insert(FAILURES_TABLE, &rows).await
    }

    /// Records that a user has dismissed these failures.
    pub async fn dismiss(
        &self,
        failed: &[FailedObject],
        reason: &str,
    ) -> Result<(), WarehouseError> {
        let rows: Vec<FailureRow<'_>> = failed
            .iter()
            .map(|failed| FailureRow {
                object_id: failed.object_id,
                bucket: &failed.bucket,
                key: &failed.key,
                etag: &failed.etag,
                class: DISMISSED,
                reason,
                sample: &[],
                worker: &self.worker,
            })
            .collect();
        self.warehouse.insert(FAILURES_TABLE, &rows).await
    }
}
