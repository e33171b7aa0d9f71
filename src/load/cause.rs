//! The reasons why objects are not loaded.

use super::FailureClass;
use crate::clickhouse::WarehouseError;
use crate::clickhouse::error_class::{ErrorClass, diagnosis, named_object};
use crate::object::{Compression, ObjectRef};
use crate::s3::StoreError;

/// Why a batch was given up, and therefore why an object of it is not loaded. Its text is the
/// reason that the ledger records.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum FailureCause {
    /// An error returned by ClickHouse, S3, or a proxy in between.
    #[error(transparent)]
    Answer(#[from] WarehouseError),
    #[error("too large for one insert (`load.max_memory`): {0}")]
    TooLarge(WarehouseError),
    /// A user's view fails on the object.
    #[error(transparent)]
    View(WarehouseError),
    /// A document of which ClickHouse must keep the whole list in memory.
    #[error(
        "a list in this document needs more memory than one insert may use (`load.max_memory`), \
         since ClickHouse reads it as a whole: raise the limit, or write smaller documents: {0}"
    )]
    DocumentTooLarge(WarehouseError),
    #[error("ClickHouse read nothing of {0}, although it is not empty")]
    Unread(ObjectRef),
    #[error("{0} is compressed, but its name has no matching extension")]
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
    #[error(
        "all {records} records of s3://{path} are rejected{}, and such objects fail \
         (`on_all_rejected`); the first: {reason}",
        looks_like(seen)
    )]
    AllRejected {
        path: String,
        records: u64,
        /// Why the first record is rejected.
        reason: String,
        /// What the content looks like, if it is not of the declared format.
        seen: Option<String>,
        /// The first records.
        sample: Vec<String>,
    },
    #[error("{object} is declared as {declared}, but it looks like {seen}: {problem}")]
    WrongFile {
        object: ObjectRef,
        /// The name and the kind of the format.
        declared: String,
        seen: String,
        problem: String,
    },
    /// The header, or the schema, is not one that can be read.
    #[error("{problem}: while reading the structure of {}", object.path())]
    Structure { object: ObjectRef, problem: String },
    #[error(
        "{object} cannot be streamed: ClickHouse needs the whole body of a {kind} file in memory, \
         and this one has more than {max} bytes; let ClickHouse read it itself, from a key that it \
         can address"
    )]
    Unstreamable {
        object: ObjectRef,
        kind: &'static str,
        max: u64,
    },
    /// The content is cut short, or does not match the name.
    #[error("{problem}: while reading {}", object.path())]
    Incomplete { object: ObjectRef, problem: String },
    #[error(
        "cannot prove that {object} is whole: ClickHouse does not notice when a .{extension} \
         stream is cut short, and {why}; {advice}, or set `load.accept_unproven: [{extension}]`",
        extension = Compression::of(&object.key).extension()
    )]
    Unproven {
        object: ObjectRef,
        why: String,
        advice: &'static str,
    },
    #[error(
        "ClickHouse cannot address this key alone: it contains `*`, `?`, `//`, `{{…}}`, a line \
         break, or a `.` or `..` between slashes; copy the object to another key"
    )]
    Unnameable,
    #[error("table row counts do not match `object_rows`")]
    RowCountMismatch,
    #[error("this batch was claimed under another configuration and cannot be retried")]
    OtherPlan,
    #[error("the tables may have forgotten the deduplication token of this batch")]
    Forgotten,
    #[error("released without a reason")]
    Unknown,
}

impl From<StoreError> for FailureCause {
    fn from(error: StoreError) -> Self {
        Self::Answer(error.into())
    }
}

impl FailureCause {
    /// Returns the class that is recorded for an object that is not loaded for this cause.
    pub(super) fn class(&self) -> FailureClass {
        match self {
            Self::Answer(error) | Self::TooLarge(error) | Self::DocumentTooLarge(error) => {
                diagnosis(error).failure_class
            }
            Self::View(_) => FailureClass::View,
            Self::Rejected { .. } | Self::AllRejected { .. } => FailureClass::Rejected,
            Self::Unproven { .. } => FailureClass::Unproven,
            Self::Unnameable | Self::Unstreamable { .. } => FailureClass::Unnameable,
            Self::Unread(_)
            | Self::Misnamed(_)
            | Self::WrongFile { .. }
            | Self::Structure { .. }
            | Self::Incomplete { .. }
            | Self::RowCountMismatch
            | Self::OtherPlan
            | Self::Forgotten
            | Self::Unknown => FailureClass::Unloadable,
        }
    }

    /// Returns the records that are kept with the failure.
    pub(super) fn sample(&self) -> &[String] {
        match self {
            Self::AllRejected { sample, .. } => sample,
            _ => &[],
        }
    }

    /// Returns the index of the object that is at fault, or `None` if the cause names none of these
    /// objects.
    pub(super) fn culprit<'a>(
        &self,
        objects: impl Iterator<Item = &'a ObjectRef>,
    ) -> Option<usize> {
        match self {
            Self::Answer(error)
            | Self::TooLarge(error)
            | Self::DocumentTooLarge(error)
            | Self::View(error) => culprit(error, objects),
            Self::Unread(object)
            | Self::Misnamed(object)
            | Self::WrongFile { object, .. }
            | Self::Structure { object, .. }
            | Self::Unstreamable { object, .. }
            | Self::Incomplete { object, .. }
            | Self::Unproven { object, .. } => position(&object.path(), objects),
            Self::Rejected { path, .. } | Self::AllRejected { path, .. } => position(path, objects),
            Self::Unnameable
            | Self::RowCountMismatch
            | Self::OtherPlan
            | Self::Forgotten
            | Self::Unknown => None,
        }
    }
}

/// Returns the index of the object that an error names, if it names one of these.
pub(super) fn culprit<'a>(
    error: &WarehouseError,
    objects: impl Iterator<Item = &'a ObjectRef>,
) -> Option<usize> {
    match error {
        WarehouseError::Source(error) => position(error.path(), objects),
        // ClickHouse names the object in the text of its error.
        error => {
            let keys = objects.map(|object| object.key.as_str());
            named_object(&error.to_string(), keys.enumerate())
        }
    }
}

fn looks_like(seen: &Option<String>) -> String {
    seen.as_ref()
        .map(|seen| format!(": it looks like {seen}"))
        .unwrap_or_default()
}

fn position<'a>(path: &str, mut objects: impl Iterator<Item = &'a ObjectRef>) -> Option<usize> {
    objects.position(|object| object.path() == path)
}

/// Why a batch was given up, and what to do about it.
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

    /// Returns the failure of a batch in which an object is at fault.
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
    fn the_class_of_a_cause_follows_from_its_type_and_not_from_its_text() {
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

    #[test]
    fn an_object_of_which_all_is_rejected_names_its_first_reason_and_keeps_a_sample() {
        let objects = ["k", "l"].map(|key| object("b", key, "e"));
        let cause = |seen: Option<&str>| FailureCause::AllRejected {
            path: objects[1].path(),
            records: 301,
            reason: "not JSON".to_owned(),
            seen: seen.map(str::to_owned),
            sample: vec!["0: not JSON: a,b".to_owned()],
        };
        assert_eq!(cause(None).class(), FailureClass::Rejected);
        assert_eq!(cause(None).culprit(objects.iter()), Some(1));
        assert_eq!(cause(None).sample(), ["0: not JSON: a,b"]);
        assert_eq!(
            cause(None).to_string(),
            "all 301 records of s3://b/l are rejected, and such objects fail (`on_all_rejected`); \
             the first: not JSON"
        );
        let seen = cause(Some("HTML")).to_string();
        assert!(seen.contains("rejected: it looks like HTML, and"), "{seen}");
    }

    #[test]
    fn a_file_of_another_kind_is_unloadable_and_says_what_it_is() {
        let cause = FailureCause::WrongFile {
            object: object("b", "a.csv", "e"),
            declared: "csv (exports)".to_owned(),
            seen: "Parquet".to_owned(),
            problem: "the header is not UTF-8".to_owned(),
        };
        assert_eq!(cause.class(), FailureClass::Unloadable);
        assert_eq!(
            cause.to_string(),
            "s3://b/a.csv is declared as csv (exports), but it looks like Parquet: the header is \
             not UTF-8"
        );
    }
}
