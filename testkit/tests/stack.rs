//! Tests of the behaviour of the stack that other tests take for granted.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use sluice_testkit::{ClickHouse, ClickHouseOptions, Requirement, Stack, wait_for};

#[tokio::test]
async fn a_put_is_announced_and_clickhouse_can_read_the_object() -> Result<()> {
    let stack = Stack::shared();
    let site = stack.site("announced").await?;
    site.put("section/1/a b+ü.jsonl", "{\"a\":1}\n{\"a\":2}\n")
        .await?;

    let body = wait_for("the notification", Duration::from_secs(10), async || {
        let received = site
            .sqs
            .receive_message()
            .queue_url(&site.queue_url)
            .wait_time_seconds(1)
            .send()
            .await?;
        let bodies = received
            .messages()
            .iter()
            .filter_map(|message| message.body());
        Ok(bodies
            .filter(|body| body.contains("ObjectCreated"))
            .map(str::to_owned)
            .next())
    })
    .await;
    let event: serde_json::Value = serde_json::from_str(&body)?;
    let bucket = event
        .pointer("/Records/0/s3/bucket/name")
        .and_then(|name| name.as_str());
    assert_eq!(bucket, Some(site.bucket.as_str()));

    let lines: u64 = stack
        .clickhouse
        .scalar(&format!(
            "SELECT count() FROM s3('{}/{}/section/1/a%20b%2B%C3%BC.jsonl', 'test', 'test', 'LineAsString')",
            stack.aws.endpoint(),
            site.bucket
        ))
        .await?;
    assert_eq!(lines, 2);
    assert_eq!(site.dlq_depth().await?, 0);
    Ok(())
}

/// The message of S3's test event is the first; a test that waits until the queue is empty relies on
/// the others.
#[tokio::test]
async fn an_object_is_in_the_queue_as_soon_as_it_is_put() -> Result<()> {
    let stack = Stack::shared();
    let site = stack.site("put").await?;
    for number in 1..=100 {
        site.put(&format!("{number}.jsonl"), "{}\n").await?;
        assert_eq!(site.queue_depth().await?, (1 + number, 0));
    }
    Ok(())
}

#[tokio::test]
async fn queries_return_text_rows_or_values_and_errors_name_the_query() -> Result<()> {
    let clickhouse = &Stack::shared().clickhouse;
    assert_eq!(clickhouse.query("SELECT 1, 'a?b'").await?, "1\ta?b\n");
    let rows = clickhouse
        .rows("SELECT number AS n FROM numbers(2)")
        .await?;
    assert_eq!(
        rows,
        [serde_json::json!({"n": 0}), serde_json::json!({"n": 1})]
    );
    assert_eq!(
        clickhouse
            .scalar::<String>("SELECT version()")
            .await?
            .split('.')
            .count(),
        4
    );
    let error = clickhouse
        .execute("SELECT nonsense")
        .await
        .expect_err("there is no such column");
    assert!(
        format!("{error:#}").contains("UNKNOWN_IDENTIFIER"),
        "{error:#}"
    );
    Ok(())
}

#[tokio::test]
async fn users_need_their_passwords_and_rights() -> Result<()> {
    let stack = Stack::shared();
    let as_user = async |user: &str, password: &str, sql: &str| {
        let client = stack
            .clickhouse
            .client()
            .with_user(user)
            .with_password(password);
        client
            .query_raw(sql)
            .execute()
            .await
            .map_err(|error| error.to_string())
    };
    assert_eq!(
        as_user("secured", "correct-horse", "SELECT 1").await,
        Ok(())
    );
    let error = as_user("secured", "wrong", "SELECT 1")
        .await
        .expect_err("a wrong password");
    assert!(error.contains("516"), "{error}");
    assert_eq!(as_user("reader", "look-only", "SELECT 1").await, Ok(()));
    let error = as_user("reader", "look-only", "CREATE DATABASE d")
        .await
        .expect_err("no right");
    assert!(error.contains("497"), "{error}");
    Ok(())
}

#[tokio::test]
async fn clickhouse_keeps_its_data_after_a_crash() -> Result<()> {
    let clickhouse = ClickHouse::start()?;
    clickhouse
        .execute("CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n")
        .await?;
    clickhouse
        .execute("INSERT INTO t SELECT number FROM numbers(7)")
        .await?;
    clickhouse.kill()?;
    assert!(clickhouse.query("SELECT 1").await.is_err());
    clickhouse.restart()?;
    assert_eq!(clickhouse.scalar::<u64>("SELECT count() FROM t").await?, 7);
    Ok(())
}

#[test]
fn a_server_does_not_start_on_a_taken_port() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let options = ClickHouseOptions {
        http_port: Some(taken.local_addr()?.port()),
        ..ClickHouseOptions::default()
    };
    let error = ClickHouse::start_with(options).expect_err("the port is taken");
    assert!(
        error.to_string().contains("Address already in use"),
        "{error:#}"
    );
    Ok(())
}

#[tokio::test]
async fn nothing_outlives_a_parent_that_is_killed() -> Result<()> {
    processes_end_with_a_parent_that_is_killed(&[]).await
}

#[tokio::test]
async fn no_server_of_a_cluster_outlives_a_parent_that_is_killed() -> Result<()> {
    if !Requirement::OwnCluster.is_met() {
        return Ok(());
    }
    processes_end_with_a_parent_that_is_killed(&["cluster"]).await
}

async fn processes_end_with_a_parent_that_is_killed(arguments: &[&str]) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let mut parent = Command::new(env!("CARGO_BIN_EXE_testkit-hold"))
        .args(arguments)
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(parent.stdout.take().context("no output")?).read_line(&mut line)?;
    let pids: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(pids.len(), 4, "{line}");
    assert!(pids.iter().all(|pid| runs(pid)), "{line}");
    assert!(!is_empty(temporary.path())?, "it has their directories");
    parent.kill()?;
    parent.wait()?;
    wait_for("the servers to end", Duration::from_secs(20), async || {
        let alive: Vec<&&str> = pids.iter().filter(|pid| runs(pid)).collect();
        if alive.is_empty() {
            Ok(Some(()))
        } else {
            Err(anyhow!("{alive:?} still run"))
        }
    })
    .await;
    assert!(is_empty(temporary.path())?, "a directory is left");
    Ok(())
}

fn is_empty(directory: &Path) -> Result<bool> {
    Ok(std::fs::read_dir(directory)?.next().is_none())
}

/// Returns whether the process runs. A zombie, which only waits to be reaped by its parent, does
/// not.
fn runs(pid: &str) -> bool {
    if Path::new("/proc/self").exists() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        return !status.is_empty() && !status.contains("State:\tZ");
    }
    let output = Command::new("ps").args(["-p", pid]).output();
    output.is_ok_and(|output| output.status.success())
}
