use super::*;
use crate::event_types::{Catalog, Problem};

const CLICKS: &str = "
table: clicks
rule: {path: [verb], present: true}
order_by: [id]
columns:
  - {name: id, type: String, identifies: true, path: [id]}
";

fn catalog(formats: &str) -> Result<Catalog, Vec<String>> {
    let files = [("click.yaml", CLICKS), ("formats.yaml", formats)];
    let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
    Catalog::from_files(files)
        .map_err(|problems| problems.into_iter().map(without_position).collect())
}

fn without_position(problem: Problem) -> String {
    let problem = Problem {
        position: None,
        ..problem
    };
    problem.to_string()
}

fn problems(formats: &str) -> Vec<String> {
    catalog(formats).err().unwrap_or_default()
}

/// Returns the one problem of a format with this name, these keys and this kind.
fn problem_of(kind: &str) -> String {
    let found = problems(&format!("formats:\n- {{name: a, keys: [a/*], {kind}}}\n"));
    assert_eq!(found.len(), 1, "{kind}: {found:#?}");
    found.into_iter().next().unwrap_or_default()
}

const SOUND: &str = r##"
formats:
  - name: exempt
    keys: [logs/lines/**]
    json_lines: {}
    on_all_rejected: fail
  - name: cloudtrail
    keys: ["AWSLogs/*/CloudTrail/**"]
    json: {records: [Records]}
  - {name: firehose, keys: [firehose/**], json: {}}
  - name: exports
    keys: ["exports/**/*.csv"]
    csv: {header: true, nulls: ["", "NULL"], comment: "#"}
  - name: vpc
    keys: [vpc/*]
    csv: {delimiter: " ", quoted: false, nulls: ["-"]}
  - name: cloudfront
    keys: [cf/*]
    tsv: {header: false, skip_lines: 2, columns: [date, cs(Host)]}
  - name: access
    keys: [logs/**]
    regex: {pattern: '^(?P<owner>\S+) \[(?P<time>[^\]]+)\](?: (?:x|y))?', nulls: ["-"]}
    on_all_rejected: keep
  - {name: trips, keys: ["**/*.parquet"], parquet: {}}
  - {name: orders, keys: ["**/*.avro"], avro: {}}
  - {name: old, keys: ["**/*.orc"], orc: {}}
"##;

#[test]
fn the_first_format_whose_keys_match_takes_an_object() {
    let catalog = catalog(SOUND).unwrap();
    let formats = catalog.formats();
    for (key, name) in [
        ("AWSLogs/1/CloudTrail/a.json.gz", "cloudtrail"),
        ("firehose/2026/11/a", "firehose"),
        ("exports/a/b.csv", "exports"),
        ("exports/a/b.csv.gz", "json_lines"),
        ("vpc/a", "vpc"),
        ("cf/a", "cloudfront"),
        ("logs/lines/a.parquet", "exempt"),
        ("logs/a.parquet", "access"),
        ("a.parquet", "trips"),
        ("a/b.avro", "orders"),
        ("a.orc", "old"),
        ("a.jsonl", "json_lines"),
        ("", "json_lines"),
    ] {
        assert_eq!(formats.get(formats.of(key)).name, name, "{key}");
    }
    assert_eq!(formats.declared().len(), 10);
    for id in formats.ids() {
        assert_eq!(formats.named(&formats.get(id).name), Some(id));
    }
    assert_eq!(formats.named(""), Some(FormatId::JSON_LINES));
    assert_eq!(formats.named("none"), None);
}

#[test]
fn a_declaration_has_what_it_says_and_the_usual_rest() {
    let catalog = catalog(SOUND).unwrap();
    let kind = |name: &str| {
        let formats = catalog.formats();
        let id = formats.named(name).unwrap();
        formats.get(id).kind.clone()
    };
    let csv = Delimited {
        delimiter: ',',
        header: true,
        columns: None,
        quoted: true,
        nulls: vec![String::new(), "NULL".to_owned()],
        comment: Some("#".to_owned()),
        skip_lines: 0,
    };
    assert_eq!(kind("exports"), Kind::Delimited(csv.clone()));
    let vpc = Delimited {
        delimiter: ' ',
        quoted: false,
        nulls: vec!["-".to_owned()],
        comment: None,
        ..csv.clone()
    };
    assert_eq!(kind("vpc"), Kind::Delimited(vpc));
    let cloudfront = Delimited {
        delimiter: '\t',
        header: false,
        columns: Some(vec!["date".to_owned(), "cs(Host)".to_owned()]),
        quoted: false,
        nulls: vec![String::new()],
        comment: None,
        skip_lines: 2,
    };
    assert_eq!(kind("cloudfront"), Kind::Delimited(cloudfront));
    let Kind::Regex(access) = kind("access") else {
        panic!("a regular expression")
    };
    assert_eq!(access.names, ["owner", "time"]);
    let needs: Vec<&str> = [
        "cloudtrail",
        "exports",
        "vpc",
        "cloudfront",
        "access",
        "trips",
    ]
    .into_iter()
    .filter(|name| kind(name).needs_structure())
    .collect();
    assert_eq!(needs, ["exports", "vpc", "trips"]);
}

#[test]
fn json_lines_are_kept_and_others_fail_unless_it_is_said_otherwise() {
    use OnAllRejected::{Fail, Keep};
    let catalog = catalog(SOUND).unwrap();
    let formats = catalog.formats();
    for (name, configured, expected) in [
        ("json_lines", None, Keep),
        ("json_lines", Some(Fail), Fail),
        ("exempt", Some(Keep), Fail),
        ("trips", None, Fail),
        ("trips", Some(Keep), Keep),
        ("access", Some(Fail), Keep),
    ] {
        let id = formats.named(name).unwrap();
        assert_eq!(formats.on_all_rejected(id, configured), expected, "{name}");
    }
}

#[test]
fn without_a_file_everything_is_json_lines() {
    let files = [("click.yaml".to_owned(), CLICKS.to_owned())];
    let catalog = Catalog::from_files(files).unwrap();
    assert!(catalog.formats().declared().is_empty());
    let id = catalog.formats().of("a.parquet");
    assert_eq!(id, FormatId::JSON_LINES);
    assert!(catalog.formats().get(id).kind.is_json_lines());
}

#[test]
fn each_problem_names_its_place() {
    let one_kind = "formats[0]: must have exactly one of `json`, `csv`";
    for (kind, expected) in [
        ("on_all_rejected: keep", one_kind),
        ("json: {}, avro: {}", one_kind),
        ("csv: {delimeter: a}", "formats[0].csv"),
        (
            "json: {records: []}",
            "formats[0].json.records: is not a path",
        ),
        (
            "json: {records: [a, \"\"]}",
            "formats[0].json.records: is not a path",
        ),
        (
            "json: {records: [_path]}",
            "formats[0].json.records: is not a path",
        ),
        (
            "csv: {delimiter: ab}",
            "formats[0].csv.delimiter: \"ab\" must be one ASCII",
        ),
        (
            "csv: {delimiter: é}",
            "formats[0].csv.delimiter: \"é\" must be one ASCII",
        ),
        ("csv: {delimiter: '\"'}", "formats[0].csv.delimiter: "),
        ("csv: {delimiter: \"\\n\"}", "formats[0].csv.delimiter: "),
        ("csv: {comment: \"\"}", "formats[0].csv.comment: must be"),
        ("csv: {comment: \",\"}", "formats[0].csv.comment: must be"),
        (
            "csv: {nulls: [\"a,b\"]}",
            "formats[0].csv.nulls: \"a,b\" has the delimiter",
        ),
        ("tsv: {header: false}", "formats[0].tsv.columns: is missing"),
        (
            "csv: {header: false, columns: []}",
            "formats[0].csv.columns: is an empty list",
        ),
        (
            "csv: {columns: [a, a]}",
            "formats[0].csv.columns: \"a\" is there twice",
        ),
        (
            "csv: {columns: [a, \"\"]}",
            "formats[0].csv.columns: has an empty name",
        ),
        (
            "regex: {pattern: '('}",
            "formats[0].regex.pattern: is not a valid regular",
        ),
        (
            "regex: {pattern: 'a'}",
            "formats[0].regex.pattern: has no named group",
        ),
        (
            "regex: {pattern: '(?P<a>x)(y)'}",
            "formats[0].regex.pattern: has a group without",
        ),
        (
            "regex: {pattern: '(?P<a>x)(?P<a>y)'}",
            "formats[0].regex.pattern: is not a valid",
        ),
        (
            "regex: {pattern: '(?P<a.b>x)'}",
            "formats[0].regex.pattern: has a group whose name",
        ),
    ] {
        let problem = problem_of(kind);
        let expected = format!("formats.yaml: {expected}");
        assert!(problem.starts_with(&expected), "{kind}: {problem}");
    }
}

#[test]
fn names_and_keys_apply_to_one_format_each() {
    let two = |one: &str, other: &str| {
        problems(&format!(
            "formats:\n- {{{one}, json: {{}}}}\n- {{{other}, json: {{}}}}\n"
        ))
    };
    for (one, other, expected) in [
        (
            "name: a, keys: [a/*]",
            "name: a, keys: [b/*]",
            "formats[1].name: \"a\" is also",
        ),
        (
            "name: a, keys: [a/*]",
            "name: '', keys: [b/*]",
            "formats[1].name: is empty",
        ),
        (
            "name: a, keys: [a/*]",
            "name: json_lines, keys: [b/*]",
            "formats[1].name: \"json_",
        ),
        (
            "name: a, keys: [a/*, b/*]",
            "name: b, keys: [b/*]",
            "formats[1].keys: all of them",
        ),
        (
            "name: a, keys: [a/*]",
            "name: b, keys: []",
            "formats[1].keys: is an empty list",
        ),
        (
            "name: a, keys: [a/*]",
            "name: b, keys: [/b]",
            "formats[1].keys[0]: \"/b\" matches no",
        ),
        (
            "name: a, keys: [a/*]",
            "name: b, keys: ['a[']",
            "formats[1].keys: `a[` is not",
        ),
    ] {
        let found = two(one, other);
        assert_eq!(found.len(), 1, "{found:#?}");
        let expected = format!("formats.yaml: {expected}");
        assert!(found[0].starts_with(&expected), "{found:#?}");
    }
    assert_eq!(
        two("name: a, keys: [a/*]", "name: b, keys: [a/*, b/*]"),
        Vec::<String>::new()
    );
}

#[test]
fn problems_of_formats_and_of_event_types_are_reported_at_once() {
    let files = [
        ("click.yaml", CLICKS.replace("type: String", "type: Strng")),
        (
            "formats.yaml",
            "formats:\n- {name: a, keys: [a], csv: {x: 1}}\n".to_owned(),
        ),
        ("formats.yml", "formats: []\n".to_owned()),
    ];
    let files = files.map(|(name, text)| (name.to_owned(), text));
    let found: Vec<String> = Catalog::from_files(files)
        .unwrap_err()
        .into_iter()
        .map(without_position)
        .collect();
    for expected in [
        "click.yaml: columns[0].type: unknown type",
        "formats.yaml: formats[0].csv",
        "formats.yml: formats.yaml also declares formats; merge the two",
    ] {
        assert!(
            found.iter().any(|it| it.starts_with(expected)),
            "{found:#?}"
        );
    }
}

#[test]
fn a_key_that_yaml_does_not_take_as_text_is_a_key() {
    let problem = problem_of("csv: {null: [a]}");
    assert!(problem.contains("did you mean `nulls`?"), "{problem}");
}
