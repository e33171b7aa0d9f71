//! The state that an earlier version left behind, as files of `tests/fixtures/upgrade/VERSION`.
//!
//! Names that differ from run to run are placeholders in the files: `{database}`, `{endpoint}`, and
//! those of [`Recorded`]. The bucket is always [`BUCKET`], since an object's identity in the ledger
//! is made of its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::http::request::Parts;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_testkit::xapi::{Bundle, EventType, ExpectedRows};
use sluice_testkit::{ClickHouse, Site, project};
use url::form_urlencoded;

use crate::harness::{Harness, Statement};

/// The bucket of all objects of all fixtures.
pub(super) const BUCKET: &str = "sluice-upgrade";

/// The folder of all fixtures, with a folder for each version.
const ROOT: &str = "tests/fixtures/upgrade";

/// The state in which the earlier version left an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// Its batch is loaded.
    Loaded,
    /// It was loaded, and loaded again by force; the first batch is superseded.
    Replaced,
    /// It was missing when it was announced: its batch is released, and the failure is recorded.
    Missing,
    /// Its worker died before the insert.
    #[serde(rename = "sealed")]
    Claimed,
    /// Its worker died before the insert, and another one after the fence of its recovery.
    Fenced,
    /// Its worker died after the insert had committed, and before `loaded` was recorded.
    Committed,
    /// Its worker died when some tables had their rows, and another one before it deleted them.
    Aborted,
    /// A worker of the earlier version loads it during the upgrade.
    Later,
}

impl State {
    /// Returns the name of the folder in the bucket.
    pub(super) fn folder(self) -> String {
        let name = serde_json::to_value(self).expect("a name");
        name.as_str().expect("a name").to_owned()
    }
}

/// The content of `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The version of Sluice that made the fixture.
    pub(super) version: String,
    /// The version of ClickHouse with which it was made.
    pub(super) clickhouse: String,
    /// The time at which the rows were read, in milliseconds since 1970.
    pub(super) dumped_at: u64,
    pub(super) objects: Vec<Object>,
}

/// An object, whose content is in `objects/KEY`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) state: State,
    pub(super) etag: String,
    /// Its identity in the ledger of that version.
    pub(super) id: String,
    /// The rows that it must have, by kind.
    pub(super) rows: BTreeMap<String, u64>,
}

/// Rows by table, as JSON text.
pub(super) type Rows = BTreeMap<String, BTreeSet<String>>;

/// One version's files.
pub(super) struct Fixture {
    directory: PathBuf,
    pub(super) manifest: Manifest,
}

impl Fixture {
    /// Returns the folder for the fixture of a version.
    pub(super) fn directory(version: &str) -> PathBuf {
        project::path(ROOT).join(version)
    }

    /// Returns the fixtures of all versions.
    pub(super) fn all() -> Result<Vec<Self>> {
        let mut fixtures = Vec::new();
        for entry in fs::read_dir(project::path(ROOT))? {
            let directory = entry?.path();
            if directory.is_dir() {
                fixtures.push(Self::open(directory)?);
            }
        }
        Ok(fixtures)
    }

    fn open(directory: PathBuf) -> Result<Self> {
        let manifest = serde_json::from_str(&read(&directory.join("manifest.json"))?)?;
        Ok(Self {
            directory,
            manifest,
        })
    }

    pub(super) fn objects(&self, state: State) -> Vec<Object> {
        let objects = self.manifest.objects.iter();
        objects.filter(|it| it.state == state).cloned().collect()
    }

    /// Returns an object as it is uploaded and compared.
    pub(super) fn bundle(&self, object: &Object) -> Result<Bundle> {
        let path = self.directory.join("objects").join(&object.key);
        let mut expected_rows = ExpectedRows::default();
        expected_rows.objects = 1;
        for (kind, rows) in &object.rows {
            match kind.as_str() {
                "rejected" => expected_rows.rejected = *rows,
                "unmatched" => expected_rows.unmatched = *rows,
                name => {
                    let mut types = EventType::ALL.into_iter();
                    let found = types.find(|event_type| event_type.name() == name);
                    expected_rows.add(
                        found.with_context(|| format!("no event type {name}"))?,
                        *rows,
                    );
                }
            }
        }
        Ok(Bundle {
            key: object.key.clone(),
            bytes: fs::read(&path).with_context(|| path.display().to_string())?,
            expected_rows,
        })
    }

    /// Returns the requests with which a worker of that version loads one object, in order.
    pub(super) fn worker(&self) -> Result<[Recorded; 3]> {
        let [claim, insert, record] =
            STEPS.map(|(_, name)| Recorded::open(&self.directory.join("worker").join(name)));
        Ok([claim?, insert?, record?])
    }

    /// Creates the tables and views of that version, with its rows, as if they had been read a
    /// minute before `now`: every lease has expired, and no row is older than its table's TTL.
    pub(super) async fn restore(&self, harness: &Harness<'_>, now: SystemTime) -> Result<()> {
        let schema = fill(
            &read(&self.directory.join("schema.sql"))?,
            &placeholders(harness),
        );
        for statement in schema.split(";\n") {
            if !statement.trim().is_empty() {
                harness.clickhouse.execute(statement).await?;
            }
        }
        let now = now.duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
        let shift = u64::try_from(now)?.saturating_sub(self.manifest.dumped_at + 60_000);
        for (table, rows) in self.rows()? {
            let columns = columns(harness.clickhouse, &harness.site, &table).await?;
            let rows = fill(&rows, &placeholders(harness));
            let insert = restoring_insert(&harness.table(&table), &columns, shift);
            Recorded::new(insert, rows)
                .send(harness.clickhouse.url(), &BTreeMap::new())
                .await
                .with_context(|| table)?;
        }
        Ok(())
    }

    /// Reads the rows that no upgrade may lose, in the columns of the fixture's version: all of the
    /// ledger, and of the other tables those of its loaded batches.
    pub(super) async fn settled_rows(&self, harness: &Harness<'_>) -> Result<Rows> {
        let loaded = self.loaded_batches()?;
        let mut found = Rows::new();
        for (table, rows) in self.rows()? {
            let first: Value = serde_json::from_str(rows.lines().next().context("no row")?)?;
            let columns = first.as_object().context("no row")?.keys();
            let columns: Vec<&str> = columns.map(String::as_str).collect();
            let which = match table.starts_with("ledger_") {
                true => "1".to_owned(),
                false => format!("batch_id IN ('{}')", loaded.join("','")),
            };
            let sql = format!(
                "SELECT `{}` FROM {} WHERE {which}",
                columns.join("`, `"),
                harness.table(&table)
            );
            let rows = harness.clickhouse.rows(&sql).await?;
            found.insert(table, rows.iter().map(Value::to_string).collect());
        }
        Ok(found)
    }

    fn loaded_batches(&self) -> Result<Vec<String>> {
        let events = read(&self.directory.join("rows/ledger_batches.jsonl"))?;
        let events: Vec<Value> = events
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        let loaded = events.iter().filter(|event| event["event"] == "loaded");
        let ids = loaded.map(|event| event["batch_id"].as_str().context("no id"));
        ids.map(|id| Ok(id?.to_owned())).collect()
    }

    /// Returns the rows of every table, as JSON lines with placeholders.
    fn rows(&self) -> Result<Vec<(String, String)>> {
        let mut tables = Vec::new();
        for entry in fs::read_dir(self.directory.join("rows"))? {
            let path = entry?.path();
            let table = path.file_stem().context("a name")?.to_string_lossy();
            tables.push((table.into_owned(), read(&path)?));
        }
        Ok(tables)
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Returns the values of the placeholders that every file can have.
pub(super) fn placeholders(harness: &Harness<'_>) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("{database}", harness.site.database.clone()),
        ("{endpoint}", harness.aws.endpoint().to_owned()),
    ])
}

/// Replaces the placeholders by their values.
pub(super) fn fill(text: &str, placeholders: &BTreeMap<&'static str, String>) -> String {
    placeholders
        .iter()
        .fold(text.to_owned(), |text, (name, value)| {
            text.replace(name, value)
        })
}

/// Replaces the values by their placeholders, the reverse of [`fill`].
pub(super) fn unfill(text: &str, placeholders: &BTreeMap<&'static str, String>) -> String {
    placeholders
        .iter()
        .fold(text.to_owned(), |text, (name, value)| {
            text.replace(value, name)
        })
}

/// A column of a table that is filled with rows of a fixture.
#[derive(Deserialize)]
struct Column {
    name: String,
    #[serde(rename = "type")]
    column_type: String,
    /// Whether it is the time that the table itself gives to a row, rather than a time in the data.
    is_time_of_row: u8,
}

async fn columns(clickhouse: &ClickHouse, site: &Site, table: &str) -> Result<Vec<Column>> {
    let sql = format!(
        "SELECT name, type, startsWith(default_expression, 'now') AS is_time_of_row \
         FROM system.columns WHERE database = '{}' AND table = '{table}' ORDER BY position",
        site.database
    );
    let rows = clickhouse.rows(&sql).await?;
    let columns: serde_json::Result<Vec<Column>> =
        rows.into_iter().map(serde_json::from_value).collect();
    Ok(columns?)
}

/// Returns the INSERT that is followed by rows of a fixture, and moves the times that the table
/// itself gave them.
fn restoring_insert(table: &str, columns: &[Column], shift_milliseconds: u64) -> String {
    let of = |write: fn(&Column, u64) -> String| {
        let columns = columns
            .iter()
            .map(|column| write(column, shift_milliseconds));
        columns.collect::<Vec<_>>().join(", ")
    };
    let structure = of(|column, _| format!("`{}` {}", column.name, column.column_type));
    format!(
        "INSERT INTO {table} ({}) SELECT {} FROM input('{}') FORMAT JSONEachRow",
        of(|column, _| format!("`{}`", column.name)),
        of(|column, shift| match column.is_time_of_row {
            1 => format!("`{}` + toIntervalMillisecond({shift})", column.name),
            _ => format!("`{}`", column.name),
        }),
        structure.replace('\\', "\\\\").replace('\'', "\\'"),
    )
}

/// The steps in which a worker that loads one object writes, and their files.
pub(super) const STEPS: [(Statement, &str); 3] = [
    (Statement::Claim, "1-seal.http"),
    (Statement::Insert, "2-insert.http"),
    (Statement::Record, "3-record.http"),
];

/// A request to ClickHouse as a worker of that version sent it. Placeholders: `{batch}`, `{key}`,
/// `{etag}`, `{size}`, `{object_id}`, `{rows}`, `{latest_time}`, `{unique}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recorded {
    /// The parameters of the URL: settings, the query's id, and the statement if data follows it.
    parameters: BTreeMap<String, String>,
    body: String,
}

impl Recorded {
    fn new(query: String, body: String) -> Self {
        Self {
            parameters: BTreeMap::from([("query".to_owned(), query)]),
            body,
        }
    }

    pub(super) fn of(parts: &Parts, body: &[u8]) -> Self {
        let query = parts.uri.query().unwrap_or_default();
        let parameters = form_urlencoded::parse(query.as_bytes()).into_owned();
        Self {
            parameters: parameters.collect(),
            body: String::from_utf8_lossy(body).into_owned(),
        }
    }

    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Returns the request with every text changed.
    pub(super) fn map(&self, change: impl Fn(&str) -> String) -> Self {
        let parameters = self.parameters.iter();
        Self {
            parameters: parameters
                .map(|(name, value)| (name.clone(), change(value)))
                .collect(),
            body: change(&self.body),
        }
    }

    fn open(path: &Path) -> Result<Self> {
        let text = read(path)?;
        let (head, body) = text.split_once("\n\n").context("no body")?;
        let parameter = |line: &str| -> Result<(String, String)> {
            let (name, value) = line.split_once(": ").context("no parameter")?;
            Ok((name.to_owned(), value.to_owned()))
        };
        Ok(Self {
            parameters: head.lines().map(parameter).collect::<Result<_>>()?,
            body: body.to_owned(),
        })
    }

    /// Returns the text of its file: a line for each parameter, an empty line, and the body.
    pub(super) fn text(&self) -> Result<String> {
        let mut text = String::new();
        for (name, value) in &self.parameters {
            ensure!(!value.contains('\n'), "{name} has several lines");
            text += &format!("{name}: {value}\n");
        }
        Ok(format!("{text}\n{}", self.body))
    }

    pub(super) async fn send(
        &self,
        url: &str,
        placeholders: &BTreeMap<&'static str, String>,
    ) -> Result<()> {
        let request = self.map(|text| fill(text, placeholders));
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(&request.parameters)
            .finish();
        let request = hyper::Request::post(format!("{url}/?{query}"))
            .body(Full::new(Bytes::from(request.body)))?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        let answer = String::from_utf8_lossy(&answer);
        ensure!(status.is_success(), "{status}: {answer}");
        Ok(())
    }
}
