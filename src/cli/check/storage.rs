//! Checks the access of ClickHouse and of the worker to S3.

use std::fmt;

use serde::de::IgnoredAny;
use tokio::io::AsyncReadExt;

use super::clickhouse::{NO_CLICKHOUSE, failed};
use super::report::Check;
use crate::batch::Fallback;
use crate::clickhouse::error_class::{ErrorClass, classify, is_missing};
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::ledger::Ledger;
use crate::load::truncation::{Truncation, Truncations};
use crate::object::{Compression, ObjectParts, ObjectRef, ObjectUrl};
use crate::s3::{Plain, Store, StoreError, broken};
use crate::statements::insert::Planner;

const BY_CLICKHOUSE: &str = "s3 by clickhouse";
const BY_WORKER: &str = "s3 by worker";
const WHOLE: &str = "whole objects";

/// An object to read.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    object: ObjectRef,
    origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The command line names it, so it must exist.
    Named,
    /// The ledger contains it; it may have been deleted since.
    Loaded,
    /// Its key is made up, since no object of the bucket is known.
    MadeUp,
}

const MADE_UP: &str = "made-up-by-sluice-check";

impl Sample {
    pub(super) async fn of_url(url: &ObjectUrl, ledger: &Ledger) -> Self {
        if url.key.is_empty() {
            return Self::of_bucket(&url.bucket, ledger).await;
        }
        Self {
            object: object(&url.bucket, &url.key),
            origin: Origin::Named,
        }
    }

    /// Returns the object of the bucket that was loaded last, or a made-up one.
    pub(super) async fn of_bucket(bucket: &str, ledger: &Ledger) -> Self {
        let made_up = Self {
            object: object(bucket, MADE_UP),
            origin: Origin::MadeUp,
        };
        Self::latest(ledger, bucket, true).await.unwrap_or(made_up)
    }

    /// Returns the object that was loaded last, if any was.
    pub(super) async fn loaded_last(ledger: &Ledger) -> Option<Self> {
        Self::latest(ledger, "", false).await
    }

    async fn latest(ledger: &Ledger, bucket: &str, same_bucket: bool) -> Option<Self> {
        let none = object(bucket, "");
        let latest = ledger.latest_loaded(&none, same_bucket, 1).await;
        let object = ObjectRef::from(ObjectParts {
            // Any etag: its content may have changed since.
            etag: String::new(),
            ..latest.unwrap_or_default().pop()?.into_parts()
        });
        let origin = Origin::Loaded;
        Some(Self { object, origin })
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::MadeUp => write!(f, "s3://{}", self.object.bucket),
            Origin::Named | Origin::Loaded => self.object.fmt(f),
        }
    }
}

fn object(bucket: &str, key: &str) -> ObjectRef {
    ObjectRef::from(ObjectParts {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        ..ObjectParts::default()
    })
}

/// Evidence that a sample may be read.
#[derive(Debug, PartialEq, Eq)]
enum Proof {
    /// It was read, whatever it contains.
    Read,
    /// S3 reported it as missing, which it does only if access is granted.
    Missing,
}

pub(super) struct Readers<'a> {
    pub(super) planner: &'a Planner,
    pub(super) warehouse: &'a Warehouse,
    pub(super) store: &'a Store,
    pub(super) fallback: Fallback,
    /// Whether ClickHouse answers, and so can read.
    pub(super) clickhouse_answers: bool,
    /// Compressions of objects that are loaded without proof that they are whole.
    pub(super) accept_unproven: Vec<Compression>,
}

pub(super) fn nothing_to_read() -> [Check; 3] {
    [BY_CLICKHOUSE, BY_WORKER, WHOLE].map(|name| {
        Check::skip(
            name,
            "no object has been loaded yet; name one (`sluice check s3://bucket/key`) or a bucket \
             (--bucket)",
        )
    })
}

impl Readers<'_> {
    pub(super) async fn check(&self, sample: &Sample) -> [Check; 3] {
        let worker = match self.fallback {
            Fallback::Never => None,
            Fallback::Auto | Fallback::Always => Some(self.by_worker(sample).await),
        };
        let whole = self.whole(sample).await;
        let clickhouse = if self.fallback == Fallback::Always {
            Check::skip(BY_CLICKHOUSE, "not needed: `load.fallback` is `always`")
        } else if self.clickhouse_answers {
            let lists = self.lists(&sample.object.bucket).await;
            let found = self.by_clickhouse(sample).await;
            judge_clickhouse(sample, found, lists, matches!(worker, Some(Ok(_))))
        } else {
            Check::skip(BY_CLICKHOUSE, NO_CLICKHOUSE)
        };
        let worker = match worker {
            Some(found) => judge_worker(sample, found, self.fallback),
            None => Check::skip(BY_WORKER, "not needed: `load.fallback` is `never`"),
        };
        [clickhouse, worker, whole]
    }

    /// Checks whether truncated objects are detected.
    async fn whole(&self, sample: &Sample) -> Check {
        if self.fallback == Fallback::Always {
            return Check::pass(WHOLE, "the worker detects truncated objects");
        }
        if !self.clickhouse_answers {
            return Check::skip(WHOLE, NO_CLICKHOUSE);
        }
        match self.silent().await {
            Err(error) => failed(WHOLE, &error),
            Ok(silent) if silent.is_empty() => Check::pass(WHOLE, "truncated objects are detected"),
            Ok(silent) => judge_whole(sample, &silent.join(", "), self.by_worker(sample).await),
        }
    }

    /// Returns the extensions of the objects whose truncation ClickHouse does not detect.
    async fn silent(&self) -> Result<Vec<String>, WarehouseError> {
        let truncations = Truncations::default();
        let mut silent = Vec::new();
        for compression in Compression::ALL {
            let truncation = truncations.ask(compression, self.warehouse).await?;
            if truncation == Truncation::Silent && !self.accept_unproven.contains(&compression) {
                silent.push(format!(".{}", compression.extension()));
            }
        }
        Ok(silent)
    }

    async fn by_clickhouse(&self, sample: &Sample) -> Result<Proof, WarehouseError> {
        match self.first_line(&sample.object).await {
            Ok(()) => Ok(Proof::Read),
            Err(error) if classify(&error) != ErrorClass::ObjectFault => Err(error),
            Err(error) if !is_missing(&error) => Ok(Proof::Read),
            Err(error) if sample.origin == Origin::Named => Err(error),
            Err(_) => Ok(Proof::Missing),
        }
    }

    /// Lists the bucket with ClickHouse, to find out whether it has the right to.
    async fn lists(&self, bucket: &str) -> Result<(), WarehouseError> {
        // A pattern makes ClickHouse list the bucket, even if it is percent-encoded.
        self.first_line(&object(bucket, &format!("{MADE_UP}/*")))
            .await
    }

    /// Reads a line like a load, but with fewer retries, which take long while S3 is unavailable.
    async fn first_line(&self, object: &ObjectRef) -> Result<(), WarehouseError> {
        let sql = format!(
            "SELECT count() FROM (SELECT line FROM {} LIMIT 1) \
             SETTINGS s3_ignore_file_doesnt_exist = 0, use_hive_partitioning = 0, \
             s3_retry_attempts = 2",
            self.planner.lines_of(object)
        );
        self.warehouse.rows::<IgnoredAny>(&sql).await.map(drop)
    }

    async fn by_worker(&self, sample: &Sample) -> Result<Proof, StoreError> {
        let read = async {
            let mut content = self.store.open(&sample.object, Plain::JsonLines).await?;
            let first = content.read(&mut [0]).await;
            first.map_err(|error| broken(&sample.object, &error))
        };
        match read.await {
            Ok(_) | Err(StoreError::Content { .. }) => Ok(Proof::Read),
            Err(error) if error.is_missing() && sample.origin != Origin::Named => {
                Ok(Proof::Missing)
            }
            Err(error) => Err(error),
        }
    }
}

const CLICKHOUSE_ADVICE: &str = "check `s3.clickhouse_access` and `s3.clickhouse_endpoint`; the \
     credentials that ClickHouse reads with need `s3:GetObject` on the objects and \
     `s3:ListBucket` on the bucket";

fn judge_clickhouse(
    sample: &Sample,
    found: Result<Proof, WarehouseError>,
    lists: Result<(), WarehouseError>,
    worker_reads: bool,
) -> Check {
    let bucket = &sample.object.bucket;
    match (found, lists) {
        (Ok(proof), Ok(())) => Check::pass(BY_CLICKHOUSE, readable(sample, &proof)),
        (Ok(Proof::Read), Err(error)) => Check::warn(
            BY_CLICKHOUSE,
            format!(
                "{sample} can be read, but the bucket cannot be listed, so a missing object cannot \
                 be distinguished from a missing right: {error}"
            ),
            format!(
                "grant `s3:ListBucket` on {bucket} to the credentials that ClickHouse reads with"
            ),
        ),
        (Ok(Proof::Missing), Err(error)) | (Err(error), _) => {
            let detail = format!("ClickHouse failed to read {sample}: {error}");
            if worker_reads {
                let detail = format!("the worker would stream all objects: {detail}");
                Check::warn(BY_CLICKHOUSE, detail, CLICKHOUSE_ADVICE)
            } else {
                Check::fail(BY_CLICKHOUSE, detail, CLICKHOUSE_ADVICE)
            }
        }
    }
}

fn judge_worker(sample: &Sample, found: Result<Proof, StoreError>, fallback: Fallback) -> Check {
    let error = match found {
        Ok(proof) => return Check::pass(BY_WORKER, readable(sample, &proof)),
        Err(error) => error,
    };
    let mut advice = "grant the worker's role `s3:GetObject` on the objects".to_owned();
    if sample.origin == Origin::MadeUp {
        advice += "; if it has this right, name an object (`sluice check s3://bucket/key`): S3 \
                   reports that an object is missing only to a role that may list the bucket";
    }
    if fallback == Fallback::Always {
        let detail = format!("the worker failed to read {sample}: {error}");
        return Check::fail(BY_WORKER, detail, advice);
    }
    Check::warn(
        BY_WORKER,
        format!(
            "objects that ClickHouse cannot read would fail: the worker failed to read {sample}: \
             {error}"
        ),
        advice + "; or set `load.fallback` to `never`",
    )
}

fn judge_whole(sample: &Sample, silent: &str, found: Result<Proof, StoreError>) -> Check {
    match found {
        Ok(_) => Check::pass(
            WHOLE,
            format!("the worker detects truncated {silent} objects, which ClickHouse does not"),
        ),
        Err(error) => Check::warn(
            WHOLE,
            format!(
                "{silent} objects fail as `unproven`: ClickHouse does not detect truncated ones, \
                 and the worker failed to read {sample}: {error}"
            ),
            "grant the worker's role `s3:GetObject` on the objects, compress them with gzip, or list \
             the extensions in `load.accept_unproven`",
        ),
    }
}

fn readable(sample: &Sample, proof: &Proof) -> String {
    match proof {
        Proof::Read => format!("{sample} can be read"),
        Proof::Missing => format!(
            "access to s3://{} is granted; the sample object does not exist",
            sample.object.bucket
        ),
    }
}
