//! Checks that each column of the event tables has a value in some row.

use super::clickhouse::failed;
use super::report::Check;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::event_types::{Catalog, EventType};
use crate::load::empty_columns::{MIN_ROWS, look_at};

const COLUMNS: &str = "columns";

/// The largest number of rows that are examined in each table.
const MAX_ROWS: u64 = 100_000;

pub(super) fn skipped(why: &str) -> Check {
    Check::skip(COLUMNS, why)
}

/// Examines the event tables, all of which must exist.
pub(super) async fn check(warehouse: &Warehouse, catalog: &Catalog) -> Check {
    let mut tables = Vec::new();
    for event_type in catalog.types() {
        match empty_columns(warehouse, event_type).await {
            Ok(Some(empty)) => tables.push((event_type.table.as_str(), empty)),
            Ok(None) => {}
            Err(error) => return failed(COLUMNS, &error),
        }
    }
    judge(&tables)
}

/// Returns the columns without any value, or `None` if the table has too few rows.
async fn empty_columns(
    warehouse: &Warehouse,
    event_type: &EventType,
) -> Result<Option<Vec<String>>, WarehouseError> {
    let columns = event_type.optional_columns();
    let limit = format!("LIMIT {MAX_ROWS}");
    let seen = look_at(warehouse, &event_type.table, &columns, &limit).await?;
    Ok((seen.rows >= MIN_ROWS).then_some(seen.empty))
}

/// Returns the check of the examined `tables`, each with its columns without any value.
fn judge(tables: &[(&str, Vec<String>)]) -> Check {
    let with_empty = tables.iter().filter(|(_, empty)| !empty.is_empty());
    let with_empty = with_empty.map(|(table, empty)| format!("{table} ({})", empty.join(", ")));
    let with_empty: Vec<String> = with_empty.collect();
    if !with_empty.is_empty() {
        return Check::warn(
            COLUMNS,
            format!(
                "columns without a value in any row: {}",
                with_empty.join("; ")
            ),
            "if the statements contain these values, correct the declared paths; `sluice types \
             preview` shows the rows that the lines of an object become",
        );
    }
    match tables.len() {
        0 => skipped(&format!("no event table has {MIN_ROWS} or more rows")),
        examined => Check::pass(
            COLUMNS,
            format!(
                "every column has a value in some row ({examined} event tables with {MIN_ROWS} or \
                 more rows)"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::report::Outcome;

    #[test]
    fn columns_without_a_value_are_named_with_their_table() {
        let empty = |columns: &[&str]| columns.iter().map(|&column| column.to_owned()).collect();
        assert_eq!(judge(&[]).result, Outcome::Skip);
        assert_eq!(judge(&[("clicks", vec![])]).result, Outcome::Pass);
        let check = judge(&[
            ("clicks", empty(&["shop", "price"])),
            ("taps", vec![]),
            ("views", empty(&["page"])),
        ]);
        assert_eq!(check.result, Outcome::Warn);
        assert!(
            check.detail.ends_with("clicks (shop, price); views (page)"),
            "{check:?}"
        );
    }
}
