//! `sluice types check`: all problems of all declarations of a directory.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::app::{App, BadEventTypes};
use crate::cli::output::Output;
use crate::event_types::{Catalog, Position, Problem, from_dir};

#[derive(clap::Args)]
pub(in crate::cli) struct Check {
    /// Directory with the declarations [default: that of `event_types.dir`]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,

    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Checked {
    event_types: usize,
    formats: usize,
    problems: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    file: String,
    /// `null` if the problem is that of the file as a whole.
    line: Option<usize>,
    column: Option<usize>,
    /// The place in the declaration, such as `columns[3].type`.
    at: String,
    message: String,
}

impl From<Problem> for Found {
    fn from(problem: Problem) -> Self {
        let position = problem.position;
        Self {
            line: position.map(|Position { line, .. }| line),
            column: position.map(|Position { column, .. }| column),
            file: problem.file,
            at: problem.at,
            message: problem.message,
        }
    }
}

pub(super) fn run(app: &App<'_>, arguments: &Check) -> anyhow::Result<()> {
    let checked = match &arguments.directory {
        Some(directory) => from_dir(directory),
        None => app.catalog().map_err(|BadEventTypes(problems)| problems),
    };
    match checked {
        Ok(catalog) => arguments.output.show(&Checked::of(&catalog)),
        Err(mut problems) => {
            problems.sort_by(|one, other| {
                (&one.file, one.position).cmp(&(&other.file, other.position))
            });
            if arguments.output.is_json() {
                let problems = problems.iter().cloned().map(Found::from).collect();
                arguments.output.show(&Checked {
                    event_types: 0,
                    formats: 0,
                    problems,
                })?;
            }
            Err(BadEventTypes(problems).into())
        }
    }
}

impl Checked {
    fn of(catalog: &Catalog) -> Self {
        Self {
            event_types: catalog.types().len(),
            formats: catalog.formats().declared().len(),
            problems: Vec::new(),
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            event_types,
            formats,
            ..
        } = self;
        writeln!(
            f,
            "no problems in {event_types} event types and {formats} formats"
        )
    }
}
