//! The classes that `--error-class` accepts.

use clap::builder::PossibleValuesParser;

use crate::load::FailureClass;

/// Returns a parser of the classes that failed objects have.
pub(super) fn of_objects() -> PossibleValuesParser {
    FailureClass::LABELS.iter().copied().into()
}

/// Returns a parser of the classes that failed objects have, and of `more`.
pub(super) fn of_objects_and(more: &[&'static str]) -> PossibleValuesParser {
    FailureClass::LABELS.iter().chain(more).copied().into()
}
