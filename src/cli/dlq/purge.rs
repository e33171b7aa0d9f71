//! `sluice dlq purge`

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use serde::Serialize;

use super::DlqSession;
use super::choice::Selector;
use super::dead_letter::{Classes, DeadLetter, classes_table, count_classes, ids};
use crate::cli::note;
use crate::cli::output::{Output, progress};
use crate::util::failpoint;

#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    choice: Selector,

    /// Print what would be removed, without removing it
    #[arg(long)]
    dry_run: bool,

    /// Archive file to create (must not exist) [default: sluice-dlq-QUEUE-TIME.jsonl]
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,

    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    output: Output,
}

/// What was done, or would be done.
#[derive(Default, Serialize)]
struct Report {
    dry_run: bool,
    archive: Option<PathBuf>,
    removed: u64,
    /// Not selected.
    left: u64,
    /// Of the removed messages.
    classes: Classes,
    /// Whether it was stopped before the end.
    stopped: bool,
}

pub(super) async fn run(session: &DlqSession, arguments: &Arguments) -> anyhow::Result<()> {
    let mut report = Report {
        dry_run: arguments.dry_run,
        ..Report::default()
    };
    let mut archive = None;
    if !arguments.dry_run {
        let path = arguments.archive.clone();
        let path = path.unwrap_or_else(|| default_path(session.dead.url()));
        if !arguments.yes {
            ask(session, &path)?;
        }
        archive = Some(Archive::create(&path)?);
        report.archive = Some(path);
    }
    let result = purge(session, &arguments.choice, archive.as_mut(), &mut report).await;
    if let Some(archive) = archive
        && archive.is_empty
    {
        report.archive = None;
        archive.remove()?;
    }
    arguments.output.show(&report)?;
    result
}

/// Removes the selected messages, or only counts them if there is no archive.
async fn purge(
    session: &DlqSession,
    choice: &Selector,
    mut archive: Option<&mut Archive>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let bar = progress(session.approximately);
    session
        .scan(async |scan| {
            while let Some((dead_letters, left)) = session.page(scan, choice).await? {
                if let Some(archive) = &mut archive
                    && !dead_letters.is_empty()
                {
                    archive.append(&dead_letters)?;
                    failpoint::reach("purge.archived");
                    scan.delete(ids(&dead_letters)).await?;
                    failpoint::reach("purge.deleted");
                }
                report.left += left;
                report.removed += dead_letters.len() as u64;
                count_classes(&mut report.classes, &dead_letters);
                bar.inc(left + dead_letters.len() as u64);
            }
            report.stopped = scan.stopped();
            Ok(())
        })
        .await
}

fn ask(session: &DlqSession, archive: &Path) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        bail!("refusing to delete without confirmation; pass --yes");
    }
    note(&format!(
        "Archive the selected messages (of about {}) from {} to {} and delete them? [y/N]",
        session.approximately,
        session.dead.url(),
        archive.display()
    ));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if !["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        bail!("not confirmed; nothing was deleted");
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "part of the name of a file")]
fn default_path(queue_url: &str) -> PathBuf {
    let queue = queue_url.rsplit('/').next().unwrap_or(queue_url);
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    format!("sluice-dlq-{queue}-{}.jsonl", time.replace(['-', ':'], "")).into()
}

/// The removed messages, as one line of JSON each.
struct Archive {
    path: PathBuf,
    file: File,
    is_empty: bool,
}

impl Archive {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        // Bodies name buckets and keys, so nobody else may read it.
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(path);
        let file = file.with_context(|| format!("failed to create {}", path.display()))?;
        // Also writes the name of the file to disk.
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(Self {
            path: path.to_owned(),
            file,
            is_empty: true,
        })
    }

    /// Appends messages. They are on disk when this returns.
    fn append(&mut self, dead_letters: &[DeadLetter]) -> anyhow::Result<()> {
        self.is_empty = false;
        let mut lines = Vec::new();
        for dead_letter in dead_letters {
            serde_json::to_writer(&mut lines, dead_letter)?;
            lines.push(b'\n');
        }
        let written = self.file.write_all(&lines);
        let synced = written.and_then(|()| self.file.sync_all());
        synced.with_context(|| format!("failed to write {}", self.path.display()))
    }

    fn remove(self) -> io::Result<()> {
        fs::remove_file(self.path)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let would = if self.dry_run { "would be " } else { "" };
        write!(f, "{} messages {would}removed", self.removed)?;
        if let Some(archive) = &self.archive {
            write!(f, "; they are archived in {}", archive.display())?;
        }
        writeln!(f, "\n{} {would}left (not selected)", self.left)?;
        if self.stopped {
            writeln!(
                f,
                "stopped before the end; the other messages are unchanged"
            )?;
        }
        if self.removed > 0 {
            writeln!(f, "\n{}", classes_table(&self.classes))?;
        }
        Ok(())
    }
}
