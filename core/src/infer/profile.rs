//! What the values at each path of a sample are.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

use serde_json::{Number, Value};

use super::texts::{TextKind, Time, kind_of};

/// The largest number of paths that are examined. Keys that are data, such as ids, would need
/// memory without limit.
const MAX_FIELDS: usize = 3_000;

/// The number of distinct values up to which they are counted, unless no value repeats.
const MAX_DISTINCT: usize = 1_000;

/// The number of examples that are kept.
const MAX_EXAMPLES: usize = 3;

/// The values at one path.
#[derive(Debug, Default)]
pub(super) struct Field {
    /// The number of values that are not null.
    pub(super) present: u64,
    pub(super) nulls: u64,
    pub(super) booleans: u64,
    pub(super) integers: u64,
    pub(super) floats: u64,
    pub(super) lists: u64,
    pub(super) objects: u64,
    pub(super) texts: Texts,
    /// The least and the greatest integer, also of those in text.
    pub(super) range: Option<(i128, i128)>,
    pub(super) distinct: Distinct,
    /// The first values that differ, as JSON.
    pub(super) examples: Vec<String>,
    /// The elements of lists.
    pub(super) items: Option<Box<Field>>,
    pub(super) children: Children,
}

/// The values that are texts, by what their content is.
#[derive(Debug, Default)]
pub(super) struct Texts {
    pub(super) all: u64,
    pub(super) empty: u64,
    pub(super) uuids: u64,
    pub(super) dates: u64,
    pub(super) integers: u64,
    pub(super) numbers: u64,
    pub(super) booleans: u64,
    pub(super) times: u64,
    /// The digits after the seconds, at most.
    pub(super) digits: u32,
    /// The first and the last time, in seconds since 1970.
    pub(super) span: Option<(i64, i64)>,
}

/// The distinct values, by their hashes.
#[derive(Debug, Default)]
pub(super) struct Distinct {
    seen: HashSet<u64>,
    values: u64,
    is_full: bool,
}

/// The keys of objects, in the order in which they were first seen.
#[derive(Debug, Default)]
pub(super) struct Children {
    places: HashMap<String, usize>,
    fields: Vec<(String, Field)>,
}

impl Distinct {
    fn add(&mut self, value: &str) {
        self.values += 1;
        if self.is_full {
            return;
        }
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        self.seen.insert(hasher.finish());
        if self.seen.len() > MAX_DISTINCT && (self.seen.len() as u64) < self.values {
            self.is_full = true;
            self.seen = HashSet::new();
        }
    }

    /// Returns their number; `None` if there are more than are counted.
    pub(super) fn count(&self) -> Option<u64> {
        (!self.is_full).then_some(self.seen.len() as u64)
    }

    /// Returns whether no value is there twice.
    pub(super) fn is_unique(&self) -> bool {
        self.count() == Some(self.values)
    }
}

impl Children {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.fields.iter().map(|(key, field)| (key.as_str(), field))
    }

    pub(super) fn get(&self, key: &str) -> Option<&Field> {
        self.places.get(key).map(|place| &self.fields[*place].1)
    }

    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }

    fn get_or_add(&mut self, key: &str, budget: &mut usize) -> Option<&mut Field> {
        let place = match self.places.get(key) {
            Some(place) => *place,
            None if *budget == 0 => return None,
            None => {
                *budget -= 1;
                self.places.insert(key.to_owned(), self.fields.len());
                self.fields.push((key.to_owned(), Field::default()));
                self.fields.len() - 1
            }
        };
        Some(&mut self.fields[place].1)
    }
}

impl Field {
    /// Returns what these records have, as a field that has them as values.
    pub(super) fn of_records<'a>(records: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut root = Self::default();
        let mut budget = MAX_FIELDS;
        for record in records {
            root.add(record, &mut budget);
        }
        root
    }

    /// Returns the field below the path.
    pub(super) fn at(&self, path: &[String]) -> Option<&Field> {
        path.iter()
            .try_fold(self, |field, key| field.children.get(key))
    }

    /// Returns the number of values that are neither lists nor objects.
    pub(super) fn scalars(&self) -> u64 {
        self.present - self.lists - self.objects
    }

    fn add(&mut self, value: &Value, budget: &mut usize) {
        if value.is_null() {
            self.nulls += 1;
            return;
        }
        self.present += 1;
        match value {
            Value::Null => {}
            Value::Bool(_) => self.booleans += 1,
            Value::Number(number) => self.add_number(number),
            Value::String(text) => self.add_text(text),
            Value::Array(items) => {
                self.lists += 1;
                let field = self.items.get_or_insert_default();
                items.iter().for_each(|item| field.add_item(item, budget));
            }
            Value::Object(object) => {
                self.objects += 1;
                for (key, value) in object {
                    if let Some(child) = self.children.get_or_add(key, budget) {
                        child.add(value, budget);
                    }
                }
            }
        }
        self.keep(value);
    }

    /// Adds an element of a list. The fields of those that are objects are not examined.
    fn add_item(&mut self, item: &Value, budget: &mut usize) {
        match item {
            Value::Object(_) | Value::Array(_) => {
                self.present += 1;
                self.objects += 1;
            }
            scalar => self.add(scalar, budget),
        }
    }

    /// Counts the value, and keeps it as an example if it is one of the first.
    fn keep(&mut self, value: &Value) {
        if value.is_object() || value.is_array() {
            if self.examples.is_empty() {
                self.examples.push(value.to_string());
            }
            return;
        }
        let text = value.to_string();
        if self.examples.len() < MAX_EXAMPLES && !self.examples.contains(&text) {
            self.examples.push(text.clone());
        }
        self.distinct.add(&text);
    }

    fn add_number(&mut self, number: &Number) {
        let integer = number.as_i64().map(i128::from);
        match integer.or_else(|| number.as_u64().map(i128::from)) {
            Some(integer) => {
                self.integers += 1;
                self.extend_range(integer);
            }
            None => self.floats += 1,
        }
    }

    fn add_text(&mut self, text: &str) {
        self.texts.all += 1;
        match kind_of(text) {
            TextKind::Empty => self.texts.empty += 1,
            TextKind::Uuid => self.texts.uuids += 1,
            TextKind::Date => self.texts.dates += 1,
            TextKind::Boolean => self.texts.booleans += 1,
            TextKind::Number => self.texts.numbers += 1,
            TextKind::Integer(integer) => {
                self.texts.integers += 1;
                self.extend_range(integer);
            }
            TextKind::Time(Time { seconds, digits }) => {
                self.texts.times += 1;
                self.texts.digits = self.texts.digits.max(digits);
                let (first, last) = self.texts.span.unwrap_or((seconds, seconds));
                self.texts.span = Some((first.min(seconds), last.max(seconds)));
            }
            TextKind::Other => {}
        }
    }

    fn extend_range(&mut self, integer: i128) {
        let (least, greatest) = self.range.unwrap_or((integer, integer));
        self.range = Some((least.min(integer), greatest.max(integer)));
    }
}
