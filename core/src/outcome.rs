//! What became of the objects of a batch.

use crate::labelled;
use crate::object::ObjectId;

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Loaded,
    /// It was loaded before.
    Duplicate,
    /// Another batch has it in hand: ask again later.
    Busy,
    /// It cannot be loaded, or not now; the ledger has the reason.
    Failed,
    /// It was gone before it was read; the ledger says so.
    Missing {
        acknowledge: bool,
    },
    /// The worker shuts down.
    Abandoned,
}

impl Outcome {
    /// The value of the `outcome` label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Duplicate => "duplicate",
            Self::Busy => "busy",
            Self::Failed => "failed",
            Self::Missing { .. } => "missing",
            Self::Abandoned => "abandoned",
        }
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
