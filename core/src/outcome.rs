//! The outcomes of the objects of a batch.

use crate::labelled;
use crate::object::ObjectId;

labelled! {
    /// The outcome of loading an object. The labels are values of the `outcome` label in metrics.
    pub enum Outcome {
        Loaded = "loaded",
        /// It was loaded before.
        Duplicate = "duplicate",
        /// It was gone before it was read, which is recorded in the ledger.
        Missing { acknowledge: bool } = "missing",
        /// It cannot be loaded, or not at present; the ledger has the reason.
        Failed = "failed",
        /// Another batch claims it; it is looked up again later.
        Busy = "busy",
        /// The worker is shutting down.
        Abandoned = "abandoned",
    }
}

labelled! {
    /// Why an object cannot be loaded. The labels are values of `ledger_failures.class`.
    pub enum FailureClass {
        Missing = "missing",
        Denied = "denied",
        Rejected = "rejected",
        Unnameable = "unnameable",
        Unloadable = "unloadable",
        /// It cannot be determined whether it is complete.
        Unproven = "unproven",
        /// A materialized view of the user's fails on it.
        View = "view",
    }
}

/// The outcome of each object, by the identity with which it was announced.
pub type Outcomes = Vec<(ObjectId, Outcome)>;
