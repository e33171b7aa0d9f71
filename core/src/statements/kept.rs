//! The lines that became no row, and where they are kept.

use super::select::Target;
use crate::batch::ReadBy;

/// Why a line is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectKind {
    /// It cannot become a row.
    Rejected,
    /// No event type takes it.
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

    /// The table that has them.
    pub fn table(self) -> &'static str {
        self.target().table()
    }

    /// As `object_rows` and `landing` have it.
    pub fn kind(self) -> &'static str {
        self.target().kind().unwrap_or_default()
    }

    /// How the ledger names a batch that moves such lines.
    pub fn read_by(self) -> ReadBy {
        match self {
            Self::Rejected => ReadBy::RejectedLines,
            Self::Unmatched => ReadBy::UnmatchedStatements,
        }
    }

    /// What such a batch moves.
    pub fn moved_by(read_by: ReadBy) -> Option<Self> {
        Self::ALL.into_iter().find(|kept| kept.read_by() == read_by)
    }
}
