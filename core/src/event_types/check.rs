//! Checks declarations and builds a catalog from them. All problems are reported at once.

mod columns;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::declaration::{self, Declaration, DeclaredColumn};
use super::paths::{self, PathTree};
use super::{Catalog, Column, EventType, Problem, RESERVED_KINDS, Route, Rule};
use crate::formats::{self, Formats};
use crate::yaml::{Document, Misshapen};
use columns::check_column;
use rules::check_rule;

/// Sluice's own tables; an event type's table cannot have one of these names.
pub const RESERVED_TABLES: [&str; 7] = [
    "landing",
    "rejected_lines",
    "unmatched_statements",
    "object_rows",
    "replayed_lines",
    "ledger_objects",
    "ledger_batches",
];

/// Prefixes of Sluice's own tables and views, including those of later versions.
const RESERVED_PREFIXES: [&str; 2] = ["landing_", "ledger_"];

/// The fields in the JSON of `sluice types preview`, in addition to those of the event types.
pub(crate) const PREVIEW_FIELDS: [&str; 3] = ["empty_columns", "column_values", "left_out"];

/// The columns that record the origin of a row. Every table has them without a declaration.
pub(crate) const LINEAGE: [&str; 4] = ["source_path", "source_etag", "batch_id", "ingested_at"];

/// Collects the problems of one file.
pub(crate) struct Report<'a> {
    pub(crate) file: &'a str,
    pub(crate) problems: &'a mut Vec<Problem>,
}

impl Report<'_> {
    pub(crate) fn add(&mut self, at: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            at: at.into(),
            position: None,
            message: message.into(),
        });
    }

    /// Adds the parts of the file that do not have the shape of a declaration.
    pub(crate) fn add_misshapen(&mut self, found: Vec<Misshapen>) {
        let found = found.into_iter().map(|misshapen| Problem {
            file: self.file.to_owned(),
            at: misshapen.at,
            position: misshapen.position,
            message: misshapen.message,
        });
        self.problems.extend(found);
    }
}

/// A column with the file and the place of its declaration, which may be in another file.
struct Placed {
    file: String,
    at: String,
    column: DeclaredColumn,
}

pub(super) fn catalog(files: Vec<(String, String)>) -> Result<Catalog, Vec<Problem>> {
    checked(&files).map_err(|mut problems| {
        locate(&files, &mut problems);
        problems
    })
}

/// Adds the positions of the problems, which the checks do not know.
fn locate(files: &[(String, String)], problems: &mut [Problem]) {
    for (file, text) in files {
        let Ok(document) = Document::parse(text) else {
            continue;
        };
        let of_file = problems.iter_mut().filter(|problem| problem.file == *file);
        for problem in of_file.filter(|problem| problem.position.is_none()) {
            problem.position = match problem.at.strip_prefix(OF_COLUMN) {
                Some(name) => document.position_of_item("columns", "name", name),
                None => document.position(&problem.at),
            };
        }
    }
}

/// What precedes the name of a column that is a place.
const OF_COLUMN: &str = "column ";

fn checked(files: &[(String, String)]) -> Result<Catalog, Vec<Problem>> {
    let mut problems = Vec::new();
    let (of_formats, files): (Vec<_>, Vec<_>) = files
        .iter()
        .partition(|(file, _)| type_name(file) == formats::FILE_NAME);
    let formats = check_formats(&of_formats, &mut problems);
    let declared = parse(files, &mut problems);
    let mut checked: BTreeMap<(String, String), Option<Column>> = BTreeMap::new();
    let mut types = Vec::new();
    for (file, declaration) in &declared {
        let chain = ancestry(file, &declared, &mut problems);
        let columns = gather_columns(&chain);
        for placed in &columns {
            checked
                .entry((placed.file.clone(), placed.at.clone()))
                .or_insert_with(|| check_column(placed, &mut problems));
        }
        if declaration.is_abstract {
            if declaration.rule.is_some() {
                let mut report = Report {
                    file,
                    problems: &mut problems,
                };
                report.add(
                    "rule",
                    "an abstract declaration cannot have a rule; remove `rule` or `abstract`",
                );
            }
            continue;
        }
        let columns = columns.iter().map(|placed| {
            let key = (placed.file.clone(), placed.at.clone());
            (placed, checked.get(&key).and_then(Clone::clone))
        });
        types.extend(check_type(file, &chain, columns.collect(), &mut problems));
    }
    check_tables(&types, &mut problems);
    let tree = check_paths(&types, &mut problems);
    if declared.values().all(|declaration| declaration.is_abstract) && problems.is_empty() {
        problems.push(Problem {
            file: "event types".to_owned(),
            at: String::new(),
            position: None,
            message: "no event types are declared; add a file such as video.yaml that has a table, a rule and columns".to_owned(),
        });
    }
    if problems.is_empty() {
        Ok(Catalog {
            types,
            tree,
            formats,
        })
    } else {
        Err(problems)
    }
}

/// Returns the declared formats, of which all must be in one file.
fn check_formats(files: &[&(String, String)], problems: &mut Vec<Problem>) -> Formats {
    if let [(first, _), (second, _), ..] = files {
        Report {
            file: second,
            problems,
        }
        .add("", format!("{first} also declares formats; merge the two"));
    }
    match files.first() {
        Some((file, text)) => formats::formats(file, text, problems),
        None => Formats::default(),
    }
}

fn parse(
    files: Vec<&(String, String)>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Declaration> {
    let mut declared = BTreeMap::new();
    let mut names = BTreeMap::new();
    for (file, text) in files {
        let mut report = Report { file, problems };
        if let Some(other) = names.insert(type_name(file), file) {
            report.add(
                "",
                format!("has the same name as {other}; rename one of them"),
            );
        }
        match declaration::parse(text) {
            Ok(declaration) => {
                declared.insert(file.clone(), declaration);
            }
            Err(found) => report.add_misshapen(found),
        }
    }
    declared
}

fn type_name(file: &str) -> &str {
    file.strip_suffix(".yaml")
        .or_else(|| file.strip_suffix(".yml"))
        .unwrap_or(file)
}

/// Returns a declaration and those that it extends, nearest first.
fn ancestry<'a>(
    file: &'a str,
    declared: &'a BTreeMap<String, Declaration>,
    problems: &mut Vec<Problem>,
) -> Vec<(&'a str, &'a Declaration)> {
    let mut chain: Vec<(&str, &Declaration)> = Vec::new();
    let mut next = declared.get_key_value(file);
    while let Some((file, declaration)) = next {
        chain.push((file, declaration));
        let Some(base) = &declaration.extends else {
            break;
        };
        let in_cycle = type_name(chain[0].0) == base;
        let found = declared.iter().find(|(other, _)| type_name(other) == base);
        // Reported only for the file at fault, and not again for each file that extends it.
        let mut report = Report { file, problems };
        let message = match found {
            None => format!(
                "{base}.yaml does not exist or cannot be read; extend a file in the same directory"
            ),
            Some((_, base)) if !base.is_abstract => {
                "cannot extend an event type; move the shared columns into a file with \
                 `abstract: true`"
                    .to_owned()
            }
            Some((other, _)) if chain.iter().any(|(seen, _)| seen == other) => {
                "extends itself (cycle); remove `extends` from one of the files".to_owned()
            }
            Some(_) => {
                next = found;
                continue;
            }
        };
        if chain.len() == 1 || in_cycle {
            report.add("extends", message);
        }
        break;
    }
    chain
}

/// Returns the columns of a type, those of the farthest base first.
fn gather_columns(chain: &[(&str, &Declaration)]) -> Vec<Placed> {
    let mut columns = Vec::new();
    for (file, declaration) in chain.iter().rev() {
        for (index, column) in declaration.columns.iter().enumerate() {
            columns.push(Placed {
                file: (*file).to_owned(),
                at: format!("columns[{index}]"),
                column: column.clone(),
            });
        }
    }
    columns
}

fn check_type(
    file: &str,
    chain: &[(&str, &Declaration)],
    columns: Vec<(&Placed, Option<Column>)>,
    problems: &mut Vec<Problem>,
) -> Option<EventType> {
    let name = type_name(file);
    let own = chain.first().map(|(_, declaration)| *declaration)?;
    let mut report = Report { file, problems };

    if name.is_empty() || PREVIEW_FIELDS.contains(&name) || RESERVED_KINDS.contains(&name) {
        report.add(
            "",
            format!("an event type cannot be called {name:?}; rename the file"),
        );
    }
    let table = own.table.clone().unwrap_or_default();
    if table.trim().is_empty() {
        report.add("table", "is missing; name the table that stores the rows");
    } else if RESERVED_TABLES.contains(&table.as_str())
        || RESERVED_PREFIXES
            .iter()
            .any(|prefix| table.starts_with(prefix))
    {
        report.add(
            "table",
            format!("{table:?} is reserved for Sluice's own tables; choose another name"),
        );
    }
    let rule = match &own.rule {
        Some(rule) => {
            let rule = check_rule(rule, "rule", &mut report);
            if rule.as_ref().is_some_and(Rule::holds_for_nothing) {
                report.add("rule", "matches statements without any values, and therefore every line that is not JSON; add a condition that requires a value");
            }
            rule
        }
        None => {
            report.add("rule", "is missing; declare which statements belong to this event type, such as {path: [verb, id], equals: …}");
            None
        }
    };

    let route = chain
        .iter()
        .find_map(|(_, declaration)| declaration.keys.as_ref())
        .map(|globs| check_route(globs, "keys", &mut report));

    let mut seen = BTreeSet::new();
    for (placed, _) in &columns {
        if !seen.insert(placed.column.name.as_str()) {
            let at = if placed.file == file {
                placed.at.as_str()
            } else {
                "columns"
            };
            report.add(
                at,
                format!(
                    "column {:?} is declared twice; rename or remove one",
                    placed.column.name
                ),
            );
        }
    }
    if columns.is_empty() {
        report.add(
            "columns",
            "no columns are declared; declare at least one, or extend a file that does",
        );
    }

    let inherited = chain
        .iter()
        .find_map(|(_, declaration)| declaration.order_by.as_ref());
    let order_by = inherited.cloned().unwrap_or_default();
    if order_by.is_empty() {
        report.add(
            "order_by",
            "is missing; list the columns that identify a row",
        );
    }
    for (index, key) in order_by.iter().enumerate() {
        let at = format!("order_by[{index}]");
        let found = columns
            .iter()
            .find(|(placed, _)| &placed.column.name == key);
        match found {
            _ if LINEAGE.contains(&key.as_str()) => report.add(
                at,
                format!("{key:?} differs between two uploads of the same statement, so that duplicates would not collapse; remove it"),
            ),
            None => report.add(at, format!("there is no column {key:?}; name a declared column")),
            Some((_, Some(column))) if column.column_type.is_nullable() => report.add(
                at,
                format!("{key:?} is Nullable, which is not allowed in a sorting key; declare a type that is not Nullable"),
            ),
            Some(_) => {}
        }
    }
    check_key(&order_by, &columns, &mut report);
    let partition_by = chain.iter().find_map(|(of, declaration)| {
        let expression = declaration.partition_by.clone()?;
        Some(((*of).to_owned(), expression))
    });
    let (partition_by_file, partition_by) = partition_by.unzip();
    if let Some(expression) = &partition_by {
        for column in LINEAGE.iter().filter(|column| expression.contains(*column)) {
            report.add(
                "partition_by",
                format!("{column:?} is not part of the statement: a retry may fall into another partition and duplicate rows; use a declared column"),
            );
        }
    }

    // A type with other problems is also returned, so that conflicts with other types are reported.
    let columns = columns
        .into_iter()
        .map(|(_, column)| column)
        .collect::<Option<Vec<_>>>()?;
    Some(EventType {
        file: file.to_owned(),
        name: name.to_owned(),
        table,
        rule: rule?,
        route: route.transpose().ok()?,
        order_by,
        partition_by,
        partition_by_file: partition_by_file.unwrap_or_default(),
        columns,
    })
}

/// Reports a sorting key in which every column can lack a value.
fn check_key(order_by: &[String], columns: &[(&Placed, Option<Column>)], report: &mut Report<'_>) {
    let declared = |key: &String| {
        let mut declared = columns.iter().map(|(placed, _)| &placed.column);
        declared.find(|column| column.name == *key)
    };
    let Some(keys) = order_by.iter().map(declared).collect::<Option<Vec<_>>>() else {
        return;
    };
    if !keys.is_empty() && !keys.iter().any(|key| key.keeps_rows_apart()) {
        report.add(
            "order_by",
            "none of its columns is guaranteed to identify a row: rows without a value in any of \
             them, for instance because a path is mistyped, collapse into one when they are \
             merged; set `otherwise: line_hash` or `required: true` for one of them, or declare \
             `identifies: true` for one in which every row has a value",
        );
    }
}

/// Returns the route of these globs, which are declared at a place in the file.
pub(crate) fn check_route(
    globs: &[String],
    at: &str,
    report: &mut Report<'_>,
) -> Result<Route, String> {
    if globs.is_empty() {
        report.add(
            at,
            "is an empty list, which matches no objects; omit it to match all objects",
        );
    }
    for (index, glob) in globs.iter().enumerate() {
        if glob.is_empty() || glob.starts_with('/') {
            report.add(
                format!("{at}[{index}]"),
                format!(
                    "{glob:?} matches no key; keys do not begin with a slash, for example video/**"
                ),
            );
        }
    }
    Route::new(globs).inspect_err(|error| report.add(at, error.clone()))
}

fn check_tables(types: &[EventType], problems: &mut Vec<Problem>) {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for event_type in types {
        let file = &event_type.file;
        if let Some(other) = owners.insert(&event_type.table, file) {
            let mut report = Report { file, problems };
            report.add(
                "table",
                format!(
                    "{:?} is also the table of {other}; give each event type its own table",
                    event_type.table
                ),
            );
        }
    }
}

fn check_paths(types: &[EventType], problems: &mut Vec<Problem>) -> PathTree {
    let mut tree = PathTree::default();
    let mut reported = BTreeSet::new();
    for event_type in types {
        let file = &event_type.file;
        let rule = event_type
            .rule
            .paths()
            .into_iter()
            .map(|path| ("rule".to_owned(), path));
        let columns = event_type.columns.iter().flat_map(|column| {
            column
                .source
                .paths()
                .into_iter()
                .map(|path| (format!("{OF_COLUMN}{}", column.name), path))
        });
        for (at, path) in rule.chain(columns) {
            if let Err(conflict) = tree.insert(path)
                && reported.insert(path.clone())
            {
                let mut report = Report { file, problems };
                report.add(
                    at,
                    format!(
                        "{} cannot be read: {} is declared both as a value and as an object with keys; declare only one of the two",
                        paths::display(path),
                        paths::display(&conflict)
                    ),
                );
            }
        }
    }
    tree
}
