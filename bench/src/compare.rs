//! Compares ways of loading: the same objects on the same server, in turns, so that other load on
//! the machine affects all of them alike.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sluice_bench::gate::median;

use crate::contenders::Contender;
use crate::contenders::sluice::Cost;
use crate::harness::Harness;
use crate::note;
use crate::objects::Requests;
use crate::workload::{Size, Workload};

/// The runs of one workload.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Comparison {
    pub(crate) workload: String,
    pub(crate) size: Size,
    /// The name in files is that of earlier results.
    #[serde(rename = "ways")]
    pub(crate) contenders: Vec<Measured>,
}

/// The runs of one contender.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Measured {
    #[serde(rename = "way")]
    pub(crate) name: String,
    /// The number of the workload's objects that each run loaded.
    pub(crate) objects: usize,
    /// In the order of the runs.
    pub(crate) seconds: Vec<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) costs: Vec<Cost>,
}

impl Comparison {
    /// Returns the median time for the whole workload. A contender that is given only some of the
    /// objects is assumed to continue at the same rate.
    #[expect(clippy::cast_precision_loss, reason = "object counts are small")]
    pub(crate) fn seconds(&self, name: &str) -> Option<f64> {
        let contender = self.contenders.iter().find(|it| it.name == name)?;
        let part = contender.objects as f64 / self.size.objects as f64;
        Some(median(&contender.seconds) / part)
    }
}

impl Measured {
    /// Returns the costs of Sluice: milliseconds of CPU for 1,000 objects, peak MiB, and requests
    /// for each object: to SQS, to S3 for one object, and to S3 for a listing.
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    pub(crate) fn median_cost(&self) -> Option<[f64; 5]> {
        if self.costs.is_empty() {
            return None;
        }
        let of =
            |value: fn(&Cost) -> f64| median(&self.costs.iter().map(value).collect::<Vec<_>>());
        let cpu_ms = of(|cost| cost.cpu_seconds) * 1e6 / self.objects as f64;
        let requests = of(|cost| cost.sqs_requests.map_or(f64::NAN, |it| it as f64));
        let mib = of(|cost| cost.peak_mib);
        let s3 = |count: fn(Requests) -> u64| {
            let of_all = self.costs.iter().filter_map(|cost| cost.s3_requests);
            median(&of_all.map(|it| count(it) as f64).collect::<Vec<_>>())
        };
        let objects = self.objects as f64;
        Some([
            cpu_ms,
            mib,
            requests / objects,
            s3(|it| it.heads + it.gets) / objects,
            s3(|it| it.lists) / objects,
        ])
    }
}

/// Runs each contender once to warm up, then all of them in turns.
pub(crate) async fn compare(
    harness: &Harness,
    workload: &Workload,
    contenders: &[Contender],
    samples: usize,
    share: f64,
) -> Result<Comparison> {
    note(&format!("{}: uploading", workload.name));
    let uploaded = workload.upload(&harness.objects, share);
    let mut measured: Vec<Measured> = contenders
        .iter()
        .map(|contender| Measured {
            name: contender.name().to_owned(),
            objects: 0,
            seconds: Vec::new(),
            costs: Vec::new(),
        })
        .collect();
    for round in 0..=samples {
        for (contender, measured) in contenders.iter().zip(&mut measured) {
            let run = contender.run(harness, &uploaded).await?;
            let (name, seconds) = (&measured.name, run.seconds);
            note(&format!(
                "{} {round}/{samples} {name}: {seconds:.2} s",
                workload.name
            ));
            if round > 0 {
                measured.objects = run.objects;
                measured.seconds.push(run.seconds);
                measured.costs.extend(run.cost);
            }
        }
    }
    Ok(Comparison {
        workload: workload.name.to_owned(),
        size: uploaded.size,
        contenders: measured,
    })
}
