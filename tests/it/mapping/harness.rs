//! Gives each test a database with all tables, and loads lines through S3, the landing table and
//! its views.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sluice::event_types::Catalog;
use sluice::sql;
use sluice::statements::ddl::{Engine, SchemaOptions, landing_name, statements};
use sluice::statements::select::{Lines, Target, landing_select, per_type_select};
use sluice_testkit::{Site, Stack};
use uuid::Uuid;

/// Settings that make an insert one block, so that it is all or nothing, for any number of months.
const INSERT_SETTINGS: &str = "async_insert = 0, throw_on_max_partitions_per_insert_block = 0, \
     min_insert_block_size_rows = 1000000000, min_insert_block_size_bytes = 100000000000";

pub(super) struct Harness {
    pub catalog: Catalog,
    pub site: Site,
    pub batch: Uuid,
    stack: &'static Stack,
}

/// A line and the row that it must become. Columns that are not listed are not compared.
pub(super) struct Case {
    pub name: String,
    pub line: Vec<u8>,
    pub table: &'static str,
    pub expected: Value,
}

pub(super) fn case(
    name: &str,
    line: impl Into<Vec<u8>>,
    table: &'static str,
    expected: Value,
) -> Case {
    Case {
        name: name.to_owned(),
        line: line.into(),
        table,
        expected,
    }
}

impl Harness {
    pub(super) async fn new(name: &str) -> Harness {
        Harness::with(name, Catalog::builtin()).await
    }

    pub(super) async fn with(name: &str, catalog: Catalog) -> Harness {
        let stack = Stack::shared();
        let site = stack.site(name).await.unwrap();
        let harness = Harness {
            catalog,
            site,
            batch: Uuid::now_v7(),
            stack,
        };
        harness.migrate().await;
        harness
    }

    pub(super) async fn migrate(&self) {
        let options = SchemaOptions {
            views: true,
            database: self.site.database.clone(),
            cluster: None,
            engine: Engine::Plain,
            dedup_window: 1_000,
            dedup_age: Duration::from_secs(3_600),
            reject_ttl: Duration::from_secs(86_400),
        };
        for statement in statements(&self.catalog, &options) {
            self.stack.clickhouse.execute(&statement.sql).await.unwrap();
        }
    }

    pub(super) fn table(&self, table: &str) -> String {
        sql::qualified(&self.site.database, table)
    }

    /// Returns the lines of these objects.
    pub(super) fn lines(&self, keys: &[String]) -> Lines {
        let keys = if keys.len() == 1 {
            keys[0].clone()
        } else {
            format!("{{{}}}", keys.join(","))
        };
        let url = format!("{}/{}/{keys}", self.stack.aws.endpoint(), self.site.bucket);
        let from = format!(
            "s3({}, 'test', 'test', 'LineAsString', 'line String')",
            sql::string(&url)
        );
        Lines::of_objects(from, self.batch)
    }

    /// Loads the objects through the landing table. The same objects have the same token.
    pub(super) async fn load(&self, keys: &[String]) {
        self.load_lines(&self.lines(keys), &keys.join(",")).await;
    }

    async fn load_lines(&self, lines: &Lines, token: &str) {
        let insert = format!(
            "INSERT INTO {} SETTINGS {INSERT_SETTINGS}, insert_deduplication_token = {}\n{}",
            self.table(&landing_name(&self.catalog)),
            sql::string(token),
            landing_select(&self.catalog, lines)
        );
        self.stack.clickhouse.execute(&insert).await.unwrap();
    }

    pub(super) async fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) -> String {
        self.site.put(key, bytes).await.unwrap()
    }

    pub(super) async fn rows(&self, query: &str) -> Vec<Value> {
        self.stack.clickhouse.rows(query).await.unwrap()
    }

    pub(super) async fn scalar(&self, query: &str) -> String {
        self.stack.clickhouse.scalar(query).await.unwrap()
    }

    /// Loads all lines in one insert, and compares the rows with the expectations.
    pub(super) async fn check(&self, cases: &[Case]) {
        let lines: Vec<_> = cases.iter().map(|case| case.line.as_slice()).collect();
        self.put("cases.jsonl", lines.join(&b'\n')).await;
        // Rows of event types have no row number, so the path is set to it to identify their lines.
        let lines = Lines {
            source_path: "toString(_row_number)".to_owned(),
            ..self.lines(&["cases.jsonl".to_owned()])
        };
        self.load_lines(&lines, "cases").await;

        let mut found: BTreeMap<String, Vec<(&str, Value)>> = BTreeMap::new();
        for target in Target::all(&self.catalog) {
            let table = target.table();
            if table == "object_rows" {
                continue;
            }
            for row in self
                .rows(&format!("SELECT * FROM {} FINAL", self.table(table)))
                .await
            {
                let path = row["source_path"].as_str().unwrap().to_owned();
                found.entry(path).or_default().push((table, row));
            }
        }
        let mut wrong = Vec::new();
        for (index, case) in cases.iter().enumerate() {
            let rows = found.remove(&index.to_string()).unwrap_or_default();
            wrong.extend(differences(case, &rows));
        }
        assert!(
            wrong.is_empty(),
            "{} differences:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        self.check_per_type(&lines).await;
    }

    /// Asserts that the SELECT of each table alone returns the rows that the views have inserted.
    pub(super) async fn check_per_type(&self, lines: &Lines) {
        for target in Target::all(&self.catalog) {
            let columns: Vec<_> = target.columns().into_iter().map(sql::ident).collect();
            let columns = columns.join(", ");
            let copy = format!("{}_per_type", target.table());
            let (table, copy) = (self.table(target.table()), self.table(&copy));
            self.stack
                .clickhouse
                .execute(&format!("CREATE TABLE {copy} AS {table}"))
                .await
                .unwrap();
            let insert = format!(
                "INSERT INTO {copy} ({columns}) SETTINGS {INSERT_SETTINGS}\n{}",
                per_type_select(&self.catalog, target, lines)
            );
            self.stack.clickhouse.execute(&insert).await.unwrap();
            let difference = self
                .rows(&format!(
                    "SELECT {columns} FROM {table} EXCEPT SELECT {columns} FROM {copy} \
                     UNION ALL (SELECT {columns} FROM {copy} EXCEPT SELECT {columns} FROM {table})"
                ))
                .await;
            assert_eq!(difference, Vec::<Value>::new(), "{table}");
            let count =
                format!("SELECT (SELECT count() FROM {table}) = (SELECT count() FROM {copy})");
            assert_eq!(self.scalar(&count).await, "1", "{table}");
        }
    }
}

fn differences(case: &Case, rows: &[(&str, Value)]) -> Vec<String> {
    let [(table, row)] = rows else {
        let tables: Vec<_> = rows.iter().map(|(table, _)| *table).collect();
        return vec![format!(
            "{}: expected one row in {}, found {tables:?}",
            case.name, case.table
        )];
    };
    if *table != case.table {
        return vec![format!(
            "{}: expected {}, found {table}: {row}",
            case.name, case.table
        )];
    }
    let expected = case.expected.as_object().unwrap();
    let wrong = expected
        .iter()
        .filter(|(column, value)| !same(value, row.get(column)));
    wrong
        .map(|(column, value)| {
            format!(
                "{}: {column}: expected {value}, found {:?}",
                case.name,
                row.get(column)
            )
        })
        .collect()
}

/// Returns whether the values are equal. ClickHouse writes the float 1.0 as 1.
fn same(expected: &Value, found: Option<&Value>) -> bool {
    let Some(found) = found else { return false };
    expected == found || (expected.is_f64() && expected.as_f64() == found.as_f64())
}
