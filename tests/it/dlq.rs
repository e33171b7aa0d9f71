//! `sluice dlq`: the content of the dead-letter queue, and the commands that change it.

use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName};
use serde_json::{Value, json as object};
use sluice_testkit::{Site, Stack, wait_for};

use crate::harness::{
    BOUND, Sluice, announcement, loaded, terminate, wait_for_dead_letters, wait_for_messages,
    wait_until_drained,
};

/// Returns the output of a command that exits with code 0.
fn text(sluice: &Sluice, arguments: &[&str]) -> String {
    let output = sluice.command(&[&["dlq"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(sluice: &Sluice, arguments: &[&str]) -> Value {
    serde_json::from_str(&text(sluice, &[arguments, &["--output", "json"]].concat())).unwrap()
}

/// Returns the error of a command that exits with code 1.
fn dlq_error(sluice: &Sluice, arguments: &[&str]) -> String {
    let output = sluice.command(&[&["dlq"], arguments].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

async fn send_to(site: &Site, url: &str, body: &str) {
    let request = site.sqs.send_message().queue_url(url).message_body(body);
    request.send().await.unwrap();
}

/// Returns the numbers of visible and in-flight messages in the dead-letter queue.
async fn dead_depth(site: &Site) -> (u64, u64) {
    let dead = Site {
        queue_url: site.dlq_url.clone(),
        ..site.clone()
    };
    dead.queue_depth().await.unwrap()
}

/// Creates dead letters of all kinds: `missing.jsonl`, `broken.jsonl.gz`, `loaded.jsonl`, and one
/// that is malformed. The daemon is stopped.
async fn with_dead_letters(name: &str) -> (Site, Sluice) {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives(name, 1).await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    site.put("missing.jsonl", "{}\n").await.unwrap();
    site.delete("missing.jsonl").await.unwrap();
    site.put("broken.jsonl.gz", "no gzip").await.unwrap();
    let etag = site.put("loaded.jsonl", "{}\n").await.unwrap();
    site.send("no JSON").await.unwrap();
    sluice.start();
    wait_until_drained(&site).await;
    wait_for_dead_letters(&site, 3).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    site.stop_notifications().await.unwrap();
    let loaded = announcement(&site, "loaded.jsonl", &etag);
    send_to(&site, &site.dlq_url, &loaded).await;
    wait_for_dead_letters(&site, 4).await;
    (site, sluice)
}

fn find_only<'a>(listing: &'a Value, class: &str) -> &'a Value {
    let messages = listing["messages"].as_array().unwrap();
    let mut found = messages.iter().filter(|it| it["class"] == class);
    let one = found.next().unwrap_or_else(|| panic!("{class}: {listing}"));
    assert_eq!(found.next(), None);
    one
}

#[tokio::test]
async fn dead_letters_are_listed_with_their_reasons_and_returned_at_once() {
    let (site, sluice) = with_dead_letters("dlq-list").await;
    let listing = json(&sluice, &["list"]);
    assert_eq!(dead_depth(&site).await, (4, 0));
    assert_eq!(listing["approximate_messages"], 4, "{listing}");
    let missing = find_only(&listing, "missing");
    assert_eq!(missing["objects"][0]["key"], "missing.jsonl");
    assert_eq!(missing["objects"][0]["failures"], 1, "{listing}");
    assert!(!missing["reason"].as_str().unwrap().is_empty());
    let broken = find_only(&listing, "unloadable");
    assert_eq!(broken["objects"][0]["key"], "broken.jsonl.gz");
    let malformed = find_only(&listing, "malformed");
    assert!(malformed["reason"].as_str().unwrap().contains("not JSON"));
    assert_eq!(find_only(&listing, "loaded")["objects"][0]["loaded"], true);
    // Only the listing has received it since it was sent.
    assert_eq!(find_only(&listing, "loaded")["receive_count"], 1);

    let shown = text(&sluice, &["list"]);
    assert!(shown.starts_with("4 of about 4 messages in "), "{shown}");
    assert!(shown.contains("/missing.jsonl"), "{shown}");
    let count = |arguments: &[&str]| {
        let listing = json(&sluice, &[&["list"], arguments].concat());
        listing["messages"].as_array().unwrap().len()
    };
    assert_eq!(count(&["--limit", "2"]), 2);
    assert_eq!(count(&["--error-class", "malformed"]), 1);
    assert_eq!(count(&["--since", "1h"]), 4);
    assert_eq!(count(&["--until", "1h"]), 0);
    let under = format!("s3://{}/", site.bucket);
    assert_eq!(count(&["--prefix", &under]), 3);
    assert_eq!(count(&["--prefix", "s3://elsewhere/"]), 0);

    let id = malformed["message_id"].as_str().unwrap();
    assert_eq!(json(&sluice, &["show", id])["body"], "no JSON");
    let shown = text(&sluice, &["show", id]);
    assert!(shown.contains("\nbody\nno JSON"), "{shown}");
    let shown = text(&sluice, &["show", missing["message_id"].as_str().unwrap()]);
    assert!(shown.contains("failed 1 times, last "), "{shown}");
    assert!(dlq_error(&sluice, &["show", "no-such-id"]).contains("message no-such-id not found"));
    assert_eq!(dead_depth(&site).await, (4, 0));
}

#[tokio::test]
async fn dead_letters_of_several_requests_are_listed_once_each() {
    let stack = Stack::shared();
    let site = stack.site("dlq-many").await.unwrap();
    let sluice = Sluice::new(stack, &site);
    sluice.migrate();
    for number in 0..25 {
        send_to(&site, &site.dlq_url, &format!("no JSON {number}")).await;
    }
    let listing = json(&sluice, &["list"]);
    assert_eq!(listing["classes"]["malformed"], 25, "{listing}");
    assert_eq!(dead_depth(&site).await, (25, 0));
}

#[tokio::test]
async fn a_missing_dead_letter_queue_is_reported() {
    let stack = Stack::shared();
    let site = stack.site("dlq-none").await.unwrap();
    // The dead-letter queue does not have one of its own.
    let sluice = Sluice::new(stack, &site).set("queue.url", &site.dlq_url);
    assert!(dlq_error(&sluice, &["list"]).contains("has no redrive policy"));
}

#[tokio::test]
async fn selected_messages_are_sent_again_and_loaded_ones_are_deleted() {
    let (site, mut sluice) = with_dead_letters("dlq-redrive").await;
    let planned = json(&sluice, &["redrive", "--dry-run"]);
    assert_eq!(
        planned,
        object!({"dry_run": true, "sent": 3, "done": 1, "left": 0, "stopped": false})
    );
    assert_eq!(dead_depth(&site).await, (4, 0));
    assert_eq!(site.queue_depth().await.unwrap(), (0, 0));

    // The object exists again, but is not announced.
    site.put("missing.jsonl", "{}\n").await.unwrap();
    let report = json(&sluice, &["redrive", "--error-class", "missing"]);
    assert_eq!(
        report,
        object!({"dry_run": false, "sent": 1, "done": 0, "left": 3, "stopped": false})
    );
    assert_eq!(dead_depth(&site).await, (3, 0));
    sluice.start();
    wait_until_drained(&site).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    let clickhouse = &Stack::shared().clickhouse;
    assert_eq!(loaded(clickhouse, &site.database).await, 2);

    let report = text(&sluice, &["redrive"]);
    assert!(
        report.contains("2 messages sent") && report.contains("1 deleted"),
        "{report}"
    );
    assert_eq!(dead_depth(&site).await, (0, 0));
    wait_for_messages(&site, 2).await;
    sluice.start();
    wait_for_dead_letters(&site, 2).await;
    wait_until_drained(&site).await;
    assert_eq!(loaded(clickhouse, &site.database).await, 2);
}

#[tokio::test]
async fn a_message_with_an_object_that_is_not_loaded_is_sent_again() {
    let (site, sluice) = with_dead_letters("dlq-mixed").await;
    json(&sluice, &["redrive", "--error-class", "loaded"]);
    assert_eq!(dead_depth(&site).await, (3, 0));
    let etag = site.put("loaded.jsonl", "{}\n").await.unwrap();
    let mut both: Value =
        serde_json::from_str(&announcement(&site, "loaded.jsonl", &etag)).unwrap();
    let other: Value = serde_json::from_str(&announcement(&site, "other", "0")).unwrap();
    let records = both["Records"].as_array_mut().unwrap();
    records.push(other["Records"][0].clone());
    send_to(&site, &site.dlq_url, &both.to_string()).await;
    let listing = json(&sluice, &["list", "--error-class", "untried"]);
    assert_eq!(find_only(&listing, "untried")["objects"][0]["loaded"], true);
    let report = json(&sluice, &["redrive", "--error-class", "untried"]);
    assert_eq!(
        (&report["sent"], &report["done"]),
        (&1.into(), &0.into()),
        "{report}"
    );
}

#[tokio::test]
async fn attributes_are_kept_and_messages_of_other_queues_are_left_alone() {
    let stack = Stack::shared();
    let site = stack.site("dlq-others").await.unwrap();
    let sluice = Sluice::new(stack, &site);
    sluice.migrate();
    remove_test_event(&site).await;
    let attribute = MessageAttributeValue::builder()
        .data_type("String")
        .string_value("me");
    let request = site.sqs.send_message().queue_url(&site.dlq_url);
    let request = request.message_attributes("who", attribute.build().unwrap());
    request.message_body("no JSON").send().await.unwrap();

    // Another queue has the same dead-letter queue, and one of its messages becomes a dead letter.
    let policy = object!({"deadLetterTargetArn": site.dlq_arn, "maxReceiveCount": 1});
    let other = site
        .sqs
        .create_queue()
        .queue_name(format!("{}-other", site.bucket))
        .attributes(QueueAttributeName::RedrivePolicy, policy.to_string())
        .send()
        .await
        .unwrap();
    let other = other.queue_url().unwrap();
    send_to(&site, other, "not ours").await;
    wait_for("the message to become a dead letter", BOUND, async || {
        let receive = site.sqs.receive_message().queue_url(other);
        receive.visibility_timeout(0).send().await?;
        Ok((site.dlq_depth().await? == 2).then_some(()))
    })
    .await;

    let output = sluice.command(&["dlq", "redrive"]);
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("1 messages that came from other queues"),
        "{stderr}"
    );
    assert_eq!(dead_depth(&site).await, (1, 0));
    let receive = site.sqs.receive_message().queue_url(&site.queue_url);
    let received = receive.message_attribute_names("All").send().await.unwrap();
    let message = &received.messages()[0];
    assert_eq!(message.body(), Some("no JSON"));
    let attributes = message.message_attributes().unwrap();
    assert_eq!(attributes["who"].string_value(), Some("me"));
}

/// Removes the test event from the queue.
async fn remove_test_event(site: &Site) {
    wait_for("the test event", BOUND, async || {
        let receive = site.sqs.receive_message().queue_url(&site.queue_url);
        let received = receive.send().await?;
        let Some(message) = received.messages().first() else {
            return Ok(None);
        };
        let delete = site.sqs.delete_message().queue_url(&site.queue_url);
        let delete = delete.receipt_handle(message.receipt_handle().unwrap());
        delete.send().await?;
        Ok(Some(()))
    })
    .await;
}

#[tokio::test]
async fn a_stopped_redrive_returns_its_messages() {
    let stack = Stack::shared();
    let site = stack.site("dlq-stop").await.unwrap();
    let sluice = Sluice::new(stack, &site);
    sluice.migrate();
    remove_test_event(&site).await;
    const ALL: u64 = 40;
    for number in 0..ALL {
        send_to(&site, &site.dlq_url, &format!("no JSON {number}")).await;
    }
    let redrive = sluice.spawn(&["dlq", "redrive", "--max-rate", "1", "--output", "json"]);
    wait_for("the first message to be sent", BOUND, async || {
        let (visible, _) = site.queue_depth().await?;
        Ok((visible > 0).then_some(()))
    })
    .await;
    terminate(&redrive);
    let output = redrive.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["stopped"], true, "{report}");
    let sent = report["sent"].as_u64().unwrap();
    assert!((1..ALL).contains(&sent), "{report}");
    assert_eq!(site.queue_depth().await.unwrap(), (sent, 0));
    assert_eq!(dead_depth(&site).await, (ALL - sent, 0));
}

#[tokio::test]
async fn dead_letters_of_a_fifo_queue_are_sent_again() {
    let stack = Stack::shared();
    let site = stack.site("dlq-fifo").await.unwrap();
    let dead = fifo(&site, "dead", None).await;
    let policy = object!({
        "deadLetterTargetArn": site.dlq_arn.replace("-dlq", "-dead.fifo"), "maxReceiveCount": 3,
    });
    let queue = fifo(&site, "live", Some(policy)).await;
    let sluice = Sluice::new(stack, &site).set("queue.url", &queue);
    sluice.migrate();
    for number in 0..15 {
        let request = site.sqs.send_message().queue_url(&dead);
        let request = request.message_group_id("all");
        let request = request.message_deduplication_id(number.to_string());
        let request = request.message_body(format!("no JSON {number}"));
        request.send().await.unwrap();
    }
    assert_eq!(json(&sluice, &["redrive"])["sent"], 15);
    let live = Site {
        queue_url: queue,
        dlq_url: dead,
        ..site
    };
    wait_for_messages(&live, 15).await;
    assert_eq!(dead_depth(&live).await, (0, 0));
}

pub(crate) async fn fifo(site: &Site, name: &str, policy: Option<Value>) -> String {
    let name = format!("{}-{name}.fifo", site.bucket);
    let mut request = site.sqs.create_queue().queue_name(name);
    request = request.attributes(QueueAttributeName::FifoQueue, "true");
    if let Some(policy) = policy {
        request = request.attributes(QueueAttributeName::RedrivePolicy, policy.to_string());
    }
    let output = request.send().await.unwrap();
    output.queue_url().unwrap().to_owned()
}

#[tokio::test]
async fn purged_messages_are_archived_and_nothing_is_purged_without_confirmation() {
    let (site, sluice) = with_dead_letters("dlq-purge").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("archive.jsonl");
    let path = file.to_str().unwrap();
    let archived = || -> Vec<Value> {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    };
    assert!(dlq_error(&sluice, &["purge", "--archive", path]).contains("pass --yes"));
    let planned = json(&sluice, &["purge", "--dry-run", "--archive", path]);
    assert_eq!(
        (&planned["removed"], &planned["archive"]),
        (&4.into(), &Value::Null)
    );
    let none = [
        "purge",
        "--yes",
        "--archive",
        path,
        "--error-class",
        "denied",
    ];
    assert_eq!(json(&sluice, &none)["left"], 4);
    assert_eq!(dead_depth(&site).await, (4, 0));
    assert!(!file.exists());

    let some = [
        "purge",
        "--yes",
        "--archive",
        path,
        "--error-class",
        "malformed",
    ];
    let report = json(&sluice, &some);
    assert_eq!(report["classes"], object!({"malformed": 1}), "{report}");
    assert_eq!(
        (&report["removed"], &report["left"]),
        (&1.into(), &3.into())
    );
    let lines = archived();
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (&lines[0]["body"], &lines[0]["class"]),
        (&"no JSON".into(), &"malformed".into())
    );
    assert_eq!(dead_depth(&site).await, (3, 0));

    // An existing file is never overwritten.
    assert!(
        dlq_error(&sluice, &["purge", "--yes", "--archive", path]).contains("failed to create")
    );
    assert_eq!(archived(), lines);
    assert_eq!(dead_depth(&site).await, (3, 0));

    let rest = directory.path().join("rest.jsonl");
    let shown = text(
        &sluice,
        &["purge", "--yes", "--archive", rest.to_str().unwrap()],
    );
    assert!(
        shown.starts_with("3 messages removed; they are archived in "),
        "{shown}"
    );
    assert_eq!(dead_depth(&site).await, (0, 0));
}

#[tokio::test]
async fn messages_that_cannot_be_archived_are_not_purged() {
    let stack = Stack::shared();
    let site = stack.site("dlq-full").await.unwrap();
    let sluice = Sluice::new(stack, &site);
    sluice.migrate();
    send_to(&site, &site.dlq_url, "no JSON").await;
    let directory = tempfile::tempdir().unwrap();
    let nowhere = directory.path().join("not/there.jsonl");
    let stderr = dlq_error(
        &sluice,
        &["purge", "--yes", "--archive", nowhere.to_str().unwrap()],
    );
    assert!(stderr.contains("failed to create"), "{stderr}");
    assert_eq!(dead_depth(&site).await, (1, 0));
}

#[tokio::test]
async fn without_the_ledger_no_message_is_moved_and_all_are_returned() {
    let stack = Stack::shared();
    let site = stack.site("dlq-unreachable").await.unwrap();
    let sluice = Sluice::new(stack, &site).set("clickhouse.url", "http://127.0.0.1:1");
    remove_test_event(&site).await;
    send_to(&site, &site.dlq_url, &announcement(&site, "a", "0")).await;
    for command in ["list", "redrive"] {
        let stderr = dlq_error(&sluice, &[command]);
        assert!(
            stderr.contains("failed to query ClickHouse at http://127.0.0.1:1"),
            "{stderr}"
        );
        assert_eq!(dead_depth(&site).await, (1, 0));
    }
    assert_eq!(site.queue_depth().await.unwrap(), (0, 0));
}

/// The command takes longer than one visibility timeout.
#[tokio::test]
async fn messages_stay_hidden_until_the_command_ends() {
    let stack = Stack::shared();
    let site = stack.site("dlq-long").await.unwrap();
    let sluice = Sluice::new(stack, &site);
    sluice.migrate();
    remove_test_event(&site).await;
    send_to(&site, &site.dlq_url, &announcement(&site, "other", "0")).await;
    for number in 0..50 {
        send_to(&site, &site.dlq_url, &format!("no JSON {number}")).await;
    }
    let selection = ["--error-class", "malformed", "--max-rate", "1"];
    let redrive = sluice.spawn(&[&["dlq", "redrive"], &selection[..]].concat());
    wait_for("the visibility timeout to be over", BOUND, async || {
        let (visible, _) = site.queue_depth().await?;
        Ok((visible >= 35).then_some(()))
    })
    .await;
    let receive = site.sqs.receive_message().queue_url(&site.dlq_url);
    let receive = receive.max_number_of_messages(10).visibility_timeout(0);
    let received = receive.send().await.unwrap();
    assert!(!received.messages().is_empty());
    for message in received.messages() {
        assert!(
            message.body().unwrap().starts_with("no JSON"),
            "{message:?}"
        );
    }
    terminate(&redrive);
    let output = redrive.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let (visible, in_flight) = dead_depth(&site).await;
    assert!(visible > 0 && in_flight == 0, "{visible} {in_flight}");
}
