//! What is loaded: objects that are uploaded once and loaded many times.

use std::ops::RangeInclusive;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use sluice::object::ObjectRef;
use sluice_testkit::xapi::{Bundle, EventType, Generator, Reckoning};
use sluice_testkit::{Site, Stack};

const UPLOADERS: usize = 8;

/// Objects of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) objects: usize,
    /// Statements in an object; one has about 1.2 KB.
    statements: RangeInclusive<usize>,
    zipped: bool,
    only: Option<EventType>,
}

/// The workloads by name.
pub(crate) fn all() -> [Workload; 5] {
    let workload = |name, objects, statements| Workload {
        name,
        objects,
        statements,
        zipped: false,
        only: None,
    };
    let mixed = workload("mixed", 2_000, 35..=45);
    [
        workload("tiny", 20_000, 1..=2),
        mixed.clone(),
        workload("large", 100, 4_000..=4_000),
        Workload {
            name: "gz",
            zipped: true,
            ..mixed.clone()
        },
        Workload {
            name: "single",
            only: Some(EventType::PartAttempt),
            ..mixed
        },
    ]
}

/// A workload that is in S3.
#[derive(Debug)]
pub(crate) struct Uploaded {
    /// Sorted by key.
    pub(crate) objects: Vec<ObjectRef>,
    pub(crate) reckoning: Reckoning,
    pub(crate) size: Size,
}

/// How much there is of a workload.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Size {
    pub(crate) objects: usize,
    /// As stored.
    pub(crate) bytes: u64,
    pub(crate) lines: u64,
}

impl Uploaded {
    pub(crate) fn bucket(&self) -> &str {
        self.objects.first().map_or("", |object| &object.bucket)
    }
}

impl Workload {
    /// Uploads a share of its objects, 1 being all of them.
    pub(crate) async fn upload(&self, stack: &Stack, share: f64) -> Result<Uploaded> {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count"
        )]
        let count = ((self.objects as f64 * share).ceil() as usize).max(1);
        let site = Arc::new(stack.site(self.name).await?);
        // Announced is what a way of loading is to load, once for each time that it does.
        site.announce_no_more().await?;
        let zipped = if self.zipped { 1.0 } else { 0.0 };
        let mut generator = Generator::new(1)
            .faults(0.0, 0.02)
            .sizes(self.statements.clone())
            .zipped(zipped);
        if let Some(only) = self.only {
            generator = generator.only(only);
        }
        let mut reckoning = Reckoning::default();
        let bundles = generator
            .take(count)
            .inspect(|bundle| reckoning += &bundle.reckoning);
        let puts = stream::iter(bundles).map(|bundle| put(Arc::clone(&site), bundle));
        let mut objects: Vec<ObjectRef> = puts.buffer_unordered(UPLOADERS).try_collect().await?;
        objects.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        let bytes = objects.iter().filter_map(|object| object.size).sum();
        let size = Size {
            objects: count,
            bytes,
            lines: reckoning.statements() + reckoning.blank,
        };
        Ok(Uploaded {
            objects,
            reckoning,
            size,
        })
    }
}

/// Uploads one object.
pub(crate) async fn put(site: Arc<Site>, bundle: Bundle) -> Result<ObjectRef> {
    let size = bundle.bytes.len() as u64;
    let etag = site
        .put(&bundle.key, bundle.bytes)
        .await
        .context("cannot upload")?;
    Ok(ObjectRef {
        bucket: site.bucket.clone(),
        key: bundle.key,
        etag,
        version_id: None,
        size: Some(size),
        sequencer: None,
        region: None,
    })
}
