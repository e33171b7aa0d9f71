//! `sluice types infer`: declarations for a sample of records.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, anyhow, bail, ensure};
use serde::Serialize;
use sluice_core::infer::{self, By, File, Options, Source};

use super::sample::{Sample, sample};
use crate::cli::app::{App, BadEventTypes};
use crate::cli::output::Output;
use crate::config::HumanSize;
use crate::event_types::Path;

#[derive(clap::Args)]
pub(in crate::cli) struct Infer {
    /// Files, `-` for standard input, or prefixes such as s3://bucket/clicks/
    #[arg(required = true, value_name = "FILE|S3-URL")]
    pub(super) sources: Vec<String>,

    /// Read at most COUNT files or objects, evenly spaced among those of a prefix
    #[arg(long, value_name = "COUNT", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub(super) files: u64,

    /// Read at most SIZE of each, from its beginning
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    pub(super) bytes: HumanSize,

    /// Examine at most COUNT records, evenly spaced among those that are read
    #[arg(long, value_name = "COUNT", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=100_000))]
    records: u64,

    /// Tell event types apart by this field, such as `verb.id`
    ///
    /// Without it, the field is used whose value determines best which other fields there are. A
    /// key with dots is written in a JSON list: '["verb", "a.b"]'.
    #[arg(long, value_name = "FIELD", value_parser = field)]
    by: Option<Path>,

    /// Declare one event type for all records
    #[arg(long, conflicts_with = "by")]
    one: bool,

    /// Name of the event type, if there is one, and of the format [default: from the source]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Write each declaration to a file in DIR, which must not have it yet
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,

    #[command(flatten)]
    output: Output,
}

/// Parses a path: keys with dots between them, or a JSON list of keys.
fn field(text: &str) -> Result<Path, String> {
    let path = if text.starts_with('[') {
        serde_json::from_str(text).map_err(|_| "is not a JSON list of keys".to_owned())?
    } else {
        text.split('.').map(str::to_owned).collect::<Path>()
    };
    if path.is_empty() || path.iter().any(String::is_empty) {
        return Err("has an empty key; write it as in `verb.id`".to_owned());
    }
    Ok(path)
}

/// What was inferred.
#[derive(Serialize)]
struct Inferred {
    records: usize,
    /// The number of records that could not be read.
    unreadable: u64,
    files: Vec<File>,
}

pub(super) async fn run(app: &App<'_>, arguments: &Infer) -> anyhow::Result<()> {
    let Sample {
        sources,
        keys,
        are_keys_known,
        name,
    } = sample(app, arguments).await?;
    let max_records = usize::try_from(arguments.records).unwrap_or(usize::MAX);
    let inferred = inferred(
        &sources,
        max_records,
        Options {
            name: arguments.name.clone().unwrap_or(name),
            keys,
            are_keys_known,
            by: match (&arguments.by, arguments.one) {
                (Some(path), _) => By::Field(path.clone()),
                (None, true) => By::Nothing,
                (None, false) => By::Any,
            },
            plausible: plausible(app),
        },
    )?;
    match &arguments.output_dir {
        Some(directory) if arguments.output.is_json() => {
            write(directory, &inferred.files)?;
            arguments.output.show(&inferred)
        }
        Some(directory) => {
            let written = write(directory, &inferred.files)?;
            crate::cli::print(written.join("\n").as_str())
        }
        None => arguments.output.show(&inferred),
    }
}

fn inferred(sources: &[Source], max_records: usize, options: Options) -> anyhow::Result<Inferred> {
    let content = infer::read(sources, max_records).map_err(|problem| anyhow!(problem))?;
    let files = infer::infer(&content, &options).map_err(BadEventTypes)?;
    Ok(Inferred {
        records: content.records.len(),
        unreadable: content.unreadable,
        files,
    })
}

/// Returns the times that a load accepts now where a table is partitioned by them.
fn plausible(app: &App<'_>) -> std::ops::Range<u64> {
    let limits = app.time_limits();
    let now = app.env.wall_clock().duration_since(UNIX_EPOCH);
    limits.start..(now.unwrap_or_default() + limits.max_future).as_secs()
}

/// Writes the files, none of which may exist, and returns their paths.
fn write(directory: &FilePath, files: &[File]) -> anyhow::Result<Vec<String>> {
    let shown = directory.display();
    std::fs::create_dir_all(directory).with_context(|| format!("failed to create {shown}"))?;
    let paths: Vec<PathBuf> = files
        .iter()
        .map(|file| directory.join(&file.name))
        .collect();
    if let Some(path) = paths.iter().find(|path| path.exists()) {
        bail!(
            "{} exists; remove it, or choose another --output-dir",
            path.display()
        );
    }
    for (path, file) in paths.iter().zip(files) {
        let created = OpenOptions::new().write(true).create_new(true).open(path);
        let written = created.and_then(|mut created| created.write_all(file.text.as_bytes()));
        written.with_context(|| format!("failed to write {}", path.display()))?;
    }
    ensure!(!paths.is_empty(), "nothing was inferred");
    Ok(paths
        .iter()
        .map(|path| format!("wrote {}", path.display()))
        .collect())
}

/// The files, each after its name, as documents of YAML.
impl fmt::Display for Inferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, file) in self.files.iter().enumerate() {
            if place > 0 {
                f.write_str("---\n")?;
            }
            write!(f, "# {}\n{}", file.name, file.text)?;
        }
        Ok(())
    }
}
