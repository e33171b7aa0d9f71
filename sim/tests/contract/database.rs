//! Servers of the engine, and a database with the tables: on a server that all cases share, on one
//! of a case's own, or on replicas. The cases on replicas share a cluster and a database, which
//! take half a minute to start and to create.

use std::slice;
use std::time::Duration;

use sluice::clickhouse::replicas::Topology;
use sluice::clickhouse::{Access, Warehouse};
use sluice::config::{Secret, SecretSource};
use sluice::statements::ddl::{Engine, SchemaOptions, Setting, Table, tables, views};
use sluice::statements::select::Target;
use sluice_testkit::{ClickHouse, Cluster, Site, Stack, wait_for};

use crate::servers::{BOUND, Settings};
use crate::words;

const DDL_TIMEOUT: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Merges would hide rows that were inserted twice, since the tables replace equal rows.
const NO_MERGES: [&str; 2] = [
    "max_bytes_to_merge_at_max_space_in_pool",
    "max_bytes_to_merge_at_min_space_in_pool",
];

/// The servers, by who uses them.
pub(crate) enum Engines {
    Shared(&'static ClickHouse),
    Own(Box<ClickHouse>),
    Replicas(Cluster),
}

/// Servers, and a database that has the tables.
pub(crate) struct Database {
    engines: Engines,
    pub(crate) name: String,
    /// Drops the database, unless its servers stop.
    _site: Site,
}

impl Database {
    pub(crate) async fn create(engines: Engines, site: Site, settings: &Settings) -> Self {
        let name = site.database.clone();
        let database = Self {
            engines,
            name,
            _site: site,
        };
        database.create_tables(settings).await;
        database
    }

    /// Starts replicas and creates the tables, or uses the cluster that the environment names.
    pub(crate) async fn on_replicas(settings: &Settings) -> Self {
        let cluster = Cluster::connect_or_start(1, 2).unwrap();
        let site = Stack::shared().site("contract-replicas").await.unwrap();
        Self::create(Engines::Replicas(cluster), site, settings).await
    }

    pub(crate) fn servers(&self) -> &[ClickHouse] {
        match &self.engines {
            Engines::Shared(server) => slice::from_ref(*server),
            Engines::Own(server) => slice::from_ref(&**server),
            Engines::Replicas(cluster) => cluster.servers(),
        }
    }

    fn cluster(&self) -> Option<&'static str> {
        matches!(self.engines, Engines::Replicas(_)).then_some(Cluster::NAME)
    }

    pub(crate) fn on_cluster(&self) -> String {
        self.cluster()
            .map(|cluster| format!(" ON CLUSTER {cluster}"))
            .unwrap_or_default()
    }

    async fn create_tables(&self, settings: &Settings) {
        let catalog = words::catalog();
        let options = SchemaOptions {
            database: self.name.clone(),
            cluster: self.cluster().map(str::to_owned),
            engine: match self.cluster() {
                None => Engine::Plain,
                Some(_) => Engine::Replicated,
            },
            dedup_window: settings.dedup_window,
            dedup_age: 7 * DAY,
            views: true,
            reject_ttl: 90 * DAY,
        };
        let targets = Target::all(&catalog);
        let mut declared = tables(&catalog, &options);
        for table in &mut declared {
            if targets.iter().any(|target| target.table() == table.name) {
                keep_parts(table);
            }
        }
        let mut statements = vec![options.database()];
        statements.extend(declared.iter().map(|table| options.create(table)));
        statements.extend(views(&catalog, &options));
        if self.cluster().is_some() {
            statements.extend(declared.iter().flat_map(|it| options.first_entries(it)));
        }
        let warehouse = self.warehouse(0, DDL_TIMEOUT);
        for statement in statements {
            // A replicated table is read-only for a moment after it was created.
            wait_for(&statement.what, BOUND, async || {
                Ok(Some(warehouse.run(&statement.sql).await?))
            })
            .await;
        }
        for replica in 0..self.servers().len() {
            self.catch_up(replica).await;
        }
    }

    /// Waits until a replica has all rows, and its tables are writable.
    pub(crate) async fn catch_up(&self, replica: usize) {
        wait_for("the tables", BOUND, async || {
            let server = &self.servers()[replica];
            server.catch_up(&self.name).await.map(Some)
        })
        .await;
    }

    /// Returns whether the servers belong to this process.
    pub(crate) fn is_own(&self) -> bool {
        match &self.engines {
            Engines::Shared(_) => false,
            Engines::Own(_) => true,
            Engines::Replicas(cluster) => cluster.keeper().is_ok(),
        }
    }

    /// Drops the database on a cluster that was started elsewhere.
    pub(crate) async fn remove(&self) {
        if self.is_own() {
            return;
        }
        let on_cluster = self.on_cluster();
        self.execute(&format!("DROP DATABASE ${on_cluster} SYNC"))
            .await;
    }

    pub(crate) fn warehouse(&self, replica: usize, query_timeout: Duration) -> Warehouse {
        let access = Access {
            url: self.servers()[replica].url().to_owned(),
            user: self.servers()[replica].user().name.clone(),
            password: SecretSource::Given(Secret::new(&*self.servers()[replica].user().password)),
            secrets: Vec::new(),
            database: self.name.clone(),
            connect_timeout: CONNECT_TIMEOUT,
            query_timeout,
            ca_file: None,
            cluster: self.cluster().map(str::to_owned),
            topology: match self.cluster() {
                None => Topology::Single,
                Some(_) => Topology::Auto,
            },
            accept_unproven: false,
        };
        Warehouse::connect(&access).unwrap()
    }

    /// Runs a statement on the first server. `$` stands for the database.
    pub(crate) async fn execute(&self, sql: &str) {
        let sql = sql.replace('$', &self.name);
        self.servers()[0].execute(&sql).await.unwrap();
    }
}

/// Has a table keep the parts that inserts make.
fn keep_parts(table: &mut Table) {
    let settings = NO_MERGES.map(|name| Setting {
        name,
        value: 1,
        is_mutable: true,
    });
    table.settings.extend(settings);
}
