//! Set-ups of ClickHouse on which loading each object once is not proven.

use crate::clickhouse::replicas::{Layout, Replicas, Topology};
use crate::clickhouse::topology::{Found, servers};
use crate::clickhouse::{Access, Warehouse, WarehouseError};
use crate::statements::ddl::REPLAYED;

/// What to do about such a set-up.
pub(super) const ADVICE: &str = "use plain tables on a single server, or `Replicated` tables on the \
                                 replicas of one cluster (`clickhouse.topology`), at a \
                                 `clickhouse.url` at which no other server answers; or set \
                                 `clickhouse.unproven: accept` to accept the risk";

/// Determines which servers and tables there are.
pub(super) struct TopologyCheck {
    access: Access,
    warehouse: Warehouse,
    tables: Vec<String>,
}

/// The reason why a set-up is not proven, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding(String);

impl Finding {
    /// Returns the finding, and its consequence.
    pub(super) fn risk(&self) -> String {
        format!(
            "{}, so rows can be loaded twice; that each object is loaded once is proven only for \
             plain tables on a single server, and for replicated tables on known servers",
            self.0
        )
    }

    /// Returns the risk, and what to do about it.
    pub(super) fn refusal(&self) -> String {
        format!("{}; {ADVICE}", self.risk())
    }
}

impl TopologyCheck {
    /// Creates a check of these tables and of `replayed_lines`.
    pub(super) fn new(access: Access, warehouse: Warehouse, tables: &[String]) -> Self {
        let replayed = [REPLAYED.to_owned()];
        Self {
            access,
            warehouse,
            tables: tables.iter().cloned().chain(replayed).collect(),
        }
    }

    /// Returns a finding, if there is one.
    pub(super) async fn unproven(&self) -> Result<Option<Finding>, WarehouseError> {
        match self.replication().await? {
            None => self.servers().await,
            found => Ok(found),
        }
    }

    /// Returns the servers that share the tables, if there are several.
    pub(super) async fn replicas(&self) -> Result<Option<&Replicas>, WarehouseError> {
        self.warehouse.replicas().await
    }

    /// Returns a finding if tables are replicated in a way in which Sluice cannot read what it has
    /// written, or if the server belongs to ClickHouse Cloud.
    pub(super) async fn replication(&self) -> Result<Option<Finding>, WarehouseError> {
        if self.warehouse.is_cloud().await? {
            let found = "the server belongs to ClickHouse Cloud (`cloud_mode`), which replicates \
                         every table";
            return Ok(Some(Finding(found.to_owned())));
        }
        let found = match self.warehouse.layout().await? {
            Some(Layout::Replicas(replicas)) => self.unlike_the_ledger(&replicas).await?,
            Some(Layout::Unknown(why)) => Some(format!("the tables are replicated, and {why}")),
            Some(Layout::Single) | None => self.replicated().await?,
        };
        Ok(found.map(Finding))
    }

    /// Returns a table or database that is replicated although the ledger is not, or although
    /// `clickhouse.topology` says that there is a single server.
    async fn replicated(&self) -> Result<Option<String>, WarehouseError> {
        let database = self.warehouse.database();
        if let Some((table, engine)) = self.warehouse.replicated_table(&self.tables).await? {
            let found = format!("table {table} of database {database} has the engine {engine}");
            return Ok(Some(found));
        }
        let engine = self.warehouse.replicated_database().await?;
        Ok(engine.map(|engine| format!("database {database} has the engine {engine}")))
    }

    /// Returns a table that does not have as many replicas as the ledger.
    async fn unlike_the_ledger(
        &self,
        replicas: &Replicas,
    ) -> Result<Option<String>, WarehouseError> {
        let unlike = self.warehouse.unlike(replicas, &self.tables).await?;
        Ok(unlike.map(|table| {
            format!(
                "table {table} of database {} does not have the {} replicas that the ledger has",
                self.warehouse.database(),
                replicas.count
            )
        }))
    }

    /// Returns whether [`servers`](Self::servers) looks for servers.
    pub(super) fn looks_for_servers(&self) -> bool {
        self.access.topology != Topology::Single
    }

    /// Returns a finding if a server answers that does not share the tables.
    pub(super) async fn servers(&self) -> Result<Option<Finding>, WarehouseError> {
        if !self.looks_for_servers() {
            return Ok(None);
        }
        let url = &self.access.url;
        let Some(replicas) = self.warehouse.replicas().await? else {
            let servers = servers(&self.access, Found::Second).await?;
            let mut servers = servers.iter();
            let (Some(first), Some(second)) = (servers.next(), servers.next()) else {
                return Ok(None);
            };
            return Ok(Some(Finding(format!(
                "more than one server answers at {url} ({first} and {second})"
            ))));
        };
        let members = self.warehouse.members(replicas).await?;
        let servers = servers(&self.access, Found::All).await?;
        let other = servers.iter().find(|it| !members.contains(it.uuid()));
        Ok(other.map(|server| {
            Finding(format!(
                "{server} answers at {url}, and does not belong to the cluster {}",
                replicas.cluster
            ))
        }))
    }
}
