//! Which columns are the time, the id, the sorting key and the partition key.

use std::ops::Range;

use super::columns::{Column, Columns};
use super::profile::Field;
use super::types::{Chosen, Kind};
use crate::event_types::LINEAGE;

/// The columns that a table is sorted and partitioned by.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The name of the time column, and of others that could be it.
    pub(super) time: Option<String>,
    pub(super) other_times: Vec<String>,
    pub(super) id: String,
    /// Whether the id is the hash of the record.
    pub(super) is_hash: bool,
    pub(super) other_ids: Vec<String>,
    pub(super) order_by: Vec<String>,
    pub(super) partition_by: Option<String>,
    /// Why the table has no partitions.
    pub(super) unpartitioned: Option<String>,
}

/// The names of times, the likeliest first.
const TIMES: [&str; 12] = [
    "event_time",
    "event_timestamp",
    "timestamp",
    "time",
    "ts",
    "at",
    "occurred_at",
    "datetime",
    "created_at",
    "placed_at",
    "start_time",
    "received_at",
];

/// The names of ids of records, the likeliest first.
const IDS: [&str; 10] = [
    "id",
    "event_id",
    "uuid",
    "guid",
    "message_id",
    "record_id",
    "statement_id",
    "request_id",
    "log_id",
    "key",
];

/// Parts of the names of ids that are those of something else than the record.
const OTHERS: [&str; 14] = [
    "user",
    "session",
    "customer",
    "account",
    "tenant",
    "device",
    "actor",
    "visitor",
    "client",
    "parent",
    "trace",
    "group",
    "shop",
    "correlation",
];

/// Parts of the names of dimensions by which people select, the likeliest first.
const DIMENSIONS: [&str; 16] = [
    "tenant", "organi", "customer", "account", "shop", "site", "project", "app", "service",
    "source", "host", "region", "type", "name", "country", "platform",
];

/// A column with as many values as this is not a prefix that makes a sorting key useful.
const DIMENSION_VALUES: Range<u64> = 2..1_001;

/// Chooses the keys, and completes the columns with what they need. Times outside of `plausible`, in
/// seconds since 1970, are rejected where they are partition keys.
///
/// `whole` has the records of all kinds.
pub(super) fn choose_keys(
    columns: &mut Columns,
    whole: &Field,
    records: u64,
    plausible: &Range<u64>,
) -> Keys {
    let columns = &mut columns.columns;
    let mut keys = Keys::default();
    let times = ranked(columns, |column| {
        let is_time = column.chosen.kind == Kind::Time && column.valid == records;
        is_time.then(|| rank(&TIMES, column))
    });
    let mut times = times.into_iter();
    if let Some(time) = times.next() {
        columns[time].required = true;
        keys.time = Some(columns[time].name.clone());
        partition(&mut keys, &columns[time], plausible);
    }
    keys.other_times = times.map(|place| columns[place].name.clone()).collect();
    choose_id(&mut keys, columns, whole, records);
    let dimensions = ranked(columns, |column| {
        let is_dimension = column.chosen.kind == Kind::Category
            && column.valid == records
            && column.name != keys.id
            && column
                .distinct
                .is_some_and(|count| DIMENSION_VALUES.contains(&count));
        let place = DIMENSIONS
            .iter()
            .position(|part| column.name.contains(part))?;
        is_dimension.then_some(place)
    });
    let dimension = dimensions.first().map(|place| columns[*place].name.clone());
    keys.order_by = dimension.into_iter().chain(keys.time.clone()).collect();
    keys.order_by.push(keys.id.clone());
    keys
}

/// Returns the places of the columns that have a rank, the best first; of equal ones, the nearest to
/// the top of the record.
fn ranked(columns: &[Column], rank: impl Fn(&Column) -> Option<usize>) -> Vec<usize> {
    let places = columns.iter().enumerate();
    let mut found: Vec<_> = places
        .filter_map(|(place, column)| Some((rank(column)?, column.path.len(), place)))
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, _, place)| place).collect()
}

fn rank(names: &[&str], column: &Column) -> usize {
    let place = names.iter().position(|name| *name == column.name);
    let ends = |name: &&str| column.name.ends_with(&format!("_{name}"));
    let end = || names.iter().position(ends).map(|place| names.len() + place);
    place.or_else(end).unwrap_or(2 * names.len())
}

fn partition(keys: &mut Keys, time: &Column, plausible: &Range<u64>) {
    const EIGHT_YEARS: i64 = 8 * 366 * 86_400;
    let Some((first, last)) = time.chosen.span else {
        return;
    };
    let is_plausible =
        |seconds: i64| u64::try_from(seconds).is_ok_and(|seconds| plausible.contains(&seconds));
    if LINEAGE.iter().any(|own| time.name.contains(own)) {
        keys.unpartitioned = Some(format!(
            "the name of `{}` has that of a column of Sluice's own in it; rename it first",
            time.name
        ));
        return;
    }
    if !is_plausible(first) || !is_plausible(last) {
        keys.unpartitioned = Some(format!(
            "some values of `{}` are before event_types.min_year or after event_types.max_future, \
             and would be rejected",
            time.name
        ));
        return;
    }
    let part = if last - first > EIGHT_YEARS {
        "toYear"
    } else {
        "toYYYYMM"
    };
    keys.partition_by = Some(format!("{part}({})", time.name));
}

/// Chooses the id: a value that differs in each record, or else the hash of the record.
fn choose_id(keys: &mut Keys, columns: &mut Vec<Column>, whole: &Field, records: u64) {
    let ids = ranked(columns, |column| {
        let is_id = column.valid == records && column.is_unique && !column.needs_null;
        (is_id && can_be_id(column, records)).then(|| rank(&IDS, column))
    });
    if let Some((id, others)) = ids.split_first() {
        columns[*id].required = true;
        keys.id = columns[*id].name.clone();
        keys.other_ids = others
            .iter()
            .map(|place| columns[*place].name.clone())
            .collect();
        return;
    }
    keys.is_hash = true;
    let partial = ranked(columns, |column| {
        let is_text = matches!(column.chosen.kind, Kind::Text | Kind::Uuid);
        let is_id = is_text && column.is_unique && IDS.contains(&column.name.as_str());
        (is_id && can_be_id(column, records)).then(|| rank(&IDS, column))
    });
    if let Some(id) = partial.first() {
        let id = &mut columns[*id];
        id.chosen = Chosen::hash("the record's hash where it is missing");
        id.is_hash = true;
        keys.id = id.name.clone();
        return;
    }
    // A path of another kind must not lead through it.
    let is_free = |name: &str| {
        whole.children.get(name).is_none() && columns.iter().all(|column| column.name != name)
    };
    let numbered = (2..).map(|number| format!("record_hash_{number}"));
    let mut names = std::iter::once("record_hash".to_owned()).chain(numbered);
    let name = names.find(|name| is_free(name)).unwrap_or_default();
    keys.id = name.clone();
    columns.push(Column {
        path: vec![name.clone()],
        name,
        chosen: Chosen::hash("no field differs in each record; the record's hash does"),
        valid: 0,
        present: 0,
        distinct: None,
        is_unique: false,
        examples: Vec::new(),
        needs_null: false,
        required: false,
        is_hash: true,
    });
}

/// The number of records in which a value can differ by chance.
const FEW: u64 = 20;

fn can_be_id(column: &Column, records: u64) -> bool {
    let name = column.name.as_str();
    if OTHERS.iter().any(|other| name.contains(other)) {
        return false;
    }
    let is_named = IDS.contains(&name);
    let is_like_id = ["id", "uuid", "guid"].iter().any(|end| name.ends_with(end));
    match column.chosen.kind {
        Kind::Uuid => is_named || is_like_id || records >= FEW,
        Kind::Text | Kind::Integer => is_named || (is_like_id && records >= FEW),
        _ => false,
    }
}
