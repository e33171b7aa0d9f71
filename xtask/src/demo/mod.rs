//! `cargo xtask demo`: the whole path from ordinary PUTs to rows, and a comparison at the end.

pub(crate) mod daemon;
mod report;
mod tables;
mod upload;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use sluice_testkit::xapi::EventType;
use sluice_testkit::{Site, Stack};

use crate::console::{note, print};
use crate::interrupt::Interrupt;
use daemon::Daemon;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Number of objects to upload
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..))]
    objects: u64,
    /// Objects per second [default: unlimited]
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Keep everything running afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Build Sluice with optimisations
    #[arg(long)]
    release: bool,
    /// Run this Sluice binary instead of building one
    #[arg(long, value_name = "PATH", conflicts_with = "release")]
    sluice: Option<PathBuf>,
    /// Seed of the generated data
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 => Ok(rate),
        _ => Err(String::from("must be a number above 0")),
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let binary = match &arguments.sluice {
        Some(binary) => binary.clone(),
        None if arguments.release => crate::build::release("sluice")?,
        None => crate::build::sluice()?,
    };
    let stack = Stack::connect_or_start()?;
    let mut interrupt = Interrupt::new()?;
    let site = stack.site("demo").await?;
    // Dropped before the stack, so that Sluice can return its messages during a clean shutdown.
    let mut daemon = Daemon::start(&binary, &stack, &site).await?;
    tokio::select! {
        outcome = upload_and_compare(&arguments, &stack, &site, &mut daemon) => {
            let is_equal = match outcome {
                Ok(is_equal) => is_equal,
                Err(error) => return Err(daemon.explain(error)),
            };
            if arguments.keep {
                describe(&stack, &site, &daemon);
                interrupt.wait().await;
            }
            Ok(if is_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        () = interrupt.wait() => {
            note("interrupted");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Returns whether all rows match the generated data.
async fn upload_and_compare(
    arguments: &Arguments,
    stack: &Stack,
    site: &Site,
    daemon: &mut Daemon,
) -> Result<bool> {
    let started = Instant::now();
    let uploads = Arc::new(upload::Uploads::default());
    let tasks = upload::start(
        Arc::clone(&uploads),
        site,
        upload::Plan {
            objects: arguments.objects,
            rate: arguments.rate,
            seed: arguments.seed,
        },
    );
    watch::wait_until_loaded(arguments, stack, site, daemon, &uploads, tasks).await?;
    let elapsed = started.elapsed();
    report::print_report(stack, site, &uploads, elapsed).await
}

fn describe(stack: &Stack, site: &Site, daemon: &Daemon) {
    let database = &site.database;
    print("");
    crate::stack::describe(stack);
    print(&format!("# Sluice metrics   {}", daemon.metrics_url()));
    print(&format!("# bucket           {}", site.bucket));
    print(&format!("# queue            {}", site.queue_url));
    print(&format!(
        "# configuration    {}",
        daemon.configuration().display()
    ));
    print(&format!("# log              {}", daemon.log().display()));
    print("# try:");
    for query in [
        format!(
            "SELECT section_id, count(), avg(score / out_of) FROM {database}.{} GROUP BY section_id",
            EventType::PartAttempt.table()
        ),
        format!("SELECT reason, count() FROM {database}.rejected_lines GROUP BY reason"),
        format!("SELECT * FROM {database}.object_rows LIMIT 10 FORMAT Vertical"),
    ] {
        print(&format!(
            "curl '{}' --data-binary \"{query}\"",
            stack.clickhouse.url()
        ));
    }
    note("press Ctrl-C to stop");
}
