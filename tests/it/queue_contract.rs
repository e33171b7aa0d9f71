//! The contract of [`Queue`], tested on the in-memory implementation and on the one for SQS.

use std::time::Duration;

use anyhow::ensure;
use aws_sdk_sqs::types::QueueAttributeName;
use sluice::queue::memory::MemoryQueue;
use sluice::queue::sqs::SqsQueue;
use sluice::queue::{MAX_BATCH, Message, Queue, QueueError, ReceiptHandle};
use sluice_testkit::{Site, SiteOptions, Stack, wait_for};
use tokio::time::Instant;

use crate::dlq::fifo;

const MAX_RECEIVES: u32 = 3;
/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(300);
const SECOND: Duration = Duration::from_secs(1);
const BOUND: Duration = Duration::from_secs(30);
const DEPTH_BOUND: Duration = Duration::from_secs(120);

/// An empty queue, with the operations that only its owner has.
trait Subject {
    type Queue: Queue;
    fn queue(&self) -> &Self::Queue;
    fn dead_letter_queue(&self) -> Self::Queue;
    async fn send(&self, body: &str);
    /// Sends a message to a group of a FIFO queue.
    async fn send_to_group(&self, group: &str, body: &str);
    async fn dead_letters(&self) -> u64;
}

struct InMemory(MemoryQueue);

impl InMemory {
    async fn new(_test: &str) -> Self {
        Self(MemoryQueue::new(MAX_RECEIVES))
    }

    async fn fifo(test: &str) -> Self {
        Self::new(test).await
    }
}

impl Subject for InMemory {
    type Queue = MemoryQueue;

    fn queue(&self) -> &MemoryQueue {
        &self.0
    }

    fn dead_letter_queue(&self) -> MemoryQueue {
        self.0.dead_letter_queue().unwrap().clone()
    }

    async fn send(&self, body: &str) {
        self.0.send(body);
    }

    async fn send_to_group(&self, group: &str, body: &str) {
        self.0.send_to_group(group, body);
    }

    async fn dead_letters(&self) -> u64 {
        self.0.dead_letters().len() as u64
    }
}

struct OnSqs {
    queue: SqsQueue,
    site: Site,
}

impl OnSqs {
    async fn new(test: &str) -> Self {
        let options = SiteOptions {
            max_receive_count: MAX_RECEIVES,
            ..SiteOptions::default()
        };
        let site = Stack::shared().site_with(test, options).await.unwrap();
        let queue = SqsQueue::new(site.sqs.clone(), &site.queue_url);
        let subject = Self { queue, site };
        // S3 has sent its test event.
        let test_event = subject.receive_one(LONG).await;
        assert!(test_event.body.contains("s3:TestEvent"), "{test_event:?}");
        assert_eq!(subject.queue.delete(&[test_event.handle]).await, Ok(vec![]));
        subject
    }

    async fn fifo(test: &str) -> Self {
        let site = Stack::shared().site(test).await.unwrap();
        let queue_url = fifo(&site, "ordered", None).await;
        Self {
            queue: SqsQueue::new(site.sqs.clone(), &queue_url),
            site: Site { queue_url, ..site },
        }
    }
}

impl Subject for OnSqs {
    type Queue = SqsQueue;

    fn queue(&self) -> &SqsQueue {
        &self.queue
    }

    fn dead_letter_queue(&self) -> SqsQueue {
        SqsQueue::new(self.site.sqs.clone(), &self.site.dlq_url)
    }

    async fn send(&self, body: &str) {
        self.site.send(body).await.unwrap();
    }

    async fn send_to_group(&self, group: &str, body: &str) {
        let request = self.site.sqs.send_message();
        let request = request.queue_url(&self.site.queue_url).message_body(body);
        let request = request.message_group_id(group);
        let request = request.message_deduplication_id(body);
        request.send().await.unwrap();
    }

    async fn dead_letters(&self) -> u64 {
        self.site.dlq_depth().await.unwrap()
    }
}

/// Steps that the tests share.
trait SubjectExt: Subject {
    /// Receives the next message, which must be the only one.
    async fn receive_one(&self, visibility: Duration) -> Message {
        wait_for("a message", BOUND, async || {
            let wait = Duration::from_secs(5);
            let received = self.queue().receive(MAX_BATCH, wait, visibility).await?;
            assert!(received.len() <= 1, "{received:?}");
            Ok(received.into_iter().next())
        })
        .await
    }

    /// Asserts that no message arrives within `wait`.
    async fn assert_nothing_received(&self, wait: Duration) {
        let received = self.queue().receive(MAX_BATCH, wait, LONG).await;
        assert_eq!(received, Ok(vec![]));
    }

    async fn change_visibility(&self, handle: &ReceiptHandle, visibility: Duration) {
        let entries = [(handle.clone(), visibility)];
        let failed = self.queue().change_visibility(&entries).await;
        assert_eq!(failed, Ok(vec![]));
    }

    async fn assert_cannot_change(&self, handle: &ReceiptHandle) {
        let entries = [(handle.clone(), LONG)];
        let failed = self.queue().change_visibility(&entries).await.unwrap();
        assert!(
            matches!(failed[..], [(0, QueueError::Gone(_))]),
            "{failed:?}"
        );
    }

    async fn delete(&self, handles: &[ReceiptHandle]) {
        assert_eq!(self.queue().delete(handles).await, Ok(vec![]));
    }

    /// Waits for these numbers of visible and of in-flight messages. Those of SQS are approximate:
    /// they follow within a minute.
    async fn wait_for_depth(&self, depth: (u64, u64)) {
        wait_for("the depth", DEPTH_BOUND, async || {
            let attributes = self.queue().attributes().await?;
            let found = (attributes.visible, attributes.in_flight);
            ensure!(found == depth, "{found:?}");
            Ok(Some(()))
        })
        .await;
    }

    async fn wait_for_dead_letters(&self, count: u64) {
        wait_for("the dead letters", DEPTH_BOUND, async || {
            let found = self.dead_letters().await;
            Ok((found == count).then_some(()))
        })
        .await;
    }
}

impl<S: Subject> SubjectExt for S {}

async fn a_message_is_received_as_it_was_sent(subject: &impl Subject) {
    let body = "{\"key\": \"a+b%20ü\\n\"}\n<&>";
    subject.send(body).await;
    let message = subject.receive_one(LONG).await;
    assert_eq!((message.body.as_str(), message.receive_count), (body, 1));
}

async fn the_receive_count_grows_and_the_id_stays(subject: &impl Subject) {
    subject.send("m").await;
    let mut handles = Vec::new();
    let mut ids = Vec::new();
    for count in 1..=MAX_RECEIVES {
        let message = subject.receive_one(SECOND).await;
        assert_eq!(message.receive_count, count);
        handles.push(message.handle.0);
        ids.push(message.id);
    }
    handles.sort();
    handles.dedup();
    ids.dedup();
    assert_eq!((handles.len(), ids.len()), (3, 1));
}

async fn a_message_is_hidden_while_in_flight(subject: &impl Subject) {
    subject.send("m").await;
    subject.receive_one(LONG).await;
    subject.assert_nothing_received(SECOND).await;
    subject.wait_for_depth((0, 1)).await;
}

async fn a_visibility_of_zero_returns_a_message_at_once(subject: &impl Subject) {
    subject.send("m").await;
    let message = subject.receive_one(LONG).await;
    subject
        .change_visibility(&message.handle, Duration::ZERO)
        .await;
    subject.wait_for_depth((1, 0)).await;
    assert_eq!(subject.receive_one(LONG).await.receive_count, 2);
}

async fn a_change_of_visibility_extends_or_shortens_it(subject: &impl Subject) {
    subject.send("m").await;
    let message = subject.receive_one(SECOND).await;
    subject.change_visibility(&message.handle, LONG).await;
    subject.assert_nothing_received(2 * SECOND).await;
    // A change also shortens.
    subject.change_visibility(&message.handle, SECOND).await;
    assert_eq!(subject.receive_one(LONG).await.receive_count, 2);
}

async fn a_deleted_message_is_gone(subject: &impl Subject) {
    subject.send("m").await;
    let message = subject.receive_one(SECOND).await;
    subject.delete(&[message.handle]).await;
    subject.assert_nothing_received(2 * SECOND).await;
    subject.wait_for_depth((0, 0)).await;
    assert_eq!(subject.dead_letters().await, 0);
}

async fn deleting_twice_is_a_success(subject: &impl Subject) {
    for body in ["a", "b"] {
        subject.send(body).await;
    }
    let a = subject.queue().receive(1, 5 * SECOND, LONG).await.unwrap();
    let b = subject.queue().receive(1, 5 * SECOND, LONG).await.unwrap();
    let (a, b) = (a[0].handle.clone(), b[0].handle.clone());
    subject.delete(std::slice::from_ref(&a)).await;
    subject.delete(std::slice::from_ref(&a)).await;
    // A message that is already deleted does not prevent the deletion of the others.
    subject.delete(&[a, b]).await;
    subject.wait_for_depth((0, 0)).await;
}

/// Heartbeats depend on this: the visibility of a message that is gone must not be extended again.
async fn changing_a_message_that_is_gone_or_redelivered_is_reported(subject: &impl Subject) {
    subject.send("m").await;
    let first = subject.receive_one(SECOND).await;
    let second = subject.receive_one(LONG).await;
    subject.assert_cannot_change(&first.handle).await;
    subject.delete(std::slice::from_ref(&second.handle)).await;
    subject.assert_cannot_change(&second.handle).await;
    subject.wait_for_depth((0, 0)).await;
}

/// The message stays with the consumer that received it last, and comes back if that one dies.
async fn a_delete_with_the_handle_of_an_earlier_delivery_deletes_nothing(subject: &impl Subject) {
    subject.send("m").await;
    let first = subject.receive_one(SECOND).await;
    let second = subject.receive_one(LONG).await;
    subject.delete(&[first.handle]).await;
    subject.wait_for_depth((0, 1)).await;
    subject.delete(&[second.handle]).await;
    subject.wait_for_depth((0, 0)).await;
}

async fn an_entry_that_fails_does_not_prevent_the_others(subject: &impl Subject) {
    subject.send("a").await;
    let a = subject.receive_one(LONG).await;
    subject.send("b").await;
    let b = subject.receive_one(LONG).await;
    subject.delete(std::slice::from_ref(&a.handle)).await;
    let entries = [(a.handle, LONG), (b.handle, Duration::ZERO)];
    let failed = subject.queue().change_visibility(&entries).await.unwrap();
    assert!(
        matches!(failed[..], [(0, QueueError::Gone(_))]),
        "{failed:?}"
    );
    assert_eq!(subject.receive_one(LONG).await.body, "b");
}

async fn ten_messages_fit_into_one_request(subject: &impl Subject) {
    for number in 0..MAX_BATCH + 2 {
        subject.send(&number.to_string()).await;
    }
    let mut received: Vec<Message> = Vec::new();
    wait_for("all messages", BOUND, async || {
        let some = subject.queue().receive(MAX_BATCH, SECOND, LONG).await?;
        assert!(some.len() <= MAX_BATCH, "{}", some.len());
        received.extend(some);
        Ok((received.len() == MAX_BATCH + 2).then_some(()))
    })
    .await;
    let handles: Vec<ReceiptHandle> = received[..MAX_BATCH]
        .iter()
        .map(|message| message.handle.clone())
        .collect();
    let entries: Vec<_> = handles.iter().map(|h| (h.clone(), 2 * LONG)).collect();
    let failed = subject.queue().change_visibility(&entries).await;
    assert_eq!(failed, Ok(vec![]));
    subject.delete(&handles).await;
    subject.wait_for_depth((0, 2)).await;
}

async fn a_long_poll_waits_until_a_message_arrives(subject: &impl Subject) {
    let start = Instant::now();
    subject.assert_nothing_received(SECOND).await;
    assert!(start.elapsed() >= SECOND * 9 / 10);

    let poll = subject.queue().receive(MAX_BATCH, 20 * SECOND, LONG);
    let arrival = async {
        tokio::time::sleep(SECOND).await;
        subject.send("m").await;
    };
    let (received, ()) = tokio::join!(poll, arrival);
    assert_eq!(received.unwrap().len(), 1);
}

async fn a_message_received_too_often_becomes_a_dead_letter(subject: &impl Subject) {
    subject.send("m").await;
    for count in 1..=MAX_RECEIVES {
        assert_eq!(subject.dead_letters().await, 0);
        let message = subject.receive_one(LONG).await;
        assert_eq!(message.receive_count, count);
        subject
            .change_visibility(&message.handle, Duration::ZERO)
            .await;
    }
    subject.assert_nothing_received(SECOND).await;
    subject.wait_for_dead_letters(1).await;
    subject.wait_for_depth((0, 0)).await;
}

async fn a_dead_letter_can_be_read_and_sent_again(subject: &impl Subject) {
    subject.send("m").await;
    let mut last = subject.receive_one(SECOND).await;
    while last.receive_count < MAX_RECEIVES {
        last = subject.receive_one(SECOND).await;
    }
    subject.assert_nothing_received(2 * SECOND).await;
    let dead_letters = subject.dead_letter_queue();
    let received = dead_letters.receive(MAX_BATCH, 5 * SECOND, LONG).await;
    let received = received.unwrap();
    assert_eq!(received.len(), 1, "{received:?}");
    let dead = &received[0];
    assert_eq!((&dead.id, &dead.body), (&last.id, &last.body));
    // The count is that of both queues.
    assert_eq!(dead.receive_count, MAX_RECEIVES + 1);

    subject.send(&dead.body).await;
    let handle = std::slice::from_ref(&dead.handle);
    assert_eq!(dead_letters.delete(handle).await, Ok(vec![]));
    subject.wait_for_dead_letters(0).await;
    let again = subject.receive_one(LONG).await;
    assert_eq!((again.body.as_str(), again.receive_count), ("m", 1));
    assert_ne!(again.id, dead.id);
}

async fn attributes_count_visible_and_in_flight_messages(subject: &impl Subject) {
    for body in ["a", "b", "c"] {
        subject.send(body).await;
    }
    subject.wait_for_depth((3, 0)).await;
    let received = subject.queue().receive(1, 5 * SECOND, LONG).await.unwrap();
    assert_eq!(received.len(), 1);
    subject.wait_for_depth((2, 1)).await;
    let attributes = subject.queue().attributes().await.unwrap();
    assert!(attributes.redrive_policy.is_some());
}

async fn a_group_waits_while_one_of_its_messages_is_in_flight(subject: &impl Subject) {
    subject.send_to_group("a", "a1").await;
    let first = subject.receive_one(LONG).await;
    subject.send_to_group("a", "a2").await;
    subject.send_to_group("b", "b1").await;
    assert_eq!(subject.receive_one(LONG).await.body, "b1");
    subject.assert_nothing_received(SECOND).await;

    let poll = subject.queue().receive(MAX_BATCH, 20 * SECOND, LONG);
    let deletion = async {
        tokio::time::sleep(SECOND).await;
        subject.delete(&[first.handle]).await;
    };
    let (received, ()) = tokio::join!(poll, deletion);
    assert_eq!(bodies_and_counts(&received.unwrap()), [("a2", 1)]);
}

async fn a_returned_message_precedes_the_later_ones_of_its_group(subject: &impl Subject) {
    subject.send_to_group("a", "a1").await;
    let first = subject.receive_one(LONG).await;
    subject.send_to_group("a", "a2").await;
    subject
        .change_visibility(&first.handle, Duration::ZERO)
        .await;
    let received = subject.queue().receive(MAX_BATCH, 5 * SECOND, LONG).await;
    let received = received.unwrap();
    assert_eq!(bodies_and_counts(&received), [("a1", 2), ("a2", 1)]);
}

async fn a_group_continues_where_a_visibility_timeout_ends(subject: &impl Subject) {
    subject.send_to_group("a", "a1").await;
    subject.receive_one(SECOND).await;
    subject.send_to_group("a", "a2").await;
    let received = subject.queue().receive(MAX_BATCH, 5 * SECOND, LONG).await;
    let received = received.unwrap();
    assert_eq!(bodies_and_counts(&received), [("a1", 2), ("a2", 1)]);
}

fn bodies_and_counts(received: &[Message]) -> Vec<(&str, u32)> {
    let messages = received.iter();
    messages
        .map(|message| (message.body.as_str(), message.receive_count))
        .collect()
}

macro_rules! contract {
    (
        standard: [$($promise:ident),+ $(,)?],
        fifo: [$($ordered:ident),+ $(,)?] $(,)?
    ) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $promise() {
                super::$promise(&super::InMemory::new(stringify!($promise)).await).await;
            })+
            $(#[tokio::test(start_paused = true)]
            async fn $ordered() {
                super::$ordered(&super::InMemory::fifo(stringify!($ordered)).await).await;
            })+
        }

        mod sqs {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(&super::OnSqs::new(stringify!($promise)).await).await;
            })+
            $(#[tokio::test]
            async fn $ordered() {
                super::$ordered(&super::OnSqs::fifo(stringify!($ordered)).await).await;
            })+
        }
    };
}

contract!(
    standard: [
        a_message_is_received_as_it_was_sent,
        the_receive_count_grows_and_the_id_stays,
        a_message_is_hidden_while_in_flight,
        a_visibility_of_zero_returns_a_message_at_once,
        a_change_of_visibility_extends_or_shortens_it,
        a_deleted_message_is_gone,
        deleting_twice_is_a_success,
        changing_a_message_that_is_gone_or_redelivered_is_reported,
        a_delete_with_the_handle_of_an_earlier_delivery_deletes_nothing,
        an_entry_that_fails_does_not_prevent_the_others,
        ten_messages_fit_into_one_request,
        a_long_poll_waits_until_a_message_arrives,
        a_message_received_too_often_becomes_a_dead_letter,
        a_dead_letter_can_be_read_and_sent_again,
        attributes_count_visible_and_in_flight_messages,
    ],
    fifo: [
        a_group_waits_while_one_of_its_messages_is_in_flight,
        a_returned_message_precedes_the_later_ones_of_its_group,
        a_group_continues_where_a_visibility_timeout_ends,
    ],
);

#[tokio::test]
async fn sqs_recognises_a_queue_without_redrive_policy() {
    let stack = Stack::shared();
    let site = stack.site("no-redrive").await.unwrap();
    let plain = SqsQueue::new(site.sqs.clone(), &site.dlq_url);
    assert_eq!(plain.attributes().await.unwrap().redrive_policy, None);
    site.sqs
        .set_queue_attributes()
        .queue_url(&site.queue_url)
        .attributes(QueueAttributeName::RedrivePolicy, "")
        .send()
        .await
        .unwrap();
    let stripped = SqsQueue::new(site.sqs.clone(), &site.queue_url);
    assert_eq!(stripped.attributes().await.unwrap().redrive_policy, None);
}

#[tokio::test]
async fn sqs_distinguishes_a_missing_queue_from_an_unavailable_one() {
    let stack = Stack::shared();
    let sqs = stack.aws.sqs();
    let missing = format!("{}/000000000000/no-such-queue", stack.aws.endpoint());
    let error = SqsQueue::new(sqs, missing).attributes().await;
    assert!(matches!(error, Err(QueueError::Denied(_))), "{error:?}");

    let port = sluice_testkit::free_port().unwrap();
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version_latest()
        .endpoint_url(format!("http://127.0.0.1:{port}"))
        .region(aws_sdk_sqs::config::Region::new("us-east-1"))
        .credentials_provider(aws_sdk_sqs::config::Credentials::for_tests())
        .build();
    let unavailable = SqsQueue::new(aws_sdk_sqs::Client::from_conf(config), "http://q/0/q");
    let error = unavailable.attributes().await;
    assert!(matches!(error, Err(QueueError::Transient(_))), "{error:?}");
}
