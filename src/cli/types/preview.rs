//! `sluice types preview`: the rows that records would become.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::content::Content;
use crate::batch::BatchId;
use crate::cli::app::App;
use crate::cli::output::{Output, shown, table};
use crate::clickhouse::Warehouse;
use crate::event_types::{Catalog, Column, EventType, Otherwise, Source};
use crate::sql;
use crate::statements::insert::{gaps_of, preview_of};
use crate::statements::select::{Lines, Target, TimeRange};

#[derive(clap::Args)]
pub(in crate::cli) struct Preview {
    /// A file, plain or compressed with gzip or zstd, `-` for standard input, or an object such as
    /// s3://bucket/key
    pub(super) source: String,

    /// Read at most COUNT records
    #[arg(long, value_name = "COUNT", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) lines: u64,

    /// Key that the file would have in S3, for event types and formats that are routed by key
    #[arg(long, value_name = "KEY", default_value = "")]
    pub(super) key: String,

    /// Read it as this declared format, or as `json_lines`, whatever its key is
    #[arg(long = "format", value_name = "NAME")]
    pub(super) read_as: Option<String>,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, preview: &Preview) -> anyhow::Result<()> {
    let catalog = app.catalog()?;
    let times = app.time_limits().of(BatchId::new(&app.env));
    let warehouse = app.warehouse()?;
    let content = Content::new(app, &catalog, preview).await?;
    let previewed = async {
        let lines = content.records(&warehouse, preview.lines).await?;
        previewed(&warehouse, &catalog, lines, times).await
    };
    let failed = || format!("failed to preview {}", preview.source);
    let previewed = match previewed.await {
        Ok(previewed) => previewed,
        Err(error) => {
            let error = match content.mismatch(&warehouse).await {
                Some(mismatch) => error.context(mismatch),
                None => error,
            };
            return Err(error.context(failed()));
        }
    };
    preview.output.show(&Previewed {
        format: content.format(),
        ..previewed
    })
}

type Row = Map<String, Value>;

#[derive(Default, Serialize)]
struct Previewed {
    /// The format, unless it is JSON lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<String>,
    /// The rows of each table, by the kind of line.
    #[serde(flatten)]
    rows: BTreeMap<String, Vec<Row>>,
    /// For each event type that has rows, the columns in which none of them has a value.
    empty_columns: BTreeMap<String, Vec<String>>,
    /// For each event type that has rows, the columns in which some of them have no valid value.
    column_values: BTreeMap<String, Vec<ColumnValues>>,
    /// The numbers of rows that are not shown, by the kind of line.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    left_out: BTreeMap<String, usize>,
}

/// The number of records of which a column has no valid value.
#[derive(Serialize)]
struct ColumnValues {
    column: String,
    /// The record has no value, and the row has NULL.
    missing: u64,
    /// The record has no value, and the row has the default of the type, or the record's hash.
    defaulted: u64,
    /// The record has a value that is not one of the type, and the row has NULL or the default.
    invalid: u64,
    /// An invalid value.
    #[serde(skip_serializing_if = "String::is_empty")]
    example: String,
}

/// The counts of an event type, in the order of its columns.
#[derive(Deserialize)]
struct Gaps {
    missing: Vec<u64>,
    invalid: Vec<u64>,
    examples: Vec<String>,
}

async fn previewed(
    warehouse: &Warehouse,
    catalog: &Catalog,
    lines: Lines,
    times: Option<TimeRange>,
) -> anyhow::Result<Previewed> {
    let lines = Lines { times, ..lines };
    let mut previewed = Previewed::default();
    let mut budget = Budget(MAX_BYTES);
    for target in Target::all(catalog) {
        let Some(kind) = target.kind() else { continue };
        let mut rows: Vec<Row> = warehouse.rows(&preview_of(catalog, target, &lines)).await?;
        for row in &mut rows {
            row.retain(|column, _| !LINEAGE.contains(&column.as_str()));
        }
        if let Target::EventType(event_type) = target
            && !rows.is_empty()
        {
            let empty = empty_columns(warehouse, event_type, &rows).await?;
            previewed.empty_columns.insert(kind.to_owned(), empty);
            let gaps = warehouse
                .rows(&gaps_of(catalog, event_type, &lines))
                .await?;
            let gaps = gaps
                .into_iter()
                .next()
                .context("ClickHouse returned no counts")?;
            let values = column_values(event_type, gaps);
            previewed.column_values.insert(kind.to_owned(), values);
        }
        let all = rows.len();
        let rows = budget.take(rows);
        if rows.len() < all {
            previewed.left_out.insert(kind.to_owned(), all - rows.len());
        }
        previewed.rows.insert(kind.to_owned(), rows);
    }
    Ok(previewed)
}

/// The size of all rows that are printed, in bytes of JSON: less than a megabyte.
const MAX_BYTES: usize = 900_000;
/// The size of a value that is printed, in bytes of JSON.
const MAX_VALUE_BYTES: usize = 2_000;

/// The bytes of rows that may still be printed.
struct Budget(usize);

impl Budget {
    /// Returns the first rows, as far as they may be printed, with long values shortened.
    fn take(&mut self, rows: Vec<Row>) -> Vec<Row> {
        let rows = rows.into_iter().map(|row| {
            let values = row.into_iter();
            values
                .map(|(column, value)| (column, shortened(value)))
                .collect::<Row>()
        });
        rows.take_while(|row| {
            // A row is indented by lines.
            let indentation = 16 * row.len();
            let bytes = serde_json::to_string(row).map_or(0, |text| text.len()) + indentation;
            let left = self.0.checked_sub(bytes);
            self.0 = left.unwrap_or_default();
            left.is_some()
        })
        .collect()
    }
}

/// Returns the value, or the beginning of its text if it is long.
fn shortened(value: Value) -> Value {
    let text = match &value {
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => value.to_string(),
        _ => return value,
    };
    if text.len() <= MAX_VALUE_BYTES {
        return value;
    }
    let end = text.floor_char_boundary(MAX_VALUE_BYTES);
    Value::from(format!("{}… ({} bytes)", &text[..end], text.len()))
}

/// Returns the columns of which some records have no valid value.
fn column_values(event_type: &EventType, gaps: Gaps) -> Vec<ColumnValues> {
    let counts = gaps
        .missing
        .into_iter()
        .zip(gaps.invalid)
        .zip(gaps.examples);
    let columns = event_type.columns.iter().zip(counts);
    let values = columns.map(|(column, ((missing, invalid), example))| {
        let (missing, defaulted) = if is_null_without_value(column) {
            (missing, 0)
        } else {
            (0, missing)
        };
        ColumnValues {
            column: column.name.clone(),
            missing,
            defaulted,
            invalid,
            example,
        }
    });
    values
        .filter(|it| it.missing + it.defaulted + it.invalid > 0)
        .collect()
}

/// Returns whether a row without a value has NULL in this column.
fn is_null_without_value(column: &Column) -> bool {
    let has_hash = matches!(
        column.source,
        Source::Paths {
            otherwise: Some(Otherwise::LineHash),
            ..
        }
    );
    column.column_type.is_nullable() && !has_hash
}

/// Returns the columns in which each row has the default of the column's type.
async fn empty_columns(
    warehouse: &Warehouse,
    event_type: &EventType,
    rows: &[Row],
) -> anyhow::Result<Vec<String>> {
    let columns = event_type.optional_columns();
    let defaults = columns.iter().map(|column| {
        let column_type = sql::string(&column.column_type.to_string());
        let name = sql::ident(&column.name);
        format!("defaultValueOfTypeName({column_type}) AS {name}")
    });
    let defaults: Vec<String> = defaults.collect();
    if defaults.is_empty() {
        return Ok(Vec::new());
    }
    let defaults: Vec<Row> = warehouse
        .rows(&format!("SELECT {}", defaults.join(", ")))
        .await?;
    let defaults = defaults
        .first()
        .context("ClickHouse returned no defaults")?;
    let names = columns.into_iter().map(|column| column.name.clone());
    let is_empty = |name: &String| rows.iter().all(|row| row.get(name) == defaults.get(name));
    Ok(names.filter(is_empty).collect())
}

/// Columns that have no meaning in a preview.
const LINEAGE: &[&str] = &["source_path", "source_etag", "batch_id"];

impl fmt::Display for Previewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(format) = &self.format {
            writeln!(f, "read as {}\n", shown(format))?;
        }
        for (kind, rows) in &self.rows {
            let left_out = self.left_out.get(kind).copied().unwrap_or_default();
            writeln!(f, "{kind}: {} lines", rows.len() + left_out)?;
            for row in rows {
                let values = row.iter().filter(|(_, value)| !is_nothing(value));
                let columns = values.map(|(column, value)| {
                    vec![
                        format!("  {column}"),
                        first_of(&shown(value.as_str().unwrap_or(&value.to_string()))),
                    ]
                });
                writeln!(f, "{}\n", table(&["", ""], columns))?;
            }
            if let Some(left_out) = self.left_out.get(kind) {
                writeln!(f, "  {left_out} more are not shown\n")?;
            }
            if let Some(values) = self.column_values.get(kind).filter(|it| !it.is_empty()) {
                writeln!(f, "{}\n", values_table(values))?;
            }
            match self.empty_columns.get(kind) {
                Some(empty) if !empty.is_empty() => {
                    writeln!(f, "  no value in any row: {}\n", shown(&empty.join(", ")))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Returns the beginning of a value that is shown in a terminal.
fn first_of(text: &str) -> String {
    const MAX_CHARS: usize = 300;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn values_table(values: &[ColumnValues]) -> String {
    let header = ["  column", "missing", "defaulted", "invalid", "such as"];
    let rows = values.iter().map(|values| {
        let counts = [values.missing, values.defaulted, values.invalid];
        let mut row = vec![format!("  {}", values.column)];
        row.extend(counts.map(|count| count.to_string()));
        row.push(values.example.clone());
        row
    });
    table(&header, rows)
}

/// Returns whether this is the value of a column that a statement does not set.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_a_megabyte_is_printed() {
        let row = |text: &str| Row::from_iter([("raw".to_owned(), Value::from(text))]);
        let long = "é".repeat(1 << 20);
        let mut budget = Budget(MAX_BYTES);
        let taken = budget.take(vec![row(&long); 10_000]);
        let shown = taken[0]["raw"].as_str().unwrap();
        assert!(shown.ends_with("… (2097152 bytes)"), "{shown}");
        assert!(shown.len() < MAX_VALUE_BYTES + 50);
        let printed = serde_json::to_string_pretty(&taken).unwrap();
        assert!(
            (500_000..1_000_000).contains(&printed.len()),
            "{}",
            printed.len()
        );
        // What is short is printed as it is, until nothing is left.
        assert_eq!(Budget(100).take(vec![row("a"); 9]).len(), 3);
        assert_eq!(budget.take(vec![row(&long)]).len(), 0);
    }
}
