//! Set-ups of ClickHouse on which loading each object once is not proven.

use crate::clickhouse::topology::servers;
use crate::clickhouse::{Access, Warehouse, WarehouseError};
use crate::config::TableEngine;
use crate::statements::ddl::REPLAYED;

/// What to do about such a set-up.
pub(super) const ADVICE: &str = "use plain tables on a single server, and a `clickhouse.url` at \
                                 which no other server answers, or set \
                                 `clickhouse.unproven: accept` to accept the risk";

/// Determines which servers and tables there are.
pub(super) struct Topology {
    access: Access,
    warehouse: Warehouse,
    engine: TableEngine,
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
             plain tables on a single server",
            self.0
        )
    }

    /// Returns the risk, and what to do about it.
    pub(super) fn refusal(&self) -> String {
        format!("{}; {ADVICE}", self.risk())
    }
}

impl Topology {
    /// Creates a check of these tables and of `replayed_lines`.
    pub(super) fn new(
        access: Access,
        warehouse: Warehouse,
        engine: TableEngine,
        tables: &[String],
    ) -> Self {
        let replayed = [REPLAYED.to_owned()];
        Self {
            access,
            warehouse,
            engine,
            tables: tables.iter().cloned().chain(replayed).collect(),
        }
    }

    /// Returns a finding in the configuration, if there is one. Sends no queries.
    pub(super) fn configured(&self) -> Option<Finding> {
        (self.engine == TableEngine::Replicated).then(|| {
            let found = "`clickhouse.engine` is `replicated`";
            Finding(found.to_owned())
        })
    }

    /// Returns a finding, if there is one.
    pub(super) async fn unproven(&self) -> Result<Option<Finding>, WarehouseError> {
        match self.replication().await? {
            None => self.servers().await,
            found => Ok(found),
        }
    }

    /// Returns a finding if anything is replicated: by configuration, by ClickHouse Cloud, by the
    /// database or by a table.
    pub(super) async fn replication(&self) -> Result<Option<Finding>, WarehouseError> {
        if let Some(found) = self.configured() {
            return Ok(Some(found));
        }
        let database = self.warehouse.database();
        if let Some((table, engine)) = self.warehouse.replicated_table(&self.tables).await? {
            let found = format!("table {table} of database {database} has the engine {engine}");
            return Ok(Some(Finding(found)));
        }
        if let Some(engine) = self.warehouse.replicated_database().await? {
            let found = format!("database {database} has the engine {engine}");
            return Ok(Some(Finding(found)));
        }
        let is_cloud = self.warehouse.is_cloud().await?;
        Ok(is_cloud.then(|| {
            let found = "the server belongs to ClickHouse Cloud (`cloud_mode`), which replicates \
                         every table";
            Finding(found.to_owned())
        }))
    }

    /// Returns a finding if more than one server answers.
    pub(super) async fn servers(&self) -> Result<Option<Finding>, WarehouseError> {
        let servers = servers(&self.access).await?;
        let mut servers = servers.iter();
        let (Some(first), Some(second)) = (servers.next(), servers.next()) else {
            return Ok(None);
        };
        let url = &self.access.url;
        Ok(Some(Finding(format!(
            "more than one server answers at {url} ({first} and {second})"
        ))))
    }
}
