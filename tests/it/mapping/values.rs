//! Unusual values, preserved exactly.

use serde_json::{Value, json};

use super::harness::{Case, Harness, case};
use super::statements::{Statement, ctx, path, vid};

const PARTS: &str = "part_attempt_events";
const VIDEOS: &str = "video_events";

/// Returns a case for each raw JSON text, with that text at the path.
fn each(at: &[String], table: &'static str, column: &str, values: &[(&str, Value)]) -> Vec<Case> {
    let cases = values.iter().enumerate().map(|(index, (raw, expected))| {
        let id = format!("{column}-{index}");
        let statement = if table == VIDEOS {
            Statement::video(&id)
        } else {
            Statement::part(&id)
        };
        let line = statement.with(at, json!("@")).line_with(raw);
        case(
            &format!("{column} from {raw}"),
            line,
            table,
            json!({column: expected, "event_id": id}),
        )
    });
    cases.collect()
}

#[tokio::test]
async fn integers_are_kept_exactly() {
    let harness = Harness::new("integers").await;
    let zero = [
        "null",
        "\"abc\"",
        "\"\"",
        "true",
        "false",
        "-1",
        "\"-1\"",
        "1.5",
        "\"1.5\"",
        "[]",
        "[1,2]",
        "[[2001]]",
        "[\"abc\"]",
        "[true]",
        "[null]",
        "{}",
        "{\"a\":2001}",
        "\"0x10\"",
        "1e20",
        "\"18446744073709551616\"",
        "[-5]",
        "\"1e3\"",
        "\"20 01\"",
    ];
    let mut ids = vec![
        ("2001", json!(2001)),
        ("\"2001\"", json!(2001)),
        ("[2001]", json!(2001)),
        ("[\"2001\"]", json!(2001)),
        ("[ 2001 ]", json!(2001)),
        ("0", json!(0)),
        ("2001.0", json!(2001)),
        ("\"2001.0\"", json!(2001)),
        ("1e3", json!(1000)),
        ("18446744073709551615", json!(u64::MAX)),
        ("\"18446744073709551615\"", json!(u64::MAX)),
        ("9007199254740993", json!(9_007_199_254_740_993_u64)),
    ];
    ids.extend(zero.iter().map(|&raw| (raw, json!(0))));
    let mut cases = each(&ctx("page_id"), PARTS, "page_id", &ids);

    let optional: Vec<_> = ids
        .iter()
        .take(12)
        .cloned()
        .chain(zero.iter().map(|&raw| (raw, Value::Null)))
        .collect();
    cases.extend(each(
        &ctx("enrollment_id"),
        PARTS,
        "enrollment_id",
        &optional,
    ));

    cases.extend(each(
        &ctx("part_attempt_number"),
        PARTS,
        "part_attempt_number",
        &[
            ("4294967295", json!(u32::MAX)),
            ("4294967296", json!(0)),
            ("4294967297", json!(0)),
            ("[4294967296]", json!(0)),
            ("[3]", json!(3)),
            ("\"3\"", json!(3)),
            ("-1", json!(0)),
            ("true", json!(0)),
            ("2.5", json!(0)),
            ("\"many\"", json!(0)),
            ("null", json!(0)),
        ],
    ));
    cases.extend(each(
        &ctx("hints_requested"),
        PARTS,
        "hints_requested",
        &[
            ("3", json!(3)),
            ("0", json!(0)),
            ("[]", json!(0)),
            ("[\"a\",\"b\"]", json!(2)),
            ("[5]", json!(1)),
            ("[[1,2],{\"a\":[]}]", json!(2)),
            ("[null,null,null]", json!(3)),
            ("\"4\"", json!(4)),
            ("null", Value::Null),
            ("\"none\"", Value::Null),
            ("{}", Value::Null),
            ("true", Value::Null),
            ("-1", Value::Null),
        ],
    ));
    harness.check(&cases).await;
}

#[tokio::test]
async fn floats_and_booleans_are_kept_exactly() {
    let harness = Harness::new("floats").await;
    let floats = [
        ("0", json!(0.0)),
        ("0.0", json!(0.0)),
        ("1", json!(1.0)),
        ("1.5", json!(1.5)),
        ("-2.25", json!(-2.25)),
        ("1e3", json!(1000.0)),
        ("0.30000000000000004", json!(0.300_000_000_000_000_04)),
        ("0.1", json!(0.1)),
        ("5e-324", json!(5e-324)),
        ("1.7976931348623157e308", json!(f64::MAX)),
        ("\"1.5\"", json!(1.5)),
        ("\"0\"", json!(0.0)),
        ("\"-1e-2\"", json!(-0.01)),
        ("\"0.30000000000000004\"", json!(0.300_000_000_000_000_04)),
        ("null", Value::Null),
        ("\"\"", Value::Null),
        ("\"abc\"", Value::Null),
        ("\"1,5\"", Value::Null),
        ("\"1.5x\"", Value::Null),
        ("\"nan\"", Value::Null),
        ("\"NaN\"", Value::Null),
        ("\"inf\"", Value::Null),
        ("\"-inf\"", Value::Null),
        ("\"Infinity\"", Value::Null),
        ("\"1e400\"", Value::Null),
        ("true", Value::Null),
        ("false", Value::Null),
        ("\"true\"", Value::Null),
        ("{}", Value::Null),
        ("[]", Value::Null),
    ];
    let mut cases = each(&path(&["result", "score", "raw"]), PARTS, "score", &floats);
    cases.extend(each(&vid("time"), VIDEOS, "video_time", &floats));
    let bools = [
        ("true", json!(true)),
        ("false", json!(false)),
        ("\"true\"", json!(true)),
        ("\"false\"", json!(false)),
        ("1", json!(true)),
        ("0", json!(false)),
        ("null", Value::Null),
        ("2", Value::Null),
        ("\"\"", Value::Null),
        ("\"yes\"", Value::Null),
        ("[true]", Value::Null),
        ("{}", Value::Null),
        ("\"nan\"", Value::Null),
    ];
    cases.extend(each(
        &path(&["result", "success"]),
        PARTS,
        "success",
        &bools,
    ));
    cases.extend(each(
        &path(&["result", "completion"]),
        PARTS,
        "completion",
        &bools,
    ));
    harness.check(&cases).await;
}

#[tokio::test]
async fn texts_are_kept_exactly() {
    let harness = Harness::new("texts").await;
    let texts = [
        (r#""plain""#, json!("plain")),
        (r#""""#, json!("")),
        (
            r#""quo\"te's \\ back\/slash `tick`""#,
            json!("quo\"te's \\ back/slash `tick`"),
        ),
        (r#""line\nfeed\r\ttab""#, json!("line\nfeed\r\ttab")),
        (r#""nul\u0000in\u0001side""#, json!("nul\0in\u{1}side")),
        (r#""\u00e9 é \ud83d\ude00 😀""#, json!("é é 😀 😀")),
        (r#""{\"not\":\"parsed\"}""#, json!("{\"not\":\"parsed\"}")),
        (r#""null""#, json!("null")),
        (r#"" spaces ""#, json!(" spaces ")),
        ("null", Value::Null),
        ("42", json!("42")),
        ("1.5", json!("1.5")),
        ("-0.5", json!("-0.5")),
        ("true", json!("true")),
        ("false", json!("false")),
        ("{}", json!("{}")),
        ("[]", json!("[]")),
        (
            r#"{ "input" : "4 2" , "n" : null }"#,
            json!(r#"{"input":"4 2","n":null}"#),
        ),
        (
            r#"[1, "two", {"three": [true]}]"#,
            json!(r#"[1,"two",{"three":[true]}]"#),
        ),
        (
            r#"{"b":1,"a":{"é":"\u00e9 \ud83d\ude00 \"q\" \\"}}"#,
            json!("{\"b\":1,\"a\":{\"é\":\"é 😀 \\\"q\\\" \\\\\"}}"),
        ),
    ];
    let mut cases = each(&path(&["result", "response"]), PARTS, "response", &texts);
    let feedback = path(&[
        "result",
        "extensions",
        "http://oli.cmu.edu/extensions/feedback",
    ]);
    cases.extend(each(&feedback, PARTS, "feedback", &texts));
    cases.extend(each(&ctx("session_id"), PARTS, "session_id", &texts[..11]));
    cases.extend(each(
        &ctx("attached_objectives"),
        PARTS,
        "attached_objectives",
        &[
            ("[9, 10]", json!("[9,10]")),
            ("[]", json!("[]")),
            ("{\"p\":[1]}", json!("{\"p\":[1]}")),
            ("null", Value::Null),
        ],
    ));
    let or_empty: Vec<_> = texts
        .iter()
        .map(|(raw, value)| {
            (
                *raw,
                if value.is_null() {
                    json!("")
                } else {
                    value.clone()
                },
            )
        })
        .collect();
    cases.extend(each(&ctx("part_id"), PARTS, "part_id", &or_empty));
    cases.extend(each(
        &path(&["object", "definition", "name", "en-US"]),
        VIDEOS,
        "video_title",
        &or_empty[..9],
    ));
    cases.extend(each(
        &path(&["actor", "account", "name"]),
        PARTS,
        "user_id",
        &[
            ("\"u\"", json!("u")),
            ("4321", json!("4321")),
            ("18446744073709551615", json!("18446744073709551615")),
            ("\"4321\"", json!("4321")),
            ("\"ü 😀\"", json!("ü 😀")),
            ("null", json!("")),
        ],
    ));
    harness.check(&cases).await;
}

/// The engine normalises numbers within JSON text. Their values stay the same.
#[tokio::test]
async fn numbers_in_json_text_are_normalised() {
    let harness = Harness::new("normalised").await;
    let response = path(&["result", "response"]);
    let cases = each(
        &response,
        PARTS,
        "response",
        &[
            ("1.0", json!("1")),
            ("1e3", json!("1000")),
            ("{\"a\":1.50}", json!("{\"a\":1.5}")),
            ("[0.1, 1e-7]", json!("[0.1,1e-7]")),
        ],
    );
    harness.check(&cases).await;
}

#[tokio::test]
async fn ids_are_kept_or_derived_from_the_line() {
    let harness = Harness::new("ids").await;
    let at = path(&["id"]);
    let with_id = |raw: &str| {
        Statement::part("x")
            .with(&at, json!("@"))
            .with(&ctx("part_id"), json!(raw))
            .line_with(raw)
    };
    let mut cases = Vec::new();
    for raw in ["null", "\"\""] {
        let line = with_id(raw);
        let hash = harness
            .scalar(&format!(
                "SELECT lower(hex(sipHash128({})))",
                sluice::sql::string(&line)
            ))
            .await;
        cases.push(case(raw, line, PARTS, json!({"event_id": hash})));
    }
    let none = Statement::part("x").without(&at).line();
    let hash = harness
        .scalar(&format!(
            "SELECT lower(hex(sipHash128({})))",
            sluice::sql::string(&none)
        ))
        .await;
    // A line has the same id with either line ending, so that its row collapses with its twin.
    let other = Statement::part("x")
        .without(&at)
        .with(&ctx("part_id"), json!("crlf"))
        .line();
    let other_hash = harness
        .scalar(&format!(
            "SELECT lower(hex(sipHash128({})))",
            sluice::sql::string(&other)
        ))
        .await;
    cases.push(case("none", none, PARTS, json!({"event_id": hash})));
    cases.push(case(
        "none, CRLF",
        format!("{other}\r"),
        PARTS,
        json!({"event_id": other_hash}),
    ));
    cases.push(case(
        "text",
        with_id("\"ID-1\""),
        PARTS,
        json!({"event_id": "ID-1"}),
    ));
    cases.push(case(
        "number",
        with_id("17"),
        PARTS,
        json!({"event_id": "17"}),
    ));
    harness.check(&cases).await;
}
