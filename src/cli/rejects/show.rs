//! `sluice rejects show`

use std::fmt;

use serde::Serialize;

use crate::cli::output::{Output, shown};
use crate::object::ObjectUrl;
use crate::rejects::{Line, Rejects, SHOWN_BYTES};

#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Object whose rejects to show, such as s3://bucket/key
    #[arg(value_name = "S3-URL")]
    object: ObjectUrl,

    /// Show at most COUNT lines
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: u64,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(rejects: &Rejects, arguments: &Arguments) -> anyhow::Result<()> {
    let whole = arguments.output.is_json();
    let lines = rejects.of_object(&arguments.object, whole, arguments.limit);
    arguments.output.show(&Shown {
        object: arguments.object.to_string(),
        lines: lines.await?,
    })
}

#[derive(Serialize)]
struct Shown {
    object: String,
    lines: Vec<Line>,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = shown(&self.object);
        if self.lines.is_empty() {
            return writeln!(f, "no rejects of {object}");
        }
        writeln!(f, "{object}")?;
        for line in &self.lines {
            let Line {
                row_number,
                reason,
                value,
                ..
            } = line;
            write!(f, "  row {row_number}: {}", shown(reason))?;
            if let Some(value) = value {
                write!(f, ": \"{}\"", shown(value))?;
            }
            writeln!(f)?;
            write!(f, "    {}", shown(&line.start))?;
            if line.bytes > SHOWN_BYTES {
                write!(f, "… ({} bytes)", line.bytes)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
