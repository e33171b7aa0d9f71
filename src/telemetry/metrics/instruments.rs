//! The same metrics as instruments of OpenTelemetry, for a collector that they are sent to.
//!
//! They have the names, labels and buckets of [`Metric`]. [`Metric`] counts in both.

use std::collections::HashMap;
use std::sync::OnceLock;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

use super::metric::{Kind, Metric};

/// Empty if no metrics are sent.
static INSTRUMENTS: OnceLock<HashMap<&'static str, Instrument>> = OnceLock::new();

enum Instrument {
    Counter(Counter<u64>),
    Gauge(Gauge<f64>),
    Histogram(Histogram<f64>),
}

/// Creates an instrument for each of these metrics. Has an effect once in a process, as the recorder
/// does.
pub(super) fn install(meter: &Meter, metrics: &[Metric]) {
    let instruments = metrics.iter();
    let instruments = instruments.map(|metric| (metric.name, Instrument::new(meter, metric)));
    drop(INSTRUMENTS.set(instruments.collect()));
}

impl Instrument {
    fn new(meter: &Meter, metric: &Metric) -> Self {
        let (name, help, unit) = (metric.name, metric.help, unit(metric));
        match metric.kind {
            Kind::Counter => {
                let counter = meter.u64_counter(name).with_description(help);
                Self::Counter(counter.with_unit(unit).build())
            }
            Kind::Gauge => {
                let gauge = meter.f64_gauge(name).with_description(help);
                Self::Gauge(gauge.with_unit(unit).build())
            }
            Kind::Histogram(buckets) => {
                let histogram = meter.f64_histogram(name).with_description(help);
                let histogram = histogram.with_boundaries(buckets.to_vec());
                Self::Histogram(histogram.with_unit(unit).build())
            }
        }
    }
}

/// Returns the unit as OpenTelemetry writes it (UCUM).
fn unit(metric: &Metric) -> &'static str {
    match metric.unit() {
        "seconds" => "s",
        "bytes" => "By",
        unit => unit,
    }
}

/// A value of a metric.
#[derive(Clone, Copy, Debug)]
pub(super) enum Measured {
    Added(u64),
    Set(f64),
    Recorded(f64),
}

/// Counts the value, if metrics are sent.
pub(super) fn measure(metric: &Metric, measured: Measured, values: &[&str]) {
    let Some(instrument) = INSTRUMENTS.get().and_then(|all| all.get(metric.name)) else {
        return;
    };
    let pairs = metric.labels.iter().zip(values);
    let pairs: Vec<KeyValue> = pairs
        .map(|(label, value)| KeyValue::new(label.name, (*value).to_owned()))
        .collect();
    match (instrument, measured) {
        (Instrument::Counter(counter), Measured::Added(count)) => counter.add(count, &pairs),
        (Instrument::Gauge(gauge), Measured::Set(value)) => gauge.record(value, &pairs),
        (Instrument::Histogram(histogram), Measured::Recorded(value)) => {
            histogram.record(value, &pairs);
        }
        _ => debug_assert!(false, "{} is not measured like this", metric.name),
    }
}
