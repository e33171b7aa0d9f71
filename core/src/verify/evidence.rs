//! What is known about the rows of one object in one table, and what follows from it.

use uuid::Uuid;

use super::Emptied;

crate::labelled! {
    /// What a difference between a table and the ledger means.
    pub enum TableVerdict {
        /// Rows are lost.
        Missing = "missing",
        /// The table has more rows than were loaded.
        Doubled = "doubled",
        /// The table has rows of a batch that is not in force: released, or superseded.
        Released = "released",
        /// The table was truncated, restored or exchanged, so that rows of whole batches are lost.
        Replaced = "replaced",
        /// A merge has collapsed rows that are equal in the sorting key. Nothing is lost.
        Merged = "merged",
        /// The TTL of the table has passed for the rows.
        Expired = "expired",
        /// A DELETE of somebody else than Sluice matches the rows.
        Deleted = "deleted",
        /// The partition of the rows was dropped.
        DroppedPartition = "dropped_partition",
        /// The ledger has no record of the rows.
        Unknown = "unknown",
        /// Rows are missing, and the evidence does not show why.
        Unexplained = "unexplained",
    }
}

impl TableVerdict {
    /// Returns whether the table is as it should be: rows went away on purpose, or lost nothing.
    pub fn is_sound(self) -> bool {
        match self {
            Self::Merged | Self::Expired | Self::Deleted | Self::DroppedPartition => true,
            Self::Missing
            | Self::Doubled
            | Self::Released
            | Self::Replaced
            | Self::Unknown
            | Self::Unexplained => false,
        }
    }

    /// Returns whether somebody removed the rows on purpose, so that they must not come back.
    pub fn is_on_purpose(self) -> bool {
        matches!(self, Self::Deleted | Self::DroppedPartition)
    }
}

crate::labelled! {
    /// How far the evidence reaches.
    pub enum Confidence {
        /// It follows from the rows themselves.
        Certain = "certain",
        /// Everything that was seen fits it.
        Likely = "likely",
    }
}

/// One conclusion from the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: TableVerdict,
    pub confidence: Confidence,
    pub rows: u64,
    /// What it follows from, for human readers.
    pub evidence: String,
}

/// What is known about the rows of one object in one table. No batch is in progress on the object.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The rows that `object_rows` counts for the batches in force, without what replays moved.
    pub expected: u64,
    /// The rows of these batches in the table.
    pub found: u64,
    /// The rows of other batches.
    pub strays: Vec<Stray>,
    /// Whether the table's TTL depends on the time of the load alone, and has passed.
    pub has_expired: bool,
    pub reread: Reread,
    /// If the table has no rows of this batch and of its neighbours in time.
    pub emptied: Option<Emptied>,
    pub is_partitioned: bool,
    /// Whether ClickHouse's query log shows that a partition was dropped, detached or moved since
    /// the load.
    pub was_partition_dropped: bool,
    /// Whether it shows that the table was truncated, exchanged or restored since the load.
    pub was_truncated: bool,
    /// The number of DELETEs of others than Sluice since the load, and of TTLs, that may have
    /// removed rows of the object. DELETEs that the server may have forgotten count as one. It
    /// matters only if the object was not read again.
    pub removals: u64,
}

/// Rows of a batch that is not in force for the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    pub batch: Uuid,
    pub rows: u64,
    pub kind: StrayKind,
}

/// Why a batch is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrayKind {
    Released,
    Superseded,
    /// The ledger does not have the batch, or not with this object.
    Unrecorded,
}

/// The result of reading an object of which rows are missing again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reread {
    /// It was not read, for this reason.
    Not(String),
    Rows(RereadRows),
}

/// The rows that an object has for a table now, by what became of them. Rows are compared by the
/// table's sorting key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RereadRows {
    /// Rows of which the table has one that is equal in the sorting key, of whatever batch.
    pub kept: u64,
    /// Rows that are not in the table, and for which the TTL has passed.
    pub expired: u64,
    /// Rows that are not in the table, and that a DELETE since the load matches.
    pub deleted: u64,
    /// Rows that are not in the table for neither of these reasons.
    pub absent: u64,
    /// Those of the absent rows whose partition has no row of a batch that was loaded by then.
    pub in_emptied_partitions: u64,
    /// The number of these partitions.
    pub emptied_partitions: u64,
    /// Whether the table has rows of batches that were loaded by then in other partitions.
    pub has_earlier_rows: bool,
    /// The number of DELETEs since the load, and of TTLs, that cannot be compared with the rows.
    /// DELETEs that the server may have forgotten count as one.
    pub uncompared: u64,
}

impl RereadRows {
    /// Returns the number of rows that the object has for the table.
    pub fn all(&self) -> u64 {
        self.kept + self.expired + self.deleted + self.absent
    }
}
