//! `sluice check`: its output on a correct setup and for each failure.

use aws_sdk_sqs::types::{MessageSystemAttributeName, QueueAttributeName};
use serde_json::Value;
use sluice::clickhouse::replicas::Topology;
use sluice::clickhouse::{Access, Warehouse};
use sluice::config::{Secret, SecretSource};
use sluice_testkit::xapi::Generator;
use sluice_testkit::{AccessKey, ClickHouse, ClickHouseOptions, Site, Stack, wait_for};

use crate::access::{clickhouse, daemon, keys, put, strict_s3, strict_site};
use crate::harness::{BOUND, Rows, Sluice, loaded, rows, wait_until_drained};

fn access_as(url: &str, user: &str, database: &str) -> Access {
    Access {
        url: url.to_owned(),
        user: user.to_owned(),
        password: SecretSource::Given(Secret::new("")),
        secrets: Vec::new(),
        database: database.to_owned(),
        connect_timeout: BOUND,
        query_timeout: BOUND,
        ca_file: None,
        cluster: None,
        topology: Topology::Auto,
        accept_unproven: false,
    }
}

/// Returns the exit code and the checks.
fn check(sluice: &Sluice, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = sluice.command(&[&["check", "--output", "json"], arguments].concat());
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let checks = document["checks"].as_array().expect("an array");
    (output.status.code(), checks.clone())
}

/// Returns the result, detail and advice of the check of this name.
#[track_caller]
fn find_check<'a>(checks: &'a [Value], name: &str) -> (&'a str, &'a str, &'a str) {
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no check {name} in {checks:?}"));
    let text = |field: &str| check[field].as_str().unwrap_or_default();
    (text("result"), text("detail"), text("advice"))
}

/// Asserts that exactly these checks fail.
#[track_caller]
fn assert_fails(checks: &[Value], names: &[&str]) {
    let failed = checks.iter().filter(|check| check["result"] == "fail");
    let failed: Vec<_> = failed
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    assert_eq!(failed, names, "{checks:#?}");
}

async fn set_attribute(site: &Site, url: &str, name: QueueAttributeName, value: &str) {
    let request = site.sqs.set_queue_attributes().queue_url(url);
    request.attributes(name, value).send().await.unwrap();
}

/// Creates a site with correctly configured queues, with its tables and a loaded object.
async fn good_site(stack: &Stack, name: &str) -> (Site, Sluice) {
    let site = stack.site(name).await.unwrap();
    for url in [&site.queue_url, &site.dlq_url] {
        let name = QueueAttributeName::MessageRetentionPeriod;
        set_attribute(&site, url, name, "1209600").await;
    }
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    site.put("a.jsonl", "{\"note\":\"a\"}\n").await.unwrap();
    sluice.start();
    wait_until_drained(&site).await;
    sluice.stop().await;
    (site, sluice)
}

/// Returns the number of rows in each table, and the names of all tables, to detect changes.
async fn state(stack: &Stack, site: &Site) -> (Rows, String) {
    let sql = format!(
        "SELECT name, total_rows FROM system.tables WHERE database = '{}' ORDER BY name",
        site.database
    );
    let tables = stack.clickhouse.query(&sql).await.unwrap();
    (rows(&stack.clickhouse, &site.database).await, tables)
}

#[tokio::test]
async fn a_correct_setup_passes_every_check_and_is_not_changed() {
    let stack = Stack::shared();
    let (site, sluice) = good_site(stack, "check").await;
    let sluice = sluice.with_any_topology();
    site.send("left alone").await.unwrap();
    let before = state(stack, &site).await;

    let (code, checks) = check(&sluice, &[]);
    assert_eq!(code, Some(0), "{checks:#?}");
    let report = serde_json::to_string_pretty(&checks).unwrap();
    let report = report
        .replace(&site.bucket, "SITE")
        .replace(&site.database, "DATABASE")
        .replace(stack.aws.endpoint(), "AWS")
        .replace(stack.clickhouse.url(), "CLICKHOUSE");
    insta::assert_snapshot!(report);

    assert_eq!(state(stack, &site).await, before);
    let receive = site.sqs.receive_message().queue_url(&site.queue_url);
    let receive =
        receive.message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
    let messages = receive.send().await.unwrap().messages.unwrap_or_default();
    let counts: Vec<_> = messages
        .iter()
        .filter_map(|message| message.attributes()?.values().next())
        .collect();
    assert_eq!(counts, ["1"], "{messages:?}");

    let text = sluice.command(&["check"]);
    let text = String::from_utf8(text.stdout).unwrap();
    let last = text.lines().last().unwrap_or_default();
    // There are no rows whose columns could be checked.
    assert_eq!(find_check(&checks, "columns").0, "skip");
    let summary = format!("{} pass, 1 skip", checks.len() - 1);
    assert_eq!(last, summary, "{text}");
    assert!(text.starts_with("pass  configuration "), "{text}");
}

#[tokio::test]
async fn problems_of_the_queue_are_named() {
    let stack = Stack::shared();
    let (site, sluice) = good_site(stack, "check-queue").await;
    let retention = QueueAttributeName::MessageRetentionPeriod;

    set_attribute(&site, &site.dlq_url, retention.clone(), "345600").await;
    let (code, checks) = check(&sluice, &[]);
    assert_fails(&checks, &["dead-letter queue"]);
    let (_, detail, advice) = find_check(&checks, "dead-letter queue");
    assert!(detail.contains("kept for 4d, but for 14d"), "{detail}");
    assert!(advice.contains("14 days"), "{advice}");
    assert_eq!(code, Some(1));

    // The retention of both queues is short now.
    set_attribute(&site, &site.queue_url, retention.clone(), "3600").await;
    let (code, checks) = check(&sluice, &[]);
    assert_eq!(code, Some(0), "{checks:#?}");
    assert_eq!(find_check(&checks, "retention").0, "warn");
    assert_eq!(find_check(&checks, "dead-letter queue").0, "warn");

    let single_receive =
        serde_json::json!({"deadLetterTargetArn": site.dlq_arn, "maxReceiveCount": 1});
    let redrive = QueueAttributeName::RedrivePolicy;
    set_attribute(&site, &site.queue_url, redrive, &single_receive.to_string()).await;
    let (_, checks) = check(&sluice, &[]);
    assert_eq!(find_check(&checks, "redrive policy").0, "warn");

    // The dead-letter queue is a queue without a redrive policy.
    let sluice = sluice.set("queue.url", &site.dlq_url);
    let (code, checks) = check(&sluice, &[]);
    assert_fails(&checks, &["redrive policy"]);
    assert!(
        find_check(&checks, "redrive policy")
            .2
            .contains("allow_missing_dlq")
    );
    assert_eq!(code, Some(1));
    let sluice = sluice.set("queue.allow_missing_dlq", true);
    let (code, checks) = check(&sluice, &[]);
    assert_eq!(find_check(&checks, "redrive policy").0, "warn");
    assert_eq!(code, Some(0), "{checks:#?}");

    let delete = site.sqs.delete_queue().queue_url(&site.dlq_url);
    delete.send().await.unwrap();
    let (code, checks) = check(&sluice, &[]);
    assert_fails(&checks, &["queue"]);
    assert_eq!(find_check(&checks, "redrive policy").0, "skip");
    assert_eq!(code, Some(1));
    let (code, checks) = check(&sluice.set("queue.url", &site.queue_url), &[]);
    assert_fails(&checks, &["dead-letter queue"]);
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn an_unreachable_service_is_named_and_the_rest_is_checked() {
    let stack = Stack::shared();
    let (_site, sluice) = good_site(stack, "check-unreachable").await;
    let nowhere = "http://127.0.0.1:1";

    let sluice = sluice.environment("AWS_ENDPOINT_URL", nowhere.to_owned());
    let (code, checks) = check(&sluice, &[]);
    assert_fails(&checks, &["queue"]);
    assert_eq!(find_check(&checks, "s3 by clickhouse").0, "pass");
    assert_eq!(find_check(&checks, "s3 by worker").0, "warn");
    assert_eq!(code, Some(1));

    let sluice = sluice.environment("AWS_ENDPOINT_URL", stack.aws.endpoint().to_owned());
    let sluice = sluice.set("clickhouse.url", nowhere);
    let (code, checks) = check(&sluice, &["s3://somewhere/a.jsonl"]);
    assert_fails(&checks, &["clickhouse"]);
    assert!(
        find_check(&checks, "clickhouse")
            .2
            .contains("clickhouse.url")
    );
    for skipped in [
        "version",
        "tables",
        "columns",
        "replication",
        "servers",
        "s3 by clickhouse",
    ] {
        assert_eq!(find_check(&checks, skipped).0, "skip", "{skipped}");
    }
    assert_eq!(find_check(&checks, "redrive policy").0, "pass");
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn problems_in_clickhouse_are_named() {
    let stack = Stack::shared();
    let (site, sluice) = good_site(stack, "check-tables").await;
    let execute = async |sql: &str| {
        let sql = sql.replace("DB", &site.database);
        stack.clickhouse.execute(&sql).await.unwrap();
    };
    let view = "SELECT name FROM system.tables WHERE database = 'DB' \
                AND name LIKE 'landing%to_object_rows'";
    let view = view.replace("DB", &site.database);
    let view = stack.clickhouse.query(&view).await.unwrap();
    let view = view.trim();
    execute("DROP TABLE DB.ledger_failures").await;
    execute(&format!("DROP TABLE DB.{view}")).await;
    execute("ALTER TABLE DB.object_rows MODIFY SETTING non_replicated_deduplication_window = 0")
        .await;
    execute("ALTER TABLE DB.video_events DROP COLUMN user_id").await;
    let (code, checks) = check(&sluice, &[]);
    assert_fails(&checks, &["tables"]);
    let (_, detail, advice) = find_check(&checks, "tables");
    for what in [
        "table ledger_failures",
        "settings of object_rows",
        "columns of video_events",
        &format!("view {view}"),
    ] {
        assert!(detail.contains(what), "{detail}");
    }
    assert!(advice.contains("sluice migrate"), "{advice}");
    assert_eq!(code, Some(1));
    sluice.migrate();
    let (code, checks) = check(&sluice, &[]);
    assert_eq!(code, Some(0), "{checks:#?}");

    let sluice = sluice.set("clickhouse.insert_timeout", "12h");
    let (_, checks) = check(&sluice, &[]);
    assert_eq!(find_check(&checks, "visibility timeout").0, "fail");

    let sluice = sluice
        .set("clickhouse.user", "secured")
        .environment("SLUICE__CLICKHOUSE__PASSWORD", "wrong".into());
    let (code, checks) = check(&sluice, &[]);
    let (result, _, advice) = find_check(&checks, "clickhouse");
    assert_eq!(result, "fail");
    assert!(advice.contains("clickhouse.password"), "{advice}");
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn a_reader_without_access_to_the_bucket_is_named() {
    let s3 = strict_s3().await;
    let stack = Stack::shared();
    let site = strict_site(&s3, "check-s3").await;
    put(&s3, &site, &site.bucket, "a.jsonl").await;
    let object = format!("s3://{}/a.jsonl", site.bucket);
    let reader = s3.create_reader(&site.bucket).await.unwrap();
    let stranger = s3
        .create_reader(&format!("{}-other", site.bucket))
        .await
        .unwrap();
    // The worker reads from the strict S3 as well, and its queue is elsewhere.
    let sluice_with = |clickhouse: &AccessKey, worker: &AccessKey, fallback: &str| {
        daemon(stack.clickhouse.url(), &s3, &site, &keys(clickhouse))
            .set("load.fallback", fallback)
            .environment("AWS_ENDPOINT_URL_S3", s3.endpoint().to_owned())
            .environment("AWS_ACCESS_KEY_ID", worker.id.clone())
            .environment("AWS_SECRET_ACCESS_KEY", worker.secret.clone())
    };
    sluice_with(&reader, &reader, "auto").migrate();
    for (clickhouse, worker, fallback, expected) in [
        (&reader, &reader, "auto", ["pass", "pass"]),
        (&reader, &stranger, "auto", ["pass", "warn"]),
        (&stranger, &reader, "auto", ["warn", "pass"]),
        (&stranger, &stranger, "auto", ["fail", "warn"]),
        (&stranger, &reader, "never", ["fail", "skip"]),
        (&stranger, &reader, "always", ["skip", "pass"]),
        (&stranger, &stranger, "always", ["skip", "fail"]),
    ] {
        let sluice = sluice_with(clickhouse, worker, fallback);
        let by_bucket = ["--bucket", &site.bucket];
        for arguments in [[&*object].as_slice(), &by_bucket] {
            let (code, checks) = check(&sluice, arguments);
            let results =
                ["s3 by clickhouse", "s3 by worker"].map(|name| find_check(&checks, name).0);
            assert_eq!(results, expected, "{fallback} {arguments:?} {checks:#?}");
            let fails = expected.contains(&"fail");
            assert_eq!(code, Some(i32::from(fails)));
            let proves = fallback == "always" || worker.id == reader.id;
            let whole = if proves { "pass" } else { "warn" };
            assert_eq!(find_check(&checks, "whole objects").0, whole, "{checks:#?}");
        }
    }

    let sluice = sluice_with(&reader, &reader, "auto");
    let missing = format!("s3://{}/missing.jsonl", site.bucket);
    let (_, checks) = check(&sluice, &[&missing]);
    assert_fails(&checks, &["s3 by clickhouse"]);
    let (_, checks) = check(&sluice, &["--bucket", "nobodys"]);
    assert_fails(&checks, &["s3 by clickhouse"]);
    let (_, checks) = check(&sluice, &[]);
    assert_eq!(find_check(&checks, "s3 by clickhouse").0, "skip");
    assert!(
        find_check(&checks, "s3 by clickhouse")
            .1
            .contains("--bucket")
    );
}

/// Returns the names of scratch tables.
async fn scratch(clickhouse: &ClickHouse, site: &Site) -> String {
    let sql = format!(
        "SELECT name FROM system.tables WHERE database = '{}' AND name LIKE 'sluice_check%' \
         ORDER BY name",
        site.database
    );
    clickhouse.query(&sql).await.unwrap()
}

#[tokio::test]
async fn a_server_that_does_not_recognise_repeated_inserts_is_detected() {
    let stack = Stack::shared();
    let (site, sluice) = good_site(stack, "check-dedup").await;
    for strategy in ["single_pass", "per_type"] {
        let sluice = Sluice::new(stack, &site).set("load.strategy", strategy);
        let (code, checks) = check(&sluice, &[]);
        assert_eq!(
            find_check(&checks, "repeated inserts").0,
            "pass",
            "{checks:#?}"
        );
        assert_eq!(code, Some(0), "{checks:#?}");
        let without_dedup = sluice.set("clickhouse.user", "forgetful");
        let (code, checks) = check(&without_dedup, &[]);
        assert_fails(&checks, &["repeated inserts"]);
        let (_, detail, advice) = find_check(&checks, "repeated inserts");
        assert!(detail.contains("instead of 4"), "{detail}");
        assert!(advice.contains("deduplicate_insert_select"), "{advice}");
        assert_eq!(code, Some(1));
        // Nothing is loaded under this setting either.
        let mut without_dedup = without_dedup;
        without_dedup.start();
        without_dedup
            .wait_until_not_ready("deduplicate_insert_select")
            .await;
        assert_eq!(without_dedup.stop().await.code(), Some(0));
    }
    assert_eq!(scratch(&stack.clickhouse, &site).await, "");

    // A killed check leaves such tables behind.
    let now: u64 = stack
        .clickhouse
        .scalar("SELECT toUnixTimestamp(now())")
        .await
        .unwrap();
    for age in [60, 3700] {
        let sql = format!(
            "CREATE TABLE {}.sluice_check_{}_0_canaries (x UInt8) ENGINE = Null",
            site.database,
            now - age
        );
        stack.clickhouse.execute(&sql).await.unwrap();
    }
    check(&sluice, &[]);
    let left = scratch(&stack.clickhouse, &site).await;
    assert_eq!(left, format!("sluice_check_{}_0_canaries\n", now - 60));

    // This user cannot create tables.
    let sluice = sluice
        .set("clickhouse.user", "reader")
        .environment("SLUICE__CLICKHOUSE__PASSWORD", "look-only".into());
    let (code, checks) = check(&sluice, &[]);
    let (result, detail, advice) = find_check(&checks, "repeated inserts");
    assert_eq!(result, "fail");
    assert!(detail.contains("CREATE TABLE"), "{detail}");
    assert!(advice.contains("--print-policy"), "{advice}");
    assert_eq!(code, Some(1));
}

/// The strictest access control that a server can have.
const STRICT: &str = "<access_control_improvements>\
    <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>\
    <table_engines_require_grant>true</table_engines_require_grant>\
    </access_control_improvements>";

fn user(name: &str, grants: &[&str]) -> String {
    let grants = grants.iter().map(|g| format!("<query>GRANT {g}</query>"));
    let grants: String = grants.collect();
    format!(
        "<{name}><password></password><networks><ip>127.0.0.1</ip></networks>\
         <profile>default</profile><quota>default</quota><grants>{grants}</grants></{name}>"
    )
}

/// Returns two lines that match no event type, and one that matches an event type if it is not too
/// long.
fn with_a_long_line() -> String {
    let bundles = Generator::new(3).faults(0.0, 0.0);
    let mut plain = bundles.filter(|bundle| bundle.key.ends_with(".jsonl"));
    let bytes = plain.next().unwrap().bytes;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap();
    let mut statement: Value = serde_json::from_slice(line).unwrap();
    statement["pad"] = "p".repeat(5000).into();
    format!("{{\"note\":1}}\n{{\"note\":2}}\n{statement}\n")
}

#[tokio::test]
async fn the_printed_rights_suffice_and_each_missing_one_is_named() {
    let stack = Stack::shared();
    let site = stack.site("check-rights").await.unwrap();
    let at = |url: &str, user: &str| {
        Sluice::new(stack, &site)
            .set("clickhouse.url", url)
            .set("clickhouse.user", user)
            .set("load.max_rejected_ratio", "0.5")
    };
    let offline = at("http://127.0.0.1:1", "least");
    let print = ["check", "--print-policy", "--bucket", "uploads"];
    let text = String::from_utf8(offline.command(&print).stdout).unwrap();
    let text = text
        .replace(&site.bucket, "SITE")
        .replace(&site.database, "DATABASE");
    insta::assert_snapshot!(text);
    let json = offline.command(&[&print[..], &["--output", "json"]].concat());
    let policies: Value = serde_json::from_slice(&json.stdout).unwrap();
    let grants = |role: &str| -> Vec<&str> {
        let grants = policies["clickhouse"][role].as_array().unwrap();
        grants.iter().map(|grant| grant.as_str().unwrap()).collect()
    };
    let run = grants("run");

    let mut users = user("least", &run)
        + &user("checker", &[run.clone(), grants("check")].concat())
        + &user("operator", &[run.clone(), grants("operate")].concat())
        + &user("migrator", &grants("migrate"));
    for missing in 0..run.len() {
        let mut rest = run.clone();
        rest.remove(missing);
        users += &user(&format!("lacks{missing}"), &rest);
    }
    let clickhouse = clickhouse(ClickHouseOptions {
        configuration: STRICT.to_owned(),
        users,
        ..ClickHouseOptions::default()
    })
    .await;
    at(clickhouse.url(), "migrator").migrate();
    let database = &site.database;
    for sql in [
        format!("CREATE TABLE {database}.seen (raw String) ENGINE = MergeTree ORDER BY raw"),
        format!(
            "CREATE MATERIALIZED VIEW {database}.seen_view TO {database}.seen AS \
             SELECT raw FROM {database}.rejected_lines"
        ),
    ] {
        clickhouse.execute(&sql).await.unwrap();
    }

    // One batch has rejected lines, and a later one is rolled back beside a user's view.
    site.put("some.jsonl", "{\"note\":\"a\"}\nno JSON\n")
        .await
        .unwrap();
    site.put("long.jsonl", with_a_long_line()).await.unwrap();
    let mut least = at(clickhouse.url(), "least").set("load.max_line_bytes", "4KiB");
    least.start();
    wait_until_drained(&site).await;
    site.put("none.jsonl", "no JSON\n").await.unwrap();
    wait_for("an object to be rolled back", BOUND, async || {
        let sql =
            format!("SELECT count() FROM {database}.ledger_failures WHERE class = 'rejected'");
        Ok((clickhouse.scalar::<u64>(&sql).await? > 0).then_some(()))
    })
    .await;
    assert!(least.log().contains("seen_view"), "{}", least.log());
    assert_eq!(least.stop().await.code(), Some(0));
    assert_eq!(loaded(&clickhouse, database).await, 2);
    // This query runs only when merges have removed rows between an insert and its comparison.
    let access = access_as(clickhouse.url(), "least", database);
    let parts = Warehouse::connect(&access).unwrap();
    let sql = "SELECT count() AS parts FROM system.parts WHERE level > 0";
    assert_eq!(parts.rows::<Value>(sql).await.unwrap().len(), 1);
    let rejects = format!("SELECT count() FROM {database}.rejected_lines");
    assert_eq!(clickhouse.scalar::<u64>(&rejects).await.unwrap(), 2);

    let operator = at(clickhouse.url(), "operator");
    let bucket = format!("s3://{}", site.bucket);
    let some = format!("{bucket}/some.jsonl");
    for (arguments, code) in [
        (&["status"][..], 0),
        (&["status", &some], 0),
        (&["status", "--failed"], 0),
        (&["retry", "--all", "--dry-run"], 0),
        (&["dlq", "list"], 0),
        (&["rejects", "list"], 0),
        (&["rejects", "show", &some], 0),
        (&["rejects", "replay"], 0),
        (&["backfill", &some, "--force"], 0),
        (&["verify"], 0),
        (&["repair", "--object", &some, "--yes"], 0),
        (&["types", "preview", &some], 0),
        // One object is not loaded.
        (&["reconcile", &bucket], 3),
    ] {
        let output = operator.command(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
    }
    assert_eq!(clickhouse.scalar::<u64>(&rejects).await.unwrap(), 1);

    let (code, checks) = check(&at(clickhouse.url(), "checker"), &[]);
    assert_eq!(code, Some(0), "{checks:#?}");
    let (_, checks) = check(&least, &[]);
    assert_fails(&checks, &["repeated inserts"]);
    for (missing, grant) in run.iter().enumerate() {
        let user = format!("lacks{missing}");
        let (code, checks) = check(&at(clickhouse.url(), &user), &[]);
        let (result, _, advice) = find_check(&checks, "clickhouse rights");
        assert_eq!((result, code), ("fail", Some(1)), "{grant}: {checks:#?}");
        assert_eq!(advice, format!("GRANT {grant} TO `{user}`;"));
    }
}
