//! The JSON output of every command, for one scenario.

use std::process::Output;

use regex::Regex;
use serde_json::Value;
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, wait_for_dead_letters, wait_until_drained};

/// Returns the JSON without what differs between runs.
fn stable(json: &str, site: &Site) -> String {
    let mut text = json
        .replace(&site.bucket, "SITE")
        .replace(&site.database, "DATABASE");
    for (what, name) in [
        (r"http://127\.0\.0\.1:\d+", "URL"),
        (
            r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            "UUID",
        ),
        (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
        (r"landing_[0-9a-f]{8}", "LANDING"),
        (r"\(version [^)]*\)", "(VERSION)"),
        (r#""[0-9.]+" answers"#, "VERSION answers"),
        (r#"(?P<before>"worker": )"[^"]*""#, "${before}WORKER"),
        (
            r#"(?P<before>"(estimated|oldest)_seconds": )[0-9.]+"#,
            "${before}SECONDS",
        ),
        // The body is an event of S3, with ids of the stand-in.
        (r#"(?P<before>"body": )".*""#, "${before}BODY"),
    ] {
        let pattern = Regex::new(what).unwrap();
        text = pattern.replace_all(&text, name).into_owned();
    }
    text
}

fn printed(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

#[tokio::test]
async fn every_command_has_json_output() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("json", 1).await.unwrap();
    let types = tempfile::tempdir().unwrap();
    let click = "table: clicks\nrule: {path: [verb], equals: click}\norder_by: [id]\ncolumns:\n\
                 - {name: id, type: String, path: [id], required: true}\n";
    std::fs::write(types.path().join("click.yaml"), click).unwrap();
    let mut sluice = Sluice::new(stack, &site).set("event_types.dir", types.path().display());
    let json = |sluice: &Sluice, arguments: &[&str]| {
        let output = sluice.command(&[arguments, &["--output", "json"]].concat());
        let parsed: Result<Value, _> = serde_json::from_slice(&output.stdout);
        assert!(parsed.is_ok(), "{arguments:?}: {output:?}");
        printed(&output).to_owned()
    };
    let check = |name: &str, document: &str| {
        insta::assert_snapshot!(name, stable(document, &site));
    };

    let migrated: Value = serde_json::from_str(&json(&sluice, &["migrate"])).unwrap();
    let changes: Vec<_> = migrated["statements"]
        .as_array()
        .unwrap()
        .iter()
        .map(|statement| statement["what"].as_str().unwrap())
        .collect();
    check("migrate", &changes.join("\n"));
    check("migrate_again", &json(&sluice, &["migrate"]));

    let lines = "{\"verb\":\"click\",\"id\":\"1\"}\nno JSON\n{\"verb\":\"other\"}\n";
    site.put("good.jsonl", lines).await.unwrap();
    sluice.start();
    wait_until_drained(&site).await;
    // This object is uploaded later, since both would be in one batch only sometimes.
    site.put("bad.jsonl.gz", "no gzip").await.unwrap();
    wait_for_dead_letters(&site, 1).await;
    assert_eq!(sluice.stop().await.code(), Some(0));

    let bucket = format!("s3://{}", site.bucket);
    let (good, bad) = (
        format!("{bucket}/good.jsonl"),
        format!("{bucket}/bad.jsonl.gz"),
    );
    for (name, arguments) in [
        ("status", &["status"][..]),
        ("status_good", &["status", &good]),
        ("status_bad", &["status", &bad]),
        ("status_failed", &["status", "--failed"]),
        (
            "retry",
            &["retry", "--error-class", "unloadable", "--dry-run"],
        ),
        ("dlq_list", &["dlq", "list"]),
        ("dlq_redrive", &["dlq", "redrive", "--dry-run"]),
        ("rejects_replay", &["rejects", "replay", "--dry-run"]),
        ("types_list", &["types", "list"]),
        ("types_preview", &["types", "preview", &good]),
        ("backfill", &["backfill", &bucket, "--dry-run"]),
        ("reconcile", &["reconcile", &bucket]),
    ] {
        check(name, &json(&sluice, arguments));
    }
    let dead_letters: Value = serde_json::from_str(&json(&sluice, &["dlq", "list"])).unwrap();
    let id = dead_letters["messages"][0]["message_id"].as_str().unwrap();
    check("dlq_show", &json(&sluice, &["dlq", "show", id]));
    let forget = ["forget", &bad, "--reason", "nobody will fix it"];
    check("forget", &json(&sluice, &forget));
}
