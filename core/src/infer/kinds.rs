//! Tells kinds of records apart, by a field whose value determines which other fields there are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::profile::Field;
use crate::event_types::Path;

/// Fewer records than these show nothing.
const MIN_RECORDS: usize = 20;
/// The number of kinds, at most: more are values of a dimension.
const MAX_VALUES: u64 = 20;
/// The number of records of a kind, on average, at least.
const MIN_RECORDS_PER_VALUE: u64 = 5;
/// The share of the records that have the field, at least.
const MIN_PRESENCE: f64 = 0.95;
/// How much of the variance of what is present the field must explain.
const MIN_EXPLAINED: f64 = 0.6;
/// How deep fields are looked at: `verb.id` has a depth of 2.
const MAX_DEPTH: usize = 3;
/// How many fields are compared.
const MAX_FEATURES: usize = 400;

/// The field by which kinds are told apart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Discriminator {
    pub(super) path: Path,
    /// Each kind of records, as the values that they have in the field.
    pub(super) kinds: Vec<Vec<String>>,
}

/// Returns the text at a path of a record.
pub(super) fn text_at<'a>(record: &'a Value, path: &[String]) -> Option<&'a str> {
    at(record, path)?.as_str()
}

/// Returns the value at a path of a record, which is not null.
pub(super) fn at<'a>(record: &'a Value, path: &[String]) -> Option<&'a Value> {
    let found = path.iter().try_fold(record, |value, key| value.get(key));
    found.filter(|value| !value.is_null())
}

/// Returns the field by which the kinds of these records are told apart, if there is one.
pub(super) fn find(records: &[Value], root: &Field) -> Option<Discriminator> {
    if records.len() < MIN_RECORDS {
        return None;
    }
    let fields = fields(root);
    let features = Features::of(records, &fields);
    let candidates = fields
        .iter()
        .filter(|(_, field)| is_candidate(field, records.len()));
    let judged = candidates.filter_map(|(path, field)| {
        let explained = features.explained_by(records, path);
        // With more values, more is explained by chance.
        let score = explained - 0.01 * field.distinct.count().unwrap_or_default() as f64;
        (explained >= MIN_EXPLAINED).then_some((path, score))
    });
    // The first of those that are alike, which is the nearest to the top.
    let best = judged.reduce(|best, other| if other.1 > best.1 + 1e-9 { other } else { best });
    best.map(|(path, _)| Discriminator {
        kinds: features.kinds(records, path),
        path: path.clone(),
    })
}

/// Returns the kinds by a field that a person has named: one for each value.
pub(super) fn by(records: &[Value], path: &Path) -> Discriminator {
    let values: BTreeSet<&str> = records.iter().filter_map(|it| text_at(it, path)).collect();
    Discriminator {
        path: path.clone(),
        kinds: values
            .into_iter()
            .map(|value| vec![value.to_owned()])
            .collect(),
    }
}

fn is_candidate(field: &Field, records: usize) -> bool {
    let texts = &field.texts;
    let Some(values) = field.distinct.count() else {
        return false;
    };
    let records = records as u64;
    texts.all == field.present
        && texts.empty + texts.times + texts.uuids == 0
        && field.present as f64 >= MIN_PRESENCE * records as f64
        && (2..=MAX_VALUES).contains(&values)
        && values * MIN_RECORDS_PER_VALUE <= records
}

/// Returns all fields with their paths, those nearest to the top first.
fn fields(root: &Field) -> Vec<(Path, &Field)> {
    let mut found = Vec::new();
    let mut level: Vec<(Path, &Field)> = vec![(Path::new(), root)];
    for _ in 0..MAX_DEPTH {
        let below = level.iter().flat_map(|(path, field)| {
            field.children.iter().map(|(key, child)| {
                let mut path = path.clone();
                path.push(key.to_owned());
                (path, child)
            })
        });
        level = below.collect();
        found.extend(level.iter().cloned());
    }
    found
}

/// Which fields each record has.
struct Features<'a> {
    /// Those that some records have, and others do not.
    paths: Vec<&'a Path>,
    /// For each record, the places of those that it has.
    present: Vec<Vec<usize>>,
}

impl<'a> Features<'a> {
    fn of(records: &[Value], fields: &'a [(Path, &Field)]) -> Self {
        let all = records.len() as f64;
        let differs = |field: &Field| (0.01..=0.99).contains(&(field.present as f64 / all));
        let paths = fields.iter().filter(|(_, field)| differs(field));
        let paths: Vec<&Path> = paths.map(|(path, _)| path).take(MAX_FEATURES).collect();
        let of_record = |record: &Value| {
            let places = 0..paths.len();
            places
                .filter(|place| at(record, paths[*place]).is_some())
                .collect()
        };
        Self {
            present: records.iter().map(of_record).collect(),
            paths,
        }
    }

    /// Returns, for each value at the path, the number of its records, and how many of them have
    /// each of the other fields.
    fn counts<'r>(&self, records: &'r [Value], path: &Path) -> BTreeMap<&'r str, (u64, Vec<u64>)> {
        let mut counts: BTreeMap<&str, (u64, Vec<u64>)> = BTreeMap::new();
        for (record, present) in records.iter().zip(&self.present) {
            let Some(value) = text_at(record, path) else {
                continue;
            };
            let (all, having) = counts
                .entry(value)
                .or_insert_with(|| (0, vec![0; self.paths.len()]));
            *all += 1;
            present.iter().for_each(|place| having[*place] += 1);
        }
        counts
    }

    /// Returns which part of the variance of the presence of fields the values at a path explain:
    /// 1 if the value says exactly which fields there are.
    fn explained_by(&self, records: &[Value], path: &Path) -> f64 {
        let counts = self.counts(records, path);
        let all: u64 = counts.values().map(|(all, _)| all).sum();
        let variance = |having: u64, all: u64| {
            let share = having as f64 / all as f64;
            share * (1.0 - share)
        };
        let (mut total, mut within) = (0.0, 0.0);
        for place in 0..self.paths.len() {
            let having: u64 = counts.values().map(|(_, having)| having[place]).sum();
            total += variance(having, all);
            let of_value = counts.values().map(|(count, having)| {
                variance(having[place], *count) * *count as f64 / all as f64
            });
            within += of_value.sum::<f64>();
        }
        if total < 0.05 {
            0.0
        } else {
            1.0 - within / total
        }
    }

    /// Returns the values at the path. Those whose records usually have the same fields are one
    /// kind.
    fn kinds(&self, records: &[Value], path: &Path) -> Vec<Vec<String>> {
        let mut kinds: Vec<(Vec<usize>, Vec<String>)> = Vec::new();
        for (value, (all, having)) in self.counts(records, path) {
            let usual = (0..self.paths.len()).filter(|place| having[*place] * 2 > all);
            let usual: Vec<usize> = usual.collect();
            match kinds.iter_mut().find(|(fields, _)| *fields == usual) {
                Some((_, values)) => values.push(value.to_owned()),
                None => kinds.push((usual, vec![value.to_owned()])),
            }
        }
        kinds.into_iter().map(|(_, values)| values).collect()
    }
}
