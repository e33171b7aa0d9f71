//! The queue in memory, as a worker reaches it through a network.

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;
use sluice::queue::memory::MemoryQueue;
use sluice::queue::{FailedEntries, Message, Queue, QueueAttributes, QueueError, ReceiptHandle};
use tokio::sync::oneshot;

use crate::network::{Broken, Client, Network};

/// A client's connection to a queue.
#[derive(Clone, Debug)]
pub struct SimQueue {
    queue: MemoryQueue,
    network: Network,
    client: Client,
}

impl SimQueue {
    pub fn new(queue: MemoryQueue, network: Network, client: Client) -> Self {
        Self {
            queue,
            network,
            client,
        }
    }

    async fn request<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T, QueueError> + Send + 'static,
    ) -> Result<T, QueueError> {
        let answer = self.network.carry(&self.client, what, work).await;
        answer.unwrap_or_else(|Broken| Err(no_answer()))
    }

    /// Returns what the queue does when a receive arrives: it begins a long poll, which does not
    /// end with the connection. If nobody waits for its result any more, the messages stay hidden.
    fn poll(
        self,
        max: usize,
        wait: Duration,
        visibility: Duration,
    ) -> impl FnOnce() -> Result<oneshot::Receiver<Received>, QueueError> + Send + 'static {
        let Self {
            queue,
            network,
            client,
        } = self;
        move || {
            let (answer, answered) = oneshot::channel();
            tokio::spawn(async move {
                let received = queue.receive(max, wait, visibility).await;
                for message in received.iter().flatten() {
                    network.note(format_args!(
                        "{} is sent {} as {} (receive {})",
                        client.name, message.id, message.handle.0, message.receive_count
                    ));
                }
                // The client may have gone.
                drop(answer.send(received));
            });
            Ok(answered)
        }
    }
}

type Received = Result<Vec<Message>, QueueError>;

impl Queue for SimQueue {
    async fn receive(&self, max: usize, wait: Duration, visibility: Duration) -> Received {
        let poll = self.clone().poll(max, wait, visibility);
        let answered = self.request("SQS receive", poll).await?;
        let received = answered.await.unwrap_or_else(|_| Err(no_answer()));
        // A message that was taken is hidden, whether or not the answer arrives.
        self.request("SQS messages", move || received).await
    }

    async fn delete(&self, handles: &[ReceiptHandle]) -> Result<FailedEntries, QueueError> {
        let (this, handles) = (self.clone(), handles.to_vec());
        let delete = move || {
            for handle in &handles {
                let name = &this.client.name;
                this.network
                    .note(format_args!("{name} deletes {}", handle.0));
            }
            at_once(this.queue.delete(&handles))
        };
        self.request("SQS delete", delete).await
    }

    async fn change_visibility(
        &self,
        entries: &[(ReceiptHandle, Duration)],
    ) -> Result<FailedEntries, QueueError> {
        let (this, entries) = (self.clone(), entries.to_vec());
        let change = move || {
            for (handle, timeout) in &entries {
                let (name, seconds) = (&this.client.name, timeout.as_secs());
                this.network
                    .note(format_args!("{name} hides {} for {seconds} s", handle.0));
            }
            at_once(this.queue.change_visibility(&entries))
        };
        self.request("SQS change", change).await
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        let queue = self.queue.clone();
        let attributes = move || at_once(queue.attributes());
        self.request("SQS attributes", attributes).await
    }
}

/// Returns the result of an operation that does not wait.
fn at_once<T>(operation: impl Future<Output = T>) -> T {
    operation
        .now_or_never()
        .expect("a queue in memory waits only in a receive")
}

/// The error that production makes of a connection that breaks.
fn no_answer() -> QueueError {
    QueueError::Transient("no response from SQS".to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::network::Disturbance;
    use crate::trace::Trace;

    const LONG: Duration = Duration::from_secs(300);
    const SECOND: Duration = Duration::from_secs(1);
    const WAIT: Duration = Duration::from_secs(20);
    const HOUR: Duration = Duration::from_secs(3600);
    const ALWAYS: u32 = 1000;

    struct World {
        queue: MemoryQueue,
        network: Network,
        trace: Trace,
    }

    impl World {
        fn new() -> Self {
            let trace = Trace::new(true);
            Self {
                queue: MemoryQueue::new(3),
                network: Network::new(fastrand::Rng::with_seed(7), trace.clone()),
                trace,
            }
        }

        fn connect(&self, name: &str) -> SimQueue {
            self.connect_as(Client::new(name))
        }

        fn connect_as(&self, client: Client) -> SimQueue {
            SimQueue::new(self.queue.clone(), self.network.clone(), client)
        }

        fn disturb(&self, disturbance: Disturbance) {
            self.network.disturb(disturbance);
        }
    }

    async fn handle(queue: &SimQueue) -> ReceiptHandle {
        let received = queue.receive(10, WAIT, LONG).await.unwrap();
        assert_eq!(received.len(), 1, "{received:?}");
        received[0].handle.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_received_extended_and_deleted() {
        let world = World::new();
        let worker = world.connect("worker");
        let arrival = async {
            tokio::time::sleep(SECOND).await;
            world.queue.send("m");
        };
        let (handle, ()) = tokio::join!(handle(&worker), arrival);
        let entries = [(handle.clone(), HOUR)];
        assert_eq!(worker.change_visibility(&entries).await, Ok(vec![]));
        tokio::time::sleep(LONG).await;
        let attributes = worker.attributes().await.unwrap();
        assert_eq!((attributes.visible, attributes.in_flight), (0, 1));
        assert_eq!(worker.delete(&[handle]).await, Ok(vec![]));
        assert_eq!(world.queue.receive_counts(), Vec::<u32>::new());
        assert_eq!(worker.receive(10, WAIT, LONG).await, Ok(vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_leaves_messages_hidden() {
        let world = World::new();
        world.queue.send("m");
        world.disturb(Disturbance {
            unanswered: ALWAYS,
            ..Disturbance::default()
        });
        let worker = world.connect("worker");
        let received = worker.receive(10, WAIT, LONG).await;
        assert_eq!(received, Err(no_answer()));
        world.disturb(Disturbance::default());
        tokio::time::sleep(SECOND).await;
        assert_eq!(world.queue.receive_counts(), [1]);
        assert_eq!(worker.receive(10, WAIT, LONG).await, Ok(vec![]));
        let again = worker.receive(10, LONG, LONG).await.unwrap();
        assert_eq!(again[0].receive_count, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_request_has_no_effect_and_a_late_one_has_its_effect_later() {
        let world = World::new();
        world.queue.send("m");
        let worker = world.connect("worker");
        let handles = [handle(&worker).await];
        world.network.cut(true);
        assert_eq!(worker.delete(&handles).await, Err(no_answer()));
        tokio::time::sleep(SECOND).await;
        assert_eq!(world.queue.receive_counts(), [1]);
        world.network.cut(false);
        world.disturb(Disturbance {
            late: ALWAYS,
            ..Disturbance::default()
        });
        assert_eq!(worker.delete(&handles).await, Err(no_answer()));
        assert_eq!(world.queue.receive_counts(), [1]);
        tokio::time::sleep(LONG / 2).await;
        assert_eq!(world.queue.receive_counts(), Vec::<u32>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_continues_without_its_client() {
        let world = World::new();
        let client = Client::new("worker");
        let worker = world.connect_as(client.clone());
        let crash = async {
            tokio::time::sleep(SECOND).await;
            client.crash();
            world.queue.send("m");
        };
        let poll = timeout(HOUR, worker.receive(10, WAIT, LONG));
        let (received, ()) = tokio::join!(poll, crash);
        assert!(received.is_err());
        let other = world.connect("other");
        // The visibility timeout has ended.
        let received = other.receive(10, WAIT, LONG).await.unwrap();
        assert_eq!(received[0].receive_count, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_leads_to_the_same_trace() {
        let run = async || {
            let world = World::new();
            world.disturb(Disturbance {
                lost: 50,
                unanswered: 50,
                late: 50,
                slow: 50,
            });
            for _ in 0..50 {
                world.queue.send("m");
            }
            let consume = async |name: &str| {
                let worker = world.connect(name);
                for _ in 0..20 {
                    let received = worker.receive(10, WAIT, LONG).await;
                    let handles = received.iter().flatten().map(|it| it.handle.clone());
                    drop(worker.delete(&handles.collect::<Vec<_>>()).await);
                }
            };
            tokio::join!(consume("one"), consume("two"));
            world.trace.lines()
        };
        let first = run().await;
        assert!(first.iter().any(|line| line.contains("one deletes")));
        assert!(first.iter().any(|line| line.contains("two deletes")));
        assert_eq!(run().await, first);
    }
}
