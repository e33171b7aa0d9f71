//! Every kind of notification, from the queue to the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::ensure;
use serde_json::Value;
use sluice::notification::{Notification, parse_notification};
use sluice::object::{ObjectParts, ObjectRef};
use sluice_testkit::{NotificationRoute, Site, Stack, wait_for};

use crate::harness::{
    BOUND, Sluice, announcement, loaded, wait_for_dead_letters, wait_until_drained,
};

async fn site(name: &str) -> (&'static Stack, Site) {
    let stack = Stack::shared();
    (stack, stack.site_with_max_receives(name, 2).await.unwrap())
}

fn migrated(stack: &Stack, site: &Site) -> Sluice {
    let sluice = Sluice::new(stack, site);
    sluice.migrate();
    sluice
}

/// Returns a line that names the object it is in.
fn line(bucket: &str, key: &str) -> String {
    serde_json::json!({ "path": format!("{bucket}/{key}") }).to_string()
}

/// Returns the paths in all loaded lines, after asserting that each line came from the object it
/// names.
async fn paths(stack: &Stack, site: &Site) -> Vec<String> {
    let sql = format!(
        "SELECT JSONExtractString(raw, 'path') AS path, source_path \
         FROM {}.unmatched_statements ORDER BY path",
        site.database
    );
    let rows = stack.clickhouse.rows(&sql).await.unwrap();
    let path = rows.iter().map(|row| {
        assert_eq!(row["path"], row["source_path"]);
        row["path"].as_str().unwrap().to_owned()
    });
    path.collect()
}

/// Waits until `/metrics` has this line.
async fn wait_for_metric_line(sluice: &Sluice, line: &str) {
    wait_for(line, BOUND, async || {
        let (_, metrics) = sluice.get("/metrics").await?;
        ensure!(metrics.lines().any(|it| it == line), "{metrics}");
        Ok(Some(()))
    })
    .await;
}

async fn wait_for_notifications(sluice: &Sluice, form: &str, outcome: &str, count: u64) {
    let labels = format!("form=\"{form}\",outcome=\"{outcome}\"");
    let line = format!("sluice_notifications_total{{{labels}}} {count}");
    wait_for_metric_line(sluice, &line).await;
}

#[tokio::test]
async fn an_object_is_loaded_once_by_every_notification_route() {
    let (stack, site) = site("routes").await;
    let mut sluice = migrated(stack, &site);
    let mut expected = Vec::new();
    let mut put = async |name: &str| {
        let key = format!("{name}/a b+c%20é.jsonl");
        site.put(&key, line(&site.bucket, &key)).await.unwrap();
        expected.push(format!("{}/{key}", site.bucket));
    };
    for route in NotificationRoute::ALL {
        stack.aws.announce_by(&site, &[route]).await.unwrap();
        put(&format!("{route:?}")).await;
    }
    stack
        .aws
        .announce_by(&site, &NotificationRoute::ALL)
        .await
        .unwrap();
    put("all").await;
    sluice.start();
    // Each of the first five steps sends one message, and the last step sends five. With raw
    // delivery, S3's own envelope is left.
    for (form, messages) in [
        ("s3", 4),
        ("sns", 2),
        ("event_bridge", 2),
        ("event_bridge_sns", 2),
    ] {
        wait_for_notifications(&sluice, form, "objects", messages).await;
    }
    wait_until_drained(&site).await;
    expected.sort_unstable();
    assert_eq!(paths(stack, &site).await, expected);
    let objects = expected.len() as u64;
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, objects);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn a_message_of_many_files_is_deleted_once_all_are_loaded() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("declared", 100).await.unwrap();
    let envelopes = concat!(env!("CARGO_MANIFEST_DIR"), "/config/envelopes.yaml");
    let mut sluice = Sluice::new(stack, &site).set("notifications.envelopes", envelopes);
    sluice.migrate();
    stack.aws.announce_by(&site, &[]).await.unwrap();
    let keys = ["data/part-0.jsonl", "data/part-1.jsonl", "data/later.jsonl"];
    for key in &keys[..2] {
        site.put(key, line(&site.bucket, key)).await.unwrap();
    }
    let files: Vec<Value> = keys
        .iter()
        .map(|key| serde_json::json!({"path": key, "size": 100}))
        .collect();
    let body = serde_json::json!({"bucket": site.bucket, "fileCount": 3, "files": files});
    site.send(&body.to_string()).await.unwrap();
    sluice.start();
    wait_for_notifications(&sluice, "declared", "objects", 1).await;
    wait_for("two files to be loaded", BOUND, async || {
        let loaded = loaded(&stack.clickhouse, &site.database).await;
        Ok((loaded == 2).then_some(()))
    })
    .await;
    // The message stays, since one file is still missing.
    let (visible, in_flight) = site.queue_depth().await.unwrap();
    assert_eq!(visible + in_flight, 1);
    site.put(keys[2], line(&site.bucket, keys[2]))
        .await
        .unwrap();
    wait_until_drained(&site).await;
    let mut expected = keys.map(|key| format!("{}/{key}", site.bucket)).to_vec();
    expected.sort_unstable();
    assert_eq!(paths(stack, &site).await, expected);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn a_message_body_that_is_stored_in_s3_is_fetched() {
    let (stack, site) = site("payload").await;
    let mut sluice = migrated(stack, &site);
    stack.aws.announce_by(&site, &[]).await.unwrap();
    let key = "a.jsonl";
    let etag = site.put(key, line(&site.bucket, key)).await.unwrap();
    site.put("payloads/1", announcement(&site, key, &etag))
        .await
        .unwrap();
    let pointer = |key: &str| {
        let class = "software.amazon.payloadoffloading.PayloadS3Pointer";
        serde_json::json!([class, {"s3BucketName": site.bucket, "s3Key": key}]).to_string()
    };
    site.send(&pointer("payloads/1")).await.unwrap();
    site.send(&pointer("payloads/none")).await.unwrap();
    sluice.start();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    assert_eq!(
        paths(stack, &site).await,
        [format!("{}/{key}", site.bucket)]
    );
    let log = sluice.log();
    let why = "pointer to an S3 object, which could not be read";
    assert!(log.contains(why), "{log}");
}

/// Returns the bodies in core/src/notification/corpus by name.
fn corpus() -> BTreeMap<String, String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("core/src/notification/corpus");
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap());
    files
        .filter(|file| file.path().extension().is_some_and(|it| it == "json"))
        .map(|file| {
            let name = file.file_name().into_string().unwrap();
            (name, fs::read_to_string(file.path()).unwrap())
        })
        .collect()
}

fn objects_of(body: &str) -> Vec<ObjectRef> {
    match parse_notification(body) {
        Ok(Notification::Objects(announced)) => announced.into_iter().map(|it| it.object).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn every_body_of_the_corpus_has_its_objects_loaded_or_becomes_a_dead_letter() {
    let (stack, site) = site("corpus").await;
    // Only the messages of the corpus announce objects.
    stack.aws.announce_by(&site, &[]).await.unwrap();
    let archive = format!("{}-archive", site.bucket);
    site.s3
        .create_bucket()
        .bucket(&archive)
        .send()
        .await
        .unwrap();
    let mut expected = BTreeSet::new();
    let mut malformed = 0;
    for (name, body) in corpus() {
        if body.is_empty() {
            continue;
        }
        if name.starts_with("malformed-") {
            malformed += 1;
            site.send(&body).await.unwrap();
            continue;
        }
        // The message is changed to name buckets and contents that exist.
        let mut sent = body
            .replace("uploads", &site.bucket)
            .replace("archive", &archive);
        for object in objects_of(&sent) {
            let ObjectParts { bucket, key, .. } = &*object;
            let content = match object.size {
                Some(0) => String::new(),
                _ => line(bucket, key),
            };
            let put = site.s3.put_object().bucket(bucket).key(key);
            let put = put.body(content.into_bytes().into()).send().await.unwrap();
            if !object.etag.is_empty() {
                let etag = put.e_tag().unwrap().trim_matches('"');
                sent = sent.replace(&object.etag, etag);
            }
            expected.insert(object.path());
        }
        site.send(&sent).await.unwrap();
    }
    let mut sluice = migrated(stack, &site);
    sluice.start();
    wait_for_dead_letters(&site, malformed).await;
    wait_until_drained(&site).await;
    let objects = expected.len() as u64;
    assert!(objects > 20 && malformed > 20, "{objects} {malformed}");
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, objects);
    expected.retain(|path| !path.ends_with("/empty.jsonl"));
    let expected: Vec<String> = expected.into_iter().collect();
    assert_eq!(paths(stack, &site).await, expected);
    sluice.assert_running();
}

/// Puts an object for every key that the body names, and returns the paths. In the body only the
/// etags are replaced.
async fn put_named(site: &Site, body: &mut Value) -> Vec<String> {
    let mut paths = Vec::new();
    match body {
        Value::Object(fields) => {
            if let Some(key) = fields.get("key").and_then(Value::as_str) {
                let path = format!("{}/{key}", site.bucket);
                let etag = site.put(key, line(&site.bucket, key)).await.unwrap();
                paths.push(path);
                for name in ["eTag", "etag"] {
                    if let Some(Value::String(text)) = fields.get_mut(name)
                        && !text.is_empty()
                    {
                        text.clone_from(&etag);
                    }
                }
            }
            for value in fields.values_mut() {
                paths.extend(Box::pin(put_named(site, value)).await);
            }
        }
        Value::Array(values) => {
            for value in values {
                paths.extend(Box::pin(put_named(site, value)).await);
            }
        }
        _ => {}
    }
    paths
}

#[tokio::test]
async fn every_form_that_names_an_object_is_loaded_and_unknown_messages_are_never_deleted() {
    let (stack, site) = site("forms").await;
    stack.aws.announce_by(&site, &[]).await.unwrap();
    let corpus = corpus();
    let mut expected = Vec::new();
    for name in [
        "ceph-put",
        "ceph-raw-keys",
        "ceph-synced",
        "cloud-trail-copy",
        "cloud-trail-put",
        "cos-put",
        "input-transformer-created",
        "input-transformer-put",
        "input-transformer-raw-key",
        "oss-post",
        "s3-mixed",
        "s3-no-kind",
        "s3-size-as-float",
        "s3-size-as-text",
        "s3-size-no-number",
        "security-lake",
    ] {
        let body = corpus[&format!("written-{name}.json")].replace("uploads", &site.bucket);
        let mut body = serde_json::from_str(&body).unwrap();
        let named = put_named(&site, &mut body).await;
        assert!(!named.is_empty(), "{name}");
        expected.extend(named);
        site.send(&body.to_string()).await.unwrap();
    }
    let unknown = [
        "cloud-trail-other-call",
        "cloud-trail-other-service",
        "event-bridge-no-type-removed",
        "event-bridge-unknown",
        "s3-unknown-beside-good",
    ];
    for name in unknown {
        let body = &corpus[&format!("malformed-{name}.json")];
        site.send(body).await.unwrap();
    }
    for name in ["cloud-trail-failed", "event-bridge-tags", "s3-harmless"] {
        let body = &corpus[&format!("written-{name}.json")];
        site.send(body).await.unwrap();
    }
    drop(migrated(stack, &site));
    // With this setting, an object that is looked up under a wrong key is lost.
    let mut sluice = Sluice::new(stack, &site).set("load.on_missing", "acknowledge");
    sluice.start();
    wait_for_notifications(&sluice, "s3", "other_event", 1).await;
    wait_for_notifications(&sluice, "event_bridge", "other_event", 2).await;
    wait_for_dead_letters(&site, unknown.len() as u64).await;
    wait_until_drained(&site).await;
    expected.sort_unstable();
    assert_eq!(paths(stack, &site).await, expected);
    assert!(sluice.log().contains("unknown event \"ObjectMoved:Put\""));
}

#[tokio::test]
async fn a_malformed_body_is_logged_once() {
    let (stack, site) = site("logged-once").await;
    let mut sluice = migrated(stack, &site);
    sluice.start();
    site.send("hello").await.unwrap();
    wait_for_dead_letters(&site, 1).await;
    let log = sluice.log();
    assert_eq!(log.matches("malformed message").count(), 1, "{log}");
    assert!(log.contains("message.id="), "{log}");
    // The message is received twice, and counted each time.
    wait_for_notifications(&sluice, "unknown", "malformed", 2).await;
}

#[tokio::test]
async fn objects_that_the_filter_excludes_are_skipped_and_counted() {
    let (stack, site) = site("filtered").await;
    drop(migrated(stack, &site));
    let mut sluice = Sluice::new(stack, &site)
        .set("notifications.include", r#"["in/**/*.jsonl", "also"]"#)
        .set("notifications.exclude", "in/tmp/**")
        .set(
            "notifications.events",
            r#"["ObjectCreated:Put", "s3:ObjectCreated:Post"]"#,
        );
    for key in [
        "in/a.jsonl",
        "in/b c/d.jsonl",
        "also",
        "out.jsonl",
        "in/e.txt",
        "in/tmp/f.jsonl",
    ] {
        site.put(key, line(&site.bucket, key)).await.unwrap();
    }
    let copy = site
        .s3
        .copy_object()
        .bucket(&site.bucket)
        .key("in/copy.jsonl");
    let copy = copy.copy_source(format!("{}/in/a.jsonl", site.bucket));
    copy.send().await.unwrap();
    // Only one of the two objects in this message matches the filter.
    let etag = site.put("also", line(&site.bucket, "also")).await.unwrap();
    let both = ["also", "unwanted"].map(|key| {
        let body: Value = serde_json::from_str(&announcement(&site, key, &etag)).unwrap();
        body["Records"][0].clone()
    });
    site.send(&serde_json::json!({ "Records": both }).to_string())
        .await
        .unwrap();
    sluice.start();
    wait_until_drained(&site).await;
    let expected = ["also", "in/a.jsonl", "in/b c/d.jsonl"];
    let expected = expected.map(|key| format!("{}/{key}", site.bucket));
    assert_eq!(paths(stack, &site).await, expected);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
    wait_for_notifications(&sluice, "s3", "filtered", 4).await;
    wait_for_metric_line(&sluice, "sluice_objects_total{outcome=\"filtered\"} 5").await;
}
