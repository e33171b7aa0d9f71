//! The workloads: objects that are uploaded once and loaded many times.

use std::ops::{Range, RangeInclusive};

use serde::{Deserialize, Serialize};
use sluice::object::{ObjectParts, ObjectRef};
use sluice_testkit::xapi::{Compression, EventType, ExpectedRows, Generator};

use crate::objects::ObjectServer;

/// Objects of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) objects: usize,
    /// Statements in an object; one has about 1.2 KB.
    statements: RangeInclusive<usize>,
    compression: Option<Compression>,
    only: Option<EventType>,
    /// The range of the statements' times; `None` uses the generator's own.
    times: Option<Range<u64>>,
}

/// April 2018 to July 2026, in seconds since 1970: one hundred months, and a partition for each.
/// The first two hours are left out, since a timestamp with an offset can be two hours earlier.
const HUNDRED_MONTHS: Range<u64> = 1_522_548_000..1_785_542_400;

/// The workloads by name.
pub(crate) fn all() -> [Workload; 7] {
    let workload = |name, objects, statements| Workload {
        name,
        objects,
        statements,
        compression: None,
        only: None,
        times: None,
    };
    let mixed = workload("mixed", 2_000, 35..=45);
    [
        workload("tiny", 20_000, 1..=2),
        mixed.clone(),
        workload("large", 100, 4_000..=4_000),
        Workload {
            name: "gz",
            compression: Some(Compression::Gzip),
            ..mixed.clone()
        },
        Workload {
            name: "zst",
            compression: Some(Compression::Zstd),
            ..mixed.clone()
        },
        Workload {
            name: "partitions",
            times: Some(HUNDRED_MONTHS),
            ..mixed.clone()
        },
        Workload {
            name: "single",
            only: Some(EventType::PartAttempt),
            ..mixed
        },
    ]
}

/// A workload that has been uploaded to S3.
#[derive(Debug)]
pub(crate) struct Uploaded {
    /// Sorted by key.
    pub(crate) objects: Vec<ObjectRef>,
    pub(crate) expected_rows: ExpectedRows,
    pub(crate) size: Size,
}

/// The size of a workload.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Size {
    pub(crate) objects: usize,
    /// The number of bytes as stored.
    pub(crate) bytes: u64,
    pub(crate) lines: u64,
}

impl Uploaded {
    pub(crate) fn bucket(&self) -> &str {
        self.objects.first().map_or("", |object| &object.bucket)
    }
}

impl Workload {
    /// Uploads a share of the objects, where 1 is all of them.
    pub(crate) fn upload(&self, to: &ObjectServer, share: f64) -> Uploaded {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count"
        )]
        let count = ((self.objects as f64 * share).ceil() as usize).max(1);
        let mut generator = Generator::new(1)
            .faults(0.0, 0.02)
            .sizes(self.statements.clone());
        generator = match self.compression {
            None => generator.compressed(0.0, Compression::Gzip),
            Some(compression) => generator.compressed(1.0, compression),
        };
        if let Some(times) = &self.times {
            generator = generator.times(times.clone());
        }
        if let Some(only) = self.only {
            generator = generator.only(only);
        }
        let mut expected_rows = ExpectedRows::default();
        let bundles = generator
            .take(count)
            .inspect(|bundle| expected_rows += &bundle.expected_rows);
        // Names of buckets have at least three characters.
        let bucket = format!("bench-{}", self.name);
        let put = bundles.map(|bundle| to.put(&bucket, bundle));
        let mut objects: Vec<ObjectRef> = put.collect();
        objects.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        let bytes = objects.iter().filter_map(|object| object.size).sum();
        let size = Size {
            objects: count,
            bytes,
            lines: expected_rows.statements() + expected_rows.blank,
        };
        Uploaded {
            objects,
            expected_rows,
            size,
        }
    }
}

/// Returns the notification that S3 sends.
pub(crate) fn object(bucket: &str, key: String, etag: String, size: Option<u64>) -> ObjectRef {
    ObjectRef::from(ObjectParts {
        bucket: bucket.to_owned(),
        key,
        etag,
        size,
        ..ObjectParts::default()
    })
}
