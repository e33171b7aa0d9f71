//! The SELECTs from landing tables to the tables.

use super::landing::first_of;
use super::values::column_of;
use super::{Landing, Target};
use crate::event_types::paths::Path;
use crate::event_types::{Catalog, Column, Otherwise, Source};
use crate::sql;

/// Returns the SELECT from a landing table, given as a table expression, to the rows of a table.
pub fn view_select(catalog: &Catalog, landing: Landing, target: Target<'_>, from: &str) -> String {
    match target {
        Target::EventType(event_type) => {
            let columns = event_type.columns.iter().map(|column| {
                let value = match landing {
                    Landing::Texts => value(column),
                    Landing::Values => converted(catalog, column),
                };
                format!("    {value} AS {},\n", sql::ident(&column.name))
            });
            format!(
                "SELECT\n{}    source_path, source_etag, batch_id\nFROM {from}\nWHERE kind = {}",
                columns.collect::<String>(),
                sql::string(&event_type.name)
            )
        }
        Target::RejectedLines | Target::UnmatchedStatements => format!(
            "SELECT {}\nFROM {from}\nWHERE kind = {}",
            target.columns().join(", "),
            sql::string(target.kind().unwrap_or_default())
        ),
        Target::ObjectRows => format!(
            "SELECT batch_id, source_path, source_etag, kind, count() AS rows\n\
             FROM {from}\n\
             GROUP BY batch_id, source_path, source_etag, kind"
        ),
    }
}

/// Returns a column's value, from a row of the landing table of texts.
fn value(column: &Column) -> String {
    let kind = column.column_type;
    match &column.source {
        Source::Paths {
            paths,
            otherwise: None,
        } => {
            let text = first_of(paths);
            let read = if column.required {
                kind.read_checked(&text)
            } else {
                kind.read(&text)
            };
            kind.or_default(&read)
        }
        Source::Paths {
            paths,
            otherwise: Some(Otherwise::LineHash),
        } => or_hash(&first_of(paths)),
        Source::Expression { template, inputs } => expression(column, template, inputs),
    }
}

/// Returns a column's value, from a row of the landing table of values.
fn converted(catalog: &Catalog, column: &Column) -> String {
    match &column.source {
        Source::Paths {
            otherwise: None, ..
        } => column_of(catalog, column),
        Source::Paths {
            otherwise: Some(Otherwise::LineHash),
            ..
        } => or_hash(&column_of(catalog, column)),
        Source::Expression { template, inputs } => expression(column, template, inputs),
    }
}

/// Returns a text, or the hash of the line if it is missing or empty.
fn or_hash(text: &str) -> String {
    let text = format!("ifNull({text}, '')");
    format!("if(empty({text}), lower(hex(line_hash)), {text})")
}

/// Returns the value of a declared expression. Both landing tables have the texts of its inputs.
fn expression(column: &Column, template: &str, inputs: &[(String, Vec<Path>)]) -> String {
    column.column_type.or_default(&filled(template, inputs))
}

/// Returns an expression with its inputs.
pub(super) fn filled(template: &str, inputs: &[(String, Vec<Path>)]) -> String {
    fill(template.trim(), |name| {
        let input = inputs.iter().find(|(input, _)| input == name);
        input.map_or_else(|| name.to_owned(), |(_, paths)| first_of(paths))
    })
}

/// Returns a column's value as its table stores it, from a row of the landing table of texts.
pub fn stored_value(column: &Column) -> String {
    let column_type = column.column_type.to_string();
    format!("CAST({}, {})", value(column), sql::string(&column_type))
}

/// Returns the template with each `{name}` replaced. The replacements are not expanded again.
fn fill(template: &str, replace: impl Fn(&str) -> String) -> String {
    let mut parts = template.split('{');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').unwrap_or((part, ""));
        out.push_str(&replace(name));
        out.push_str(rest);
    }
    out
}
