//! `sluice dlq redrive`

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::bail;
use indicatif::ProgressBar;
use serde::Serialize;

use super::choice::Choice;
use super::letter::{Letter, ids};
use super::sweep::Sweep;
use super::{Desk, moved};
use crate::cli::note;
use crate::cli::output::{Output, progress};
use crate::queue::MAX_BATCH;
use crate::queue::sqs::whole::Outgoing;
use crate::util::failpoint;

#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    choice: Choice,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,

    /// Send so many messages a second at most
    #[arg(long, value_name = "COUNT")]
    max_rate: Option<NonZeroU32>,

    #[command(flatten)]
    output: Output,
}

/// What was done, or would be.
#[derive(Default, Serialize)]
pub(super) struct Report {
    dry_run: bool,
    /// To the queue.
    pub(super) sent: u64,
    /// Deleted, since every object is loaded.
    done: u64,
    /// Not chosen.
    left: u64,
    /// Told to stop before the end.
    pub(super) stopped: bool,
}

pub(super) async fn run(desk: &Desk, arguments: &Arguments) -> anyhow::Result<()> {
    let (dead, queue) = (desk.dead.url(), desk.queue.url());
    let mut report = Report {
        dry_run: arguments.dry_run,
        ..Report::default()
    };
    let result = if arguments.dry_run {
        each(desk, arguments, &mut report).await
    } else {
        let count = desk.approximately;
        note(&format!(
            "sending what is chosen of about {count} messages from {dead} to {queue}"
        ));
        let by_sqs = if arguments.choice.is_everything() {
            moved::start(desk, arguments.max_rate).await
        } else {
            None
        };
        match by_sqs {
            Some(task) => task.follow(&mut report).await,
            None => each(desk, arguments, &mut report).await,
        }
    };
    arguments.output.show(&report)?;
    result
}

/// Receives, sends and deletes.
async fn each(desk: &Desk, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let bar = progress(desk.approximately);
    desk.sweep(async |sweep| {
        let mut redrive = Redrive {
            desk,
            arguments,
            sweep,
            report,
            bar,
        };
        while let Some((letters, left)) = desk.page(redrive.sweep, &arguments.choice).await? {
            redrive.report.left += left;
            redrive.bar.inc(left);
            redrive.settle(letters).await?;
        }
        redrive.report.stopped = redrive.sweep.stopped();
        Ok(())
    })
    .await
}

struct Redrive<'a> {
    desk: &'a Desk,
    arguments: &'a Arguments,
    sweep: &'a mut Sweep,
    report: &'a mut Report,
    bar: ProgressBar,
}

impl Redrive<'_> {
    async fn settle(&mut self, letters: Vec<Letter>) -> anyhow::Result<()> {
        let (done, due): (Vec<_>, Vec<_>) = letters.into_iter().partition(Letter::is_loaded);
        if self.arguments.dry_run {
            self.report.done += done.len() as u64;
            self.report.sent += due.len() as u64;
            return Ok(());
        }
        self.sweep.delete(ids(&done)).await?;
        self.report.done += done.len() as u64;
        self.bar.inc(done.len() as u64);
        for letters in due.chunks(self.burst()) {
            if self.sweep.stopped() {
                break;
            }
            self.send(letters).await?;
            if let Some(rate) = self.arguments.max_rate {
                let pause = Duration::from_secs(letters.len() as u64) / rate.get();
                self.sweep.pause(pause).await;
            }
        }
        Ok(())
    }

    /// Sent before they are deleted: a crash between the two announces them twice, and the ledger
    /// knows them then.
    async fn send(&mut self, letters: &[Letter]) -> anyhow::Result<()> {
        let outgoing: Vec<_> = letters.iter().map(Outgoing::from).collect();
        let outcomes = self.desk.queue.send_each(&outgoing).await;
        failpoint::reach("redrive.sent");
        let mut sent = Vec::new();
        let mut refusal = None;
        for (letter, outcome) in letters.iter().zip(outcomes) {
            match outcome {
                Ok(new_id) => {
                    self.sweep.disregard(new_id);
                    sent.push(letter);
                }
                Err(error) => refusal = Some(error),
            }
        }
        self.report.sent += sent.len() as u64;
        self.bar.inc(sent.len() as u64);
        self.sweep.delete(ids(sent)).await?;
        failpoint::reach("redrive.deleted");
        match refusal {
            None => Ok(()),
            Some(error) => bail!("{} takes no messages: {error}", self.desk.queue.url()),
        }
    }

    /// How many to send at once, so that the rate is kept from one second to the next.
    fn burst(&self) -> usize {
        let rate = self.arguments.max_rate.map(NonZeroU32::get);
        rate.map_or(MAX_BATCH, |rate| MAX_BATCH.min(rate as usize))
    }
}

impl<'a> From<&'a Letter> for Outgoing<'a> {
    fn from(letter: &'a Letter) -> Self {
        Self {
            body: &letter.body,
            attributes: Some(&letter.attributes),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let would = if self.dry_run { "would be " } else { "" };
        writeln!(f, "{} messages {would}sent", self.sent)?;
        writeln!(f, "{} {would}deleted: all is loaded", self.done)?;
        writeln!(f, "{} {would}left: not chosen", self.left)?;
        if self.stopped {
            writeln!(f, "stopped before the end; the rest is where it was")?;
        }
        Ok(())
    }
}
