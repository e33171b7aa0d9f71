use std::fmt;

use uuid::Uuid;

/// The id of a batch: time-ordered (UUID version 7). It is the stem of the batch's query ids, its
/// dedup token and the `batch_id` of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub Uuid);

impl BatchId {
    /// Returns a new id, which sorts after those that were made before it.
    pub fn now() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
