//! `sluice dlq list`

use std::fmt;

use serde::Serialize;

use super::Desk;
use super::choice::Choice;
use super::letter::{Classes, Letter, classes_table, count_classes, letters_table};
use crate::cli::output::Output;

#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    choice: Choice,

    /// How many at most
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(desk: &Desk, arguments: &Arguments) -> anyhow::Result<()> {
    let mut letters = Vec::new();
    desk.sweep(async |sweep| {
        while letters.len() < arguments.limit
            && let Some((chosen, _)) = desk.page(sweep, &arguments.choice).await?
        {
            letters.extend(chosen);
        }
        Ok(())
    })
    .await?;
    letters.truncate(arguments.limit);
    let mut classes = Classes::new();
    count_classes(&mut classes, &letters);
    arguments.output.show(&Listing {
        queue: desk.dead.url().to_owned(),
        approximate_messages: desk.approximately,
        classes,
        messages: letters,
    })
}

#[derive(Serialize)]
struct Listing {
    queue: String,
    /// All that are there, as SQS estimates.
    approximate_messages: u64,
    classes: Classes,
    messages: Vec<Letter>,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, all) = (self.messages.len(), self.approximate_messages);
        writeln!(f, "{count} of about {all} messages in {}", self.queue)?;
        if self.messages.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n{}", classes_table(&self.classes))?;
        writeln!(f, "\n{}", letters_table(&self.messages))
    }
}
