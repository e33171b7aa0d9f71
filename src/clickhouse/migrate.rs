//! Plans the changes that bring existing tables in line with the declarations.
//!
//! Columns are added and widened, and retention and deduplication windows are changed. Changes that
//! would alter or lose rows are refused, with advice. Nothing that holds rows is ever dropped.

use serde::{Deserialize, Serialize};

use crate::clickhouse::{Warehouse, WarehouseError};
use crate::event_types::Catalog;
use crate::sql;
use crate::statements::ddl::Statement;
use crate::statements::ddl::{
    Engine, LANDING_PREFIX, SchemaOptions, Setting, Table, TableColumn, landing_names, tables,
    views,
};

/// The steps from the existing tables to the declared ones.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The statements to run, in order. Empty if everything is as declared.
    pub statements: Vec<Statement>,
    /// The refused changes. Unless this is empty, no statement should be run.
    pub refusals: Vec<Refusal>,
    /// Descriptions of the differences that are left in place.
    pub kept: Vec<String>,
}

/// A difference that no statement can remove without changing or losing rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub table: String,
    pub problem: String,
    pub advice: String,
}

/// A table as it exists on the server.
#[derive(Debug, Deserialize)]
struct Found {
    name: String,
    engine: String,
    engine_full: String,
    sorting_key: String,
    partition_key: String,
    columns: Vec<FoundColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct FoundColumn {
    name: String,
    #[serde(rename = "type")]
    column_type: String,
}

/// A declared table, with its types and expressions in the server's spelling.
#[derive(Debug)]
struct Declared {
    table: Table,
    types: Vec<String>,
    sorting_key: String,
    partition_key: String,
}

/// Compares the declared tables with those of the server, and returns the plan.
///
/// # Errors
///
/// Fails if the server does not respond, or does not support a declared type.
pub async fn plan(
    warehouse: &Warehouse,
    catalog: &Catalog,
    options: &SchemaOptions,
) -> Result<Plan, WarehouseError> {
    let found = found(warehouse, options).await?;
    let named = |name: &str| found.iter().find(|table| table.name == name);
    let mut plan = Plan::default();
    if found.is_empty() {
        plan.statements.push(options.database());
    }
    // A server can make a replicated table although a plain one is declared, as ClickHouse Cloud
    // does. It remembers tokens by the settings of replicated tables.
    let replicated = SchemaOptions {
        engine: Engine::Replicated,
        ..options.clone()
    };
    let replicated = tables(catalog, &replicated);
    let empty_logs = match found.iter().any(Found::is_replicated) {
        true => empty_logs(warehouse, options).await?,
        false => Vec::new(),
    };
    let mut first_entries = Vec::new();
    for (table, replicated) in tables(catalog, options).into_iter().zip(replicated) {
        match named(&table.name) {
            None => {
                plan.statements.push(options.create(&table));
                if options.engine == Engine::Replicated {
                    first_entries.extend(options.first_entries(&table));
                }
            }
            Some(found) => {
                let table = if found.is_replicated() {
                    replicated
                } else {
                    table
                };
                if empty_logs.contains(&table.name) {
                    first_entries.extend(options.first_entries(&table));
                }
                let declared = declared(warehouse, table).await?;
                plan.evolve(options, &declared, found);
            }
        }
    }
    let is_there = |statement: &Statement| {
        let name = statement.what.split_once(' ').map(|(_, name)| name);
        name.is_some_and(|name| named(name).is_some())
    };
    let mut views = views(catalog, options);
    views.retain(|statement| !is_there(statement));
    plan.statements.append(&mut views);
    // A new table is read-only for a moment.
    plan.statements.append(&mut first_entries);
    let others = landings_of_others(catalog, &found);
    if !others.is_empty() {
        plan.kept.push(format!(
            "landing tables of other declarations: {}; once no worker uses them, run \
             `sluice migrate --prune` to drop them (they hold no rows)",
            others.join(", ")
        ));
    }
    Ok(plan)
}

/// Returns the statements that drop the landing tables of other declarations and their views, none
/// of which holds rows. A worker that still inserts into one of them pauses and reports the reason.
///
/// # Errors
///
/// Fails if the server does not respond.
pub async fn prune(
    warehouse: &Warehouse,
    catalog: &Catalog,
    options: &SchemaOptions,
) -> Result<Vec<Statement>, WarehouseError> {
    let found = found(warehouse, options).await?;
    let mut statements = Vec::new();
    for landing in landings_of_others(catalog, &found) {
        // The order matters: without its landing table an insert fails, but without a view its rows
        // would be lost.
        let of_it = |table: &&Found| table.is_view_of(landing);
        let views = found.iter().filter(of_it).map(|view| view.name.as_str());
        statements.push(options.drop(landing));
        statements.extend(views.map(|view| options.drop(view)));
    }
    Ok(statements)
}

fn landings_of_others<'a>(catalog: &Catalog, found: &'a [Found]) -> Vec<&'a str> {
    let own = landing_names(catalog);
    found
        .iter()
        .filter(|table| {
            table.engine == "Null"
                && table.name.starts_with(LANDING_PREFIX)
                && !own.contains(&table.name)
        })
        .map(|table| table.name.as_str())
        .collect()
}

/// Returns the replicated tables to which nothing has been written.
async fn empty_logs(
    warehouse: &Warehouse,
    options: &SchemaOptions,
) -> Result<Vec<String>, WarehouseError> {
    #[derive(Deserialize)]
    struct Row {
        table: String,
    }
    let sql = format!(
        "SELECT table FROM system.replicas \
         WHERE database = {} AND log_pointer = 0 AND log_max_index = 0",
        sql::string(&options.database)
    );
    let rows: Vec<Row> = warehouse.rows(&sql).await?;
    Ok(rows.into_iter().map(|row| row.table).collect())
}

async fn found(
    warehouse: &Warehouse,
    options: &SchemaOptions,
) -> Result<Vec<Found>, WarehouseError> {
    let database = sql::string(&options.database);
    let sql = format!(
        "SELECT name, engine, engine_full, sorting_key, partition_key, columns \
         FROM system.tables AS tables LEFT JOIN (\
           SELECT c.table AS of_table, \
             arrayMap(c -> CAST((c.2, c.3), 'Tuple(name String, type String)'), \
               arraySort(groupArray((c.position, c.name, c.type)))) AS columns \
           FROM system.columns AS c WHERE c.database = {database} GROUP BY of_table\
         ) AS columns ON tables.name = columns.of_table \
         WHERE tables.database = {database} ORDER BY name"
    );
    warehouse.rows(&sql).await
}

async fn declared(warehouse: &Warehouse, table: Table) -> Result<Declared, WarehouseError> {
    #[derive(Deserialize)]
    struct Spelled {
        text: String,
    }
    let structure: Vec<String> = table
        .columns
        .iter()
        .map(|column| format!("{} {}", sql::ident(&column.name), column.column_type))
        .collect();
    let describe = format!(
        "DESCRIBE TABLE null({}) SETTINGS print_pretty_type_names = 0",
        sql::string(&structure.join(", "))
    );
    let columns: Vec<FoundColumn> = warehouse.rows(&describe).await?;
    let keys: Vec<_> = table.order_by.iter().map(|key| sql::ident(key)).collect();
    let partition_by = table.partition_by.as_deref().unwrap_or("tuple()");
    let expressions = [keys.join(", "), partition_by.to_owned()];
    let expressions = expressions.map(|text| sql::string(&format!("SELECT {text}")));
    let format = format!(
        "SELECT substring(formatQuerySingleLine(arrayJoin([{}])), length('SELECT ') + 1) AS text",
        expressions.join(", ")
    );
    let mut spelled = warehouse.rows::<Spelled>(&format).await?.into_iter();
    let mut next = || {
        spelled
            .next()
            .map(|spelled| spelled.text)
            .unwrap_or_default()
    };
    let (sorting_key, partition_key) = (next(), next());
    Ok(Declared {
        types: columns
            .into_iter()
            .map(|column| column.column_type)
            .collect(),
        sorting_key,
        partition_key: if table.partition_by.is_some() {
            partition_key
        } else {
            String::new()
        },
        table,
    })
}

impl Plan {
    fn evolve(&mut self, options: &SchemaOptions, declared: &Declared, found: &Found) {
        let table = &declared.table;
        if let Some((problem, advice)) = layout_differs(options, declared, found) {
            self.refuse(table, problem, advice);
            return;
        }
        let columns = self.columns(declared, found);
        if !columns.is_empty() {
            let what = format!("columns of {}", table.name);
            self.statements.push(options.alter(table, what, &columns));
        }
        let stale: Vec<String> = table
            .settings
            .iter()
            .filter(|setting| setting.is_mutable && !found.has(setting))
            .map(Setting::assignment)
            .collect();
        if !stale.is_empty() {
            let what = format!("settings of {}", table.name);
            let change = format!("MODIFY SETTING {}", stale.join(", "));
            self.statements.push(options.alter(table, what, &[change]));
        }
        if let Some(ttl) = &table.ttl
            && found.ttl_seconds() != Some(ttl.after.as_secs())
        {
            let what = format!("retention of {}", table.name);
            let change = format!("MODIFY TTL {}", ttl.expression());
            self.statements.push(options.alter(table, what, &[change]));
        }
    }

    /// Returns the changes of columns, as clauses of ALTER TABLE.
    fn columns(&mut self, declared: &Declared, found: &Found) -> Vec<String> {
        let table = &declared.table;
        let mut changes = Vec::new();
        let mut before: Option<&TableColumn> = None;
        for (column, column_type) in table.columns.iter().zip(&declared.types) {
            let name = sql::ident(&column.name);
            let existing = found.columns.iter().find(|found| found.name == column.name);
            match existing.map(|existing| existing.column_type.as_str()) {
                None => {
                    let after = before.map(|before| format!(" AFTER {}", sql::ident(&before.name)));
                    changes.push(format!(
                        "ADD COLUMN IF NOT EXISTS {}{}",
                        column.declared(),
                        after.as_deref().unwrap_or(" FIRST"),
                    ));
                }
                Some(existing) if existing == column_type => {}
                Some(existing)
                    if widens(existing, column_type) && !table.order_by.contains(&column.name) =>
                {
                    changes.push(format!("MODIFY COLUMN {name} {}", column.column_type));
                }
                Some(existing) => {
                    let problem = format!(
                        "column {} is {existing}, but declared as {column_type}",
                        column.name
                    );
                    let advice = "declare the column under another name, so that a new column is \
                                  added; or first rename the old column manually (ALTER TABLE … \
                                  RENAME COLUMN), and fill the new one with \
                                  `sluice backfill --force`";
                    self.refuse(table, problem, advice.to_owned());
                }
            }
            before = Some(column);
        }
        let undeclared: Vec<_> = found
            .columns
            .iter()
            .filter(|found| table.columns.iter().all(|column| column.name != found.name))
            .map(|found| found.name.as_str())
            .collect();
        if !undeclared.is_empty() {
            self.kept.push(format!(
                "undeclared columns of {}, which are filled with their defaults: {}",
                table.name,
                undeclared.join(", ")
            ));
        }
        changes
    }

    fn refuse(&mut self, table: &Table, problem: String, advice: String) {
        self.refusals.push(Refusal {
            table: table.name.clone(),
            problem,
            advice,
        });
    }
}

/// Returns the problem and the advice if the tables differ in a way that ALTER TABLE cannot change.
fn layout_differs(
    options: &SchemaOptions,
    declared: &Declared,
    found: &Found,
) -> Option<(String, String)> {
    let another = "declare another table for this event type and load history into it with \
                   `sluice backfill --force`; or rename the old table manually (RENAME TABLE), and \
                   run `sluice migrate` again";
    let mut families = REPLICATED.iter();
    let family = families.find_map(|family| found.engine.strip_prefix(family));
    let expected = if declared.table.replacing {
        "ReplacingMergeTree"
    } else {
        "MergeTree"
    };
    let engine = &found.engine;
    let problem = if family.unwrap_or(engine) != expected {
        format!("its engine is {engine}, but {expected} is declared")
    } else if options.engine == Engine::Replicated && family.is_none() {
        format!("its engine is {engine}, but `clickhouse.engine` is replicated")
    } else if bare(&found.sorting_key) != bare(&declared.sorting_key) {
        let (found, declared) = (bare(&found.sorting_key), bare(&declared.sorting_key));
        format!("it is sorted by {found}, but declared as sorted by {declared}")
    } else if bare(&found.partition_key) != bare(&declared.partition_key) {
        let named = |key| match bare(key) {
            "" => "nothing",
            key => key,
        };
        let (found, declared) = (named(&found.partition_key), named(&declared.partition_key));
        format!("it is partitioned by {found}, but declared as partitioned by {declared}")
    } else {
        return None;
    };
    Some((problem, another.to_owned()))
}

/// What the names of replicated engines begin with.
const REPLICATED: [&str; 2] = ["Shared", "Replicated"];

impl Found {
    fn is_replicated(&self) -> bool {
        REPLICATED
            .iter()
            .any(|family| self.engine.starts_with(family))
    }

    fn is_view_of(&self, landing: &str) -> bool {
        let rest = self.name.strip_prefix(landing);
        self.engine == "MaterializedView" && rest.is_some_and(|rest| rest.starts_with("_to_"))
    }

    fn has(&self, setting: &Setting) -> bool {
        let settings = self.engine_full.rsplit_once(" SETTINGS ");
        settings.is_some_and(|(_, list)| {
            list.split(", ")
                .any(|assignment| assignment == setting.assignment())
        })
    }

    fn ttl_seconds(&self) -> Option<u64> {
        let (_, ttl) = self.engine_full.rsplit_once(" TTL ")?;
        let (_, seconds) = ttl.split_once("toIntervalSecond(")?;
        seconds.split_once(')')?.0.parse().ok()
    }
}

/// Returns a key without the parentheses that the server may put around it.
fn bare(key: &str) -> &str {
    let inner = key.strip_prefix('(').and_then(|key| key.strip_suffix(')'));
    inner
        .filter(|inner| !inner.contains(['(', ')']))
        .unwrap_or(key)
}

/// Returns whether every value of the first type is a value of the second with the same meaning.
fn widens(from: &str, to: &str) -> bool {
    fn inside<'a>(outer: &str, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(outer)?
            .strip_prefix('(')?
            .strip_suffix(')')
    }
    let plain = |name| inside("LowCardinality", name).unwrap_or(name);
    let (from, to) = (plain(from), plain(to));
    let (from, to) = match (inside("Nullable", from), inside("Nullable", to)) {
        (Some(_), None) => return false,
        (from_inside, to_inside) => (from_inside.unwrap_or(from), to_inside.unwrap_or(to)),
    };
    let bits = |name: &str, kind| {
        name.strip_prefix(kind)
            .and_then(|bits| bits.parse::<u16>().ok())
    };
    let grows =
        |kind| matches!((bits(from, kind), bits(to, kind)), (Some(from), Some(to)) if from <= to);
    from == to || ["UInt", "Int", "Float"].into_iter().any(grows)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn options() -> SchemaOptions {
        SchemaOptions {
            database: "d".to_owned(),
            cluster: None,
            engine: Engine::Plain,
            dedup_window: 100,
            dedup_age: Duration::from_secs(60),
            views: true,
            reject_ttl: Duration::from_secs(3600),
        }
    }

    /// Returns the declaration of `rejected_lines`, which has every kind of part.
    fn declared() -> Declared {
        declared_with(&options())
    }

    fn declared_with(options: &SchemaOptions) -> Declared {
        let mut tables = tables(&Catalog::builtin(), options).into_iter();
        let table = tables.find(|table| table.name == "rejected_lines").unwrap();
        Declared {
            types: table
                .columns
                .iter()
                .map(|c| c.column_type.clone())
                .collect(),
            sorting_key: "source_path, source_etag, row_number".to_owned(),
            partition_key: String::new(),
            table,
        }
    }

    fn found(declared: &Declared) -> Found {
        let columns = declared.table.columns.iter().zip(&declared.types);
        Found {
            name: declared.table.name.clone(),
            engine: "ReplacingMergeTree".to_owned(),
            engine_full: "ReplacingMergeTree(ingested_at) ORDER BY (source_path, source_etag, \
                          row_number) TTL toDateTime(ingested_at) + toIntervalSecond(3600) SETTINGS \
                          non_replicated_deduplication_window = 100, index_granularity = 8192"
                .to_owned(),
            sorting_key: declared.sorting_key.clone(),
            partition_key: String::new(),
            columns: columns
                .map(|(column, column_type)| FoundColumn {
                    name: column.name.clone(),
                    column_type: column_type.clone(),
                })
                .collect(),
        }
    }

    fn planned(options: &SchemaOptions, declared: &Declared, found: &Found) -> Plan {
        let mut plan = Plan::default();
        plan.evolve(options, declared, found);
        plan
    }

    #[test]
    fn a_table_that_is_as_declared_is_left_alone() {
        let declared = declared();
        let found = found(&declared);
        assert_eq!(planned(&options(), &declared, &found), Plan::default());
    }

    #[test]
    fn missing_columns_are_added_in_their_place() {
        let declared = declared();
        let mut found = found(&declared);
        found.columns.retain(|column| column.name != "raw");
        let plan = planned(&options(), &declared, &found);
        assert_eq!(
            plan.statements[0].sql,
            "ALTER TABLE `d`.`rejected_lines` ADD COLUMN IF NOT EXISTS `raw` String CODEC(ZSTD) \
             AFTER `row_number`"
        );
    }

    #[test]
    fn windows_and_retention_follow_the_configuration() {
        let declared = declared();
        let mut found = found(&declared);
        found.engine_full = found.engine_full.replace("= 100", "= 1000");
        found.engine_full = found.engine_full.replace("3600", "36000");
        let plan = planned(&options(), &declared, &found);
        let sql: Vec<_> = plan.statements.iter().map(|s| s.sql.as_str()).collect();
        assert_eq!(
            sql,
            [
                "ALTER TABLE `d`.`rejected_lines` MODIFY SETTING \
                 non_replicated_deduplication_window = 100",
                "ALTER TABLE `d`.`rejected_lines` MODIFY TTL toDateTime(`ingested_at`) + \
                 toIntervalSecond(3600)"
            ]
        );
    }

    /// The defaults of a server can be shorter: an hour since ClickHouse 25.10.
    #[test]
    fn both_windows_of_replicated_tables_follow_the_configuration() {
        let options = SchemaOptions {
            engine: Engine::Replicated,
            ..options()
        };
        let declared = declared_with(&options);
        let engine_full = |settings: &str| {
            format!(
                "ReplicatedReplacingMergeTree('/clickhouse/tables/{{uuid}}/{{shard}}', \
                 '{{replica}}', ingested_at) ORDER BY (source_path, source_etag, row_number) TTL \
                 toDateTime(ingested_at) + toIntervalSecond(3600) SETTINGS {settings}\
                 index_granularity = 8192"
            )
        };
        let changes = |settings: &str| {
            let found = Found {
                engine: "ReplicatedReplacingMergeTree".to_owned(),
                engine_full: engine_full(settings),
                ..found(&declared)
            };
            assert!(found.is_replicated());
            let statements = planned(&options, &declared, &found).statements;
            let sql = statements.into_iter().map(|statement| statement.sql);
            sql.collect::<Vec<_>>().join("; ")
        };
        let alter = "ALTER TABLE `d`.`rejected_lines` MODIFY SETTING";
        let window = "replicated_deduplication_window = 100";
        let seconds = "replicated_deduplication_window_seconds = 60";
        assert_eq!(changes(""), format!("{alter} {window}, {seconds}"));
        assert_eq!(
            changes(&format!("{window}, ")),
            format!("{alter} {seconds}")
        );
        assert_eq!(
            changes(&format!(
                "replicated_deduplication_window = 10000, {seconds}, "
            )),
            format!("{alter} {window}")
        );
        assert_eq!(changes(&format!("{window}, {seconds}, ")), "");
    }

    #[test]
    fn a_change_that_would_alter_rows_is_refused() {
        type Spoil = fn(&mut Found);
        let cases: [(&str, Spoil); 6] = [
            ("column raw is UInt8", |found| {
                found.columns[3].column_type = "UInt8".to_owned();
            }),
            // The type could be widened if it were not part of the key.
            ("column row_number is UInt32", |found| {
                found.columns[2].column_type = "UInt32".to_owned();
            }),
            ("its engine is Log", |found| found.engine = "Log".to_owned()),
            ("its engine is MergeTree", |found| {
                found.engine = "MergeTree".to_owned();
            }),
            ("it is sorted by a", |found| {
                found.sorting_key = "a".to_owned()
            }),
            ("it is partitioned by a", |found| {
                found.partition_key = "a".to_owned();
            }),
        ];
        for (says, spoil) in cases {
            let declared = declared();
            let mut found = found(&declared);
            spoil(&mut found);
            let plan = planned(&options(), &declared, &found);
            assert_eq!(plan.statements, [], "{says}");
            assert!(plan.refusals[0].problem.starts_with(says), "{plan:?}");
        }
    }

    #[test]
    fn tables_of_clickhouse_cloud_count_as_replicated() {
        let declared = declared();
        let mut found = found(&declared);
        let replicated = SchemaOptions {
            engine: Engine::Replicated,
            ..options()
        };
        let plan = planned(&replicated, &declared, &found);
        assert_eq!(plan.refusals.len(), 1, "{plan:?}");
        found.engine = "SharedReplacingMergeTree".to_owned();
        assert_eq!(planned(&replicated, &declared, &found), Plan::default());
    }

    #[test]
    fn columns_that_are_no_longer_declared_stay() {
        let declared = declared();
        let mut found = found(&declared);
        found.columns.push(FoundColumn {
            name: "old".to_owned(),
            column_type: "String".to_owned(),
        });
        let plan = planned(&options(), &declared, &found);
        assert_eq!((plan.statements.len(), plan.refusals.len()), (0, 0));
        assert!(plan.kept[0].ends_with("old"), "{plan:?}");
    }

    #[test]
    fn a_wider_type_holds_every_value() {
        for (from, to) in [
            ("String", "LowCardinality(String)"),
            ("LowCardinality(String)", "Nullable(String)"),
            ("Int32", "Int64"),
            ("UInt8", "Nullable(UInt16)"),
            ("Nullable(Float32)", "Nullable(Float64)"),
        ] {
            assert!(widens(from, to), "{from} {to}");
        }
        for (from, to) in [
            ("Nullable(String)", "String"),
            ("Int64", "Int32"),
            ("Int32", "UInt64"),
            ("Int64", "Float64"),
            ("String", "Int64"),
            ("DateTime", "DateTime64(3)"),
            ("Nullable(Int64)", "Nullable(String)"),
        ] {
            assert!(!widens(from, to), "{from} {to}");
        }
    }

    #[test]
    fn a_key_in_parentheses_is_the_same_key() {
        assert_eq!(bare("(id)"), bare("id"));
        assert_eq!(bare("(a, b)"), "a, b");
        assert_eq!(bare("(f(a), g(b))"), "(f(a), g(b))");
    }
}
