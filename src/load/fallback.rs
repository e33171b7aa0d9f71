//! What is said when the worker has to read all objects itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::warn;

use crate::batch::ReadBy;
use crate::telemetry::metrics;

/// So many objects, one after the other, that ClickHouse could not read are no accident.
const ALL_OF_THE_LAST: usize = 20;

/// Notices when ClickHouse reads nothing any more.
#[derive(Debug, Default)]
pub struct Fallbacks {
    /// Since ClickHouse last read one.
    unread: AtomicUsize,
}

impl Fallbacks {
    /// ClickHouse cannot read these objects, says `text`: the worker is about to.
    pub(super) fn begun(&self, objects: usize, text: &str) {
        warn!(
            objects,
            error = text,
            "ClickHouse cannot read objects; this worker streams them"
        );
        let before = self.unread.fetch_add(objects, Ordering::Relaxed);
        if before < ALL_OF_THE_LAST && before + objects >= ALL_OF_THE_LAST {
            warn!(
                error = text,
                "ClickHouse could not read any of the last {} objects; this worker streams them. \
                 Check `s3.clickhouse_access` (its rights) and `s3.clickhouse_endpoint` (its way \
                 to S3); where it shall not read S3, set `load.fallback` to `always`, which saves \
                 the attempts",
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
