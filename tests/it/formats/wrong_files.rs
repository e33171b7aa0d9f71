//! Files that are not what their keys are declared as, and objects of which all is rejected.

use sluice_testkit::xapi::gzip;

use super::{Objects, READERS, declare};

const FORMATS: &str = r"
- {name: lines, keys: [lines/**], json_lines: {}}
- {name: documents, keys: [documents/**], json: {}}
- {name: lists, keys: [lists/**], json: {records: [Records]}}
- {name: csv, keys: [csv/**], csv: {}}
- {name: plain, keys: [plain/**], csv: {quoted: false}}
- {name: log, keys: [log/**], regex: {pattern: '^(?P<id>\d+) (?P<a>\S+)$'}}
- {name: parquet, keys: [parquet/**], parquet: {}}
- {name: avro, keys: [avro/**], avro: {}}
- {name: orc, keys: [orc/**], orc: {}}
- {name: kept, keys: [kept/**], csv: {}, on_all_rejected: keep}
";

const DECLARED: [&str; 8] = [
    "documents",
    "lists",
    "csv",
    "plain",
    "log",
    "parquet",
    "avro",
    "orc",
];

const PAGE: &str = "<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n";
const S3_ERROR: &str =
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>AccessDenied</Code></Error>";

/// Each format gets files of all others that it cannot be.
#[tokio::test]
async fn a_file_of_another_kind_fails_and_names_what_it_is() {
    let declarations = declare(FORMATS);
    let objects = Objects::new("wrong-files", declarations.path()).await;
    let select = "SELECT toString(number) AS id, 'x' AS a FROM numbers(5)";
    let mut actual = vec![
        ("html", "HTML", PAGE.as_bytes().to_vec()),
        ("xml", "XML", S3_ERROR.as_bytes().to_vec()),
    ];
    for (name, format, word) in [
        ("parquet", "Parquet", "Parquet"),
        ("avro", "Avro", "Avro"),
        ("orc", "ORC", "ORC"),
        ("csv", "CSVWithNames", "between fields"),
    ] {
        actual.push((name, word, objects.written(select, format).await));
    }
    let mut expected = Vec::new();
    for declared in DECLARED {
        for (name, word, content) in &actual {
            // Without quotes, it is delimited text as well; and any text can be a log.
            let is_text = *name == "csv" && matches!(declared, "plain" | "log");
            if declared == *name || is_text {
                continue;
            }
            let key = format!("{declared}/{name}");
            objects.put(&key, content.clone()).await;
            expected.push((key, declared, *word));
        }
    }
    objects
        .put(
            "csv/lines",
            "{\"x\":\"1\",\"y\":\"x\"}\n{\"x\":\"2\",\"y\":\"y\"}\n",
        )
        .await;
    expected.push(("csv/lines".to_owned(), "csv", "JSON"));
    objects.put("documents/good", r#"{"id":"a"}"#).await;
    for reader in READERS {
        let load = objects.load(reader, &[("load.fallback", reader)]);
        let failures = load.failures().await;
        let mut wrong = Vec::new();
        for (key, declared, word) in &expected {
            let failure = failures.get(key);
            let is_named = failure
                .is_some_and(|(_, reason)| reason.contains(word) && reason.contains("looks like"));
            if !is_named {
                wrong.push((key, declared, word, failure));
            }
        }
        assert!(wrong.is_empty(), "{reader}: {wrong:#?}");
        assert_eq!(failures.len(), expected.len(), "{failures:#?}");
        assert_eq!(load.query("SELECT id FROM $.records").await, "a\n");
        assert_eq!(
            load.query("SELECT count() FROM $.rejected_lines").await,
            "0\n"
        );
        load.drop_tables().await;
    }
}

/// A name without the extension of the compression is no reason to fail.
#[tokio::test]
async fn content_that_is_compressed_under_another_name_is_streamed() {
    let declarations = declare(FORMATS);
    let objects = Objects::new("misnamed-formats", declarations.path()).await;
    for (key, content) in [
        ("documents/1", r#"[{"id":"documents"}]"#),
        ("lists/1.json", r#"{"Records":[{"id":"lists"}]}"#),
        ("csv/1.csv", "id,a\ncsv,\n"),
        ("log/1.log", "1 log\n"),
    ] {
        objects.put(key, gzip(content.as_bytes())).await;
    }
    objects.put("csv/plain.csv.gz", "id,a\nplain,\n").await;
    objects
        .put("documents/plain.json.gz", r#"[{"id":"array"}]"#)
        .await;
    let load = objects.load("auto", &[]);
    assert!(
        load.failures().await.is_empty(),
        "{:#?}",
        load.failures().await
    );
    assert_eq!(
        load.query("SELECT id FROM $.records ORDER BY id").await,
        "1\narray\ncsv\ndocuments\nlists\nplain\n"
    );
    load.drop_tables().await;
}

/// They have no records, and so none that is rejected.
#[tokio::test]
async fn an_object_without_records_is_loaded() {
    let declarations = declare(FORMATS);
    let objects = Objects::new("no-records", declarations.path()).await;
    let nothing = "SELECT '1' AS id WHERE 0";
    let mut keys = Vec::new();
    for declared in DECLARED {
        keys.push((format!("{declared}/empty"), Vec::new()));
        if !matches!(declared, "parquet" | "avro" | "orc") {
            keys.push((format!("{declared}/empty.gz"), gzip(b"")));
        }
    }
    for (key, content) in [
        ("documents/none", "[]"),
        ("lists/none", r#"{"Records":[]}"#),
        ("csv/header", "id,a\n"),
        ("plain/header", "id,a\n"),
        ("log/blank", "\n\n  \n"),
    ] {
        keys.push((key.to_owned(), content.as_bytes().to_vec()));
    }
    for (declared, format) in [("parquet", "Parquet"), ("avro", "Avro"), ("orc", "ORC")] {
        let content = objects.written(nothing, format).await;
        keys.push((format!("{declared}/none"), content));
    }
    for (key, content) in &keys {
        objects.put(key, content.clone()).await;
    }
    for reader in READERS {
        let load = objects.load(reader, &[("load.fallback", reader)]);
        assert!(
            load.failures().await.is_empty(),
            "{:#?}",
            load.failures().await
        );
        assert_eq!(load.outcomes().await.len(), keys.len());
        load.drop_tables().await;
    }
}

/// A file in which every record is rejected was meant for another table, or its format changed.
#[tokio::test]
async fn an_object_of_which_all_is_rejected_fails_with_a_sample() {
    let declarations = declare(FORMATS);
    let objects = Objects::new("all-rejected", declarations.path()).await;
    let numbers: String = (0..20)
        .map(|number| format!("n{number},{}\n", "x".repeat(500)))
        .collect();
    let bad = format!("n,a\n{numbers}");
    for (key, content) in [
        ("csv/bad.csv", bad.as_str()),
        ("kept/bad.csv", &bad),
        ("csv/one-good.csv", "n,a\n1,\nn2,\n"),
        // Records that no event type is for are not rejected.
        ("csv/unmatched.csv", "id,a\n,x\n,y\n"),
        ("documents/bad.json", r#"[{"n":"a"},{"n":"b"}]"#),
        ("lists/bad.json", r#"{"Other":[]}"#),
        ("lines/bad.jsonl", "no JSON\nno JSON\n"),
    ] {
        objects.put(key, content).await;
    }
    for (name, settings, expected) in [
        (
            "unset",
            &[][..],
            &["csv/bad.csv", "documents/bad.json", "lists/bad.json"][..],
        ),
        (
            "fail",
            &[("load.on_all_rejected", "fail")],
            &[
                "csv/bad.csv",
                "documents/bad.json",
                "lines/bad.jsonl",
                "lists/bad.json",
            ],
        ),
        ("keep", &[("load.on_all_rejected", "keep")], &[]),
        (
            "streamed",
            &[("load.fallback", "always")],
            &["csv/bad.csv", "documents/bad.json", "lists/bad.json"],
        ),
    ] {
        let load = objects.load(name, settings);
        let failures = load.failures().await;
        let keys: Vec<&str> = failures.keys().map(String::as_str).collect();
        assert_eq!(keys, expected, "{name}");
        assert!(
            failures.values().all(|(class, _)| class == "rejected"),
            "{failures:#?}"
        );
        // Nothing of them remains.
        let kept = load
            .query("SELECT DISTINCT source_path FROM $.rejected_lines")
            .await;
        for key in expected {
            assert!(!kept.contains(key), "{name}: {kept}");
        }
        if expected.contains(&"csv/bad.csv") {
            let (_, reason) = &failures["csv/bad.csv"];
            assert!(
                reason.contains("20 records") && reason.contains("invalid n"),
                "{reason}"
            );
            let sample = "SELECT length(sample) BETWEEN 1 AND 10, \
                          arrayMax(arrayMap(it -> length(it), sample)) < 400, \
                          position(sample[1], 'n0') > 0 \
                          FROM $.ledger_failures WHERE key = 'csv/bad.csv'";
            assert_eq!(load.query(sample).await, "1\t1\t1\n", "{name}");
            let url = format!("s3://{}/csv/bad.csv", objects.site.bucket);
            let shown = load.sluice.command(&["status", &url]);
            let shown = String::from_utf8(shown.stdout).unwrap();
            assert!(
                shown.contains("invalid n") && shown.contains("n0"),
                "{shown}"
            );
        }
        load.drop_tables().await;
    }
}

/// One rollback serves all of them.
#[tokio::test]
async fn many_objects_of_rejects_are_told_from_the_others_at_once() {
    let declarations = declare(FORMATS);
    let objects = Objects::new("many-rejected", declarations.path()).await;
    for number in 1..=40 {
        let sign = if number % 2 == 0 { "-" } else { "" };
        let content = format!("n\n{sign}{number}\n");
        objects.put(&format!("csv/{number}.csv"), content).await;
    }
    let load = objects.load("once", &[("load.fallback", "never")]);
    let failures = load.failures().await;
    assert_eq!(failures.len(), 20, "{failures:#?}");
    assert_eq!(
        load.query("SELECT count() FROM $.number_events").await,
        "20\n"
    );
    let batches = "SELECT countIf(event = 'released'), countIf(event = 'loaded') \
                   FROM $.ledger_batches";
    assert_eq!(load.query(batches).await, "1\t1\n");
    load.drop_tables().await;
}
