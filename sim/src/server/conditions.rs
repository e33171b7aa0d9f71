//! Selections of rows of a table.

use std::collections::{BTreeMap, BTreeSet};

use sluice::batch::BatchId;
use sluice::object::ObjectId;

use super::parts::PartRows;

/// A selection of rows of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Of(BatchId),
    InParts(BatchId, Vec<String>),
    /// The rows of any of these batches from any of these objects.
    From(BTreeSet<BatchId>, BTreeSet<ObjectId>),
    /// The rejects in the snapshot of this replay. A statement that has this condition looks for
    /// them when it runs, and has [`Condition::Lines`] then.
    MovedBy(BatchId),
    /// These lines, each an object and a number, of these batches.
    Lines(BTreeMap<BatchId, BTreeSet<(ObjectId, u64)>>),
}

impl Condition {
    /// Returns whether rows of a part of this name can meet the condition.
    pub(super) fn has_part(&self, name: impl FnOnce() -> String) -> bool {
        match self {
            Self::InParts(_, names) => names.contains(&name()),
            Self::Of(_) | Self::From(..) | Self::MovedBy(_) | Self::Lines(_) => true,
        }
    }

    /// Returns whether a row of one of its batches and parts meets the condition.
    pub(super) fn has_row(&self, batch: BatchId, row: &PartRows) -> bool {
        match self {
            Self::From(_, objects) => objects.contains(&row.object),
            Self::Lines(lines) => {
                let lines = lines.get(&batch).zip(row.line.as_ref());
                lines.is_some_and(|(lines, line)| lines.contains(&(row.object, line.number)))
            }
            Self::Of(_) | Self::InParts(..) | Self::MovedBy(_) => true,
        }
    }

    /// Returns the batches whose rows can meet the condition.
    pub(super) fn batches(&self) -> impl Iterator<Item = BatchId> {
        let (one, several, with_lines) = match self {
            Self::Of(batch) | Self::InParts(batch, _) => (Some(*batch), None, None),
            Self::From(batches, _) => (None, Some(batches), None),
            Self::Lines(lines) => (None, None, Some(lines)),
            Self::MovedBy(_) => (None, None, None),
        };
        let several = several.into_iter().flatten().copied();
        let with_lines = with_lines.into_iter();
        let with_lines = with_lines.flat_map(|lines| lines.keys().copied());
        one.into_iter().chain(several).chain(with_lines)
    }
}
