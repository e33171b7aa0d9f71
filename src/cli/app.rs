//! The composition root: builds the parts of the commands from the configuration.
//!
//! Each part is built on demand, so that a command works even if something that it does not need is
//! missing or wrong.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use aws_config::SdkConfig;

use super::preflight::Preflight;
use super::topology::TopologyCheck;
use crate::Env;
use crate::batch::BatchLimits;
use crate::clickhouse::replicas::Topology;
use crate::clickhouse::{Access, Warehouse};
use crate::config::{
    Config, EventTypesConfig, NotificationsConfig, OnMissing, Problems, TableEngine, Unproven,
};
use crate::daemon;
use crate::daemon::core::Limits;
use crate::daemon::in_flight::VisibilityPolicy;
use crate::event_types::{Catalog, Problem, from_dir};
use crate::ledger::history::History;
use crate::ledger::{BATCHES_TABLE, FAILURES_TABLE, Ledger, LedgerTimes, OBJECTS_TABLE};
use crate::load::breaker::Breaker;
use crate::load::tables::ClickHouseTables;
use crate::load::{ANSWER_AFTER_TIMEOUT, LoadConfig, LoadParts, Loader};
use crate::notification::Envelopes;
use crate::notification::filter::Filter;
use crate::object::Compression;
use crate::queue::VISIBILITY_LIMIT;
use crate::queue::sqs::SqsQueue;
use crate::rejects::replay::Replayer;
use crate::s3::Store;
use crate::statements::ddl::{Engine, SchemaOptions, landing_names};
use crate::statements::insert::{Planner, PlannerOptions, Strategy, TimeLimits};
use crate::statements::s3_source::{S3Access, S3Source};
use crate::statements::select::Target;
use crate::telemetry::activity::Activity;
use crate::usage::{Recording, Usage};
use sluice_core::backoff::Backoff;

/// A configuration, and what all parts built from it share.
pub(super) struct App<'a> {
    pub(super) config: &'a Config,
    /// The environment that all parts share.
    pub(super) env: Env,
}

impl<'a> App<'a> {
    /// Creates the root for this configuration. No part is built yet.
    pub(super) fn from_config(config: &'a Config) -> Self {
        Self {
            config,
            env: Env::default(),
        }
    }

    /// Reads the event types that the configuration names.
    pub(super) fn catalog(&self) -> Result<Catalog, BadEventTypes> {
        match &self.config.event_types.dir {
            None => Ok(Catalog::builtin()),
            Some(directory) => from_dir(directory).map_err(BadEventTypes),
        }
    }

    /// Returns the built-in envelopes and those that the configuration declares.
    pub(super) fn envelopes(&self) -> anyhow::Result<Envelopes> {
        let Some(path) = &self.config.notifications.envelopes else {
            return Ok(Envelopes::default());
        };
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("notifications.envelopes: failed to read {shown}"))?;
        Envelopes::from_yaml(&text)
            .map_err(|problem| anyhow!("notifications.envelopes: {shown}: {problem}"))
    }

    /// Returns the filter that decides which announced objects are loaded.
    pub(super) fn notification_filter(&self) -> anyhow::Result<Filter> {
        let NotificationsConfig {
            events,
            include,
            exclude,
            envelopes: _,
        } = &self.config.notifications;
        Filter::new(events, include, exclude).map_err(anyhow::Error::msg)
    }

    /// Loads the settings and credentials of the AWS SDK's own chain.
    pub(super) async fn aws(&self) -> SdkConfig {
        let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest());
        if let Some(region) = &self.config.s3.region {
            loader = loader.region(aws_config::Region::new(region.clone()));
        }
        let timeouts = aws_config::timeout::TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            // Longer than a long poll, and bounded: a missing response must not block a receiver.
            .operation_attempt_timeout(self.config.queue.wait_time.get() + Duration::from_secs(15))
            .build();
        loader.timeout_config(timeouts).load().await
    }

    /// Returns the configured queue.
    pub(super) fn queue(&self, aws: &SdkConfig) -> Result<SqsQueue, Problems> {
        let url = self.config.queue.require_url()?;
        Ok(SqsQueue::at(aws, url))
    }

    fn access(&self) -> anyhow::Result<Access> {
        let clickhouse = &self.config.clickhouse;
        Ok(Access {
            url: clickhouse.url.clone(),
            user: clickhouse.user.clone(),
            password: clickhouse.password(),
            secrets: self.s3_access()?.secrets(),
            database: clickhouse.database.clone(),
            connect_timeout: clickhouse.connect_timeout.get(),
            query_timeout: clickhouse.query_timeout.get(),
            ca_file: clickhouse.ca_file.clone(),
            cluster: clickhouse.cluster.clone(),
            accept_unproven: clickhouse.unproven == Unproven::Accept,
            topology: match clickhouse.topology.as_str() {
                "auto" => Topology::Auto,
                "single" => Topology::Single,
                cluster => Topology::Cluster(cluster.to_owned()),
            },
        })
    }

    fn s3_access(&self) -> anyhow::Result<S3Access> {
        let access = self.config.s3.clickhouse_access.resolve();
        access.map_err(anyhow::Error::msg)
    }

    /// Returns a ClickHouse client with its own connections. Nothing is sent yet.
    pub(super) fn warehouse(&self) -> anyhow::Result<Warehouse> {
        Warehouse::connect(&self.access()?).context("failed to set up the ClickHouse client")
    }

    /// Returns the ledger, under the name of this process.
    pub(super) fn ledger(&self, warehouse: Warehouse) -> Ledger {
        self.ledger_of(worker_name(), warehouse)
    }

    /// Returns the ledger, under another name.
    pub(super) fn ledger_of(&self, worker: impl Into<String>, warehouse: Warehouse) -> Ledger {
        let times = LedgerTimes {
            lease: self.config.queue.visibility_timeout.get(),
            statement: self.config.clickhouse.insert_timeout.get() + ANSWER_AFTER_TIMEOUT,
        };
        Ledger::new(warehouse, worker, times, self.env.clone())
    }

    /// Starts recording what this process uses.
    pub(super) fn record_usage(&self, usage: Arc<Usage>, warehouse: Warehouse) -> Recording {
        Recording::start(usage, warehouse, worker_name())
    }

    /// Returns the history of the ledger, with its own connections.
    pub(super) fn history(&self) -> anyhow::Result<History> {
        Ok(History::new(self.warehouse()?))
    }

    /// Returns the options of the tables and views that `migrate` creates.
    pub(super) fn schema_options(&self) -> SchemaOptions {
        let clickhouse = &self.config.clickhouse;
        SchemaOptions {
            database: clickhouse.database.clone(),
            cluster: clickhouse.cluster.clone(),
            engine: match clickhouse.engine {
                TableEngine::Plain => Engine::Plain,
                TableEngine::Replicated => Engine::Replicated,
            },
            dedup_window: clickhouse.dedup_window,
            dedup_age: clickhouse.dedup_age.get(),
            views: self.config.load.strategy == Strategy::SinglePass,
            reject_ttl: clickhouse.reject_ttl.get(),
        }
    }

    /// Returns how long after its claim an insert may be retried, or `None` for plain tables, which
    /// forget a token only by the number of blocks. The rest of `clickhouse.dedup_age` is for the
    /// retry itself, which may take `clickhouse.insert_timeout`.
    fn max_retry_age(&self) -> Option<Duration> {
        let clickhouse = &self.config.clickhouse;
        match clickhouse.engine {
            TableEngine::Plain => None,
            TableEngine::Replicated => Some(clickhouse.dedup_age.get() * 4 / 5),
        }
    }

    /// Returns the tables that every load needs.
    fn needed_tables(&self, catalog: &Catalog) -> Vec<String> {
        let ledger = [OBJECTS_TABLE, BATCHES_TABLE, FAILURES_TABLE];
        let targets = Target::all(catalog);
        let tables = targets.iter().map(Target::table).chain(ledger);
        let single_pass = self.config.load.strategy == Strategy::SinglePass;
        let landings = single_pass.then(|| landing_names(catalog));
        let landings = landings.into_iter().flatten();
        tables.map(str::to_owned).chain(landings).collect()
    }

    /// Returns the preflight check, with its own connections.
    pub(super) fn preflight(&self, catalog: &Catalog) -> anyhow::Result<Preflight> {
        let clickhouse = &self.config.clickhouse;
        let tables = self.needed_tables(catalog);
        let warehouse = self.warehouse()?;
        let access = self.access()?;
        let topology = TopologyCheck::new(access, warehouse.clone(), &tables);
        Ok(Preflight::new(
            warehouse,
            tables,
            topology,
            clickhouse.unproven,
        ))
    }

    /// Returns the planner of the inserts. `region` is that of objects whose announcement names
    /// none.
    pub(super) fn planner(&self, catalog: Catalog, region: &str) -> anyhow::Result<Planner> {
        let config = self.config;
        let source = S3Source {
            endpoint: config.s3.clickhouse_endpoint.clone(),
            default_region: region.to_owned(),
            access: self.s3_access()?,
        };
        Ok(Planner::new(PlannerOptions {
            catalog,
            source,
            strategy: config.load.strategy,
            database: config.clickhouse.database.clone(),
            max_bytes: config.batch.max_bytes.bytes(),
            max_line_bytes: config.load.max_line_bytes.bytes(),
            times: self.time_limits(),
            insert_timeout: config.clickhouse.insert_timeout.get(),
        }))
    }

    /// Returns the range of plausible times.
    pub(super) fn time_limits(&self) -> TimeLimits {
        let EventTypesConfig {
            min_year,
            max_future,
            ..
        } = &self.config.event_types;
        let start = humantime::parse_rfc3339(&format!("{min_year}-01-01T00:00:00Z"));
        let start = start.expect("the configuration limits the year to 1970 to 2299");
        let start = start.duration_since(UNIX_EPOCH).unwrap_or_default();
        TimeLimits {
            start: start.as_secs(),
            max_future: max_future.get(),
        }
    }

    /// Returns the compressions whose objects may be loaded without proof that they are whole.
    pub(super) fn accept_unproven(&self) -> Vec<Compression> {
        let names = self.config.load.accept_unproven.iter();
        names.map(|name| Compression::of_extension(name)).collect()
    }

    /// Returns the backoff of requests to ClickHouse and S3.
    pub(super) fn load_backoff(&self) -> Backoff {
        Backoff {
            min: self.config.load.retry_backoff_min.get(),
            max: self.config.load.retry_backoff_max.get(),
        }
    }

    /// Returns the limits at which a batch is closed.
    pub(super) fn batch_limits(&self) -> BatchLimits {
        let batch = &self.config.batch;
        BatchLimits {
            window: batch.window.get(),
            flush_when_idle: batch.flush_when_idle,
            max_objects: batch.max_objects,
            max_bytes: batch.max_bytes.bytes(),
        }
    }

    /// Returns the tables that batches are inserted into.
    fn tables(&self, warehouse: Warehouse, planner: Planner) -> ClickHouseTables {
        ClickHouseTables::new(warehouse, planner, self.config.load.max_memory.bytes())
    }

    /// Returns the loader, which takes batches through the ledger protocol.
    pub(super) fn loader(
        &self,
        planner: Planner,
        warehouse: Warehouse,
        store: Store,
        breaker: Arc<Breaker>,
        activity: Arc<Activity>,
    ) -> Loader {
        let config = self.config;
        let load = LoadConfig {
            insert_timeout: config.clickhouse.insert_timeout.get(),
            retry: self.load_backoff(),
            max_rejected_ratio: config.load.max_rejected_ratio.get(),
            on_all_rejected: config.load.on_all_rejected,
            max_buffered_bytes: config.load.max_memory.bytes() / 3,
            fallback: config.load.fallback,
            stream_below: config.load.stream_below.bytes(),
            acknowledge_missing: config.load.on_missing == OnMissing::Acknowledge,
            accept_unproven: self.accept_unproven(),
            max_retry_age: self.max_retry_age(),
            max_later_batches: config.clickhouse.dedup_window / MAX_BLOCKS_OF_A_BATCH,
        };
        let parts = LoadParts {
            ledger: self.ledger(warehouse.clone()),
            tables: self.tables(warehouse, planner),
            store,
            breaker,
            activity,
            env: self.env.clone(),
        };
        Loader::new(load, parts)
    }

    /// Returns the options of the daemon.
    pub(super) fn daemon_options(&self) -> daemon::Options {
        let config = self.config;
        daemon::Options {
            limits: Limits {
                batch: self.batch_limits(),
                visibility: VisibilityPolicy {
                    timeout: config.queue.visibility_timeout.get(),
                    limit: VISIBILITY_LIMIT,
                    retry_min: config.queue.retry_backoff_min.get(),
                    retry_max: config.queue.retry_backoff_max.get(),
                },
                concurrency: config.load.concurrency,
                max_held: config.queue.max_held,
            },
            receivers: config.queue.receivers,
            wait_time: config.queue.wait_time.get(),
            grace_period: config.shutdown.grace_period.get(),
        }
    }

    /// Returns the replayer of rejects.
    pub(super) fn replayer(
        &self,
        catalog: Catalog,
        warehouse: Warehouse,
    ) -> anyhow::Result<Replayer> {
        // No region: nothing is read from S3.
        let planner = self.planner(catalog, "")?;
        Ok(Replayer {
            ledger: self.ledger(warehouse.clone()),
            tables: self.tables(warehouse, planner),
            env: self.env.clone(),
            timeout: self.config.clickhouse.insert_timeout.get(),
            max_retry_age: self.max_retry_age(),
        })
    }
}

/// The largest number of blocks that a batch adds to a table, one for each partition, unless it has
/// an object of many blocks.
const MAX_BLOCKS_OF_A_BATCH: u64 = 100;

/// Returns the SDK's region, or the one that S3 assumes if none is set.
pub(super) fn region(aws: &SdkConfig) -> &str {
    aws.region().map_or("us-east-1", |region| region.as_ref())
}

/// Returns the name of this process in the ledger.
fn worker_name() -> String {
    let host = std::env::var("HOSTNAME")
        .or_else(|_| std::fs::read_to_string("/etc/hostname").map(|name| name.trim().to_owned()))
        .unwrap_or_else(|_| "worker".to_owned());
    format!("{host}-{}", std::process::id())
}

/// Every problem of every declaration.
#[derive(Debug)]
pub(super) struct BadEventTypes(pub(super) Vec<Problem>);

impl std::fmt::Display for BadEventTypes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} problems in the declared event types", self.0.len())?;
        for problem in &self.0 {
            write!(f, "\n\n{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for BadEventTypes {}
