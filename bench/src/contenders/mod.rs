//! Ways to load the same objects into the same tables.

pub(crate) mod earlier;
pub(crate) mod engine;
pub(crate) mod middle;
pub(crate) mod queue_engine;
pub(crate) mod sluice;

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::harness::Harness;
use crate::workload::Uploaded;

const STREAMED: &str = "load:
  stream_below: 64KiB
";

/// A way of loading objects into tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// The lower bound: ClickHouse counts the lines and stores nothing.
    Count,
    /// The bare engine: Sluice's tables and views, and nothing else of Sluice.
    Limit,
    Sluice,
    /// Sluice, whose worker streams small objects itself.
    Streamed,
    /// A worker downloads, parses and inserts rows.
    Middle,
    /// An INSERT for each object and event type.
    Earlier,
    /// ClickHouse's own engine for this purpose, which needs a Keeper.
    S3Queue,
}

impl Contender {
    pub(crate) const ALL: [Contender; 7] = [
        Self::Count,
        Self::Limit,
        Self::Sluice,
        Self::Streamed,
        Self::Middle,
        Self::Earlier,
        Self::S3Queue,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Limit => "limit",
            Self::Sluice => "sluice",
            Self::Streamed => "streamed",
            Self::Middle => "middle",
            Self::Earlier => "earlier",
            Self::S3Queue => "s3queue",
        }
    }

    /// Loads a workload into new tables, and checks that every row exists.
    pub(crate) async fn run(self, harness: &Harness, uploaded: &Uploaded) -> Result<Run> {
        match self {
            Self::Count => engine::count(harness, uploaded).await,
            Self::Limit => engine::limit(harness, uploaded).await,
            Self::Sluice => sluice::run(&harness.sluice, harness, uploaded, "").await,
            Self::Streamed => sluice::run(&harness.sluice, harness, uploaded, STREAMED).await,
            Self::Middle => middle::run(harness, uploaded).await,
            Self::Earlier => earlier::run(harness, uploaded).await,
            Self::S3Queue => queue_engine::run(harness, uploaded).await,
        }
    }
}

/// The result of one run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    /// The number of the workload's objects that were loaded. A slow contender is given only some
    /// of them.
    pub(crate) objects: usize,
    /// Measured for Sluice only.
    pub(crate) cost: Option<sluice::Cost>,
}

impl Run {
    fn of(objects: usize, took: Duration) -> Self {
        Self {
            seconds: took.as_secs_f64(),
            objects,
            cost: None,
        }
    }
}

/// Returns the result of a future and its duration.
async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(T, Duration)> {
    let begun = Instant::now();
    let done = work.await?;
    Ok((done, begun.elapsed()))
}
