//! The command line, with one file for each subcommand. `app` builds the parts that they use.

mod app;
mod backfill;
mod check;
mod classes;
mod config;
mod cost;
mod dlq;
mod forget;
mod health;
mod listing_with_status;
mod migrate;
mod output;
mod preflight;
mod reconcile;
mod rejects;
mod repair;
mod retry;
mod run;
mod selection;
mod status;
mod stop;
mod time_argument;
mod topology;
mod types;
mod verify;
mod worker;

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tracing::error;

use self::app::{App, BadEventTypes};
use crate::config::{Config, Problems, Sources, process_environment};
use crate::telemetry::end_logging;

/// Load S3 objects into ClickHouse, once each, as SQS announces them
///
/// A bucket announces each new object in an SQS queue. Sluice collects the keys into batches, has
/// ClickHouse read the objects itself into one table per event type, and deletes a message only
/// when all its objects are loaded.
#[derive(Parser)]
#[command(
    name = "sluice",
    version,
    after_help = "Start with:  sluice config show      print the effective configuration\n             \
                  sluice migrate          create the tables\n             \
                  sluice check            verify that all prerequisites are in place\n             \
                  sluice run              load objects\n\n\
                  Each field can be set in --config FILE, in a variable such as \
                  SLUICE__QUEUE__URL, or with --set queue.url=…; later ones win. AWS credentials, \
                  region and AWS_ENDPOINT_URL come from the environment, as with other AWS tools.\n\n\
                  Exit codes: 0 done; 1 failed; 2 invalid command line or configuration; \
                  3 some objects are not loaded, or not repaired (backfill, reconcile, repair); \
                  4 the tables lack or duplicate rows (verify); 130 ended by a second signal."
)]
struct Cli {
    /// Configuration file (YAML); `sluice config schema` describes it
    #[arg(long, global = true, value_name = "FILE", env = "SLUICE_CONFIG")]
    config: Option<PathBuf>,

    /// Set one field, overriding file and environment, such as batch.window=5s (can be repeated)
    #[arg(long = "set", global = true, value_name = "PATH=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, String)>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load objects as the queue announces them, until stopped
    ///
    /// On SIGTERM or Ctrl-C, the worker finishes the batches in flight within
    /// `shutdown.grace_period`, and returns all other messages to the queue. A second signal ends
    /// the process at once; no data is lost.
    Run,
    /// Load the existing objects of a bucket
    ///
    /// Lists the bucket, and loads every object that the ledger does not record as loaded. It can
    /// run while workers do: no object is loaded twice. If it is interrupted, run it again to
    /// resume.
    Backfill(backfill::Arguments),
    /// Check everything that `run` needs: queue, S3, ClickHouse, tables
    ///
    /// Reports each problem and what to do about it. It receives no messages, and writes only to
    /// scratch tables, which it uses to check that repeated inserts are dropped, and then removes.
    /// Exits with 1 if a check fails.
    Check(check::Arguments),
    /// Create or update the database, tables and views that the event types declare
    ///
    /// Safe to run again, and concurrently.
    Migrate(migrate::Arguments),
    /// Show queue and worker status, failed objects, or one object's history
    ///
    /// Reads the ledger and the queue's attributes; receives no messages.
    Status(status::Arguments),
    /// Check that the worker's event loop is running
    ///
    /// Requests /healthz at `admin.listen`, for health checks in containers that have no HTTP
    /// client.
    Health,
    /// Declare event types: infer them from a sample, check, list and preview them
    #[command(subcommand)]
    Types(types::Command),
    /// Compare a bucket with the ledger, and show which objects are not loaded
    ///
    /// Shows the reason for each object. Loads nothing; with --enqueue, announces these objects to
    /// the queue again.
    Reconcile(reconcile::Arguments),
    /// Compare the tables with the ledger, and show which rows are missing or duplicated, and why
    ///
    /// Tells rows that are lost or duplicated apart from those that were merged, expired or deleted
    /// on purpose. Writes nothing. With --output json, prints one finding per line, which `repair
    /// --from` reads. Exits with 4 if something must be repaired.
    Verify(verify::Arguments),
    /// Show what would repair objects and why, and do it with --yes
    ///
    /// Verifies the objects first, whatever was found earlier. Runs what `retry`, `dlq redrive`,
    /// `reconcile --enqueue` or `backfill --force` would do, or deletes rows of released batches.
    /// Rows that were merged, expired or deleted on purpose are never brought back.
    Repair(repair::Arguments),
    /// Announce failed objects to the queue again
    ///
    /// Sends S3-style notifications, which are processed like any others. Objects that have been
    /// loaded since are recognised and not loaded twice. Objects that would fail again are skipped,
    /// unless they are named or selected by --error-class: objects that are still missing, and
    /// objects of the classes unloadable, rejected and unnameable whose content in S3 is unchanged.
    Retry(retry::Arguments),
    /// Dismiss failed objects: stop listing and retrying them
    ///
    /// They are left out of `status --failed` and `retry --all` until they fail again. Neither the
    /// objects nor their messages are changed.
    Forget(forget::Arguments),
    /// List, redrive or archive the messages of the dead-letter queue
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// List, show or replay rejects: lines that did not become rows
    ///
    /// A line that cannot become a row (`rejected`), or that no event type matches (`unmatched`),
    /// is kept for `clickhouse.reject_ttl`.
    #[command(subcommand)]
    Rejects(rejects::Command),
    /// Show what loading has used and costs, by day and event type
    ///
    /// Counts requests to SQS and S3, bytes read and processor time: those of workers and backfills
    /// as they have recorded them in `worker_usage`, those of ClickHouse from `system.query_log`. A
    /// table of prices, which can be edited, turns them into an estimate of their cost.
    Cost(cost::Arguments),
    /// Show the effective configuration, or its schema
    #[command(subcommand)]
    Config(config::Command),
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((path, value)) if !path.is_empty() => Ok((path.to_owned(), value.to_owned())),
        _ => Err("must be PATH=VALUE, such as batch.window=5s".to_owned()),
    }
}

const USAGE: u8 = 2;
const INCOMPLETE: u8 = 3;
const FINDINGS: u8 = 4;

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
                } else if error.is::<Findings>() {
                    FINDINGS
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

/// Prints why the command failed to standard error.
fn complain(error: &anyhow::Error) {
    note(&format!("error: {error:#}"));
}

/// Prints a note to standard error. If that cannot be written to, nobody reads it.
fn note(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Prints the result of a command. A reader that stops reading, as `head` does, is not an error.
///
/// # Errors
///
/// Returns any other error of standard output.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("failed to write the result to standard output")
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
    if let Command::Types(types::Command::Schema { formats }) = cli.command {
        return types::schema(formats);
    }
    let config = Config::load(sources)?;
    let app = App::from_config(&config);
    let runtime = tokio::runtime::Runtime::new().context("failed to start the async runtime")?;
    match cli.command {
        Command::Run => runtime.block_on(run::run(&app)),
        Command::Backfill(arguments) => runtime.block_on(backfill::run(&app, &arguments)),
        Command::Check(arguments) => runtime.block_on(check::run(&app, &arguments)),
        Command::Migrate(arguments) => runtime.block_on(migrate::run(&app, &arguments)),
        Command::Status(arguments) => runtime.block_on(status::run(&app, &arguments)),
        Command::Health => runtime.block_on(health::run(&app)),
        Command::Types(command) => runtime.block_on(types::run(&app, &command)),
        Command::Reconcile(arguments) => runtime.block_on(reconcile::run(&app, &arguments)),
        Command::Verify(arguments) => runtime.block_on(verify::run(&app, &arguments)),
        Command::Repair(arguments) => runtime.block_on(repair::run(&app, &arguments)),
        Command::Retry(arguments) => runtime.block_on(retry::run(&app, &arguments)),
        Command::Forget(arguments) => runtime.block_on(forget::run(&app, &arguments)),
        Command::Dlq(command) => runtime.block_on(dlq::run(&app, &command)),
        Command::Rejects(command) => runtime.block_on(rejects::run(&app, &command)),
        Command::Cost(arguments) => runtime.block_on(cost::run(&app, &arguments)),
        Command::Config(command) => config::run(&app, &command),
    }
}

/// The tables do not have the rows that were loaded.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Findings(String);

/// The command did what it could, but some objects are not loaded.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Incomplete(String);

/// Options that cannot be combined.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misuse(&'static str);
