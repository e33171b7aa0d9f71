use super::verdict::{bad_value, verdicts};
use super::*;
use crate::event_types::paths::PathTexts;

fn lines() -> Lines {
    Lines {
        filter: Some("throwIf(false) = 0".to_owned()),
        ..Lines::of_objects(
            "s3('http://s3/b/{k1,k2}', 'LineAsString', 'line String')",
            Uuid::nil(),
        )
    }
}

const CLICKS: &str = r#"
table: clicks
rule: {path: [verb], equals: click}
order_by: [at, id]
columns:
  - {name: id, type: String, path: [id], otherwise: line_hash}
  - {name: at, type: "DateTime64(3, 'UTC')", path: [at], required: true}
  - {name: shop, type: "LowCardinality(String)", path: [ctx, "http://x.y/shop"], fallbacks: [[shop]]}
  - {name: price, type: "Nullable(Float64)", path: [price]}
  - {name: sum, type: Float64, expression: "toFloat64OrNull({value}) * toFloat64OrNull({count})", path: [price], inputs: {count: [n]}}
  - {name: line, type: UInt64, expression: "{row_number}"}
"#;

fn clicks() -> Catalog {
    Catalog::from_files([("click.yaml".to_owned(), CLICKS.to_owned())]).unwrap()
}

#[test]
fn a_small_catalog() {
    let catalog = clicks();
    let selects: Vec<_> = Target::all(&catalog)
        .into_iter()
        .map(|target| {
            format!(
                "-- {}: {:?}\n{}\n",
                target.table(),
                target.columns(),
                view_select(&catalog, Landing::Texts, target, "landing")
            )
        })
        .collect();
    insta::assert_snapshot!(format!(
        "{}\n-- landing\n{}\n",
        selects.join("\n"),
        landing_select(&catalog, &lines())
    ));
}

#[test]
fn the_builtin_catalog() {
    insta::assert_snapshot!(landing_select(&Catalog::builtin(), &lines()));
}

#[test]
fn a_time_is_quoted_as_its_event_type_reads_it() {
    let declared = |name: &str, key: &str, required: bool| {
        let text = format!(
            r#"
table: {name}s
rule: {{path: [verb], equals: {name}}}
order_by: [id]
partition_by: toYYYYMM(at)
columns:
  - {{name: id, type: String, identifies: true, path: [id]}}
  - {{name: at, type: "DateTime64(3, 'UTC')", path: [{key}], required: {required}}}
"#
        );
        (format!("{name}.yaml"), text)
    };
    let files = [
        declared("click", "at", true),
        declared("press", "time", false),
    ];
    let catalog = Catalog::from_files(files).unwrap();
    assert_eq!(
        bad_value(&catalog, &PathTexts),
        "toValidUTF8(substring(multiIf(verdict IN ('at out of range', 'invalid at'), \
         multiIf(taken IN ('click'), `$.at`, taken IN ('press'), `$.time`, NULL), NULL), 1, 200))"
    );
    let times = Some(TimeRange { start: 1, end: 2 });
    let lines = Lines { times, ..lines() };
    let verdicts = verdicts(&catalog, &lines, &PathTexts);
    let closely_read: Vec<bool> = verdicts
        .lines()
        .filter(|branch| branch.contains("out of range"))
        .map(|branch| branch.contains("match("))
        .collect();
    assert_eq!(closely_read, [false, true], "{verdicts}");
}

#[test]
fn a_per_type_select_is_the_view_over_the_landing_select() {
    let catalog = Catalog::builtin();
    for target in Target::all(&catalog) {
        let select = per_type_select(&catalog, target, &lines());
        assert!(
            select.contains(&landing_select(&catalog, &lines())),
            "{}",
            target.table()
        );
    }
}

/// Returns records with fields of these names and types, each in a column of the same name.
fn records(fields: &[(&str, &str)]) -> Lines {
    let fields = fields.iter().map(|(name, of_type)| {
        let shape = Shape::parse(of_type).unwrap();
        ((*name).to_owned(), ((*name).to_owned(), shape))
    });
    Lines {
        line: "text".to_owned(),
        fields: Fields::Own(OwnFields::of_shapes(fields, "byteSize(id)".to_owned())),
        ..lines()
    }
}

#[test]
fn the_landing_table_of_values_has_a_column_for_each_value_and_each_input() {
    let catalog = clicks();
    let columns = value_columns(&catalog);
    let columns: Vec<String> = columns
        .iter()
        .map(|(name, column_type)| format!("{name} {column_type}"))
        .collect();
    assert_eq!(
        columns,
        [
            "click.id String",
            "click.at DateTime64(3, 'UTC')",
            "click.shop LowCardinality(String)",
            "click.price Nullable(Float64)",
            "$.n Nullable(String)",
            "$.price Nullable(String)",
            "kind LowCardinality(String)",
            "reason LowCardinality(String)",
            "value Nullable(String)",
            "raw String",
            "line_hash FixedString(16)",
            "source_path LowCardinality(String)",
            "source_etag LowCardinality(String)",
            "row_number UInt64",
            "batch_id UUID",
        ]
    );
    let target = Target::EventType(&catalog.types()[0]);
    assert_eq!(
        view_select(&catalog, Landing::Values, target, "landing"),
        "SELECT
    if(empty(ifNull(`click.id`, '')), lower(hex(line_hash)), ifNull(`click.id`, '')) AS `id`,
    `click.at` AS `at`,
    `click.shop` AS `shop`,
    `click.price` AS `price`,
    ifNull(toFloat64OrNull(`$.price`) * toFloat64OrNull(`$.n`), 0) AS `sum`,
    ifNull(row_number, 0) AS `line`,
    source_path, source_etag, batch_id
FROM landing
WHERE kind = 'click'"
    );
}

#[test]
fn values_are_read_from_the_types_of_a_file() {
    let records = records(&[
        ("id", "Int64"),
        ("at", "Nullable(DateTime64(6, 'UTC'))"),
        ("ctx", "Tuple(`http://x.y/shop` String)"),
        ("price", "Decimal(9, 2)"),
        ("verb", "String"),
        ("other", "Array(String)"),
    ]);
    assert_eq!(records.landing(), Landing::Values);
    let select = landing_select(&clicks(), &records);
    for part in [
        // The source.
        "text AS line,",
        "byteSize(id) AS bytes,",
        "at AS `value at $.at`,",
        "tupleElement(ctx, 'http://x.y/shop') AS `value at $.ctx[\"http://x.y/shop\"]`,",
        // What takes the record.
        "ifNull(toValidUTF8(`value at $.verb`) = 'click', 0), 'click',",
        // The values.
        "toString(`value at $.id`) AS `click.id or NULL`,",
        "toDateTime64(if(`value at $.at` >= toDateTime64(0, 6, 'UTC') AND \
         `value at $.at` < toDateTime64(10413792000, 6, 'UTC'), `value at $.at`, NULL), 3, 'UTC') \
         AS `click.at or NULL`,",
        "toValidUTF8(`value at $.ctx[\"http://x.y/shop\"]`) AS `click.shop or NULL`,",
        "toFloat64(`value at $.price`) AS `click.price or NULL`,",
        "CAST(NULL, 'Nullable(String)') AS `text at $.n`,",
        "toString(toFloat64(`value at $.price`)) AS `text at $.price`",
        // What is wrong with it.
        "taken != '' AND isNull(`click.at or NULL`), \
         if(isNull(`value at $.at`), 'missing at', 'invalid at'),",
        // The row.
        "ifNull(`click.id or NULL`, '') AS `click.id`,",
        "ifNull(`click.at or NULL`, toDateTime64(0, 3, 'UTC')) AS `click.at`,",
        "`click.price or NULL` AS `click.price`,",
        "`text at $.n` AS `$.n`,",
        "if(taken != '' AND empty(ifNull(`click.id or NULL`, '')), sipHash128(",
    ] {
        assert!(select.contains(part), "{part}\n{select}");
    }
    // No problem is looked for, and nothing is parsed.
    for absent in ["problem", "JSONExtract", "other", "isValidUTF8"] {
        assert!(!select.contains(absent), "{absent}\n{select}");
    }
}

#[test]
fn event_types_share_values_and_those_of_one_are_read_for_its_records() {
    let press = CLICKS
        .replace("clicks", "presses")
        .replace("click", "press")
        .replace("path: [at]", "path: [time]");
    let files = [
        ("click.yaml".to_owned(), CLICKS.to_owned()),
        ("press.yaml".to_owned(), press),
    ];
    let catalog = Catalog::from_files(files).unwrap();
    let texts = ["id", "at", "time", "price", "verb"];
    let texts = texts.map(|name| (name, "String"));
    let select = landing_select(&catalog, &records(&texts));
    assert!(!select.contains("press.id"), "{select}");
    for (column, of_one) in [
        ("click.at", true),
        ("press.at", true),
        ("click.price", false),
    ] {
        let end = format!(" AS `{column} or NULL`");
        let read = select.lines().find(|line| line.contains(&end)).unwrap();
        let is_guarded = read.trim_start().starts_with("if(taken IN (");
        assert_eq!(is_guarded, of_one, "{read}");
    }
}
