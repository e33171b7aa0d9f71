//! The declaration of a metric, and its series.

use std::slice::from_ref;
use std::time::Duration;

use ::metrics::{
    Label as Pair, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::instruments::{Measured, measure};
use crate::event_types::Catalog;

#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [Label],
    pub(super) help: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Label {
    pub(super) name: &'static str,
    pub(super) values: Values,
}

/// The values of a label. `text` describes those that cannot be listed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values {
    /// The values of these lists, and no others.
    Only(&'static [&'static [&'static str]]),
    /// The values that follow from the event types.
    Declared {
        by: fn(&Catalog) -> Vec<String>,
        text: &'static str,
    },
    /// The known values, and others that are not known in advance.
    Open {
        known: &'static [&'static str],
        text: &'static str,
    },
}

impl Kind {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

impl Values {
    fn known(self, catalog: &Catalog) -> Vec<String> {
        match self {
            Self::Only(known) => known.concat().iter().map(ToString::to_string).collect(),
            Self::Open { known, .. } => known.iter().map(ToString::to_string).collect(),
            Self::Declared { by, .. } => by(catalog),
        }
    }

    fn allows(self, value: &str) -> bool {
        match self {
            Self::Only(lists) => lists.iter().any(|values| values.contains(&value)),
            Self::Declared { .. } | Self::Open { .. } => true,
        }
    }
}

impl Metric {
    /// Returns the base unit, which ends the name.
    pub(super) fn unit(&self) -> &'static str {
        let stem = self.name.trim_end_matches("_total");
        ["seconds", "bytes"]
            .into_iter()
            .find(|unit| stem.ends_with(unit))
            .unwrap_or_default()
    }

    /// Starts counters and histograms at 0, in every series that is known beforehand: `rate()` does
    /// not see the first event of a series that appears with it.
    pub(super) fn begin(&self, catalog: &Catalog) {
        match self.kind {
            Kind::Counter => describe_counter!(self.name, self.help),
            Kind::Gauge => describe_gauge!(self.name, self.help),
            Kind::Histogram(_) => describe_histogram!(self.name, self.help),
        }
        for values in self.known_series(catalog) {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            match self.kind {
                Kind::Counter => self.add(0, &values),
                Kind::Histogram(_) => drop(histogram!(self.name, self.pairs(&values))),
                // A gauge that has not been measured is not 0.
                Kind::Gauge => {}
            }
        }
    }

    fn known_series(&self, catalog: &Catalog) -> Vec<Vec<String>> {
        self.labels.iter().fold(vec![Vec::new()], |series, label| {
            let values = label.values.known(catalog);
            let longer = series.iter().flat_map(|before| {
                let with = |value: &String| [&before[..], from_ref(value)].concat();
                values.iter().map(with).collect::<Vec<_>>()
            });
            longer.collect()
        })
    }

    pub(super) fn add(&self, count: u64, values: &[&str]) {
        counter!(self.name, self.pairs(values)).increment(count);
        measure(self, Measured::Added(count), values);
    }

    pub(super) fn set(&self, value: f64, values: &[&str]) {
        gauge!(self.name, self.pairs(values)).set(value);
        measure(self, Measured::Set(value), values);
    }

    pub(super) fn record(&self, duration: Duration, values: &[&str]) {
        let seconds = duration.as_secs_f64();
        histogram!(self.name, self.pairs(values)).record(seconds);
        measure(self, Measured::Recorded(seconds), values);
    }

    fn pairs(&self, values: &[&str]) -> Vec<Pair> {
        let name = self.name;
        debug_assert_eq!(values.len(), self.labels.len(), "{name}");
        let labels = self.labels.iter().zip(values);
        let pair = labels.map(|(label, value)| {
            debug_assert!(
                label.values.allows(value),
                "{name} does not declare {value}"
            );
            Pair::new(label.name, value.to_string())
        });
        pair.collect()
    }
}
