//! Why objects are not loaded.

use super::FailureClass;
use crate::clickhouse::WarehouseError;
use crate::clickhouse::error_class::{ErrorClass, diagnosis, named_object};
use crate::object::{Compression, ObjectRef};
use crate::s3::StoreError;

/// Why a batch was given up, and so why an object of it is not loaded. As text it is the reason that
/// the ledger records.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum FailureCause {
    /// What ClickHouse, S3 or something on the way to them has answered.
    #[error(transparent)]
    Answer(#[from] WarehouseError),
    #[error("one insert may not take so much (`load.max_memory`): {0}")]
    TooLarge(WarehouseError),
    /// A user's view fails over it.
    #[error(transparent)]
    View(WarehouseError),
    #[error("ClickHouse read nothing of {0}, although it is not empty")]
    Unread(ObjectRef),
    #[error("{0} is compressed, and its name does not say so")]
    Misnamed(ObjectRef),
    #[error(
        "too many lines are rejected: {rejected} of {lines} of s3://{path}, more than \
         load.max_rejected_ratio ({max})"
    )]
    Rejected {
        path: String,
        rejected: u64,
        lines: u64,
        max: f64,
    },
    /// Its content ends before its end, or is not what its name says.
    #[error("{problem}: while reading {}", object.path())]
    Incomplete { object: ObjectRef, problem: String },
    #[error(
        "nobody can tell whether {object} is whole: ClickHouse does not notice that a \
         .{extension} stream is cut short, and {why}; {advice}, or set `load.accept_unproven: \
         [{extension}]`",
        extension = Compression::of(&object.key).extension()
    )]
    Unproven {
        object: ObjectRef,
        why: String,
        advice: &'static str,
    },
    #[error(
        "ClickHouse cannot be told to read this key and no other: it contains `*`, `?`, `//`, \
         `{{…}}`, a line break, or a `.` or `..` between slashes; copy the object to another key"
    )]
    Unnameable,
    #[error("the tables have other rows than `object_rows` counts, or have them twice")]
    RowCountMismatch,
    #[error("another configuration has sealed this batch: it cannot be replayed")]
    OtherPlan,
    #[error("released without a reason")]
    Unknown,
}

impl From<StoreError> for FailureCause {
    fn from(error: StoreError) -> Self {
        Self::Answer(error.into())
    }
}

impl FailureCause {
    /// The class under which an object is recorded that is not loaded for this cause.
    pub(super) fn class(&self) -> FailureClass {
        match self {
            Self::Answer(error) | Self::TooLarge(error) => diagnosis(error).failure_class,
            Self::View(_) => FailureClass::View,
            Self::Rejected { .. } => FailureClass::Rejected,
            Self::Unproven { .. } => FailureClass::Unproven,
            Self::Unnameable => FailureClass::Unnameable,
            Self::Unread(_)
            | Self::Misnamed(_)
            | Self::Incomplete { .. }
            | Self::RowCountMismatch
            | Self::OtherPlan
            | Self::Unknown => FailureClass::Unloadable,
        }
    }

    /// Returns which of these objects, by its place, is the one at fault; none where the cause names
    /// none of them.
    pub(super) fn culprit<'a>(
        &self,
        objects: impl Iterator<Item = &'a ObjectRef> + Clone,
    ) -> Option<usize> {
        match self {
            Self::Answer(error) | Self::TooLarge(error) | Self::View(error) => {
                culprit(error, objects)
            }
            Self::Unread(object)
            | Self::Misnamed(object)
            | Self::Incomplete { object, .. }
            | Self::Unproven { object, .. } => position(&object.path(), objects),
            Self::Rejected { path, .. } => position(path, objects),
            Self::Unnameable | Self::RowCountMismatch | Self::OtherPlan | Self::Unknown => None,
        }
    }
}

/// Returns which of these objects, by its place, an error names.
pub(super) fn culprit<'a>(
    error: &WarehouseError,
    objects: impl Iterator<Item = &'a ObjectRef>,
) -> Option<usize> {
    match error {
        WarehouseError::Source(error) => position(error.path(), objects),
        // ClickHouse says it in its own words.
        error => {
            let keys = objects.map(|object| object.key.as_str());
            named_object(&error.to_string(), keys.enumerate())
        }
    }
}

fn position<'a>(path: &str, mut objects: impl Iterator<Item = &'a ObjectRef>) -> Option<usize> {
    objects.position(|object| object.path() == path)
}

/// Why a batch was given up, and what is to be done about it.
#[derive(Clone, Debug)]
pub(super) struct BatchFailure {
    pub(super) class: ErrorClass,
    pub(super) cause: FailureCause,
}

impl BatchFailure {
    pub(super) fn new(class: ErrorClass, cause: impl Into<FailureCause>) -> Self {
        Self {
            class,
            cause: cause.into(),
        }
    }

    /// An object is at fault.
    pub(super) fn object_fault(cause: impl Into<FailureCause>) -> Self {
        Self::new(ErrorClass::ObjectFault, cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::fixtures::object;

    fn of_s3(status: u16, code: &str) -> FailureCause {
        StoreError::Refused {
            status,
            code: code.to_owned(),
            path: "b/k".to_owned(),
        }
        .into()
    }

    fn of_clickhouse(code: u32, text: &str) -> FailureCause {
        FailureCause::Answer(WarehouseError::Server {
            code,
            text: text.to_owned(),
        })
    }

    #[test]
    fn a_cause_has_a_class_by_its_type_and_not_by_its_words() {
        let missing = FailureClass::Missing;
        assert_eq!(of_s3(404, "NoSuchKey").class(), missing);
        assert_eq!(of_s3(404, "NoSuchBucket").class(), missing);
        assert_eq!(of_s3(403, "AccessDenied").class(), FailureClass::Denied);
        assert_eq!(of_s3(503, "SlowDown").class(), FailureClass::Unloadable);
        let gone = "HTTP response code: 404: while reading b/k";
        assert_eq!(of_clickhouse(499, gone).class(), missing);
        let words = "too many lines are rejected; NoSuchKey; AccessDenied";
        assert_eq!(of_clickhouse(354, words).class(), FailureClass::Unloadable);
    }

    #[test]
    fn the_object_that_is_at_fault_is_found_by_its_path() {
        let objects = ["k", "k.gz"].map(|key| object("b", key, "e"));
        let unread = |object: &ObjectRef| FailureCause::Unread(object.clone());
        assert_eq!(unread(&objects[0]).culprit(objects.iter()), Some(0));
        assert_eq!(unread(&objects[1]).culprit(objects.iter()), Some(1));
        assert_eq!(of_s3(404, "NoSuchKey").culprit(objects.iter()), Some(0));
        let named = of_clickhouse(354, "inflate failed: while reading b/k.gz");
        assert_eq!(named.culprit(objects.iter()), Some(1));
        let stranger = object("b", "other", "e");
        assert_eq!(unread(&stranger).culprit(objects.iter()), None);
        assert_eq!(FailureCause::RowCountMismatch.culprit(objects.iter()), None);
    }
}
