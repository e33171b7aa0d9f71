//! Several workers on one queue.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sluice_bench::gate::median;

use crate::contenders::sluice::load_with;
use crate::harness::Harness;
use crate::note;
use crate::workload::Workload;

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Workers {
    objects: usize,
    /// The latency of S3.
    #[serde(default)]
    latency_ms: u64,
    runs: Vec<Runs>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Runs {
    workers: usize,
    seconds: Vec<f64>,
    /// The throughput relative to one worker.
    ratio: f64,
}

impl Workers {
    /// Returns the rows of a Markdown table.
    pub(crate) fn rows(&self) -> String {
        let slow = match self.latency_ms {
            0 => String::new(),
            latency => format!(", {latency} ms S3 latency"),
        };
        let more = self.runs.iter().skip(1);
        let rows = more.map(|it| {
            format!(
                "| {} workers on one queue, {} objects{slow}: throughput relative to one worker | {:.2} |\n",
                it.workers, self.objects, it.ratio
            )
        });
        rows.collect()
    }
}

const COUNTS: [usize; 3] = [1, 2, 4];

pub(crate) async fn run(
    harness: &Harness,
    workload: &Workload,
    share: f64,
    samples: usize,
    latency_ms: u64,
) -> Result<Workers> {
    let uploaded = workload.upload(&harness.objects, share);
    let mut seconds = COUNTS.map(|_| Vec::new());
    for round in 0..=samples {
        for (workers, seconds) in COUNTS.iter().zip(&mut seconds) {
            let database = harness.database().await?;
            let run =
                load_with(&harness.sluice, *workers, "", harness, &uploaded, &database).await?;
            database.remove().await?;
            note(&format!(
                "{round}/{samples} {workers} workers: {:.2} s",
                run.seconds
            ));
            if round > 0 {
                seconds.push(run.seconds);
            }
        }
    }
    let one = median(&seconds[0]);
    let runs = COUNTS.iter().zip(seconds).map(|(workers, seconds)| Runs {
        workers: *workers,
        ratio: one / median(&seconds),
        seconds,
    });
    Ok(Workers {
        objects: uploaded.objects.len(),
        latency_ms,
        runs: runs.collect(),
    })
}
