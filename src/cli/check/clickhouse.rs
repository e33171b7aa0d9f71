//! ClickHouse: does it answer, is it new enough, are the tables as they must be?

use std::collections::BTreeMap;

use serde::Deserialize;

use super::report::Check;
use crate::cli::run::tables;
use crate::config::{Config, LoadStrategy, TableEngine};
use crate::event_types::Catalog;
use crate::event_types::select::Target;
use crate::load::verdict::advice;
use crate::plan::setting_names;
use crate::schema::view_name;
use crate::sql;
use crate::warehouse::{Warehouse, WarehouseError};

const CLICKHOUSE: &str = "clickhouse";
const VERSION: &str = "version";
const CONSISTENCY: &str = "consistency";
const TABLES: &str = "tables";
const WINDOW: &str = "deduplication window";

/// What the tests of Sluice run on.
const TESTED: (u32, u32) = (26, 7);

/// The version, where it answers.
pub(super) async fn reach(config: &Config, warehouse: &Warehouse) -> (Check, Option<String>) {
    match version(warehouse).await {
        Ok(version) => {
            let (url, user) = (&config.clickhouse.url, &config.clickhouse.user);
            let answers = format!("{url} answers to user {user}");
            (Check::pass(CLICKHOUSE, answers), Some(version))
        }
        Err(error) => (failed(CLICKHOUSE, &error), None),
    }
}

pub(super) fn unasked() -> [Check; 3] {
    [VERSION, TABLES, WINDOW].map(|name| Check::skip(name, NO_CLICKHOUSE))
}

pub(super) async fn check(
    config: &Config,
    catalog: &Catalog,
    warehouse: &Warehouse,
    version: &str,
) -> Vec<Check> {
    let mut checks = vec![match unknown_settings(warehouse).await {
        Ok(unknown) => judge_version(version, &unknown),
        Err(error) => failed(VERSION, &error),
    }];
    if config.clickhouse.engine == TableEngine::Replicated {
        checks.push(
            match settings(warehouse, QUORUM.map(|(name, _)| name)).await {
                Ok(found) => judge_consistency(&found),
                Err(error) => failed(CONSISTENCY, &error),
            },
        );
    }
    checks.extend(check_tables(config, catalog, warehouse).await);
    checks
}

pub(super) const NO_CLICKHOUSE: &str = "ClickHouse does not answer";

/// With what `run` would advise.
fn failed(name: &'static str, error: &WarehouseError) -> Check {
    Check::fail(
        name,
        error.to_string(),
        advice(error).unwrap_or("see what ClickHouse says"),
    )
}

async fn version(warehouse: &Warehouse) -> Result<String, WarehouseError> {
    #[derive(Deserialize)]
    struct Row {
        version: String,
    }
    let rows: Vec<Row> = warehouse.rows("SELECT version() AS version").await?;
    Ok(rows.into_iter().map(|row| row.version).collect())
}

/// Settings of this user's session, by name; those that the server does not have are left out.
async fn settings(
    warehouse: &Warehouse,
    names: impl IntoIterator<Item = &'static str>,
) -> Result<BTreeMap<String, String>, WarehouseError> {
    #[derive(Deserialize)]
    struct Row {
        name: String,
        value: String,
    }
    let names: Vec<&str> = names.into_iter().collect();
    let sql = format!(
        "SELECT name, value FROM system.settings WHERE name IN ({})",
        sql::strings(&names)
    );
    let rows: Vec<Row> = warehouse.rows(&sql).await?;
    Ok(rows.into_iter().map(|row| (row.name, row.value)).collect())
}

async fn unknown_settings(warehouse: &Warehouse) -> Result<Vec<&'static str>, WarehouseError> {
    let known = settings(warehouse, setting_names()).await?;
    let mut unknown: Vec<_> = setting_names()
        .filter(|name| !known.contains_key(*name))
        .collect();
    unknown.dedup();
    Ok(unknown)
}

fn judge_version(version: &str, unknown_settings: &[&str]) -> Check {
    let (year, month) = TESTED;
    if !unknown_settings.is_empty() {
        return Check::fail(
            VERSION,
            format!(
                "{version} does not know the settings {}, which inserts have",
                unknown_settings.join(", ")
            ),
            format!("upgrade ClickHouse; Sluice is tested with {year}.{month}"),
        );
    }
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    let of_server = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    if of_server < TESTED {
        return Check::warn(
            VERSION,
            format!("{version} knows all settings that inserts have, and is not tested"),
            format!("upgrade ClickHouse to {year}.{month}, which is"),
        );
    }
    Check::pass(VERSION, version)
}

/// Under these a read finds what was written before, whichever replica is asked.
const QUORUM: [(&str, &str); 3] = [
    ("insert_quorum", "auto"),
    ("insert_quorum_parallel", "0"),
    ("select_sequential_consistency", "1"),
];

fn judge_consistency(settings: &BTreeMap<String, String>) -> Check {
    let differing: Vec<String> = QUORUM
        .iter()
        .filter(|(name, value)| settings.get(*name).is_none_or(|found| found != value))
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    if differing.is_empty() {
        return Check::pass(CONSISTENCY, "a read finds what any replica has confirmed");
    }
    Check::warn(
        CONSISTENCY,
        "behind a balancer a read of the ledger can miss what another replica has confirmed",
        format!(
            "unless the URL leads to one server always, set for the user: {}",
            differing.join(", ")
        ),
    )
}

#[derive(Deserialize)]
struct Table {
    name: String,
    engine_full: String,
}

async fn check_tables(config: &Config, catalog: &Catalog, warehouse: &Warehouse) -> [Check; 2] {
    let targets: Vec<&str> = Target::all(catalog).iter().map(Target::table).collect();
    let views = match config.load.strategy {
        LoadStrategy::SinglePass => targets.iter().map(|table| view_name(table)).collect(),
        LoadStrategy::PerType => Vec::new(),
    };
    let mut needed = tables(catalog, config.load.strategy);
    needed.extend(views.iter().map(String::as_str));
    let sql = format!(
        "SELECT name, engine_full FROM system.tables WHERE database = {} AND name IN ({})",
        sql::string(warehouse.database()),
        sql::strings(&needed),
    );
    let found: Vec<Table> = match warehouse.rows(&sql).await {
        Ok(found) => found,
        Err(error) => {
            let unasked = Check::skip(WINDOW, "the tables are not known");
            return [failed(TABLES, &error), unasked];
        }
    };
    needed.retain(|name| !found.iter().any(|table| table.name == *name));
    let existence = if needed.is_empty() {
        Check::pass(
            TABLES,
            format!("{} are there in {}", found.len(), warehouse.database()),
        )
    } else {
        Check::fail(
            TABLES,
            format!(
                "missing, or hidden from this user, in {}: {}",
                warehouse.database(),
                needed.join(", ")
            ),
            "run `sluice migrate`",
        )
    };
    let filled: Vec<&Table> = found
        .iter()
        .filter(|table| targets.contains(&table.name.as_str()))
        .collect();
    [
        existence,
        judge_windows(&filled, config.clickhouse.dedup_window),
    ]
}

/// How many blocks a table remembers. Replicated ones do by themselves, plain ones where told.
fn window(engine_full: &str) -> u64 {
    let of_replicated = "replicated_deduplication_window = ";
    let told = engine_full
        .split_once(of_replicated)
        .map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
    match told.flatten().and_then(|number| number.parse().ok()) {
        Some(window) => window,
        None if engine_full.starts_with("Replicated") => 10_000,
        None => 0,
    }
}

fn judge_windows(tables: &[&Table], declared: u64) -> Check {
    if tables.is_empty() {
        return Check::skip(WINDOW, "there are no tables");
    }
    let smaller: Vec<_> = tables
        .iter()
        .map(|table| (table.name.as_str(), window(&table.engine_full)))
        .filter(|(_, window)| *window < declared)
        .collect();
    let Some(least) = smaller.iter().map(|(_, window)| *window).min() else {
        let detail = format!("each table remembers {declared} blocks or more");
        return Check::pass(WINDOW, detail);
    };
    let named: Vec<String> = smaller
        .iter()
        .map(|(name, window)| format!("{name} remembers {window}"))
        .collect();
    let detail = format!(
        "{declared} blocks are to be remembered; {}",
        named.join(", ")
    );
    let advice = format!(
        "ALTER TABLE … MODIFY SETTING non_replicated_deduplication_window = {declared} \
         (replicated_deduplication_window for replicated tables)"
    );
    if least == 0 {
        return Check::fail(
            WINDOW,
            format!("{detail}: an insert that is repeated is there twice"),
            advice,
        );
    }
    Check::warn(WINDOW, detail, advice)
}
