//! The command line: one file a subcommand. This is where the parts are put together.

mod backfill;
mod check;
mod classes;
mod config;
mod dlq;
mod forget;
mod health;
mod migrate;
mod moment;
mod output;
mod preflight;
mod reconcile;
mod rejects;
mod retry;
mod run;
mod selection;
mod status;
mod stop;
mod survey;
mod topology;
mod types;
mod worker;

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use aws_config::SdkConfig;
use clap::{Parser, Subcommand};
use tracing::error;

use crate::Env;
use crate::batch::BatchLimits;
use crate::clickhouse::{Access, Warehouse};
use crate::config::{
    BatchConfig, Config, EventTypesConfig, NotificationsConfig, OnMissing, Problems, Sources,
    process_environment,
};
use crate::event_types::Catalog;
use crate::ledger::Ledger;
use crate::load::bounds::Bounds;
use crate::load::breaker::Breaker;
use crate::load::empty_columns::EmptyColumns;
use crate::load::fallback::Fallbacks;
use crate::load::truncation::Truncations;
use crate::load::views::Views;
use crate::load::{LoadLimits, Loader};
use crate::notification::Envelopes;
use crate::notification::filter::Filter;
use crate::object::Compression;
use crate::s3::Store;
use crate::statements::insert::{Planner, TimeLimits};
use crate::statements::s3_source::{S3Access, S3Source};
use crate::statements::select::Target;
use crate::telemetry::end_logging;
use sluice_core::backoff::Backoff;

/// Loads S3 objects into ClickHouse, once each, as SQS announces them.
///
/// A bucket announces each new object in an SQS queue. Sluice gathers the keys into batches, has
/// ClickHouse read the objects itself into one table per event type, and deletes a message only
/// when all its objects are loaded.
#[derive(Parser)]
#[command(
    name = "sluice",
    version,
    after_help = "Start with:  sluice config show      what is in force, and from where to change it\n             \
                  sluice migrate          make the tables\n             \
                  sluice check            is everything there that it needs?\n             \
                  sluice run              load\n\n\
                  Every field can come from --config FILE, from a variable such as \
                  SLUICE__QUEUE__URL, or from --set queue.url=…; later ones win. AWS credentials, \
                  region and AWS_ENDPOINT_URL come from the environment, as with every AWS tool.\n\n\
                  Exit codes: 0 done; 1 failed; 2 the command line or the configuration is wrong; \
                  3 some objects are not loaded (backfill, reconcile); \
                  130 stopped at once by a second signal."
)]
struct Cli {
    /// Configuration file (YAML); `sluice config schema` describes it
    #[arg(long, global = true, value_name = "FILE", env = "SLUICE_CONFIG")]
    config: Option<PathBuf>,

    /// One field, over file and environment, such as --set batch.window=5s (can be repeated)
    #[arg(long = "set", global = true, value_name = "PATH=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, String)>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load objects as the queue announces them, until told to stop
    ///
    /// SIGTERM or Ctrl-C: batches in flight are finished within `shutdown.grace_period`, the rest
    /// goes back to the queue at once. A second signal exits at once; nothing is lost by that.
    Run,
    /// Load what a bucket has already, beside the workers
    ///
    /// Lists the bucket, and loads what the ledger does not know as loaded: nothing is loaded twice,
    /// whatever workers do meanwhile. Killed or stopped, it is resumed by running it again.
    Backfill(backfill::Arguments),
    /// Check everything that `run` needs: queue, S3, ClickHouse, tables
    ///
    /// Says of each what is wrong and what to do. Receives no message and writes to no table of
    /// yours: what it loads to see whether a repeated insert is recognised goes into scratch
    /// tables, which it drops. Exits with 1 where something fails.
    Check(check::Arguments),
    /// Make the database, tables and views that the event types declare
    ///
    /// Safe to run again, and by several at once.
    Migrate(migrate::Arguments),
    /// Show how the queue and the workers do, what failed, or what became of an object
    ///
    /// Reads the ledger and the queue's attributes; receives nothing.
    Status(status::Arguments),
    /// Ask the worker of this configuration whether its event loop turns
    ///
    /// For health checks where there is no other client: /healthz at `admin.listen`.
    Health,
    /// List the declared event types, or preview what would become of lines
    #[command(subcommand)]
    Types(types::Command),
    /// Compare a bucket with the ledger: what is not loaded, and why
    ///
    /// Lists the bucket and loads nothing. With --enqueue, what is not loaded is announced again.
    Reconcile(reconcile::Arguments),
    /// Put objects that failed on the queue again
    ///
    /// They are announced as S3 announced them, and take the way of all others. What is loaded by
    /// then is recognised and not loaded twice. Objects that would fail again are skipped, unless
    /// they are named or chosen by --error-class: those that are still missing, and those of the
    /// classes unloadable, rejected and unnameable that S3 has unchanged.
    Retry(retry::Arguments),
    /// Dismiss objects that failed: stop listing and retrying them
    ///
    /// They appear no more in `status --failed` and in `retry --all`, until they fail again. Neither
    /// the objects nor their messages are touched.
    Forget(forget::Arguments),
    /// List, send again or archive the messages of the dead-letter queue
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// List, show or replay the lines that became no row
    ///
    /// A line that cannot become a row (`rejected`), or that no event type takes (`unmatched`), is
    /// kept for `clickhouse.reject_ttl`.
    #[command(subcommand)]
    Rejects(rejects::Command),
    /// Show the configuration in force, or its schema
    #[command(subcommand)]
    Config(config::Command),
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((path, value)) if !path.is_empty() => Ok((path.to_owned(), value.to_owned())),
        _ => Err("write it as PATH=VALUE, such as batch.window=5s".to_owned()),
    }
}

const USAGE: u8 = 2;
const INCOMPLETE: u8 = 3;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code =
                if error.is::<Problems>() || error.is::<BadEventTypes>() || error.is::<Misuse>() {
                    USAGE
                } else if error.is::<Incomplete>() {
                    INCOMPLETE
                } else {
                    1
                };
            if tracing::dispatcher::has_been_set() {
                error!("{error:#}");
            } else {
                complain(&error);
            }
            ExitCode::from(code)
        }
    };
    end_logging();
    code
}

/// Says why the command failed.
fn complain(error: &anyhow::Error) {
    note(&format!("error: {error:#}"));
}

/// Says something beside the result. Where standard error cannot be written to, nobody reads it.
fn note(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Prints what a command was asked for. A reader that stops reading, as `head` does, is no error.
///
/// # Errors
///
/// Any other error of standard output.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("the result cannot be written to standard output")
        }
        _ => Ok(()),
    }
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let sources = Sources {
        file: cli.config,
        env: process_environment(),
        flags: cli.settings,
    };
    if let Command::Config(config::Command::Schema) = cli.command {
        return config::schema();
    }
    let config = Config::load(sources)?;
    let runtime = tokio::runtime::Runtime::new().context("the async runtime did not start")?;
    match cli.command {
        Command::Run => runtime.block_on(run::run(&config)),
        Command::Backfill(arguments) => runtime.block_on(backfill::run(&config, &arguments)),
        Command::Check(arguments) => runtime.block_on(check::run(&config, &arguments)),
        Command::Migrate(arguments) => runtime.block_on(migrate::run(&config, &arguments)),
        Command::Status(arguments) => runtime.block_on(status::run(&config, &arguments)),
        Command::Health => runtime.block_on(health::run(&config)),
        Command::Types(command) => runtime.block_on(types::run(&config, &command)),
        Command::Reconcile(arguments) => runtime.block_on(reconcile::run(&config, &arguments)),
        Command::Retry(arguments) => runtime.block_on(retry::run(&config, &arguments)),
        Command::Forget(arguments) => runtime.block_on(forget::run(&config, &arguments)),
        Command::Dlq(command) => runtime.block_on(dlq::run(&config, &command)),
        Command::Rejects(command) => runtime.block_on(rejects::run(&config, &command)),
        Command::Config(command) => config::run(&config, &command),
    }
}

/// The event types that the configuration names.
fn catalog(config: &Config) -> Result<Catalog, BadEventTypes> {
    match &config.event_types.dir {
        None => Ok(Catalog::builtin()),
        Some(directory) => crate::event_types::from_dir(directory).map_err(BadEventTypes),
    }
}

/// The command did what it could, and some objects are not loaded.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Incomplete(String);

/// Options that do not go together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misuse(&'static str);

/// Every problem of every declaration.
#[derive(Debug)]
struct BadEventTypes(Vec<crate::event_types::Problem>);

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

fn access(config: &Config) -> anyhow::Result<Access> {
    let clickhouse = &config.clickhouse;
    Ok(Access {
        url: clickhouse.url.clone(),
        user: clickhouse.user.clone(),
        password: clickhouse.password(),
        secrets: s3_access(config)?.secrets(),
        database: clickhouse.database.clone(),
        connect_timeout: clickhouse.connect_timeout.get(),
        query_timeout: clickhouse.query_timeout.get(),
        ca_file: clickhouse.ca_file.clone(),
        cluster: clickhouse.cluster.clone(),
    })
}

fn warehouse(config: &Config) -> anyhow::Result<Warehouse> {
    Warehouse::connect(&access(config)?).context("ClickHouse cannot be set up")
}

/// This process, as the ledger names it.
fn worker_name() -> String {
    let host = std::env::var("HOSTNAME")
        .or_else(|_| std::fs::read_to_string("/etc/hostname").map(|name| name.trim().to_owned()))
        .unwrap_or_else(|_| "worker".to_owned());
    format!("{host}-{}", std::process::id())
}

fn s3_access(config: &Config) -> anyhow::Result<S3Access> {
    let access = config.s3.clickhouse_access.resolve();
    access.map_err(anyhow::Error::msg)
}

fn planner(config: &Config, catalog: Catalog, region: &str) -> anyhow::Result<Planner> {
    let source = S3Source {
        endpoint: config.s3.clickhouse_endpoint.clone(),
        default_region: region.to_owned(),
        access: s3_access(config)?,
    };
    Ok(Planner {
        catalog,
        source,
        strategy: config.load.strategy,
        database: config.clickhouse.database.clone(),
        max_bytes: config.batch.max_bytes.bytes(),
        max_line_bytes: config.load.max_line_bytes.bytes(),
        times: time_limits(config),
        insert_timeout: config.clickhouse.insert_timeout.get(),
    })
}

fn time_limits(config: &Config) -> TimeLimits {
    let EventTypesConfig {
        min_year,
        max_future,
        ..
    } = &config.event_types;
    let start = humantime::parse_rfc3339(&format!("{min_year}-01-01T00:00:00Z"));
    let start = start.expect("its range is checked");
    let start = start.duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeLimits {
        start: start.as_secs(),
        max_future: max_future.get(),
    }
}

/// What takes batches through the ledger protocol.
fn loader(
    config: &Config,
    planner: Planner,
    warehouse: Warehouse,
    aws: &SdkConfig,
    breaker: Arc<Breaker>,
) -> Loader {
    let bounds = Bounds::new(
        config.batch.max_bytes.bytes(),
        config.load.max_memory.bytes(),
        Target::all(&planner.catalog).len(),
    );
    Loader {
        ledger: ledger(config, warehouse.clone()),
        warehouse,
        planner,
        breaker,
        limits: LoadLimits {
            insert_timeout: config.clickhouse.insert_timeout.get(),
            retry: load_backoff(config),
            max_rejected_ratio: config.load.max_rejected_ratio.get(),
        },
        bounds,
        store: Store::new(aws),
        fallback: config.load.fallback,
        fallbacks: Fallbacks::default(),
        stream_below: config.load.stream_below.bytes(),
        accept_unproven: accept_unproven(config),
        truncations: Truncations::default(),
        empty_columns: EmptyColumns::default(),
        successes: AtomicU64::new(0),
        views: Views::default(),
        activity: Arc::default(),
        env: Env::default(),
        deletions: tokio::sync::Mutex::default(),
        acknowledge_missing: config.load.on_missing == OnMissing::Acknowledge,
    }
}

/// The pauses of whatever waits for ClickHouse or S3.
fn load_backoff(config: &Config) -> Backoff {
    Backoff {
        min: config.load.retry_backoff_min.get(),
        max: config.load.retry_backoff_max.get(),
    }
}

fn batch_limits(batch: &BatchConfig) -> BatchLimits {
    BatchLimits {
        window: batch.window.get(),
        flush_when_idle: batch.flush_when_idle,
        max_objects: batch.max_objects,
        max_bytes: batch.max_bytes.bytes(),
    }
}

fn ledger(config: &Config, warehouse: Warehouse) -> Ledger {
    Ledger::new(
        warehouse,
        worker_name(),
        config.queue.visibility_timeout.get(),
        Env::default(),
    )
}

/// Returns the envelopes that are declared beside those that are known.
fn envelopes(config: &Config) -> anyhow::Result<Envelopes> {
    let Some(path) = &config.notifications.envelopes else {
        return Ok(Envelopes::default());
    };
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("notifications.envelopes: {shown} cannot be read"))?;
    Envelopes::from_yaml(&text)
        .map_err(|problem| anyhow!("notifications.envelopes: {shown}: {problem}"))
}

/// What is to be loaded of what is announced.
fn notification_filter(config: &Config) -> anyhow::Result<Filter> {
    let NotificationsConfig {
        events,
        include,
        exclude,
        envelopes: _,
    } = &config.notifications;
    Filter::new(events, include, exclude).map_err(anyhow::Error::msg)
}

/// Objects that may be loaded without proof that they are whole.
fn accept_unproven(config: &Config) -> Vec<Compression> {
    let names = config.load.accept_unproven.iter();
    names.map(|name| Compression::of_extension(name)).collect()
}

/// The AWS SDK's own chain of settings and credentials.
async fn aws(config: &Config) -> SdkConfig {
    let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest());
    if let Some(region) = &config.s3.region {
        loader = loader.region(aws_config::Region::new(region.clone()));
    }
    let timeouts = aws_config::timeout::TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        // A long poll takes its time, and an answer that never comes must not hold a receiver.
        .operation_attempt_timeout(config.queue.wait_time.get() + Duration::from_secs(15))
        .build();
    loader.timeout_config(timeouts).load().await
}
