//! How the statements of a batch are made, which its manifest records.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::labelled;

labelled! {
    /// Who reads the objects of a batch; the labels are the values of `ledger_objects.read_by`.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum ReadBy {
        /// ClickHouse, with `s3()`.
        #[default]
        S3 = "s3",
        /// This worker, which streams them into its insert.
        Stream = "stream",
        /// ClickHouse, from the rejects of the objects in `rejected_lines`: a replay.
        RejectedLines = "rejected_lines",
        /// The same, from `unmatched_statements`.
        UnmatchedStatements = "unmatched_statements",
    }
}

/// When the worker streams objects instead of having ClickHouse read them; the value of
/// `load.fallback`.
// Its variants have no doc comments: schemars would make a `oneOf` of them, and not an `enum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Fallback {
    // Those that ClickHouse cannot read.
    Auto,
    // All of them.
    Always,
    Never,
}

/// How the statements of a batch are made from its manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatementShape {
    /// Workers of the same plan make the same statements from the same manifest.
    pub plan: Uuid,
    /// Whether the objects are read in several blocks, each of which commits by itself.
    pub many_blocks: bool,
    /// Who reads the objects.
    pub read_by: ReadBy,
}

impl StatementShape {
    /// Returns the shape for one block, which has no plan yet.
    pub fn of(read_by: ReadBy) -> Self {
        Self {
            read_by,
            ..Self::default()
        }
    }
}
