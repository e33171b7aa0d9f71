//! Checks the queue and its dead-letter queue. Receives nothing, since every receive raises a
//! message's receive count.

use std::time::Duration;

use aws_config::SdkConfig;

use super::report::Check;
use crate::cli::run::NO_REDRIVE_POLICY;
use crate::config::{Config, HumanDuration};
use crate::daemon::heartbeats::MAX_HOLD;
use crate::queue::sqs::SqsQueue;
use crate::queue::{
    FailedEntries, Queue, QueueAttributes, QueueError, ReceiptHandle, RedrivePolicy,
};

const QUEUE: &str = "queue";
const RIGHTS: &str = "queue rights";
const REDRIVE: &str = "redrive policy";
const RETENTION: &str = "retention";
const DEAD_LETTERS: &str = "dead-letter queue";
const VISIBILITY: &str = "visibility timeout";

pub(super) async fn check(config: &Config, aws: &SdkConfig) -> Vec<Check> {
    let visibility = visibility(config);
    let Some(url) = &config.queue.url else {
        let missing = Check::fail(
            QUEUE,
            "no queue is configured",
            "set `queue.url` to what `aws sqs get-queue-url` prints",
        );
        return vec![missing, visibility];
    };
    let queue = SqsQueue::at(aws, url);
    let attributes = match queue.attributes().await {
        Ok(attributes) => attributes,
        Err(error) => {
            let skipped = [RIGHTS, REDRIVE, RETENTION, DEAD_LETTERS];
            let skipped = skipped.map(|name| Check::skip(name, "the queue could not be queried"));
            return [unanswered(url, &error)]
                .into_iter()
                .chain(skipped)
                .chain([visibility])
                .collect();
        }
    };
    let allow_missing = config.queue.allow_missing_dlq;
    vec![
        Check::pass(
            QUEUE,
            format!(
                "{url} has {} visible messages, and {} in flight",
                attributes.visible, attributes.in_flight
            ),
        ),
        rights(&queue, config.queue.visibility_timeout.get()).await,
        redrive(attributes.redrive_policy.as_ref(), allow_missing),
        retention(&attributes),
        match &attributes.redrive_policy {
            None => Check::skip(DEAD_LETTERS, "the queue has no redrive policy"),
            Some(policy) => dead_letters(&attributes, policy, dead_letter_queue(&queue).await),
        },
        visibility,
    ]
}

pub(super) async fn attributes(config: &Config, aws: &SdkConfig) -> Option<QueueAttributes> {
    let queue = SqsQueue::at(aws, config.queue.url.as_ref()?);
    queue.attributes().await.ok()
}

fn unanswered(url: &str, error: &QueueError) -> Check {
    let advice = match error {
        QueueError::Denied(_) => {
            "check `queue.url` and the AWS credentials; the role needs `sqs:GetQueueAttributes` \
             (`sluice check --print-policy`)"
        }
        QueueError::Transient(_) | QueueError::Gone(_) => {
            "check `queue.url`, the region and the network path to SQS"
        }
    };
    Check::fail(QUEUE, format!("failed to query {url}: {error}"), advice)
}

async fn dead_letter_queue(queue: &SqsQueue) -> Result<QueueAttributes, QueueError> {
    match queue.dead_letter_queue().await? {
        Some(dead) => dead.attributes().await,
        None => Err(QueueError::Transient(
            "its redrive policy was removed".to_owned(),
        )),
    }
}

/// Checks the rights on messages, with a receipt handle that belongs to no message.
async fn rights(queue: &SqsQueue, visibility: Duration) -> Check {
    let made_up = ReceiptHandle("made-up-by-sluice-check".to_owned());
    let delete = queue.delete(std::slice::from_ref(&made_up)).await;
    let change = queue.change_visibility(&[(made_up, visibility)]).await;
    judge_rights(&[
        ("sqs:DeleteMessage", delete),
        ("sqs:ChangeMessageVisibility", change),
    ])
}

fn judge_rights(answers: &[(&str, Result<FailedEntries, QueueError>)]) -> Check {
    let mut refusals = Vec::new();
    for (action, answer) in answers {
        let refusal = match answer {
            Err(error @ QueueError::Denied(_)) => Some(error),
            // SQS rejects the handle only after it has allowed the action.
            Err(QueueError::Transient(text)) if text.contains("ReceiptHandleIsInvalid") => None,
            Err(error) => Some(error),
            Ok(failed) => failed
                .iter()
                .map(|(_, error)| error)
                .find(|error| !matches!(error, QueueError::Gone(_))),
        };
        refusals.extend(refusal.map(|error| format!("{action}: {error}")));
    }
    if refusals.is_empty() {
        let actions: Vec<&str> = answers.iter().map(|(action, _)| *action).collect();
        return Check::pass(
            RIGHTS,
            format!(
                "{} and sqs:GetQueueAttributes are granted; sqs:ReceiveMessage is not checked, \
                 since a receive would raise the receive count of messages",
                actions.join(", ")
            ),
        );
    }
    Check::fail(
        RIGHTS,
        refusals.join("; "),
        "grant the role the rights that `sluice check --print-policy` prints",
    )
}

fn redrive(policy: Option<&RedrivePolicy>, allow_missing: bool) -> Check {
    /// A temporary fault of a worker uses up fewer receives than this.
    const FEW: u32 = 3;
    let (problem, advice) = NO_REDRIVE_POLICY;
    match policy {
        None if allow_missing => Check::warn(REDRIVE, problem, advice),
        None => Check::fail(REDRIVE, problem, advice),
        Some(policy) if policy.max_receive_count < FEW => Check::warn(
            REDRIVE,
            format!(
                "messages are dead-lettered after {} receives; each worker crash counts as one",
                policy.max_receive_count
            ),
            format!("raise maxReceiveCount to {FEW} or more; 5 is common"),
        ),
        Some(policy) => Check::pass(
            REDRIVE,
            format!(
                "messages move to {} after {} receives",
                policy.dead_letter_target_arn, policy.max_receive_count
            ),
        ),
    }
}

/// The default retention of SQS.
const FOUR_DAYS: Duration = Duration::from_secs(4 * 24 * 3600);
/// The longest retention of SQS.
const FOURTEEN_DAYS: Duration = Duration::from_secs(14 * 24 * 3600);

fn retention(queue: &QueueAttributes) -> Check {
    match queue.retention {
        None => Check::skip(RETENTION, "SQS does not report the retention"),
        Some(kept) if kept < FOUR_DAYS => Check::warn(
            RETENTION,
            format!(
                "messages are kept for {}, and are lost in an outage that lasts longer",
                HumanDuration::from(kept)
            ),
            "raise MessageRetentionPeriod of the queue, preferably to 14 days (1209600)",
        ),
        Some(kept) => Check::pass(
            RETENTION,
            format!("messages are kept for {}", HumanDuration::from(kept)),
        ),
    }
}

fn dead_letters(
    queue: &QueueAttributes,
    policy: &RedrivePolicy,
    dead: Result<QueueAttributes, QueueError>,
) -> Check {
    let arn = &policy.dead_letter_target_arn;
    let dead = match dead {
        Ok(dead) => dead,
        Err(error) if is_no_queue(&error) => {
            return Check::fail(
                DEAD_LETTERS,
                format!("{arn}: {error}"),
                "create the dead-letter queue that the redrive policy names: without it, messages \
                 are redelivered until their retention period ends, and then lost",
            );
        }
        Err(error) => {
            return Check::warn(
                DEAD_LETTERS,
                format!("failed to query {arn}: {error}"),
                "grant `sqs:GetQueueUrl` and `sqs:GetQueueAttributes` on this queue, which are \
                 needed to check its retention, and to count its messages in `sluice status` and \
                 `sluice_dlq_messages`",
            );
        }
    };
    let waiting = format!("{} messages", dead.visible + dead.in_flight);
    let (Some(kept), Some(before)) = (dead.retention, queue.retention) else {
        return Check::pass(DEAD_LETTERS, waiting);
    };
    let found = format!("{waiting}, kept for {}", HumanDuration::from(kept));
    // In a FIFO queue, the retention period starts again when a message moves.
    if kept < before && !queue.is_fifo() {
        return Check::fail(
            DEAD_LETTERS,
            format!(
                "{found}, but for {} in the source queue: messages keep their age when they move, \
                 so older ones are deleted on arrival",
                HumanDuration::from(before)
            ),
            "raise MessageRetentionPeriod of the dead-letter queue to 14 days (1209600)",
        );
    }
    if kept < FOURTEEN_DAYS {
        return Check::warn(
            DEAD_LETTERS,
            format!("{found}: objects that failed must be fixed and redriven within that time"),
            "raise MessageRetentionPeriod of the dead-letter queue to 14 days (1209600)",
        );
    }
    Check::pass(DEAD_LETTERS, found)
}

fn is_no_queue(error: &QueueError) -> bool {
    let text = error.to_string();
    text.contains("NonExistentQueue") || text.contains("QueueDoesNotExist")
}

/// Checks that inserts end within the time for which SQS permits their messages to be in flight.
fn visibility(config: &Config) -> Check {
    let timeout = config.queue.visibility_timeout;
    let insert = config.clickhouse.insert_timeout;
    if insert.get() >= MAX_HOLD {
        return Check::fail(
            VISIBILITY,
            format!(
                "an insert may take {insert}, but SQS hides a message for at most 12 hours: it \
                 would become visible again while its objects are being loaded"
            ),
            "lower `clickhouse.insert_timeout` to well below 11h",
        );
    }
    Check::pass(
        VISIBILITY,
        format!("{timeout}, extended while an insert is running, which takes at most {insert}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::report::Outcome;

    fn transient(text: &str) -> QueueError {
        QueueError::Transient(text.to_owned())
    }

    #[test]
    fn a_refused_handle_is_not_a_refused_action() {
        let denied = QueueError::Denied("AccessDenied: not authorized".to_owned());
        for (answer, expected) in [
            (Ok(Vec::new()), Outcome::Pass),
            (
                Err(transient("ReceiptHandleIsInvalid: not a handle")),
                Outcome::Pass,
            ),
            (Err(denied.clone()), Outcome::Fail),
            (Ok(vec![(0, denied)]), Outcome::Fail),
            (Err(transient("no route to host")), Outcome::Fail),
        ] {
            let check = judge_rights(&[("sqs:DeleteMessage", answer)]);
            assert_eq!(check.result, expected, "{check:?}");
        }
    }

    #[test]
    fn dead_letters_are_kept_for_at_least_as_long() {
        let kept = |days: u64, arn: &str| QueueAttributes {
            arn: arn.to_owned(),
            retention: Some(Duration::from_secs(days * 24 * 3600)),
            ..QueueAttributes::default()
        };
        let policy = RedrivePolicy {
            dead_letter_target_arn: "dead".to_owned(),
            max_receive_count: 5,
        };
        for (queue, days, dead_days, expected) in [
            ("queue", 14, 14, Outcome::Pass),
            ("queue", 4, 4, Outcome::Warn),
            ("queue", 14, 4, Outcome::Fail),
            ("queue.fifo", 14, 4, Outcome::Warn),
        ] {
            let dead = Ok(kept(dead_days, "dead"));
            let check = dead_letters(&kept(days, queue), &policy, dead);
            assert_eq!(check.result, expected, "{check:?}");
        }
        // A worker does not need the right to query it, but it must exist.
        let denied = QueueError::Denied("AccessDenied".to_owned());
        let check = dead_letters(&kept(14, "queue"), &policy, Err(denied));
        assert_eq!(check.result, Outcome::Warn);
        let gone = QueueError::Denied("AWS.SimpleQueueService.NonExistentQueue".to_owned());
        let check = dead_letters(&kept(14, "queue"), &policy, Err(gone));
        assert_eq!(check.result, Outcome::Fail);
    }
}
