//! The queue alone: messages are received and deleted, and nothing is loaded.

use anyhow::Result;
use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry;
use sluice_testkit::SiteOptions;
use tokio::task::JoinSet;

use super::sluice::{ENTRIES, announce};
use super::{Run, timed};
use crate::lab::Lab;
use crate::workload::Uploaded;

/// As many as Sluice has by default.
const RECEIVERS: usize = 2;

pub(super) async fn run(lab: &Lab, uploaded: &Uploaded) -> Result<Run> {
    let site = lab.queues.site("drain", SiteOptions::default()).await?;
    announce(&site, &uploaded.objects).await?;
    let mut receivers = JoinSet::new();
    for _ in 0..RECEIVERS {
        receivers.spawn(receive(site.sqs.clone(), site.queue_url.clone()));
    }
    let (_, took) = timed(async {
        while let Some(ended) = receivers.join_next().await {
            ended??;
        }
        Ok(())
    })
    .await?;
    Ok(Run::of(uploaded.objects.len(), took))
}

async fn receive(sqs: aws_sdk_sqs::Client, queue_url: String) -> Result<()> {
    loop {
        let received = sqs
            .receive_message()
            .queue_url(&queue_url)
            .max_number_of_messages(i32::try_from(ENTRIES)?)
            .send()
            .await?;
        let handles = received.messages().iter().enumerate();
        let entries = handles.map(|(id, message)| {
            DeleteMessageBatchRequestEntry::builder()
                .id(id.to_string())
                .set_receipt_handle(message.receipt_handle.clone())
                .build()
        });
        let entries: Vec<_> = entries.collect::<Result<_, _>>()?;
        if entries.is_empty() {
            return Ok(());
        }
        let delete = sqs.delete_message_batch().queue_url(&queue_url);
        delete.set_entries(Some(entries)).send().await?;
    }
}
