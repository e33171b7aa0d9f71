//! `sluice dlq list`

use std::fmt;

use serde::Serialize;

use super::DlqSession;
use super::choice::Selector;
use super::dead_letter::{Classes, DeadLetter, classes_table, count_classes, dead_letters_table};
use crate::cli::output::Output;

#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    choice: Selector,

    /// List at most COUNT messages
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(session: &DlqSession, arguments: &Arguments) -> anyhow::Result<()> {
    let mut dead_letters = Vec::new();
    session
        .scan(async |scan| {
            while dead_letters.len() < arguments.limit
                && let Some((chosen, _)) = session.page(scan, &arguments.choice).await?
            {
                dead_letters.extend(chosen);
            }
            Ok(())
        })
        .await?;
    dead_letters.truncate(arguments.limit);
    let mut classes = Classes::new();
    count_classes(&mut classes, &dead_letters);
    arguments.output.show(&Listing {
        queue: session.dead.url().to_owned(),
        approximate_messages: session.approximately,
        classes,
        messages: dead_letters,
    })
}

#[derive(Serialize)]
struct Listing {
    queue: String,
    /// All messages in the queue, as estimated by SQS.
    approximate_messages: u64,
    classes: Classes,
    messages: Vec<DeadLetter>,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, all) = (self.messages.len(), self.approximate_messages);
        writeln!(f, "{count} of about {all} messages in {}", self.queue)?;
        if self.messages.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n{}", classes_table(&self.classes))?;
        writeln!(f, "\n{}", dead_letters_table(&self.messages))
    }
}
