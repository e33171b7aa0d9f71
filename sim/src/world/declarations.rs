//! The event types of worlds with replays of rejects, before an operator fixes them and afterwards,
//! and the lines that are valid only then. Other worlds have fewer event types, which do not change.

use std::sync::LazyLock;

use fastrand::Rng;
use sluice::rejects::RejectKind;
use sluice_core::event_types::Catalog;

use super::plan::{Fault, Plan};
use super::settings::{catalog, declaration};

/// The limit of lines. No line is longer.
const MAX_LINE_BYTES: u64 = 1_000;
/// The limit before the fix: some lines are longer.
const LOW_MAX_LINE_BYTES: u64 = 30;

/// The event type that is looked for in no object before the fix, so that its lines are unmatched.
const TAPPED: &str = "tapped";
/// The event type with lines that are too long before the fix, so that they are rejected.
const CLICKED: &str = "clicked";

/// The declared event types and the limit of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Declarations {
    Usual,
    BeforeFix,
    /// As before, without the wrong route and the low limit. The tables are the same.
    Fixed,
}

impl Declarations {
    /// Returns those with which a world begins.
    pub(super) fn of(plan: &Plan) -> Self {
        match plan.has(Fault::Replay) {
            true => Self::BeforeFix,
            false => Self::Usual,
        }
    }

    /// Returns those of a worker that starts after an operator has deployed the fix.
    pub(super) fn fixed(self) -> Self {
        match self {
            Self::Usual => Self::Usual,
            Self::BeforeFix | Self::Fixed => Self::Fixed,
        }
    }

    pub(super) fn catalog(self) -> &'static Catalog {
        static BEFORE_FIX: LazyLock<Catalog> =
            LazyLock::new(|| with_tapped("keys: ['nowhere/**']\n"));
        static FIXED: LazyLock<Catalog> = LazyLock::new(|| with_tapped(""));
        match self {
            Self::Usual => catalog(),
            Self::BeforeFix => &BEFORE_FIX,
            Self::Fixed => &FIXED,
        }
    }

    pub(super) fn max_line_bytes(self) -> u64 {
        match self {
            Self::BeforeFix => LOW_MAX_LINE_BYTES,
            Self::Usual | Self::Fixed => MAX_LINE_BYTES,
        }
    }
}

fn with_tapped(keys: &str) -> Catalog {
    let files = [
        declaration("viewed", ""),
        declaration(CLICKED, ""),
        declaration(TAPPED, keys),
    ];
    Catalog::from_files(files).expect("the declarations are sound")
}

/// Returns a line that is a reject before the fix, and valid afterwards.
pub(super) fn fixable_line(rng: &mut Rng) -> String {
    if rng.bool() {
        return TAPPED.to_owned();
    }
    format!("{CLICKED}{}", " ".repeat(rng.usize(24..=40)))
}

/// Returns the table of a line once the fix is deployed and rejects were replayed, or `None` for a
/// blank line.
pub(super) fn final_table(line: &str) -> Option<&'static str> {
    let word = line.trim();
    let types = Declarations::Fixed.catalog().types();
    match types.iter().find(|event_type| event_type.name == word) {
        Some(event_type) => Some(&event_type.table),
        None if word.is_empty() => None,
        None if word == RejectKind::Unmatched.kind() => Some(RejectKind::Unmatched.table()),
        None => Some(RejectKind::Rejected.table()),
    }
}
