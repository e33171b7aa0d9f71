//! The SQL of each kind of records. It was measured with ClickHouse as it stands here.

use uuid::Uuid;

use super::*;
use crate::batch::{BatchId, Layout, ReadBy, StatementShape};
use crate::event_types::Catalog;
use crate::fixtures::{object, planner};
use crate::object::{ObjectParts, ObjectRef};
use crate::statements::Statement;
use crate::statements::guard::CHANGED_TEXT;
use crate::statements::insert::{Planner, PlannerOptions, Strategy};
use crate::statements::layouts::{StructureAnswer, StructureQuery};
use crate::statements::s3_source::S3Access;
use crate::statements::select::landing_select;

const RIDES: &str = "
table: rides
rule: {path: [id], present: true}
order_by: [id]
columns:
  - {name: id, type: String, required: true, path: [id]}
  - {name: shop, type: String, path: [ctx, shop], fallbacks: [[shop name]]}
";

const FORMATS: &str = r##"
formats:
  - {name: documents, keys: ["*.json"], json: {}}
  - {name: envelope, keys: ["*.env"], json: {records: [Records]}}
  - {name: nested, keys: ["*.nest"], json: {records: [detail, "a list"]}}
  - {name: csv, keys: ["*.csv"], csv: {nulls: ["", "NULL", NA], comment: "#"}}
  - {name: bare_csv, keys: ["*.bare"], csv: {header: false, columns: [id], nulls: []}}
  - {name: split, keys: ["*.vpc"], csv: {delimiter: " ", quoted: false, nulls: ["-"]}}
  - {name: tsv, keys: ["*.tsv"], tsv: {header: false, columns: [id]}}
  - {name: log, keys: ["*.log"], regex: {pattern: '^(?P<id>\S+) "(?P<what>[^"]*)"', nulls: ["-"]}}
  - {name: parquet, keys: ["*.parquet"], parquet: {}}
  - {name: avro, keys: ["*.avro"], avro: {}}
  - {name: orc, keys: ["*.orc"], orc: {}}
"##;

fn options(formats: Option<&str>) -> PlannerOptions {
    let formats = formats.map(|text| ("formats.yaml".to_owned(), text.to_owned()));
    let types = [("ride.yaml".to_owned(), RIDES.to_owned())];
    let files = types.into_iter().chain(formats);
    PlannerOptions {
        catalog: Catalog::from_files(files).unwrap(),
        ..planner(S3Access::Server, Some("http://e"))
            .options()
            .clone()
    }
}

fn of_formats() -> Planner {
    Planner::new(options(Some(FORMATS)))
}

fn columns_of(list: &[(&str, &str)]) -> StructureAnswer {
    let columns = list.iter();
    StructureAnswer::Columns(
        columns
            .map(|(name, of_type)| ((*name).to_owned(), (*of_type).to_owned()))
            .collect(),
    )
}

fn layout(planner: &Planner, name: &str) -> Layout {
    let format = planner.catalog().formats().named(name).unwrap();
    let answer = match planner.structure_query(format, &object("b", "k", "1")) {
        _ if name == "split" => StructureAnswer::Header(Some("id shop-name".to_owned())),
        StructureQuery::Header(_) => StructureAnswer::Header(Some("id,\"shop name\"\r".to_owned())),
        StructureQuery::Columns(_) => columns_of(&[
            ("id", "Int64"),
            ("ctx", "Tuple(shop Nullable(String))"),
            ("at", "DateTime64(3, 'UTC')"),
        ]),
    };
    let known = planner.layout_of(format);
    known.unwrap_or_else(|| planner.layout_with(format, answer).unwrap())
}

const BATCH: BatchId = BatchId(Uuid::from_u128(7));

fn insert(planner: &Planner, object: &ObjectRef, read_by: ReadBy, layout: &Layout) -> Statement {
    let objects = [object];
    let shape = planner.shape(&objects, StatementShape::of(read_by), layout);
    let mut inserts = planner.inserts(BATCH, &objects, shape, layout, "0");
    assert_eq!(inserts.len(), 1);
    inserts.pop().unwrap()
}

/// Returns the value of a setting, which a statement has at most once.
fn setting<'a>(statement: &'a Statement, name: &str) -> Option<&'a str> {
    let mut values = statement.settings.iter().filter(|(it, _)| *it == name);
    let value = values.next().map(|(_, value)| value.as_str());
    assert!(values.next().is_none(), "{name} twice");
    value
}

#[test]
fn each_kind_has_a_source_of_its_own() {
    let planner = of_formats();
    let object = object("b", "k", "1");
    for (name, from) in [
        (
            "documents",
            "(SELECT line, _path, _etag, _row_number FROM s3('http://e/b/k', 'JSONAsString', 'line String'))",
        ),
        (
            "envelope",
            r"(SELECT line, _path, _etag, toUInt64(`\x01` * 4294967296 + place - 1) AS _row_number FROM (SELECT `Records` AS of_document, _path, _etag, _row_number AS `\x01` FROM s3('http://e/b/k', 'JSONEachRow', '`Records` Array(String) DEFAULT [\'\\x01\']')) ARRAY JOIN of_document AS line, arrayEnumerate(of_document) AS place)",
        ),
        (
            "nested",
            r"(SELECT line, _path, _etag, toUInt64(`\x01` * 4294967296 + place - 1) AS _row_number FROM (SELECT tupleElement(`detail`, 'a list') AS of_document, _path, _etag, _row_number AS `\x01` FROM s3('http://e/b/k', 'JSONEachRow', '`detail` Tuple(`a list` Array(String)) DEFAULT tuple([\'\\x01\'])')) ARRAY JOIN of_document AS line, arrayEnumerate(of_document) AS place)",
        ),
        (
            "csv",
            "(SELECT *, _path, _etag, _row_number FROM s3('http://e/b/k', 'CSV', '`c1` Nullable(String), `c2` Nullable(String), `rest1` Nullable(String), `rest2` Nullable(String), `rest3` Nullable(String), `rest4` Nullable(String), `rest5` Nullable(String), `rest6` Nullable(String), `rest7` Nullable(String), `rest8` Nullable(String)'))",
        ),
        (
            "split",
            r"(SELECT line AS text, _path, _etag, _row_number, splitByChar(' ', trim(TRAILING '\r' FROM line)) AS fields FROM (SELECT line, _path, _etag, _row_number FROM s3('http://e/b/k', 'LineAsString', 'line String')) WHERE _row_number >= 1)",
        ),
        (
            "tsv",
            r"(SELECT line AS text, _path, _etag, _row_number, splitByChar('\t', if(_row_number = 0 AND startsWith(trim(TRAILING '\r' FROM line), '\xEF\xBB\xBF'), substring(trim(TRAILING '\r' FROM line), 4), trim(TRAILING '\r' FROM line))) AS fields FROM (SELECT line, _path, _etag, _row_number FROM s3('http://e/b/k', 'LineAsString', 'line String')) WHERE _row_number >= 0)",
        ),
        (
            "log",
            r#"(SELECT *, extractGroups(trim(TRAILING '\r' FROM line), '^(?P<id>\\S+) "(?P<what>[^"]*)"') AS fields FROM (SELECT line, _path, _etag, _row_number FROM s3('http://e/b/k', 'LineAsString', 'line String')))"#,
        ),
        (
            "parquet",
            r"(SELECT `id` AS `\x01 1`, `ctx` AS `\x01 2`, `at` AS `\x01 3`, _path, _etag, _row_number FROM s3('http://e/b/k', 'Parquet', '`id` Nullable(Int64), `ctx` Tuple(shop Nullable(String)), `at` Nullable(DateTime64(3, \'UTC\'))'))",
        ),
        (
            "orc",
            r"(SELECT `id` AS `\x01 1`, `ctx` AS `\x01 2`, `at` AS `\x01 3`, _path, _etag, rowNumberInAllBlocks() AS _row_number FROM s3('http://e/b/k', 'ORC', '`id` Nullable(Int64), `ctx` Tuple(shop Nullable(String)), `at` Nullable(DateTime64(3, \'UTC\'))'))",
        ),
    ] {
        let records = planner.records_of(&object, &layout(&planner, name));
        assert_eq!(records.from, from, "{name}");
    }
}

#[test]
fn the_fields_of_text_need_no_json() {
    let planner = of_formats();
    let object = object("b", "k", "1");
    let texts = |name: &str| {
        let records = planner.records_of(&object, &layout(&planner, name));
        let Fields::Own(fields) = &records.fields else {
            panic!("{name} has fields of its own")
        };
        let second = if name == "log" { "what" } else { "shop name" };
        let second = if name == "split" { "shop-name" } else { second };
        let values = ["id", second].map(|name| fields.at(&[name.to_owned()]).unwrap().0);
        (values, records.problems, records.line)
    };
    let problems = |list: [(&str, &str); 3]| {
        list.map(|(condition, reason)| (condition.to_owned(), format!("'{reason}'")))
            .to_vec()
    };
    let (values, found, line) = texts("csv");
    assert_eq!(
        values,
        [
            "if(c1 IN ('NA'), NULL, c1)",
            "if(c2 = '' AND isNull(rest1), NULL, if(c2 IN ('NA'), NULL, c2))"
        ]
    );
    let read = ["c1", "c2"].into_iter().map(str::to_owned);
    let read: Vec<String> = read.chain((1..=8).map(|it| format!("rest{it}"))).collect();
    let each = |columns: &[String], of: &dyn Fn(&String) -> String| {
        columns.iter().map(of).collect::<Vec<_>>().join(", ")
    };
    let all = each(&read, &|it| format!("assumeNotNull({it})"));
    let all = format!("concatWithSeparator(',', {all})");
    let rest = each(&read[2..], &|it| format!("ifNull({it}, '')"));
    let rest = format!("trim(TRAILING ',' FROM concatWithSeparator(',', {rest}))");
    assert_eq!(
        found,
        problems([
            (
                &format!("length({all}) - 9 = 0 OR startsWith(ifNull(c1, ''), '#')"),
                "blank"
            ),
            (&format!("NOT isValidUTF8({all})"), "bad UTF-8"),
            (&format!("notEmpty({rest})"), "too many fields"),
        ])
    );
    let (first, second) = (&values[0], &values[1]);
    assert_eq!(
        line,
        format!(
            r"if(notEmpty({rest}), toJSONString(CAST(tuple({first}, {second}, {rest}), 'Tuple(`id` Nullable(String), `shop name` Nullable(String), `\\x01` Nullable(String))')), toJSONString(CAST(tuple({first}, {second}), 'Tuple(`id` Nullable(String), `shop name` Nullable(String))')))"
        )
    );
    let (values, found, _) = texts("split");
    assert_eq!(
        values[1],
        "if(length(fields) < 2 OR arrayElement(fields, 2) IN ('-'), NULL, arrayElement(fields, 2))"
    );
    assert_eq!(
        found,
        problems([
            (r"match(text, '^\\s*$')", "blank"),
            ("NOT isValidUTF8(text)", "bad UTF-8"),
            ("length(fields) > 2", "too many fields"),
        ])
    );
    let (values, found, line) = texts("log");
    assert_eq!(
        values[1],
        "if(arrayElement(fields, 2) IN ('', '-'), NULL, arrayElement(fields, 2))"
    );
    assert_eq!(
        found,
        problems([
            (r"empty(fields) AND match(line, '^\\s*$')", "blank"),
            ("NOT isValidUTF8(line)", "bad UTF-8"),
            ("empty(fields)", "no match"),
        ])
    );
    assert_eq!(line, "line");
}

#[test]
fn a_record_with_fields_becomes_a_row_of_landing() {
    let planner = of_formats();
    let records = planner.records_of(&object("b", "k", "1"), &layout(&planner, "log"));
    let records = Lines {
        filter: Some("throwIf(false) = 0".to_owned()),
        max_line_bytes: 100,
        ..records
    };
    let expected = r#"SELECT
    ifNull(`ride.id or NULL`, '') AS `ride.id`,
    ifNull(`ride.shop or NULL`, '') AS `ride.shop`,
    multiIf(verdict = '', taken, verdict = 'blank', 'blank', verdict = 'no event type', 'unmatched', 'rejected') AS kind,
    if(verdict = 'blank', '', verdict) AS reason,
    NULL AS value,
    if(verdict = '' OR verdict = 'blank', '', line) AS raw,
    if(false, sipHash128(trim(TRAILING '\r' FROM line)), toFixedString('', 16)) AS line_hash,
    source_path, source_etag, row_number,
    toUUID('00000000-0000-0000-0000-000000000000') AS batch_id
FROM (
    SELECT
        *,
        multiIf(
            bytes > 100, 'too large',
            problem != '', problem,
            taken != '' AND isNull(`ride.id or NULL`), 'missing id',
            taken != '', '',
            'no event type'
        ) AS verdict
    FROM (
        SELECT
            *,
            `value at $.id` AS `ride.id or NULL`,
            CAST(NULL, 'Nullable(String)') AS `ride.shop or NULL`
        FROM (
            SELECT
                *,
                multiIf(
                    isNotNull(`value at $.id`), 'ride',
                    ''
                ) AS taken
            FROM (
                SELECT
                    line AS line,
                    length(line) AS bytes,
                    multiIf(empty(fields) AND match(line, '^\\s*$'), 'blank', NOT isValidUTF8(line), 'bad UTF-8', empty(fields), 'no match', '') AS problem,
                    _path AS source_path,
                    trim(BOTH '"' FROM _etag) AS source_etag,
                    _row_number AS row_number,
                    if(arrayElement(fields, 1) IN ('', '-'), NULL, arrayElement(fields, 1)) AS `value at $.id`
                FROM (SELECT *, extractGroups(trim(TRAILING '\r' FROM line), '^(?P<id>\\S+) "(?P<what>[^"]*)"') AS fields FROM (SELECT line, _path, _etag, _row_number FROM s3('http://e/b/k', 'LineAsString', 'line String')))
                WHERE throwIf(false) = 0
            )
        )
    )
)"#;
    assert_eq!(landing_select(planner.catalog(), &records), expected);
}

#[test]
fn the_body_of_an_insert_is_one_object() {
    let planner = of_formats();
    let object = object("b", "k'", "1");
    for (name, from, end) in [
        (
            "documents",
            r"(SELECT line, 'b/k\'' AS _path, '1' AS _etag, rowNumberInAllBlocks() AS _row_number FROM input('line String'))",
            " FORMAT JSONAsString\n",
        ),
        (
            "envelope",
            r"rowNumberInAllBlocks() AS `\x01` FROM input('`Records` Array(String) DEFAULT [\'\\x01\']'))",
            " FORMAT JSONEachRow\n",
        ),
        ("csv", "(SELECT *, 'b/k", " FORMAT CSV\n"),
        (
            "split",
            "FROM input('line String'))",
            " FORMAT LineAsString\n",
        ),
        (
            "log",
            "FROM input('line String'))",
            " FORMAT LineAsString\n",
        ),
        (
            "parquet",
            "FROM input('`id` Nullable(Int64)",
            " FORMAT Parquet\n",
        ),
        ("avro", "FROM input('`id` Nullable(Int64)", " FORMAT Avro\n"),
        ("orc", "FROM input('`id` Nullable(Int64)", " FORMAT ORC\n"),
    ] {
        let layout = layout(&planner, name);
        let statement = insert(&planner, &object, ReadBy::Stream, &layout);
        assert!(statement.sql.contains(from), "{name}: {}", statement.sql);
        assert!(statement.sql.ends_with(end), "{name}: {}", statement.sql);
        assert_eq!(setting(&statement, "max_threads"), Some("1"), "{name}");
        assert_eq!(setting(&statement, "max_insert_block_size"), Some("30000"));
    }
}

#[test]
fn an_object_is_numbered_by_one_thread_where_clickhouse_does_not_number_it() {
    let planner = of_formats();
    let object = object("b", "k", "1");
    let threads = |name: &str| {
        let statement = insert(&planner, &object, ReadBy::S3, &layout(&planner, name));
        setting(&statement, "max_threads").map(str::to_owned)
    };
    assert_eq!(threads("orc").as_deref(), Some("1"));
    assert_eq!(threads("parquet"), None);
}

#[test]
fn small_objects_become_one_block_if_their_records_are_texts() {
    let planner = of_formats();
    let sized = |key: &str| {
        ObjectRef::from(ObjectParts {
            size: Some(10),
            ..object("b", key, "1").into_parts()
        })
    };
    let (a, c) = (sized("a"), sized("c"));
    let gathers = |name: &str| {
        let layout = layout(&planner, name);
        let shape = StatementShape::of(ReadBy::S3);
        let inserts = planner.inserts(BATCH, &[&a, &c], shape, &layout, "0");
        inserts[0].sql.contains("groupArray((line, _path")
    };
    let names = [
        "documents",
        "envelope",
        "csv",
        "split",
        "log",
        "parquet",
        "avro",
    ];
    let found: Vec<&str> = names.into_iter().filter(|name| gathers(name)).collect();
    assert_eq!(found, ["documents", "envelope", "split", "log"]);
}

#[test]
fn each_kind_pins_the_settings_that_read_it() {
    let planner = of_formats();
    let object = object("b", "k", "1");
    let value = |format: &str, name: &str| {
        let layout = layout(&planner, format);
        let statement = insert(&planner, &object, ReadBy::S3, &layout);
        setting(&statement, name).map(str::to_owned)
    };
    for (format, name, expected) in [
        ("csv", "format_csv_null_representation", Some("NULL")),
        ("csv", "input_format_csv_empty_as_default", Some("1")),
        ("csv", "input_format_csv_skip_first_lines", Some("1")),
        ("bare_csv", "format_csv_null_representation", Some("\u{1}")),
        ("bare_csv", "input_format_csv_empty_as_default", Some("0")),
        ("bare_csv", "input_format_csv_skip_first_lines", Some("0")),
        ("split", "format_csv_delimiter", None),
        ("parquet", "input_format_parquet_preserve_order", Some("1")),
        ("avro", "input_format_parquet_preserve_order", None),
        ("documents", "date_time_output_format", None),
        ("parquet", "date_time_output_format", Some("iso")),
    ] {
        assert_eq!(value(format, name).as_deref(), expected, "{format} {name}");
    }
    let declared: Vec<&str> = super::super::format_settings::names(planner.catalog().formats());
    assert!(declared.contains(&"format_csv_delimiter"));
    let undeclared = Planner::new(options(None));
    let none = super::super::format_settings::names(undeclared.catalog().formats());
    assert_eq!(none, Vec::<&str>::new());
}

#[test]
fn json_lines_keep_their_statements_and_plan_whatever_formats_are_declared() {
    let object = object("b", "k", "1");
    for strategy in [Strategy::SinglePass, Strategy::PerType] {
        let [without, with] = [None, Some(FORMATS)].map(|formats| {
            Planner::new(PlannerOptions {
                strategy,
                ..options(formats)
            })
        });
        let layout = Layout::default();
        for read_by in [ReadBy::S3, ReadBy::Stream] {
            let plan = without.plan_id(read_by, &layout);
            assert_eq!(with.plan_id(read_by, &layout), plan);
            let inserts = |planner: &Planner| {
                let shape = planner.shape(&[&object], StatementShape::of(read_by), &layout);
                planner.inserts(BATCH, &[&object], shape, &layout, "0")
            };
            assert_eq!(inserts(&with), inserts(&without));
        }
        let replay = |planner: &Planner| planner.plan_id(ReadBy::RejectedLines, &layout);
        assert_eq!(replay(&without), without.plan_id(ReadBy::S3, &layout));
        assert_ne!(replay(&with), replay(&without));
    }
}

#[test]
fn a_format_changes_the_plan_of_its_own_batches_only() {
    let planner = of_formats();
    let changed = Planner::new(options(Some(&FORMATS.replace("[^\"]*", "[^\"]+"))));
    for name in ["documents", "csv", "split", "log", "parquet", "avro", "orc"] {
        let layout = layout(&planner, name);
        let plan = |planner: &Planner| planner.plan_id(ReadBy::S3, &layout);
        assert_eq!(plan(&planner) == plan(&changed), name != "log", "{name}");
        assert_ne!(plan(&planner), plan(&Planner::new(options(None))), "{name}");
    }
    let csv = layout(&planner, "csv");
    let other = Layout {
        structure: Vec::new(),
        ..csv.clone()
    };
    let plan = |layout: &Layout| planner.plan_id(ReadBy::S3, layout);
    assert_ne!(plan(&csv), plan(&other));
    assert_eq!(
        plan(&Layout {
            format: "none".to_owned(),
            ..csv
        }),
        None
    );
}

#[test]
fn a_reject_is_replayed_as_its_format_reads_it_now() {
    let planner = of_formats();
    let rejects = Lines::of_rejects("t", Uuid::nil());
    let read = of_rejects(rejects.clone(), planner.catalog().formats());
    let Fields::Json(text) = &read.fields else {
        panic!("JSON")
    };
    assert!(
        text.starts_with("multiIf(length(fields_8) < 0, '', match("),
        "{text}"
    );
    assert!(text.ends_with(", line)"), "{text}");
    for part in [
        r"if(empty(fields_8), '', toJSONString(CAST(tuple(if(arrayElement(fields_8, 1) IN ('', '-')",
        r"if(JSONHas(line, '\x01'), '', toJSONString(mapApply((name, value) -> (name, if(value IN ('NULL', 'NA'), NULL, value)), JSONExtract(line, 'Map(String, Nullable(String))'))))",
        r"if(JSONHas(line, '\x01'), '', line)",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(
        read.from.starts_with("(SELECT *, extractGroups("),
        "{}",
        read.from
    );
    let select = landing_select(planner.catalog(), &read);
    assert!(select.contains("line, json, source_path"), "{select}");
    assert!(
        select.contains("NOT isValidJSON(json), 'not JSON'"),
        "{select}"
    );
    let plain = Planner::new(options(Some(
        "formats:\n- {name: a, keys: [a], json: {}}\n- {name: b, keys: [b], parquet: {}}\n",
    )));
    assert_eq!(
        of_rejects(rejects.clone(), plain.catalog().formats()),
        rejects
    );
}

#[test]
fn what_is_looked_up_depends_on_the_format() {
    let planner = of_formats();
    let object = object("b", "k", "1");
    let query = |name: &str| {
        let format = planner.catalog().formats().named(name).unwrap();
        planner.structure_query(format, &object)
    };
    let settings = "s3_ignore_file_doesnt_exist = 0, use_hive_partitioning = 0, \
                    input_format_parallel_parsing = 0, max_threads = 1";
    // The names of another version can be in another order.
    let pinned = sql::throw_if(
        "(_path, trim(BOTH '\"' FROM _etag)) NOT IN (('b/k','1'))",
        CHANGED_TEXT,
    );
    assert_eq!(
        query("csv"),
        StructureQuery::Header(format!(
            "SELECT toValidUTF8(substring(line, 1, 1048576)) AS line FROM \
             s3('http://e/b/k', 'LineAsString', 'line String') WHERE {pinned} LIMIT 1 OFFSET 0 \
             SETTINGS {settings}"
        ))
    );
    assert_eq!(
        query("avro"),
        StructureQuery::Columns(format!(
            "DESCRIBE TABLE s3('http://e/b/k', 'Avro', 'auto') SETTINGS \
             print_pretty_type_names = 0, describe_include_subcolumns = 0, \
             schema_inference_use_cache_for_s3 = 0, {settings}"
        ))
    );
    assert_eq!(
        planner.first_bytes(&object),
        format!(
            "SELECT hex(arrayStringConcat(groupArray(char(byte)))) AS bytes FROM (SELECT byte FROM \
             s3('http://e/b/k', 'RowBinary', 'byte UInt8', 'none') LIMIT 512) SETTINGS {settings}"
        )
    );
}

#[test]
fn an_object_without_fields_is_read_all_the_same() {
    let planner = of_formats();
    let formats = planner.catalog().formats();
    for (name, answer) in [
        ("csv", StructureAnswer::Header(None)),
        ("parquet", columns_of(&[])),
    ] {
        let format = formats.named(name).unwrap();
        let layout = planner.layout_with(format, answer).unwrap();
        let records = planner.records_of(&object("b", "k", "1"), &layout);
        let text = format!("{records:?}");
        assert!(text.contains("Nullable(String)"), "{text}");
        assert!(!text.contains("tuple()"), "{text}");
    }
}

#[test]
fn a_header_must_have_names_that_are_read() {
    let formats = format!(
        "{FORMATS}  - {{name: named, keys: [n], csv: {{columns: [id, b], header: true}}}}\n"
    );
    let planner = Planner::new(options(Some(&formats)));
    let answer = |name: &str, line: &str| {
        let format = planner.catalog().formats().named(name).unwrap();
        let layout = planner.layout_with(format, StructureAnswer::Header(Some(line.to_owned())));
        layout.map(|layout| {
            let names = layout.structure.into_iter().map(|(name, _)| name);
            names.collect::<Vec<_>>().join(" ")
        })
    };
    assert_eq!(answer("csv", "x,shop name"), Ok("x shop name".to_owned()));
    assert_eq!(
        answer("csv", "<html>"),
        Err("its header has none of the declared columns (header: <html>)".to_owned())
    );
    assert_eq!(answer("named", "b,id"), Ok("b id".to_owned()));
    assert_eq!(
        answer("named", "b,id,c"),
        Err(
            "its header has other names than those declared (header: b; id; c; declared: id; b)"
                .to_owned()
        )
    );
    let parquet = planner.catalog().formats().named("parquet").unwrap();
    let refused = planner.layout_with(parquet, columns_of(&[("_path", "String")]));
    assert!(refused.unwrap_err().contains("\"_path\""));
}

#[test]
fn content_that_is_not_in_s3_is_read_from_the_query() {
    let planner = of_formats();
    let layout = layout(&planner, "log");
    let records = planner.records_of_content(b"a", "file/k", &layout).first(3);
    assert_eq!(
        records.from,
        r#"(SELECT * FROM (SELECT *, extractGroups(trim(TRAILING '\r' FROM line), '^(?P<id>\\S+) "(?P<what>[^"]*)"') AS fields FROM (SELECT line, 'file/k' AS _path, '' AS _etag, rowNumberInAllBlocks() AS _row_number FROM format(LineAsString, 'line String', unhex('61')))) LIMIT 3)"#
    );
}
