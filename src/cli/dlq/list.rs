//! `sluice dlq list`

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Desk;
use super::choice::Choice;
use super::letter::{Letter, letters_table};
use crate::cli::output::{Output, table};

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
            && let Some(messages) = sweep.next().await?
        {
            letters.extend(desk.reader.read(messages).await?);
            letters.retain(|letter| arguments.choice.takes(letter));
        }
        Ok(())
    })
    .await?;
    letters.truncate(arguments.limit);
    arguments.output.show(&Listing {
        queue: desk.dead.url().to_owned(),
        approximate_messages: desk.approximately,
        classes: classes(&letters),
        messages: letters,
    })
}

/// How many there are of each.
pub(super) fn classes<'a>(letters: impl IntoIterator<Item = &'a Letter>) -> BTreeMap<String, u64> {
    let mut classes = BTreeMap::new();
    for letter in letters {
        *classes.entry(letter.class.clone()).or_default() += 1;
    }
    classes
}

#[derive(Serialize)]
struct Listing {
    queue: String,
    /// All that are there, as SQS estimates.
    approximate_messages: u64,
    classes: BTreeMap<String, u64>,
    messages: Vec<Letter>,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, all) = (self.messages.len(), self.approximate_messages);
        writeln!(f, "{count} of about {all} messages in {}", self.queue)?;
        if self.messages.is_empty() {
            return Ok(());
        }
        let rows = self.classes.iter();
        let rows = rows.map(|(class, count)| vec![class.clone(), count.to_string()]);
        writeln!(f, "\n{}", table(&["class", "messages"], rows))?;
        writeln!(f, "\n{}", letters_table(&self.messages))
    }
}
