//! Which type a column should have, by the values of a sample.
//!
//! A type is chosen only if it holds every value of the sample: one that does not fit would become a
//! default without a word.

use std::sync::OnceLock;

use super::profile::Field;
use crate::event_types::Catalog;

/// What the values of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// A text of few distinct values.
    Category,
    Integer,
    Float,
    Boolean,
    Uuid,
    Time,
    Date,
    List,
    /// An object, or values of several kinds, as JSON text.
    Json,
}

/// The type of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) kind: Kind,
    /// As ClickHouse writes it, without `Nullable`.
    pub(super) name: String,
    /// The unit of a time that is a number.
    pub(super) unit: Option<&'static str>,
    /// The first and the last time, in seconds since 1970.
    pub(super) span: Option<(i64, i64)>,
    /// What a person should consider.
    pub(super) note: Option<String>,
}

impl Chosen {
    fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
            unit: None,
            span: None,
            note: None,
        }
    }

    fn text() -> Self {
        Self::new(Kind::Text, "String")
    }

    fn json(note: &str) -> Self {
        Self::new(Kind::Json, "String").noting(note)
    }

    /// Returns the type of a column that has the hash of the record where there is no value.
    pub(super) fn hash(note: &str) -> Self {
        Self::text().noting(note)
    }

    fn noting(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Returns whether a missing value is a text without characters, and not NULL.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Text | Kind::Category | Kind::Json)
    }

    /// Returns whether a column of this type can be NULL.
    pub(super) fn can_be_nullable(&self) -> bool {
        self.kind != Kind::List
    }
}

/// Something that a declaration can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feature {
    Lists,
    Dates,
    /// Times that are numbers.
    Epochs,
}

/// Returns whether declarations can have this, which [`Catalog::from_files`] decides. Where they
/// cannot, the column has the text or the number, and a comment.
pub(super) fn supported(feature: Feature) -> bool {
    static FOUND: OnceLock<[bool; 3]> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        [
            "{name: b, type: Array(String), path: [b]}",
            "{name: b, type: Date, path: [b]}",
            "{name: b, type: \"DateTime64(3, 'UTC')\", path: [b], required: true, \
             time: epoch_milliseconds}",
        ]
        .map(is_accepted)
    });
    found[feature as usize]
}

fn is_accepted(column: &str) -> bool {
    let text = format!(
        "table: a\nrule: {{path: [a], present: true}}\norder_by: [a]\ncolumns:\n\
         - {{name: a, type: String, path: [a], required: true}}\n- {column}\n"
    );
    Catalog::from_files([("a.yaml".to_owned(), text)]).is_ok()
}

/// Returns the type of a column for these values. `name` is the key of the field; `is_typed` says
/// that numbers of the source are not texts, so that a text of digits is meant as one.
pub(super) fn choose(field: &Field, name: &str, is_typed: bool) -> Chosen {
    if field.objects > 0 {
        let note = if field.objects == field.present {
            "an object, as JSON text"
        } else {
            "objects and other values, as JSON text"
        };
        return Chosen::json(note);
    }
    if field.lists > 0 {
        return if field.lists == field.present {
            list(field)
        } else {
            Chosen::json("lists and other values, as JSON text")
        };
    }
    scalar(field, name, is_typed).unwrap_or_else(|| text(field))
}

fn list(field: &Field) -> Chosen {
    let items = field.items.as_deref();
    let element = items.and_then(|items| {
        let all = items.present + items.nulls;
        [
            (items.texts.all, "String"),
            (items.integers, "Int64"),
            (items.integers + items.floats, "Float64"),
        ]
        .into_iter()
        .find(|(count, _)| *count == all && all > 0)
    });
    match element {
        Some((_, "Int64")) if !fits_int64(items) => Chosen::json("a list, as JSON text"),
        Some((_, element)) => {
            let name = format!("Array({element})");
            if supported(Feature::Lists) {
                Chosen::new(Kind::List, name)
            } else {
                Chosen::json(&format!("a list, as JSON text; {name} would hold it"))
            }
        }
        None => Chosen::json("a list, as JSON text"),
    }
}

fn fits_int64(field: Option<&Field>) -> bool {
    let range = field.and_then(|field| field.range);
    range.is_none_or(|(least, greatest)| {
        least >= i128::from(i64::MIN) && greatest <= i128::from(i64::MAX)
    })
}

/// Returns the type of values that are neither lists nor objects; `None` if it is a text.
fn scalar(field: &Field, name: &str, is_typed: bool) -> Option<Chosen> {
    let texts = &field.texts;
    // An empty text is what some producers write for a missing value.
    let count = field.present - texts.empty;
    if count == 0 {
        return None;
    }
    if field.booleans == count || (!is_typed && texts.booleans == count) {
        return Some(Chosen::new(Kind::Boolean, "Bool"));
    }
    if texts.uuids == count {
        return Some(Chosen::new(Kind::Uuid, "UUID"));
    }
    if texts.times == count {
        let precision = if texts.digits > 3 { 6 } else { 3 };
        let mut chosen = Chosen::new(Kind::Time, format!("DateTime64({precision}, 'UTC')"));
        chosen.span = texts.span;
        return Some(chosen);
    }
    if texts.dates == count {
        return Some(if supported(Feature::Dates) {
            Chosen::new(Kind::Date, "Date")
        } else {
            text(field).noting("a day, as text")
        });
    }
    let (integers, numbers) = if is_typed && is_name_of_text(name) {
        (field.integers, field.floats)
    } else {
        (
            field.integers + texts.integers,
            field.floats + texts.numbers,
        )
    };
    if integers == count {
        return integer(field, name);
    }
    (integers + numbers == count && fits_float(field)).then(|| Chosen::new(Kind::Float, "Float64"))
}

/// Returns whether a Float64 has every one of these integers.
fn fits_float(field: &Field) -> bool {
    let limit = 1 << 53;
    field
        .range
        .is_none_or(|(least, greatest)| least >= -limit && greatest <= limit)
}

/// Returns whether a text of digits under this name is more likely a text than a number.
fn is_name_of_text(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let ends = [
        "id", "code", "zip", "phone", "key", "sku", "version", "number", "account",
    ];
    ends.iter().any(|end| name.ends_with(end))
}

/// The numbers that are plausible as times: from 2001 to 2100, by unit.
const EPOCHS: [(&str, i128, u8); 3] = [
    ("epoch_seconds", 1, 0),
    ("epoch_milliseconds", 1_000, 3),
    ("epoch_microseconds", 1_000_000, 6),
];
const PLAUSIBLE_SECONDS: std::ops::Range<i128> = 978_307_200..4_102_444_800;

/// Returns the type of integers; `None` if no integer type holds all of them.
fn integer(field: &Field, name: &str) -> Option<Chosen> {
    let (least, greatest) = field.range?;
    let epoch = EPOCHS.iter().find(|(_, unit, _)| {
        [least, greatest]
            .iter()
            .all(|it| PLAUSIBLE_SECONDS.contains(&(it / unit)))
    });
    if let Some((unit, per_second, precision)) = epoch
        && is_name_of_time(name)
    {
        return Some(if supported(Feature::Epochs) {
            let mut chosen = Chosen::new(Kind::Time, format!("DateTime64({precision}, 'UTC')"));
            chosen.unit = Some(unit);
            let seconds = |value: i128| i64::try_from(value / per_second).unwrap_or_default();
            chosen.span = Some((seconds(least), seconds(greatest)));
            chosen
        } else {
            let unit = unit.trim_start_matches("epoch_");
            Chosen::new(Kind::Integer, "Int64").noting(format!("a time in {unit} since 1970"))
        });
    }
    let signed = i128::from(i64::MIN)..=i128::from(i64::MAX);
    if signed.contains(&least) && signed.contains(&greatest) {
        let note = format!("from {least} to {greatest}");
        Some(Chosen::new(Kind::Integer, "Int64").noting(note))
    } else if (0..=i128::from(u64::MAX)).contains(&least) {
        Some(Chosen::new(Kind::Integer, "UInt64"))
    } else {
        None
    }
}

/// Returns whether a number under this name can be a time.
fn is_name_of_time(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts = [
        "time", "date", "created", "updated", "occurred", "expires", "epoch",
    ];
    let ends = ["ts", "at", "_ms", "_on", "start", "end"];
    parts.iter().any(|part| name.contains(part)) || ends.iter().any(|end| name.ends_with(end))
}

/// A text of at most this number of distinct values is a category, if each of them is there several
/// times. ClickHouse recommends `LowCardinality` below 10,000.
const MAX_CATEGORIES: u64 = 1_000;
const MIN_REPETITIONS: u64 = 4;

fn text(field: &Field) -> Chosen {
    if field.texts.all < field.present {
        return Chosen::text().noting("values of several types, as text");
    }
    match field.distinct.count() {
        Some(count)
            if count <= MAX_CATEGORIES && count * MIN_REPETITIONS <= field.present && count > 0 =>
        {
            Chosen::new(Kind::Category, "LowCardinality(String)")
        }
        _ => Chosen::text(),
    }
}
