//! The tables and views that `migrate` makes.
//!
//! Every statement says `IF NOT EXISTS`, so that any number of workers may run all of them at once,
//! again and again. The order counts: a view comes after the tables it reads and fills.
//!
//! Retries are exact only where all targets forget an insert's token late: hence the deduplication
//! windows, and hence no table is partitioned by the time of the insert (a replay after midnight
//! would fall into another partition, where its token is unknown).

use std::time::Duration;

use crate::event_types::select::{Target, landing_columns, view_select};
use crate::event_types::{Catalog, EventType};
use crate::sql;

/// The table that the inserts go to; it stores nothing.
pub const LANDING: &str = "landing";

/// How the tables are laid out on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaOptions {
    /// The database of all tables.
    pub database: String,
    /// The cluster for ON CLUSTER, where there is one.
    pub cluster: Option<String>,
    /// Plain or replicated tables.
    pub engine: Engine,
    /// How many inserts back a replayed insert is recognised.
    pub dedup_window: u64,
    /// How long a replayed insert is recognised; replicated tables only.
    pub dedup_age: Duration,
    /// Whether views fill the tables from `landing`; if not, neither is made.
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

/// One statement of DDL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// What it makes, such as `table video_events`.
    pub what: String,
    /// The statement.
    pub sql: String,
}

/// The view that fills a table from `landing`.
pub fn view_name(table: &str) -> String {
    format!("landing_to_{table}")
}

/// Everything that must exist before the first insert, in order.
pub fn statements(catalog: &Catalog, options: &SchemaOptions) -> Vec<Statement> {
    let mut statements = vec![Statement {
        what: format!("database {}", options.database),
        sql: format!(
            "CREATE DATABASE IF NOT EXISTS {}{}",
            sql::ident(&options.database),
            options.on_cluster()
        ),
    }];
    for event_type in catalog.types() {
        statements.push(options.table(&event_type.table, &event_table(event_type, options)));
    }
    statements.push(options.table("rejected_lines", &kept_lines(options)));
    statements.push(options.table("unmatched_statements", &kept_lines(options)));
    statements.push(options.table("object_rows", &object_rows(options)));
    statements.push(options.table("ledger_objects", &ledger_objects(options)));
    statements.push(options.later_columns("ledger_objects", LATER_COLUMNS));
    statements.push(options.table("ledger_batches", &ledger_batches(options)));
    statements.push(options.table("ledger_failures", &ledger_failures(options)));
    if options.views {
        statements.push(options.table(LANDING, &landing(catalog)));
        for target in Target::all(catalog) {
            statements.push(options.view(catalog, target));
        }
    }
    statements
}

impl SchemaOptions {
    fn on_cluster(&self) -> String {
        self.cluster
            .as_ref()
            .map(|cluster| format!(" ON CLUSTER {}", sql::ident(cluster)))
            .unwrap_or_default()
    }

    fn table(&self, name: &str, body: &str) -> Statement {
        Statement {
            what: format!("table {name}"),
            sql: format!(
                "CREATE TABLE IF NOT EXISTS {}{}\n{body}",
                sql::qualified(&self.database, name),
                self.on_cluster()
            ),
        }
    }

    /// Columns that the table of an earlier version does not have.
    fn later_columns(&self, table: &str, columns: &[&str]) -> Statement {
        let added: Vec<String> = columns
            .iter()
            .map(|column| format!("ADD COLUMN IF NOT EXISTS {column}"))
            .collect();
        Statement {
            what: format!("columns of {table}"),
            sql: format!(
                "ALTER TABLE {}{} {}",
                sql::qualified(&self.database, table),
                self.on_cluster(),
                added.join(", ")
            ),
        }
    }

    fn view(&self, catalog: &Catalog, target: Target<'_>) -> Statement {
        let name = view_name(target.table());
        Statement {
            what: format!("view {name}"),
            sql: format!(
                "CREATE MATERIALIZED VIEW IF NOT EXISTS {}{} TO {} AS\n{}",
                sql::qualified(&self.database, &name),
                self.on_cluster(),
                sql::qualified(&self.database, target.table()),
                view_select(catalog, target, &sql::qualified(&self.database, LANDING)),
            ),
        }
    }

    /// An engine of the MergeTree family, such as ("Replacing", "ingested_at").
    fn engine(&self, kind: &str, arguments: &str) -> String {
        let arguments = if arguments.is_empty() {
            String::new()
        } else {
            format!("({arguments})")
        };
        match self.engine {
            Engine::Plain => format!("{kind}MergeTree{arguments}"),
            Engine::Replicated => format!("Replicated{kind}MergeTree{arguments}"),
        }
    }

    /// Settings under which a replayed insert is recognised.
    fn dedup_settings(&self) -> String {
        let window = self.dedup_window;
        match self.engine {
            Engine::Plain => format!("non_replicated_deduplication_window = {window}"),
            Engine::Replicated => format!(
                "replicated_deduplication_window = {window}, replicated_deduplication_window_seconds = {}",
                self.dedup_age.as_secs()
            ),
        }
    }
}

const LINEAGE_COLUMNS: &str = "    `source_path` String CODEC(ZSTD),
    `source_etag` String CODEC(ZSTD),
    `batch_id` UUID,
    `ingested_at` DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')";

/// A recovery asks each table whether it has rows of a batch.
const BATCH_INDEX: &str = "    INDEX `batch_id_index` `batch_id` TYPE bloom_filter GRANULARITY 1";

fn event_table(event_type: &EventType, options: &SchemaOptions) -> String {
    let columns = event_type
        .columns
        .iter()
        .map(|column| format!("    {} {},\n", sql::ident(&column.name), column.column_type));
    let order_by: Vec<_> = event_type
        .order_by
        .iter()
        .map(|key| sql::ident(key))
        .collect();
    let partition_by = event_type
        .partition_by
        .as_ref()
        .map(|expression| format!("\nPARTITION BY {expression}"))
        .unwrap_or_default();
    format!(
        "(\n{}{LINEAGE_COLUMNS},\n{BATCH_INDEX}\n)\nENGINE = {}{partition_by}\nORDER BY ({})\nSETTINGS {}",
        columns.collect::<String>(),
        options.engine("Replacing", "ingested_at"),
        order_by.join(", "),
        options.dedup_settings(),
    )
}

/// Lines with their raw text. A line that is loaded again (its object was, after its batch had been
/// taken back) replaces itself.
fn kept_lines(options: &SchemaOptions) -> String {
    format!(
        "(
    `source_path` String,
    `source_etag` String,
    `row_number` UInt64,
    `raw` String CODEC(ZSTD),
    `reason` LowCardinality(String),
    `batch_id` UUID,
    `ingested_at` DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
{BATCH_INDEX}
)
ENGINE = {engine}
ORDER BY (`source_path`, `source_etag`, `row_number`)
TTL toDateTime(`ingested_at`) + toIntervalSecond({ttl})
SETTINGS {dedup}",
        engine = options.engine("Replacing", "ingested_at"),
        ttl = options.reject_ttl.as_secs(),
        dedup = options.dedup_settings(),
    )
}

fn object_rows(options: &SchemaOptions) -> String {
    format!(
        "(
    `batch_id` UUID,
    `source_path` String,
    `source_etag` String,
    `kind` LowCardinality(String),
    `rows` UInt64,
    `ingested_at` DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
{BATCH_INDEX}
)
ENGINE = {engine}
ORDER BY (`batch_id`, `source_path`)
SETTINGS {dedup}",
        engine = options.engine("", ""),
        dedup = options.dedup_settings(),
    )
}

/// Columns of `ledger_objects` that earlier versions do not write: what they have sealed is of no
/// known plan, and may have been read in many blocks.
const LATER_COLUMNS: &[&str] = &[
    "`plan` UUID",
    "`many_blocks` Bool DEFAULT true",
    "`read_by` LowCardinality(String) DEFAULT 's3'",
    "`supersedes` Array(UUID)",
];

/// Looked up by object before every batch: small granules, so that a lookup reads little.
fn ledger_objects(options: &SchemaOptions) -> String {
    format!(
        "(
    `object_id` UUID,
    `bucket` LowCardinality(String),
    `key` String CODEC(ZSTD),
    `etag` String CODEC(ZSTD),
    `version_id` String,
    `region` LowCardinality(String),
    `size` UInt64,
    `batch_id` UUID,
    {later_columns},
    `lease_seconds` UInt32,
    `worker` LowCardinality(String),
    `sealed_at` DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
{BATCH_INDEX}
)
ENGINE = {engine}
ORDER BY (`object_id`, `batch_id`)
SETTINGS index_granularity = 256",
        later_columns = LATER_COLUMNS.join(",\n    "),
        engine = options.engine("", ""),
    )
}

fn ledger_batches(options: &SchemaOptions) -> String {
    format!(
        "(
    `batch_id` UUID,
    `event` LowCardinality(String),
    `attempt` UInt32,
    `lease_seconds` UInt32,
    `worker` LowCardinality(String),
    `objects` UInt32,
    `rows` UInt64,
    `reason` String CODEC(ZSTD),
    `at` DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = {engine}
ORDER BY (`batch_id`, `at`)
SETTINGS index_granularity = 256",
        engine = options.engine("", ""),
    )
}

fn ledger_failures(options: &SchemaOptions) -> String {
    format!(
        "(
    `object_id` UUID,
    `bucket` LowCardinality(String),
    `key` String CODEC(ZSTD),
    `etag` String CODEC(ZSTD),
    `class` LowCardinality(String),
    `reason` String CODEC(ZSTD),
    `worker` LowCardinality(String),
    `at` DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = {engine}
ORDER BY (`bucket`, `key`, `at`)
TTL toDateTime(`at`) + toIntervalSecond({ttl})",
        engine = options.engine("", ""),
        ttl = options.reject_ttl.as_secs(),
    )
}

fn landing(catalog: &Catalog) -> String {
    let columns = landing_columns(catalog)
        .into_iter()
        .map(|(name, kind)| format!("    {} {kind}", sql::ident(name)))
        .collect::<Vec<_>>();
    format!("(\n{}\n)\nENGINE = Null", columns.join(",\n"))
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
    fn every_statement_can_be_run_again() {
        for statement in statements(
            &Catalog::builtin(),
            &options(Engine::Replicated, Some("main")),
        ) {
            assert!(
                statement.sql.contains(" IF NOT EXISTS "),
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
