//! Declarations for a sample of records: event types, and formats.
//!
//! [`content`] finds the records, [`kinds`] tells kinds of them apart, [`profile`] collects what
//! values there are at each path, [`types`] and [`keys`] decide, and [`mod@print`] writes the
//! declarations with the evidence as comments.
//!
//! What is printed passes the checks of [`Catalog::from_files`], and loads the sample without a
//! reject: a type holds every value of the sample, and a column is required only if each record has
//! a value. The choices beyond that are guesses, which a person confirms.

mod columns;
mod content;
mod delimited;
mod keys;
mod kinds;
mod names;
mod print;
mod profile;
#[cfg(test)]
mod tests;
mod texts;
mod types;

use std::collections::BTreeSet;
use std::ops::Range;

use serde_json::Value;

pub use content::{Content, Found, Source, read};

use crate::event_types::{Catalog, PREVIEW_FIELDS, Path, Problem, RESERVED_KINDS, RESERVED_TABLES};
use crate::formats::FILE_NAME;
use columns::Columns;
use keys::Keys;
use kinds::Discriminator;
use names::{identifier, snake_case, unique};
use profile::Field;

/// What a sample does not show.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the event type if there is one kind of records, and of the format.
    pub name: String,
    /// Globs on the keys of such objects.
    pub keys: Vec<String>,
    /// Whether these keys are known, and not guessed from the names of files.
    pub are_keys_known: bool,
    pub by: By,
    /// The times that are accepted where a table is partitioned by them, in seconds since 1970.
    pub plausible: Range<u64>,
}

/// How kinds of records are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// By the field that explains best which other fields there are, if one does.
    Any,
    /// By this field.
    Field(Path),
    /// All records are of one kind.
    Nothing,
}

/// A file with declarations.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct File {
    pub name: String,
    pub text: String,
}

/// One kind of records.
#[derive(Debug)]
struct Kind {
    /// The name of the event type.
    name: String,
    table: String,
    rule: Rule,
    records: u64,
    columns: Columns,
    keys: Keys,
}

#[derive(Debug)]
enum Rule {
    /// The discriminating field has one of these values.
    In(Path, Vec<String>),
    /// One of these paths has a value.
    Present(Vec<Path>),
}

/// Returns the declarations for the records of a sample.
///
/// # Errors
///
/// Returns the problems of the declarations, if they have any, or that there are no records of which
/// rows could be made.
pub fn infer(content: &Content, options: &Options) -> Result<Vec<File>, Vec<Problem>> {
    let records = &content.records;
    let is_typed = !matches!(content.found, Found::Delimited(_));
    let whole = Field::of_records(records);
    let discriminator = match &options.by {
        By::Any => kinds::find(records, &whole).filter(|found| found.kinds.len() > 1),
        By::Field(path) => Some(kinds::by(records, path)).filter(|it| !it.kinds.is_empty()),
        By::Nothing => None,
    };
    if let (By::Field(path), None) = (&options.by, &discriminator) {
        let message = format!("no record of the sample has a text at {}", path.join("."));
        return Err(vec![failure(message)]);
    }
    let groups = groups(records, discriminator.as_ref());
    let profiles: Vec<Field> = groups
        .iter()
        .map(|(_, records)| Field::of_records(records.iter().copied()))
        .collect();
    let open = discriminator
        .as_ref()
        .map(|it| it.path.clone())
        .unwrap_or_default();
    let opaque = columns::opaque(&whole, &profiles, &open);
    let mut names = Names::new();
    let mut found = Vec::new();
    for ((values, records), profile) in groups.iter().zip(&profiles) {
        let mut columns = columns::columns(&whole, profile, &opaque, is_typed);
        let count = records.len() as u64;
        let rule = match &discriminator {
            Some(discriminator) => Rule::In(discriminator.path.clone(), values.clone()),
            None => Rule::Present(always_present(&columns, records)),
        };
        let keys = keys::choose_keys(&mut columns, &whole, count, &options.plausible);
        let (name, table) = names.of(values, &options.name);
        found.push(Kind {
            name,
            table,
            rule: preferring(rule, &columns, &keys),
            records: count,
            columns,
            keys,
        });
    }
    if found
        .iter()
        .any(|kind| matches!(&kind.rule, Rule::Present(paths) if paths.is_empty()))
    {
        return Err(vec![failure(
            "no record of the sample has a value".to_owned(),
        )]);
    }
    let files = print::files(content, &found, options);
    let texts = files
        .iter()
        .map(|file| (file.name.clone(), file.text.clone()));
    Catalog::from_files(texts)?;
    Ok(files)
}

fn failure(message: String) -> Problem {
    Problem {
        file: "the sample".to_owned(),
        at: String::new(),
        position: None,
        message,
    }
}

/// Returns the records of each kind, with the values of its discriminating field.
fn groups<'a>(
    records: &'a [Value],
    discriminator: Option<&Discriminator>,
) -> Vec<(Vec<String>, Vec<&'a Value>)> {
    let Some(Discriminator { path, kinds }) = discriminator else {
        return vec![(Vec::new(), records.iter().collect())];
    };
    let of_kind = |values: &Vec<String>| {
        let is_of = |record: &&Value| {
            let value = kinds::text_at(record, path);
            value.is_some_and(|value| values.iter().any(|it| it == value))
        };
        (values.clone(), records.iter().filter(is_of).collect())
    };
    kinds.iter().map(of_kind).collect()
}

/// Returns a path of a column at which each record has a value, or several paths of which each
/// record has one.
fn always_present(columns: &Columns, records: &[&Value]) -> Vec<Path> {
    let mut left: Vec<&Value> = records.to_vec();
    let mut paths = Vec::new();
    while !left.is_empty() {
        let having = |path: &Path| {
            left.iter()
                .filter(|it| kinds::at(it, path).is_some())
                .count()
        };
        let candidates = columns.columns.iter().map(|column| &column.path);
        // The first of those that most records have.
        let best = candidates.rev().max_by_key(|path| having(path));
        let Some(best) = best.filter(|path| having(path) > 0).cloned() else {
            break;
        };
        left.retain(|record| kinds::at(record, &best).is_none());
        paths.push(best);
    }
    paths
}

/// Returns the rule by the id or the time, if it is by one value that each record has.
fn preferring(rule: Rule, columns: &Columns, keys: &Keys) -> Rule {
    let named = [Some(&keys.id), keys.time.as_ref()].into_iter().flatten();
    let mut named = named.filter_map(|name| columns.columns.iter().find(|it| it.name == *name));
    match (rule, named.find(|column| column.required)) {
        (Rule::Present(paths), Some(column)) if paths.len() == 1 => {
            Rule::Present(vec![column.path.clone()])
        }
        (rule, _) => rule,
    }
}

/// The names of event types and tables that are taken.
struct Names {
    types: BTreeSet<String>,
    tables: BTreeSet<String>,
}

impl Names {
    fn new() -> Self {
        Self {
            types: BTreeSet::new(),
            tables: RESERVED_TABLES.map(str::to_owned).into(),
        }
    }

    /// Returns the names of an event type and its table. The values are those of the discriminating
    /// field, if there is one.
    fn of(&mut self, values: &[String], otherwise: &str) -> (String, String) {
        let words: Vec<String> = values
            .iter()
            .take(2)
            .map(|value| snake_case(value))
            .collect();
        let name = if values.is_empty() {
            snake_case(otherwise)
        } else {
            words.join("_or_")
        };
        let name = identifier(name.trim_matches('_'), "event");
        let is_reserved = RESERVED_KINDS.contains(&name.as_str())
            || PREVIEW_FIELDS.contains(&name.as_str())
            || name == FILE_NAME
            || ["landing", "ledger"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
        let name = if is_reserved {
            format!("event_{name}")
        } else {
            name
        };
        let name = unique(&name, &mut self.types);
        let table = if name.ends_with('s') {
            name.clone()
        } else if values.is_empty() {
            format!("{name}s")
        } else {
            format!("{name}_events")
        };
        (name, unique(&table, &mut self.tables))
    }
}
