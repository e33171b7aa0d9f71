use super::*;
use crate::event_types::paths;

const SOUND: &str = "
table: clicks
rule: {path: [verb], equals: click}
order_by: [id]
columns:
  - {name: id, type: String, identifies: true, path: [id]}
";

fn problems(files: &[(&str, &str)]) -> Vec<String> {
    let files = files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    match Catalog::from_files(files) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.into_iter().map(without_position).collect(),
    }
}

fn without_position(problem: Problem) -> String {
    let problem = Problem {
        position: None,
        ..problem
    };
    problem.to_string()
}

/// Returns the one problem of a sound declaration in which `from` is replaced by `to`.
fn problem_of(from: &str, to: &str) -> String {
    assert!(SOUND.contains(from));
    let found = problems(&[("click.yaml", &SOUND.replace(from, to))]);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().unwrap_or_default()
}

#[test]
fn the_builtin_declarations_are_sound() {
    let catalog = Catalog::builtin();
    let names: Vec<_> = catalog
        .types()
        .iter()
        .map(|event_type| event_type.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "activity_attempt",
            "page_attempt",
            "page_viewed",
            "part_attempt",
            "video"
        ]
    );
    let columns: Vec<_> = catalog
        .types()
        .iter()
        .map(|event_type| event_type.columns.len())
        .collect();
    assert_eq!(columns, [21, 17, 15, 29, 22]);
}

#[test]
fn a_rule_that_holds_without_a_value_is_refused() {
    let rule = "{path: [verb], equals: click}";
    for empty in [
        "{not: {path: [test], equals: \"true\"}}",
        "{any: [{path: [verb], equals: click}, {not: {path: [a], equals: b}}]}",
        "{not: {all: [{path: [verb], equals: click}]}}",
    ] {
        let problem = problem_of(rule, empty);
        assert!(
            problem.contains("click.yaml: rule: matches statements without any values"),
            "{problem}"
        );
    }
    let sound = "{all: [{path: [verb], equals: click}, {not: {path: [a], equals: b}}]}";
    let files = [("click.yaml", &*SOUND.replace(rule, sound))];
    assert_eq!(problems(&files), Vec::<String>::new());
}

#[test]
fn a_route_selects_objects_by_key() {
    let with = |keys: &str| problem_of("rule:", &format!("keys: {keys}\nrule:"));
    assert!(with("[]").contains("keys: is an empty list"));
    assert!(with("[a/*, /b]").contains("keys[1]: \"/b\" matches no key"));
    let routed = SOUND.replace("rule:", "keys: ['clicks/**']\nrule:");
    let catalog = Catalog::from_files([("click.yaml".to_owned(), routed)]).unwrap();
    let click = catalog.get("click").unwrap();
    assert!(click.is_looked_for_in("clicks/a.jsonl"));
    assert!(!click.is_looked_for_in("views/a.jsonl"));
}

#[test]
fn a_sound_declaration_has_no_problem() {
    assert_eq!(problems(&[("click.yaml", SOUND)]), Vec::<String>::new());
}

#[test]
fn each_problem_names_file_and_place() {
    let cases = [
        (
            "type: String",
            "type: Strng",
            "click.yaml: columns[0].type: unknown type \"Strng\"",
        ),
        ("table: clicks", "tabel: clicks", "click.yaml: "),
        ("table: clicks", "", "click.yaml: table: is missing"),
        (
            "table: clicks",
            "table: landing",
            "click.yaml: table: \"landing\" is reserved",
        ),
        (
            "table: clicks",
            "table: ledger_x",
            "click.yaml: table: \"ledger_x\" is reserved",
        ),
        (
            "[id]\ncol",
            "[nope]\ncol",
            "click.yaml: order_by[0]: there is no column \"nope\"",
        ),
        (
            "[id]\ncol",
            "[batch_id]\ncol",
            "click.yaml: order_by[0]: \"batch_id\" differs",
        ),
        ("[id]\ncol", "[]\ncol", "click.yaml: order_by: is missing"),
        (
            "type: String",
            "type: Nullable(String)",
            "click.yaml: order_by[0]: \"id\" is Nullable",
        ),
        (
            "order_by",
            "partition_by: toDate(ingested_at)\norder_by",
            "click.yaml: partition_by: \"ingested_at\"",
        ),
        (
            "path: [id]}",
            "path: [id]}\n  - {name: id, type: String, path: [b]}",
            "click.yaml: columns[1]: column \"id\" is declared twice",
        ),
        (
            "path: [id]}",
            "path: [id]}\n  - {name: batch_id, type: String, path: [b]}",
            "click.yaml: columns[1].name: every table already has",
        ),
        (
            "path: [id]}",
            "path: []}",
            "click.yaml: columns[0]: a path is empty",
        ),
        (
            "path: [id]}",
            "path: [a, \"\"]}",
            "click.yaml: columns[0]: $.a[\"\"] has an empty key",
        ),
        (
            "path: [id]}",
            "required: true}",
            "click.yaml: columns[0]: column \"id\" has no source",
        ),
        (
            "path: [id]}",
            "path: [verb, x]}",
            "click.yaml: column id: $.verb.x cannot be read: $.verb is declared both",
        ),
        (
            "path: [id]}",
            "expression: \"{value}\"}",
            "click.yaml: columns[0].expression: unknown placeholder {value}",
        ),
        (
            "path: [id]}",
            "path: [id], expression: \"{value\"}",
            "click.yaml: columns[0].expression: has an unclosed {",
        ),
        (
            "path: [id]}",
            "path: [id], expression: \"1\", required: true}",
            "click.yaml: columns[0].required: an expression",
        ),
        (
            "path: [id]}",
            "path: [id], inputs: {a: [b]}}",
            "click.yaml: columns[0].inputs: apply only to an expression",
        ),
        (
            "path: [id]}",
            "fallbacks: [[b]]}",
            "click.yaml: columns[0].fallbacks: there is no path",
        ),
        (
            "type: String",
            "type: UInt8, otherwise: line_hash",
            "click.yaml: columns[0].otherwise: line_hash is a string",
        ),
        (", equals: click", "", "click.yaml: rule: must be one of"),
        (
            ", equals: click",
            ", in: []",
            "click.yaml: rule.in: is an empty list",
        ),
        (
            "rule: {path: [verb], equals: click}",
            "rule: {all: [{path: [verb], equals: a}, {any: []}]}",
            "click.yaml: rule.all[1].any: is an empty list",
        ),
        (
            "rule: {path: [verb], equals: click}",
            "",
            "click.yaml: rule: is missing",
        ),
        (
            "table: clicks",
            "table: clicks\nextends: base",
            "click.yaml: extends: base.yaml does not exist",
        ),
        (
            "table: clicks",
            "table: clicks\nextends: click",
            "click.yaml: extends: cannot extend an event type",
        ),
    ];
    for (from, to, expected) in cases {
        let problem = problem_of(from, to);
        assert!(problem.starts_with(expected), "{to}: {problem}");
    }
}

#[test]
fn a_sorting_key_identifies_rows() {
    let problem = problem_of("identifies: true, ", "");
    assert!(
        problem.starts_with(
            "click.yaml: order_by: none of its columns is guaranteed to identify a row"
        ),
        "{problem}"
    );
    for advice in ["otherwise: line_hash", "required: true", "identifies: true"] {
        assert!(problem.contains(advice), "{problem}");
        let sound = SOUND.replace("identifies: true", advice);
        assert_eq!(problems(&[("click.yaml", &sound)]), Vec::<String>::new());
    }
    let other_column = SOUND.replace(
        "identifies: true, path: [id]}",
        "path: [id]}\n  - {name: at, type: String, identifies: true, path: [at]}",
    );
    assert_eq!(problems(&[("click.yaml", &other_column)]), [problem]);
    let both = other_column.replace("[id]\ncol", "[id, at]\ncol");
    assert_eq!(problems(&[("click.yaml", &both)]), Vec::<String>::new());
}

#[test]
fn all_problems_of_all_files_are_reported_at_once() {
    let broken = SOUND
        .replace("type: String", "type: Strng")
        .replace("equals: click", "");
    let found = problems(&[
        ("a.yaml", &broken),
        ("b.yaml", "tabel: x"),
        ("rejected.yaml", SOUND),
        ("empty_columns.yaml", &SOUND.replace("clicks", "others")),
    ]);
    assert_eq!(found.len(), 5, "{found:#?}");
    for name in ["rejected", "empty_columns"] {
        let refused = format!("cannot be called {name:?}");
        assert!(found.iter().any(|problem| problem.contains(&refused)));
    }
}

#[test]
fn every_problem_has_its_place_in_the_text() {
    let text = "table: clicks
rule:
  any: []
order_by: [id, at]
columns:
  - {name: id, type: String, required: true, path: [id]}
  - name: at
    type: Strng
    path: [at]
  - {name: verb, type: String, path: [id, x]}
";
    let places = |text: &str| {
        let files = [("click.yaml".to_owned(), text.to_owned())];
        let problems = Catalog::from_files(files).unwrap_err().into_iter();
        let place = |problem: Problem| {
            let position = problem.position.map(|it| (it.line, it.column));
            (problem.at, position)
        };
        problems.map(place).collect::<Vec<_>>()
    };
    let place = |at: &str, line, column| (at.to_owned(), Some((line, column)));
    assert_eq!(
        places(text),
        [place("columns[1].type", 8, 5), place("rule.any", 3, 3)]
    );
    let sound = text
        .replace("Strng", "String")
        .replace("[]", "[{path: [id], present: true}]");
    assert_eq!(places(&sound), [place("column verb", 10, 5)]);
    let without_table = SOUND.replace("table: clicks", "");
    assert_eq!(places(&without_table), [("table".to_owned(), None)]);
    let text = format!("{SOUND}tabel: x\ntable: y\n");
    assert_eq!(places(&text), [place("tabel", 7, 1), place("table", 8, 1)]);
}

#[test]
fn two_types_cannot_share_a_table() {
    let found = problems(&[("a.yaml", SOUND), ("b.yaml", SOUND)]);
    assert_eq!(
        found,
        [
            "b.yaml: table: \"clicks\" is also the table of a.yaml; give each event type its own table"
        ]
    );
}

#[test]
fn a_problem_of_a_shared_file_is_reported_once() {
    let base = "abstract: true\norder_by: [x]\ncolumns:\n  - {name: x, type: Wrong, path: [x], required: true}\n";
    let child = "extends: base\ntable: T\nrule: {path: [v], equals: T}\n";
    let found = problems(&[
        ("a.yaml", &child.replace('T', "a")),
        ("b.yaml", &child.replace('T', "b")),
        ("base.yaml", base),
    ]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].starts_with("base.yaml: columns[0].type: unknown type"),
        "{found:#?}"
    );
}

#[test]
fn bases_can_extend_bases_but_not_themselves() {
    let a = "abstract: true\nextends: b\n";
    let b = "abstract: true\nextends: a\n";
    let found = problems(&[("a.yaml", a), ("b.yaml", b), ("click.yaml", SOUND)]);
    assert!(
        !found.is_empty() && found.iter().all(|p| p.contains("extends itself")),
        "{found:#?}"
    );
}

#[test]
fn no_event_types_at_all_is_a_problem() {
    assert!(problems(&[])[0].contains("no event types are declared"));
    assert!(
        problems(&[("base.yaml", "abstract: true")])[0].contains("no event types are declared")
    );
}

#[test]
fn a_rule_can_require_a_value_alone() {
    let with = |rule: &str| SOUND.replace("{path: [verb], equals: click}", rule);
    let present = with("{path: [verb], present: true}");
    let catalog = Catalog::from_files([("click.yaml".to_owned(), present)]).unwrap();
    assert_eq!(
        catalog.types()[0].rule.sql(&paths::PathTexts),
        "isNotNull(`$.verb`)"
    );
    for (rule, expected) in [
        ("{path: [verb], present: false}", "rule: must be one of"),
        (
            "{path: [verb], present: true, equals: a}",
            "rule: must be one of",
        ),
        (
            "{not: {path: [verb], present: true}}",
            "rule: matches statements without",
        ),
    ] {
        let found = problems(&[("click.yaml", &with(rule))]);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains(expected), "{found:#?}");
    }
}
