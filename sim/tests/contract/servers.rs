//! What the cases require of the servers, simulated or real.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice::Env;
use sluice::batch::BatchId;
use sluice::load::ports::ObjectStore;
use sluice::object::{ObjectParts, ObjectRef, ObjectUrl};
use sluice::rejects::ports::{ReplayLedger, ReplayTables};
use sluice::rejects::{LineKey, RejectKind, RejectPage, RejectSelector};
use sluice::s3::ObjectMeta;
use sluice::statements::insert::{Planner, PlannerOptions, S3Source, Strategy, TimeLimits};
use sluice_sim::s3::Reader;
use sluice_testkit::wait_for;

use crate::words;
use crate::worker::Worker;

/// The upper bound for any wait. In practice, no wait takes more than a tenth of it.
pub(crate) const BOUND: Duration = Duration::from_secs(180);
/// How long an insert may run.
pub(crate) const INSERT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a worker waits for the answer to a statement, and how long its statements can run
/// according to its leases.
pub(crate) const STATEMENT: Duration = Duration::from_secs(135);

/// The number of rows by table, without tables that have none. In the table of the counts, the sum
/// of the counts.
pub(crate) type TableRows = BTreeMap<String, u64>;

/// What a group of cases requires of its servers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) lease: Duration,
    /// The number of blocks of a table whose tokens it remembers.
    pub(crate) dedup_window: u64,
    /// Whether the cases crash servers.
    pub(crate) crashes: bool,
}

pub(crate) const STANDARD: Settings = Settings {
    lease: Duration::from_secs(60),
    dedup_window: 1_000,
    crashes: false,
};
pub(crate) const SHORT_LEASES: Settings = Settings {
    lease: Duration::from_secs(2),
    ..STANDARD
};
pub(crate) const SMALL_WINDOW: Settings = Settings {
    dedup_window: 3,
    ..STANDARD
};
pub(crate) const CRASHES: Settings = Settings {
    crashes: true,
    ..STANDARD
};

/// What the configurations of workers differ in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Configuration {
    strategy: Strategy,
    /// Whether [`words::ROUTED`] events are only looked for on their route.
    has_route: bool,
    max_line_bytes: u64,
}

impl Configuration {
    pub(crate) fn of(strategy: Strategy) -> Self {
        Self {
            strategy,
            has_route: true,
            max_line_bytes: 1 << 20,
        }
    }

    /// Returns one under which [`words::LONG`] is rejected, and [`words::ROUTED`] is unmatched in
    /// most objects.
    pub(crate) fn before_fix(strategy: Strategy) -> Self {
        Self {
            max_line_bytes: words::SHORT,
            ..Self::of(strategy)
        }
    }

    /// Returns one under which both are valid.
    pub(crate) fn fixed(strategy: Strategy) -> Self {
        Self {
            has_route: false,
            ..Self::of(strategy)
        }
    }
}

/// A bucket, and one server, or several replicas that share their tables. A replica has a number
/// from 0.
pub(crate) trait Servers: Sized {
    type Ledger: ReplayLedger;
    type Tables: ReplayTables;
    type Objects: ObjectStore;

    /// The number of lines that fill a block where an object is read in many.
    const BLOCK_LINES: usize;

    fn bucket(&self) -> &str;

    fn env(&self) -> &Env;

    fn replicas(&self) -> usize;

    /// Connects a worker of this name and configuration to a replica.
    fn connect_as(
        &self,
        worker: &str,
        replica: usize,
        configuration: Configuration,
    ) -> Worker<Self>;

    /// Stores an object, compressed as its key says. A reader of one that is cut short gets at most
    /// the first half of its lines.
    async fn upload(&self, key: &str, content: &[u8], is_cut: bool) -> ObjectMeta;

    async fn remove(&self, key: &str);

    /// Sets whether a kind of reader is denied access to a key.
    fn refuse(&self, key: &str, reader: Reader, refuses: bool);

    /// Sets whether S3 is unavailable to a kind of reader.
    fn set_unavailable(&self, reader: Reader, is_unavailable: bool);

    /// Sets whether the reads of objects by a server have to wait.
    fn hold_reads(&self, holds: bool);

    /// Returns the number of running statements of a batch.
    async fn running(&self, batch: BatchId) -> u64;

    /// Waits until a kill has reached the statements of a batch. They end then, or once their reads
    /// are not held any more.
    async fn wait_until_killed(&self, batch: BatchId);

    /// Creates a user's view on a table that throws for every row, or drops it.
    async fn set_throwing_view(&self, table: Option<&str>);

    /// Returns all rows of a batch, whichever replica shows them.
    async fn rows_of(&self, batch: BatchId) -> TableRows;

    /// Returns the next page of the rejects of the bucket, as the first replica shows them.
    async fn reject_page(&self, kind: RejectKind, after: Option<&LineKey>) -> Option<RejectPage>;

    /// Returns the recorded failures of objects of the bucket, by key: each as its class, a colon
    /// and the reason.
    async fn failures(&self) -> BTreeMap<String, String>;

    /// Sets whether a replica shows what others write.
    async fn set_lagging(&self, replica: usize, lags: bool);

    /// Returns whether the servers can be crashed.
    fn can_crash(&self) -> bool;

    async fn crash(&self, replica: usize);

    async fn restart(&self, replica: usize);

    fn connect_with(&self, worker: &str, replica: usize, strategy: Strategy) -> Worker<Self> {
        self.connect_as(worker, replica, Configuration::of(strategy))
    }

    /// Returns the selector of all rejects of the bucket.
    fn rejects(&self) -> RejectSelector {
        RejectSelector {
            prefix: Some(ObjectUrl {
                bucket: self.bucket().to_owned(),
                key: String::new(),
            }),
            ..RejectSelector::default()
        }
    }

    /// Connects a worker to the first replica.
    fn connect(&self, worker: &str) -> Worker<Self> {
        self.connect_with(worker, 0, Strategy::SinglePass)
    }

    /// Connects a worker to the last replica: another than the first, if there are several.
    fn connect_elsewhere(&self, worker: &str) -> Worker<Self> {
        self.connect_with(worker, self.replicas() - 1, Strategy::SinglePass)
    }

    fn is_replicated(&self) -> bool {
        self.replicas() > 1
    }

    /// Returns the object that an upload has made of a key.
    fn object(&self, key: &str, meta: &ObjectMeta) -> ObjectRef {
        ObjectRef::from(ObjectParts {
            bucket: self.bucket().to_owned(),
            key: key.to_owned(),
            etag: meta.etag.clone(),
            size: meta.size,
            ..ObjectParts::default()
        })
    }

    /// Uploads an object with these lines.
    async fn put(&self, key: &str, words: &[&str]) -> ObjectRef {
        let meta = self.upload(key, &words::lines(words), false).await;
        self.object(key, &meta)
    }

    /// Waits until the servers' clock shows another time, in milliseconds.
    async fn tick(&self) {
        let later = self.env().wall_clock() + Duration::from_millis(2);
        wait_for("the clock", BOUND, async || {
            Ok((self.env().wall_clock() > later).then_some(()))
        })
        .await;
    }
}

/// Returns rows by table.
pub(crate) fn rows<const N: usize>(rows: [(&str, u64); N]) -> TableRows {
    rows.map(|(table, rows)| (table.to_owned(), rows)).into()
}

/// Returns a planner of the event types of the cases.
pub(crate) fn planner(source: S3Source, database: &str, configuration: Configuration) -> Planner {
    let catalog = match configuration.has_route {
        true => words::catalog(),
        false => words::catalog_without_route(),
    };
    Planner::new(PlannerOptions {
        catalog,
        source,
        strategy: configuration.strategy,
        database: database.to_owned(),
        max_bytes: 128 << 20,
        max_line_bytes: configuration.max_line_bytes,
        times: TimeLimits::ANY,
        insert_timeout: INSERT_TIMEOUT,
    })
}
