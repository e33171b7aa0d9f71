use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;
use crate::event_types::Rule as DeclaredRule;

fn options(by: By) -> Options {
    Options {
        name: "sample".to_owned(),
        keys: vec!["**".to_owned()],
        are_keys_known: false,
        by,
        plausible: 946_684_800..4_102_444_800,
    }
}

fn source(text: impl Into<Vec<u8>>) -> Source {
    Source {
        name: "a".to_owned(),
        content: text.into(),
        is_cut: false,
    }
}

fn content(text: &str) -> Content {
    read(&[source(text)], 10_000).unwrap()
}

/// Returns the text of each file, by its name.
fn inferred(text: &str, by: By) -> Vec<(String, String)> {
    let files = infer(&content(text), &options(by)).unwrap();
    files
        .into_iter()
        .map(|file| (file.name, file.text))
        .collect()
}

fn lines(records: impl IntoIterator<Item = Value>) -> String {
    let lines = records.into_iter().map(|record| record.to_string() + "\n");
    lines.collect()
}

fn clicks() -> String {
    lines((0..100).map(|number| {
        let mut record = json!({
            "id": format!("7d0f3f0e-6a51-4c2f-9a77-{number:012}"),
            "event": if number % 4 == 0 { "purchase" } else { "click" },
            "at": format!("2026-11-{:02}T08:00:00.{number:03}Z", number % 28 + 1),
            "shop": (["a", "b", "c"][number % 3]),
            "user": {"id": number, "isNew": number % 2 == 0},
        });
        if number % 4 == 0 {
            record["total"] = json!(number as f64 + 0.5);
            record["coupon"] = json!(if number % 8 == 0 {
                Value::Null
            } else {
                json!("X1")
            });
        } else {
            record["page"] = json!(format!("/p/{number}"));
        }
        record
    }))
}

#[test]
fn kinds_are_told_apart_by_the_field_that_determines_the_others() {
    let files = inferred(&clicks(), By::Any);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["click.yaml", "purchase.yaml"]);
    let purchase = &files[1].1;
    for part in [
        "# 25 of the 100 records of a sample.\n",
        "table: purchase_events\n",
        "rule: {path: [event], equals: \"purchase\"}\n",
        "# Time: at.\n",
        "# Id: id.\n",
        "order_by: [shop, at, id]\n",
        "partition_by: toYYYYMM(at)\n",
        "  # in each of 25 records; all different; such as \"7d0f3f0e-6a51-4c2f-9a77-000000000000\", ",
        "  - name: id\n    type: UUID\n    path: [id]\n    required: true\n",
        "    type: DateTime64(3, 'UTC')\n    path: [at]\n    required: true\n",
        "  - name: shop\n    type: LowCardinality(String)\n",
        "  - name: user_id\n    type: Int64\n    path: [user, id]\n",
        "  - name: user_is_new\n    type: Bool\n",
        "  - name: total\n    type: Float64\n",
        "  # in 48 % of 25 records; always the same; such as \"X1\"\n  - name: coupon\n    type: \
         LowCardinality(String)\n",
    ] {
        assert!(purchase.contains(part), "{part}\n{purchase}");
    }
    assert!(!purchase.contains("page"), "{purchase}");
}

#[test]
fn a_person_can_say_how_kinds_are_told_apart() {
    let files = inferred(&clicks(), By::Field(vec!["shop".to_owned()]));
    assert_eq!(files.len(), 3);
    assert!(files[0].1.contains("rule: {path: [shop], equals: \"a\"}"));
    let files = inferred(&clicks(), By::Nothing);
    assert_eq!(files.len(), 1);
    let text = &files[0].1;
    assert!(text.contains("rule: {path: [id], present: true}"), "{text}");
    // A number that is missing is not 0.
    assert!(text.contains("type: Nullable(Float64)"), "{text}");
    let missing = By::Field(vec!["no".to_owned()]);
    assert!(infer(&content(&clicks()), &options(missing)).is_err());
}

#[test]
fn the_list_in_an_envelope_has_the_records() {
    let event = |number: usize| {
        json!({
            "eventID": format!("7d0f3f0e-6a51-4c2f-9a77-{number:012}"),
            "eventTime": "2026-11-20T08:00:31Z",
            "eventName": format!("Call{}", number % 40),
            "requestParameters": {format!("key{}", number % 40): {"a": number}},
            "sourceIPAddress": "10.0.0.1",
        })
    };
    let document = json!({"Records": (0..200).map(event).collect::<Vec<_>>()});
    for text in [
        document.to_string(),
        serde_json::to_string_pretty(&document).unwrap(),
    ] {
        let content = content(&text);
        let list = Some(vec!["Records".to_owned()]);
        assert_eq!(content.found, Found::Documents { records: list });
        assert_eq!(content.records.len(), 200);
        let files = infer(&content, &options(By::Any)).unwrap();
        assert_eq!(files.len(), 2);
        assert!(
            files[0].text.contains("json: {records: [Records]}"),
            "{}",
            files[0].text
        );
        let text = &files[1].text;
        // Keys that differ from record to record are data.
        assert!(text.contains("path: [requestParameters]\n"), "{text}");
        assert!(text.contains("name: source_ip_address\n"), "{text}");
    }
}

#[test]
fn documents_are_found_with_and_without_anything_between_them() {
    let record = json!({"id": 1, "items": [{"a": 1}, {"a": 2}]}).to_string();
    for text in [
        format!("{record}{record}"),
        format!("[{record},\n{record}]"),
        format!("[{record}] [{record}]"),
        format!("{{\n \"id\": 1\n}}\n{record}"),
    ] {
        let content = content(&text);
        assert_eq!(content.found, Found::Documents { records: None }, "{text}");
        assert_eq!(content.records.len(), 2, "{text}");
    }
    let cut = Source {
        is_cut: true,
        ..source(format!("[{record},{record},{{\"id\""))
    };
    assert_eq!(read(&[cut], 100).unwrap().records.len(), 2);
    let invalid = read(&[source(format!("{record}{{\"id\""))], 100).unwrap_err();
    assert!(invalid.contains("looks like JSON"), "{invalid}");
}

#[test]
fn delimited_text_has_types_and_texts_for_null() {
    let rows = (0..30).map(|number| {
        let amount = if number % 5 == 0 {
            "NULL".to_owned()
        } else {
            format!("{number}.5")
        };
        let paid = format!("2026-11-20T08:00:{number:02}Z");
        format!(
            "T-{number:04};\"Müller, {}\";{amount};{paid};{number:05}\n",
            number % 2
        )
    });
    let text = format!(
        "Trip ID;Customer;Amount;Paid at;Zip\n{}",
        rows.collect::<String>()
    );
    let files = inferred(&text, By::Any);
    assert_eq!(files.len(), 2);
    let formats = &files[0].1;
    assert!(
        formats.contains("csv: {delimiter: \";\", nulls: [\"\", \"NULL\"]}"),
        "{formats}"
    );
    let text = &files[1].1;
    for part in [
        "order_by: [customer, paid_at, trip_id]\n",
        "  - name: trip_id\n    type: String\n    path: [\"Trip ID\"]\n    required: true\n",
        "  - name: amount\n    type: Nullable(Float64)\n",
        // Zeros would be lost.
        "  - name: zip\n    type: String\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn a_file_without_a_header_has_numbered_columns() {
    let files = inferred("1\tx\n2\ty\n3\tz\n", By::Any);
    let formats = &files[0].1;
    assert!(
        formats.contains("tsv: {header: false, columns: [column_1, column_2]}"),
        "{formats}"
    );
    assert!(
        files[1].1.contains("name: record_hash\n    type: String\n"),
        "{}",
        files[1].1
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    for (content, expected) in [
        (
            &b"PAR1\x15\x04"[..],
            "a looks like Parquet, which has types of its own",
        ),
        (b"\x00\x01", "a looks like binary data"),
        (b"  \n", "there are no records"),
        (b"Dear reader", "a looks like text"),
        (b"{}\n{}\n", ""),
    ] {
        let error = read(&[source(content)], 10)
            .map(|_| ())
            .err()
            .unwrap_or_default();
        assert!(error.starts_with(expected), "{error}");
    }
    let empty = content("{}\n{}\n");
    assert!(infer(&empty, &options(By::Any)).is_err());
    let mixed = [source("{\"a\":1}\n"), source("a,b\n1,2\n3,4\n")];
    assert!(read(&mixed, 10).unwrap_err().contains("different formats"));
}

#[test]
fn a_sample_has_the_same_share_of_each_file() {
    let file = |count: usize| source(lines((0..count).map(|number| json!({"n": number}))));
    let content = read(&[file(1_000), file(1_000)], 10).unwrap();
    let numbers: Vec<u64> = content
        .records
        .iter()
        .filter_map(|it| it["n"].as_u64())
        .collect();
    assert_eq!(numbers, [199, 399, 599, 799, 999, 199, 399, 599, 799, 999]);
}

#[test]
fn times_outside_of_the_accepted_range_are_no_partition_key() {
    let text = lines((0..20).map(|number| json!({"id": number, "at": "1999-01-01T00:00:00Z"})));
    let files = inferred(&text, By::Any);
    assert!(!files[0].1.contains("partition_by:"), "{}", files[0].1);
    assert!(files[0].1.contains("# No partitions: "), "{}", files[0].1);
}

/// Returns whether a declared rule holds for a record.
fn holds(rule: &DeclaredRule, record: &Value) -> bool {
    match rule {
        DeclaredRule::Any(rules) => rules.iter().any(|rule| holds(rule, record)),
        DeclaredRule::In(path, texts) => {
            let text = kinds::text_at(record, path);
            text.is_some_and(|text| texts.iter().any(|it| it == text))
        }
        DeclaredRule::Present(path) => kinds::at(record, path).is_some(),
        other => panic!("{other:?} is not inferred"),
    }
}

fn value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (1_700_000_000_000_u64..1_800_000_000_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!("")),
        Just(json!("2026-11-20T08:00:00.5Z")),
        Just(json!("2026-11-20")),
        Just(json!("7d0f3f0e-6a51-4c2f-9a77-2f9f1d6b1c55")),
        "[a-c]".prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    scalar.prop_recursive(4, 30, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..6)
                .prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        "(id|at|time|event|type|null|record_hash|ingested_at|http://a/B)",
        "[a-c]",
        ".{0,6}",
    ]
}

fn record() -> impl Strategy<Value = Value> {
    let fields = prop::collection::vec((key(), value()), 0..6);
    fields.prop_map(|fields| Value::Object(Map::from_iter(fields)))
}

fn records() -> impl Strategy<Value = Vec<Value>> {
    let kind = ("(click|view|landing|rejected|Über|a b)", record());
    let of_kind = kind.prop_map(|(name, mut record)| {
        record["kind"] = name.into();
        record
    });
    prop_oneof![
        prop::collection::vec(record(), 1..40),
        prop::collection::vec(of_kind, 20..60),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The declarations are valid, each record belongs to one of the event types unless it has no
    /// value that could decide about it, and no record lacks a required value.
    #[test]
    fn what_is_inferred_is_valid_and_takes_its_sample(records in records(), by in 0..3_usize) {
        let by = match by {
            0 => By::Any,
            1 => By::Nothing,
            _ => By::Field(vec!["kind".to_owned()]),
        };
        let content = Content { found: Found::JsonLines, records, unreadable: 0 };
        let Ok(files) = infer(&content, &options(by.clone())) else {
            let has_values = content.records.iter().any(|it| it.get("kind").is_some());
            prop_assert!(!has_values);
            return Ok(());
        };
        let names: Vec<&String> = files.iter().map(|file| &file.name).collect();
        let texts = files.iter().map(|file| (file.name.clone(), file.text.clone()));
        let catalog = Catalog::from_files(texts).unwrap();
        prop_assert_eq!(catalog.types().len(), names.len());
        // Keys that ClickHouse cannot address, and too many of them.
        let is_partial = files.iter().any(|file| file.text.contains("# Left out: "));
        for record in &content.records {
            let mut types = catalog.types().iter();
            let Some(event_type) = types.find(|it| holds(&it.rule, record)) else {
                let values = record.as_object().into_iter().flatten();
                let has_none = |value: &Value| value.is_null() || value.is_object();
                let is_without = is_partial
                    || by != By::Nothing
                    || values.map(|(_, value)| value).all(has_none);
                prop_assert!(is_without, "{record} belongs to none of {names:?}");
                continue;
            };
            for column in event_type.required_columns() {
                let crate::event_types::Source::Paths { paths, .. } = &column.source else {
                    continue;
                };
                prop_assert!(kinds::at(record, &paths[0]).is_some(), "{record}: {}", column.name);
            }
        }
    }
}
