//! The ledger's tables, which record the objects that are loaded or claimed by a batch.
//!
//! Every operation is one statement, whatever the number of objects, and touches only the rows of
//! the objects and batches that it names. On replicas, reads take a few statements more. All
//! operations may be repeated: a duplicate row in the ledger changes nothing. See [`protocol`] for
//! the order in which they are used.

mod claims;
mod events;
mod failures;
pub mod history;
mod manifest;
mod permits;

use std::time::Duration;

use crate::Env;
use crate::batch::BatchId;
use crate::clickhouse::Warehouse;
use crate::object::ObjectRef;
pub use claims::{Claims, Replacement, UnfinishedReplay};
pub(crate) use claims::{IS_REPLAY, quoted_list};
pub use failures::Failure;
pub(crate) use manifest::RecordedObject;
pub use manifest::{Manifest, ManifestEntry};
pub use permits::{Permit, Stopped, until_stopped};
pub use sluice_core::ledger::{drive, protocol};

pub use crate::statements::ddl::{BATCHES_TABLE, FAILURES_TABLE, OBJECTS_TABLE};

/// The class of a row of [`FAILURES_TABLE`] that is not a failure, but dismisses the earlier
/// failures of the object.
pub const DISMISSED: &str = "dismissed";

#[derive(Clone)]
pub struct Ledger {
    warehouse: Warehouse,
    /// The worker's name in the ledger's rows, for human readers.
    worker: String,
    times: LedgerTimes,
    env: Env,
}

/// The times by which other workers know when they may recover a batch.
#[derive(Clone, Copy, Debug)]
pub struct LedgerTimes {
    /// How long other workers must not touch a batch after its worker was last heard of.
    pub lease: Duration,
    /// How long a statement of a batch can run.
    pub statement: Duration,
}

/// The claim of a batch on one object.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub object: &'a ObjectRef,
    /// The loaded batches whose rows of the object are superseded.
    pub supersedes: &'a [BatchId],
}

impl<'a> Claim<'a> {
    /// Returns the claim on an object that no batch has loaded.
    pub fn of(object: &'a ObjectRef) -> Self {
        Self {
            object,
            supersedes: &[],
        }
    }
}

impl Ledger {
    /// Creates the ledger of a worker.
    pub fn new(
        warehouse: Warehouse,
        worker: impl Into<String>,
        times: LedgerTimes,
        env: Env,
    ) -> Self {
        Self {
            warehouse,
            worker: worker.into(),
            times,
            env,
        }
    }

    pub fn lease(&self) -> Duration {
        self.times.lease
    }

    /// Returns a client whose statements have the batch as their comment.
    fn of(&self, batch: BatchId) -> Warehouse {
        self.warehouse.commented(&format!("sluice batch {batch}"))
    }

    fn lease_seconds(&self) -> u32 {
        whole_seconds(self.times.lease)
    }

    fn statement_seconds(&self) -> u32 {
        whole_seconds(self.times.statement)
    }
}

fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
