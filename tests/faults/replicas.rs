//! Replicated tables: workers that use different servers, replicas that lag, and servers and a
//! Keeper that die, hang and come back. Each scenario ends by comparing the rows of every server.
//!
//! A server is named by its number in the cluster. The scenarios of one test share a cluster, with
//! a database for each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper::http::request::Parts;
use sluice_testkit::balancer::Balancer;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::{ClickHouse, Cluster, Requirement, Stack, exact, wait_for};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::harness::{BOUND, Daemon, Harness, scenario, wait_for_hits};

/// Workers that die, and batches that wait for a server, use up receives. None must become a dead
/// letter.
const MAX_RECEIVES: u32 = 1000;
/// One object of this number is announced twice.
const ONE_IN: usize = 7;
/// The time between two objects that arrive while something else happens.
const PAUSE: Duration = Duration::from_millis(200);
/// No objects arrive while more messages than this wait.
const BACKLOG: u64 = 40;

fn is_get(parts: &Parts, _: &[u8]) -> bool {
    parts.method == "GET"
}

/// A database of replicated tables, and the objects that are loaded into it.
struct ReplicatedHarness<'a> {
    cluster: &'a Cluster,
    harness: Harness<'a>,
    /// The announcements of all objects.
    announcements: Vec<String>,
}

impl<'a> ReplicatedHarness<'a> {
    /// Creates the tables on every server, and an empty queue.
    async fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let (servers, stack) = (cluster.servers(), Stack::shared());
        let harness = Harness::new(servers, stack, name, MAX_RECEIVES).await?;
        Ok(Self::with(cluster, harness))
    }

    /// Creates an empty queue and picks the name of a database that does not exist.
    async fn unmigrated(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let (servers, stack) = (cluster.servers(), Stack::shared());
        let harness = Harness::unmigrated(servers, stack, name, MAX_RECEIVES).await?;
        Ok(Self::with(cluster, harness))
    }

    fn with(cluster: &'a Cluster, mut harness: Harness<'a>) -> Self {
        // So that both workers have batches.
        harness.set("batch.max_objects", 5);
        Self {
            cluster,
            harness,
            announcements: Vec::new(),
        }
    }

    /// Has workers log in as a user with the rights that `sluice check --print-policy` prints for
    /// `run`, and no others.
    async fn use_a_user_of_few_rights(&mut self) -> Result<()> {
        let user = format!("user_of_{}", self.harness.site.database);
        self.harness.set("clickhouse.user", user.as_str());
        let bucket = self.harness.site.bucket.as_str();
        let print = ["check", "--print-policy", "--bucket", bucket];
        let printed = self.harness.command(&print, "").await?;
        let printed = String::from_utf8(printed.stdout)?;
        let (_, of_run) = printed
            .split_once("-- ClickHouse: `sluice run`\n")
            .with_context(|| format!("no rights for `run`: {printed}"))?;
        for server in self.cluster.servers() {
            let create = format!("CREATE USER {user} IDENTIFIED WITH no_password");
            server.execute(&create).await?;
            for grant in of_run.lines().take_while(|it| it.starts_with("GRANT ")) {
                server.execute(grant.trim_end_matches(';')).await?;
            }
        }
        Ok(())
    }

    /// Starts a worker that connects to this URL.
    fn start_at(&mut self, url: &str) -> Result<Daemon> {
        self.harness.set("clickhouse.url", url);
        self.harness.start("")
    }

    /// Starts two workers, the first on the first server and the second on the second.
    fn start_on_two_servers(&mut self) -> Result<Vec<Daemon>> {
        let cluster = self.cluster;
        [1, 2]
            .map(|replica| self.start_at(cluster.server(1, replica).url()))
            .into_iter()
            .collect()
    }

    /// Uploads an object, which S3 announces once.
    async fn put_one(&mut self) -> Result<()> {
        let bundle = self.harness.generator.bundle();
        let site = &self.harness.site;
        let etag = site.put(&bundle.key, bundle.bytes.clone()).await?;
        self.announcements.push(site.announcement(&bundle, &etag));
        self.harness.expected.push(bundle);
        Ok(())
    }

    /// Uploads objects. One in seven is announced twice.
    async fn put(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.put_one().await?;
            if self.announcements.len().is_multiple_of(ONE_IN) {
                let last = self.announcements.last().context("an announcement")?;
                self.harness.site.send(last).await?;
            }
        }
        Ok(())
    }

    /// Announces every object once more.
    async fn announce_again(&self) -> Result<()> {
        for announcement in &self.announcements {
            self.harness.site.send(announcement).await?;
        }
        Ok(())
    }

    /// Uploads objects one after the other, as they arrive in operation.
    async fn arrive(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.put(1).await?;
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Uploads objects one after the other until the condition holds.
    async fn arrive_until(
        &mut self,
        what: &str,
        mut condition: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<()> {
        let started = Instant::now();
        while !condition().await? {
            ensure!(
                started.elapsed() < BOUND,
                "timed out after {BOUND:?} waiting for {what}\n{}",
                self.harness.logs()
            );
            let (visible, in_flight) = self.harness.site.queue_depth().await?;
            if visible + in_flight < BACKLOG {
                self.put(1).await?;
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// Returns the number of inserts of objects of this bucket that run on a server and are not killed.
async fn running_inserts(server: &ClickHouse, bucket: &str) -> Result<u64> {
    server
        .scalar(&format!(
            "SELECT count() FROM system.processes \
             WHERE query_kind = 'Insert' AND NOT is_cancelled AND position(query, '{bucket}') > 0"
        ))
        .await
}

/// Returns the number of objects that are loaded according to a server.
async fn loaded(server: &ClickHouse, database: &str) -> Result<u64> {
    server
        .scalar(&format!(
            "SELECT uniqExact(object_id) FROM {database}.ledger_objects WHERE batch_id IN \
             (SELECT batch_id FROM {database}.ledger_batches WHERE event = 'loaded')"
        ))
        .await
}

/// Kills, pauses or restarts a part of the cluster, in a thread of its own: the proxies and
/// balancers of a test run in the test's thread.
async fn change(
    cluster: &Arc<Cluster>,
    change: impl FnOnce(&Cluster) -> Result<()> + Send + 'static,
) -> Result<()> {
    let cluster = Arc::clone(cluster);
    spawn_blocking(move || change(&cluster)).await?
}

async fn each_worker_has_its_own_server(cluster: Arc<Cluster>) -> Result<()> {
    let mut replicated = ReplicatedHarness::new(&cluster, "two-servers").await?;
    replicated.harness.set("clickhouse.topology", Cluster::NAME);
    let daemons = replicated.start_on_two_servers()?;
    for daemon in &daemons {
        daemon.wait_until_ready().await;
    }
    replicated.put(80).await?;
    let workers: Vec<&Daemon> = daemons.iter().collect();
    replicated.harness.wait_until_drained(&workers).await;
    let failures = replicated.harness.failures().await?;
    ensure!(failures.is_empty(), "{failures:?}");
    replicated.harness.finish(daemons).await
}

/// The ledger of the second server lacks what was loaded through the first. A worker that uses the
/// second must not load the same objects again.
async fn the_ledger_of_one_server_lags(cluster: Arc<Cluster>) -> Result<()> {
    let mut replicated = ReplicatedHarness::new(&cluster, "lag").await?;
    let [a, b] = [1, 2].map(|replica| cluster.server(1, replica));
    let database = replicated.harness.site.database.clone();
    let tables = ["ledger_objects", "ledger_batches"].map(|it| replicated.harness.table(it));
    for table in &tables {
        b.execute(&format!("SYSTEM STOP FETCHES {table}")).await?;
    }
    for _ in 0..30 {
        replicated.put_one().await?;
    }
    let first = replicated.start_at(a.url())?;
    replicated.harness.wait_until_drained(&[&first]).await;
    first.stop().await?;
    let found = [loaded(a, &database).await?, loaded(b, &database).await?];
    ensure!(found == [30, 0], "{found:?} objects are loaded");

    replicated.announce_again().await?;
    replicated.put(50).await?;
    let second = replicated.start_at(b.url())?;
    // A worker that took this ledger for complete would load the objects again.
    wait_for("the worker to pause", BOUND, async || {
        let again = loaded(b, &database).await?;
        assert_eq!(again, 0, "objects are loaded through a ledger that lags");
        ensure!(second.count_logged("intake is paused")? > 0, "not paused");
        Ok(Some(()))
    })
    .await;
    let third = replicated.start_at(a.url())?;
    for table in &tables {
        b.execute(&format!("SYSTEM START FETCHES {table}")).await?;
    }
    replicated.harness.finish(vec![second, third]).await
}

async fn a_balancer_chooses_the_server(cluster: Arc<Cluster>) -> Result<()> {
    let mut replicated = ReplicatedHarness::new(&cluster, "balancer").await?;
    replicated.use_a_user_of_few_rights().await?;
    let balancer = Balancer::start(&cluster.urls()).await?;
    let daemons = vec![
        replicated.start_at(&balancer.url())?,
        replicated.start_at(&balancer.url())?,
    ];
    replicated.put(80).await?;
    replicated.harness.finish(daemons).await
}

/// A worker dies while its insert runs on one server. The worker that recovers the batch uses
/// another server, and its kill must reach the insert.
async fn a_kill_reaches_the_other_server(cluster: Arc<Cluster>) -> Result<()> {
    let mut replicated = ReplicatedHarness::new(&cluster, "kill").await?;
    let [a, b] = [1, 2].map(|replica| cluster.server(1, replica));
    let bucket = replicated.harness.site.bucket.clone();
    let s3 = Proxy::start(replicated.harness.aws.endpoint()).await?;
    replicated.harness.set("s3.clickhouse_endpoint", s3.url());
    s3.inject(Fault::Hold, usize::MAX, is_get);
    replicated.put(5).await?;
    let first = replicated.start_at(a.url())?;
    wait_for_hits(&s3, 1).await;
    first.kill()?;
    let running = running_inserts(a, &bucket).await?;
    ensure!(running > 0, "the insert has ended with its worker");
    let second = replicated.start_at(b.url())?;
    // It waits for S3, so that it cannot end otherwise.
    wait_for("the insert to be killed", BOUND, async || {
        let running = running_inserts(a, &bucket).await?;
        ensure!(running == 0, "it runs\n{}", replicated.harness.logs());
        Ok(Some(()))
    })
    .await;
    s3.heal();
    replicated.harness.wait_until_drained(&[&second]).await;
    let logs = || replicated.harness.logs();
    ensure!(second.count_logged("recovering")? > 0, logs());
    replicated.harness.finish(vec![second]).await
}

/// The engine of the database creates the tables on every server.
async fn the_database_is_replicated(cluster: Arc<Cluster>) -> Result<()> {
    let mut replicated = ReplicatedHarness::unmigrated(&cluster, "database").await?;
    let database = &replicated.harness.site.database;
    let create = format!(
        "CREATE DATABASE {database} \
         ENGINE = Replicated('/databases/{database}', '{{shard}}', '{{replica}}')"
    );
    for server in cluster.servers() {
        server.execute(&create).await?;
    }
    replicated.harness.migrate().await?;
    exact::keep_duplicates(cluster.servers(), &replicated.harness.site).await?;
    let daemons = replicated.start_on_two_servers()?;
    replicated.put(60).await?;
    replicated.harness.finish(daemons).await
}

#[tokio::test]
async fn objects_are_loaded_once_whichever_servers_the_workers_use() -> Result<()> {
    if !Requirement::Cluster.is_met() {
        return Ok(());
    }
    let cluster = Arc::new(Cluster::connect_or_start(1, 3)?);
    let shared = || Arc::clone(&cluster);
    // One after the other: three servers that share two cores keep up with no more.
    for (name, scenario) in [
        scenario("two servers", each_worker_has_its_own_server(shared())),
        scenario("lag", the_ledger_of_one_server_lags(shared())),
        scenario("balancer", a_balancer_chooses_the_server(shared())),
        scenario("kill", a_kill_reaches_the_other_server(shared())),
        scenario("replicated database", the_database_is_replicated(shared())),
    ] {
        scenario.await.context(name)?;
    }
    Ok(())
}

/// Each server dies while inserts run there, and comes back while objects arrive.
async fn servers_die_during_inserts(cluster: &Arc<Cluster>) -> Result<()> {
    let mut replicated = ReplicatedHarness::new(cluster, "killed").await?;
    let bucket = replicated.harness.site.bucket.clone();
    let s3 = Proxy::start(replicated.harness.aws.endpoint()).await?;
    replicated.harness.set("s3.clickhouse_endpoint", s3.url());
    // So that inserts take long enough to be found.
    let delay = Fault::Delay(Duration::from_millis(500));
    s3.inject(delay, usize::MAX, is_get);
    let balancer = Balancer::start(&cluster.urls()).await?;
    let daemons = vec![
        replicated.start_at(&balancer.url())?,
        replicated.start_at(&balancer.url())?,
    ];
    for replica in [1, 2] {
        let server = cluster.server(1, replica);
        replicated
            .arrive_until("an insert", async || {
                Ok(running_inserts(server, &bucket).await? > 0)
            })
            .await?;
        change(cluster, move |it| it.server(1, replica).kill()).await?;
        replicated.arrive(20).await?;
        change(cluster, move |it| it.server(1, replica).restart()).await?;
    }
    s3.heal();
    replicated.harness.finish(daemons).await
}

/// A worker that starts while there is no Keeper cannot determine which servers share the tables.
async fn the_keeper_dies(cluster: &Arc<Cluster>) -> Result<()> {
    let mut replicated = ReplicatedHarness::new(cluster, "keeper").await?;
    let database = replicated.harness.site.database.clone();
    let mut daemons = replicated.start_on_two_servers()?;
    let first = cluster.server(1, 1);
    replicated
        .arrive_until("loads", async || Ok(loaded(first, &database).await? > 10))
        .await?;
    change(cluster, |it| it.keeper()?.kill()).await?;
    let late = replicated.start_at(cluster.server(1, 2).url())?;
    replicated.arrive(20).await?;
    wait_for("the late worker to pause", BOUND, async || {
        let logs = || replicated.harness.logs();
        ensure!(late.count_logged("intake is paused")? > 0, logs());
        Ok(Some(()))
    })
    .await;
    daemons.push(late);
    change(cluster, |it| it.keeper()?.restart()).await?;
    replicated.arrive(20).await?;
    replicated.harness.finish(daemons).await
}

/// Loads continue on the other replica, and the one that was away gets all rows.
async fn a_replica_is_away_for_long(cluster: &Arc<Cluster>) -> Result<()> {
    let mut replicated = ReplicatedHarness::new(cluster, "away").await?;
    let database = replicated.harness.site.database.clone();
    let first = cluster.server(1, 1);
    let daemons = vec![
        replicated.start_at(first.url())?,
        replicated.start_at(first.url())?,
    ];
    replicated
        .arrive_until("loads", async || Ok(loaded(first, &database).await? > 10))
        .await?;
    change(cluster, |it| it.server(1, 2).kill()).await?;
    let before = loaded(first, &database).await?;
    replicated
        .arrive_until("loads to continue", async || {
            Ok(loaded(first, &database).await? >= before + 60)
        })
        .await?;
    change(cluster, |it| it.server(1, 2).restart()).await?;
    replicated.harness.finish(daemons).await
}

/// The scenarios run one after the other, since they kill servers of the same cluster.
#[tokio::test]
async fn servers_and_a_keeper_that_die_lose_and_duplicate_nothing() -> Result<()> {
    if !Requirement::OwnCluster.is_met() {
        return Ok(());
    }
    let cluster = Arc::new(Cluster::start(1, 2)?);
    servers_die_during_inserts(&cluster)
        .await
        .context("servers")?;
    the_keeper_dies(&cluster).await.context("Keeper")?;
    a_replica_is_away_for_long(&cluster).await.context("away")
}

/// A server hangs while an insert runs there, and the worker of this insert dies. No kill reaches
/// the insert, which continues when the server does.
#[tokio::test]
async fn an_insert_that_no_kill_reaches_duplicates_nothing() -> Result<()> {
    if !Requirement::OwnCluster.is_met() {
        return Ok(());
    }
    let cluster = Arc::new(Cluster::start(1, 2)?);
    let mut replicated = ReplicatedHarness::new(&cluster, "paused").await?;
    let [a, b] = [1, 2].map(|replica| cluster.server(1, replica));
    let bucket = replicated.harness.site.bucket.clone();
    // The other worker waits until the insert cannot run any more.
    replicated.harness.set("clickhouse.insert_timeout", "10s");
    let s3 = Proxy::start(replicated.harness.aws.endpoint()).await?;
    replicated.harness.set("s3.clickhouse_endpoint", s3.url());
    s3.inject(Fault::Hold, usize::MAX, is_get);
    replicated.put(5).await?;
    let first = replicated.start_at(a.url())?;
    wait_for_hits(&s3, 1).await;
    let running = running_inserts(a, &bucket).await?;
    ensure!(running > 0, "the insert has ended");
    change(&cluster, |it| it.server(1, 1).pause()).await?;
    first.kill()?;
    s3.heal();
    let second = replicated.start_at(b.url())?;
    replicated.harness.wait_until_drained(&[&second]).await;
    replicated
        .harness
        .wait_until_exact(&cluster.servers()[1..])
        .await;
    change(&cluster, |it| it.server(1, 1).resume()).await?;
    replicated.harness.finish(vec![second]).await
}

#[tokio::test]
async fn two_of_three_replicas_suffice() -> Result<()> {
    if !Requirement::OwnCluster.is_met() {
        return Ok(());
    }
    let cluster = Arc::new(Cluster::start(1, 3)?);
    let mut replicated = ReplicatedHarness::new(&cluster, "two-of-three").await?;
    change(&cluster, |it| it.server(1, 3).kill()).await?;
    let daemons = replicated.start_on_two_servers()?;
    for daemon in &daemons {
        daemon.wait_until_ready().await;
    }
    replicated.put(60).await?;
    let workers: Vec<&Daemon> = daemons.iter().collect();
    replicated.harness.wait_until_drained(&workers).await;
    replicated
        .harness
        .wait_until_exact(&cluster.servers()[..2])
        .await;
    change(&cluster, |it| it.server(1, 3).restart()).await?;
    replicated.harness.finish(daemons).await
}
