//! Files that are not JSON lines (docs/formats.md).
//!
//! Most tests load a table of objects with one backfill, which ends when each of them is loaded or
//! has failed, once with ClickHouse as the reader and once with the worker.

mod conversions;
mod delimited;
mod documents;
mod equal;
mod examples;
mod guide;
mod patterns;
mod replays;
mod typed;
mod wrong_files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice_testkit::{Site, Stack, project};
use tempfile::TempDir;

use crate::harness::Sluice;

/// The values of `load.fallback` under which ClickHouse and the worker read all objects.
const READERS: [&str; 2] = ["never", "always"];

/// Records with an id. The same id in several objects, or several times in one, is no duplicate.
const RECORD: &str = "table: records
rule: {path: [id], present: true}
order_by: [source, line, id]
columns:
- {name: id, type: String, path: [id], required: true}
- {name: a, type: Nullable(String), path: [a]}
- {name: source, type: String, expression: '{source_path}'}
- {name: line, type: UInt64, expression: '{row_number}'}
";

/// Records with a number, without which they are rejected.
const NUMBERED: &str = "table: number_events
rule: {path: [n], present: true}
order_by: [n]
columns:
- {name: n, type: UInt64, path: [n], required: true}
";

/// Declares formats, beside the event types [`RECORD`] and [`NUMBERED`].
fn declare(formats: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let text = format!("formats:\n{formats}");
    std::fs::write(directory.path().join("formats.yaml"), text).unwrap();
    std::fs::write(directory.path().join("record.yaml"), RECORD).unwrap();
    std::fs::write(directory.path().join("number.yaml"), NUMBERED).unwrap();
    directory
}

fn fixture(name: &str) -> PathBuf {
    project::path("tests/fixtures/formats").join(name)
}

/// Objects that are loaded several times, each time into a database of its own.
struct Objects {
    stack: &'static Stack,
    site: Site,
    declarations: PathBuf,
}

/// One load of all objects.
struct Load<'a> {
    objects: &'a Objects,
    database: String,
    sluice: Sluice,
}

impl Objects {
    /// Creates an empty bucket. The declarations are those of a directory.
    async fn new(name: &str, declarations: &Path) -> Self {
        let stack = Stack::shared();
        let site = stack.site(name).await.unwrap();
        site.stop_notifications().await.unwrap();
        Self {
            stack,
            site,
            declarations: declarations.to_owned(),
        }
    }

    async fn put(&self, key: &str, content: impl Into<Vec<u8>>) {
        self.site.put(key, content).await.unwrap();
    }

    /// Returns what ClickHouse writes in a format.
    async fn written(&self, sql: &str, format: &str) -> Vec<u8> {
        self.stack.clickhouse.bytes(sql, format).await.unwrap()
    }

    /// Loads all objects with these settings.
    fn load(&self, name: &str, settings: &[(&str, &str)]) -> Load<'_> {
        let database = format!("{}_{name}", self.site.database);
        let sluice = Sluice::new(self.stack, &self.site)
            .set("clickhouse.database", &database)
            .set("event_types.dir", self.declarations.display());
        let set = |sluice: Sluice, (path, value): &(&str, &str)| sluice.set(path, value);
        let sluice = settings.iter().fold(sluice, set);
        sluice.migrate();
        let load = Load {
            objects: self,
            database,
            sluice,
        };
        load.backfill(&[]);
        load
    }
}

impl Load<'_> {
    /// Runs a backfill, and returns its report.
    fn backfill(&self, arguments: &[&str]) -> Value {
        let url = format!("s3://{}/", self.objects.site.bucket);
        let command = [&["backfill", &url, "--output", "json"], arguments].concat();
        let output = self.sluice.command(&command);
        // Code 3: some objects are not loaded.
        assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Returns the rows of a query. `$` is a placeholder for the database.
    async fn rows(&self, sql: &str) -> Vec<Value> {
        let sql = sql.replace('$', &self.database);
        self.objects.stack.clickhouse.rows(&sql).await.unwrap()
    }

    /// Returns the result of a query as text. `$` is a placeholder for the database, and `B` for the
    /// bucket.
    async fn query(&self, sql: &str) -> String {
        let sql = sql.replace('$', &self.database);
        let text = self.objects.stack.clickhouse.query(&sql).await.unwrap();
        text.replace(&self.objects.site.bucket, "B")
    }

    /// Returns key, class and reason of each failure.
    async fn failures(&self) -> BTreeMap<String, (String, String)> {
        let rows = self
            .rows("SELECT key, class, reason FROM $.ledger_failures")
            .await;
        let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
        rows.iter()
            .map(|row| (text(row, "key"), (text(row, "class"), text(row, "reason"))))
            .collect()
    }

    /// Returns what became of each object.
    async fn outcomes(&self) -> BTreeMap<String, Outcome> {
        let records = self
            .rows(&self.of_objects(
                "SELECT source_path, toUInt64(line) AS number, \
                 concat(id, ifNull(concat('=', a), '')) AS text, '' AS raw FROM $.records",
            ))
            .await;
        let rejects = self
            .rows(&self.of_objects(
                "SELECT source_path, row_number AS number, concat('rejected ', reason) AS text, \
                 toValidUTF8(raw) AS raw FROM $.rejected_lines UNION ALL \
                 SELECT source_path, row_number, 'unmatched', toValidUTF8(raw) \
                 FROM $.unmatched_statements",
            ))
            .await;
        let mut outcomes: BTreeMap<String, Outcome> = BTreeMap::new();
        let loaded = "SELECT DISTINCT key FROM $.ledger_objects WHERE batch_id IN \
                      (SELECT batch_id FROM $.ledger_batches WHERE event = 'loaded')";
        for row in self.rows(loaded).await {
            let key = row["key"].as_str().unwrap().to_owned();
            outcomes.insert(key, Outcome::default());
        }
        for row in records.iter().chain(&rejects) {
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            let number = row["number"].as_u64().unwrap();
            let record = (number, text("text"), text("raw"));
            let outcome = outcomes.get_mut(&text("key"));
            outcome
                .expect("only loaded objects have rows")
                .0
                .push(record);
        }
        for (key, (class, _)) in self.failures().await {
            let failed = (0, format!("failed {class}"), String::new());
            outcomes.entry(key).or_default().0.push(failed);
        }
        for outcome in outcomes.values_mut() {
            outcome.0.sort();
        }
        outcomes
    }

    /// Returns the rows of a query with their keys instead of their source paths.
    fn of_objects(&self, sql: &str) -> String {
        let bucket = self.objects.site.bucket.len() + 2;
        format!("SELECT substring(source_path, {bucket}) AS key, number, text, raw FROM ({sql})")
    }

    /// Drops the tables. The server spends time on each of them.
    async fn drop_tables(self) {
        let sql = format!("DROP DATABASE {}", self.database);
        self.objects.stack.clickhouse.execute(&sql).await.unwrap();
    }
}

/// The records of an object in their order: number, what became of it, and the text that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome(Vec<(u64, String, String)>);

impl Outcome {
    /// Returns what became of the records, such as `a; b=1; rejected not JSON`.
    fn brief(&self) -> String {
        let texts: Vec<&str> = self.0.iter().map(|(_, text, _)| text.as_str()).collect();
        texts.join("; ")
    }

    fn numbers(&self) -> Vec<u64> {
        self.0.iter().map(|(number, ..)| *number).collect()
    }

    /// Returns the texts that are kept of rejects.
    fn raws(&self) -> Vec<&str> {
        let raws = self.0.iter().map(|(.., raw)| raw.as_str());
        raws.filter(|raw| !raw.is_empty()).collect()
    }
}

/// An object, and what becomes of its records.
struct Case {
    key: &'static str,
    content: Vec<u8>,
    expected: &'static str,
}

fn case(key: &'static str, content: impl Into<Vec<u8>>, expected: &'static str) -> Case {
    Case {
        key,
        content: content.into(),
        expected,
    }
}

/// Loads these objects with each reader, and asserts what becomes of them, which must be the same.
/// Objects of which all is rejected are kept. Returns the outcomes.
async fn assert_outcomes(name: &str, formats: &str, cases: &[Case]) -> BTreeMap<String, Outcome> {
    let declarations = declare(formats);
    let objects = Objects::new(name, declarations.path()).await;
    for case in cases {
        objects.put(case.key, case.content.clone()).await;
    }
    let mut first: Option<BTreeMap<String, Outcome>> = None;
    for reader in READERS {
        let settings = [("load.fallback", reader), ("load.on_all_rejected", "keep")];
        let load = objects.load(reader, &settings);
        let outcomes = load.outcomes().await;
        let mut wrong = Vec::new();
        for case in cases {
            let found = outcomes.get(case.key).map(Outcome::brief);
            if found.as_deref() != Some(case.expected) {
                wrong.push((case.key, found, case.expected));
            }
        }
        assert!(
            wrong.is_empty(),
            "{reader}: {wrong:#?}\n{:#?}",
            load.failures().await
        );
        match &first {
            None => first = Some(outcomes),
            Some(first) => assert_eq!(&outcomes, first, "{reader}"),
        }
        load.drop_tables().await;
    }
    first.unwrap_or_default()
}
