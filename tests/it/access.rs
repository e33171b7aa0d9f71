//! The permissions with which ClickHouse reads S3, how Sluice connects to ClickHouse, and which
//! secrets must not be visible. S3 is strict here: it checks signatures and policies.

use anyhow::ensure;
use serde_json::json;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::tls::TlsFront;
use sluice_testkit::xapi::Generator;
use sluice_testkit::{AccessKey, Aws, ClickHouse, ClickHouseOptions, Site, Stack, wait_for};
use tempfile::TempDir;

use crate::harness::{
    BOUND, Sluice, announcement, assert_rows, loaded, upload, wait_for_messages, wait_until_drained,
};

/// Creates a site whose bucket is in a strict S3, which requires permissions of its readers. Its
/// queues are those of the shared stack: S3 and SQS have different endpoints, and so have Sluice
/// and ClickHouse.
pub(crate) async fn strict_site(s3: &Aws, name: &str) -> Site {
    let site = Stack::shared().site(name).await.unwrap();
    let create = s3.s3().create_bucket().bucket(&site.bucket);
    create.send().await.unwrap();
    site
}

/// Uploads an object with one line, and announces it in the site's queue.
pub(crate) async fn put(s3: &Aws, site: &Site, bucket: &str, key: &str) {
    let put = s3.s3().put_object().bucket(bucket).key(key);
    let put = put.body(b"{\"note\":\"x\"}\n".to_vec().into());
    let etag = put.send().await.unwrap().e_tag.unwrap();
    let body = announcement(site, key, etag.trim_matches('"'));
    site.send(&body.replace(&site.bucket, bucket))
        .await
        .unwrap();
}

pub(crate) async fn strict_s3() -> Aws {
    let start = tokio::task::spawn_blocking(Aws::start_strict);
    start.await.unwrap().unwrap()
}

pub(crate) async fn clickhouse(options: ClickHouseOptions) -> ClickHouse {
    let start = tokio::task::spawn_blocking(|| ClickHouse::start_with(options));
    start.await.unwrap().unwrap()
}

/// Returns a daemon for a strict site.
pub(crate) fn daemon(clickhouse: &str, s3: &Aws, site: &Site, access: &str) -> Sluice {
    Sluice::with_access(Stack::shared(), site, access)
        .set("clickhouse.url", clickhouse)
        .set("s3.clickhouse_endpoint", s3.endpoint())
}

pub(crate) fn keys(key: &AccessKey) -> String {
    json!({"kind": "keys", "access_key_id": key.id, "secret_access_key": key.secret}).to_string()
}

async fn create_collection(clickhouse: &ClickHouse, name: &str, key: &AccessKey) {
    let AccessKey { id, secret } = key;
    let sql = format!(
        "CREATE NAMED COLLECTION `{name}` AS access_key_id = '{id}', secret_access_key = '{secret}'"
    );
    clickhouse.execute(&sql).await.unwrap();
}

#[tokio::test]
async fn clickhouse_reads_with_each_kind_of_access() {
    let s3 = strict_s3().await;
    let by_keys = strict_site(&s3, "by-keys").await;
    let by_file = strict_site(&s3, "by-file").await;
    let by_collection = strict_site(&s3, "by-collection").await;
    let by_server = strict_site(&s3, "by-server").await;
    let anonymous = strict_site(&s3, "anonymous").await;
    s3.make_public(&anonymous.bucket).await.unwrap();
    let server = s3.create_reader(&by_server.bucket).await.unwrap();
    // The administrator of a server can configure credentials there.
    let configuration = format!(
        "<s3><bucket><endpoint>{}/{}/</endpoint><access_key_id>{}</access_key_id>\
         <secret_access_key>{}</secret_access_key></bucket></s3>",
        s3.endpoint(),
        by_server.bucket,
        server.id,
        server.secret
    );
    let clickhouse = clickhouse(ClickHouseOptions {
        configuration,
        ..ClickHouseOptions::default()
    })
    .await;
    let collection = s3.create_reader(&by_collection.bucket).await.unwrap();
    create_collection(&clickhouse, "uploads", &collection).await;
    let file = s3.create_reader(&by_file.bucket).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let secret_file = directory.path().join("secret");
    std::fs::write(&secret_file, format!("{}\n", file.secret)).unwrap();
    let from_file = json!({
        "kind": "keys", "access_key_id": file.id, "secret_access_key_file": secret_file,
    });

    for (site, access) in [
        (
            &by_keys,
            keys(&s3.create_reader(&by_keys.bucket).await.unwrap()),
        ),
        (&by_file, from_file.to_string()),
        (
            &by_collection,
            "{kind: named_collection, name: uploads}".to_owned(),
        ),
        (&by_server, "{kind: server}".to_owned()),
        (&anonymous, "{kind: anonymous}".to_owned()),
    ] {
        let mut sluice = daemon(clickhouse.url(), &s3, site, &access);
        sluice.migrate();
        put(&s3, site, &site.bucket, "a.jsonl").await;
        put(&s3, site, &site.bucket, "b.jsonl").await;
        sluice.start();
        wait_until_drained(site).await;
        assert_eq!(loaded(&clickhouse, &site.database).await, 2, "{access}");
        assert_eq!(sluice.stop().await.code(), Some(0));
    }
}

/// No object is at fault in any of these cases. Intake pauses, and resumes once the permission is
/// granted.
#[tokio::test]
async fn a_missing_right_is_named_and_intake_resumes_once_it_is_granted() {
    let s3 = strict_s3().await;
    let clickhouse = clickhouse(ClickHouseOptions::default()).await;
    let site = strict_site(&s3, "denied").await;
    let key = s3.create_reader(&site.bucket).await.unwrap();
    let wrong = AccessKey {
        secret: "not-the-secret".to_owned(),
        ..key.clone()
    };
    daemon(clickhouse.url(), &s3, &site, "{kind: server}").migrate();
    put(&s3, &site, &site.bucket, "a.jsonl").await;
    for (access, code) in [
        (keys(&wrong), "499"),
        ("{kind: anonymous}".to_owned(), "499"),
        ("{kind: named_collection, name: later}".to_owned(), "669"),
    ] {
        // The worker must not be able to read in place of ClickHouse.
        let mut sluice = daemon(clickhouse.url(), &s3, &site, &access)
            .set("shutdown.grace_period", "1s")
            .environment("AWS_ENDPOINT_URL_S3", s3.endpoint().to_owned())
            .environment("AWS_ACCESS_KEY_ID", "nobody".to_owned());
        sluice.start();
        let why = sluice.wait_until_not_ready(code).await;
        assert!(why.contains("s3.clickhouse_access"), "{why}");
        if code == "669" {
            create_collection(&clickhouse, "later", &key).await;
            wait_until_drained(&site).await;
            sluice.wait_until_ready().await;
        }
        assert_eq!(sluice.stop().await.code(), Some(0));
    }
    assert_eq!(loaded(&clickhouse, &site.database).await, 1);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn each_bucket_has_its_own_rights_and_batches() {
    let s3 = strict_s3().await;
    let clickhouse = clickhouse(ClickHouseOptions::default()).await;
    let one = strict_site(&s3, "bucket-one").await;
    let two = strict_site(&s3, "bucket-two").await;
    for bucket in [&one.bucket, &two.bucket] {
        let key = s3.create_reader(bucket).await.unwrap();
        create_collection(&clickhouse, &format!("reads {bucket}"), &key).await;
    }
    let access = "{kind: named_collection, name: 'reads {bucket}'}";
    let mut sluice = daemon(clickhouse.url(), &s3, &one, access);
    sluice.migrate();
    for number in 0..5 {
        for bucket in [&one.bucket, &two.bucket] {
            put(&s3, &one, bucket, &format!("{number}.jsonl")).await;
        }
    }
    sluice.start();
    wait_until_drained(&one).await;
    assert_eq!(loaded(&clickhouse, &one.database).await, 10);
    let sql = format!(
        "SELECT uniqExact(bucket), max(buckets) FROM {0}.ledger_objects AS o, \
         (SELECT batch_id, uniqExact(bucket) AS buckets FROM {0}.ledger_objects GROUP BY batch_id) \
         AS b WHERE o.batch_id = b.batch_id",
        one.database
    );
    assert_eq!(clickhouse.query(&sql).await.unwrap(), "2\t1\n");
}

#[tokio::test]
async fn clickhouse_is_reached_over_tls_with_a_private_authority() {
    let stack = Stack::shared();
    let site = stack.site("tls").await.unwrap();
    let right = TlsFront::start(stack.clickhouse.url()).await.unwrap();
    let other = TlsFront::start(stack.clickhouse.url()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca_file = |name: &str, front: &TlsFront| {
        let path = directory.path().join(name);
        std::fs::write(&path, front.authority()).unwrap();
        path.display().to_string()
    };
    let right_ca = ca_file("right.pem", &right);
    let wrong_ca = ca_file("wrong.pem", &other);
    Sluice::new(stack, &site).migrate();
    let bundles: Vec<_> = Generator::new(41).take(5).collect();
    let expected_rows = upload(&site, &bundles).await;

    let refused = [
        (right.url(), Some(&wrong_ca), "clickhouse.ca_file"),
        (right.url(), None, "clickhouse.ca_file"),
        (right.url().replace("https:", "http:"), None, "https://"),
        (
            stack.clickhouse.url().replace("http:", "https:"),
            Some(&right_ca),
            "http://",
        ),
    ];
    for (url, ca_file, advice) in refused {
        let mut sluice = Sluice::new(stack, &site).set("clickhouse.url", &url);
        if let Some(ca_file) = ca_file {
            sluice = sluice.set("clickhouse.ca_file", ca_file);
        }
        sluice.start();
        let why = sluice
            .wait_until_not_ready("no response from ClickHouse")
            .await;
        assert!(why.contains(advice), "{url} {ca_file:?}: {why}");
        sluice.assert_running();
        assert_eq!(sluice.stop().await.code(), Some(0));
    }
    wait_for_messages(&site, 6).await;

    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.url", right.url())
        .set("clickhouse.ca_file", &right_ca);
    sluice.start();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
}

#[tokio::test]
async fn a_password_replaced_in_its_file_needs_no_restart() {
    let stack = Stack::shared();
    let site = stack.site("rotated").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "battery-staple\n").unwrap();
    Sluice::new(stack, &site).migrate();
    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.user", "secured")
        .set("clickhouse.password_file", file.display());
    site.put("a.jsonl", "{}\n").await.unwrap();
    sluice.start();
    sluice.wait_until_not_ready("516").await;
    std::fs::remove_file(&file).unwrap();
    let why = sluice
        .wait_until_not_ready("clickhouse.password_file")
        .await;
    assert!(why.contains("failed to read"), "{why}");
    std::fs::write(&file, "correct-horse\n").unwrap();
    sluice.wait_until_ready().await;
    wait_until_drained(&site).await;
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 1);
}

/// The secret has quotes and backslashes, since statements contain it as a literal.
const SECRET: &str = r"s3cr'et\key/hunter2+hunter2";

#[track_caller]
fn assert_hidden(what: &str, text: &str) {
    for secret in ["hunter2", "correct-horse"] {
        if let Some(at) = text.find(secret) {
            let around = text.floor_char_boundary(at.saturating_sub(500));
            panic!(
                "{what} reveals {secret}: {}",
                &text[around..at + secret.len()]
            );
        }
    }
}

#[tokio::test]
async fn no_failure_reveals_a_secret() {
    let s3 = strict_s3().await;
    let server = TempDir::new().unwrap().keep();
    let clickhouse = clickhouse(ClickHouseOptions {
        directory: Some(server.clone()),
        log_level: Some("trace"),
        ..ClickHouseOptions::default()
    })
    .await;
    let site = strict_site(&s3, "secrets").await;
    let proxy = Proxy::start(clickhouse.url()).await.unwrap();
    let access = json!({"kind": "keys", "access_key_id": "test", "secret_access_key": SECRET});
    let mut sluice = daemon(&proxy.url(), &s3, &site, &access.to_string())
        .set("clickhouse.user", "secured")
        .set("log.level", "trace")
        .environment("SLUICE__CLICKHOUSE__PASSWORD", "correct-horse".into());
    // This bypasses the proxy, which cannot run while a command blocks the thread.
    let direct = daemon(clickhouse.url(), &s3, &site, &access.to_string());
    direct.migrate();

    // This object is missing. ClickHouse reads as root, which the strict S3 admits whatever the
    // signature.
    let missing = announcement(&site, "missing.jsonl", "0123");
    site.send(&missing).await.unwrap();
    put(&s3, &site, &site.bucket, "there.jsonl").await;
    sluice.start();
    wait_for("a recorded failure", BOUND, async || {
        let sql = format!("SELECT count() FROM {}.ledger_failures", site.database);
        let failures: u64 = clickhouse.scalar(&sql).await?;
        ensure!(failures > 0, "none");
        Ok(Some(()))
    })
    .await;
    assert_eq!(loaded(&clickhouse, &site.database).await, 1);

    // The server reports an error about a statement that has the secret.
    let database = &site.database;
    let landing = site.landing_table(&clickhouse).await.unwrap();
    let drop = format!("DROP TABLE {landing}");
    clickhouse.execute(&drop).await.unwrap();
    put(&s3, &site, &site.bucket, "later.jsonl").await;
    sluice.wait_until_not_ready("landing").await;
    direct.migrate();
    sluice.wait_until_ready().await;

    // Neither the server's own logs nor Sluice's tables may contain the secret.
    clickhouse.execute("SYSTEM FLUSH LOGS").await.unwrap();
    let seen =
        format!("SELECT count() FROM system.query_log WHERE query LIKE '%{database}%[HIDDEN]%'");
    assert!(clickhouse.scalar::<u64>(&seen).await.unwrap() > 0);
    for table in [
        "system.query_log",
        &format!("{database}.ledger_failures"),
        &format!("{database}.ledger_batches"),
    ] {
        let all = format!("SELECT * FROM {table} FORMAT JSONEachRow");
        assert_hidden(table, &clickhouse.query(&all).await.unwrap());
    }
    let log = std::fs::read_to_string(server.join("clickhouse.log")).unwrap();
    assert!(log.contains("[HIDDEN]"), "the log has no statements");
    assert_hidden("clickhouse.log", &log);
    let output = std::fs::read_to_string(server.join("output.log")).unwrap();
    assert_hidden("output.log", &output);

    // ClickHouse quotes a statement that it cannot parse, and truncates the quotation.
    let broken = format!(
        "SELECT * FROMM s3('http://127.0.0.1:1/{}', 'test', {}, 'One')",
        "a".repeat(80),
        sluice::sql::string(SECRET)
    );
    let error = clickhouse
        .execute(&broken)
        .await
        .unwrap_err()
        .root_cause()
        .to_string();
    assert!(
        error.contains("s3cr"),
        "ClickHouse now hides the secret: {error}"
    );
    proxy.inject(Fault::Error(error.leak()), usize::MAX, |_, body| {
        String::from_utf8_lossy(body).contains("INSERT INTO")
    });
    put(&s3, &site, &site.bucket, "broken.jsonl").await;
    let why = sluice.wait_until_not_ready("Syntax error").await;
    assert!(why.contains("[redacted]"), "{why}");
    proxy.heal();
    sluice.wait_until_ready().await;

    let (_, metrics) = sluice.get("/metrics").await.unwrap();
    let (_, status) = sluice.get("/status.json").await.unwrap();
    for (what, text) in [
        ("/readyz", why),
        ("/metrics", metrics),
        ("/status.json", status),
        ("the log", sluice.log()),
        ("the command line", sluice.command_line()),
        (
            "config show",
            format!("{:?}", sluice.command(&["config", "show"])),
        ),
    ] {
        assert_hidden(what, &text);
    }
    assert!(!sluice.log().contains("s3cr"), "{}", sluice.log());
}
