//! The other common design: a worker downloads the objects, parses them, and inserts rows.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value};
use sluice::event_types::{Catalog, Column, EventType, Rule, Source};
use sluice::object::ObjectRef;

use super::{Run, engine, timed};
use crate::harness::Harness;
use crate::workload::Uploaded;

/// The number of concurrent batches, as for the other contenders.
const CONCURRENCY: usize = 2;
const DOWNLOADS: usize = 16;
/// These settings make ClickHouse parse each value as the generator intended it.
const SETTINGS: &str = "SETTINGS async_insert = 0, date_time_input_format = 'best_effort', \
    input_format_null_as_default = 1, throw_on_max_partitions_per_insert_block = 0";

/// Rows as JSON lines, by table.
type Rows = BTreeMap<String, String>;

pub(super) async fn run(harness: &Harness, uploaded: &Uploaded) -> Result<Run> {
    let database = harness.migrated().await?;
    let s3 = harness.objects.aws.s3();
    let catalog = Arc::new(harness.catalog.clone());
    let batches = stream::iter(engine::batches(&uploaded.objects)).map(|batch| async {
        let objects = stream::iter(batch).map(|object| {
            let (s3, catalog) = (s3.clone(), Arc::clone(&catalog));
            // On any of the runtime's threads.
            let parsed = tokio::spawn(async move { rows_of(&s3, &catalog, &object).await });
            async { parsed.await? }
        });
        let all: Rows = objects
            .buffer_unordered(DOWNLOADS)
            .try_fold(Rows::new(), |mut all, rows| async move {
                for (table, rows) in rows {
                    all.entry(table).or_default().push_str(&rows);
                }
                Ok(all)
            })
            .await?;
        for (table, rows) in all {
            let sql = format!(
                "INSERT INTO {}.{table} {SETTINGS} FORMAT JSONEachRow",
                database.name
            );
            let mut insert = harness.clickhouse.client().insert_formatted_with(sql);
            insert.send(rows.into()).await?;
            insert.end().await?;
        }
        anyhow::Ok(())
    });
    let ((), took) = timed(batches.buffer_unordered(CONCURRENCY).try_collect()).await?;
    database.ensure_rows(&uploaded.expected_rows).await?;
    database.remove().await?;
    Ok(Run::of(uploaded.objects.len(), took))
}

async fn rows_of(s3: &aws_sdk_s3::Client, catalog: &Catalog, object: &ObjectRef) -> Result<Rows> {
    let get = s3.get_object().bucket(&object.bucket).key(&object.key);
    let body = get.send().await?.body.collect().await?.into_bytes();
    let mut text = String::new();
    match object.key.rsplit_once('.') {
        Some((_, "gz")) => GzDecoder::new(body.as_ref()).read_to_string(&mut text)?,
        Some((_, "zst")) => zstd::Decoder::new(body.as_ref())?.read_to_string(&mut text)?,
        _ => body.as_ref().read_to_string(&mut text)?,
    };
    let mut rows = Rows::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
    {
        let statement: Value =
            serde_json::from_str(line).context("a generated line is not JSON")?;
        let mut types = catalog.types().iter();
        let event_type = types.find(|it| matches(&it.rule, &statement));
        let mut row = event_type
            .map(|it| columns_of(it, &statement))
            .unwrap_or_default();
        if event_type.is_some() {
            // A statement without an id would replace others.
            row.entry("event_id").or_insert_with(|| id_of(line).into());
        }
        let table = event_type.map_or("unmatched_statements", |it| &it.table);
        if event_type.is_none() {
            row.insert("row_number".into(), number.into());
            row.insert("raw".into(), line.into());
            row.insert("reason".into(), "no event type".into());
        }
        row.insert("source_path".into(), object.path().into());
        row.insert("source_etag".into(), object.etag.clone().into());
        let rows = rows.entry(table.to_owned()).or_default();
        rows.push_str(&serde_json::to_string(&row)?);
        rows.push('\n');
    }
    Ok(rows)
}

fn id_of(line: &str) -> String {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn columns_of(event_type: &EventType, statement: &Value) -> Map<String, Value> {
    let values = event_type.columns.iter();
    let values = values.filter_map(|column| Some((column.name.clone(), value(column, statement)?)));
    values.collect()
}

fn value(column: &Column, statement: &Value) -> Option<Value> {
    let Source::Paths { paths, .. } = &column.source else {
        return None;
    };
    let found = paths.iter().find_map(|path| value_at(statement, path))?;
    let is_text = column.column_type.to_string().contains("String");
    Some(match found {
        Value::String(_) => found.clone(),
        other if is_text => other.to_string().into(),
        Value::Array(several) => several.first()?.clone(),
        other => other.clone(),
    })
}

fn value_at<'a>(statement: &'a Value, path: &[String]) -> Option<&'a Value> {
    let found = path
        .iter()
        .try_fold(statement, |value, key| value.get(key))?;
    (!found.is_null()).then_some(found)
}

fn matches(rule: &Rule, statement: &Value) -> bool {
    match rule {
        Rule::All(rules) => rules.iter().all(|rule| matches(rule, statement)),
        Rule::Any(rules) => rules.iter().any(|rule| matches(rule, statement)),
        Rule::Not(rule) => !matches(rule, statement),
        Rule::In(path, values) => value_at(statement, path)
            .and_then(Value::as_str)
            .is_some_and(|found| values.iter().any(|value| value == found)),
        Rule::Present(path) => value_at(statement, path).is_some(),
    }
}
