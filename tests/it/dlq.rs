//! `sluice dlq`: what is in the dead-letter queue, and what is done about it.

use serde_json::Value;
use sluice_testkit::{Site, SiteOptions, Stack};

use crate::harness::{Sluice, announcement, dead_letters, drained};

/// What it prints, with exit code 0.
fn text(sluice: &Sluice, arguments: &[&str]) -> String {
    let output = sluice.command(&[&["dlq"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(sluice: &Sluice, arguments: &[&str]) -> Value {
    serde_json::from_str(&text(sluice, &[arguments, &["--output", "json"]].concat())).unwrap()
}

/// What it says against that, with exit code 1.
fn refused(sluice: &Sluice, arguments: &[&str]) -> String {
    let output = sluice.command(&[&["dlq"], arguments].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

async fn put_into(site: &Site, url: &str, body: &str) {
    let request = site.sqs.send_message().queue_url(url).message_body(body);
    request.send().await.unwrap();
}

/// Visible and in flight, in the dead-letter queue.
async fn dead_depth(site: &Site) -> (u64, u64) {
    let dead = Site {
        queue_url: site.dlq_url.clone(),
        ..site.clone()
    };
    dead.queue_depth().await.unwrap()
}

/// Dead letters of all kinds: `missing.jsonl`, `broken.jsonl.gz`, `loaded.jsonl`, and one that is
/// malformed. The daemon is stopped.
async fn with_dead_letters(name: &str) -> (Site, Sluice) {
    let stack = Stack::shared();
    let options = SiteOptions {
        max_receive_count: 1,
        ..SiteOptions::default()
    };
    let site = stack.site_with(name, options).await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    site.put("missing.jsonl", "{}\n").await.unwrap();
    site.delete("missing.jsonl").await.unwrap();
    site.put("broken.jsonl.gz", "no gzip").await.unwrap();
    let etag = site.put("loaded.jsonl", "{}\n").await.unwrap();
    site.send("no JSON").await.unwrap();
    sluice.start();
    drained(&site).await;
    dead_letters(&site, 3).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    site.announce_no_more().await.unwrap();
    let loaded = announcement(&site, "loaded.jsonl", &etag);
    put_into(&site, &site.dlq_url, &loaded).await;
    dead_letters(&site, 4).await;
    (site, sluice)
}

fn only<'a>(listing: &'a Value, class: &str) -> &'a Value {
    let messages = listing["messages"].as_array().unwrap();
    let mut found = messages.iter().filter(|it| it["class"] == class);
    let one = found.next().unwrap_or_else(|| panic!("{class}: {listing}"));
    assert_eq!(found.next(), None);
    one
}

#[tokio::test]
async fn dead_letters_are_listed_with_their_reasons_and_given_back_at_once() {
    let (site, sluice) = with_dead_letters("dlq-list").await;
    let listing = json(&sluice, &["list"]);
    assert_eq!(dead_depth(&site).await, (4, 0));
    assert_eq!(listing["approximate_messages"], 4, "{listing}");
    let missing = only(&listing, "missing");
    assert_eq!(missing["objects"][0]["key"], "missing.jsonl");
    assert_eq!(missing["objects"][0]["failures"], 1, "{listing}");
    assert!(!missing["reason"].as_str().unwrap().is_empty());
    let broken = only(&listing, "unloadable");
    assert_eq!(broken["objects"][0]["key"], "broken.jsonl.gz");
    let malformed = only(&listing, "malformed");
    assert!(malformed["reason"].as_str().unwrap().contains("not JSON"));
    assert_eq!(only(&listing, "loaded")["objects"][0]["loaded"], true);
    // Nobody but the listing has received it since it was sent.
    assert_eq!(only(&listing, "loaded")["receive_count"], 1);

    let told = text(&sluice, &["list"]);
    assert!(told.starts_with("4 of about 4 messages in "), "{told}");
    assert!(told.contains("/missing.jsonl"), "{told}");
    let chosen = |arguments: &[&str]| {
        let listing = json(&sluice, &[&["list"], arguments].concat());
        listing["messages"].as_array().unwrap().len()
    };
    assert_eq!(chosen(&["--limit", "2"]), 2);
    assert_eq!(chosen(&["--error-class", "malformed"]), 1);
    assert_eq!(chosen(&["--since", "1h"]), 4);
    assert_eq!(chosen(&["--until", "1h"]), 0);
    let under = format!("s3://{}/", site.bucket);
    assert_eq!(chosen(&["--prefix", &under]), 3);
    assert_eq!(chosen(&["--prefix", "s3://elsewhere/"]), 0);

    let id = malformed["message_id"].as_str().unwrap();
    assert_eq!(json(&sluice, &["show", id])["body"], "no JSON");
    let told = text(&sluice, &["show", id]);
    assert!(told.contains("\nbody\nno JSON"), "{told}");
    let told = text(&sluice, &["show", missing["message_id"].as_str().unwrap()]);
    assert!(told.contains("failed 1 times, last "), "{told}");
    assert!(refused(&sluice, &["show", "no-such-id"]).contains("no-such-id is not to be received"));
    assert_eq!(dead_depth(&site).await, (4, 0));
}

#[tokio::test]
async fn more_dead_letters_than_one_request_takes_are_listed_once_each() {
    let stack = Stack::shared();
    let site = stack.site("dlq-many").await.unwrap();
    let sluice = Sluice::new(stack, &site);
    sluice.migrate();
    for number in 0..25 {
        put_into(&site, &site.dlq_url, &format!("no JSON {number}")).await;
    }
    let listing = json(&sluice, &["list"]);
    assert_eq!(listing["classes"]["malformed"], 25, "{listing}");
    assert_eq!(dead_depth(&site).await, (25, 0));
}

#[tokio::test]
async fn without_a_dead_letter_queue_that_is_said() {
    let stack = Stack::shared();
    let site = stack.site("dlq-none").await.unwrap();
    // It has none of its own.
    let sluice = Sluice::new(stack, &site).set("queue.url", &site.dlq_url);
    assert!(refused(&sluice, &["list"]).contains("has no redrive policy"));
}
