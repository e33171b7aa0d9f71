//! Does each column of the event tables have a value in any row?

use super::clickhouse::failed;
use super::report::Check;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::event_types::{Catalog, EventType};
use crate::load::empty_columns::{MIN_ROWS, look_at};

const COLUMNS: &str = "columns";

/// Rows of each table that are looked at, at most.
const MAX_ROWS: u64 = 100_000;

pub(super) fn unasked(why: &str) -> Check {
    Check::skip(COLUMNS, why)
}

/// Looks at the event tables, all of which exist.
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

/// Returns the columns without any value; nothing where there are too few rows to tell.
async fn empty_columns(
    warehouse: &Warehouse,
    event_type: &EventType,
) -> Result<Option<Vec<String>>, WarehouseError> {
    let columns = event_type.optional_columns();
    let limit = format!("LIMIT {MAX_ROWS}");
    let seen = look_at(warehouse, &event_type.table, &columns, &limit).await?;
    Ok((seen.rows >= MIN_ROWS).then_some(seen.empty))
}

/// Each table that was looked at, with its columns without any value.
fn judge(tables: &[(&str, Vec<String>)]) -> Check {
    let with_empty = tables.iter().filter(|(_, empty)| !empty.is_empty());
    let with_empty = with_empty.map(|(table, empty)| format!("{table} ({})", empty.join(", ")));
    let with_empty: Vec<String> = with_empty.collect();
    if !with_empty.is_empty() {
        return Check::warn(
            COLUMNS,
            format!(
                "no row has a value in some columns: {}",
                with_empty.join("; ")
            ),
            "if the statements have these values, correct the declared paths: `sluice types \
             preview` shows what becomes of an object's lines",
        );
    }
    match tables.len() {
        0 => unasked(&format!("no event table has {MIN_ROWS} rows")),
        looked_at => Check::pass(
            COLUMNS,
            format!(
                "each has values, in the {looked_at} event tables with {MIN_ROWS} rows or more"
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
