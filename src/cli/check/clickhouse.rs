//! Checks that ClickHouse answers, its version, its tables, and other views of them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::report::Check;
use crate::cli::app::App;
use crate::clickhouse::dependents::{Dependent, Memory, dependents};
use crate::clickhouse::error_class::diagnosis;
use crate::clickhouse::migrate::Plan;
use crate::clickhouse::{Warehouse, WarehouseError, migrate};
use crate::config::Config;
use crate::event_types::Catalog;
use crate::formats::Formats;
use crate::sql;
use crate::statements::insert::setting_names;

const CLICKHOUSE: &str = "clickhouse";
const VERSION: &str = "version";
pub(super) const TABLES: &str = "tables";
const VIEWS: &str = "views";

/// The version that Sluice is tested with.
const TESTED: (u32, u32) = (26, 7);

/// The oldest version that is supported: the first with long-term support that has every setting of
/// an insert (`input_format_max_block_wait_ms` came with 26.2).
const OLDEST: (u32, u32) = (26, 3);

/// Checks that ClickHouse answers, and returns its version if it does.
pub(super) async fn reach(config: &Config, warehouse: &Warehouse) -> (Check, Option<String>) {
    match version(warehouse).await {
        Ok(version) => {
            let (url, user) = (&config.clickhouse.url, &config.clickhouse.user);
            let answers = format!("connected to {url} as user {user}");
            (Check::pass(CLICKHOUSE, answers), Some(version))
        }
        Err(error) => (failed(CLICKHOUSE, &error), None),
    }
}

pub(super) fn skipped() -> [Check; 3] {
    [VERSION, TABLES, VIEWS].map(|name| Check::skip(name, NO_CLICKHOUSE))
}

pub(super) async fn check(
    app: &App<'_>,
    catalog: &Catalog,
    warehouse: &Warehouse,
    version: &str,
) -> Vec<Check> {
    let version = match unknown_settings(warehouse, catalog.formats()).await {
        Ok(unknown) => judge_version(version, &unknown),
        Err(error) => failed(VERSION, &error),
    };
    vec![
        version,
        check_tables(app, catalog, warehouse).await,
        check_views(catalog, warehouse).await,
    ]
}

/// Checks that the tables that users' own views fill drop repeated inserts.
async fn check_views(catalog: &Catalog, warehouse: &Warehouse) -> Check {
    let views = match dependents(warehouse, catalog).await {
        Ok(views) => views,
        Err(error) => return failed(VIEWS, &error),
    };
    let forgetful: Vec<&Dependent> = views
        .iter()
        .filter(|view| view.memory != Memory::Remembers)
        .collect();
    match (views.len(), forgetful.first()) {
        (0, _) => Check::pass(VIEWS, "no other views read the tables"),
        (_, Some(first)) => {
            let problems: Vec<String> = forgetful.iter().map(|view| view.problem()).collect();
            Check::warn(VIEWS, problems.join("; "), first.advice())
        }
        (count, None) => Check::pass(
            VIEWS,
            format!("{count} other views; the tables that they fill drop repeated inserts"),
        ),
    }
}

pub(super) const NO_CLICKHOUSE: &str = "ClickHouse could not be queried";

/// Returns a failed check with the advice that `run` would log.
pub(super) fn failed(name: &'static str, error: &WarehouseError) -> Check {
    Check::fail(
        name,
        error.to_string(),
        diagnosis(error)
            .advice
            .unwrap_or("see the error from ClickHouse"),
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

/// Returns the settings of this user's session by name, without those that the server lacks.
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

async fn unknown_settings(
    warehouse: &Warehouse,
    formats: &Formats,
) -> Result<Vec<&'static str>, WarehouseError> {
    let known = settings(warehouse, setting_names(formats)).await?;
    let mut unknown: Vec<_> = setting_names(formats)
        .filter(|name| !known.contains_key(*name))
        .collect();
    unknown.dedup();
    Ok(unknown)
}

fn judge_version(version: &str, unknown_settings: &[&str]) -> Check {
    let [tested, oldest] = [TESTED, OLDEST].map(|(year, month)| format!("{year}.{month}"));
    if !unknown_settings.is_empty() {
        return Check::fail(
            VERSION,
            format!(
                "{version} lacks settings that inserts need: {}",
                unknown_settings.join(", ")
            ),
            format!("upgrade ClickHouse to {oldest} or newer; Sluice is tested with {tested}"),
        );
    }
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    let of_server = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let problem = if of_server < OLDEST {
        format!("{version} is older than {oldest}, the oldest supported version")
    } else if of_server < TESTED {
        format!("{version} has all settings that inserts need, but Sluice is not tested with it")
    } else {
        return Check::pass(VERSION, version);
    };
    Check::warn(
        VERSION,
        problem,
        format!("upgrade ClickHouse to {tested}, with which Sluice is tested"),
    )
}

async fn check_tables(app: &App<'_>, catalog: &Catalog, warehouse: &Warehouse) -> Check {
    match migrate::plan(warehouse, catalog, &app.schema_options()).await {
        Ok(plan) => judge_tables(&plan, warehouse.database()),
        Err(error) => failed(TABLES, &error),
    }
}

fn judge_tables(plan: &Plan, database: &str) -> Check {
    if let Some(refusal) = plan.refusals.first() {
        let all = plan.refusals.iter();
        let all = all.map(|refusal| format!("{}: {}", refusal.table, refusal.problem));
        let all: Vec<String> = all.collect();
        return Check::fail(TABLES, all.join("; "), &refusal.advice);
    }
    if plan.statements.is_empty() {
        return Check::pass(TABLES, format!("as declared, in {database}"));
    }
    let changes = plan.statements.iter();
    let changes: Vec<&str> = changes.map(|change| change.what.as_str()).collect();
    Check::fail(
        TABLES,
        format!(
            "missing in {database}, hidden from this user, or not as declared: {}",
            changes.join(", ")
        ),
        "run `sluice migrate`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::report::Outcome;

    #[test]
    fn a_version_is_judged_by_what_it_knows() {
        for (version, unknown, expected, says) in [
            ("26.7.2.1", [].as_slice(), Outcome::Pass, "26.7.2.1"),
            ("27.1.1.1", &[], Outcome::Pass, "27.1.1.1"),
            ("26.6.9.9", &[], Outcome::Warn, "is not tested"),
            ("26.3.9.1", &[], Outcome::Warn, "is not tested"),
            ("26.2.1.1", &[], Outcome::Warn, "older than 26.3"),
            ("25.12.1.1", &[], Outcome::Warn, "older than 26.3"),
            (
                "26.7.2.1",
                &["max_block_size"],
                Outcome::Fail,
                "max_block_size",
            ),
        ] {
            let check = judge_version(version, unknown);
            assert_eq!(check.result, expected, "{check:?}");
            assert!(check.detail.contains(says), "{check:?}");
        }
    }
}
