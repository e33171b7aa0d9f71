//! `sluice types`

mod content;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;
use serde_json::{Map, Value};

use self::content::Content;
use super::app::App;
use super::output::{Output, shown, table};
use crate::batch::BatchId;
use crate::clickhouse::Warehouse;
use crate::event_types::{Catalog, EventType};
use crate::formats::{Format, OnAllRejected};
use crate::sql;
use crate::statements::insert::preview_of;
use crate::statements::select::{Lines, Target, TimeRange};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the declared event types and their tables, and the declared formats
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show the rows that the records of a file or an object would become
    ///
    /// ClickHouse runs the SELECTs of a load, and writes nothing. The output shows the table of
    /// each record, the values of its columns, and why a record would be rejected.
    Preview(Preview),
}

#[derive(clap::Args)]
pub(super) struct Preview {
    /// A file, plain or gzip, or an object such as s3://bucket/key
    source: String,

    /// Read at most COUNT records
    #[arg(long, value_name = "COUNT", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    lines: u64,

    /// Key that the file would have in S3, for event types and formats that are routed by key
    #[arg(long, value_name = "KEY", default_value = "")]
    key: String,

    /// Read it as this declared format, or as `json_lines`, whatever its key is
    #[arg(long = "format", value_name = "NAME")]
    read_as: Option<String>,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, command: &Command) -> anyhow::Result<()> {
    let catalog = app.catalog()?;
    match command {
        Command::List { output } => output.show(&List::of(&catalog)),
        Command::Preview(preview) => {
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
    }
}

/// The event types, and then the formats.
#[derive(Serialize)]
struct List(Vec<Listed>);

#[derive(Serialize)]
#[serde(untagged)]
enum Listed {
    EventType {
        name: String,
        table: String,
        columns: usize,
        order_by: Vec<String>,
        /// Whether only objects with certain keys can contain it.
        routed: bool,
    },
    Format {
        format: String,
        kind: &'static str,
        /// `null` if `load.on_all_rejected` applies.
        on_all_rejected: Option<OnAllRejected>,
    },
}

impl List {
    fn of(catalog: &Catalog) -> Self {
        let event_type = |event_type: &EventType| Listed::EventType {
            name: event_type.name.clone(),
            table: event_type.table.clone(),
            columns: event_type.columns.len(),
            order_by: event_type.order_by.clone(),
            routed: event_type.route.is_some(),
        };
        let format = |format: &Format| Listed::Format {
            format: format.name.clone(),
            kind: format.kind.title(),
            on_all_rejected: format.on_all_rejected,
        };
        let formats = catalog.formats().declared().iter().map(format);
        Self(
            catalog
                .types()
                .iter()
                .map(event_type)
                .chain(formats)
                .collect(),
        )
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut types, mut formats) = (Vec::new(), Vec::new());
        for listed in &self.0 {
            match listed {
                Listed::EventType {
                    name,
                    table,
                    columns,
                    order_by,
                    routed,
                } => types.push(vec![
                    name.clone(),
                    table.clone(),
                    columns.to_string(),
                    order_by.join(", "),
                    if *routed { "by keys" } else { "all" }.to_owned(),
                ]),
                Listed::Format {
                    format,
                    kind,
                    on_all_rejected,
                } => formats.push(vec![
                    format.clone(),
                    (*kind).to_owned(),
                    match on_all_rejected {
                        None => "",
                        Some(OnAllRejected::Keep) => "keep",
                        Some(OnAllRejected::Fail) => "fail",
                    }
                    .to_owned(),
                ]),
            }
        }
        let header = ["event type", "table", "columns", "sorted by", "objects"];
        writeln!(f, "{}", table(&header, types))?;
        if formats.is_empty() {
            return Ok(());
        }
        let header = ["format", "content", "if all is rejected"];
        writeln!(f, "\n{}", table(&header, formats))
    }
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
}

async fn previewed(
    warehouse: &Warehouse,
    catalog: &Catalog,
    lines: Lines,
    times: Option<TimeRange>,
) -> anyhow::Result<Previewed> {
    let lines = Lines { times, ..lines };
    let mut previewed = Previewed::default();
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
        }
        previewed.rows.insert(kind.to_owned(), rows);
    }
    Ok(previewed)
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
            writeln!(f, "{kind}: {} lines", rows.len())?;
            for row in rows {
                let values = row.iter().filter(|(_, value)| !is_nothing(value));
                let columns = values.map(|(column, value)| {
                    vec![
                        format!("  {column}"),
                        shown(value.as_str().unwrap_or(&value.to_string())),
                    ]
                });
                writeln!(f, "{}\n", table(&["", ""], columns))?;
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

/// Returns whether this is the value of a column that a statement does not set.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
