//! The kinds of rejects, and the tables that keep them.

use super::select::Target;
use crate::batch::ReadBy;

/// The kind of a reject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectKind {
    /// It cannot become a row.
    Rejected,
    /// No event type matches it.
    Unmatched,
}

impl RejectKind {
    pub const ALL: [Self; 2] = [Self::Rejected, Self::Unmatched];

    fn target(self) -> Target<'static> {
        match self {
            Self::Rejected => Target::RejectedLines,
            Self::Unmatched => Target::UnmatchedStatements,
        }
    }

    /// Returns the table that keeps rejects of this kind.
    pub fn table(self) -> &'static str {
        self.target().table()
    }

    /// Returns the value of `kind` in `object_rows` and `landing`.
    pub fn kind(self) -> &'static str {
        self.target().kind().unwrap_or_default()
    }

    /// Returns how the ledger marks a batch that moves such lines.
    pub fn read_by(self) -> ReadBy {
        match self {
            Self::Rejected => ReadBy::RejectedLines,
            Self::Unmatched => ReadBy::UnmatchedStatements,
        }
    }

    /// Returns the kind of the rejects that a batch with this mark moves; `None` for a batch of
    /// objects.
    pub fn moved_by(read_by: ReadBy) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.read_by() == read_by)
    }
}
