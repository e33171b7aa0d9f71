//! `sluice types`

mod check;
mod content;
mod infer;
mod list;
mod preview;
mod sample;

use clap::Subcommand;

use self::check::Check;
use self::infer::Infer;
use self::list::List;
use self::preview::Preview;
use super::app::App;
use super::output::Output;
use super::print;
use crate::{event_types, formats};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the declared event types and their tables, and the declared formats
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show the rows that the records of a file or an object would become
    ///
    /// ClickHouse runs the SELECTs of a load, and writes nothing. The output shows the table of
    /// each record, the values of its columns, why a record would be rejected, and in how many
    /// records a column has no value or an invalid one.
    Preview(Preview),
    /// Print declarations for a sample of records, with the evidence as comments
    ///
    /// Reads JSON, CSV and TSV, plain or compressed with gzip or zstd, from files or from S3.
    /// ClickHouse is not needed. What is printed loads the sample without a reject; review it
    /// before you use it.
    Infer(Infer),
    /// Check all declarations of a directory, and report all problems with their lines
    ///
    /// ClickHouse is not needed; `sluice migrate --dry-run` has it check expressions, too. Exits
    /// with 2 if there are problems.
    Check(Check),
    /// Print the JSON schema of a declaration, for editors
    Schema {
        /// That of `formats.yaml`
        #[arg(long)]
        formats: bool,
    },
}

pub(super) async fn run(app: &App<'_>, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List { output } => output.show(&List::of(&app.catalog()?)),
        Command::Preview(arguments) => preview::run(app, arguments).await,
        Command::Infer(arguments) => infer::run(app, arguments).await,
        Command::Check(arguments) => check::run(app, arguments),
        Command::Schema { formats } => schema(*formats),
    }
}

/// Prints a schema. It loads no configuration, and so works with an invalid one.
pub(super) fn schema(of_formats: bool) -> anyhow::Result<()> {
    let schema = if of_formats {
        formats::json_schema()
    } else {
        event_types::json_schema()
    };
    print(&serde_json::to_string_pretty(&schema)?)
}
