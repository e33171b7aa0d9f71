//! Warns when the worker has to read all objects itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::warn;

use crate::batch::ReadBy;
use crate::telemetry::metrics;

/// The number of consecutive objects that ClickHouse could not read after which a warning is
/// logged.
const ALL_OF_THE_LAST: usize = 20;

/// Detects when ClickHouse cannot read any object.
#[derive(Debug, Default)]
pub struct Fallbacks {
    /// The number of objects that ClickHouse could not read since it last read one.
    unread: AtomicUsize,
}

impl Fallbacks {
    /// Logs that the worker is about to stream objects that ClickHouse cannot read, for the reason
    /// `text`.
    pub(super) fn begun(&self, objects: usize, text: &str) {
        warn!(
            objects,
            error = text,
            "ClickHouse cannot read some objects; this worker streams them"
        );
        let before = self.unread.fetch_add(objects, Ordering::Relaxed);
        if before < ALL_OF_THE_LAST && before + objects >= ALL_OF_THE_LAST {
            warn!(
                error = text,
                "ClickHouse could not read any of the last {} objects; this worker streams them. \
                 Check `s3.clickhouse_access` (its permissions) and `s3.clickhouse_endpoint` (its \
                 connection to S3). If ClickHouse is not meant to read S3, set `load.fallback` to \
                 `always`, which avoids the failed attempts",
                before + objects,
            );
        }
    }

    pub(super) fn loaded(&self, read_by: ReadBy, objects: usize) {
        match read_by {
            ReadBy::S3 => self.unread.store(0, Ordering::Relaxed),
            ReadBy::Stream => metrics::objects_streamed(objects),
            ReadBy::RejectedLines | ReadBy::UnmatchedStatements => {}
        }
    }
}
