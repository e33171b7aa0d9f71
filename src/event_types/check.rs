//! From declarations to a catalog: everything that can be wrong is found here, all at once.

use std::collections::{BTreeMap, BTreeSet};

use super::column_type::ColumnType;
use super::declaration::{self, Declaration, DeclaredColumn, DeclaredRule};
use super::paths::{self, Path, PathTree};
use super::rule::Rule;
use super::{Catalog, Column, EventType, Problem, RESERVED_KINDS, Source};

/// Sluice's own tables; an event type's table cannot have one of these names.
pub const RESERVED_TABLES: [&str; 6] = [
    "landing",
    "rejected_lines",
    "unmatched_statements",
    "object_rows",
    "ledger_objects",
    "ledger_batches",
];

/// Prefixes that Sluice's own tables and views have, those of later versions included.
const RESERVED_PREFIXES: [&str; 2] = ["landing_", "ledger_"];

/// The columns that say where a row is from; every table has them without being told.
pub(crate) const LINEAGE: [&str; 4] = ["source_path", "source_etag", "batch_id", "ingested_at"];

/// Collects problems of one file.
struct Report<'a> {
    file: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl Report<'_> {
    fn add(&mut self, at: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            at: at.into(),
            message: message.into(),
        });
    }
}

/// A column with the file and the place it was declared at, which may be another file's.
struct Placed {
    file: String,
    at: String,
    column: DeclaredColumn,
}

pub(super) fn catalog(files: Vec<(String, String)>) -> Result<Catalog, Vec<Problem>> {
    let mut problems = Vec::new();
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
                    "an abstract declaration takes no statements; leave out `rule`, or `abstract`",
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
            message: "no event types are declared; add a file such as video.yaml that has a table, a rule and columns".to_owned(),
        });
    }
    if problems.is_empty() {
        Ok(Catalog {
            types: types
                .into_iter()
                .map(|(_, event_type)| event_type)
                .collect(),
            tree,
        })
    } else {
        Err(problems)
    }
}

fn parse(
    files: Vec<(String, String)>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Declaration> {
    let mut declared = BTreeMap::new();
    let mut names = BTreeMap::new();
    for (file, text) in files {
        let mut report = Report {
            file: &file,
            problems,
        };
        if let Some(other) = names.insert(type_name(&file).to_owned(), file.clone()) {
            report.add(
                "",
                format!("has the same name as {other}; rename one of them"),
            );
        }
        match declaration::parse(&text) {
            Ok(declaration) => {
                declared.insert(file, declaration);
            }
            Err(message) => report.add("", message),
        }
    }
    declared
}

fn type_name(file: &str) -> &str {
    file.strip_suffix(".yaml")
        .or_else(|| file.strip_suffix(".yml"))
        .unwrap_or(file)
}

/// The declaration and what it extends, nearest first.
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
        let found = declared.iter().find(|(other, _)| type_name(other) == base);
        // Told once, at the file that says so, and not again for all that extend that file.
        let mut report = Report { file, problems };
        let message = match found {
            None => format!(
                "there is no {base}.yaml that could be read; extend a file of the same directory"
            ),
            Some((_, base)) if !base.is_abstract => {
                "extends an event type; move what they share into a file with `abstract: true`"
                    .to_owned()
            }
            Some((other, _)) if chain.iter().any(|(seen, _)| seen == other) => {
                "extends itself in a circle; one of the files must not extend another".to_owned()
            }
            Some(_) => {
                next = found.map(|(file, declaration)| (file, declaration));
                continue;
            }
        };
        if chain.len() == 1 {
            report.add("extends", message);
        }
        break;
    }
    chain
}

/// The columns of a type, those of the farthest base first.
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
) -> Option<(String, EventType)> {
    let name = type_name(file);
    let own = chain.first().map(|(_, declaration)| *declaration)?;
    let mut report = Report { file, problems };

    if name.is_empty() || RESERVED_KINDS.contains(&name) {
        report.add(
            "",
            format!("an event type cannot be called {name:?}; rename the file"),
        );
    }
    let table = own.table.clone().unwrap_or_default();
    if table.trim().is_empty() {
        report.add("table", "is missing; name the table that takes the rows");
    } else if RESERVED_TABLES.contains(&table.as_str())
        || RESERVED_PREFIXES
            .iter()
            .any(|prefix| table.starts_with(prefix))
    {
        report.add(
            "table",
            format!("{table:?} is one of sluice's own tables; choose another name"),
        );
    }
    let rule = match &own.rule {
        Some(rule) => check_rule(rule, "rule", &mut report),
        None => {
            report.add("rule", "is missing; say which statements belong here, such as {path: [verb, id], equals: …}");
            None
        }
    };

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
            "there are none; declare at least one, or extend a file that does",
        );
    }

    let inherited = chain
        .iter()
        .find_map(|(_, declaration)| declaration.order_by.as_ref());
    let order_by = inherited.cloned().unwrap_or_default();
    if order_by.is_empty() {
        report.add(
            "order_by",
            "is missing; list the columns that make two statements the same",
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
                format!("{key:?} differs between two uploads of one statement, which would then not collapse; take it out"),
            ),
            None => report.add(at, format!("there is no column {key:?}; name a declared column")),
            Some((_, Some(column))) if column.column_type.is_nullable() => report.add(
                at,
                format!("{key:?} is Nullable, which no ordering key can be; give it a type without NULL"),
            ),
            Some(_) => {}
        }
    }
    let partition_by = chain
        .iter()
        .find_map(|(_, declaration)| declaration.partition_by.clone());
    if let Some(expression) = &partition_by {
        for column in LINEAGE.iter().filter(|column| expression.contains(*column)) {
            report.add(
                "partition_by",
                format!("{column:?} is not part of the statement: a replay may fall into another partition and double its rows; use a declared column"),
            );
        }
    }

    // A type with other problems still goes on, so that clashes with other types are told too.
    let columns = columns
        .into_iter()
        .map(|(_, column)| column)
        .collect::<Option<Vec<_>>>()?;
    let event_type = EventType {
        name: name.to_owned(),
        table,
        rule: rule?,
        order_by,
        partition_by,
        columns,
    };
    Some((file.to_owned(), event_type))
}

fn check_column(placed: &Placed, problems: &mut Vec<Problem>) -> Option<Column> {
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
                "every table has a column {:?} by itself; remove this one",
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
            "there is no path to fall back from; name the first one `path`",
        );
    }
    if column.otherwise.is_some() && column_type.is_some_and(|kind| !kind.is_text()) {
        report.add(
            place("otherwise"),
            "line_hash is text; give the column the type String",
        );
    }

    let source = match &column.expression {
        Some(template) => {
            if column.required {
                report.add(
                    place("required"),
                    "an expression cannot be required; take the value from a path",
                );
            }
            if column.otherwise.is_some() {
                report.add(
                    place("otherwise"),
                    "does not go with an expression; say it in the expression",
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
                        "column {:?} has no source; give it a path or an expression",
                        column.name
                    ),
                );
            }
            if !column.inputs.is_empty() {
                report.add(place("inputs"), "are for an expression, and there is none");
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
    })
}

/// What an expression may name besides its inputs: columns of `landing`.
pub(super) const EXPRESSION_VARIABLES: [&str; 4] =
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
            report.add(at, "has a { without a }");
            continue;
        };
        if !known.contains(&name) {
            report.add(
                at,
                format!(
                    "{{{name}}} is not known here; there are {}",
                    known.join(", ")
                ),
            );
        }
    }
    if template.trim().is_empty() {
        report.add(at, "is empty; write ClickHouse SQL, or leave it out");
    }
}

fn check_path(path: &[String], at: &str, report: &mut Report<'_>) {
    if path.is_empty() {
        report.add(
            at,
            "a path is empty; list its keys from the top of the statement",
        );
    }
    if path.iter().any(String::is_empty) {
        report.add(
            at,
            format!(
                "{} has an empty key, which ClickHouse cannot name; leave the column out",
                paths::display(path)
            ),
        );
    }
}

fn check_rule(rule: &DeclaredRule, at: &str, report: &mut Report<'_>) -> Option<Rule> {
    let DeclaredRule {
        all,
        any,
        not,
        path,
        equals,
        one_of,
    } = rule;
    let many = |rules: &[DeclaredRule], what: &str, report: &mut Report<'_>| {
        if rules.is_empty() {
            report.add(format!("{at}.{what}"), "is an empty list; add a condition");
        }
        let checked: Vec<_> = rules
            .iter()
            .enumerate()
            .map(|(index, rule)| check_rule(rule, &format!("{at}.{what}[{index}]"), report))
            .collect();
        checked.into_iter().collect::<Option<Vec<_>>>()
    };
    match (all, any, not, path, equals, one_of) {
        (Some(rules), None, None, None, None, None) => many(rules, "all", report).map(Rule::All),
        (None, Some(rules), None, None, None, None) => many(rules, "any", report).map(Rule::Any),
        (None, None, Some(rule), None, None, None) => {
            check_rule(rule, &format!("{at}.not"), report).map(|rule| Rule::Not(Box::new(rule)))
        }
        (None, None, None, Some(path), Some(value), None) => {
            check_path(path, at, report);
            Some(Rule::In(path.clone(), vec![value.clone()]))
        }
        (None, None, None, Some(path), None, Some(values)) => {
            check_path(path, at, report);
            if values.is_empty() {
                report.add(format!("{at}.in"), "is an empty list; add a value");
            }
            Some(Rule::In(path.clone(), values.clone()))
        }
        _ => {
            report.add(at, "must be one of `all: […]`, `any: […]`, `not: {…}`, `{path: […], equals: …}` and `{path: […], in: […]}`");
            None
        }
    }
}

fn check_tables(types: &[(String, EventType)], problems: &mut Vec<Problem>) {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for (file, event_type) in types {
        if let Some(other) = owners.insert(&event_type.table, file) {
            let mut report = Report { file, problems };
            report.add(
                "table",
                format!(
                    "{:?} is the table of {other} too; give each its own",
                    event_type.table
                ),
            );
        }
    }
}

fn check_paths(types: &[(String, EventType)], problems: &mut Vec<Problem>) -> PathTree {
    let mut tree = PathTree::default();
    let mut told = BTreeSet::new();
    for (file, event_type) in types {
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
                .map(|path| (format!("column {}", column.name), path))
        });
        for (at, path) in rule.chain(columns) {
            if let Err(conflict) = tree.insert(path)
                && told.insert(path.clone())
            {
                let mut report = Report { file, problems };
                report.add(
                    at,
                    format!(
                        "{} cannot be read: {} is wanted both as a value and as an object with keys; read one of the two",
                        paths::display(path),
                        paths::display(&conflict)
                    ),
                );
            }
        }
    }
    tree
}

impl Source {
    /// Every path that the value may come from.
    pub(super) fn paths(&self) -> Vec<&Path> {
        match self {
            Source::Paths { paths, .. } => paths.iter().collect(),
            Source::Expression { inputs, .. } => {
                inputs.iter().flat_map(|(_, paths)| paths).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests;
