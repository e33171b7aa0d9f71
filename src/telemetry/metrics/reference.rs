//! The text of docs/metrics.md.

use super::ALL;
use super::metric::{Label, Metric, Values};

const INTRODUCTION: &str = "\
<!-- Generated from src/telemetry/metrics.rs. Update it with: UPDATE_DOCS=1 cargo test --lib metrics -->

# Metrics

A worker serves its metrics in the text format of Prometheus, at `/metrics` of `admin.listen`. [Operations](operations.md#what-to-watch) describes which to watch, and what an autoscaler should follow. With `telemetry.metrics_interval`, it also sends them to an OpenTelemetry collector, under the same names, with the same labels and buckets; there, a histogram appears with its first value.

Counters and histograms exist from the start, at 0, in every series that is known beforehand. Series of ClickHouse's error codes appear with the first error. A gauge exists once its value is known. The gauges of the queues exist after the first response of SQS, which is queried about every 15 s; they keep their last value while SQS does not respond. All counts are those of this worker since its start. The gauges of the queues are those of the queue, and the same in every worker.

No label ever has the name of an object, a message or a batch.

| name | type | unit | labels | meaning |
|---|---|---|---|---|
";

/// Returns the text of docs/metrics.md.
pub fn reference_markdown() -> String {
    INTRODUCTION.to_owned() + &ALL.iter().map(row).collect::<String>()
}

fn row(metric: &Metric) -> String {
    let labels: Vec<String> = metric.labels.iter().map(describe).collect();
    format!(
        "| `{}` | {} | {} | {} | {} |\n",
        metric.name,
        metric.kind.label(),
        metric.unit(),
        labels.join("; "),
        metric.help
    )
}

fn describe(label: &Label) -> String {
    let values = match label.values {
        Values::Only(lists) => {
            let values = lists.concat();
            let quoted: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
            quoted.join(", ")
        }
        Values::Declared { text, .. } | Values::Open { text, .. } => text.to_owned(),
    };
    format!("`{}`: {values}", label.name)
}
