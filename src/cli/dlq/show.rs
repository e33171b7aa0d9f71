//! `sluice dlq show`

use anyhow::Context;

use super::DlqSession;
use crate::cli::output::Output;

#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Id of the message, from `sluice dlq list`
    #[arg(value_name = "MESSAGE-ID")]
    message_id: String,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(session: &DlqSession, arguments: &Arguments) -> anyhow::Result<()> {
    let id = &arguments.message_id;
    let found = session.scan(async |scan| {
        while let Some(mut messages) = scan.next().await? {
            messages.retain(|it| it.message.id == *id);
            if let Some(dead_letter) = session.reader.read(messages).await?.into_iter().next() {
                return Ok(Some(dead_letter));
            }
        }
        Ok(None)
    });
    let dead_letter = found.await?.with_context(|| {
        format!(
            "message {id} not found in {} (deleted, or in flight elsewhere)",
            session.dead.url()
        )
    })?;
    arguments.output.show(&dead_letter)
}
