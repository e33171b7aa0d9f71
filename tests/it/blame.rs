//! Attribution of ClickHouse's refusals: to an object, which then fails alone, or to the server,
//! the account or the network, for which intake pauses.

use anyhow::ensure;
use sluice::clickhouse::codes::{CODES, CONTENT};
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{ExpectedRows, Generator};
use sluice_testkit::{ClickHouse, ClickHouseOptions, Site, Stack, exact, wait_for};

use crate::harness::{
    BOUND, Sluice, announcement, assert_rows, line, loaded_names, upload, wait_for_dead_letters,
    wait_until_drained,
};

#[tokio::test]
async fn error_codes_have_the_names_that_the_server_uses() {
    let clickhouse = &Stack::shared().clickhouse;
    for (code, name, _) in CODES {
        let sql = format!("SELECT errorCodeToName({code})");
        let found: String = clickhouse.scalar(&sql).await.unwrap();
        assert_eq!(found, *name, "{code}");
    }
}

#[tokio::test]
async fn every_decoder_error_blames_the_object() {
    let sql = "SELECT number AS code, errorCodeToName(number) AS name FROM numbers(3000) \
               WHERE match(name, '(DECODER|INFLATE|DECOMPRESS|UNCOMPRESS|READ)_FAILED$')";
    let rows = Stack::shared().clickhouse.rows(sql).await.unwrap();
    assert!(rows.len() >= 7, "{rows:?}");
    for row in rows {
        let code = row["code"].as_u64().unwrap();
        assert!(
            CODES
                .iter()
                .any(|(known, _, diagnosis)| u64::from(*known) == code && *diagnosis == CONTENT),
            "{row} does not blame the content in src/clickhouse/codes.rs"
        );
    }
}

/// Returns the key, class and reason of each failure.
async fn failures(stack: &Stack, site: &Site) -> Vec<(String, String, String)> {
    let sql = format!(
        "SELECT key, class, reason FROM {}.ledger_failures ORDER BY key",
        site.database
    );
    let rows = stack.clickhouse.rows(&sql).await.unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let failure =
        |row: &serde_json::Value| (text(&row["key"]), text(&row["class"]), text(&row["reason"]));
    rows.iter().map(failure).collect()
}

const SUFFIXES: [&str; 8] = ["gz", "zst", "lz4", "br", "xz", "bz2", "snappy", "deflate"];

#[tokio::test]
async fn an_object_that_no_decoder_can_read_fails_at_the_first_error() {
    let stack = Stack::shared();
    let site = stack
        .site_with_max_receives("undecodable", 1)
        .await
        .unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("load.stream_below", "0B")
        .set("batch.window", "2s");
    sluice.migrate();
    let mut broken = SUFFIXES
        .map(|suffix| format!("garbage.jsonl.{suffix}"))
        .to_vec();
    for key in &broken {
        site.put(key, "\u{1}no such thing\n".repeat(40))
            .await
            .unwrap();
    }
    for (key, bytes) in [
        (
            "cut.jsonl.bz2",
            include_bytes!("../fixtures/truncated/cut.jsonl.bz2").to_vec(),
        ),
        (
            "cut.jsonl.xz",
            include_bytes!("../fixtures/truncated/cut.jsonl.xz").to_vec(),
        ),
    ] {
        site.put(key, bytes).await.unwrap();
        broken.push(key.to_owned());
    }
    let healthy: Vec<String> = (0..20).map(|number| format!("good-{number:02}")).collect();
    for name in &healthy {
        site.put(&format!("{name}.jsonl"), line(name))
            .await
            .unwrap();
    }
    broken.sort();
    sluice.start();
    wait_until_drained(&site).await;
    assert_eq!(loaded_names(stack, &site).await, healthy);
    let failures = failures(stack, &site).await;
    let keys: Vec<&String> = failures.iter().map(|(key, ..)| key).collect();
    assert_eq!(keys, broken.iter().collect::<Vec<_>>(), "{failures:#?}");
    assert!(
        failures.iter().all(|(_, class, _)| class == "unloadable"),
        "{failures:#?}"
    );
    let (_, metrics) = sluice.get("/metrics").await.unwrap();
    let is_retried = |line: &&str| line.contains("verdict=\"replay\"") && !line.ends_with(" 0");
    let retries: Vec<&str> = metrics.lines().filter(is_retried).collect();
    assert!(retries.is_empty(), "{retries:?}");
}

/// Returns whether a request inserts lines: a load, or the blank-line load that shows whether any
/// load works.
fn is_load(body: &[u8]) -> bool {
    body.starts_with(b"INSERT INTO")
}

fn contains(text: &[u8], part: &str) -> bool {
    text.windows(part.len())
        .any(|window| window == part.as_bytes())
}

/// Errors of the server, the account or the replicas, one with an unlisted code, and a limit that
/// even the smallest insert exceeds.
const SERVERS: [(&str, &str); 8] = [
    (
        "Code: 201. DB::Exception: Quota for user `u` for 1h has been exceeded: queries = 565/120. \
      (QUOTA_EXCEEDED)",
        "quota",
    ),
    (
        "Code: 285. DB::Exception: Number of alive replicas (1) is less than requested quorum (2). \
      (TOO_FEW_LIVE_REPLICAS)",
        "replication",
    ),
    (
        "Code: 319. DB::Exception: Unknown status, client must retry. (UNKNOWN_STATUS_OF_INSERT)",
        "replication",
    ),
    (
        "Code: 244. DB::Exception: Insert failed due to zookeeper error. Please retry. \
      (UNEXPECTED_ZOOKEEPER_ERROR)",
        "replication",
    ),
    (
        "Code: 745. DB::Exception: CPU is overloaded. (SERVER_OVERLOADED)",
        "overload",
    ),
    (
        "Code: 999. Coordination::Exception: Session expired. (KEEPER_EXCEPTION)",
        "replication",
    ),
    (
        "Code: 425. DB::Exception: Something is wrong with the system. (SYSTEM_ERROR)",
        "other",
    ),
    (
        "Code: 158. DB::Exception: Limit for rows to read exceeded. (TOO_MANY_ROWS)",
        "limits",
    ),
];

async fn assert_pauses_and_blames_no_object(fault: Fault, words: &str, reason: &str) {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("blameless", 1).await.unwrap();
    let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
    Sluice::new(stack, &site).migrate();
    let mut sluice = Sluice::new(stack, &site).set("clickhouse.url", proxy.url());
    sluice.start();
    sluice.wait_until_ready().await;
    let bundles: Vec<_> = Generator::new(91).take(6).collect();
    proxy.inject(fault, usize::MAX, |_, sql| is_load(sql));
    let expected_rows = upload(&site, &bundles).await;
    let why = sluice.wait_until_not_ready(words).await;
    // The state persists while the insert is retried.
    let hits = proxy.hits();
    wait_for("the insert to be retried", BOUND, async || {
        let now = proxy.hits();
        ensure!(now >= hits + 10, "{hits} {now}");
        Ok(Some(()))
    })
    .await;
    let (status, body) = sluice.get("/readyz").await.unwrap();
    assert_eq!((status, &body), (503, &why));
    let (_, metrics) = sluice.get("/metrics").await.unwrap();
    let gauge = format!("sluice_breaker_open{{reason=\"{reason}\"}} 1");
    assert!(metrics.contains(&gauge), "{reason}: {metrics}");
    assert_eq!(failures(stack, &site).await, []);

    assert_loads_all(stack, &site, &sluice, &proxy, &expected_rows).await;
}

/// Ends the faults, and asserts that six objects are then loaded, each after the first receive of
/// its message, and that no failure was recorded.
async fn assert_loads_all(
    stack: &Stack,
    site: &Site,
    sluice: &Sluice,
    proxy: &Proxy,
    expected_rows: &ExpectedRows,
) {
    proxy.heal();
    wait_until_drained(site).await;
    assert_rows(&stack.clickhouse, &site.database, expected_rows).await;
    assert_eq!(failures(stack, site).await, []);
    // Each message was received once, including the test event.
    let received = sluice.metric("sluice_sqs_messages_received_total").await;
    assert_eq!(received.unwrap(), 7.0);
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

#[tokio::test]
async fn errors_of_the_server_pause_intake_and_blame_no_object() {
    for (error, reason) in SERVERS {
        assert_pauses_and_blames_no_object(Fault::Error(error), error, reason).await;
    }
}

/// Errors of inserts that only have to wait for another insert or for a replica.
const WAITING: [&str; 2] = [
    "Code: 286. DB::Exception: Quorum for previous write has not been satisfied yet. \
     (UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE)",
    "Code: 289. DB::Exception: Replica doesn't have part all_0_0_0 which was successfully written \
     to quorum of other replicas. (REPLICA_IS_NOT_IN_QUORUM)",
];

/// [`errors_of_the_server_pause_intake_and_blame_no_object`] shows that a pause would be noticed.
#[tokio::test]
async fn inserts_that_wait_for_replicas_pause_nothing_and_blame_no_object() {
    let stack = Stack::shared();
    for error in WAITING {
        let site = stack.site_with_max_receives("waiting", 1).await.unwrap();
        let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
        Sluice::new(stack, &site).migrate();
        let mut sluice = Sluice::new(stack, &site).set("clickhouse.url", proxy.url());
        sluice.start();
        sluice.wait_until_ready().await;
        let bundles: Vec<_> = Generator::new(92).take(6).collect();
        proxy.inject(Fault::Error(error), usize::MAX, |_, sql| is_load(sql));
        let expected_rows = upload(&site, &bundles).await;
        // Many more attempts than those after which a batch is split.
        wait_for("the inserts to be repeated", BOUND, async || {
            let (status, body) = sluice.get("/readyz").await?;
            assert_eq!(status, 200, "{body}");
            let hits = proxy.hits();
            ensure!(hits >= 20, "{hits}");
            Ok(Some(()))
        })
        .await;
        let (_, metrics) = sluice.get("/metrics").await.unwrap();
        let errors = |verdict: &str| {
            let label = format!("verdict=\"{verdict}\"");
            let is_of = |line: &&str| line.contains(&label) && !line.ends_with(" 0");
            metrics.lines().filter(is_of).count()
        };
        assert_eq!((errors("wait"), errors("replay")), (1, 0), "{metrics}");

        assert_loads_all(stack, &site, &sluice, &proxy, &expected_rows).await;
    }
}

#[tokio::test]
async fn error_responses_of_a_proxy_pause_intake_and_blame_no_object() {
    for status in [413, 502, 504] {
        assert_pauses_and_blames_no_object(
            Fault::Status(status),
            "did not come from ClickHouse",
            "proxy",
        )
        .await;
    }
}

/// Asserts that exactly one of several objects fails if every attempt to load it hits this fault.
async fn assert_fails_alone(fault: Fault, words: &str, settings: &[(&str, &str)]) {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("alone", 1).await.unwrap();
    let proxy = Proxy::start(stack.clickhouse.url()).await.unwrap();
    let sluice = Sluice::new(stack, &site).set("clickhouse.url", proxy.url());
    let set = |sluice: Sluice, (path, value): &(&str, &str)| sluice.set(path, value);
    let mut sluice = settings.iter().fold(sluice, set);
    Sluice::new(stack, &site).migrate();
    let healthy: Vec<String> = (0..5).map(|number| format!("good-{number}")).collect();
    for name in &healthy {
        site.put(&format!("{name}.jsonl"), line(name))
            .await
            .unwrap();
    }
    site.put("odd.jsonl", line("odd")).await.unwrap();
    proxy.inject(fault, usize::MAX, |_, sql| {
        is_load(sql) && contains(sql, "odd.jsonl")
    });
    sluice.start();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    assert_eq!(loaded_names(stack, &site).await, healthy);
    let failures = failures(stack, &site).await;
    let [(key, class, reason)] = failures.as_slice() else {
        panic!("{failures:#?}");
    };
    assert_eq!((key.as_str(), class.as_str()), ("odd.jsonl", "unloadable"));
    assert!(reason.contains(words), "{reason}");
    let stray_rows = exact::stray_rows(&stack.clickhouse, &site).await.unwrap();
    assert_eq!(stray_rows, "");
    sluice.wait_until_ready().await;
}

#[tokio::test]
async fn an_object_with_an_unknown_error_fails_alone() {
    let error = "Code: 1001. DB::Exception: std::exception. (STD_EXCEPTION)";
    for strategy in ["single_pass", "per_type"] {
        assert_fails_alone(Fault::Error(error), error, &[("load.strategy", strategy)]).await;
    }
}

#[tokio::test]
async fn an_object_that_a_proxy_blocks_fails_alone() {
    for status in [413, 504] {
        let words = format!("{status} ");
        assert_fails_alone(
            Fault::Status(status),
            &words,
            &[("load.fallback", "always")],
        )
        .await;
    }
}

/// Starts a server whose user `bounded` has this profile and this quota.
async fn bounded_server(profile: &str, quota: &str) -> ClickHouse {
    let options = ClickHouseOptions {
        users: "<bounded><password></password><networks><ip>127.0.0.1</ip></networks>\
                <profile>bounded</profile><quota>bounded</quota></bounded>"
            .to_owned(),
        profiles: format!("<bounded>{profile}</bounded>"),
        quotas: format!("<bounded>{quota}</bounded>"),
        ..ClickHouseOptions::default()
    };
    let start = tokio::task::spawn_blocking(|| ClickHouse::start_with(options));
    start.await.unwrap().unwrap()
}

#[tokio::test]
async fn an_object_beyond_a_limit_of_the_profile_fails_alone() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("limits", 1).await.unwrap();
    let limit = "<max_rows_to_read>100000</max_rows_to_read>";
    let clickhouse = bounded_server(limit, "").await;
    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.url", clickhouse.url())
        .set("clickhouse.user", "bounded");
    Sluice::new(stack, &site)
        .set("clickhouse.url", clickhouse.url())
        .migrate();
    // Together these objects exceed the limit, too, since a line counts again for each table that
    // is filled.
    for number in 0..5 {
        let lines = line("healthy").repeat(8_000);
        site.put(&format!("{number}.jsonl"), lines).await.unwrap();
    }
    site.put("long.jsonl", line("long").repeat(60_000))
        .await
        .unwrap();
    sluice.start();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    let sql = format!(
        "SELECT count(), countIf(position(raw, 'healthy') > 0) FROM {}.unmatched_statements",
        site.database
    );
    assert_eq!(clickhouse.query(&sql).await.unwrap(), "40000\t40000\n");
    let sql = format!(
        "SELECT key, position(reason, 'TOO_MANY_ROWS') > 0 FROM {}.ledger_failures",
        site.database
    );
    assert_eq!(clickhouse.query(&sql).await.unwrap(), "long.jsonl\t1\n");
}

#[tokio::test]
async fn an_exhausted_quota_pauses_intake_and_is_logged_once() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("quota", 1).await.unwrap();
    let quota = "<interval><duration>86400</duration><queries>120</queries></interval>";
    let clickhouse = bounded_server("", quota).await;
    let mut sluice = Sluice::new(stack, &site)
        .set("clickhouse.url", clickhouse.url())
        .set("clickhouse.user", "bounded");
    Sluice::new(stack, &site)
        .set("clickhouse.url", clickhouse.url())
        .migrate();
    sluice.start();
    sluice.wait_until_ready().await;
    // The object is loaded only once, but each announcement needs statements.
    let etag = site.put("a.jsonl", line("a")).await.unwrap();
    wait_for("the quota to be used up", BOUND, async || {
        let again = announcement(&site, "a.jsonl", &etag);
        site.send(&again).await?;
        let (status, body) = sluice.get("/readyz").await?;
        Ok((status == 503 && body.contains("QUOTA_EXCEEDED")).then_some(()))
    })
    .await;
    let probes = async || sluice.metric("sluice_clickhouse_errors_total").await;
    let before = probes().await.unwrap();
    wait_for("another probe", BOUND, async || {
        let now = probes().await?;
        ensure!(now >= before + 5.0, "{before} {now}");
        Ok(Some(()))
    })
    .await;
    let status = sluice.status().await;
    assert_eq!(status["condition"]["word"], "paused", "{status}");
    let log = sluice.log();
    assert_eq!(log.matches("intake is paused").count(), 1, "{log}");
    let sql = format!("SELECT count() FROM {}.ledger_failures", site.database);
    assert_eq!(clickhouse.query(&sql).await.unwrap(), "0\n");
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

/// Problems with the dead-letter queue or with the content do not stop loading, and are reported.
#[tokio::test]
async fn dead_letters_and_rejected_lines_need_attention() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("attention", 1).await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    site.put("half.jsonl", format!("{}no JSON\n", line("half")))
        .await
        .unwrap();
    site.put("garbage.jsonl.gz", "no gzip").await.unwrap();
    sluice.start();
    wait_for("both problems to be reported", BOUND, async || {
        let (status, body) = sluice.get("/readyz").await?;
        ensure!(status == 200, "{body}");
        let expected = [
            "attention: The dead-letter queue",
            "lines of the last 15 minutes were rejected",
        ];
        Ok(expected
            .iter()
            .all(|words| body.contains(words))
            .then_some(()))
    })
    .await;
    let status = sluice.status().await;
    assert_eq!(status["condition"]["word"], "attention", "{status}");
}
