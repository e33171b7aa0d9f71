//! The columns of one kind of records.

use std::collections::BTreeSet;

use super::names::{column_name, unique};
use super::profile::Field;
use super::types::{Chosen, choose};
use crate::event_types::{LINEAGE, Path};

/// Deeper objects are kept as JSON text.
const MAX_DEPTH: usize = 5;
/// An object with this number of keys, of which most are missing in most records, has data as keys.
const MIN_DYNAMIC_KEYS: usize = 8;
const MAX_DYNAMIC_PRESENCE: f64 = 0.25;
/// The number of columns of a table, at most.
const MAX_COLUMNS: usize = 200;

/// A column, and what it was inferred from.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) path: Path,
    pub(super) chosen: Chosen,
    /// The number of records that have a value of this type.
    pub(super) valid: u64,
    /// The number of records that have a value.
    pub(super) present: u64,
    pub(super) distinct: Option<u64>,
    /// Whether all of them differ.
    pub(super) is_unique: bool,
    pub(super) examples: Vec<String>,
    /// Whether empty texts and missing values can be told apart only by NULL.
    pub(super) needs_null: bool,
    pub(super) required: bool,
    /// Whether the hash of the record replaces a missing value.
    pub(super) is_hash: bool,
}

/// The columns of a kind, and the paths that have none.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub(super) columns: Vec<Column>,
    /// Paths at which there is never a value.
    pub(super) empty: Vec<Path>,
    /// Paths that are left out because there are too many, or because ClickHouse cannot address
    /// them.
    pub(super) left_out: Vec<Path>,
}

/// Returns the paths of objects that are kept as JSON text, in all kinds: a path cannot be read as
/// a value by one event type and as an object by another.
///
/// `whole` has all records, and `kinds` those of each kind. Objects on the way to `open` have their
/// fields read.
pub(super) fn opaque(whole: &Field, kinds: &[Field], open: &[String]) -> BTreeSet<Path> {
    let mut found = BTreeSet::new();
    let mut path = Path::new();
    add_opaque(whole, kinds, open, &mut path, &mut found);
    found
}

fn add_opaque(
    field: &Field,
    kinds: &[Field],
    open: &[String],
    path: &mut Path,
    found: &mut BTreeSet<Path>,
) {
    for (key, child) in field.children.iter().filter(|(_, child)| child.objects > 0) {
        path.push(key.to_owned());
        let is_open = path.len() < open.len() && open.starts_with(path);
        let is_dynamic = kinds
            .iter()
            .filter_map(|kind| kind.at(path))
            .any(has_dynamic_keys);
        let is_opaque = child.objects < child.present
            || path.len() >= MAX_DEPTH
            || is_dynamic
            || child.children.iter().any(|(key, _)| !is_addressable(key));
        if is_opaque && !is_open {
            found.insert(path.clone());
        } else {
            add_opaque(child, kinds, open, path, found);
        }
        path.pop();
    }
}

fn has_dynamic_keys(field: &Field) -> bool {
    let keys = field.children.len();
    let values: u64 = field.children.iter().map(|(_, child)| child.present).sum();
    let presence = values as f64 / (keys as f64 * field.objects as f64);
    keys >= MIN_DYNAMIC_KEYS && presence < MAX_DYNAMIC_PRESENCE
}

/// Returns whether ClickHouse can address a field of this name.
fn is_addressable(key: &str) -> bool {
    !key.is_empty() && !key.contains(['\u{1}', '\0'])
}

/// Returns the columns of a kind, of which `root` has the records, as `whole` has those of all kinds.
pub(super) fn columns(
    whole: &Field,
    root: &Field,
    opaque: &BTreeSet<Path>,
    is_typed: bool,
) -> Columns {
    let mut walk = Walk {
        whole,
        opaque,
        is_typed,
        taken: LINEAGE.map(str::to_owned).into(),
        found: Columns::default(),
    };
    walk.add(root, &mut Path::new());
    walk.found
}

/// A walk through the fields of a kind.
struct Walk<'a> {
    whole: &'a Field,
    opaque: &'a BTreeSet<Path>,
    is_typed: bool,
    /// The names of columns that are taken.
    taken: BTreeSet<String>,
    found: Columns,
}

impl Walk<'_> {
    fn add(&mut self, field: &Field, path: &mut Path) {
        for (key, child) in field.children.iter() {
            path.push(key.to_owned());
            // Of a field that is not counted among all records, it is not known what it is in other
            // kinds.
            let is_known = is_addressable(key) && self.whole.at(path).is_some();
            if !is_known || self.found.columns.len() >= MAX_COLUMNS {
                self.found.left_out.push(path.clone());
            } else if child.objects > 0 && !self.opaque.contains(path) {
                self.add(child, path);
            } else if child.present == 0 {
                self.found.empty.push(path.clone());
            } else {
                let name = unique(&column_name(path), &mut self.taken);
                let column = column(child, name, path.clone(), self.is_typed);
                self.found.columns.push(column);
            }
            path.pop();
        }
    }
}

fn column(field: &Field, name: String, path: Path, is_typed: bool) -> Column {
    let key = path.last().map_or("", String::as_str);
    let chosen = choose(field, key, is_typed);
    let valid = if chosen.is_text() {
        field.present
    } else {
        field.present - field.texts.empty
    };
    Column {
        name,
        path,
        valid,
        present: field.present,
        distinct: field
            .distinct
            .count()
            .filter(|_| field.scalars() == field.present),
        is_unique: field.distinct.is_unique() && field.scalars() == field.present,
        examples: field.examples.clone(),
        needs_null: field.texts.empty > 0 && chosen.is_text(),
        required: false,
        is_hash: false,
        chosen,
    }
}
