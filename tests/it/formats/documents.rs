//! JSON documents: objects one after the other, arrays, and lists within documents.

use sluice_testkit::xapi::gzip;

use super::{Objects, READERS, assert_outcomes, case, declare};

const FORMATS: &str = "
- {name: docs, keys: [docs/**], json: {}}
- {name: lists, keys: [lists/**], json: {records: [Records]}}
- {name: nested, keys: [nested/**], json: {records: [detail, list]}}
";

#[tokio::test]
async fn documents_are_divided_into_records() {
    let members = [gzip(br#"{"id":"a"}{"id":"b"}"#), gzip(br#"{"id":"c"}"#)].concat();
    let cases = [
        case("docs/empty.json", "", ""),
        case("docs/blank.json", " \n\t", ""),
        case("docs/no-records.json", "[]", ""),
        case(
            "docs/array.json",
            "[{\"id\":\"a\"},\n{\"id\":\"b\"}]",
            "a; b",
        ),
        case("docs/trailing-comma.json", r#"[{"id":"a"},]"#, "a"),
        case("docs/concatenated.json", r#"{"id":"a"}{"id":"b"}"#, "a; b"),
        case(
            "docs/lines.json",
            "{\"id\":\"a\"}\n{\"id\":\"b\"}\n",
            "a; b",
        ),
        case("docs/commas.json", r#"{"id":"a"},{"id":"b"}"#, "a; b"),
        case(
            "docs/pretty.json",
            "{\n  \"id\": \"a\"\n}\n{\r\n  \"id\": \"b\"\r\n}\n",
            "a; b",
        ),
        case("docs/bom.json", "\u{feff}{\"id\":\"a\"}", "a"),
        case(
            "docs/braces.json",
            r#"{"id":"}{"}{"id":"][\\","a":"\"}"}"#,
            r#"}{; ][\="}"#,
        ),
        case("docs/members.json.gz", members, "a; b; c"),
        case(
            "docs/other.json",
            r#"[{ "other" : 1.50 },{"id":"a"}]"#,
            "unmatched; a",
        ),
        // A record is rejected alone if its end is known.
        case(
            "docs/bad-value.json",
            r#"[{"id":"a"},{"id":tru},{"id":"b"}]"#,
            "a; rejected not JSON; b",
        ),
        case(
            "docs/bad-utf8.json",
            b"{\"id\":\"a\"}{\"id\":\"\xff\"}".to_vec(),
            "a; rejected bad UTF-8",
        ),
        case(
            "docs/raw-line-break.json",
            "{\"id\":\"a\"}{\"id\":\"x\ny\"}",
            "a; rejected not JSON",
        ),
        // Otherwise, the object fails as a whole.
        case("docs/number.json", r#"[1,{"id":"a"}]"#, "failed unloadable"),
        case("docs/page.json", "<html></html>", "failed unloadable"),
        case("docs/nul.json", "\0", "failed unloadable"),
        case(
            "docs/two-arrays.json",
            r#"[{"id":"a"}][{"id":"b"}]"#,
            "failed unloadable",
        ),
        case(
            "docs/cut.json",
            r#"[{"id":"a"},{"id":"b""#,
            "failed unloadable",
        ),
    ];
    let outcomes = assert_outcomes("documents", FORMATS, &cases).await;
    // The text of a record is kept as it is.
    assert_eq!(
        outcomes["docs/other.json"].raws(),
        [r#"{ "other" : 1.50 }"#]
    );
    assert_eq!(
        outcomes["docs/raw-line-break.json"].raws(),
        ["{\"id\":\"x\ny\"}"]
    );
    assert_eq!(outcomes["docs/bad-value.json"].numbers(), [0, 1, 2]);
}

#[tokio::test]
async fn lists_within_documents_are_divided_into_records() {
    let cases = [
        case(
            "lists/1.json",
            r#"{"Records":[{"id":"a"},{"id":"b"}]}"#,
            "a; b",
        ),
        case(
            "lists/surrounded.json",
            r#"{"v":1,"Records":[{"id":"a"}],"x":{"Records":[{"id":"c"}]}}"#,
            "a",
        ),
        case(
            "lists/several.json",
            "{\"Records\":[{\"id\":\"a\"},{\"id\":\"b\"}]}\n{\"Records\":[]}{\"Records\":[{\"id\":\"c\"}]}",
            "a; b; c",
        ),
        case(
            "lists/array.json",
            r#"[{"Records":[{"id":"a"}]},{"Records":[{"id":"b"}]}]"#,
            "a; b",
        ),
        case(
            "lists/escaped.json",
            r#"{"Rec\u006frds":[{"id":"a"}]}"#,
            "a",
        ),
        case(
            "lists/twice.json",
            r#"{"Records":[{"id":"a"}],"Records":[{"id":"b"}]}"#,
            "a",
        ),
        case("lists/none.json", r#"{"Records":[]}"#, ""),
        case("lists/empty.json", "", ""),
        case(
            "lists/elements.json",
            r#"{"Records":[{"id":"a"},1,null,true,[1],{"other":1}]}"#,
            "a; rejected not an object; rejected not an object; rejected not an object; unmatched",
        ),
        case(
            "lists/object.json",
            r#"{"Records":{"id":"a"}}"#,
            "failed unloadable",
        ),
        case("lists/text.json", r#"{"Records":"a"}"#, "failed unloadable"),
        case(
            "lists/cut.json",
            r#"{"Records":[{"id":"a"}"#,
            "failed unloadable",
        ),
        case(
            "nested/1.json",
            r#"{"detail":{"x":1,"list":[{"id":"a"}]}}"#,
            "a",
        ),
        case("nested/no-list.json", r#"{"detail":{}}"#, ""),
    ];
    let outcomes = assert_outcomes("lists", FORMATS, &cases).await;
    // The number of the document is in the upper half.
    assert_eq!(outcomes["lists/several.json"].numbers(), [0, 1, 2 << 32]);
}

/// A document without its list is a rejected record if ClickHouse reads the object. If the worker
/// streams it, ClickHouse does not notice, and the worker does.
#[tokio::test]
async fn a_document_without_its_list_is_not_taken_for_an_empty_one() {
    let declarations = declare(FORMATS);
    let objects = Objects::new("listless", declarations.path()).await;
    let missing = [
        ("lists/missing.json", r#"{"Other":1}"#),
        ("lists/null.json", r#"{"Records":null}"#),
        ("lists/other-case.json", r#"{"records":[{"id":"a"}]}"#),
        ("nested/missing.json", "{}"),
    ];
    for (key, content) in missing {
        objects.put(key, content).await;
    }
    for (key, content) in [
        ("lists/empty.json", r#"{"Records":[]}"#),
        ("lists/empty-array.json", "[]"),
        ("lists/array.json", r#"[{"Records":[]}]"#),
        // Below the first key, a list that is missing is empty.
        ("nested/no-list.json", r#"{"detail":{}}"#),
    ] {
        objects.put(key, content).await;
    }
    for reader in READERS {
        let load = objects.load(reader, &[("load.fallback", reader)]);
        let failures = load.failures().await;
        let expected: Vec<&str> = missing.iter().map(|(key, _)| *key).collect();
        let failed: Vec<&str> = failures.keys().map(String::as_str).collect();
        assert_eq!(failed, expected, "{reader}: {failures:#?}");
        for (class, reason) in failures.values() {
            assert_eq!(class, "rejected", "{reader}");
            assert!(reason.contains("no list at $."), "{reader}: {reason}");
        }
        load.drop_tables().await;
    }
}
