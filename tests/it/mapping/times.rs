//! Texts that are valid times and texts that are not.

use serde_json::{Value, json};

use super::harness::{Harness, case};
use super::statements::{Statement, path};

const PARTS: &str = "part_attempt_events";

#[tokio::test]
async fn valid_times_are_parsed_and_others_rejected() {
    let harness = Harness::new("times").await;
    let at = path(&["timestamp"]);
    let good = [
        ("2026-07-14T12:00:00Z", "2026-07-14 12:00:00.000"),
        ("2026-07-14T12:00:00", "2026-07-14 12:00:00.000"),
        ("2026-07-14T12:00", "2026-07-14 12:00:00.000"),
        ("2026-07-14T12:00Z", "2026-07-14 12:00:00.000"),
        ("2026-07-14T12:00:00.1Z", "2026-07-14 12:00:00.100"),
        ("2026-07-14T12:00:00.123456Z", "2026-07-14 12:00:00.123"),
        ("2026-07-14T12:00:00.999999999Z", "2026-07-14 12:00:00.999"),
        ("2026-07-14T12:00:00.5", "2026-07-14 12:00:00.500"),
        ("2026-07-14T12:00:00+02:00", "2026-07-14 10:00:00.000"),
        ("2026-07-14T12:00:00.25-05:30", "2026-07-14 17:30:00.250"),
        ("2026-07-14T12:00:00+0200", "2026-07-14 10:00:00.000"),
        ("2026-07-14T12:00:00-05", "2026-07-14 17:00:00.000"),
        ("2026-01-01T00:30:00+01:00", "2025-12-31 23:30:00.000"),
        ("2026-07-14T12:00:00-00:00", "2026-07-14 12:00:00.000"),
        ("2024-02-29T23:59:59.999Z", "2024-02-29 23:59:59.999"),
        ("2000-02-29T00:00:00Z", "2000-02-29 00:00:00.000"),
        ("1970-01-01T00:00:00Z", "1970-01-01 00:00:00.000"),
        ("1969-12-31T23:30:00-01:00", "1970-01-01 00:30:00.000"),
        ("2299-12-31T23:59:59.999Z", "2299-12-31 23:59:59.999"),
        ("2262-04-12T00:00:00Z", "2262-04-12 00:00:00.000"),
    ];
    let bad = [
        "null",
        "\"\"",
        "1784030400",
        "1784030400.5",
        "\"1784030400\"",
        "\"14 Jul\"",
        "\"14 Jul 2026\"",
        "\"yesterday\"",
        "\"2026-02-30T00:00:00Z\"",
        "\"2026-02-29T00:00:00Z\"",
        "\"2100-02-29T00:00:00Z\"",
        "\"2026-04-31T00:00:00Z\"",
        "\"2026-13-01T00:00:00Z\"",
        "\"2026-00-10T00:00:00Z\"",
        "\"2026-01-00T00:00:00Z\"",
        "\"2026-07-14T24:00:00Z\"",
        "\"2026-07-14T12:60:00Z\"",
        "\"2026-07-14T12:00:60Z\"",
        "\"2026-07-14T12:00:00+99:99\"",
        "\"2026-07-14T12:00:00ZZ\"",
        "\"2026-07-14T12:00:00.Z\"",
        "\"2026-07-14\"",
        "\"2026\"",
        "\"2026-07-14T\"",
        "\"20260714T120000Z\"",
        "\"2026-07-14T12:00:00Z \"",
        "\" 2026-07-14T12:00:00Z\"",
        "\"2026-07-14T12:00:00 Z\"",
        "\"2026-7-14T12:00:00Z\"",
        "\"1969-12-31T23:59:59.999Z\"",
        "\"1970-01-01T00:00:00+01:00\"",
        "\"2300-01-01T00:00:00Z\"",
        "\"2299-12-31T23:59:59-01:00\"",
        "\"0001-01-01T00:00:00Z\"",
        "\"9999-12-31T23:59:59Z\"",
        "\"+12026-07-14T12:00:00Z\"",
        "true",
        "[]",
        "{}",
        "[\"2026-07-14T12:00:00Z\"]",
        "\"2026-07-14T12:00:00Z\\n\"",
        "\"2026-07-14T12:00:00Z\\u0000\"",
    ];
    let mut cases = Vec::new();
    for (index, (text, expected)) in good.iter().enumerate() {
        let id = format!("good-{index}");
        let line = Statement::part(&id).with(&at, json!(text)).line();
        cases.push(case(
            text,
            line,
            PARTS,
            json!({"timestamp": expected, "event_id": id}),
        ));
    }
    for (index, raw) in bad.iter().enumerate() {
        let line = Statement::part(&format!("bad-{index}"))
            .with(&at, json!("@"))
            .line_with(raw);
        let (reason, value) = match serde_json::from_str(raw).unwrap() {
            Value::Null => ("missing timestamp", Value::Null),
            Value::String(text) => ("invalid timestamp", text.into()),
            _ => ("invalid timestamp", (*raw).into()),
        };
        let expected = json!({"raw": line, "reason": reason, "value": value});
        cases.push(case(raw, line, "rejected_lines", expected));
    }
    let missing = Statement::video("missing").without(&at).line();
    cases.push(case(
        "missing",
        missing.clone(),
        "rejected_lines",
        json!({"raw": missing, "reason": "missing timestamp", "value": null}),
    ));
    let unmatched = Statement::bare("other", "http://verb", "t")
        .without(&at)
        .line();
    cases.push(case(
        "no type, no time",
        unmatched.clone(),
        "unmatched_statements",
        json!({"raw": unmatched}),
    ));
    harness.check(&cases).await;
}
