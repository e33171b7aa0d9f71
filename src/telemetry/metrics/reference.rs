//! docs/metrics.md.

use super::ALL;
use super::metric::{Label, Metric, Values};

const INTRODUCTION: &str = "\
<!-- Generated from src/telemetry/metrics.rs. Update it with: UPDATE_DOCS=1 cargo test --lib metrics -->

# Metrics

A worker serves them in the text format of Prometheus at `/metrics` of `admin.listen`. [Operations](operations.md#what-to-watch) says which to watch, and what an autoscaler should follow.

Counters and histograms exist from the start, at 0, in every series that is known beforehand. Those of ClickHouse's error codes appear with the first error. A gauge exists once its value is known: those of the queues after the first answer of SQS, about every 15 s, and they keep their last value while SQS does not answer. All counts are of this worker, since its start. The queues' gauges are of the queue, the same from every worker.

No label ever has the name of an object, a message or a batch.

| name | type | unit | labels | meaning |
|---|---|---|---|---|
";

/// The text of docs/metrics.md.
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
