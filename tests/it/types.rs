//! `sluice types`: the declared event types, and a preview of what lines would become.

use std::process::Output;

use serde_json::Value;
use sluice_testkit::Stack;
use sluice_testkit::xapi::{EventType, Generator, gzip};

use crate::harness::Sluice;

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn preview_shows_what_lines_would_become_and_writes_nothing() {
    let stack = Stack::shared();
    let site = stack.site("preview").await.unwrap();
    // The command needs no tables.
    let sluice = Sluice::new(stack, &site).with_all_columns();
    let mut bundle = Generator::new(51)
        .find(|bundle| {
            bundle.key.ends_with(".jsonl") && bundle.expected_rows.rows(EventType::Video) > 0
        })
        .unwrap();
    bundle
        .bytes
        .extend_from_slice(b"\nno JSON\n{\"a\":\"\\u001b[2J\"}\n\n");
    site.put(&bundle.key, bundle.bytes.clone()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain.jsonl");
    let zipped = directory.path().join("zipped");
    std::fs::write(&plain, &bundle.bytes).unwrap();
    std::fs::write(&zipped, gzip(&bundle.bytes)).unwrap();

    let preview = |source: &str, arguments: &[&str]| {
        let all = [&["types", "preview", source, "--lines", "10000"], arguments].concat();
        text(&sluice.command(&all))
    };
    let url = format!("s3://{}/{}", site.bucket, bundle.key);
    let object = preview(&url, &["--output", "json"]);
    for file in [&plain, &zipped] {
        let path = file.display().to_string();
        assert_eq!(preview(&path, &["--output", "json"]), object);
    }
    let previewed: Value = serde_json::from_str(&object).unwrap();
    for kind in EventType::ALL {
        let rows = previewed[kind.name()].as_array().unwrap();
        assert_eq!(
            rows.len() as u64,
            bundle.expected_rows.rows(kind),
            "{kind:?}"
        );
    }
    let rejected = previewed["rejected"].as_array().unwrap();
    assert_eq!(rejected.len() as u64, bundle.expected_rows.rejected + 1);
    assert!(
        rejected
            .iter()
            .any(|row| row["raw"] == "no JSON" && row["reason"] == "not JSON")
    );
    let shown = preview(&url, &[]);
    assert!(
        shown.contains("rejected: ") && !shown.contains('\u{1b}'),
        "{shown}"
    );

    let few =
        text(&sluice.command(&["types", "preview", &url, "--lines", "1", "--output", "json"]));
    let few: Value = serde_json::from_str(&few).unwrap();
    let lines = few
        .as_object()
        .unwrap()
        .values()
        .filter_map(|rows| Some(rows.as_array()?.len()));
    assert!(lines.sum::<usize>() <= 1);
    let missing = sluice.command(&["types", "preview", "no/such/file"]);
    assert_eq!(missing.status.code(), Some(1));

    let list = text(&sluice.command(&["types", "list"]));
    assert!(list.contains("video_events"), "{list}");
    let database = format!("EXISTS DATABASE {}", site.database);
    assert_eq!(stack.clickhouse.query(&database).await.unwrap().trim(), "0");
}
