//! What became of the objects of a batch.

use crate::labelled;
use crate::object::ObjectId;

labelled! {
    /// What became of an object. The labels are values of the `outcome` label in metrics.
    pub enum Outcome {
        Loaded = "loaded",
        /// It was loaded before.
        Duplicate = "duplicate",
        /// It was gone before it was read; the ledger says so.
        Missing { acknowledge: bool } = "missing",
        /// It cannot be loaded, or not now; the ledger has the reason.
        Failed = "failed",
        /// Another batch has it in hand: ask again later.
        Busy = "busy",
        /// The worker shuts down.
        Abandoned = "abandoned",
    }
}

labelled! {
    /// Why an object cannot be loaded, as `ledger_failures.class` has it.
    pub enum FailureClass {
        Missing = "missing",
        Denied = "denied",
        Rejected = "rejected",
        Unnameable = "unnameable",
        Unloadable = "unloadable",
        /// Nobody can tell whether it is whole.
        Unproven = "unproven",
        /// A user's view fails over it.
        View = "view",
    }
}

/// The outcome of each object, under the identity that it was announced with.
pub type Outcomes = Vec<(ObjectId, Outcome)>;
