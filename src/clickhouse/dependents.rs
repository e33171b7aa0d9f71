//! Finds users' materialized views on the tables that Sluice fills, at any depth.
//!
//! A view's rows are inserted with those of its source. If that insert is repeated, the target of
//! the view must also recognise the repetition. A rollback does not delete rows from the target.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::clickhouse::{Warehouse, WarehouseError};
use crate::event_types::Catalog;
use crate::sql;
use crate::statements::ddl::{SchemaOptions, Statement};
use crate::statements::select::Target;

/// The setting by which non-replicated tables remember the tokens of inserts.
const PLAIN_WINDOW: &str = "non_replicated_deduplication_window";
/// The corresponding setting of replicated tables.
const REPLICATED_WINDOW: &str = "replicated_deduplication_window";

/// The name of a table or view of any database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Name {
    pub database: String,
    pub name: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.database, self.name)
    }
}

impl Name {
    fn qualified(&self) -> String {
        sql::qualified(&self.database, &self.name)
    }
}

/// A view that reads what is inserted into a table of Sluice, or into the target of such a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dependent {
    pub view: Name,
    /// The table that the view fills, or `None` if its definition does not show it.
    pub target: Option<Name>,
    pub memory: Memory,
}

/// Whether the target of a view recognises a repeated insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    Remembers,
    /// It would with another setting.
    Forgets,
    /// Its engine cannot, or the table is not known.
    Never,
}

impl Dependent {
    /// Describes the problem of a view whose target does not recognise a repeated insert.
    pub fn problem(&self) -> String {
        let target = match &self.target {
            Some(target) => format!("its target table {target}"),
            None => "its target table".to_owned(),
        };
        format!(
            "view {}: {target} does not recognise a repeated insert: a retry duplicates rows",
            self.view
        )
    }

    /// Returns what to do about the problem.
    pub fn advice(&self) -> &'static str {
        match self.memory {
            Memory::Remembers => "no action needed",
            Memory::Forgets => {
                "run `sluice migrate --adopt-views` to set the table's deduplication window"
            }
            Memory::Never => {
                "have the view fill a MergeTree-family table with a deduplication window"
            }
        }
    }
}

/// A row of `system.tables`.
#[derive(Debug, Deserialize)]
struct Row {
    database: String,
    name: String,
    engine: String,
    engine_full: String,
    uuid: String,
    create_table_query: String,
    dependencies_database: Vec<String>,
    dependencies_table: Vec<String>,
}

impl Row {
    fn named(&self) -> Name {
        Name {
            database: self.database.clone(),
            name: self.name.clone(),
        }
    }

    fn dependencies(&self) -> impl Iterator<Item = Name> {
        let databases = self.dependencies_database.iter().cloned();
        databases
            .zip(self.dependencies_table.iter().cloned())
            .map(|(database, name)| Name { database, name })
    }

    fn is_view(&self) -> bool {
        self.engine.ends_with("View")
    }
}

/// The number of inserts that a table remembers unless its own settings differ.
#[derive(Debug, Clone, Copy)]
struct Defaults {
    plain: u64,
    replicated: u64,
}

impl Defaults {
    /// The defaults of a server whose configuration does not change them.
    const OF_CLICKHOUSE: Self = Self {
        plain: 0,
        replicated: 10_000,
    };
}

/// Returns every view that reads what is inserted into the tables of these declarations, except
/// those that Sluice itself has created.
///
/// # Errors
///
/// Fails if the server does not respond.
pub async fn dependents(
    warehouse: &Warehouse,
    catalog: &Catalog,
) -> Result<Vec<Dependent>, WarehouseError> {
    let rows = reached(warehouse, catalog).await?;
    let views: Vec<&Row> = rows.iter().filter(|row| row.is_view()).collect();
    if views.is_empty() {
        return Ok(Vec::new());
    }
    let defaults = defaults(warehouse).await?;
    let dependents = views.into_iter().map(|view| {
        let target = target_of(view);
        let mut rows = rows.iter();
        let of_target = rows.find(|row| Some(row.named()) == target);
        Dependent {
            view: view.named(),
            memory: of_target.map_or(Memory::Never, |row| memory(row, defaults)),
            target,
        }
    });
    Ok(dependents.collect())
}

/// Returns the tables that such views fill, as text for messages, or `None` if there are no views.
///
/// # Errors
///
/// Fails if the server does not respond.
pub async fn filled_by_views(
    warehouse: &Warehouse,
    catalog: &Catalog,
) -> Result<Option<String>, WarehouseError> {
    let rows = reached(warehouse, catalog).await?;
    let views = rows.iter().filter(|row| row.is_view());
    let filled = views.map(|view| match target_of(view) {
        Some(target) => format!("{target} (by the view {})", view.named()),
        None => format!("the target table of the view {}", view.named()),
    });
    let filled: Vec<String> = filled.collect();
    Ok((!filled.is_empty()).then(|| filled.join(", ")))
}

/// Returns the tables of these declarations, the views on them, the tables that those views fill,
/// and so on.
async fn reached(warehouse: &Warehouse, catalog: &Catalog) -> Result<Vec<Row>, WarehouseError> {
    let mut next: BTreeSet<Name> = Target::all(catalog)
        .iter()
        .map(|target| Name {
            database: warehouse.database().to_owned(),
            name: target.table().to_owned(),
        })
        .collect();
    let mut seen = BTreeSet::new();
    let mut rows: Vec<Row> = Vec::new();
    while !next.is_empty() {
        seen.extend(next.iter().cloned());
        let found = described(warehouse, &next).await?;
        next = BTreeSet::new();
        for row in found {
            next.extend(row.dependencies());
            next.extend(target_of(&row));
            rows.push(row);
        }
        next.retain(|name| !seen.contains(name));
    }
    Ok(rows)
}

/// Returns the statements that set a deduplication window on every target that supports one.
pub fn adopt(dependents: &[Dependent], options: &SchemaOptions) -> Vec<Statement> {
    let forgets = |it: &&Dependent| it.memory == Memory::Forgets;
    let forgetful = dependents.iter().filter(forgets);
    let targets: BTreeSet<&Name> = forgetful.filter_map(|it| it.target.as_ref()).collect();
    let statement = |target: &Name| Statement {
        what: format!("deduplication window of table {target}"),
        sql: format!(
            "ALTER TABLE {}{} MODIFY SETTING {PLAIN_WINDOW} = {}",
            target.qualified(),
            options.on_cluster(),
            options.dedup_window,
        ),
    };
    targets.into_iter().map(statement).collect()
}

async fn described(
    warehouse: &Warehouse,
    names: &BTreeSet<Name>,
) -> Result<Vec<Row>, WarehouseError> {
    let databases: BTreeSet<&str> = names.iter().map(|it| it.database.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|it| it.name.as_str()).collect();
    let sql = format!(
        "SELECT database, name, engine, engine_full, toString(uuid) AS uuid, create_table_query, \
         dependencies_database, dependencies_table FROM system.tables \
         WHERE database IN ({}) AND name IN ({}) ORDER BY database, name",
        sql::strings(databases),
        sql::strings(&tables),
    );
    let mut rows: Vec<Row> = warehouse.rows(&sql).await?;
    rows.retain(|row| names.contains(&row.named()));
    Ok(rows)
}

async fn defaults(warehouse: &Warehouse) -> Result<Defaults, WarehouseError> {
    #[derive(Deserialize)]
    struct Setting {
        name: String,
        value: String,
    }
    let names = [PLAIN_WINDOW, REPLICATED_WINDOW];
    let sql = format!(
        "SELECT name, value FROM system.merge_tree_settings WHERE name IN ({})",
        sql::strings(names)
    );
    let settings: Vec<Setting> = match warehouse.rows(&sql).await {
        // The user may lack the grant to see them.
        Err(WarehouseError::Server { .. }) => return Ok(Defaults::OF_CLICKHOUSE),
        settings => settings?,
    };
    let value = |name: &str| {
        let setting = settings.iter().find(|it| it.name == name);
        setting.and_then(|it| it.value.parse().ok()).unwrap_or(0)
    };
    Ok(Defaults {
        plain: value(PLAIN_WINDOW),
        replicated: value(REPLICATED_WINDOW),
    })
}

fn memory(target: &Row, defaults: Defaults) -> Memory {
    let engine = &target.engine;
    if engine == "Null" {
        // It stores no rows that could be duplicated.
        return Memory::Remembers;
    }
    if !engine.ends_with("MergeTree") {
        return Memory::Never;
    }
    let (setting, default) = if engine.starts_with("Replicated") || engine.starts_with("Shared") {
        (REPLICATED_WINDOW, defaults.replicated)
    } else {
        (PLAIN_WINDOW, defaults.plain)
    };
    if own_setting(&target.engine_full, setting).unwrap_or(default) > 0 {
        Memory::Remembers
    } else if setting == PLAIN_WINDOW {
        Memory::Forgets
    } else {
        // Replicated tables remember tokens by default, so this was turned off on purpose.
        Memory::Never
    }
}

/// Returns the value of a setting in `system.tables.engine_full`.
fn own_setting(engine_full: &str, name: &str) -> Option<u64> {
    let settings = engine_full.rsplit_once("SETTINGS ")?.1;
    let assignments = settings.split(", ").filter_map(|it| it.split_once(" = "));
    let mut of_name = assignments.filter(|(of, _)| *of == name);
    of_name.next()?.1.parse().ok()
}

/// Returns the table that a materialized view fills: the one after TO, or its own inner table.
fn target_of(view: &Row) -> Option<Name> {
    if view.engine != "MaterializedView" {
        return None;
    }
    let definition = view
        .create_table_query
        .strip_prefix("CREATE MATERIALIZED VIEW ")?;
    let (_, rest) = identifier(definition)?;
    let (_, rest) = identifier(rest.strip_prefix('.')?)?;
    if let Some(target) = rest.strip_prefix(" TO ") {
        let (database, rest) = identifier(target)?;
        let (name, _) = identifier(rest.strip_prefix('.')?)?;
        return Some(Name { database, name });
    }
    // The list of columns.
    rest.strip_prefix(" (")?;
    Some(Name {
        database: view.database.clone(),
        name: if view.uuid == UUID_OF_NONE {
            format!(".inner.{}", view.name)
        } else {
            format!(".inner_id.{}", view.uuid)
        },
    })
}

/// The UUID of tables in databases whose engine assigns none.
const UUID_OF_NONE: &str = "00000000-0000-0000-0000-000000000000";

/// Reads an identifier in ClickHouse's spelling, and returns it with the text that follows.
fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('`') else {
        let end = text.find(|it: char| !it.is_alphanumeric() && it != '_');
        let (name, rest) = text.split_at(end.unwrap_or(text.len()));
        return (!name.is_empty()).then(|| (name.to_owned(), rest));
    };
    let mut name = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '`' => return Some((name, &quoted[at + 1..])),
            '\\' => name.push(characters.next()?.1),
            other => name.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(definition: &str) -> Row {
        Row {
            database: "d".to_owned(),
            name: "v".to_owned(),
            engine: "MaterializedView".to_owned(),
            engine_full: String::new(),
            uuid: "39eadcc8-fbdf-45f4-9e6b-b01eb54f49d1".to_owned(),
            create_table_query: definition.to_owned(),
            dependencies_database: Vec::new(),
            dependencies_table: Vec::new(),
        }
    }

    #[test]
    fn the_target_of_a_view_is_read_from_its_definition() {
        let target = |definition: &str| target_of(&view(definition)).map(|it| it.to_string());
        assert_eq!(
            target("CREATE MATERIALIZED VIEW d.v TO other.t (`x` UInt8) AS SELECT x FROM d.e"),
            Some("other.t".to_owned())
        );
        assert_eq!(
            target("CREATE MATERIALIZED VIEW `a-b`.`v``.v` TO d.t AS SELECT 1"),
            None
        );
        assert_eq!(
            target(
                r"CREATE MATERIALIZED VIEW `a-b`.`v\`.v` TO `o p`.`t.t` (`x` UInt8) AS SELECT 1"
            ),
            Some("o p.t.t".to_owned())
        );
        assert_eq!(
            target("CREATE MATERIALIZED VIEW d.v (`x` UInt8) ENGINE = MergeTree AS SELECT ' TO '"),
            Some("d..inner_id.39eadcc8-fbdf-45f4-9e6b-b01eb54f49d1".to_owned())
        );
    }

    #[test]
    fn a_table_remembers_tokens_according_to_its_settings_or_the_defaults() {
        let of = |engine: &str, settings: &str, plain| {
            let row = Row {
                engine: engine.to_owned(),
                engine_full: format!("{engine} ORDER BY x SETTINGS {settings}"),
                ..view("")
            };
            let replicated = 10_000;
            memory(&row, Defaults { plain, replicated })
        };
        let granularity = "index_granularity = 8192";
        let window = "non_replicated_deduplication_window = 100, index_granularity = 8192";
        assert_eq!(of("SummingMergeTree", granularity, 0), Memory::Forgets);
        assert_eq!(of("SummingMergeTree", granularity, 10), Memory::Remembers);
        assert_eq!(of("SummingMergeTree", window, 0), Memory::Remembers);
        assert_eq!(of("ReplicatedMergeTree", granularity, 0), Memory::Remembers);
        let off = "replicated_deduplication_window = 0";
        assert_eq!(of("ReplicatedMergeTree", off, 0), Memory::Never);
        assert_eq!(of("Memory", granularity, 0), Memory::Never);
        assert_eq!(of("Null", granularity, 0), Memory::Remembers);
    }
}
