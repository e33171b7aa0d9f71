//! `sluice types`

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Subcommand;
use flate2::read::MultiGzDecoder;
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::app::{App, region};
use super::output::{Output, shown, table};
use crate::batch::BatchId;
use crate::clickhouse::Warehouse;
use crate::event_types::{Catalog, EventType};
use crate::object::{Compression, ObjectParts, ObjectRef, ObjectUrl};
use crate::sql;
use crate::statements::insert::preview_of;
use crate::statements::select::{Lines, Target, TimeRange};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the declared event types and their tables
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show the rows that the lines of a file or an object would become
    ///
    /// ClickHouse runs the SELECTs of a load, and writes nothing. The output shows the table of
    /// each line, the values of its columns, and why a line would be rejected.
    Preview(Preview),
}

#[derive(clap::Args)]
pub(super) struct Preview {
    /// A file with lines of JSON, plain or gzip, or an object such as s3://bucket/key
    source: String,

    /// Read at most COUNT lines
    #[arg(long, value_name = "COUNT", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    lines: u64,

    /// Key that the file would have in S3, for event types that are routed by key
    #[arg(long, value_name = "KEY", default_value = "")]
    key: String,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, command: &Command) -> anyhow::Result<()> {
    let catalog = app.catalog()?;
    match command {
        Command::List { output } => output.show(&List::of(&catalog)),
        Command::Preview(preview) => {
            let from = match preview.source.parse::<ObjectUrl>() {
                Ok(url) => from_object(app, &catalog, url, preview.lines).await?,
                Err(_) => from_file(preview)?,
            };
            let times = app.time_limits().of(BatchId::new(&app.env));
            let previewed = previewed(&app.warehouse()?, &catalog, &from, times).await;
            let previewed =
                previewed.with_context(|| format!("failed to preview {}", preview.source))?;
            preview.output.show(&previewed)
        }
    }
}

#[derive(Serialize)]
struct List(Vec<Listed>);

#[derive(Serialize)]
struct Listed {
    name: String,
    table: String,
    columns: usize,
    order_by: Vec<String>,
    /// Whether only objects with certain keys can contain it.
    routed: bool,
}

impl List {
    fn of(catalog: &Catalog) -> Self {
        let listed = |event_type: &EventType| Listed {
            name: event_type.name.clone(),
            table: event_type.table.clone(),
            columns: event_type.columns.len(),
            order_by: event_type.order_by.clone(),
            routed: event_type.route.is_some(),
        };
        Self(catalog.types().iter().map(listed).collect())
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.0.iter().map(|listed| {
            vec![
                listed.name.clone(),
                listed.table.clone(),
                listed.columns.to_string(),
                listed.order_by.join(", "),
                if listed.routed { "by keys" } else { "all" }.to_owned(),
            ]
        });
        let header = ["event type", "table", "columns", "sorted by", "objects"];
        writeln!(f, "{}", table(&header, rows))
    }
}

/// Returns a table expression with the columns that [`Lines::of_objects`] expects.
async fn from_object(
    app: &App<'_>,
    catalog: &Catalog,
    url: ObjectUrl,
    lines: u64,
) -> anyhow::Result<String> {
    let aws = app.aws().await;
    let object = ObjectRef::from(ObjectParts {
        bucket: url.bucket,
        key: url.key,
        ..ObjectParts::default()
    });
    let planner = app.planner(catalog.clone(), region(&aws))?;
    let source = planner.lines_of(&object);
    Ok(format!(
        "(SELECT line, _path, _etag, _row_number FROM {source} LIMIT {lines})"
    ))
}

fn from_file(preview: &Preview) -> anyhow::Result<String> {
    let path = PathBuf::from(&preview.source);
    let open = || std::fs::File::open(&path);
    let mut file = open().with_context(|| {
        format!(
            "failed to read {}; to preview an object, pass s3://bucket/key",
            path.display()
        )
    })?;
    let mut start = [0; 512];
    let read = file.read(&mut start)?;
    let key = if preview.key.is_empty() {
        &preview.source
    } else {
        &preview.key
    };
    let content: Box<dyn Read> = match Compression::seen(key, &start[..read]) {
        Compression::Gzip => Box::new(MultiGzDecoder::new(open()?)),
        Compression::None => Box::new(open()?),
        _ => {
            anyhow::bail!(
                "{} is compressed; decompress it first, or preview the object in S3",
                path.display()
            )
        }
    };
    let mut text = Vec::new();
    let mut content = BufReader::new(content.take(MAX_BYTES + 1));
    for _ in 0..preview.lines {
        if content.read_until(b'\n', &mut text)? == 0 {
            break;
        }
    }
    ensure!(
        text.len() as u64 <= MAX_BYTES,
        "the lines have more than {MAX_BYTES} bytes in total; lower --lines"
    );
    let path = sql::string(&format!("file/{}", preview.key));
    Ok(format!(
        "(SELECT line, {path} AS _path, '' AS _etag, rowNumberInAllBlocks() AS _row_number \
         FROM format(LineAsString, 'line String', {}))",
        sql::bytes(&text)
    ))
}

/// The largest total size of the lines, which are sent as part of the statement.
const MAX_BYTES: u64 = 8 << 20;

type Row = Map<String, Value>;

#[derive(Default, Serialize)]
struct Previewed {
    /// The rows of each table, by the kind of line.
    #[serde(flatten)]
    rows: BTreeMap<String, Vec<Row>>,
    /// For each event type that has rows, the columns in which none of them has a value.
    empty_columns: BTreeMap<String, Vec<String>>,
}

async fn previewed(
    warehouse: &Warehouse,
    catalog: &Catalog,
    from: &str,
    times: Option<TimeRange>,
) -> anyhow::Result<Previewed> {
    let mut previewed = Previewed::default();
    for target in Target::all(catalog) {
        let Some(kind) = target.kind() else { continue };
        let lines = Lines {
            times,
            ..Lines::of_objects(from, Uuid::nil())
        };
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
