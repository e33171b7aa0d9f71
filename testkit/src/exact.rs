//! Checks that the tables have every generated row once, and no others.
//!
//! Where a function takes several servers, these are replicas of each other, of which each must have
//! all rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::xapi::{Bundle, EventType};
use crate::{ClickHouse, Site, wait_for};

/// The kinds of rejects, and the table of each.
const REJECT_TABLES: [(&str, &str); 2] = [
    ("rejected", "rejected_lines"),
    ("unmatched", "unmatched_statements"),
];

/// The source path of a blank-line load.
const BLANK_LINE_LOAD: &str = "sluice-sample/blank.jsonl";

/// A table of a new database is read-only until its replica has started, and not for longer.
const START_BOUND: Duration = Duration::from_secs(120);

/// Numbers of rows, by object and kind.
type Rows = BTreeMap<(String, &'static str), u64>;

/// Stops merges, which would hide rows that were loaded twice, since the tables replace equal rows.
/// Mutations, which deletes need, continue. Each replica has its own settings of this kind.
///
/// # Errors
///
/// Fails with ClickHouse's error.
///
/// # Panics
///
/// Panics if new tables cannot be written to.
pub async fn keep_duplicates(servers: &[ClickHouse], site: &Site) -> Result<()> {
    for server in servers {
        wait_for("the new tables", START_BOUND, async || {
            server.catch_up(&site.database).await.map(Some)
        })
        .await;
        for (_, table) in kinds() {
            let database = &site.database;
            let alter = format!(
                "ALTER TABLE {database}.{table} MODIFY SETTING \
                 max_bytes_to_merge_at_max_space_in_pool = 1, \
                 max_bytes_to_merge_at_min_space_in_pool = 1"
            );
            server.execute(&alter).await?;
        }
    }
    Ok(())
}

/// Returns the differences in the rows of these objects, one for each line; empty if there are
/// none.
///
/// It counts the rows of the tables and of `object_rows`, by object and kind; rows of one object
/// that exist more than once; and objects that more than one loaded batch lists, unless one
/// supersedes the other.
///
/// # Errors
///
/// Fails with ClickHouse's error.
pub async fn table_differences(
    servers: &[ClickHouse],
    site: &Site,
    expected: &[Bundle],
) -> Result<String> {
    on_each(servers, site, async |server| {
        differences_of_tables(server, site, expected).await
    })
    .await
}

async fn differences_of_tables(
    clickhouse: &ClickHouse,
    site: &Site,
    expected: &[Bundle],
) -> Result<String> {
    let expected = expected_counts(site, expected);
    let mut problems = String::new();
    let mut found = Rows::new();
    for (kind, name) in kinds() {
        let table = format!("{}.{name}", site.database);
        let rows = clickhouse
            .rows(&format!(
                "SELECT source_path AS path, count() AS rows FROM {table} GROUP BY path"
            ))
            .await?;
        found.extend(parse_counts(&rows, |_| kind)?);
        let identity: String = clickhouse
            .scalar(&format!(
                "SELECT sorting_key FROM system.tables \
                 WHERE database = '{}' AND name = '{name}'",
                site.database
            ))
            .await?;
        let duplicates: u64 = clickhouse
            .scalar(&format!(
                "SELECT count() - uniqExact(source_path, source_etag, {identity}) FROM {table}"
            ))
            .await?;
        if duplicates > 0 {
            writeln!(problems, "{table}: {duplicates} duplicate rows")?;
        }
    }
    compare("tables", &expected, &found, &mut problems)?;
    Ok(problems)
}

/// Returns the differences in the rows of these objects, one for each line; empty if there are
/// none.
///
/// It counts the rows of the tables ([`table_differences`]) and of `object_rows`, by object and
/// kind, and objects that more than one loaded batch lists.
///
/// # Errors
///
/// Fails with ClickHouse's error.
pub async fn differences(
    servers: &[ClickHouse],
    site: &Site,
    expected: &[Bundle],
) -> Result<String> {
    on_each(servers, site, async |server| {
        all_differences(server, site, expected).await
    })
    .await
}

async fn all_differences(
    clickhouse: &ClickHouse,
    site: &Site,
    expected: &[Bundle],
) -> Result<String> {
    let mut problems = differences_of_tables(clickhouse, site, expected).await?;
    let expected = expected_counts(site, expected);

    let rows = clickhouse
        .rows(&format!(
            "SELECT source_path AS path, kind, sum(rows) AS rows FROM {}.object_rows \
             WHERE kind != 'blank' GROUP BY path, kind",
            site.database
        ))
        .await?;
    let kind_of = |row: &Value| {
        kinds()
            .map(|(kind, _)| kind)
            .find(|kind| row["kind"] == **kind)
            .unwrap_or("unknown")
    };
    let counts = parse_counts(&rows, kind_of)?;
    compare("object_rows", &expected, &counts, &mut problems)?;

    let database = &site.database;
    let claimed_twice = clickhouse
        .query(&format!(
            "SELECT key, etag, groupUniqArray(batch_id) AS batches \
             FROM {database}.ledger_objects \
             WHERE batch_id IN (SELECT batch_id FROM {database}.ledger_batches \
               WHERE event = 'loaded') \
               AND (object_id, batch_id) NOT IN (\
                 SELECT object_id, arrayJoin(supersedes) FROM {database}.ledger_objects \
                 WHERE batch_id IN (SELECT batch_id FROM {database}.ledger_batches \
                   WHERE event = 'loaded')) \
             GROUP BY bucket, key, etag HAVING length(batches) > 1"
        ))
        .await?;
    for line in claimed_twice.lines() {
        writeln!(problems, "object in more than one loaded batch: {line}")?;
    }
    problems += &stray_rows(clickhouse, site).await?;
    Ok(problems)
}

/// Returns the problems that a check finds on each server, once it has what the others have.
async fn on_each(
    servers: &[ClickHouse],
    site: &Site,
    mut check: impl AsyncFnMut(&ClickHouse) -> Result<String>,
) -> Result<String> {
    let mut problems = String::new();
    for server in servers {
        server.catch_up(&site.database).await?;
        for line in check(server).await?.lines() {
            writeln!(problems, "{}: {line}", server.url())?;
        }
    }
    Ok(problems)
}

/// Returns the rows of batches that are not loaded, one for each line; empty if there are none.
///
/// A blank-line load has no batch in the ledger, and does not count.
///
/// # Errors
///
/// Fails with ClickHouse's error.
pub async fn stray_rows(clickhouse: &ClickHouse, site: &Site) -> Result<String> {
    let database = &site.database;
    let strays = clickhouse
        .query(&format!(
            "SELECT batch_id, source_path, kind, sum(rows) FROM {database}.object_rows \
             WHERE source_path != '{BLANK_LINE_LOAD}' AND batch_id NOT IN \
             (SELECT batch_id FROM {database}.ledger_batches WHERE event = 'loaded') \
             GROUP BY batch_id, source_path, kind"
        ))
        .await?;
    let mut problems = String::new();
    for line in strays.lines() {
        writeln!(problems, "batch that has rows but is not loaded: {line}")?;
    }
    Ok(problems)
}

/// Returns the tables that have rows of objects, including those of rejects.
pub fn tables() -> impl Iterator<Item = &'static str> {
    kinds().map(|(_, table)| table)
}

/// Returns each kind of row with its table.
fn kinds() -> impl Iterator<Item = (&'static str, &'static str)> {
    EventType::ALL
        .into_iter()
        .map(|kind| (kind.name(), kind.table()))
        .chain(REJECT_TABLES)
}

fn expected_counts(site: &Site, bundles: &[Bundle]) -> Rows {
    let mut rows = Rows::new();
    for bundle in bundles {
        let expected_rows = &bundle.expected_rows;
        let kinds = EventType::ALL
            .into_iter()
            .map(|kind| (kind.name(), expected_rows.rows(kind)))
            .chain([
                ("rejected", expected_rows.rejected),
                ("unmatched", expected_rows.unmatched),
            ]);
        for (kind, count) in kinds.filter(|(_, count)| *count > 0) {
            let path = format!("{}/{}", site.bucket, bundle.key);
            *rows.entry((path, kind)).or_default() += count;
        }
    }
    rows
}

fn parse_counts(rows: &[Value], kind: impl Fn(&Value) -> &'static str) -> Result<Rows> {
    rows.iter()
        .map(|row| {
            let path = row["path"].as_str().context("no path")?.to_owned();
            let count = row["rows"].as_u64().context("no count")?;
            Ok(((path, kind(row)), count))
        })
        .collect()
}

fn compare(what: &str, expected: &Rows, found: &Rows, problems: &mut String) -> Result<()> {
    let keys: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    for key in keys {
        let [expected, found] = [expected, found].map(|rows| rows.get(key).unwrap_or(&0));
        if expected != found {
            let (path, kind) = key;
            writeln!(
                problems,
                "{what}: {path} {kind}: expected {expected}, found {found}"
            )?;
        }
    }
    Ok(())
}
