//! `sluice dlq show`

use anyhow::Context;

use super::Desk;
use crate::cli::output::Output;

#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    /// As `list` shows it
    #[arg(value_name = "MESSAGE-ID")]
    message_id: String,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(desk: &Desk, arguments: &Arguments) -> anyhow::Result<()> {
    let id = &arguments.message_id;
    let found = desk.sweep(async |sweep| {
        while let Some(mut messages) = sweep.next().await? {
            messages.retain(|it| it.message.id == *id);
            if let Some(letter) = desk.reader.read(messages).await?.into_iter().next() {
                return Ok(Some(letter));
            }
        }
        Ok(None)
    });
    let letter = found.await?.with_context(|| {
        format!(
            "{id} is not to be received from {}: it is not there, or in flight",
            desk.dead.url()
        )
    })?;
    arguments.output.show(&letter)
}
