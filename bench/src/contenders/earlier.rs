//! The earlier solution, a Lambda: a separate INSERT for each object and event type, with a call of
//! JSONExtract for each column, and a query for each object that counts its lines.

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};
use sluice::event_types::{Column, EventType, Rule, Source};
use sluice::object::ObjectRef;
use sluice::sql;

use super::{Run, engine, timed};
use crate::harness::Harness;
use crate::workload::Uploaded;

const CONCURRENCY: usize = 2;
/// Only some of the objects are loaded, since all of them would take hours.
const MAX_OBJECTS: usize = 200;
const MAX_BYTES: u64 = 100 << 20;

pub(super) async fn run(harness: &Harness, uploaded: &Uploaded) -> Result<Run> {
    let database = harness.migrated().await?;
    let objects = first_objects(&uploaded.objects);
    let clickhouse = &harness.clickhouse;
    let loads = stream::iter(objects).map(|object| async {
        let source = engine::source(harness, std::slice::from_ref(object));
        for event_type in harness.catalog.types() {
            let insert = insert(event_type, &database.name, &source, object);
            clickhouse.execute(&insert).await?;
        }
        clickhouse
            .execute(&format!("SELECT count() FROM {source}"))
            .await
    });
    let ((), took) = timed(loads.buffer_unordered(CONCURRENCY).try_collect()).await?;
    if objects.len() == uploaded.objects.len() {
        database.ensure_rows(&uploaded.expected_rows).await?;
    }
    database.remove().await?;
    Ok(Run::of(objects.len(), took))
}

fn first_objects(objects: &[ObjectRef]) -> &[ObjectRef] {
    let mut bytes = 0;
    let fits = |object: &&ObjectRef| {
        bytes += object.size.unwrap_or_default();
        bytes <= MAX_BYTES
    };
    let count = objects.iter().take(MAX_OBJECTS).take_while(fits).count();
    &objects[..count]
}

fn insert(event_type: &EventType, database: &str, source: &str, object: &ObjectRef) -> String {
    let columns = event_type.columns.iter();
    let names: Vec<&str> = columns.clone().map(|column| column.name.as_str()).collect();
    let values: Vec<String> = columns.map(value).collect();
    format!(
        "INSERT INTO {database}.{} ({}, source_path, source_etag) \
         SELECT {}, _path, {} FROM {source} WHERE {} \
         SETTINGS async_insert = 0, throw_on_max_partitions_per_insert_block = 0",
        event_type.table,
        names.join(", "),
        values.join(", "),
        sql::string(&object.etag),
        condition(&event_type.rule),
    )
}

fn value(column: &Column) -> String {
    let kind = column.column_type.to_string();
    match &column.source {
        Source::Paths { paths, .. } => match paths.as_slice() {
            [path] if kind.starts_with("DateTime64") => {
                format!("parseDateTime64BestEffortOrZero({}, 3, 'UTC')", text(path))
            }
            [path] => format!(
                "JSONExtract(line, {}, {})",
                sql::strings(path),
                sql::string(&kind)
            ),
            several => {
                let texts: Vec<String> = several
                    .iter()
                    .map(|path| format!("nullIf({}, '')", text(path)))
                    .collect();
                format!("coalesce({}, '')", texts.join(", "))
            }
        },
        Source::Expression { template, inputs } => {
            inputs
                .iter()
                .fold(template.trim().to_owned(), |template, (name, paths)| {
                    let input = paths.first().map(|path| text(path)).unwrap_or_default();
                    template.replace(&format!("{{{name}}}"), &input)
                })
        }
    }
}

fn text(path: &[String]) -> String {
    format!("JSONExtractString(line, {})", sql::strings(path))
}

fn condition(rule: &Rule) -> String {
    let joined = |rules: &[Rule], operator: &str| {
        let conditions: Vec<String> = rules.iter().map(condition).collect();
        format!("({})", conditions.join(operator))
    };
    match rule {
        Rule::All(rules) => joined(rules, " AND "),
        Rule::Any(rules) => joined(rules, " OR "),
        Rule::Not(rule) => format!("NOT {}", condition(rule)),
        Rule::In(path, values) => format!("{} IN ({})", text(path), sql::strings(values)),
        Rule::Present(path) => format!("JSONHas(line, {})", sql::strings(path)),
    }
}
