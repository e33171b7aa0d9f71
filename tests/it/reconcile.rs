//! `sluice reconcile` compares the bucket with the ledger.

use serde_json::{Value, json as object};
use sluice::object::{ObjectParts, ObjectRef};
use sluice_testkit::xapi::gzip;
use sluice_testkit::{Site, Stack};

use crate::harness::{
    Sluice, line, loaded_names, wait_for_dead_letters, wait_for_messages, wait_until_drained,
};

const INCOMPLETE: Option<i32> = Some(3);

/// Runs `reconcile`, and returns its exit code and report.
fn reconcile(sluice: &Sluice, site: &Site, arguments: &[&str]) -> (Option<i32>, Value) {
    let url = format!("s3://{}/2026/", site.bucket);
    let command = [&["reconcile", &url, "--output", "json"], arguments].concat();
    let output = sluice.command(&command);
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), report)
}

/// Some objects were never announced, since the notification was set up late or was lost.
#[tokio::test]
async fn reconcile_finds_and_announces_objects_that_were_never_announced() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("reconcile", 1).await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    for key in ["2026/01/10/loaded", "2026/01/10/changed"] {
        site.put(key, line(key)).await.unwrap();
    }
    site.put("2026/01/11/broken.gz", "no gzip").await.unwrap();
    sluice.start();
    wait_until_drained(&site).await;
    wait_for_dead_letters(&site, 1).await;
    sluice.stop().await;
    site.stop_notifications().await.unwrap();
    site.put("2026/01/10/changed", line("now")).await.unwrap();
    site.put("2026/01/12/never", line("never")).await.unwrap();
    let etag = site
        .put("2026/01/12/in progress", line("in progress"))
        .await
        .unwrap();

    // This looks as if a worker had claimed the object.
    let sql = format!(
        "INSERT INTO {}.ledger_objects (object_id, bucket, key, etag, batch_id, lease_seconds) \
         SELECT toUUID('{}'), '{}', '2026/01/12/in progress', 'e', generateUUIDv4(), 600",
        site.database,
        identity(&site.bucket, "2026/01/12/in progress", &etag),
        site.bucket
    );
    stack.clickhouse.execute(&sql).await.unwrap();

    let (code, mut report) = reconcile(&sluice, &site, &[]);
    assert_eq!(code, INCOMPLETE);
    for finding in report["objects"].as_array_mut().unwrap() {
        let key = finding["object"].as_str().unwrap();
        finding["object"] = key.replace(&site.bucket, "bucket").into();
        finding["last_modified"] = "then".into();
        let reason = finding["reason"].as_str().unwrap();
        finding["reason"] = reason.chars().take(20).collect::<String>().into();
    }
    let report = serde_json::to_string_pretty(&report).unwrap();
    insta::assert_snapshot!("reconcile_report", report);

    let (code, report) = reconcile(
        &sluice,
        &site,
        &["--until", "2026-01-10T12:00:00Z", "--exclude", "**/changed"],
    );
    assert_eq!((code, &report["objects"]), (Some(0), &object!([])));
    let (_, report) = reconcile(&sluice, &site, &["--limit", "1"]);
    assert_eq!(report["objects"].as_array().unwrap().len(), 1);
    let url = format!("s3://{}", site.bucket);
    let text = sluice.command(&["reconcile", &url, "--limit", "2"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("not recorded           1\n"), "{text}");
    assert!(
        text.contains("and 2 more; raise --limit to list them"),
        "{text}"
    );

    // The object that could not be read is replaced by a valid one.
    site.put("2026/01/11/broken.gz", gzip(line("fixed").as_bytes()))
        .await
        .unwrap();
    let (code, report) = reconcile(&sluice, &site, &["--enqueue"]);
    assert_eq!(
        (code, &report["announced"]),
        (INCOMPLETE, &3.into()),
        "{report}"
    );
    wait_for_messages(&site, 3).await;
    sluice.start();
    wait_until_drained(&site).await;
    let (_, report) = reconcile(&sluice, &site, &[]);
    assert_eq!(
        (&report["loaded"], &report["in_hand"]),
        (&4.into(), &1.into()),
        "{report}"
    );
    let expected = [
        "2026/01/10/changed",
        "2026/01/10/loaded",
        "fixed",
        "never",
        "now",
    ];
    assert_eq!(loaded_names(stack, &site).await, expected);
}

/// Returns the ledger's identity of an object.
fn identity(bucket: &str, key: &str, etag: &str) -> String {
    let object = ObjectRef::from(ObjectParts {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        etag: etag.to_owned(),
        ..ObjectParts::default()
    });
    object.id().to_string()
}
