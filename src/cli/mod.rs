//! The command line: one file a subcommand. `app` puts the parts together.

mod app;
mod backfill;
mod check;
mod classes;
mod config;
mod dlq;
mod forget;
mod health;
mod listing_with_status;
mod migrate;
mod output;
mod preflight;
mod reconcile;
mod rejects;
mod retry;
mod run;
mod selection;
mod status;
mod stop;
mod time_argument;
mod topology;
mod types;
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
    let app = App::from_config(&config);
    let runtime = tokio::runtime::Runtime::new().context("the async runtime did not start")?;
    match cli.command {
        Command::Run => runtime.block_on(run::run(&app)),
        Command::Backfill(arguments) => runtime.block_on(backfill::run(&app, &arguments)),
        Command::Check(arguments) => runtime.block_on(check::run(&app, &arguments)),
        Command::Migrate(arguments) => runtime.block_on(migrate::run(&app, &arguments)),
        Command::Status(arguments) => runtime.block_on(status::run(&app, &arguments)),
        Command::Health => runtime.block_on(health::run(&app)),
        Command::Types(command) => runtime.block_on(types::run(&app, &command)),
        Command::Reconcile(arguments) => runtime.block_on(reconcile::run(&app, &arguments)),
        Command::Retry(arguments) => runtime.block_on(retry::run(&app, &arguments)),
        Command::Forget(arguments) => runtime.block_on(forget::run(&app, &arguments)),
        Command::Dlq(command) => runtime.block_on(dlq::run(&app, &command)),
        Command::Rejects(command) => runtime.block_on(rejects::run(&app, &command)),
        Command::Config(command) => config::run(&app, &command),
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
