//! The real servers: the engine, through the production code below the ports, and the stand-in for
//! S3.
//!
//! Each case has its own bucket, and a proxy in front of it for each kind of reader: what one is
//! denied, the other can read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use sluice::Env;
use sluice::batch::BatchId;
use sluice::config::Secret;
use sluice::ledger::{BATCHES_TABLE, FAILURES_TABLE, Ledger, LedgerTimes, OBJECTS_TABLE};
use sluice::load::tables::ClickHouseTables;
use sluice::object::Compression;
use sluice::rejects::{LineKey, RejectKind, RejectPage, Rejects};
use sluice::s3::{ObjectMeta, Store};
use sluice::statements::insert::S3Source;
use sluice::statements::s3_source::S3Access;
use sluice::statements::select::Target;
use sluice_sim::s3::Reader;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{gzip, zstd};
use sluice_testkit::{Aws, ClickHouse, Requirement, Site, Stack, wait_for};
use tokio::task::spawn_blocking;

use crate::database::{Database, Engines};
use crate::servers::{BOUND, Configuration, STATEMENT, Servers, Settings, TableRows, planner};
use crate::words;
use crate::worker::Worker;

/// Many servers share two cores with other tests.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_MEMORY: u64 = 4 << 30;
const VIEW: &str = "users_view";

pub(crate) struct Real {
    database: Arc<Database>,
    site: Site,
    /// `None` for AWS itself, like the next.
    server_to_s3: Option<Proxy>,
    worker_to_s3: Option<Proxy>,
    env: Env,
    lease: Duration,
}

impl Real {
    /// Creates a database on one server.
    pub(crate) async fn on_one_server(name: &str, settings: &Settings) -> Self {
        let stack = Stack::shared();
        let engines = match settings.crashes {
            false => Engines::Shared(&stack.clickhouse),
            true => Engines::Own(Box::new(ClickHouse::start().unwrap())),
        };
        let site = stack.site(name).await.unwrap();
        let database = Database::create(engines, site.clone(), settings).await;
        Self::with(Arc::new(database), site, settings).await
    }

    /// Uses the tables of a database, which may have rows of other cases.
    pub(crate) async fn on(database: Arc<Database>, name: &str, settings: &Settings) -> Self {
        let site = Stack::shared().site(name).await.unwrap();
        Self::with(database, site, settings).await
    }

    async fn with(database: Arc<Database>, site: Site, settings: &Settings) -> Self {
        Self {
            database,
            site,
            server_to_s3: proxy_of_s3().await,
            worker_to_s3: proxy_of_s3().await,
            env: Env::default(),
            lease: settings.lease,
        }
    }

    fn proxy(&self, reader: Reader) -> &Proxy {
        let proxy = match reader {
            Reader::Server => &self.server_to_s3,
            Reader::Worker => &self.worker_to_s3,
        };
        proxy.as_ref().expect("the case is in INJECT_FAULTS")
    }

    /// Returns the number of statements of a batch that run on any server and meet a condition.
    async fn processes(&self, batch: BatchId, condition: &str) -> Result<u64> {
        let sql = format!(
            "SELECT count() FROM system.processes \
             WHERE startsWith(query_id, '{batch}') AND {condition}"
        );
        let mut processes = 0;
        for server in self.database.servers() {
            processes += server.scalar::<u64>(&sql).await?;
        }
        Ok(processes)
    }

    /// Kills or restarts a server, in a thread of its own: the proxies run in this one.
    async fn change(
        &self,
        replica: usize,
        change: impl FnOnce(&ClickHouse) -> Result<()> + Send + 'static,
    ) {
        let database = Arc::clone(&self.database);
        let changed = spawn_blocking(move || change(&database.servers()[replica]));
        changed.await.unwrap().unwrap();
    }
}

impl Servers for Real {
    type Ledger = Ledger;
    type Tables = ClickHouseTables;
    type Objects = Store;

    /// `max_block_size` of an insert.
    const BLOCK_LINES: usize = 65_409;

    fn bucket(&self) -> &str {
        &self.site.bucket
    }

    fn env(&self) -> &Env {
        &self.env
    }

    fn replicas(&self) -> usize {
        self.database.servers().len()
    }

    fn connect_as(
        &self,
        worker: &str,
        replica: usize,
        configuration: Configuration,
    ) -> Worker<Self> {
        let warehouse = self.database.warehouse(replica, QUERY_TIMEOUT);
        let times = LedgerTimes {
            lease: self.lease,
            statement: STATEMENT,
        };
        let ledger = Ledger::new(warehouse.clone(), worker, times, self.env.clone());
        let source = S3Source {
            endpoint: self.server_to_s3.as_ref().map(Proxy::url),
            default_region: region(),
            access: s3_access(),
        };
        let planner = planner(source, &self.database.name, configuration);
        let tables = ClickHouseTables::new(warehouse, planner, MAX_MEMORY);
        let store = Store::new(&match &self.worker_to_s3 {
            Some(proxy) => Aws::at(&proxy.url()).configuration(),
            None => Stack::shared().aws.configuration(),
        });
        Worker::new(ledger, tables, store, self.env.clone())
    }

    async fn upload(&self, key: &str, content: &[u8], is_cut: bool) -> ObjectMeta {
        let bytes = stored(key, content, is_cut);
        let size = Some(bytes.len() as u64);
        let etag = self.site.put(key, bytes).await.unwrap();
        ObjectMeta { etag, size }
    }

    async fn remove(&self, key: &str) {
        self.site.delete(key).await.unwrap();
    }

    fn refuse(&self, key: &str, reader: Reader, refuses: bool) {
        let proxy = self.proxy(reader);
        proxy.heal();
        if refuses {
            let key = key.to_owned();
            proxy.inject(Fault::Status(403), usize::MAX, move |parts, _| {
                parts.uri.path().ends_with(&key)
            });
        }
    }

    fn set_unavailable(&self, reader: Reader, is_unavailable: bool) {
        let proxy = self.proxy(reader);
        proxy.heal();
        if is_unavailable {
            proxy.inject(Fault::Status(503), usize::MAX, |_, _| true);
        }
    }

    fn hold_reads(&self, holds: bool) {
        let proxy = self.proxy(Reader::Server);
        proxy.heal();
        if holds {
            proxy.inject(Fault::Hold, usize::MAX, |parts, _| parts.method == "GET");
        }
    }

    async fn running(&self, batch: BatchId) -> u64 {
        self.processes(batch, "1").await.unwrap()
    }

    async fn wait_until_killed(&self, batch: BatchId) {
        wait_for("the kill", BOUND, async || {
            let running = self.processes(batch, "NOT is_cancelled").await?;
            Ok((running == 0).then_some(()))
        })
        .await;
    }

    async fn set_throwing_view(&self, table: Option<&str>) {
        let on_cluster = self.database.on_cluster();
        let sql = match table {
            Some(table) => format!(
                "CREATE MATERIALIZED VIEW $.{VIEW}{on_cluster} ENGINE = MergeTree ORDER BY n \
                 AS SELECT throwIf(1, 'never') AS n FROM $.{table}"
            ),
            None => format!("DROP VIEW IF EXISTS $.{VIEW}{on_cluster} SYNC"),
        };
        self.database.execute(&sql).await;
    }

    async fn rows_of(&self, batch: BatchId) -> TableRows {
        let catalog = words::catalog();
        let database = &self.database;
        let selects = Target::all(&catalog).into_iter().map(|target| {
            let rows = match target {
                Target::ObjectRows => "sum(rows)",
                _ => "count()",
            };
            let (name, table) = (&database.name, target.table());
            format!("SELECT '{table}', {rows} FROM {name}.{table} WHERE batch_id = '{batch}'")
        });
        let sql = selects.collect::<Vec<_>>().join(" UNION ALL ");
        database.catch_up(0).await;
        let found = database.servers()[0].query(&sql).await.unwrap();
        let rows = found.lines().map(|line| {
            let (table, rows) = line.split_once('\t').unwrap();
            (table.to_owned(), rows.parse::<u64>().unwrap())
        });
        rows.filter(|(_, rows)| *rows > 0).collect()
    }

    async fn reject_page(&self, kind: RejectKind, after: Option<&LineKey>) -> Option<RejectPage> {
        let warehouse = self.database.warehouse(0, QUERY_TIMEOUT);
        let rejects = Rejects::new(warehouse, STATEMENT);
        rejects.page(kind, &self.rejects(), after).await.unwrap()
    }

    async fn failures(&self) -> BTreeMap<String, String> {
        let sql = format!(
            "SELECT key, concat(class, ': ', reason) FROM {}.{FAILURES_TABLE} WHERE bucket = '{}'",
            self.database.name, self.site.bucket
        );
        let found = self.database.servers()[0].query(&sql).await.unwrap();
        let failures = found.lines().map(|line| {
            let (key, reason) = line.split_once('\t').unwrap();
            (key.to_owned(), reason.to_owned())
        });
        failures.collect()
    }

    async fn set_lagging(&self, replica: usize, lags: bool) {
        let catalog = words::catalog();
        let targets = Target::all(&catalog);
        let of_ledger = [OBJECTS_TABLE, BATCHES_TABLE];
        let verb = if lags { "STOP" } else { "START" };
        for table in targets.iter().map(Target::table).chain(of_ledger) {
            let sql = format!("SYSTEM {verb} FETCHES {}.{table}", self.database.name);
            let server = &self.database.servers()[replica];
            server.execute(&sql).await.unwrap();
        }
    }

    fn can_crash(&self) -> bool {
        self.database.is_own()
    }

    async fn crash(&self, replica: usize) {
        self.change(replica, ClickHouse::kill).await;
    }

    async fn restart(&self, replica: usize) {
        self.change(replica, ClickHouse::restart).await;
        self.database.catch_up(replica).await;
    }
}

/// The cases that inject faults between S3 and its clients.
const INJECT_FAULTS: &[&str] = &[
    "a_refused_object_fails_its_insert",
    "inserts_fail_while_s3_is_unavailable",
    "a_kill_ends_an_insert_and_reports_after_its_end",
    "an_insert_whose_server_crashes_is_completed",
    "an_object_can_be_refused_to_the_worker_alone",
    "s3_can_be_unavailable_to_the_worker_alone",
];

/// Returns whether a case can run here. If not, it is reported as skipped.
pub(crate) fn can_run(case: &str) -> bool {
    !INJECT_FAULTS.contains(&case) || Requirement::FaultyS3.is_met()
}

/// Starts a proxy in front of S3, unless it is that of AWS, whose signatures cover the host.
async fn proxy_of_s3() -> Option<Proxy> {
    let endpoint = Stack::shared().aws.s3_endpoint()?;
    match endpoint.starts_with("http://") {
        true => Some(Proxy::start(endpoint).await.unwrap()),
        false => None,
    }
}

fn region() -> String {
    let configuration = Stack::shared().aws.configuration();
    let region = configuration.region().map(ToString::to_string);
    region.expect("a region, as from AWS_REGION")
}

/// Returns the access of the server to S3.
fn s3_access() -> S3Access {
    let access = Stack::shared().aws.s3_access().unwrap();
    let field = |name: &str| access[name].as_str().unwrap_or_default().to_owned();
    match &*field("kind") {
        "keys" => S3Access::Keys {
            access_key_id: field("access_key_id"),
            secret_access_key: Secret::new(field("secret_access_key")),
        },
        "role" => S3Access::Role {
            role_arn: field("role_arn"),
        },
        "named_collection" => S3Access::NamedCollection {
            name: field("name"),
        },
        "anonymous" => S3Access::Anonymous,
        "server" => S3Access::Server,
        other => panic!("unknown kind of access: {other}"),
    }
}

/// Returns the stored bytes of an object, compressed as its key says.
fn stored(key: &str, content: &[u8], is_cut: bool) -> Vec<u8> {
    match (Compression::of(key), is_cut) {
        (Compression::Gzip, false) => gzip(content),
        (Compression::Gzip, true) => half(gzip(content)),
        (Compression::Zstd, false) => zstd(content),
        (Compression::Zstd, true) => {
            // ClickHouse reads the first frame, and accepts that the second one does not end.
            let lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
            let (first, second) = lines.split_at(lines.len() / 2);
            [zstd(&first.concat()), half(zstd(&second.concat()))].concat()
        }
        (_, is_cut) => {
            assert!(!is_cut, "{key} has no end that can be missing");
            content.to_vec()
        }
    }
}

fn half(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() / 2);
    bytes
}
