//! `sluice dlq redrive`

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::bail;
use indicatif::ProgressBar;
use serde::Serialize;

use super::choice::Selector;
use super::dead_letter::{DeadLetter, ids};
use super::scan::DlqScan;
use super::{DlqSession, moved};
use crate::cli::note;
use crate::cli::output::{Output, progress};
use crate::queue::MAX_BATCH;
use crate::queue::sqs::whole::Outgoing;
use crate::util::failpoint;

#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    choice: Selector,

    /// Print what would be done, without changing anything
    #[arg(long)]
    dry_run: bool,

    /// Send at most COUNT messages per second
    #[arg(long, value_name = "COUNT")]
    max_rate: Option<NonZeroU32>,

    #[command(flatten)]
    output: Output,
}

/// What was done, or would be done.
#[derive(Default, Serialize)]
pub(super) struct Report {
    dry_run: bool,
    /// Sent to the queue.
    pub(super) sent: u64,
    /// Deleted, since every object is loaded.
    done: u64,
    /// Not selected.
    left: u64,
    /// Whether it was stopped before the end.
    pub(super) stopped: bool,
}

pub(super) async fn run(session: &DlqSession, arguments: &Arguments) -> anyhow::Result<()> {
    let (dead, queue) = (session.dead.url(), session.queue.url());
    let mut report = Report {
        dry_run: arguments.dry_run,
        ..Report::default()
    };
    let result = if arguments.dry_run {
        each(session, &arguments.options(), &mut report).await
    } else {
        let count = session.approximately;
        note(&format!(
            "sending the selected messages (of about {count}) from {dead} to {queue}"
        ));
        let by_sqs = if arguments.choice.is_everything() {
            moved::start(session, arguments.max_rate).await
        } else {
            None
        };
        match by_sqs {
            Some(task) => task.follow(&mut report).await,
            None => each(session, &arguments.options(), &mut report).await,
        }
    };
    arguments.output.show(&report)?;
    result
}

/// Which messages are sent, and how.
struct Options<'a> {
    choice: &'a Selector,
    dry_run: bool,
    max_rate: Option<NonZeroU32>,
}

impl Arguments {
    fn options(&self) -> Options<'_> {
        Options {
            choice: &self.choice,
            dry_run: self.dry_run,
            max_rate: self.max_rate,
        }
    }
}

/// Sends the selected messages, and returns how many were sent.
pub(super) async fn selected(session: &DlqSession, choice: Selector) -> anyhow::Result<u64> {
    let mut report = Report::default();
    let options = Options {
        choice: &choice,
        dry_run: false,
        max_rate: None,
    };
    each(session, &options, &mut report).await?;
    Ok(report.sent)
}

/// Receives the messages, sends each whose objects are not all loaded, and deletes each.
async fn each(
    session: &DlqSession,
    options: &Options<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let bar = progress(session.approximately);
    session
        .scan(async |scan| {
            let mut redrive = Redrive {
                session,
                options,
                scan,
                report,
                bar,
            };
            while let Some((dead_letters, left)) =
                session.page(redrive.scan, options.choice).await?
            {
                redrive.report.left += left;
                redrive.bar.inc(left);
                redrive.settle(dead_letters).await?;
            }
            redrive.report.stopped = redrive.scan.stopped();
            Ok(())
        })
        .await
}

struct Redrive<'a> {
    session: &'a DlqSession,
    options: &'a Options<'a>,
    scan: &'a mut DlqScan,
    report: &'a mut Report,
    bar: ProgressBar,
}

impl Redrive<'_> {
    async fn settle(&mut self, dead_letters: Vec<DeadLetter>) -> anyhow::Result<()> {
        let (done, due): (Vec<_>, Vec<_>) =
            dead_letters.into_iter().partition(DeadLetter::is_loaded);
        if self.options.dry_run {
            self.report.done += done.len() as u64;
            self.report.sent += due.len() as u64;
            return Ok(());
        }
        self.scan.delete(ids(&done)).await?;
        self.report.done += done.len() as u64;
        self.bar.inc(done.len() as u64);
        for dead_letters in due.chunks(self.burst()) {
            if self.scan.stopped() {
                break;
            }
            self.send(dead_letters).await?;
            if let Some(rate) = self.options.max_rate {
                let pause = Duration::from_secs(dead_letters.len() as u64) / rate.get();
                self.scan.pause(pause).await;
            }
        }
        Ok(())
    }

    /// Sends messages, and then deletes them. After a crash between the two, their objects are
    /// announced twice, which the ledger recognises.
    async fn send(&mut self, dead_letters: &[DeadLetter]) -> anyhow::Result<()> {
        let outgoing: Vec<_> = dead_letters.iter().map(Outgoing::from).collect();
        let outcomes = self.session.queue.send_each(&outgoing).await;
        failpoint::reach("redrive.sent");
        let mut sent = Vec::new();
        let mut refusal = None;
        for (dead_letter, outcome) in dead_letters.iter().zip(outcomes) {
            match outcome {
                Ok(new_id) => {
                    self.scan.ignore(new_id);
                    sent.push(dead_letter);
                }
                Err(error) => refusal = Some(error),
            }
        }
        self.report.sent += sent.len() as u64;
        self.bar.inc(sent.len() as u64);
        self.scan.delete(ids(sent)).await?;
        failpoint::reach("redrive.deleted");
        match refusal {
            None => Ok(()),
            Some(error) => bail!("failed to send to {}: {error}", self.session.queue.url()),
        }
    }

    /// Returns how many messages to send at once, so that the rate is kept in each second.
    fn burst(&self) -> usize {
        let rate = self.options.max_rate.map(NonZeroU32::get);
        rate.map_or(MAX_BATCH, |rate| MAX_BATCH.min(rate as usize))
    }
}

impl<'a> From<&'a DeadLetter> for Outgoing<'a> {
    fn from(dead_letter: &'a DeadLetter) -> Self {
        Self {
            body: &dead_letter.body,
            attributes: Some(&dead_letter.attributes),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let would = if self.dry_run { "would be " } else { "" };
        writeln!(f, "{} messages {would}sent", self.sent)?;
        writeln!(f, "{} {would}deleted (already loaded)", self.done)?;
        writeln!(f, "{} {would}left (not selected)", self.left)?;
        if self.stopped {
            writeln!(
                f,
                "stopped before the end; the other messages are unchanged"
            )?;
        }
        Ok(())
    }
}
