//! Replicas: which servers share the tables, reads that see all that was written before, and kills
//! that reach every server.
//!
//! A server applies the writes of another later, and each at its own time. What a read must see is
//! established from ClickHouse Keeper's log, in this order, and on the server that runs the read:
//! it shows the [`Barrier`], so it has seen all that was committed before; it has copied the log of
//! each table; and it has fetched all parts that the log lists. docs/adr/0018 has the reasons.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::time::Instant;
use tracing::debug;

use super::{Pins, Statement, Warehouse, WarehouseError};
use crate::sql;
use crate::statements::ddl::{BATCHES_TABLE, OBJECTS_TABLE};

/// The text of the error with which another server than the requested ones stops a read.
const ELSEWHERE: &str = "sluice: another server responds";

/// The pause between two looks at a server that lags; it doubles up to the second one.
const LOOK_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// After this time, a new connection is opened, which may lead to a server that does not lag.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// How long a kill waits for statements to end on other servers.
const KILL_BOUND: Duration = Duration::from_secs(5);

/// The settings of a query of all servers: one that accepts connections and does not respond must
/// not delay the others for long.
const OF_ALL_SERVERS: &str = "SETTINGS connect_timeout_with_failover_ms = 1000, \
                              handshake_timeout_ms = 1000, receive_timeout = 3, \
                              connections_with_failover_max_tries = 1";

/// How Sluice finds the servers that share the tables; the value of `clickhouse.topology`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// The cluster is looked up in `system.clusters`.
    #[default]
    Auto,
    /// There is one server.
    Single,
    /// The cluster with this name lists the servers.
    Cluster(String),
}

/// The servers that share the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// The cluster that lists each of them once.
    pub cluster: String,
    pub count: u64,
}

/// What is known about the servers that share the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The tables of the ledger are not replicated, or `clickhouse.topology` is `single`.
    Single,
    Replicas(Replicas),
    /// The tables are replicated, and the servers cannot be determined for this reason.
    Unknown(String),
}

impl Layout {
    fn replicas(&self) -> Option<&Replicas> {
        match self {
            Self::Replicas(replicas) => Some(replicas),
            Self::Single | Self::Unknown(_) => None,
        }
    }
}

/// A row that a server must show before it counts as having seen all that was written before.
#[derive(Clone, Debug)]
pub struct Barrier {
    pub table: &'static str,
    /// The condition that selects the row, as SQL.
    pub condition: String,
}

/// What a server shows of the tables of a read.
#[derive(Debug, Deserialize)]
struct Look {
    server: String,
    /// Whether it shows the barrier, and has copied the logs of all tables afterwards.
    has_log: bool,
    /// The number of parts that it has not fetched.
    missing_parts: u64,
    /// The tables to which nothing was written, or whose log it has not begun to copy.
    empty_logs: Vec<String>,
}

#[derive(Deserialize)]
struct Count {
    count: u64,
}

impl Warehouse {
    /// Returns the servers that share the tables, or `None` if there is one.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::UnknownServers`] if they cannot be determined, unless the risk is accepted.
    pub async fn replicas(&self) -> Result<Option<&Replicas>, WarehouseError> {
        if self.layout.get().is_none() {
            let why = match self.layout().await? {
                Some(Layout::Single | Layout::Replicas(_)) => None,
                Some(Layout::Unknown(why)) => Some(why),
                None => Some("the server does not show the tables of the ledger".to_owned()),
            };
            if let Some(why) = why
                && !self.access.accept_unproven
            {
                return Err(WarehouseError::UnknownServers { why });
            }
        }
        Ok(self.layout.get().and_then(Layout::replicas))
    }

    /// Returns what is known about the servers, or `None` while the ledger's tables do not exist.
    /// Queries the server until the result is known, and then remembers it.
    pub async fn layout(&self) -> Result<Option<Layout>, WarehouseError> {
        if let Some(known) = self.layout.get() {
            return Ok(Some(known.clone()));
        }
        let found = Box::pin(self.find_layout()).await?;
        if let Some(known @ (Layout::Single | Layout::Replicas(_))) = &found {
            self.layout.get_or_init(|| known.clone());
        }
        Ok(found)
    }

    async fn find_layout(&self) -> Result<Option<Layout>, WarehouseError> {
        #[derive(Deserialize)]
        struct Table {
            is_replicated: bool,
        }
        if self.access.topology == Topology::Single {
            return Ok(Some(Layout::Single));
        }
        let tables = sql::strings([BATCHES_TABLE, OBJECTS_TABLE]);
        let found: Vec<Table> = self
            .rows(&format!(
                "SELECT toBool(startsWith(engine, 'Replicated')) AS is_replicated \
                 FROM system.tables WHERE database = {} AND name IN ({tables})",
                sql::string(&self.access.database)
            ))
            .await?;
        if found.len() < 2 {
            return Ok(None);
        }
        Ok(Some(match found.iter().all(|table| table.is_replicated) {
            false => Layout::Single,
            true => self.find_replicas().await?,
        }))
    }

    /// Looks for the cluster that lists the replicas of the ledger.
    async fn find_replicas(&self) -> Result<Layout, WarehouseError> {
        #[derive(Deserialize)]
        struct Ledger {
            zookeeper_path: String,
            total_replicas: u64,
        }
        #[derive(Deserialize)]
        struct Cluster {
            name: String,
        }
        let ledger: Vec<Ledger> = self
            .rows(&format!(
                "SELECT zookeeper_path, total_replicas FROM system.replicas \
                 WHERE database = {} AND table = {}",
                sql::string(&self.access.database),
                sql::string(BATCHES_TABLE),
            ))
            .await?;
        let Some(Ledger {
            zookeeper_path,
            total_replicas,
        }) = ledger.into_iter().next()
        else {
            let why = format!("the server does not show the replicas of {BATCHES_TABLE}");
            return Ok(Layout::Unknown(why));
        };
        if total_replicas == 0 {
            let why = "the server is not connected to ClickHouse Keeper";
            return Ok(Layout::Unknown(why.to_owned()));
        }
        // Of the clusters that may list the replicas, those with the likely names come first.
        let named = match &self.access.topology {
            Topology::Cluster(name) => Some(name),
            Topology::Auto | Topology::Single => self.access.cluster.as_ref(),
        };
        let which = named.map_or(String::new(), |name| {
            format!("WHERE cluster = {} ", sql::string(name))
        });
        let clusters: Vec<Cluster> = self
            .rows(&format!(
                "SELECT cluster AS name FROM system.clusters {which}GROUP BY cluster \
                 HAVING uniqExact(shard_num) = 1 AND count() = {total_replicas} \
                 ORDER BY cluster = {} DESC, cluster = 'default' DESC, cluster",
                sql::string(&self.access.database)
            ))
            .await?;
        for Cluster { name } in clusters {
            // Servers that do not respond now can still be replicas.
            let all = sql::string(&name);
            let differing: Vec<Count> = self
                .rows(&format!(
                    "SELECT uniqExact(server) - uniqExactIf(server, is_replica) AS count FROM (\
                       SELECT serverUUID() AS server, 0 AS is_replica \
                       FROM clusterAllReplicas({all}, system.one) UNION ALL \
                       SELECT serverUUID(), 1 FROM clusterAllReplicas({all}, system.replicas) \
                       WHERE zookeeper_path = {}) {OF_ALL_SERVERS}, skip_unavailable_shards = 1",
                    sql::string(&zookeeper_path)
                ))
                .await?;
            if differing.first().is_some_and(|it| it.count == 0) {
                return Ok(Layout::Replicas(Replicas {
                    cluster: name,
                    count: total_replicas,
                }));
            }
        }
        let cluster = match named {
            Some(name) => format!("the cluster {name} does not list"),
            None => "no cluster in system.clusters lists".to_owned(),
        };
        Ok(Layout::Unknown(format!(
            "{cluster} the {total_replicas} replicas of {BATCHES_TABLE}, each once and in one shard"
        )))
    }

    /// Returns the servers of the cluster that respond, by UUID.
    pub async fn members(&self, replicas: &Replicas) -> Result<BTreeSet<String>, WarehouseError> {
        #[derive(Deserialize)]
        struct Member {
            server: String,
        }
        let sql = format!(
            "SELECT DISTINCT toString(serverUUID()) AS server \
             FROM clusterAllReplicas({}, system.one) \
             {OF_ALL_SERVERS}, skip_unavailable_shards = 1",
            sql::string(&replicas.cluster)
        );
        let members: Vec<Member> = self.rows(&sql).await?;
        Ok(members.into_iter().map(|it| it.server).collect())
    }

    /// Returns a table of these that is not shared by as many servers. Tables that store no rows do
    /// not count.
    pub async fn unlike(
        &self,
        replicas: &Replicas,
        tables: &[String],
    ) -> Result<Option<String>, WarehouseError> {
        #[derive(Deserialize)]
        struct Table {
            name: String,
        }
        let sql = format!(
            "SELECT name FROM system.tables WHERE database = {database} AND name IN ({}) \
             AND engine != 'Null' AND name NOT IN (SELECT table FROM system.replicas \
               WHERE database = {database} AND total_replicas = {}) ORDER BY name LIMIT 1",
            sql::strings(tables),
            replicas.count,
            database = sql::string(&self.access.database),
        );
        let unlike: Vec<Table> = self.rows(&sql).await?;
        Ok(unlike.into_iter().next().map(|it| it.name))
    }

    /// Returns the rows of a small query of these tables. It sees all that was acknowledged before
    /// the barrier was, whichever server runs it. A single server needs no barrier.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Behind`] if no server that responds has all parts in time.
    pub async fn rows_after<T: DeserializeOwned>(
        &self,
        barrier: Option<&Barrier>,
        tables: &[&str],
        sql: &str,
    ) -> Result<Vec<T>, WarehouseError> {
        let timeout = self.access.query_timeout;
        self.rows_after_within(barrier, tables, sql, timeout).await
    }

    /// Returns the same for a query that may take up to `timeout`.
    pub async fn rows_after_within<T: DeserializeOwned>(
        &self,
        barrier: Option<&Barrier>,
        tables: &[&str],
        sql: &str,
        timeout: Duration,
    ) -> Result<Vec<T>, WarehouseError> {
        match barrier {
            None => self.rows_within(sql, timeout).await,
            // Its state would be a part of that of every load.
            Some(barrier) => Box::pin(self.rows_in_sync(barrier, tables, sql, timeout)).await,
        }
    }

    async fn rows_in_sync<T: DeserializeOwned>(
        &self,
        barrier: &Barrier,
        tables: &[&str],
        sql: &str,
        timeout: Duration,
    ) -> Result<Vec<T>, WarehouseError> {
        let begun = Instant::now();
        let mut warehouse = self.clone();
        let mut reconnect_at = begun + RECONNECT_AFTER;
        let (mut pause, max_pause) = LOOK_PAUSES;
        let (mut with_log, mut in_sync) = (BTreeSet::new(), BTreeSet::new());
        let mut looks = 0;
        loop {
            let look = warehouse.look(barrier, tables).await?;
            looks += 1;
            if look.missing_parts == 0 && with_log.contains(&look.server) {
                in_sync.insert(look.server.clone());
            }
            if look.has_log {
                with_log.insert(look.server.clone());
            }
            // A load balancer can lead each request elsewhere: the number of tries grows, so that
            // they do not keep its rhythm.
            let tries = if in_sync.is_empty() { 0 } else { looks };
            for _ in 0..tries {
                let query = only_on(&in_sync, sql);
                match warehouse.rows_within(&query, timeout).await {
                    Err(WarehouseError::Server { text, .. }) if text.contains(ELSEWHERE) => {}
                    outcome => return outcome,
                }
            }
            if begun.elapsed() > self.access.query_timeout {
                return Err(behind(tables, &look));
            }
            if with_log.contains(&look.server) && look.missing_parts == 0 {
                continue;
            }
            debug!(?look, "waiting for a replica");
            if Instant::now() > reconnect_at {
                warehouse = self.reconnected();
                reconnect_at += RECONNECT_AFTER;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(max_pause);
        }
    }

    /// Returns whether the first of these tables has a row that meets the condition, which may refer
    /// to the others. Sees all rows that were
    /// acknowledged before the barrier was, as [`Warehouse::rows_after`].
    pub async fn has_rows(
        &self,
        tables: &[&str],
        condition: &str,
        after: Option<&Barrier>,
    ) -> Result<bool, WarehouseError> {
        let name = self.table(tables.first().unwrap_or(&""));
        let sql = format!("SELECT 1 AS found FROM {name} WHERE {condition} LIMIT 1");
        let found: Vec<IgnoredAny> = self.rows_after(after, tables, &sql).await?;
        Ok(!found.is_empty())
    }

    async fn look(&self, barrier: &Barrier, tables: &[&str]) -> Result<Look, WarehouseError> {
        // The scalar subquery runs before `system.replicas` is read: the order matters. Within a
        // row of `system.replicas`, the queue is read before the log.
        let sql = format!(
            "SELECT toString(serverUUID()) AS server, \
               toBool((SELECT count() FROM {} WHERE {}) > 0 AND count() = {} \
                 AND min(log_pointer > log_max_index AND NOT is_readonly \
                   AND NOT is_session_expired)) AS has_log, \
               sum(inserts_in_queue) AS missing_parts, \
               groupArrayIf(table, log_pointer = 0 AND log_max_index = 0) AS empty_logs \
             FROM system.replicas WHERE database = {} AND table IN ({})",
            self.table(barrier.table),
            barrier.condition,
            tables.len(),
            sql::string(&self.access.database),
            sql::strings(tables),
        );
        let looks: Vec<Look> = self.rows(&sql).await?;
        let look = looks.into_iter().next();
        look.ok_or_else(|| WarehouseError::Unknown("system.replicas returned no row".to_owned()))
    }

    /// Returns whether a table has a row that meets the condition on every server, including those
    /// that have become replicas since the servers were determined.
    ///
    /// # Errors
    ///
    /// Fails if a server does not respond.
    pub async fn is_everywhere(
        &self,
        replicas: &Replicas,
        table: &str,
        condition: &str,
    ) -> Result<bool, WarehouseError> {
        // Each replica is a shard of its own here.
        let sql = format!(
            "SELECT toUInt64(uniqExact(_shard_num) >= greatest({count}, \
               (SELECT count() FROM system.clusters WHERE cluster = {cluster}), \
               (SELECT max(total_replicas) FROM system.replicas \
                WHERE database = {database} AND table = {name}))) AS count \
             FROM clusterAllReplicas({cluster}, {table}) WHERE {condition} {OF_ALL_SERVERS}",
            count = replicas.count,
            cluster = sql::string(&replicas.cluster),
            database = sql::string(&self.access.database),
            name = sql::string(table),
            table = self.table(table),
        );
        let counts: Vec<Count> = self.rows(&sql).await?;
        Ok(counts.first().is_some_and(|it| it.count == 1))
    }

    /// Ends every statement whose query id starts with `prefix`, on every server, and returns
    /// whether it is certain that none is running.
    pub async fn kill_everywhere(
        &self,
        replicas: &Replicas,
        prefix: &str,
    ) -> Result<bool, WarehouseError> {
        let begun = Instant::now();
        loop {
            let running = self.running(replicas, prefix).await;
            if matches!(running, Ok(0)) {
                return Ok(true);
            }
            if begun.elapsed() >= KILL_BOUND {
                return Ok(false);
            }
            if let Err(error) = running {
                debug!(%error, "failed to query all servers for running statements");
            }
            // One server executes the first, and those that execute distributed DDL the second.
            self.run(&kill("", prefix)).await?;
            let everywhere = Statement::new(kill(
                &format!(" ON CLUSTER {}", sql::ident(&replicas.cluster)),
                prefix,
            ))
            .with("distributed_ddl_task_timeout", "3")
            .with("distributed_ddl_output_mode", "null_status_on_timeout");
            if let Err(error) = self
                .execute(&everywhere, None, self.access.query_timeout)
                .await
            {
                debug!(%error, "failed to kill statements on the cluster");
            }
        }
    }

    async fn running(&self, replicas: &Replicas, prefix: &str) -> Result<u64, WarehouseError> {
        let sql = format!(
            "SELECT count() AS count FROM clusterAllReplicas({}, system.processes) \
             WHERE startsWith(query_id, {}) {OF_ALL_SERVERS}",
            sql::string(&replicas.cluster),
            sql::string(prefix),
        );
        let counts: Vec<Count> = self.rows(&sql).await?;
        Ok(counts.first().map_or(0, |it| it.count))
    }

    /// Returns the same client with connections of its own.
    fn reconnected(&self) -> Self {
        let fresh = Self::over(
            self.connector.clone(),
            &self.access,
            &self.access.url,
            Pins::default(),
        );
        Self {
            client: fresh.client,
            ..self.clone()
        }
    }
}

/// Returns a query that fails on every server but these.
fn only_on(servers: &BTreeSet<String>, sql: &str) -> String {
    // The condition is a query of its own: a constant would not be evaluated without rows.
    format!(
        "SELECT * FROM ({sql}) WHERE (SELECT throwIf(toString(serverUUID()) NOT IN ({}), {}) \
         FROM system.one) = 0",
        sql::strings(servers),
        sql::string(ELSEWHERE),
    )
}

pub(super) fn kill(on_cluster: &str, prefix: &str) -> String {
    format!(
        "KILL QUERY{on_cluster} WHERE startsWith(query_id, {}) SYNC",
        sql::string(prefix)
    )
}

fn behind(tables: &[&str], look: &Look) -> WarehouseError {
    let lack = match look {
        Look { empty_logs, .. } if !empty_logs.is_empty() => format!(
            "shows an empty log of {}; run `sluice migrate`",
            empty_logs.join(", ")
        ),
        Look {
            missing_parts: 0, ..
        } => "has not copied the log of ClickHouse Keeper".to_owned(),
        Look { missing_parts, .. } => format!("lacks {missing_parts} parts"),
    };
    WarehouseError::Behind {
        tables: tables.join(", "),
        why: format!("server {} {lack}", look.server),
    }
}
