//! A replicated ClickHouse: several servers of the embedded engine, and a ZooKeeper.
//!
//! docs/adr/0017-replicas-of-the-embedded-engine.md has why the engine is prepared in memory, and
//! what differs from a server of ClickHouse's own packages.

use std::env;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::engine::{Ports, Role};
use crate::install::{Installed, install_cluster};
use crate::launch::PORT_TRIES;
use crate::ports::free_ports;
use crate::{ClickHouse, ClickHouseOptions, Keeper, wait_for};

/// The environment variable with the addresses of a cluster that tests use instead of starting one:
/// URLs separated by commas, the replicas of the first shard first. Its name must be
/// [`Cluster::NAME`], and every server must have the macros `shard` and `replica`.
pub const CLUSTER_VARIABLE: &str = "SLUICE_TEST_CLICKHOUSE_CLUSTER";

/// Where replicas fetch parts from each other. Queries are served at 127.0.0.1.
const INTERSERVER_HOST: &str = "127.0.0.2";

/// A table that is read-only for longer stays so.
const READ_ONLY_BOUND: Duration = Duration::from_secs(60);

/// ClickHouse servers that replicate to each other, which stop when this is dropped.
///
/// Each has the users of [`ClickHouse`], its own data, and the macros `shard` and `replica`, which
/// count from 1. Users that statements create are gone when their server is restarted. The servers
/// have neither `system.zookeeper` nor `system.distributed_ddl_queue`.
#[derive(Debug)]
pub struct Cluster {
    /// The replicas of the first shard, then those of the second.
    servers: Vec<ClickHouse>,
    replicas: usize,
    /// `None` if the cluster was started elsewhere. It is dropped after the servers.
    keeper: Option<Keeper>,
}

impl Cluster {
    /// The name in `ON CLUSTER` and `Distributed`.
    pub const NAME: &str = "main";

    /// Starts shards of this number of replicas each, and waits until all servers answer. A server
    /// that was killed counts as alive for four seconds.
    ///
    /// # Errors
    ///
    /// Fails if a server cannot be installed or started, and if the engine is a build that cannot be
    /// a replica ([`crate::Requirement::OwnCluster`]).
    pub fn start(shards: usize, replicas: usize) -> Result<Self> {
        Self::start_with(shards, replicas, &ClickHouseOptions::default())
    }

    /// Starts a cluster whose servers all have these options.
    ///
    /// # Errors
    ///
    /// Fails as [`Cluster::start`] does, and if the options name a directory or a port, which
    /// servers cannot share.
    pub fn start_with(shards: usize, replicas: usize, options: &ClickHouseOptions) -> Result<Self> {
        ensure!(
            shards > 0 && replicas > 0,
            "a cluster has at least one server"
        );
        ensure!(
            options.directory.is_none()
                && options.http_port.is_none()
                && options.tcp_port.is_none(),
            "the servers of a cluster cannot share a directory or a port"
        );
        let installed = install_cluster()?;
        let mut log = String::new();
        for _ in 0..PORT_TRIES {
            // What servers on other ports have left in a ZooKeeper would be in the way.
            let keeper = Keeper::start()?;
            let plan = Plan::new(shards, replicas, &keeper)?;
            match plan.start(&installed, options)? {
                Ok(servers) => {
                    return Ok(Self {
                        servers,
                        replicas,
                        keeper: Some(keeper),
                    });
                }
                Err(tail) => log = tail,
            }
        }
        bail!("a server of the cluster did not start; its log ends with:\n{log}")
    }

    /// Uses the cluster that [`CLUSTER_VARIABLE`] names, or starts one. Its servers can be killed
    /// only if they were started.
    ///
    /// # Errors
    ///
    /// Fails as [`Cluster::start`] and [`Cluster::at`] do.
    pub fn connect_or_start(shards: usize, replicas: usize) -> Result<Self> {
        match env::var(CLUSTER_VARIABLE) {
            Ok(urls) => {
                let urls: Vec<&str> = split(&urls).collect();
                Self::at(&urls, shards, replicas).context(CLUSTER_VARIABLE)
            }
            Err(_) => Self::start(shards, replicas),
        }
    }

    /// Uses servers that were started elsewhere, the replicas of the first shard first.
    ///
    /// # Errors
    ///
    /// Fails if their number is another than that of all replicas.
    pub fn at(urls: &[&str], shards: usize, replicas: usize) -> Result<Self> {
        ensure!(
            urls.len() == shards * replicas,
            "{} servers are given, and {shards} shards of {replicas} replicas are needed",
            urls.len()
        );
        Ok(Self {
            servers: urls.iter().map(|url| ClickHouse::at(url)).collect(),
            replicas,
            keeper: None,
        })
    }

    /// Uses the replicas of one shard that were started elsewhere: URLs separated by commas.
    pub fn of_replicas(urls: &str) -> Self {
        let servers: Vec<ClickHouse> = split(urls).map(ClickHouse::at).collect();
        Self {
            replicas: servers.len(),
            servers,
            keeper: None,
        }
    }

    /// Returns all servers, the replicas of the first shard first.
    pub fn servers(&self) -> &[ClickHouse] {
        &self.servers
    }

    /// Returns the addresses of all servers, as [`crate::balancer::Balancer`] takes them.
    pub fn urls(&self) -> Vec<&str> {
        self.servers.iter().map(ClickHouse::url).collect()
    }

    /// Returns a server by its macros, which count from 1.
    ///
    /// # Panics
    ///
    /// Panics if the cluster has no such server.
    #[track_caller]
    pub fn server(&self, shard: usize, replica: usize) -> &ClickHouse {
        assert!(
            (1..=self.replicas).contains(&replica),
            "there are {} replicas",
            self.replicas
        );
        let index = shard
            .checked_sub(1)
            .map(|it| it * self.replicas + replica - 1);
        let server = index.and_then(|index| self.servers.get(index));
        server.unwrap_or_else(|| panic!("there is no shard {shard}"))
    }

    /// Returns the pids of all launchers and servers that this has started and that are not killed.
    pub fn pids(&self) -> Vec<u32> {
        let servers = self.servers.iter().flat_map(ClickHouse::pids);
        let keeper = self.keeper.iter().flat_map(Keeper::pids);
        servers.chain(keeper).collect()
    }

    /// Returns the ZooKeeper, to be killed and started again.
    ///
    /// # Errors
    ///
    /// Fails if the cluster was started elsewhere.
    pub fn keeper(&self) -> Result<&Keeper> {
        self.keeper
            .as_ref()
            .context("this cluster was started elsewhere: its Keeper cannot be killed")
    }

    /// Waits until every server has the rows of a table that any server has confirmed. A table is
    /// read-only for a moment after it was created or its Keeper was gone: this waits for that, too.
    ///
    /// # Errors
    ///
    /// Fails with ClickHouse's error, such as a timeout if no server that is alive has the rows.
    ///
    /// # Panics
    ///
    /// Panics if the table is read-only for a minute.
    pub async fn sync(&self, table: &str) -> Result<()> {
        let sql = format!("SYSTEM SYNC REPLICA {table}");
        for server in &self.servers {
            let synced = wait_for("a writable table", READ_ONLY_BOUND, async || {
                match server.execute(&sql).await {
                    Err(error) if format!("{error:#}").contains("TABLE_IS_READ_ONLY") => Err(error),
                    result => Ok(Some(result)),
                }
            });
            synced.await?;
        }
        Ok(())
    }
}

fn split(urls: &str) -> impl Iterator<Item = &str> {
    urls.split(',').map(str::trim)
}

/// Whether [`CLUSTER_VARIABLE`] names a cluster.
pub(crate) fn is_given() -> bool {
    env::var_os(CLUSTER_VARIABLE).is_some()
}

/// Which server is where: every server's configuration names the ports of all.
struct Plan {
    /// Of all servers, the replicas of the first shard first.
    ports: Vec<Ports>,
    replicas: usize,
    keeper_port: u16,
}

impl Plan {
    fn new(shards: usize, replicas: usize, keeper: &Keeper) -> Result<Self> {
        let ports = free_ports(2 * shards * replicas)?;
        let ports = ports.chunks_exact(2).map(|pair| Ports {
            http: pair[0],
            tcp: pair[1],
        });
        Ok(Self {
            ports: ports.collect(),
            replicas,
            keeper_port: keeper.address().port(),
        })
    }

    /// Starts all servers side by side. Returns the end of the log of one that exited by itself, as
    /// it does when a port is taken; then the others stop, too.
    fn start(
        &self,
        installed: &Installed,
        options: &ClickHouseOptions,
    ) -> Result<Result<Vec<ClickHouse>, String>> {
        let start = |index: usize, ports: Ports| {
            let mut options = options.clone();
            options.configuration.push_str(&self.configuration(index));
            let role = Role::Replica {
                interserver_host: INTERSERVER_HOST,
            };
            ClickHouse::start_as(installed, options, ports, role)
        };
        let started: Vec<_> = thread::scope(|scope| {
            let servers = self.ports.iter().enumerate();
            let starting: Vec<_> = servers
                .map(|(index, ports)| scope.spawn(move || start(index, *ports)))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a server's start panicked")))
            };
            starting.into_iter().map(join).collect()
        });
        // All have been waited for, so those that run stop here if one does not.
        started.into_iter().collect()
    }

    /// Returns the XML that makes of a server the one with this index.
    fn configuration(&self, index: usize) -> String {
        let mut shards = String::new();
        for shard in self.ports.chunks(self.replicas) {
            shards.push_str("<shard><internal_replication>true</internal_replication>");
            for Ports { tcp, .. } in shard {
                let replica =
                    format!("<replica><host>127.0.0.1</host><port>{tcp}</port></replica>");
                shards.push_str(&replica);
            }
            shards.push_str("</shard>");
        }
        include_str!("cluster.xml")
            .replace("{{interserver_host}}", INTERSERVER_HOST)
            .replace("{{keeper}}", &self.keeper_port.to_string())
            .replace("{{shard}}", &(index / self.replicas + 1).to_string())
            .replace("{{replica}}", &(index % self.replicas + 1).to_string())
            .replace("{{name}}", Cluster::NAME)
            .replace("{{shards}}", &shards)
    }
}
