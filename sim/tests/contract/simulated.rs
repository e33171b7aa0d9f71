//! The simulated servers, on a paused clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice::Env;
use sluice::batch::BatchId;
use sluice::rejects::{LineKey, RejectKind, RejectPage};
use sluice::s3::ObjectMeta;
use sluice::statements::insert::{S3Source, Strategy};
use sluice::statements::s3_source::S3Access;
use sluice_sim::network::{Client, Network};
use sluice_sim::s3::{Put, Reader, SimS3, SimStore};
use sluice_sim::server::{Checks, Options, SimLedger, SimServer, SimTables, Violation};
use sluice_sim::trace::Trace;
use sluice_testkit::wait_for;

use crate::servers::{BOUND, Configuration, STATEMENT, Servers, Settings, TableRows, planner};
use crate::worker::Worker;

const SEED: u64 = 21;
/// The wall clock begins in 2027.
const BEGAN: Duration = Duration::from_secs(1_800_000_000);
const DEDUP_AGE: Duration = Duration::from_secs(7 * 24 * 3_600);
const LAG: Duration = Duration::from_millis(200);

pub(crate) struct Simulated {
    server: SimServer,
    s3: SimS3,
    network: Network,
    env: Env,
    replicas: usize,
}

impl Simulated {
    pub(crate) fn new(replicas: usize, settings: &Settings) -> Self {
        let env = Env::seeded(SEED, SystemTime::UNIX_EPOCH + BEGAN);
        let mut rng = fastrand::Rng::with_seed(SEED);
        let trace = Trace::new(false);
        let s3 = SimS3::new(trace.clone());
        let network = Network::new(rng.fork(), trace.clone());
        let options = Options {
            replicas,
            dedup_window: settings.dedup_window,
            dedup_age: DEDUP_AGE,
            lease: settings.lease,
            statement: STATEMENT,
            keeps_lines: true,
        };
        // Some cases do on purpose what no worker does.
        let checks: Checks = Arc::new(|_: &Violation| {});
        let server = SimServer::new(options, s3.clone(), env.clone(), rng.fork(), trace, checks);
        Self {
            server,
            s3,
            network,
            env,
            replicas,
        }
    }
}

impl Servers for Simulated {
    type Ledger = SimLedger;
    type Tables = SimTables;
    type Objects = SimStore;

    const BLOCK_LINES: usize = 4;

    fn bucket(&self) -> &str {
        "uploads"
    }

    fn env(&self) -> &Env {
        &self.env
    }

    fn replicas(&self) -> usize {
        self.replicas
    }

    fn connect_as(
        &self,
        worker: &str,
        replica: usize,
        configuration: Configuration,
    ) -> Worker<Self> {
        let source = S3Source {
            endpoint: None,
            default_region: "us-east-1".to_owned(),
            access: S3Access::Server,
        };
        let client = Client::new(worker);
        let store = self.s3.store(self.network.clone(), client.clone());
        let planner = planner(source, "sluice", configuration);
        let network = self.network.clone();
        let (ledger, tables) = self.server.connect(network, client, replica, planner);
        Worker::new(ledger, tables, store, self.env.clone())
    }

    async fn upload(&self, key: &str, content: &[u8], is_cut: bool) -> ObjectMeta {
        self.s3.put(Put {
            key: key.to_owned(),
            body: content.to_vec(),
            is_cut,
        })
    }

    async fn remove(&self, key: &str) {
        self.s3.delete(key);
    }

    fn refuse(&self, key: &str, reader: Reader, refuses: bool) {
        self.s3.refuse(key, reader, refuses);
    }

    fn set_unavailable(&self, reader: Reader, is_unavailable: bool) {
        self.s3.unavailable(reader, is_unavailable);
    }

    fn hold_reads(&self, holds: bool) {
        self.server.hold_reads(holds);
    }

    async fn running(&self, batch: BatchId) -> u64 {
        self.server.running(batch) as u64
    }

    async fn wait_until_killed(&self, batch: BatchId) {
        // A statement whose reads are held ends as soon as it is killed.
        wait_for("the kill", BOUND, async || {
            Ok((self.server.running(batch) == 0).then_some(()))
        })
        .await;
    }

    async fn set_throwing_view(&self, table: Option<&str>) {
        self.server.throwing_view(table);
    }

    async fn rows_of(&self, batch: BatchId) -> TableRows {
        let mut rows = TableRows::new();
        for found in self.server.rows() {
            if found.batch == batch {
                *rows.entry(found.table).or_default() += found.rows;
            }
        }
        rows
    }

    async fn reject_page(&self, kind: RejectKind, after: Option<&LineKey>) -> Option<RejectPage> {
        let reader = self.connect_with("reader", 0, Strategy::SinglePass);
        let page = reader.tables.reject_page(kind, &self.rejects(), after);
        page.await.unwrap()
    }

    async fn failures(&self) -> BTreeMap<String, String> {
        let failures = self.server.failures().into_iter();
        let failures = failures.map(|(object, reason)| (object.key.clone(), reason));
        failures.collect()
    }

    async fn set_lagging(&self, replica: usize, lags: bool) {
        self.server.set_lag(replica, (!lags).then_some(LAG));
    }

    fn can_crash(&self) -> bool {
        true
    }

    async fn crash(&self, replica: usize) {
        self.server.crash(replica, false);
    }

    async fn restart(&self, replica: usize) {
        self.server.restart(replica);
    }
}
