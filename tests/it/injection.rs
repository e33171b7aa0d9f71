//! Text that would be SQL if it were not quoted: in notifications, objects and configuration.

use std::fs;

use serde_json::json;
use sluice::sql;
use sluice_testkit::xapi::gzip;
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, announcement, loaded, wait_for_dead_letters, wait_until_drained};

/// Hostile texts, each of which S3 allows as a key. `$` is a placeholder for the attacked database.
const HOSTILE: [&str; 14] = [
    "'); DROP DATABASE $; --",
    "\\'); DROP DATABASE $; --",
    "\\\\'); DROP DATABASE $; --",
    "'; DROP DATABASE $ SYNC; SELECT '",
    "`; DROP DATABASE $; --",
    "\"; DROP DATABASE $; --",
    "', 'a', 'b', 'CSV', 'x String') FORMAT Null --",
    "' OR 1 = 1 OR '",
    "' UNION ALL SELECT name FROM system.tables --",
    "$tag$; DROP DATABASE $; --$tag$",
    "%27%29; DROP DATABASE $; --",
    "\t/- --",
    "\u{1b}[2J\u{7f}",
    "\u{2019}); DROP DATABASE $; --\u{0085}",
];

struct Victim {
    stack: &'static Stack,
    site: Site,
    /// The database that the hostile texts try to drop.
    canary: String,
}

impl Victim {
    async fn new(name: &str) -> Self {
        let stack = Stack::shared();
        let site = stack.site_with_max_receives(name, 2).await.unwrap();
        let canary = format!("{}_canary", site.database);
        let create = format!("CREATE DATABASE {canary}");
        stack.clickhouse.execute(&create).await.unwrap();
        Self {
            stack,
            site,
            canary,
        }
    }

    fn hostile(&self) -> Vec<String> {
        let texts = HOSTILE.iter();
        texts.map(|text| text.replace('$', &self.canary)).collect()
    }

    async fn rows(&self, sql: &str) -> Vec<serde_json::Value> {
        self.stack.clickhouse.rows(sql).await.unwrap()
    }

    /// Asserts that the canary database exists, and that ClickHouse never got a statement with a
    /// syntax error.
    async fn check(&self, sluice: &Sluice) {
        sluice.wait_until_ready().await;
        let sql = format!(
            "SELECT name FROM system.databases WHERE name = '{}'",
            self.canary
        );
        assert_eq!(
            self.rows(&sql).await.len(),
            1,
            "the canary database was dropped"
        );
        let (_, metrics) = sluice.get("/metrics").await.unwrap();
        for code in [36, 47, 60, 62] {
            let failed = format!("sluice_clickhouse_errors_total{{code=\"{code}\"");
            assert!(!metrics.contains(&failed), "{metrics}");
        }
    }
}

#[tokio::test]
async fn hostile_keys_etags_and_fields_are_only_text() {
    let victim = Victim::new("hostile-keys").await;
    let Victim { stack, site, .. } = &victim;
    let mut sluice = Sluice::new(stack, site);
    sluice.migrate();
    // Only the messages that are sent here announce objects.
    stack.aws.announce_by(site, &[]).await.unwrap();
    let mut expected = Vec::new();
    for (index, hostile) in victim.hostile().into_iter().enumerate() {
        let key = format!("{index}/{hostile}.jsonl");
        let note = json!({"note": key, "verb": {"id": hostile}, "actor": hostile});
        let etag = site.put(&key, note.to_string()).await.unwrap();
        let body = announcement(site, &key, &etag);
        let mut body: serde_json::Value = serde_json::from_str(&body).unwrap();
        body["Records"][0]["eventName"] = json!(format!("ObjectCreated:{hostile}"));
        let object = &mut body["Records"][0]["s3"]["object"];
        object["versionId"] = json!(hostile);
        object["sequencer"] = json!(hostile);
        // Half of the messages have an invalid etag, so that the current content is loaded.
        if index % 2 == 0 {
            object["eTag"] = json!(hostile);
        }
        if index % 3 == 0 {
            object["size"] = json!(u64::MAX);
        }
        site.send(&body.to_string()).await.unwrap();
        expected.push((format!("{}/{key}", site.bucket), note.to_string()));
    }
    sluice.start();
    wait_until_drained(site).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
    let sql = format!(
        "SELECT source_path, raw FROM {}.unmatched_statements",
        site.database
    );
    let mut found: Vec<_> = victim
        .rows(&sql)
        .await
        .iter()
        .map(|row| ["source_path", "raw"].map(|name| row[name].as_str().unwrap().to_owned()))
        .map(|[path, raw]| (path, raw))
        .collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(
        loaded(&stack.clickhouse, &site.database).await,
        HOSTILE.len() as u64
    );
    victim.check(&sluice).await;
}

#[tokio::test]
async fn a_key_that_resembles_an_s3_error_does_not_make_its_object_missing() {
    let victim = Victim::new("s3-like-keys").await;
    let Victim { stack, site, .. } = &victim;
    Sluice::new(stack, site).migrate();
    let mut sluice = Sluice::new(stack, site).set("load.on_missing", "acknowledge");
    let whole = gzip("{\"note\":\"whole\"}\n".repeat(2000).as_bytes());
    let keys = [
        "NoSuchKey.gz",
        "HTTP response code: 404.gz",
        "AccessDenied.gz",
    ];
    for key in keys {
        site.put(key, &whole[..whole.len() / 2]).await.unwrap();
    }
    sluice.start();
    wait_for_dead_letters(site, keys.len() as u64).await;
    let failures = format!(
        "SELECT DISTINCT class FROM {}.ledger_failures",
        site.database
    );
    assert_eq!(
        victim.rows(&failures).await,
        [json!({"class": "unloadable"})]
    );
    victim.check(&sluice).await;
}

#[tokio::test]
async fn hostile_buckets_and_regions_become_dead_letters_and_do_not_pause_intake() {
    let victim = Victim::new("hostile-buckets").await;
    let Victim { stack, site, .. } = &victim;
    let mut sluice = Sluice::new(stack, site);
    sluice.migrate();
    sluice.start();
    let etag = site.put("a.jsonl", "{\"note\":\"a\"}").await.unwrap();
    let mut texts = victim.hostile();
    let names = [
        "a",
        "..",
        "a/../b",
        "{a,b}",
        "evil@127.0.0.1:1",
        "a?b",
        "a#b",
        "x.\u{e9}",
    ];
    texts.extend(names.map(str::to_owned));
    let mut sent = 0;
    for text in &texts {
        for field in ["/Records/0/s3/bucket/name", "/Records/0/awsRegion"] {
            let body = announcement(site, "a.jsonl", &etag);
            let mut body: serde_json::Value = serde_json::from_str(&body).unwrap();
            body["Records"][0]["awsRegion"] = json!("us-east-1");
            // Any word is a valid region.
            if field.ends_with("awsRegion") && text == "a" {
                continue;
            }
            *body.pointer_mut(field).unwrap() = json!(text);
            site.send(&body.to_string()).await.unwrap();
            sent += 1;
        }
    }
    wait_for_dead_letters(site, sent).await;
    site.put("b.jsonl", "{\"note\":\"b\"}").await.unwrap();
    wait_until_drained(site).await;
    assert_eq!(loaded(&stack.clickhouse, &site.database).await, 2);
    victim.check(&sluice).await;
}

#[tokio::test]
async fn hostile_names_in_configuration_and_event_types_are_only_names() {
    let victim = Victim::new("hostile-names").await;
    let Victim { stack, site, .. } = &victim;
    // The names are short, since ClickHouse derives file names from them.
    let odd = |name: &str| format!("{name}'\"\\`;--é");
    let (database, collection) = (odd(&site.database), odd(&site.bucket));
    let secrets = "access_key_id = 'test', secret_access_key = 'test'";
    let create = format!(
        "CREATE NAMED COLLECTION {} AS {secrets}",
        sql::ident(&collection)
    );
    stack.clickhouse.execute(&create).await.unwrap();

    let directory = tempfile::tempdir().unwrap();
    let declared = json!({
        "table": odd("table"),
        "rule": {"all": [
            {"path": [odd("verb"), "id"], "equals": odd("click")},
            {"path": ["n"], "in": ["1", odd("in")]},
        ]},
        "order_by": [odd("id")],
        "columns": [
            {"name": odd("id"), "type": "String", "path": [odd("id")], "otherwise": "line_hash"},
            {"name": odd("text"), "type": "String", "path": [odd("a"), "b"], "fallbacks": [[odd("f")]], "required": true},
        ],
    });
    let name = "it's `odd`\"; DROP --";
    fs::write(
        directory.path().join(format!("{name}.yaml")),
        declared.to_string(),
    )
    .unwrap();

    let access = json!({"kind": "named_collection", "name": collection});
    let mut sluice = Sluice::with_access(stack, site, &access)
        .set("clickhouse.database", &database)
        .set("event_types.dir", directory.path().display());
    for strategy in ["single_pass", "per_type"] {
        sluice = sluice.set("load.strategy", strategy);
        sluice.migrate();
        let again = sluice.command(&["migrate"]).stdout;
        assert_eq!(again, b"everything is as declared\n");
        let line = json!({
            odd("verb"): {"id": odd("click")}, "n": odd("in"), odd("id"): odd("value"),
            odd("f"): odd(strategy),
        });
        let lines = format!(
            "{line}\n{}",
            json!({odd("verb"): {"id": odd("click")}, "n": 1})
        );
        site.put(&format!("{strategy}.jsonl"), lines).await.unwrap();
        sluice.start();
        wait_until_drained(site).await;
        victim.check(&sluice).await;
        sluice.stop().await;
    }
    let table = sql::qualified(&database, &odd("table"));
    let found = victim
        .rows(&format!("SELECT * EXCEPT ingested_at FROM {table}"))
        .await;
    let mut texts: Vec<_> = found.iter().map(|row| row[odd("text")].as_str()).collect();
    texts.sort_unstable();
    assert_eq!(texts, [Some(&*odd("per_type")), Some(&*odd("single_pass"))]);
    assert_eq!(found[0][odd("id")], odd("value"));
    let rejects = sql::qualified(&database, "rejected_lines");
    let reasons = victim
        .rows(&format!("SELECT DISTINCT reason FROM {rejects}"))
        .await;
    assert_eq!(
        reasons,
        [json!({"reason": format!("missing {}", odd("text"))})]
    );
    let object_rows = sql::qualified(&database, "object_rows");
    let kinds = format!("SELECT DISTINCT kind FROM {object_rows} WHERE kind != 'rejected'");
    assert_eq!(victim.rows(&kinds).await, [json!({"kind": name})]);
}

#[tokio::test]
async fn hostile_users_passwords_and_clusters_fail_like_any_wrong_value() {
    let victim = Victim::new("hostile-users").await;
    let Victim { stack, site, .. } = &victim;
    for hostile in victim.hostile().into_iter().take(7) {
        for (field, expected) in [
            ("SLUICE__CLICKHOUSE__USER", "AUTHENTICATION_FAILED"),
            ("SLUICE__CLICKHOUSE__PASSWORD", "REQUIRED_PASSWORD"),
            ("SLUICE__CLICKHOUSE__CLUSTER", "CLUSTER_DOESNT_EXIST"),
        ] {
            let output = Sluice::new(stack, site)
                .environment(field, hostile.clone())
                .command(&["migrate"]);
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{field}: {text}");
            assert!(text.contains(expected), "{field} {hostile}: {text}");
        }
    }
    let mut sluice = Sluice::new(stack, site);
    sluice.migrate();
    sluice.start();
    victim.check(&sluice).await;
}
