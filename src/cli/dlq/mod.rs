//! `sluice dlq`: the dead-letter queue, for operators.

mod choice;
mod dead_letter;
mod list;
mod moved;
mod purge;
mod redrive;
mod scan;
mod show;

use std::collections::HashMap;

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
    /// List the messages with their objects, and why they were dead-lettered
    ///
    /// Messages can only be read by receiving them: until the command ends, the messages that it
    /// has read are hidden from other receivers, and the receive count of each grows by one. At the
    /// end, all messages become visible again.
    List(list::Arguments),
    /// Show one message: its body, its attributes and the status of its objects
    ///
    /// Like `list`, it receives messages, and returns them at the end.
    Show(show::Arguments),
    /// Send messages back to the queue that they came from
    ///
    /// A message whose objects are all loaded is deleted instead. Without a selection, SQS moves
    /// all messages itself, and the workers recognise loaded objects. The command can be stopped or
    /// killed at any point without loss: each message is sent before it is deleted, and an object
    /// that is announced twice is loaded once.
    Redrive(redrive::Arguments),
    /// Archive messages in a file, and delete them
    ///
    /// Asks for confirmation. Each message is written to the file as one line of JSON, and deleted
    /// only once the line is on disk.
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

/// The messages that announce an object, by bucket and key.
pub(super) type Announcing = HashMap<(String, String), Vec<String>>;

/// Returns the ids of the dead letters that announce objects, of which some are not loaded. Like
/// `list`, it receives all messages of the dead-letter queue, and returns them.
pub(super) async fn announcing(app: &App<'_>) -> anyhow::Result<Announcing> {
    let session = DlqSession::open(app).await?;
    let mut announcing = Announcing::new();
    session
        .scan(async |scan| {
            while let Some((dead_letters, _)) = session.page(scan, &Selector::default()).await? {
                for dead_letter in dead_letters.iter().filter(|it| !it.is_loaded()) {
                    for object in &dead_letter.objects {
                        let name = (object.bucket.clone(), object.key.clone());
                        let ids = announcing.entry(name).or_default();
                        ids.push(dead_letter.message_id.clone());
                    }
                }
            }
            Ok(())
        })
        .await?;
    Ok(announcing)
}

/// Sends the dead letters with these ids to the queue, as `redrive` does. Returns how many.
pub(super) async fn redrive(app: &App<'_>, ids: Vec<String>) -> anyhow::Result<u64> {
    let session = DlqSession::open(app).await?;
    redrive::selected(&session, Selector::of_messages(ids)).await
}

/// The state that all of these commands share.
struct DlqSession {
    /// The queue from which the dead letters came.
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
        let unread = || format!("failed to read the redrive policy of {url}");
        let queue_arn = queue.attributes().await.with_context(unread)?.arn;
        let dead = queue.dead_letter_queue().await.with_context(unread)?;
        let dead = dead.with_context(|| {
            format!("the queue {url} has no redrive policy, and so no dead-letter queue")
        })?;
        let attributes = dead.attributes().await;
        let attributes = attributes.with_context(|| format!("failed to query {}", dead.url()))?;
        if let Some(policy) = attributes.redrive_policy {
            note(&format!(
                "warning: {} has its own redrive policy, which moves messages elsewhere after {} \
                 receives, and this command receives messages",
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

    /// Returns the next messages that `choice` matches, and the number of those that it does not;
    /// `None` at the end.
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

    /// Runs `work` with a scan of the messages. Whatever the result, the messages that are still in
    /// flight are returned to the queue.
    async fn scan<T>(
        &self,
        work: impl AsyncFnOnce(&mut DlqScan) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let stop = stop_on_signals()?;
        let mut scan = DlqScan::new(self.dead.clone(), self.queue_arn.clone(), stop);
        let result = work(&mut scan).await;
        if scan.others() > 0 {
            note(&format!(
                "skipped {} messages that came from other queues",
                scan.others()
            ));
        }
        if let Err(error) = scan.return_all().await {
            note(&format!(
                "warning: failed to return the received messages; they become visible after {} s: \
                 {error}",
                scan::VISIBILITY.as_secs()
            ));
        }
        result
    }
}
