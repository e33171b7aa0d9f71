//! Fixtures shared by the tests of several modules.

use std::time::Duration;

use crate::event_types::Catalog;
use crate::object::{ObjectParts, ObjectRef};
use crate::statements::insert::{Planner, PlannerOptions, Strategy, TimeLimits};
use crate::statements::s3_source::{S3Access, S3Source};

/// Returns an object with a bucket, a key and an etag.
pub fn object(bucket: &str, key: &str, etag: &str) -> ObjectRef {
    ObjectRef::from(ObjectParts {
        bucket: bucket.into(),
        key: key.into(),
        etag: etag.into(),
        size: Some(100),
        ..ObjectParts::default()
    })
}

/// Returns a planner of the built-in event types.
pub fn planner(access: S3Access, endpoint: Option<&str>) -> Planner {
    Planner::new(PlannerOptions {
        catalog: Catalog::builtin(),
        source: S3Source {
            endpoint: endpoint.map(str::to_owned),
            default_region: "us-east-1".into(),
            access,
        },
        strategy: Strategy::SinglePass,
        database: "db".into(),
        max_bytes: 1000,
        max_line_bytes: 100,
        times: TimeLimits::ANY,
        insert_timeout: Duration::from_secs(600),
    })
}
