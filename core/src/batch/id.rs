use std::fmt;

use uuid::Uuid;

use crate::Env;

/// The id of a batch: time-ordered (UUID version 7). It is the stem of the batch's query ids, its
/// deduplication token and the `batch_id` of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub Uuid);

impl BatchId {
    /// Returns a new id. Ids sort by the time at which they were made, to the millisecond.
    pub fn new(env: &Env) -> Self {
        Self(env.new_id())
    }

    /// Returns when the id was made, in seconds since 1970; `None` for a UUID without a time, which
    /// [`BatchId::new`] never makes.
    pub fn made_at(self) -> Option<u64> {
        let (seconds, _) = self.0.get_timestamp()?.to_unix();
        Some(seconds)
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
