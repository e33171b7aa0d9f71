//! Lines that do not become rows, lists in place of objects, and whole loads.

use serde_json::{Value, json};

use super::harness::{Harness, case};
use super::statements::{SAMPLE, Statement, ctx, path};

const PARTS: &str = "part_attempt_events";

#[tokio::test]
async fn a_line_that_cannot_become_a_row_is_kept_with_the_reason() {
    let harness = Harness::new("rejected").await;
    let rejected = |name: &str, line: &str, reason: &str| {
        let expected = json!({
            "raw": line, "reason": reason, "batch_id": harness.batch.to_string(),
        });
        case(name, line, "rejected_lines", expected)
    };
    let cases = [
        rejected("text", "hello", "not JSON"),
        rejected("truncated", &SAMPLE[..SAMPLE.len() - 1], "not JSON"),
        rejected("two statements", &format!("{SAMPLE}{SAMPLE}"), "not JSON"),
        rejected("trailing comma", "{\"a\":1,}", "not JSON"),
        rejected("trailing text", &format!("{SAMPLE} x"), "not JSON"),
        rejected("NaN", "{\"a\":NaN}", "not JSON"),
        rejected("raw NUL", "{\"a\":\"\0\"}", "not JSON"),
        rejected("lone surrogate", "{\"a\":\"\\ud800\"}", "not JSON"),
        rejected(
            "a number beyond 64 bits",
            "{\"a\":18446744073709551616}",
            "not JSON",
        ),
        rejected("list", "[]", "not an object"),
        rejected(
            "list of a statement",
            &format!("[{SAMPLE}]"),
            "not an object",
        ),
        rejected(
            "list by position",
            r#"["g",{"account":{"name":"u"}}]"#,
            "not an object",
        ),
        rejected(
            "list by position after null",
            r#"[null,{"account":{"name":"u"}}]"#,
            "not an object",
        ),
        rejected("string", "\"text\"", "not an object"),
        rejected("number", "42", "not an object"),
        rejected("null", "null", "not an object"),
        rejected("true", "true", "not an object"),
    ];
    harness.check(&cases).await;

    // JSON output cannot show text that is not valid UTF-8.
    harness
        .put(
            "bad.jsonl",
            b"{\"a\":\"\xff\xfe\"}\n\x1f\x8b\x08\xff".to_vec(),
        )
        .await;
    harness.load(&["bad.jsonl".to_owned()]).await;
    let query = format!(
        "SELECT row_number, hex(raw) AS raw FROM {} WHERE reason = 'bad UTF-8' ORDER BY row_number",
        harness.table("rejected_lines")
    );
    assert_eq!(
        harness.rows(&query).await,
        [
            json!({"row_number": 0, "raw": "7B2261223A22FFFE227D"}),
            json!({"row_number": 1, "raw": "1F8B08FF"})
        ]
    );
}

#[tokio::test]
async fn a_list_in_place_of_an_object_has_no_values() {
    let harness = Harness::new("lists").await;
    let mut cases = Vec::new();
    // The list is long enough to reach every position of the widest tuple.
    let filler = |first: Value| {
        let mut list = vec![first.clone(), first];
        list.extend((0..60).map(|n| json!(n.to_string())));
        Value::Array(list)
    };
    let lists = [
        json!([]),
        json!(["a"]),
        filler(json!("x")),
        filler(Value::Null),
        json!([null, {"a": 1}, "1"]),
        json!([[null, "1"]]),
        json!([{"raw": 9, "http://oli.cmu.edu/extensions/page_id": 9}]),
    ];
    for (index, list) in lists.iter().enumerate() {
        let mut add = |keys: &[&str], table: &'static str, expected: Value| {
            let id = format!("{}-{index}", keys.join("."));
            let line = Statement::part(&id).with(&path(keys), list.clone()).line();
            let mut expected = expected;
            if table == PARTS {
                expected["event_id"] = json!(id);
            }
            cases.push(case(&id, line.clone(), table, expected));
            // JSON allows white space between the bracket and the first element.
            let spaced = line
                .replace("[null", "[ \\t null")
                .replace("\\t", "\t")
                .replace(&id, &format!("{id}s"));
            if spaced.contains("\t") {
                cases.push(case(&format!("{id} spaced"), spaced, table, json!({})));
            }
        };
        add(
            &["actor"],
            PARTS,
            json!({"user_id": "", "host_name": "", "page_id": 505}),
        );
        add(
            &["actor", "account"],
            PARTS,
            json!({"user_id": "", "host_name": "", "section_id": 2001}),
        );
        add(&["verb"], "unmatched_statements", json!({}));
        add(&["object"], "unmatched_statements", json!({}));
        add(&["object", "definition"], "unmatched_statements", json!({}));
        add(
            &["object", "definition", "name"],
            PARTS,
            json!({"score": 1.0}),
        );
        add(
            &["object", "definition", "extensions"],
            PARTS,
            json!({"score": 1.0}),
        );
        add(
            &["result"],
            PARTS,
            json!({"score": null, "success": null, "response": null, "feedback": null, "page_id": 505}),
        );
        add(
            &["result", "score"],
            PARTS,
            json!({"score": null, "out_of": null, "scaled_score": null, "success": true}),
        );
        add(
            &["result", "extensions"],
            PARTS,
            json!({"feedback": null, "score": 1.0}),
        );
        add(
            &["context"],
            PARTS,
            json!({"section_id": 0, "page_id": 0, "part_id": "", "session_id": null, "score": 1.0}),
        );
        add(
            &["context", "extensions"],
            PARTS,
            json!({"section_id": 0, "page_id": 0, "part_id": "", "session_id": null, "hints_requested": null}),
        );
    }
    // The same text has no effect where it is not a list in place of an object.
    let unaffected = Statement::part("unaffected")
        .with(&path(&["result", "response"]), json!("[null, 1]"))
        .with(&ctx("attached_objectives"), json!([null, 1]))
        .with(&path(&["\u{1}"]), json!("the sentinel's own key"));
    cases.push(case("unaffected", unaffected.line(), PARTS, json!({
        "response": "[null, 1]", "attached_objectives": "[null,1]", "page_id": 505, "score": 1.0,
        "scaled_score": 0.5, "success": true, "user_id": "4321", "hints_requested": 1,
    })));
    // Scalars in place of objects contain no values either.
    for (index, value) in [json!("text"), json!(7), json!(true), Value::Null]
        .iter()
        .enumerate()
    {
        let line =
            Statement::part(&format!("scalar-{index}")).with(&path(&["result"]), value.clone());
        cases.push(case(
            "scalar",
            line.line(),
            PARTS,
            json!({"score": null, "response": null, "page_id": 505}),
        ));
    }
    harness.check(&cases).await;
}

#[tokio::test]
async fn line_numbers_count_blank_lines_which_become_no_rows() {
    let harness = Harness::new("line-numbers").await;
    let part = Statement::part("one").line();
    let unmatched = r#"{"verb":{"id":"x"}}"#;
    let text = format!(
        "\u{feff}{part}\r\n\r\n  \t \n\nbroken\r\n{unmatched}\n\n[1]\n{}",
        Statement::video("v").line()
    );
    let etag = harness.put("section/1/a b.jsonl", text).await;
    harness.put("empty.jsonl", "").await;
    harness.put("blank.jsonl", "\n \n\r\n").await;
    let keys = ["section/1/a%20b.jsonl", "empty.jsonl", "blank.jsonl"].map(str::to_owned);
    harness.load(&keys).await;
    harness.check_per_type(&harness.lines(&keys)).await;

    let source = json!({"source_path": format!("{}/section/1/a b.jsonl", harness.site.bucket), "source_etag": etag});
    let with_source = |mut row: Value| {
        row.as_object_mut()
            .unwrap()
            .extend(source.as_object().unwrap().clone());
        row
    };
    let rejects = |table: &str| {
        format!(
            "SELECT row_number, raw, reason, source_path, source_etag FROM {} ORDER BY row_number",
            harness.table(table)
        )
    };
    assert_eq!(
        harness.rows(&rejects("rejected_lines")).await,
        [
            with_source(json!({"row_number": 4, "raw": "broken\r", "reason": "not JSON"})),
            with_source(json!({"row_number": 7, "raw": "[1]", "reason": "not an object"})),
        ]
    );
    assert_eq!(
        harness.rows(&rejects("unmatched_statements")).await,
        [with_source(
            json!({"row_number": 5, "raw": unmatched, "reason": "no event type"})
        )]
    );
    for (table, id) in [(PARTS, "one"), ("video_events", "v")] {
        let query = format!(
            "SELECT event_id, source_path, source_etag FROM {}",
            harness.table(table)
        );
        assert_eq!(
            harness.rows(&query).await,
            [with_source(json!({"event_id": id}))]
        );
    }
    let query = format!(
        "SELECT kind, rows, source_path, source_etag FROM {} \
         WHERE source_path NOT LIKE '%blank.jsonl' ORDER BY toString(kind)",
        harness.table("object_rows")
    );
    // Blank lines are counted, so that an object without other lines is known to have been read.
    let counts = [
        ("blank", 4),
        ("part_attempt", 1),
        ("rejected", 2),
        ("unmatched", 1),
        ("video", 1),
    ];
    assert_eq!(
        harness.rows(&query).await,
        counts.map(|(kind, rows)| with_source(json!({"kind": kind, "rows": rows})))
    );
    let query = format!(
        "SELECT kind, rows FROM {} WHERE source_path LIKE '%blank.jsonl'",
        harness.table("object_rows")
    );
    assert_eq!(
        harness.rows(&query).await,
        [json!({"kind": "blank", "rows": 3})]
    );
}

#[tokio::test]
async fn a_repeated_statement_is_one_row() {
    let harness = Harness::new("collapse").await;
    let mut text = format!("{SAMPLE}\n{SAMPLE}\r\n");
    text.push_str(&format!("{}\n", Statement::part("with-id").line()));
    harness.put("a.jsonl", text.clone()).await;
    harness.put("b.jsonl", text).await;
    harness.load(&["a.jsonl".to_owned()]).await;
    harness.load(&["b.jsonl".to_owned()]).await;
    let count = format!("SELECT count() FROM {} FINAL", harness.table(PARTS));
    assert_eq!(harness.scalar(&count).await, "2");
}

#[tokio::test]
async fn many_months_load_at_once_and_a_repeated_insert_adds_nothing() {
    let harness = Harness::new("months").await;
    let mut text = String::new();
    for month in 0..600 {
        let time = format!("{}-{:02}-01T00:00:00Z", 1970 + month / 12, 1 + month % 12);
        let statement =
            Statement::part(&month.to_string()).with(&path(&["timestamp"]), json!(time));
        text.push_str(&format!("{}\nnot json\n{{}}\n", statement.line()));
    }
    harness.put("months.jsonl", text).await;
    let keys = ["months.jsonl".to_owned()];
    for _ in 0..2 {
        harness.load(&keys).await;
        let months = format!(
            "SELECT uniqExact(toYYYYMM(timestamp)) FROM {}",
            harness.table(PARTS)
        );
        assert_eq!(harness.scalar(&months).await, "600");
        for table in [PARTS, "rejected_lines", "unmatched_statements"] {
            assert_eq!(
                harness
                    .scalar(&format!("SELECT count() FROM {}", harness.table(table)))
                    .await,
                "600",
                "{table}"
            );
        }
        let rows = format!("SELECT sum(rows) FROM {}", harness.table("object_rows"));
        assert_eq!(harness.scalar(&rows).await, "1800");
    }
}

#[tokio::test]
async fn tables_can_be_created_again_and_concurrently() {
    let harness = Harness::new("migrate").await;
    tokio::join!(harness.migrate(), harness.migrate(), harness.migrate());
    harness
        .check(&[case("sample", SAMPLE, PARTS, json!({"page_id": 505}))])
        .await;
}
