//! Checks of declared columns.

use super::super::column_type::ColumnType;
use super::super::paths::{self, Path};
use super::super::{Column, Place, Problem, Source};
use super::{LINEAGE, Placed, Report};

pub(super) fn check_column(placed: &Placed, problems: &mut Vec<Problem>) -> Option<Column> {
    let before = problems.len();
    let Placed { file, at, column } = placed;
    let mut report = Report { file, problems };
    let place = |field: &str| format!("{at}.{field}");

    if column.name.trim().is_empty() {
        report.add(place("name"), "is empty; give the column a name");
    }
    if LINEAGE.contains(&column.name.as_str()) {
        report.add(
            place("name"),
            format!(
                "every table already has a column {:?}; remove this one",
                column.name
            ),
        );
    }
    let column_type = ColumnType::parse(&column.column_type)
        .map_err(|message| report.add(place("type"), message))
        .ok();

    let paths: Vec<Path> = column
        .path
        .iter()
        .chain(&column.fallbacks)
        .cloned()
        .collect();
    for path in paths.iter().chain(column.inputs.values()) {
        check_path(path, at, &mut report);
    }
    if column.path.is_none() && !column.fallbacks.is_empty() {
        report.add(
            place("fallbacks"),
            "there is no path to fall back from; declare the first one as `path`",
        );
    }
    if column.otherwise.is_some() && column_type.is_some_and(|kind| !kind.is_text()) {
        report.add(
            place("otherwise"),
            "line_hash is a string; declare the column as String",
        );
    }

    let source = match &column.expression {
        Some(template) => {
            if column.required {
                report.add(
                    place("required"),
                    "an expression cannot be required; read the value from a path instead",
                );
            }
            if column.otherwise.is_some() {
                report.add(
                    place("otherwise"),
                    "cannot be combined with an expression; handle missing values in the \
                     expression",
                );
            }
            let mut inputs: Vec<_> = column
                .inputs
                .iter()
                .map(|(name, path)| (name.clone(), vec![path.clone()]))
                .collect();
            if !paths.is_empty() {
                inputs.push(("value".to_owned(), paths));
            }
            check_template(template, &inputs, &place("expression"), &mut report);
            Source::Expression {
                template: template.clone(),
                inputs,
            }
        }
        None => {
            if paths.is_empty() {
                report.add(
                    at.clone(),
                    format!(
                        "column {:?} has no source; add a path or an expression",
                        column.name
                    ),
                );
            }
            if !column.inputs.is_empty() {
                report.add(
                    place("inputs"),
                    "apply only to an expression, and there is none; add `expression`, or remove \
                     them",
                );
            }
            Source::Paths {
                paths,
                otherwise: column.otherwise,
            }
        }
    };
    (report.problems.len() == before).then_some(())?;
    Some(Column {
        name: column.name.clone(),
        column_type: column_type?,
        source,
        required: column.required,
        place: Place {
            file: file.clone(),
            at: at.clone(),
        },
    })
}

/// Columns of `landing` that an expression may name in addition to its inputs.
pub(crate) const EXPRESSION_VARIABLES: [&str; 4] =
    ["source_path", "source_etag", "row_number", "batch_id"];

fn check_template(
    template: &str,
    inputs: &[(String, Vec<Path>)],
    at: &str,
    report: &mut Report<'_>,
) {
    let known: Vec<&str> = inputs
        .iter()
        .map(|(name, _)| name.as_str())
        .chain(EXPRESSION_VARIABLES)
        .collect();
    for part in template.split('{').skip(1) {
        let Some((name, _)) = part.split_once('}') else {
            report.add(at, "has an unclosed {");
            continue;
        };
        if !known.contains(&name) {
            report.add(
                at,
                format!(
                    "unknown placeholder {{{name}}}; use one of {}",
                    known.join(", ")
                ),
            );
        }
    }
    if template.trim().is_empty() {
        report.add(at, "is empty; write ClickHouse SQL, or omit it");
    }
}

pub(super) fn check_path(path: &[String], at: &str, report: &mut Report<'_>) {
    if path.is_empty() {
        report.add(
            at,
            "a path is empty; list its keys from the top level of the statement",
        );
    }
    if path.iter().any(String::is_empty) {
        report.add(
            at,
            format!(
                "{} has an empty key, which ClickHouse cannot address; remove it",
                paths::display(path)
            ),
        );
    }
}
