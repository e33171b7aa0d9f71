//! The landing table of values: a column for each value that columns of event types have.
//!
//! It is for records that are divided into fields by ClickHouse, such as those of CSV and Parquet.
//! Their values are converted once, and from the types that they have in the file: by way of JSON,
//! or of one text for each field, this takes several times as long (docs/adr/0019). The text of a
//! record is made for rejects alone, and for hashes.

use std::collections::BTreeMap;

use super::verdict::{Access, outcome, rules, taken_by, verdicts};
use super::{Lines, OwnFields, filter};
use crate::event_types::paths::{self, Path, PathValues};
use crate::event_types::{Catalog, Column, ColumnType, FileType, Source};
use crate::sql;

/// A value that one or more event types have in a column.
struct Value<'a> {
    /// The name of its column in the landing table: that of the first event type, and its column.
    name: String,
    column_type: ColumnType,
    paths: &'a [Path],
    types: Vec<&'a str>,
}

impl Value<'_> {
    fn is_of(&self, column_type: ColumnType, paths: &[Path]) -> bool {
        self.column_type == column_type && self.paths == paths
    }

    /// Returns the name of the column with the value before NULL is replaced.
    fn nullable(&self) -> String {
        sql::ident(&format!("{} or NULL", self.name))
    }
}

/// Returns the columns of the landing table, in the order of [`select`], with their types.
pub fn columns(catalog: &Catalog) -> Vec<(String, String)> {
    let values = values(catalog).into_iter();
    let values = values.map(|value| (value.name, value.column_type.to_string()));
    let inputs = inputs(catalog).into_keys();
    let inputs = inputs.map(|path| (paths::display(path), paths::TEXT.to_owned()));
    let of_the_line = [
        ("kind", "LowCardinality(String)"),
        ("reason", "LowCardinality(String)"),
        ("value", paths::TEXT),
        ("raw", "String"),
        ("line_hash", "FixedString(16)"),
        ("source_path", "LowCardinality(String)"),
        ("source_etag", "LowCardinality(String)"),
        ("row_number", "UInt64"),
        ("batch_id", "UUID"),
    ];
    let of_the_line =
        of_the_line.map(|(name, column_type)| (name.to_owned(), column_type.to_owned()));
    values.chain(inputs).chain(of_the_line).collect()
}

/// Returns the name of the column that has the value of a declared column, which has paths.
pub(super) fn column_of(catalog: &Catalog, column: &Column) -> String {
    let Source::Paths { paths, .. } = &column.source else {
        unreachable!("called only for columns with paths")
    };
    let values = values(catalog).into_iter();
    let mut values = values.filter(|value| value.is_of(column.column_type, paths));
    let value = values.next();
    value.map_or_else(
        || unreachable!("every column of the catalog has a value"),
        |value| sql::ident(&value.name),
    )
}

/// Returns the SELECT from records to the rows of the landing table.
///
/// Each value is converted once, since the same result decides whether the record is rejected and is
/// stored. An expensive conversion is skipped for records of event types that do not have the value.
pub(super) fn select(catalog: &Catalog, lines: &Lines, fields: &OwnFields) -> String {
    let found = found(catalog, fields);
    let access = Columns {
        values: values(catalog),
        types: found
            .iter()
            .map(|(path, (_, of_type))| (path.clone(), *of_type))
            .collect(),
    };
    let inputs = inputs(catalog);
    let mut read = vec!["*".to_owned()];
    let mut columns = Vec::new();
    for value in &access.values {
        let (expression, is_cheap) = access.expression(value);
        let expression = guarded(expression, is_cheap, &value.types, catalog);
        read.push(format!("{expression} AS {}", value.nullable()));
        columns.push(format!(
            "{} AS {}",
            value.column_type.or_default(&value.nullable()),
            sql::ident(&value.name)
        ));
    }
    for (path, types) in inputs {
        let is_cheap = access.type_of(path).is_none_or(FileType::is_text);
        let expression = guarded(access.text(path), is_cheap, &types, catalog);
        let text = text_column(path);
        read.push(format!("{expression} AS {text}"));
        columns.push(format!("{text} AS {}", paths::column(path)));
    }
    format!(
        "SELECT
    {columns},
    {outcome}
FROM (
    SELECT
        *,
        multiIf(
{verdicts}
        ) AS verdict
    FROM (
        SELECT
            {read}
        FROM (
            SELECT
                *,
                multiIf(
    {rules}
                    ''
                ) AS taken
            FROM (
{source}
            )
        )
    )
)",
        columns = columns.join(",\n    "),
        outcome = outcome(catalog, lines, &access),
        verdicts = verdicts(catalog, lines, &access),
        read = read.join(",\n            "),
        rules = rules(catalog, &access).replace('\n', "\n    "),
        source = source(lines, fields, &found),
    )
}

/// Returns the SELECT of the values of all declared paths, as they are in the source.
fn source(lines: &Lines, fields: &OwnFields, found: &BTreeMap<Path, (String, FileType)>) -> String {
    let mut columns = vec![
        format!("{} AS line", lines.line),
        format!("{} AS bytes", fields.bytes),
    ];
    if !lines.problems.is_empty() {
        let problems = lines.problems.iter();
        let problems: String = problems
            .map(|(condition, reason)| format!("{condition}, {reason}, "))
            .collect();
        columns.push(format!("multiIf({problems}'') AS problem"));
    }
    columns.extend([
        format!("{} AS source_path", lines.source_path),
        format!("trim(BOTH '\"' FROM {}) AS source_etag", lines.source_etag),
        format!("{} AS row_number", lines.row_number),
    ]);
    let values = found.iter();
    columns.extend(values.map(|(path, (value, _))| format!("{value} AS {}", value_column(path))));
    format!(
        "                SELECT
                    {}
                FROM {}{}",
        columns.join(",\n                    "),
        lines.from,
        filter(lines, 16),
    )
}

/// Returns the declared paths that the records have, each with its value and its type.
fn found(catalog: &Catalog, fields: &OwnFields) -> BTreeMap<Path, (String, FileType)> {
    let leaves = catalog.tree().leaves().into_iter();
    leaves
        .filter_map(|path| {
            let value = fields.at(&path)?;
            Some((path, value))
        })
        .collect()
}

/// Returns the values of a catalog. Event types whose columns have the same paths and the same type
/// share one.
fn values(catalog: &Catalog) -> Vec<Value<'_>> {
    let mut values: Vec<Value<'_>> = Vec::new();
    for event_type in catalog.types() {
        for column in &event_type.columns {
            let Source::Paths { paths, .. } = &column.source else {
                continue;
            };
            let same = values
                .iter_mut()
                .find(|value| value.is_of(column.column_type, paths));
            match same {
                Some(value) => value.types.push(&event_type.name),
                None => values.push(Value {
                    name: format!("{}.{}", event_type.name, column.name),
                    column_type: column.column_type,
                    paths,
                    types: vec![&event_type.name],
                }),
            }
        }
    }
    for value in &mut values {
        value.types.dedup();
    }
    values
}

/// Returns the paths whose texts are inputs of expressions, each with the event types of these.
fn inputs(catalog: &Catalog) -> BTreeMap<&Path, Vec<&str>> {
    let mut found: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    for event_type in catalog.types() {
        for column in &event_type.columns {
            let Source::Expression { inputs, .. } = &column.source else {
                continue;
            };
            for path in inputs.iter().flat_map(|(_, paths)| paths) {
                found.entry(path).or_default().push(&event_type.name);
            }
        }
    }
    for types in found.values_mut() {
        types.dedup();
    }
    found
}

/// Returns an expression that is evaluated for these event types only, if that saves something.
fn guarded(expression: String, is_cheap: bool, types: &[&str], catalog: &Catalog) -> String {
    if is_cheap || types.len() == catalog.types().len() {
        return expression;
    }
    format!("if({}, {expression}, NULL)", taken_by(types, catalog))
}

/// Returns the name of the column of a value as it is in the source.
fn value_column(path: &Path) -> String {
    sql::ident(&format!("value at {}", paths::display(path)))
}

/// Returns the name of the column of an input's text.
fn text_column(path: &Path) -> String {
    sql::ident(&format!("text at {}", paths::display(path)))
}

/// The columns of [`select`], below that of the landing table.
struct Columns<'a> {
    values: Vec<Value<'a>>,
    /// The types of the values in the source, by their paths. No record has another path.
    types: BTreeMap<Path, FileType>,
}

impl Columns<'_> {
    fn type_of(&self, path: &Path) -> Option<FileType> {
        self.types.get(path).copied()
    }

    /// Returns those of these paths that the records have.
    fn existing<'p>(&self, paths: &'p [Path]) -> Vec<&'p Path> {
        let paths = paths.iter();
        paths
            .filter(|path| self.types.contains_key(*path))
            .collect()
    }

    /// Returns the expression for a value, which is NULL where it cannot be read, and whether it
    /// costs next to nothing.
    fn expression(&self, value: &Value<'_>) -> (String, bool) {
        let paths = self.existing(value.paths);
        let mut types: Vec<FileType> = Vec::new();
        types.extend(paths.iter().filter_map(|path| self.type_of(path)));
        let Some(first) = types.first().copied() else {
            return (value.column_type.null(), true);
        };
        if types.iter().all(|it| *it == first) {
            let found = first_of(paths.iter().map(|path| value_column(path)));
            if let Some(read) = value.column_type.read_from(first, &found) {
                return (read, true);
            }
        }
        let text = self.first_text(value.paths);
        let is_cheap = value.column_type.is_text() && types.into_iter().all(FileType::is_text);
        (value.column_type.read(&text), is_cheap)
    }
}

impl PathValues for Columns<'_> {
    fn value(&self, path: &Path) -> String {
        if self.types.contains_key(path) {
            value_column(path)
        } else {
            format!("CAST(NULL, {})", sql::string(paths::TEXT))
        }
    }

    fn text(&self, path: &Path) -> String {
        let of_type = self.type_of(path).unwrap_or(FileType::Text);
        of_type.text(&self.value(path))
    }
}

impl Access for Columns<'_> {
    fn first_text(&self, paths: &[Path]) -> String {
        let existing = self.existing(paths);
        if existing.is_empty() {
            return format!("CAST(NULL, {})", sql::string(paths::TEXT));
        }
        first_of(existing.into_iter().map(|path| self.text(path)))
    }

    fn is_missing(&self, paths: &[Path]) -> String {
        let existing = self.existing(paths).into_iter();
        let missing: Vec<String> = existing
            .map(|path| format!("isNull({})", value_column(path)))
            .collect();
        if missing.is_empty() {
            "true".to_owned()
        } else {
            missing.join(" AND ")
        }
    }

    fn read(&self, column_type: ColumnType, paths: &[Path]) -> String {
        let mut values = self.values.iter();
        let value = values.find(|value| value.is_of(column_type, paths));
        value.map_or_else(
            || unreachable!("every column of the catalog has a value"),
            Value::nullable,
        )
    }
}

/// Returns the first of these values that is not NULL.
fn first_of(values: impl Iterator<Item = String>) -> String {
    let values: Vec<String> = values.collect();
    match values.as_slice() {
        [one] => one.clone(),
        many => format!("coalesce({})", many.join(", ")),
    }
}
