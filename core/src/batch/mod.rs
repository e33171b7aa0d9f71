//! Batches: objects that are loaded by one insert.

mod batcher;
mod id;
mod layout;
mod size;
mod statement_shape;

use tokio::time::Instant;

pub use batcher::{BatchLimits, Batcher};
pub use id::BatchId;
pub use layout::Layout;
pub use size::{ASSUMED_BYTES, ASSUMED_COMPRESSION_RATIO, estimated_bytes, mean_bytes};
pub use statement_shape::{Fallback, ReadBy, StatementShape};

use crate::labelled;
use crate::object::ObjectRef;

labelled! {
    /// Why a batch was closed. The labels are values of the `reason` label in metrics.
    pub enum CloseReason {
        Window = "window",
        /// A load slot was idle before the window ended.
        Idle = "idle",
        Count = "count",
        Bytes = "bytes",
        /// The next object is another version of a key in the batch: one statement cannot read
        /// both.
        SameKey = "same_key",
        /// The object is too large to share a batch.
        Large = "large",
        /// Batches of too many buckets are open.
        Buckets = "buckets",
    }
}

/// A closed batch. Its objects do not change any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub bucket: String,
    /// Sorted by key, every key once.
    pub objects: Vec<ObjectRef>,
    pub reason: CloseReason,
    /// When its first object was added.
    pub opened_at: Instant,
    pub closed_at: Instant,
}
