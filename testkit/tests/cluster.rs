//! Tests of the behaviour of replicas that other tests take for granted.

use std::time::Duration;

use anyhow::{Context, Result};
use sluice_testkit::{ClickHouse, Cluster, Requirement, wait_for};

/// For what takes seconds when the machine is busy: a session that ends, a Keeper that is back.
const BOUND: Duration = Duration::from_secs(120);

#[tokio::test]
async fn replicas_share_rows_tokens_and_definitions() -> Result<()> {
    if !Requirement::Cluster.is_met() {
        return Ok(());
    }
    let cluster = Cluster::connect_or_start(1, 3)?;
    remove_what_an_earlier_run_left(&cluster).await?;
    create_table(&cluster).await?;
    rows_of_one_server_are_readable_on_the_other(&cluster).await?;
    a_token_that_the_other_server_has_seen_adds_nothing(&cluster).await?;
    a_query_is_killed_by_its_own_server_or_by_the_cluster(&cluster).await?;
    a_replicated_database_has_its_tables_on_all_servers(&cluster).await?;
    users_that_a_statement_creates_can_log_in_on_all_servers(&cluster).await
}

async fn rows_of_one_server_are_readable_on_the_other(cluster: &Cluster) -> Result<()> {
    let [a, b] = [cluster.server(1, 1), cluster.server(1, 2)];
    a.execute("INSERT INTO d.t VALUES (1), (2)").await?;
    cluster.sync("d.t").await?;
    assert_eq!(rows(b).await?, 2);
    // Confirmed when all servers have the rows. Where fetches stop, nothing is confirmed.
    let all = cluster.servers().len();
    b.execute(&format!(
        "INSERT INTO d.t SETTINGS insert_quorum = {all} VALUES (3)"
    ))
    .await?;
    assert_eq!(rows(a).await?, 3);
    a.execute("SYSTEM STOP FETCHES d.t").await?;
    let sql = format!(
        "INSERT INTO d.t SETTINGS insert_quorum = {all}, insert_quorum_timeout = 500 VALUES (4)"
    );
    let error = b.execute(&sql).await.expect_err("one server lacks the row");
    assert!(
        format!("{error:#}").contains("UNKNOWN_STATUS_OF_INSERT"),
        "{error:#}"
    );
    assert_eq!([rows(a).await?, rows(b).await?], [3, 4]);
    a.execute("SYSTEM START FETCHES d.t").await?;
    cluster.sync("d.t").await?;
    assert_eq!(rows(a).await?, 4);
    Ok(())
}

async fn a_token_that_the_other_server_has_seen_adds_nothing(cluster: &Cluster) -> Result<()> {
    let [a, b] = [cluster.server(1, 1), cluster.server(1, 2)];
    let before = rows(a).await?;
    for (server, token, added) in [(a, "one", 1), (b, "one", 1), (b, "another", 2)] {
        let sql = format!(
            "INSERT INTO d.t SETTINGS insert_deduplication_token = '{token}' VALUES ({before})"
        );
        server.execute(&sql).await?;
        cluster.sync("d.t").await?;
        assert_eq!(rows(a).await?, before + added);
    }
    Ok(())
}

async fn a_query_is_killed_by_its_own_server_or_by_the_cluster(cluster: &Cluster) -> Result<()> {
    let [a, b] = [cluster.server(1, 1), cluster.server(1, 2)];
    let query = b
        .client()
        .query_raw("SELECT sleepEachRow(1) FROM numbers(1000) SETTINGS max_block_size = 1")
        .with_setting("query_id", "slow");
    let query = tokio::spawn(query.execute());
    let running =
        "SELECT count() FROM system.processes WHERE query_id = 'slow' AND NOT is_cancelled";
    wait_for("the query", BOUND, async || {
        Ok((b.scalar::<u64>(running).await? == 1).then_some(()))
    })
    .await;
    a.execute("KILL QUERY WHERE query_id = 'slow' SYNC").await?;
    assert_eq!(b.scalar::<u64>(running).await?, 1);
    a.execute("KILL QUERY ON CLUSTER main WHERE query_id = 'slow' SYNC")
        .await?;
    let error = query.await?.expect_err("it was killed").to_string();
    assert!(error.contains("QUERY_WAS_CANCELLED"), "{error}");
    Ok(())
}

async fn a_replicated_database_has_its_tables_on_all_servers(cluster: &Cluster) -> Result<()> {
    for server in cluster.servers() {
        server
            .execute("CREATE DATABASE r ENGINE = Replicated('/r', '{shard}', '{replica}')")
            .await?;
    }
    let [a, b] = [cluster.server(1, 1), cluster.server(1, 2)];
    a.execute("CREATE TABLE r.t (n UInt64) ENGINE = ReplicatedMergeTree ORDER BY n")
        .await?;
    a.execute("INSERT INTO r.t VALUES (1)").await?;
    cluster.sync("r.t").await?;
    assert_eq!(b.scalar::<u64>("SELECT count() FROM r.t").await?, 1);
    for server in cluster.servers() {
        server.catch_up("r").await?;
    }
    // Nothing is replicated there.
    a.catch_up("system").await
}

async fn users_that_a_statement_creates_can_log_in_on_all_servers(cluster: &Cluster) -> Result<()> {
    let a = cluster.server(1, 1);
    a.execute("CREATE USER u ON CLUSTER main IDENTIFIED BY 'p'")
        .await?;
    a.execute("GRANT ON CLUSTER main SELECT ON d.* TO u")
        .await?;
    for server in cluster.servers() {
        let client = server.client().with_user("u").with_password("p");
        client
            .query_raw("SELECT count() FROM d.t")
            .execute()
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_killed_or_paused_keeps_its_rows_and_gets_the_others() -> Result<()> {
    if !Requirement::OwnCluster.is_met() {
        return Ok(());
    }
    let cluster = Cluster::start(1, 3)?;
    create_table(&cluster).await?;
    let [a, b, c] = [1, 2, 3].map(|replica| cluster.server(1, replica));
    c.execute("INSERT INTO d.t SETTINGS insert_quorum = 3 VALUES (1)")
        .await?;
    assert_eq!([rows(a).await?, rows(b).await?], [1, 1]);

    c.kill()?;
    assert!(c.query("SELECT 1").await.is_err());
    // Two of three.
    a.execute("INSERT INTO d.t SETTINGS insert_quorum = 'auto' VALUES (2)")
        .await?;
    c.restart()?;
    assert!(rows(c).await? >= 1);
    c.execute("SYSTEM FLUSH LOGS").await?;
    let logged = "SELECT count() > 0 FROM system.query_log WHERE query LIKE 'SELECT%'";
    assert_eq!(c.query(logged).await?, "1\n");
    cluster.sync("d.t").await?;
    assert_eq!(rows(c).await?, 2);
    c.execute("INSERT INTO d.t SETTINGS insert_quorum = 3 VALUES (3)")
        .await?;

    b.pause()?;
    let query = tokio::spawn(b.client().query_raw("SELECT 1").execute());
    a.execute("INSERT INTO d.t VALUES (4)").await?;
    assert!(!query.is_finished());
    b.resume()?;
    query.await??;
    cluster.sync("d.t").await?;
    assert_eq!(rows(b).await?, 4);
    Ok(())
}

#[tokio::test]
async fn without_the_keeper_no_insert_is_confirmed_until_it_is_back() -> Result<()> {
    if !Requirement::OwnCluster.is_met() {
        return Ok(());
    }
    let cluster = Cluster::start(1, 2)?;
    create_table(&cluster).await?;
    let [a, b] = [cluster.server(1, 1), cluster.server(1, 2)];
    let insert = "INSERT INTO d.t SETTINGS insert_keeper_max_retries = 0 VALUES (1)";
    a.execute(insert).await?;

    cluster.keeper()?.kill()?;
    let error = a.execute(insert).await.expect_err("there is no Keeper");
    let error = format!("{error:#}");
    assert!(
        error.contains("KEEPER_EXCEPTION") || error.contains("TABLE_IS_READ_ONLY"),
        "{error}"
    );
    assert_eq!(rows(a).await?, 1);

    cluster.keeper()?.restart()?;
    wait_for("an insert", BOUND, async || {
        a.execute("INSERT INTO d.t VALUES (2)").await.map(Some)
    })
    .await;
    wait_for("the other server", BOUND, async || {
        b.execute("SYSTEM SYNC REPLICA d.t").await.map(Some)
    })
    .await;
    assert_eq!(rows(b).await?, 2);
    Ok(())
}

#[tokio::test]
async fn shards_have_their_own_rows_and_a_given_cluster_is_not_killed() -> Result<()> {
    if !Requirement::OwnCluster.is_met() {
        return Ok(());
    }
    let started = Cluster::start(2, 1)?;
    let cluster = Cluster::at(&started.urls(), 2, 1)?;
    create_table(&cluster).await?;
    let [a, b] = [cluster.server(1, 1), cluster.server(2, 1)];
    a.execute("CREATE TABLE d.all ON CLUSTER main AS d.t ENGINE = Distributed(main, d, t, n)")
        .await?;
    a.execute("INSERT INTO d.all SETTINGS distributed_foreground_insert = 1 VALUES (0), (1), (2)")
        .await?;
    assert_eq!([rows(a).await?, rows(b).await?], [2, 1]);
    assert_eq!(b.scalar::<u64>("SELECT count() FROM d.all").await?, 3);

    for refused in [a.kill(), a.restart(), a.pause(), a.resume()] {
        let error = refused.expect_err("it was started elsewhere");
        assert!(error.to_string().contains("started elsewhere"), "{error}");
    }
    let error = cluster.keeper().expect_err("it was started elsewhere");
    assert!(error.to_string().contains("started elsewhere"), "{error}");
    let error = Cluster::at(&started.urls(), 1, 3).expect_err("there are two servers");
    assert!(error.to_string().contains("2 servers are given"), "{error}");
    Ok(())
}

/// A cluster that was started elsewhere can have been used before.
async fn remove_what_an_earlier_run_left(cluster: &Cluster) -> Result<()> {
    for server in cluster.servers() {
        for sql in [
            "DROP DATABASE IF EXISTS d SYNC",
            "DROP DATABASE IF EXISTS r SYNC",
            "DROP USER IF EXISTS u",
        ] {
            server.execute(sql).await?;
        }
    }
    Ok(())
}

async fn create_table(cluster: &Cluster) -> Result<()> {
    let server = cluster.servers().first().context("no server")?;
    server.execute("CREATE DATABASE d ON CLUSTER main").await?;
    let sql = "CREATE TABLE d.t ON CLUSTER main (n UInt64) ENGINE = ReplicatedMergeTree ORDER BY n";
    server.execute(sql).await?;
    // It is read-only until its replicas have started.
    cluster.sync("d.t").await
}

async fn rows(server: &ClickHouse) -> Result<u64> {
    server.scalar("SELECT count() FROM d.t").await
}
