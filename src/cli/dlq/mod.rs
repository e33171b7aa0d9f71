//! `sluice dlq`: the dead-letter queue, for people.

mod choice;
mod letter;
mod list;
mod moved;
mod purge;
mod redrive;
mod show;
mod sweep;

use anyhow::Context;
use clap::Subcommand;

use self::choice::Choice;
use self::letter::{Letter, Reader};
use self::sweep::Sweep;
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
    let desk = Desk::open(app).await?;
    match command {
        Command::List(arguments) => list::run(&desk, arguments).await,
        Command::Show(arguments) => show::run(&desk, arguments).await,
        Command::Redrive(arguments) => redrive::run(&desk, arguments).await,
        Command::Purge(arguments) => purge::run(&desk, arguments).await,
    }
}

/// What all of these commands work with.
struct Desk {
    /// The queue whose dead letters are meant.
    queue: SqsQueue,
    queue_arn: String,
    dead: SqsQueue,
    dead_arn: String,
    /// Messages in the dead-letter queue, approximately.
    approximately: u64,
    reader: Reader,
}

impl Desk {
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
        sweep: &mut Sweep,
        choice: &Choice,
    ) -> anyhow::Result<Option<(Vec<Letter>, u64)>> {
        let Some(messages) = sweep.next().await? else {
            return Ok(None);
        };
        let mut letters = self.reader.read(messages).await?;
        let all = letters.len();
        letters.retain(|letter| choice.takes(letter));
        let left = all - letters.len();
        Ok(Some((letters, left as u64)))
    }

    /// Goes through the messages; whatever comes of it, what is held then is given back.
    async fn sweep<T>(
        &self,
        work: impl AsyncFnOnce(&mut Sweep) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let stop = stop_on_signals()?;
        let mut sweep = Sweep::new(self.dead.clone(), self.queue_arn.clone(), stop);
        let result = work(&mut sweep).await;
        if sweep.others() > 0 {
            note(&format!(
                "{} messages of other queues are in there too: they are left alone",
                sweep.others()
            ));
        }
        if let Err(error) = sweep.give_back().await {
            note(&format!(
                "warning: what was received comes back only after {} s: {error}",
                sweep::VISIBILITY.as_secs()
            ));
        }
        result
    }
}
