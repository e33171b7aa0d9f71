//! The landing table of JSON: a column for the text at each declared path.

use super::verdict::{Access, outcome, rules, verdicts};
use super::{LINE, Lines, filter};
use crate::event_types::paths::{self, Path, PathTexts};
use crate::event_types::{Catalog, ColumnType};
use crate::sql;

/// Returns the columns of `landing`, in the order of [`select`], with their types.
pub fn columns(catalog: &Catalog) -> Vec<(String, &'static str)> {
    let values = catalog.tree().leaves().into_iter();
    let values = values.map(|path| (paths::display(&path), paths::TEXT));
    let of_the_line = [
        ("kind", "LowCardinality(String)"),
        ("reason", "LowCardinality(String)"),
        ("value", paths::TEXT),
        ("raw", "String"),
        ("line_hash", "FixedString(16)"),
        ("source_path", "String"),
        ("source_etag", "String"),
        ("row_number", "UInt64"),
        ("batch_id", "UUID"),
    ];
    values
        .chain(of_the_line.map(|(name, column_type)| (name.to_owned(), column_type)))
        .collect()
}

/// Returns the SELECT from lines to the rows of `landing`.
///
/// Each line is parsed once. More expensive expressions (validity, the paths of an ambiguous line,
/// the hash) are behind conditions, so that ClickHouse evaluates them only for the lines that need
/// them.
pub(super) fn select(catalog: &Catalog, lines: &Lines, json: &str) -> String {
    let tree = catalog.tree();
    let leaves = tree.leaves().into_iter();
    let columns: Vec<String> = leaves.map(|path| paths::column(&path)).collect();
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
            *,
            multiIf(
{rules}
                ''
            ) AS taken
        FROM (
{read}
        )
    )
)",
        outcome = outcome(catalog, lines, &PathTexts),
        verdicts = verdicts(catalog, lines, &PathTexts),
        rules = rules(catalog, &PathTexts),
        read = parsed_values(catalog, lines, json),
        columns = columns.join(",\n    "),
    )
}

/// Returns the SELECT of the declared values of each record, which are parsed from this JSON text.
fn parsed_values(catalog: &Catalog, lines: &Lines, json: &str) -> String {
    let tree = catalog.tree();
    format!(
        "            SELECT
                {passed_on}, source_path, source_etag, row_number,
                {values}
            FROM (
                SELECT
                    {line} AS line,
                    if(length(line) > {max_line_bytes}, '', {json}) AS json,
                    {source_path} AS source_path,
                    trim(BOTH '\"' FROM {source_etag}) AS source_etag,
                    {row_number} AS row_number,
                    JSONExtract(json, {tuple_type}) AS parsed,
                    {absent} AS absent
                FROM {from}{filter}
            )",
        passed_on = if json == LINE { LINE } else { "line, json" },
        values = tree.values("parsed", "absent").join(",\n                "),
        absent = tree.absent("json", "parsed"),
        max_line_bytes = lines.max_line_bytes,
        line = lines.line,
        source_path = lines.source_path,
        source_etag = lines.source_etag,
        row_number = lines.row_number,
        tuple_type = sql::string(&tree.tuple_type()),
        from = lines.from,
        filter = filter(lines, 16),
    )
}

impl Access for PathTexts {
    fn first_text(&self, paths: &[Path]) -> String {
        first_of(paths)
    }

    fn is_missing(&self, paths: &[Path]) -> String {
        format!("isNull({})", first_of(paths))
    }

    fn read(&self, column_type: ColumnType, paths: &[Path]) -> String {
        column_type.read(&first_of(paths))
    }

    fn read_checked(&self, column_type: ColumnType, paths: &[Path]) -> String {
        column_type.read_checked(&first_of(paths))
    }
}

/// Returns the text at the first of these paths that exists.
pub(super) fn first_of(paths: &[Path]) -> String {
    let texts: Vec<_> = paths.iter().map(|path| paths::column(path)).collect();
    match texts.as_slice() {
        [one] => one.clone(),
        many => format!("coalesce({})", many.join(", ")),
    }
}
