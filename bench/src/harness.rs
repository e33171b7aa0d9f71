//! The servers on which ways of loading are compared, and a database for each run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice::event_types::Catalog;
use sluice::statements::ddl;
use sluice::statements::ddl::{Engine, SchemaOptions};
use sluice_testkit::xapi::{EventType, ExpectedRows};
use sluice_testkit::{ClickHouse, ClickHouseOptions, Keeper};
use uuid::Uuid;

use crate::objects::ObjectServer;

/// The resources of every run.
pub(crate) struct Harness {
    pub(crate) clickhouse: ClickHouse,
    pub(crate) objects: ObjectServer,
    /// The Keeper of ClickHouse, if one is needed.
    _keeper: Option<Keeper>,
    pub(crate) catalog: Catalog,
    /// Sluice, built with optimisations.
    pub(crate) sluice: PathBuf,
}

/// A database for one run. [`Database::remove`] drops its tables.
pub(crate) struct Database<'a> {
    pub(crate) name: String,
    clickhouse: &'a ClickHouse,
}

impl Harness {
    /// `latency`: of its S3.
    pub(crate) async fn start(
        sluice: PathBuf,
        keeper: Option<Keeper>,
        latency: Duration,
    ) -> Result<Self> {
        let configuration = keeper.as_ref().map(Keeper::clickhouse_configuration);
        let options = ClickHouseOptions {
            configuration: configuration.unwrap_or_default(),
            ..ClickHouseOptions::default()
        };
        Ok(Self {
            clickhouse: ClickHouse::start_with(options)?,
            objects: ObjectServer::start(latency).await?,
            _keeper: keeper,
            catalog: Catalog::builtin(),
            sluice,
        })
    }

    pub(crate) async fn database(&self) -> Result<Database<'_>> {
        let name = format!("bench_{}", Uuid::now_v7().simple());
        let clickhouse = &self.clickhouse;
        clickhouse
            .execute(&format!("CREATE DATABASE {name}"))
            .await?;
        Ok(Database { name, clickhouse })
    }

    /// Creates a database with the tables, the landing table and the views of Sluice.
    pub(crate) async fn migrated(&self) -> Result<Database<'_>> {
        let database = self.database().await?;
        let options = SchemaOptions {
            database: database.name.clone(),
            cluster: None,
            engine: Engine::Plain,
            dedup_window: 10_000,
            dedup_age: Duration::from_secs(86_400),
            views: true,
            reject_ttl: Duration::from_secs(86_400),
        };
        for statement in ddl::statements(&self.catalog, &options) {
            self.clickhouse.execute(&statement.sql).await?;
        }
        Ok(database)
    }
}

impl Database<'_> {
    /// Fails unless the event tables have exactly the number of generated rows. Merges may not have
    /// run yet, so a row that was inserted twice counts twice.
    pub(crate) async fn ensure_rows(&self, expected_rows: &ExpectedRows) -> Result<()> {
        for kind in EventType::ALL {
            let sql = format!("SELECT count() FROM {}.{}", self.name, kind.table());
            let found: u64 = self.clickhouse.scalar(&sql).await?;
            let expected = expected_rows.rows(kind);
            ensure!(
                found == expected,
                "{} has {found} rows, not {expected}",
                kind.table()
            );
        }
        Ok(())
    }

    /// Returns the number of active parts of the event table that has the most.
    pub(crate) async fn most_parts(&self) -> Result<u64> {
        let sql = format!(
            "SELECT max(parts) FROM (SELECT count() AS parts FROM system.parts \
             WHERE active AND database = '{}' AND table LIKE '%_events' GROUP BY table)",
            self.name
        );
        self.clickhouse.scalar(&sql).await
    }

    pub(crate) async fn remove(self) -> Result<()> {
        let sql = format!("DROP DATABASE {} SYNC", self.name);
        self.clickhouse
            .execute(&sql)
            .await
            .context("cannot clean up")
    }
}
