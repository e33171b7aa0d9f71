//! Which values of a column are missing, and which are invalid, for a preview.

use std::iter::once;

use super::landing::first_of;
use super::views::filled;
use super::{Fields, Lines, parsed_lines};
use crate::event_types::{Catalog, Column, EventType, Source};
use crate::sql;

/// The bytes of an invalid value that are returned.
const MAX_EXAMPLE_BYTES: usize = 100;

/// Returns the SELECT of one row for the records that become rows of this event type. For each of
/// its columns, in order, the row has
///
/// - in `missing`, the number of records without a value,
/// - in `invalid`, the number of records with a value that the column cannot have, and
/// - in `examples`, one of these.
///
/// It reads the JSON text of each record, whatever the format: a value is invalid if and only if its
/// text is.
pub fn gaps_select(catalog: &Catalog, event_type: &EventType, lines: &Lines) -> String {
    let parsed = parsed_lines(catalog, &of_texts(lines));
    let gaps: Vec<Gap> = event_type.columns.iter().map(gap).collect();
    let array = |part: fn(&Gap) -> String| gaps.iter().map(part).collect::<Vec<_>>().join(", ");
    format!(
        "SELECT\n    [{missing}] AS missing,\n    [{invalid}] AS invalid,\n    \
         [{examples}] AS examples\nFROM {parsed}\nWHERE kind = {kind}",
        missing = array(|gap| format!("countIf({})", gap.missing)),
        invalid = array(|gap| format!("countIf({})", gap.invalid)),
        examples = array(|gap| format!(
            "toValidUTF8(substring(minIf(ifNull({}, ''), {}), 1, {MAX_EXAMPLE_BYTES}))",
            gap.text, gap.invalid
        )),
        kind = sql::string(&event_type.name),
    )
}

/// Conditions that are 0 or 1, and the text of the value.
struct Gap {
    missing: String,
    invalid: String,
    text: String,
}

fn gap(column: &Column) -> Gap {
    let (text, value) = match &column.source {
        Source::Paths { paths, .. } => {
            let text = first_of(paths);
            let value = column.column_type.read(&text);
            (text, value)
        }
        Source::Expression { template, inputs } => {
            let texts = inputs.iter().map(|(_, paths)| first_of(paths));
            // An expression without inputs always has a value.
            let texts: Vec<String> = texts.chain(once("if(0, '', NULL)".to_owned())).collect();
            let text = format!("coalesce({})", texts.join(", "));
            (text, filled(template, inputs))
        }
    };
    let has_input = match &column.source {
        Source::Paths { .. } => true,
        Source::Expression { inputs, .. } => !inputs.is_empty(),
    };
    let missing = if has_input {
        format!("isNull({text})")
    } else {
        "0".to_owned()
    };
    Gap {
        invalid: format!("NOT {missing} AND isNull({value})"),
        missing,
        text,
    }
}

/// Returns the same records as lines of JSON, without those that are rejected for what their format
/// requires.
fn of_texts(lines: &Lines) -> Lines {
    let Fields::Own(fields) = &lines.fields else {
        return lines.clone();
    };
    let problems = lines
        .problems
        .iter()
        .map(|(condition, _)| format!("ifNull({condition}, 0)"));
    let no_problem = format!(
        "NOT ({})",
        problems
            .chain(once("0".to_owned()))
            .collect::<Vec<_>>()
            .join(" OR ")
    );
    let filters = lines.filter.iter().cloned().chain(once(no_problem));
    Lines {
        filter: Some(filters.collect::<Vec<_>>().join(" AND ")),
        fields: Fields::Json(fields.json().unwrap_or_else(|| lines.line.clone())),
        problems: Vec::new(),
        ..lines.clone()
    }
}
