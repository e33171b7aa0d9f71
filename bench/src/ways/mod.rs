//! Ways to load the same objects into the same tables.

pub(crate) mod earlier;
pub(crate) mod engine;
pub(crate) mod middle;
pub(crate) mod queue_engine;
pub(crate) mod sluice;

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::lab::Lab;
use crate::workload::Uploaded;

const STREAMED: &str = "load:
  stream_below: 64KiB
";

/// How objects get into tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// The floor: ClickHouse counts the lines and stores nothing.
    Count,
    /// The bare engine: Sluice's tables and views, and nothing else of Sluice.
    Limit,
    Sluice,
    /// Sluice, whose worker reads small objects itself.
    Streamed,
    /// A worker downloads, parses and inserts rows.
    Middle,
    /// An INSERT for each object and event type.
    Earlier,
    /// ClickHouse's own engine for it; needs a Keeper.
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

    /// Loads a workload into new tables, and looks whether every row is there.
    pub(crate) async fn run(self, lab: &Lab, uploaded: &Uploaded) -> Result<Run> {
        match self {
            Self::Count => engine::count(lab, uploaded).await,
            Self::Limit => engine::limit(lab, uploaded).await,
            Self::Sluice => sluice::run(&lab.sluice, lab, uploaded, "").await,
            Self::Streamed => sluice::run(&lab.sluice, lab, uploaded, STREAMED).await,
            Self::Middle => middle::run(lab, uploaded).await,
            Self::Earlier => earlier::run(lab, uploaded).await,
            Self::S3Queue => queue_engine::run(lab, uploaded).await,
        }
    }
}

/// What one run took.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    /// How many of the workload's objects were loaded; a slow way is given some of them only.
    pub(crate) objects: usize,
    /// Of Sluice only.
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

/// The result and how long it took.
async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(T, Duration)> {
    let begun = Instant::now();
    let done = work.await?;
    Ok((done, begun.elapsed()))
}
