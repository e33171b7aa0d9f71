//! Finds columns in which no row has a value, such as those whose declared path is mistyped.
//!
//! A missing value is not an error: ClickHouse stores the column's default. [`EmptyColumns`] looks
//! at the first rows of each event type that a process loads, and warns once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use tracing::{debug, warn};

use super::ports::BatchTables;
use crate::batch::BatchId;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::event_types::{Column, EventType};
use crate::sql;

/// The number of rows from which a column without a value is reported. In fewer rows, values can be
/// missing by chance.
pub const MIN_ROWS: u64 = 100;

/// The result of examining some rows of a table.
#[derive(Debug)]
pub struct Seen {
    pub rows: u64,
    /// The columns in which every row has the default value.
    pub empty: Vec<String>,
}

/// Looks for values in these columns of a table, in the rows that the clause `rows` selects
/// (`WHERE …`, `LIMIT …`).
pub async fn look_at(
    warehouse: &Warehouse,
    table: &str,
    columns: &[&Column],
    rows: &str,
) -> Result<Seen, WarehouseError> {
    #[derive(Deserialize)]
    struct Row {
        rows: u64,
        values: Vec<u64>,
    }
    // A SELECT needs a column even if `columns` is empty. Every table has `batch_id`.
    let mut read = vec!["batch_id".to_owned()];
    read.extend(columns.iter().map(|column| sql::ident(&column.name)));
    let values = columns.iter().map(|column| {
        // Qualified with the table, the name cannot refer to a column of the result.
        let name = format!("looked_at.{}", sql::ident(&column.name));
        if column.column_type.is_nullable() {
            format!("countIf(isNotNull({name}))")
        } else {
            format!("countIf({name} != defaultValueOfArgumentType({name}))")
        }
    });
    let query = format!(
        "SELECT count() AS rows, [{}] AS values FROM (SELECT {} FROM {} {rows}) AS looked_at",
        values.collect::<Vec<_>>().join(", "),
        read.join(", "),
        warehouse.table(table),
    );
    let counted: Vec<Row> = warehouse.rows(&query).await?;
    let Some(Row { rows, values }) = counted.into_iter().next() else {
        return Err(WarehouseError::Unknown(
            "the count query returned no row".to_owned(),
        ));
    };
    let columns = columns.iter().zip(values);
    let empty = columns.filter(|(_, values)| *values == 0);
    Ok(Seen {
        rows,
        empty: empty.map(|(column, _)| column.name.clone()).collect(),
    })
}

/// The columns of each event type in which this process has seen no value, by the type's name.
#[derive(Debug, Default)]
pub struct EmptyColumns {
    types: Mutex<HashMap<String, Watched>>,
}

#[derive(Debug)]
struct Watched {
    /// Columns in which no row so far had a value. Empty once enough rows were looked at.
    columns: Vec<String>,
    rows: u64,
}

impl EmptyColumns {
    /// Looks at the rows of a loaded batch, unless enough rows of the event type have been looked
    /// at. The batch stays loaded whatever the result.
    pub(super) async fn look_at_batch(
        &self,
        tables: &impl BatchTables,
        event_type: &EventType,
        batch: BatchId,
    ) {
        let columns = self.to_look_at(event_type);
        if columns.is_empty() {
            return;
        }
        match tables.look_at(event_type, &columns, batch).await {
            Ok(seen) => {
                if let Some(columns) = self.note(&event_type.name, &seen) {
                    warn!(
                        event_type = event_type.name,
                        table = event_type.table,
                        columns = columns.join(", "),
                        "some columns have no value in any loaded row; their declared paths may \
                         be mistyped: run `sluice types preview` on an object"
                    );
                }
            }
            Err(error) => debug!(%error, "failed to look for columns without a value"),
        }
    }

    /// Returns the columns in which no row so far had a value, or none if enough rows were looked
    /// at.
    fn to_look_at<'a>(&self, event_type: &'a EventType) -> Vec<&'a Column> {
        let mut columns = event_type.optional_columns();
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = types
            .entry(event_type.name.clone())
            .or_insert_with(|| Watched {
                columns: columns.iter().map(|column| column.name.clone()).collect(),
                rows: 0,
            });
        columns.retain(|column| watched.columns.contains(&column.name));
        columns
    }

    /// Returns, once, the columns to warn about: those in which none of enough rows had a value.
    fn note(&self, event_type: &str, seen: &Seen) -> Option<Vec<String>> {
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = types.get_mut(event_type)?;
        watched.columns.retain(|column| seen.empty.contains(column));
        watched.rows += seen.rows;
        if watched.rows < MIN_ROWS || watched.columns.is_empty() {
            return None;
        }
        Some(std::mem::take(&mut watched.columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_types::Catalog;

    fn event_type() -> EventType {
        let declared = "
table: clicks
rule: {path: [verb], equals: click}
order_by: [id]
columns:
- {name: id, type: String, path: [id], otherwise: line_hash}
- {name: at, type: \"DateTime64(3, 'UTC')\", path: [at], required: true}
- {name: shop, type: String, path: [shop]}
- {name: price, type: Nullable(Float64), path: [price]}
";
        let files = [("click.yaml".to_owned(), declared.to_owned())];
        let catalog = Catalog::from_files(files).unwrap();
        catalog.get("click").unwrap().clone()
    }

    fn seen(rows: u64, empty: &[&str]) -> Seen {
        let empty = empty.iter().map(|&column| column.to_owned());
        Seen {
            rows,
            empty: empty.collect(),
        }
    }

    #[track_caller]
    fn assert_looks_at(columns: &EmptyColumns, expected: &[&str]) {
        let event_type = event_type();
        let columns = columns.to_look_at(&event_type).into_iter();
        let names: Vec<&str> = columns.map(|column| column.name.as_str()).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn columns_that_stay_empty_are_reported_once_enough_rows_were_seen() {
        let columns = EmptyColumns::default();
        assert_looks_at(&columns, &["shop", "price"]);
        assert_eq!(columns.note("click", &seen(MIN_ROWS - 1, &["shop"])), None);
        assert_looks_at(&columns, &["shop"]);
        let warned = columns.note("click", &seen(1, &["shop"]));
        assert_eq!(warned, Some(vec!["shop".to_owned()]));
        // Another batch was being looked at.
        assert_eq!(columns.note("click", &seen(MIN_ROWS, &["shop"])), None);
        assert_looks_at(&columns, &[]);
    }

    #[test]
    fn once_all_columns_have_values_no_more_rows_are_examined() {
        let columns = EmptyColumns::default();
        assert_looks_at(&columns, &["shop", "price"]);
        assert_eq!(columns.note("click", &seen(1, &[])), None);
        assert_looks_at(&columns, &[]);
    }
}
