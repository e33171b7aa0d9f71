//! `sluice status`: the queue and the workers, failures, and the history of an object.

use serde_json::Value;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::gzip;
use sluice_testkit::{Site, Stack, wait_for};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::harness::{BOUND, Sluice, wait_for_dead_letters, wait_until_drained};

fn text(sluice: &Sluice, arguments: &[&str]) -> String {
    let output = sluice.command(&[&["status"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(sluice: &Sluice, arguments: &[&str]) -> Value {
    serde_json::from_str(&text(sluice, &[&["--output", "json"], arguments].concat())).unwrap()
}

/// Clients of the listener can neither exhaust its connections nor have a browser read it under
/// another name.
#[tokio::test]
async fn silent_connections_and_foreign_hosts_do_no_harm() {
    let stack = Stack::shared();
    let site = stack.site("half-open").await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("admin.allowed_hosts", r#"["sluice.internal"]"#);
    sluice.migrate();
    sluice.start();
    sluice.wait_until_ready().await;
    let address = sluice.admin_address().unwrap();
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    assert_eq!(sluice.get("/healthz").await.unwrap().0, 200);
    site.put("a.jsonl", "{\"note\":1}\n").await.unwrap();
    wait_until_drained(&site).await;
    // All silent connections are closed eventually.
    for mut stream in idle {
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
    }

    for (host, status) in [
        (address.as_str(), 200),
        ("localhost", 200),
        ("sluice.internal:9464", 200),
        ("evil.example", 421),
    ] {
        let answer = sluice.request_as(host, "GET", "/status.json").await;
        let (found, body) = answer.unwrap();
        assert_eq!(found, status, "{host}: {body}");
    }
}

#[tokio::test]
async fn a_worker_reports_its_health_and_its_lag() {
    let stack = Stack::shared();
    let site = stack.site("status-worker").await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    site.put("a.jsonl", "{\"note\":1}\n").await.unwrap();
    sluice.start();
    wait_until_drained(&site).await;
    let address = sluice.admin_address().unwrap();
    let worker = async |what, is: &dyn Fn(&Value) -> bool| {
        wait_for(what, BOUND, async || {
            let overview = json(&sluice, &["--worker", &address]);
            let status = overview["processes"][0]["status"].clone();
            Ok(is(&status).then_some(status))
        })
        .await
    };
    let status = worker("the lag", &|it| it["lag"]["count"] == 1).await;
    assert_eq!(status["messages"], 0, "{status}");
    assert_eq!(status["paused"], Value::Null, "{status}");
    assert!(status["queue_age"]["max"].is_f64(), "{status}");
    let shown = text(&sluice, &["--worker", &address]);
    assert!(shown.contains(": ready, up for "), "{shown}");
    assert!(shown.contains("lag         median "), "{shown}");
    let listen = format!("admin.listen={address}");
    let health = |listen: &str| sluice.command(&["health", "--set", listen]).status.code();
    assert_eq!(health(&listen), Some(0));
    assert_eq!(health("admin.listen=127.0.0.1:1"), Some(1));

    let drop = format!("DROP TABLE {}.ledger_batches", site.database);
    stack.clickhouse.execute(&drop).await.unwrap();
    site.put("b.jsonl", "{\"note\":1}\n").await.unwrap();
    sluice.wait_until_not_ready("ledger_batches").await;
    let overview = sluice.command(&["status", "--worker", &address, "--worker", "127.0.0.1:1"]);
    assert_eq!(overview.status.code(), Some(1));
    let shown = String::from_utf8(overview.stdout).unwrap();
    assert!(shown.contains(&format!("{address}: paused: ")), "{shown}");
    assert!(shown.contains("127.0.0.1:1: unknown: "), "{shown}");
}

#[tokio::test]
async fn status_shows_everything_that_happened_to_an_object() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("status", 1).await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    let empty = json(&sluice, &[]);
    assert_eq!(empty["queue"]["dead_letter_queue"]["messages"], 0);
    assert_eq!(empty["workers"], Value::Array(Vec::new()));
    assert_eq!(empty["open_batches"]["batches"], 0);
    assert!(text(&sluice, &["--failed"]).starts_with("no failed objects"));

    let lines = "{\"note\":1}\nno JSON\n{\"note\":2}\n";
    site.put("folder/good.jsonl", lines).await.unwrap();
    site.put("folder/bad.jsonl.gz", "no gzip").await.unwrap();
    sluice.start();
    wait_until_drained(&site).await;
    wait_for_dead_letters(&site, 1).await;
    assert_eq!(sluice.stop().await.code(), Some(0));

    let overview = json(&sluice, &["--since", "1h"]);
    assert_eq!(
        overview["queue"]["dead_letter_queue"]["messages"], 1,
        "{overview}"
    );
    assert_eq!(overview["workers"][0]["objects"], 1, "{overview}");
    assert_eq!(overview["workers"][0]["rows"], 3, "{overview}");
    assert!(text(&sluice, &[]).contains("0 visible, 0 in flight"));

    let good = format!("s3://{}/folder/good.jsonl", site.bucket);
    let history = json(&sluice, &[&good]);
    let version = &history["versions"][0];
    assert_eq!(version["loaded"], true, "{history}");
    assert_eq!(version["rows"]["unmatched"], 2, "{history}");
    assert_eq!(version["batches"][0]["read_by"], "s3", "{history}");
    assert_eq!(
        version["rejected"].as_object().unwrap().len(),
        1,
        "{history}"
    );
    let shown = text(&sluice, &[&good]);
    assert!(
        shown.contains("loaded") && shown.contains("2 unmatched"),
        "{shown}"
    );

    let bad = format!("s3://{}/folder/bad.jsonl.gz", site.bucket);
    let history = json(&sluice, &[&bad]);
    let version = &history["versions"][0];
    assert_eq!(version["loaded"], false, "{history}");
    assert_eq!(version["failures"][0]["class"], "unloadable", "{history}");
    assert!(text(&sluice, &[&bad]).contains("as unloadable: "));

    let failed = json(&sluice, &["--failed"]);
    assert_eq!(failed[0]["key"], "folder/bad.jsonl.gz", "{failed}");
    let none: [&[&str]; 3] = [
        &["--failed", "--error-class", "missing"],
        &["--failed", "--prefix", "s3://elsewhere/"],
        &["--failed", "--since", "0s"],
    ];
    for arguments in none {
        assert_eq!(json(&sluice, arguments), Value::Array(Vec::new()));
    }
    let under = format!("s3://{}/fold", site.bucket);
    assert_eq!(
        json(&sluice, &["--failed", "--prefix", &under])[0],
        failed[0]
    );
    let never = text(&sluice, &["s3://elsewhere/key"]);
    assert!(never.contains("no record"), "{never}");
}

async fn single_receive_site(stack: &Stack, name: &str) -> Site {
    stack.site_with_max_receives(name, 1).await.unwrap()
}

fn failed_keys(sluice: &Sluice) -> Vec<String> {
    let failed = json(sluice, &["--failed"]);
    let keys = failed.as_array().unwrap().iter();
    let mut keys: Vec<_> = keys
        .map(|it| it["key"].as_str().unwrap().to_owned())
        .collect();
    keys.sort();
    keys
}

#[tokio::test]
async fn a_failure_is_resolved_once_the_key_is_loaded_with_other_content() {
    let stack = Stack::shared();
    let site = single_receive_site(stack, "status-replaced").await;
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    sluice.start();
    let good = || gzip(b"{\"note\":1}\n");
    site.put("repaired.jsonl.gz", "no gzip").await.unwrap();
    site.put("spoilt.jsonl.gz", good()).await.unwrap();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    assert_eq!(failed_keys(&sluice), ["repaired.jsonl.gz"]);
    site.put("repaired.jsonl.gz", good()).await.unwrap();
    site.put("spoilt.jsonl.gz", "no gzip").await.unwrap();
    wait_for_dead_letters(&site, 2).await;
    wait_until_drained(&site).await;
    assert_eq!(failed_keys(&sluice), ["spoilt.jsonl.gz"]);

    // This replay moves lines that were loaded before the failure.
    let database = &site.database;
    for replay in [
        format!(
            "INSERT INTO {database}.ledger_objects (object_id, bucket, key, batch_id, read_by) \
             SELECT object_id, bucket, key, '00000000-0000-0000-0000-000000000001', 'rejected_lines' \
             FROM {database}.ledger_objects WHERE key = 'spoilt.jsonl.gz' LIMIT 1"
        ),
        format!(
            "INSERT INTO {database}.ledger_batches (batch_id, event) \
             VALUES ('00000000-0000-0000-0000-000000000001', 'loaded')"
        ),
    ] {
        stack.clickhouse.execute(&replay).await.unwrap();
    }
    assert_eq!(failed_keys(&sluice), ["spoilt.jsonl.gz"]);

    let retry = |arguments: &[&str]| {
        let output = sluice.command(&[&["retry", "--dry-run"], arguments].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let repaired = format!("s3://{}/repaired.jsonl.gz", site.bucket);
    assert_eq!(retry(&[&repaired]).0, Some(1));
    let (code, planned) = retry(&["--error-class", "unloadable"]);
    assert_eq!(code, Some(0));
    assert!(
        planned.contains("spoilt.jsonl.gz") && !planned.contains("repaired"),
        "{planned}"
    );
}

#[tokio::test]
async fn a_failure_that_is_dismissed_is_listed_again_when_it_happens_again() {
    let stack = Stack::shared();
    let site = single_receive_site(stack, "forget").await;
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    sluice.start();
    for key in ["bad.jsonl.gz", "worse.jsonl.gz"] {
        site.put(key, "no gzip").await.unwrap();
    }
    wait_for_dead_letters(&site, 2).await;
    wait_until_drained(&site).await;
    let forget = |url: &str, reason: &str| {
        let output = sluice.command(&["forget", url, "--reason", reason]);
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let bad = format!("s3://{}/bad.jsonl.gz", site.bucket);
    let (code, error) = forget(&format!("{bad}.not"), "a mistake");
    assert_eq!(code, Some(1));
    assert!(error.contains("is not recorded as failed"), "{error}");
    assert_eq!(forget(&bad, "").0, Some(2));
    assert_eq!(failed_keys(&sluice).len(), 2);

    assert_eq!(
        forget(&bad, "the producer's test file"),
        (Some(0), String::new())
    );
    assert_eq!(failed_keys(&sluice), ["worse.jsonl.gz"]);
    assert_eq!(forget(&bad, "once more").0, Some(1));
    let planned = sluice.command(&["retry", "--error-class", "unloadable", "--dry-run"]);
    let planned = String::from_utf8(planned.stdout).unwrap();
    assert!(
        planned.contains("worse") && !planned.contains(&bad),
        "{planned}"
    );
    let shown = text(&sluice, &[&bad]);
    assert!(shown.contains(": the producer's test file\n"), "{shown}");
    let history = json(&sluice, &[&bad]);
    let failures = &history["versions"][0]["failures"];
    assert_eq!(failures[0]["class"], "dismissed", "{history}");
    assert_eq!(failures[1]["class"], "unloadable", "{history}");

    // Its dead letter still exists, and can be selected by the class.
    let listed = sluice.command(&["dlq", "list", "--error-class", "dismissed"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("bad.jsonl.gz") && !listed.contains("worse"),
        "{listed}"
    );
    let redrive = ["dlq", "redrive", "--error-class", "dismissed"];
    assert!(sluice.command(&redrive).status.success());
    wait_for_dead_letters(&site, 2).await;
    wait_until_drained(&site).await;
    assert_eq!(failed_keys(&sluice), ["bad.jsonl.gz", "worse.jsonl.gz"]);
    let failed = json(&sluice, &["--failed"]);
    assert_eq!(failed[0]["tries"], 2, "{failed}");
}

#[tokio::test]
async fn objects_that_would_fail_again_are_retried_only_on_request() {
    let stack = Stack::shared();
    let site = single_receive_site(stack, "retry-again").await;
    let mut sluice = Sluice::new(stack, &site)
        .set("load.fallback", "never")
        .set("load.max_rejected_ratio", "0.5");
    sluice.migrate();
    site.put("gone.jsonl", "{}\n").await.unwrap();
    site.delete("gone.jsonl").await.unwrap();
    site.put("back.jsonl", "{}\n").await.unwrap();
    site.delete("back.jsonl").await.unwrap();
    for key in ["broken.jsonl.gz", "repaired.jsonl.gz"] {
        site.put(key, "no gzip").await.unwrap();
    }
    site.put("lines.jsonl", "no JSON\n").await.unwrap();
    site.put("odd*.jsonl", "no JSON\n").await.unwrap();
    sluice.start();
    wait_for_dead_letters(&site, 6).await;
    wait_until_drained(&site).await;
    site.stop_notifications().await.unwrap();
    site.put("back.jsonl", "{}\n").await.unwrap();
    site.put("repaired.jsonl.gz", gzip(b"{}\n")).await.unwrap();

    let retry = |sluice: &Sluice, arguments: &[&str]| -> Value {
        let dry_run = ["retry", "--dry-run", "--output", "json"];
        let output = sluice.command(&[&dry_run, arguments].concat());
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let urls = |keys: &[&str]| {
        let url = |key: &&str| Value::from(format!("s3://{}/{key}", site.bucket));
        keys.iter().map(url).collect::<Vec<_>>()
    };
    let objects = |report: &Value| {
        let mut objects = report["objects"].as_array().unwrap().clone();
        objects.sort_by_key(Value::to_string);
        objects
    };
    let all = retry(&sluice, &["--all"]);
    assert_eq!(
        objects(&all),
        urls(&["back.jsonl", "repaired.jsonl.gz"]),
        "{all}"
    );
    assert_eq!(all["skipped"], 4, "{all}");
    let shown = sluice.command(&["retry", "--all", "--dry-run"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("4 objects skipped") && shown.contains("--error-class"),
        "{shown}"
    );
    for (class, keys) in [
        ("missing", &["back.jsonl", "gone.jsonl"][..]),
        ("unloadable", &["broken.jsonl.gz", "repaired.jsonl.gz"]),
        ("rejected", &["lines.jsonl"]),
        ("unnameable", &["odd*.jsonl"]),
    ] {
        let selected = retry(&sluice, &["--error-class", class]);
        assert_eq!(objects(&selected), urls(keys), "{selected}");
        assert_eq!(selected["skipped"], 0, "{selected}");
    }
    let broken = format!("s3://{}/broken.jsonl.gz", site.bucket);
    assert_eq!(
        objects(&retry(&sluice, &[&broken])),
        urls(&["broken.jsonl.gz"])
    );
}

/// The runtime has several threads, since the proxy runs while a command blocks one.
#[tokio::test(flavor = "multi_thread")]
async fn objects_that_the_worker_may_not_look_up_are_retried() {
    let stack = Stack::shared();
    let site = single_receive_site(stack, "retry-denied").await;
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    site.put("gone.jsonl", "{}\n").await.unwrap();
    site.delete("gone.jsonl").await.unwrap();
    site.put("broken.jsonl.gz", "no gzip").await.unwrap();
    sluice.start();
    wait_for_dead_letters(&site, 2).await;
    wait_until_drained(&site).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    let proxy = Proxy::start(stack.aws.endpoint()).await.unwrap();
    proxy.inject(Fault::Status(403), usize::MAX, |_, _| true);
    let sluice = sluice.environment("AWS_ENDPOINT_URL_S3", proxy.url());
    let output = sluice.command(&["retry", "--all", "--dry-run"]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        shown.ends_with("2 objects would be announced again\n"),
        "{shown}"
    );
    assert!(!shown.contains("skipped"), "{shown}");
    assert!(proxy.hits() >= 2);
}

#[tokio::test]
async fn an_unreachable_service_is_named_and_the_rest_is_shown() {
    let stack = Stack::shared();
    let site = stack.site("status-unreachable").await.unwrap();
    let sluice = Sluice::new(stack, &site).set("clickhouse.url", "http://127.0.0.1:1");
    let output = wait_for("the test event", BOUND, async || {
        let output = sluice.command(&["status"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.contains("1 visible").then_some(output))
    })
    .await;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("unknown: "), "{text}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("some sources could not be queried"));
}

#[tokio::test]
async fn one_command_retries_the_failed_objects() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("retry", 1).await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    let keys = ["a b.jsonl", "c+d%41.jsonl"];
    for key in keys {
        site.put(key, "{}\n").await.unwrap();
        site.delete(key).await.unwrap();
    }
    sluice.start();
    wait_until_drained(&site).await;
    wait_for_dead_letters(&site, 2).await;
    site.stop_notifications().await.unwrap();
    for key in keys {
        site.put(key, "{}\n").await.unwrap();
    }
    let retry = |arguments: &[&str]| {
        let output = sluice.command(&[&["retry", "--output", "json"], arguments].concat());
        let code = output.status.code();
        (code, String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(retry(&[]).0, Some(2), "retried everything without --all");
    assert_eq!(retry(&["s3://elsewhere/key"]).0, Some(1));
    let url = format!("s3://{}/{}", site.bucket, keys[1]);
    let (code, planned) = retry(&["--all", "--dry-run"]);
    assert_eq!(code, Some(0));
    assert!(planned.contains(&url), "{planned}");
    assert_eq!(site.queue_depth().await.unwrap(), (0, 0));

    assert_eq!(retry(&[&url]).0, Some(0));
    wait_until_drained(&site).await;
    let (code, left) = retry(&["--all"]);
    assert_eq!(code, Some(0));
    assert!(!left.contains(&url) && left.contains(keys[0]), "{left}");
    wait_until_drained(&site).await;
    assert_eq!(json(&sluice, &["--failed"]), Value::Array(Vec::new()));
    wait_for_dead_letters(&site, 2).await;
}
