//! Checks whether the server accepts the SQL of the declarations, before anything is changed.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::clickhouse::{Warehouse, WarehouseError};
use crate::event_types::{Catalog, Column, EventType, Problem, Source};
use crate::formats::{Format, Kind};
use crate::sql;
use crate::statements::ddl::{SchemaOptions, event_table};
use crate::statements::select::{landing_columns, stored_value};

/// A column of a query's result.
#[derive(Debug, Deserialize)]
struct Described {
    #[serde(rename = "type")]
    column_type: String,
}

/// Returns the parts of the declarations that the server refuses. Writes nothing.
///
/// # Errors
///
/// Fails if the server does not respond, or refuses to describe even a query without declared SQL.
pub async fn problems(
    warehouse: &Warehouse,
    catalog: &Catalog,
    options: &SchemaOptions,
) -> Result<Vec<Problem>, WarehouseError> {
    let probe = Probe {
        warehouse,
        landing: structure(landing_columns(catalog)),
    };
    // This query has no declared SQL, so an error here is not a problem in a declaration.
    probe.describe("1", &probe.landing).await?;
    let mut problems = Vec::new();
    for event_type in catalog.types() {
        problems.extend(probe.columns(event_type).await?);
        problems.extend(probe.partition_key(event_type, options).await?);
    }
    for format in catalog.formats().declared() {
        problems.extend(probe.pattern(format).await?);
    }
    Ok(problems)
}

struct Probe<'a> {
    warehouse: &'a Warehouse,
    /// The structure of the landing table.
    landing: String,
}

impl Probe<'_> {
    /// Checks all columns at once, and each by itself only if the server refuses them.
    async fn columns(&self, event_type: &EventType) -> Result<Vec<Problem>, WarehouseError> {
        let all: Vec<_> = event_type.columns.iter().collect();
        let Some(error) = self.refusal(&all).await? else {
            return Ok(Vec::new());
        };
        let mut problems = Vec::new();
        for column in all {
            if let Some(error) = self.refusal(&[column]).await? {
                problems.push(refused_column(event_type, column, &error));
            }
        }
        if problems.is_empty() {
            problems.push(Problem {
                file: event_type.file.clone(),
                at: "columns".to_owned(),
                position: None,
                message: format!(
                    "event type {}: ClickHouse refuses these columns together: {error}",
                    event_type.name
                ),
            });
        }
        Ok(problems)
    }

    async fn partition_key(
        &self,
        event_type: &EventType,
        options: &SchemaOptions,
    ) -> Result<Option<Problem>, WarehouseError> {
        let Some(expression) = &event_type.partition_by else {
            return Ok(None);
        };
        let table = event_table(event_type, options);
        let columns = table.columns.into_iter();
        let columns = structure(columns.map(|column| (column.name, column.column_type)));
        let answer = self.describe(&format!("({expression})"), &columns).await;
        let reason = match answer {
            Ok(described) => described
                .iter()
                .find_map(|key| unusable_key(&key.column_type)),
            Err(error) if error.code().is_some() => {
                Some(format!("ClickHouse refuses {expression:?}: {error}"))
            }
            Err(error) => return Err(error),
        };
        Ok(reason.map(|reason| Problem {
            file: event_type.partition_by_file.clone(),
            at: "partition_by".to_owned(),
            position: None,
            message: format!("event type {}: {reason}", event_type.name),
        }))
    }

    /// Has the server compile the regular expression of a format.
    async fn pattern(&self, format: &Format) -> Result<Option<Problem>, WarehouseError> {
        let Kind::Regex(regex) = &format.kind else {
            return Ok(None);
        };
        let sql = format!(
            "SELECT extractGroups('', {}) AS groups",
            sql::string(&regex.pattern)
        );
        let compiled: Result<Vec<IgnoredAny>, _> = self.warehouse.rows(&sql).await;
        match compiled {
            Ok(_) => Ok(None),
            Err(error) if error.code().is_some() => Ok(Some(Problem {
                file: "formats.yaml".to_owned(),
                at: "regex.pattern".to_owned(),
                position: None,
                message: format!(
                    "format {}: ClickHouse refuses this regular expression: {error}",
                    format.name
                ),
            })),
            Err(error) => Err(error),
        }
    }

    /// Returns the error with which the server refuses these columns, if it does. The query also
    /// selects a column of the line, so that an aggregate function is also refused.
    async fn refusal(&self, columns: &[&Column]) -> Result<Option<WarehouseError>, WarehouseError> {
        let mut row = "source_path".to_owned();
        for column in columns {
            let (value, name) = (stored_value(column), sql::ident(&column.name));
            row += &format!(", {value} AS {name}");
        }
        match self.describe(&row, &self.landing).await {
            Ok(_) => Ok(None),
            Err(error) if error.code().is_some() => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    async fn describe(
        &self,
        expressions: &str,
        structure: &str,
    ) -> Result<Vec<Described>, WarehouseError> {
        let sql = format!(
            "DESCRIBE TABLE (SELECT {expressions} FROM null({})) \
             SETTINGS print_pretty_type_names = 0",
            sql::string(structure)
        );
        self.warehouse.rows(&sql).await
    }
}

fn structure<T: AsRef<str>>(columns: impl IntoIterator<Item = (String, T)>) -> String {
    let columns = columns.into_iter();
    let columns = columns
        .map(|(name, column_type)| format!("{} {}", sql::ident(&name), column_type.as_ref()));
    columns.collect::<Vec<_>>().join(", ")
}

fn refused_column(event_type: &EventType, column: &Column, error: &WarehouseError) -> Problem {
    let field = match column.source {
        Source::Paths { .. } => "type",
        Source::Expression { .. } => "expression",
    };
    Problem {
        file: column.place.file.clone(),
        at: format!("{}.{field}", column.place.at),
        position: None,
        message: format!(
            "event type {}, column {}: ClickHouse refuses this {field}: {error}",
            event_type.name, column.name
        ),
    }
}

/// Returns why a table cannot be partitioned by values of this type, if it cannot.
fn unusable_key(column_type: &str) -> Option<String> {
    let why = if column_type.contains("Nullable(") {
        "can be NULL and is not allowed in a partition key; use a column that is not Nullable, or \
         `ifNull`"
    } else if column_type.contains("Float") {
        "is a floating-point type and not allowed in a partition key; use `toInt64` or `intDiv`"
    } else {
        return None;
    };
    Some(format!(
        "its partition key has the type {column_type}, which {why}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_merge_tree_refuses_are_recognised_by_their_type() {
        for usable in ["UInt32", "Tuple(String, Date)", "LowCardinality(String)"] {
            assert_eq!(unusable_key(usable), None);
        }
        for (unusable, says) in [
            ("Nullable(UInt32)", "NULL"),
            ("LowCardinality(Nullable(String))", "NULL"),
            ("Tuple(String, Float64)", "floating-point"),
        ] {
            let reason = unusable_key(unusable).unwrap();
            assert!(reason.contains(says), "{reason}");
        }
    }
}
