//! `sluice dlq`: the dead-letter queue, for people.

mod choice;
mod dead_letter;
mod list;
mod moved;
mod purge;
mod redrive;
mod scan;
mod show;

use anyhow::Context;
use clap::Subcommand;

use self::choice::Selector;
use self::dead_letter::{DeadLetter, Reader};
use self::scan::DlqScan;
use super::app::App;
use super::note;
use super::stop::stop_on_signals;
use crate::queue::Queue;
use crate::queue::sqs::SqsQueue;
use crate::util::failpoint;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the messages with their objects, and why they are here
    ///
    /// SQS can only be read by receiving: while this runs nobody else receives what it has read,
    /// and each message's receive count grows by one. At the end all are given back at once.
    List(list::Arguments),
    /// Show one message: its body, its attributes, and how each of its objects stands
    ///
    /// Receives, and gives back, as `list` does.
    Show(show::Arguments),
    /// Send messages to the queue that they came from
    ///
    /// A message whose objects are all loaded by now is deleted instead. With no choice made, SQS
    /// is asked to move all of them itself, and what is loaded is recognised later. Stopped or
    /// killed at any point, this loses nothing: each message is sent before it is deleted, and an
    /// object that is announced twice is loaded once.
    Redrive(redrive::Arguments),
    /// Take messages out for good, into a file
    ///
    /// Asks first. A message is deleted only once it is in the file, one line of JSON each, and the
    /// file is on disk.
    Purge(purge::Arguments),
}

pub(super) async fn run(app: &App<'_>, command: &Command) -> anyhow::Result<()> {
    let _armed = failpoint::arm();
    let session = DlqSession::open(app).await?;
    match command {
        Command::List(arguments) => list::run(&session, arguments).await,
        Command::Show(arguments) => show::run(&session, arguments).await,
        Command::Redrive(arguments) => redrive::run(&session, arguments).await,
        Command::Purge(arguments) => purge::run(&session, arguments).await,
    }
}

/// What all of these commands work with.
struct DlqSession {
    /// The queue whose dead letters are meant.
    queue: SqsQueue,
    queue_arn: String,
    dead: SqsQueue,
    dead_arn: String,
    /// Messages in the dead-letter queue, approximately.
    approximately: u64,
    reader: Reader,
}

impl DlqSession {
    async fn open(app: &App<'_>) -> anyhow::Result<Self> {
        let queue = app.queue(&app.aws().await)?;
        let url = queue.url().to_owned();
        let silent = || format!("the queue {url} does not tell of its dead-letter queue");
        let queue_arn = queue.attributes().await.with_context(silent)?.arn;
        let dead = queue.dead_letter_queue().await.with_context(silent)?;
        let dead = dead.with_context(|| {
            format!("the queue {url} has no redrive policy, hence no dead-letter queue")
        })?;
        let attributes = dead.attributes().await;
        let attributes = attributes.with_context(|| format!("{} does not answer", dead.url()))?;
        if let Some(policy) = attributes.redrive_policy {
            note(&format!(
                "warning: {} has a redrive policy of its own: what is received {} times leaves \
                 it, and this command receives",
                dead.url(),
                policy.max_receive_count
            ));
        }
        Ok(Self {
            queue,
            queue_arn,
            dead,
            dead_arn: attributes.arn,
            approximately: attributes.visible + attributes.in_flight,
            reader: Reader::new(app.history()?, app.envelopes()?, &app.config.clickhouse.url),
        })
    }

    /// The next messages that are chosen, and how many were not.
    async fn page(
        &self,
        scan: &mut DlqScan,
        choice: &Selector,
    ) -> anyhow::Result<Option<(Vec<DeadLetter>, u64)>> {
        let Some(messages) = scan.next().await? else {
            return Ok(None);
        };
        let mut dead_letters = self.reader.read(messages).await?;
        let all = dead_letters.len();
        dead_letters.retain(|dead_letter| choice.matches(dead_letter));
        let left = all - dead_letters.len();
        Ok(Some((dead_letters, left as u64)))
    }

    /// Goes through the messages; whatever comes of it, what is held then is given back.
    async fn scan<T>(
        &self,
        work: impl AsyncFnOnce(&mut DlqScan) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let stop = stop_on_signals()?;
        let mut scan = DlqScan::new(self.dead.clone(), self.queue_arn.clone(), stop);
        let result = work(&mut scan).await;
        if scan.others() > 0 {
            note(&format!(
                "{} messages of other queues are in there too: they are left alone",
                scan.others()
            ));
        }
        if let Err(error) = scan.return_all().await {
            note(&format!(
                "warning: what was received comes back only after {} s: {error}",
                scan::VISIBILITY.as_secs()
            ));
        }
        result
    }
}
