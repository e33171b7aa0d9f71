//! The tables and views that `sluice migrate` creates. src/clickhouse alters those of another
//! version or of other declarations, and has the server check declared SQL beforehand.
//!
//! Every statement has `IF NOT EXISTS`, so that any number of workers may run all of them at the
//! same time, and repeatedly. The order matters: a view comes after the tables that it reads and
//! fills.
//!
//! The landing tables and their views belong to the declarations that they are generated from, and
//! are named after them: workers of other declarations have their own, which fill the same tables
//! (docs/adr/0008). None is ever altered.
//!
//! Retries are exact only while all targets remember the token of an insert: hence the
//! deduplication windows, and hence no table is partitioned by the time of the insert (a retry
//! after midnight would fall into another partition, where its token is unknown).

use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use crate::event_types::{Catalog, EventType};
use crate::sql;
use crate::statements::select::{Landing, Target, landing_columns, value_columns, view_select};

/// The prefix of the names of landing tables and of their views.
pub const LANDING_PREFIX: &str = "landing_";

/// The table with the snapshots of replays, by the batch that moves the lines.
pub const REPLAYED: &str = "replayed_lines";

/// The ledger's table with one row for each object of a batch: the manifest of each batch.
pub const OBJECTS_TABLE: &str = "ledger_objects";
/// The ledger's table with one row for each event of a batch.
pub const BATCHES_TABLE: &str = "ledger_batches";
/// The ledger's table with one row for each time that an object could not be loaded, with the
/// reason.
pub const FAILURES_TABLE: &str = "ledger_failures";
/// The table with what workers have used, for `sluice cost`. No load needs it.
pub const USAGE_TABLE: &str = "worker_usage";
/// A report by day over a year needs a little more than one.
const USAGE_TTL: Duration = Duration::from_secs(400 * 86_400);

/// How the tables are laid out on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaOptions {
    /// The database of all tables.
    pub database: String,
    /// The cluster for ON CLUSTER, if any.
    pub cluster: Option<String>,
    /// Plain or replicated tables.
    pub engine: Engine,
    /// How many inserts back a repeated insert is recognised.
    pub dedup_window: u64,
    /// How long a repeated insert is recognised; for replicated tables only.
    pub dedup_age: Duration,
    /// Whether views fill the tables from a landing table. Otherwise, neither the views nor the
    /// landing table are created.
    pub views: bool,
    /// How long rejected lines and unmatched statements are kept.
    pub reject_ttl: Duration,
}

/// Which family of MergeTree engines the tables have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// MergeTree and ReplacingMergeTree.
    Plain,
    /// ReplicatedMergeTree and ReplicatedReplacingMergeTree, at the server's default path.
    Replicated,
}

/// One DDL statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// What it creates, such as `table video_events`.
    pub what: String,
    /// The statement.
    pub sql: String,
}

/// A table that stores rows, as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    pub columns: Vec<TableColumn>,
    /// Whether `batch_id` has an index, for recoveries, which look for rows of a batch.
    pub batch_index: bool,
    /// Whether rows that are equal in the sorting key collapse into the latest.
    pub replacing: bool,
    pub partition_by: Option<String>,
    pub order_by: Vec<String>,
    pub ttl: Option<Ttl>,
    pub settings: Vec<Setting>,
}

/// A column and its place in a CREATE TABLE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    pub name: String,
    pub column_type: String,
    /// What follows the type: codec or default.
    pub rest: &'static str,
}

/// How long after the time in a column rows are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl {
    pub column: &'static str,
    pub after: Duration,
}

/// A setting of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    pub name: &'static str,
    pub value: u64,
    /// Whether it can be altered on an existing table.
    pub is_mutable: bool,
}

/// Returns the name of the table that inserts of JSON go to, and that stores nothing.
pub fn landing_name(catalog: &Catalog) -> String {
    landing_name_of(catalog, Landing::Texts)
}

/// Returns the name of a landing table.
pub fn landing_name_of(catalog: &Catalog, landing: Landing) -> String {
    let (prefix, mut declared) = match landing {
        Landing::Texts => (
            LANDING_PREFIX.to_owned(),
            format!("{:?}", landing_columns(catalog)),
        ),
        Landing::Values => (
            format!("{LANDING_PREFIX}values_"),
            format!("{:?}", value_columns(catalog)),
        ),
    };
    for target in Target::all(catalog) {
        declared += target.table();
        declared += &view_select(catalog, landing, target, "");
    }
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, declared.as_bytes()).simple();
    format!("{prefix}{}", &digest.to_string()[..8])
}

/// Returns the names of all landing tables of these declarations.
pub fn landing_names(catalog: &Catalog) -> Vec<String> {
    let landings = Landing::all(catalog).into_iter();
    landings
        .map(|landing| landing_name_of(catalog, landing))
        .collect()
}

/// Returns the name of the view that fills a table from a landing table.
pub fn view_name(landing: &str, table: &str) -> String {
    format!("{landing}_to_{table}")
}

/// Returns the statements that create everything that must exist before the first insert, in order.
pub fn statements(catalog: &Catalog, options: &SchemaOptions) -> Vec<Statement> {
    let mut statements = vec![options.database()];
    statements.extend(
        tables(catalog, options)
            .iter()
            .map(|table| options.create(table)),
    );
    statements.extend(views(catalog, options));
    if options.engine == Engine::Replicated {
        let tables = tables(catalog, options);
        statements.extend(tables.iter().flat_map(|table| options.first_entries(table)));
    }
    statements
}

/// Returns the tables that store rows.
pub fn tables(catalog: &Catalog, options: &SchemaOptions) -> Vec<Table> {
    let mut tables: Vec<Table> = catalog
        .types()
        .iter()
        .map(|event_type| event_table(event_type, options))
        .collect();
    tables.extend([
        rejected_lines(options),
        rejects("unmatched_statements", options),
        replayed_lines(options),
        object_rows(options),
        ledger_objects(),
        ledger_batches(),
        ledger_failures(options),
        worker_usage(),
    ]);
    tables
}

/// Returns the columns in which rows are equal that merges of the table collapse into one; none if
/// merges keep every row.
pub fn collapsing_key(target: Target<'_>) -> Vec<&str> {
    match target {
        Target::EventType(event_type) => event_type.order_by.iter().map(String::as_str).collect(),
        Target::RejectedLines | Target::UnmatchedStatements => REJECTS_KEY.to_vec(),
        Target::ObjectRows => Vec::new(),
    }
}

/// Returns the statements that create the landing tables and their views; none if there are no
/// views.
pub fn views(catalog: &Catalog, options: &SchemaOptions) -> Vec<Statement> {
    if !options.views {
        return Vec::new();
    }
    let mut statements = Vec::new();
    for landing in Landing::all(catalog) {
        statements.push(options.landing(catalog, landing));
        for target in Target::all(catalog) {
            statements.push(options.view(catalog, landing, target));
        }
    }
    statements
}

impl SchemaOptions {
    /// Returns ` ON CLUSTER …`, or an empty text.
    pub fn on_cluster(&self) -> String {
        self.cluster
            .as_ref()
            .map(|cluster| format!(" ON CLUSTER {}", sql::ident(cluster)))
            .unwrap_or_default()
    }

    pub fn database(&self) -> Statement {
        Statement {
            what: format!("database {}", self.database),
            sql: format!(
                "CREATE DATABASE IF NOT EXISTS {}{}",
                sql::ident(&self.database),
                self.on_cluster()
            ),
        }
    }

    pub fn create(&self, table: &Table) -> Statement {
        let index = if table.batch_index { BATCH_INDEX } else { "" };
        let columns: Vec<_> = table.columns.iter().map(TableColumn::declared).collect();
        let keys: Vec<_> = table.order_by.iter().map(|key| sql::ident(key)).collect();
        let mut text = format!(
            "CREATE TABLE IF NOT EXISTS {}{}\n(\n    {}{index}\n)\nENGINE = {}",
            sql::qualified(&self.database, &table.name),
            self.on_cluster(),
            columns.join(",\n    "),
            self.engine_of(table),
        );
        if let Some(expression) = &table.partition_by {
            text += &format!("\nPARTITION BY {expression}");
        }
        text += &format!("\nORDER BY ({})", keys.join(", "));
        if let Some(ttl) = &table.ttl {
            text += &format!("\nTTL {}", ttl.expression());
        }
        let settings: Vec<_> = table.settings.iter().map(Setting::assignment).collect();
        if !settings.is_empty() {
            text += &format!("\nSETTINGS {}", settings.join(", "));
        }
        Statement {
            what: format!("table {}", table.name),
            sql: text,
        }
    }

    fn landing(&self, catalog: &Catalog, landing: Landing) -> Statement {
        let column =
            |name: &str, column_type: &str| format!("    {} {column_type}", sql::ident(name));
        let columns: Vec<_> = match landing {
            Landing::Texts => landing_columns(catalog)
                .into_iter()
                .map(|(name, column_type)| column(&name, column_type))
                .collect(),
            Landing::Values => value_columns(catalog)
                .into_iter()
                .map(|(name, column_type)| column(&name, &column_type))
                .collect(),
        };
        let name = landing_name_of(catalog, landing);
        Statement {
            what: format!("table {name}"),
            sql: format!(
                "CREATE TABLE IF NOT EXISTS {}{}\n(\n{}\n)\nENGINE = Null",
                sql::qualified(&self.database, &name),
                self.on_cluster(),
                columns.join(",\n"),
            ),
        }
    }

    fn view(&self, catalog: &Catalog, landing: Landing, target: Target<'_>) -> Statement {
        let table = landing_name_of(catalog, landing);
        let name = view_name(&table, target.table());
        Statement {
            what: format!("view {name}"),
            sql: format!(
                "CREATE MATERIALIZED VIEW IF NOT EXISTS {}{} TO {} AS\n{}",
                sql::qualified(&self.database, &name),
                self.on_cluster(),
                sql::qualified(&self.database, target.table()),
                view_select(
                    catalog,
                    landing,
                    target,
                    &sql::qualified(&self.database, &table)
                ),
            ),
        }
    }

    fn engine_of(&self, table: &Table) -> &'static str {
        match (self.engine, table.replacing) {
            (Engine::Plain, false) => "MergeTree",
            (Engine::Plain, true) => "ReplacingMergeTree(ingested_at)",
            (Engine::Replicated, false) => "ReplicatedMergeTree",
            (Engine::Replicated, true) => "ReplicatedReplacingMergeTree(ingested_at)",
        }
    }

    /// Returns the settings by which a repeated insert is recognised.
    fn dedup_settings(&self) -> Vec<Setting> {
        let window = |name| Setting {
            name,
            value: self.dedup_window,
            is_mutable: true,
        };
        match self.engine {
            Engine::Plain => vec![window("non_replicated_deduplication_window")],
            Engine::Replicated => vec![
                window("replicated_deduplication_window"),
                Setting {
                    name: "replicated_deduplication_window_seconds",
                    value: self.dedup_age.as_secs(),
                    is_mutable: true,
                },
            ],
        }
    }

    /// Returns the statement that makes these changes to a table.
    pub fn alter(&self, table: &Table, what: String, changes: &[String]) -> Statement {
        let name = sql::qualified(&self.database, &table.name);
        Statement {
            what,
            sql: format!(
                "ALTER TABLE {name}{} {}",
                self.on_cluster(),
                changes.join(", ")
            ),
        }
    }

    /// Returns the statements that write the first entries of a replicated table's log, and change
    /// nothing. `system.replicas` shows an empty log and a log of one entry alike, so that a reader
    /// could not determine whether a server has copied it.
    pub fn first_entries(&self, table: &Table) -> [Statement; 2] {
        let what = || format!("log of {}", table.name);
        let name = sql::ident("first_entry");
        [
            format!("ADD CONSTRAINT IF NOT EXISTS {name} CHECK true"),
            format!("DROP CONSTRAINT IF EXISTS {name}"),
        ]
        .map(|change| self.alter(table, what(), &[change]))
    }

    /// Returns the statement that drops a table or a view.
    pub fn drop(&self, name: &str) -> Statement {
        Statement {
            what: name.to_owned(),
            sql: format!(
                "DROP TABLE IF EXISTS {}{} SYNC",
                sql::qualified(&self.database, name),
                self.on_cluster()
            ),
        }
    }
}

impl TableColumn {
    fn new(name: &str, column_type: &str) -> Self {
        Self::with(name, column_type, "")
    }

    fn with(name: &str, column_type: &str, rest: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            column_type: column_type.to_owned(),
            rest,
        }
    }

    pub fn declared(&self) -> String {
        format!(
            "{} {} {}",
            sql::ident(&self.name),
            self.column_type,
            self.rest
        )
        .trim_end()
        .to_owned()
    }
}

impl Ttl {
    pub fn expression(&self) -> String {
        format!(
            "toDateTime({}) + toIntervalSecond({})",
            sql::ident(self.column),
            self.after.as_secs()
        )
    }
}

impl Setting {
    pub fn assignment(&self) -> String {
        format!("{} = {}", self.name, self.value)
    }
}

const BATCH_INDEX: &str =
    ",\n    INDEX `batch_id_index` `batch_id` TYPE bloom_filter GRANULARITY 1";

const COMPRESSED: &str = "CODEC(ZSTD)";
const NOW: &str = "DEFAULT now64(3, 'UTC')";
const TIME: &str = "DateTime64(3, 'UTC')";
const WORD: &str = "LowCardinality(String)";

/// The sorting key of the tables of rejects.
const REJECTS_KEY: [&str; 3] = ["source_path", "source_etag", "row_number"];

/// For tables in which a lookup must read little data.
const SMALL_GRANULES: Setting = Setting {
    name: "index_granularity",
    value: 256,
    is_mutable: false,
};

fn names(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|&column| column.to_owned()).collect()
}

pub fn event_table(event_type: &EventType, options: &SchemaOptions) -> Table {
    let declared = event_type.columns.iter();
    let declared =
        declared.map(|column| TableColumn::new(&column.name, &column.column_type.to_string()));
    let lineage = [
        TableColumn::with("source_path", "String", COMPRESSED),
        TableColumn::with("source_etag", "String", COMPRESSED),
        TableColumn::new("batch_id", "UUID"),
        TableColumn::with("ingested_at", TIME, NOW),
    ];
    Table {
        name: event_type.table.clone(),
        columns: declared.chain(lineage).collect(),
        batch_index: true,
        replacing: true,
        partition_by: event_type.partition_by.clone(),
        order_by: event_type.order_by.clone(),
        ttl: None,
        settings: options.dedup_settings(),
    }
}

/// Returns the table of lines that cannot become a row, each with the value for which it was
/// rejected.
fn rejected_lines(options: &SchemaOptions) -> Table {
    let mut table = rejects("rejected_lines", options);
    table
        .columns
        .push(TableColumn::new("value", "Nullable(String)"));
    table
}

/// Returns a table of rejects with their raw text. A line that is loaded again, because its batch
/// was rolled back, replaces itself.
fn rejects(name: &str, options: &SchemaOptions) -> Table {
    Table {
        name: name.to_owned(),
        columns: vec![
            TableColumn::new("source_path", "String"),
            TableColumn::new("source_etag", "String"),
            TableColumn::new("row_number", "UInt64"),
            TableColumn::with("raw", "String", COMPRESSED),
            TableColumn::new("reason", WORD),
            TableColumn::new("batch_id", "UUID"),
            TableColumn::with("ingested_at", TIME, NOW),
        ],
        batch_index: true,
        replacing: true,
        partition_by: None,
        order_by: names(&REJECTS_KEY),
        ttl: Some(Ttl {
            column: "ingested_at",
            after: options.reject_ttl,
        }),
        settings: options.dedup_settings(),
    }
}

/// Returns the table with the snapshot of each replay. It has the text of the lines, since a
/// snapshot must not change when a reject expires.
fn replayed_lines(options: &SchemaOptions) -> Table {
    Table {
        name: REPLAYED.to_owned(),
        columns: vec![
            TableColumn::new("batch_id", "UUID"),
            TableColumn::new("source_path", "String"),
            TableColumn::new("source_etag", "String"),
            TableColumn::new("row_number", "UInt64"),
            TableColumn::with("raw", "String", COMPRESSED),
            TableColumn::new("kept_batch_id", "UUID"),
            TableColumn::with("frozen_at", TIME, NOW),
        ],
        batch_index: true,
        replacing: false,
        partition_by: None,
        order_by: names(&["source_path", "source_etag", "row_number"]),
        ttl: Some(Ttl {
            column: "frozen_at",
            after: options.reject_ttl,
        }),
        settings: options.dedup_settings(),
    }
}

fn object_rows(options: &SchemaOptions) -> Table {
    Table {
        name: "object_rows".to_owned(),
        columns: vec![
            TableColumn::new("batch_id", "UUID"),
            TableColumn::new("source_path", "String"),
            TableColumn::new("source_etag", "String"),
            TableColumn::new("kind", WORD),
            TableColumn::new("rows", "UInt64"),
            TableColumn::with("ingested_at", TIME, NOW),
        ],
        batch_index: true,
        replacing: false,
        partition_by: None,
        order_by: names(&["batch_id", "source_path"]),
        ttl: None,
        settings: options.dedup_settings(),
    }
}

/// Returns the table of manifests, which is looked up by object before every batch.
fn ledger_objects() -> Table {
    Table {
        name: OBJECTS_TABLE.to_owned(),
        columns: vec![
            TableColumn::new("object_id", "UUID"),
            TableColumn::new("bucket", WORD),
            TableColumn::with("key", "String", COMPRESSED),
            TableColumn::with("etag", "String", COMPRESSED),
            TableColumn::new("version_id", "String"),
            TableColumn::new("region", WORD),
            TableColumn::new("size", "UInt64"),
            TableColumn::new("batch_id", "UUID"),
            // The first versions do not write the next four: the plan of their batches is unknown,
            // and the objects may have been read in many blocks.
            TableColumn::new("plan", "UUID"),
            TableColumn::with("many_blocks", "Bool", "DEFAULT true"),
            TableColumn::with("read_by", WORD, "DEFAULT 's3'"),
            // Earlier versions load JSON lines alone, whose layout is empty.
            TableColumn::with("layout", "String", "DEFAULT ''"),
            TableColumn::new("supersedes", "Array(UUID)"),
            TableColumn::new("lease_seconds", "UInt32"),
            TableColumn::new("statement_seconds", "UInt32"),
            TableColumn::new("worker", WORD),
            TableColumn::with("sealed_at", TIME, NOW),
        ],
        batch_index: true,
        replacing: false,
        partition_by: None,
        order_by: names(&["object_id", "batch_id"]),
        ttl: None,
        settings: vec![SMALL_GRANULES],
    }
}

fn ledger_batches() -> Table {
    Table {
        name: BATCHES_TABLE.to_owned(),
        columns: vec![
            TableColumn::new("batch_id", "UUID"),
            TableColumn::new("event", WORD),
            TableColumn::new("attempt", "UInt32"),
            TableColumn::new("lease_seconds", "UInt32"),
            TableColumn::new("statement_seconds", "UInt32"),
            TableColumn::new("worker", WORD),
            TableColumn::new("objects", "UInt32"),
            TableColumn::new("rows", "UInt64"),
            TableColumn::with("reason", "String", COMPRESSED),
            TableColumn::with("at", TIME, NOW),
        ],
        batch_index: false,
        replacing: false,
        partition_by: None,
        order_by: names(&["batch_id", "at"]),
        ttl: None,
        settings: vec![SMALL_GRANULES],
    }
}

fn ledger_failures(options: &SchemaOptions) -> Table {
    Table {
        name: FAILURES_TABLE.to_owned(),
        columns: vec![
            TableColumn::new("object_id", "UUID"),
            TableColumn::new("bucket", WORD),
            TableColumn::with("key", "String", COMPRESSED),
            TableColumn::with("etag", "String", COMPRESSED),
            TableColumn::new("class", WORD),
            TableColumn::with("reason", "String", COMPRESSED),
            // Records of an object of which every record was rejected.
            TableColumn::with("sample", "Array(String)", COMPRESSED),
            TableColumn::new("worker", WORD),
            TableColumn::with("at", TIME, NOW),
        ],
        batch_index: false,
        replacing: false,
        partition_by: None,
        order_by: names(&["bucket", "key", "at"]),
        ttl: Some(Ttl {
            column: "at",
            after: options.reject_ttl,
        }),
        settings: Vec::new(),
    }
}

fn worker_usage() -> Table {
    Table {
        name: USAGE_TABLE.to_owned(),
        columns: vec![
            TableColumn::new("worker", WORD),
            TableColumn::new("kind", WORD),
            TableColumn::new("operation", WORD),
            TableColumn::new("amount", "UInt64"),
            TableColumn::with("at", TIME, NOW),
        ],
        batch_index: false,
        replacing: false,
        partition_by: None,
        order_by: names(&["at"]),
        ttl: Some(Ttl {
            column: "at",
            after: USAGE_TTL,
        }),
        settings: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(engine: Engine, cluster: Option<&str>) -> SchemaOptions {
        SchemaOptions {
            database: "sluice".to_owned(),
            cluster: cluster.map(str::to_owned),
            engine,
            dedup_window: 10_000,
            dedup_age: Duration::from_secs(7 * 86_400),
            views: true,
            reject_ttl: Duration::from_secs(90 * 86_400),
        }
    }

    fn text(statements: &[Statement]) -> String {
        statements
            .iter()
            .map(|statement| format!("-- {}\n{};\n\n", statement.what, statement.sql))
            .collect()
    }

    #[test]
    fn plain_tables() {
        let statements = statements(&Catalog::builtin(), &options(Engine::Plain, None));
        insta::assert_snapshot!(text(&statements));
    }

    #[test]
    fn replicated_tables_of_a_cluster() {
        let statements = statements(
            &Catalog::builtin(),
            &options(Engine::Replicated, Some("main")),
        );
        let tables: Vec<_> = statements
            .into_iter()
            .filter(|s| !s.what.starts_with("view"))
            .collect();
        insta::assert_snapshot!(text(&tables));
    }

    #[test]
    fn records_with_fields_of_their_own_have_a_landing_table_of_their_own() {
        let with = |formats: &str| {
            let declared = "table: t\nrule: {path: [a], equals: b}\norder_by: [id]\n\
                            columns:\n- {name: id, type: UInt64, path: [id], required: true}\n";
            let files = [("t.yaml", declared), ("formats.yaml", formats)];
            let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
            Catalog::from_files(files).unwrap()
        };
        let documents = with("formats:\n- {name: a, keys: [a], json: {}}\n");
        let [texts] = &landing_names(&documents)[..] else {
            panic!("one landing table")
        };
        let catalog = with("formats:\n- {name: a, keys: [a], parquet: {}}\n");
        let [first, values] = &landing_names(&catalog)[..] else {
            panic!("two landing tables")
        };
        // Whatever formats are declared.
        assert_eq!(first, texts);
        assert!(values.starts_with("landing_values_"), "{values}");
        let statements = views(&catalog, &options(Engine::Plain, None));
        let of_values: Vec<&str> = statements
            .iter()
            .map(|statement| statement.what.as_str())
            .filter(|what| what.contains(values.as_str()))
            .collect();
        assert_eq!(
            of_values,
            [
                format!("table {values}"),
                format!("view {values}_to_t"),
                format!("view {values}_to_rejected_lines"),
                format!("view {values}_to_unmatched_statements"),
                format!("view {values}_to_object_rows"),
            ]
        );
        assert_eq!(statements.len(), 2 * of_values.len());
    }

    #[test]
    fn rows_collapse_by_the_sorting_key_of_their_table() {
        let catalog = Catalog::builtin();
        let tables = tables(&catalog, &options(Engine::Plain, None));
        for target in Target::all(&catalog) {
            let table = tables.iter().find(|it| it.name == target.table()).unwrap();
            let key: &[String] = if table.replacing {
                &table.order_by
            } else {
                &[]
            };
            assert_eq!(collapsing_key(target), key, "{}", table.name);
        }
    }

    #[test]
    fn every_statement_can_be_run_again() {
        for statement in statements(
            &Catalog::builtin(),
            &options(Engine::Replicated, Some("main")),
        ) {
            assert!(
                statement.sql.contains(" IF NOT EXISTS ") || statement.sql.contains(" IF EXISTS "),
                "{}",
                statement.sql
            );
            assert!(
                statement.sql.contains(" ON CLUSTER `main`"),
                "{}",
                statement.sql
            );
        }
    }
}
