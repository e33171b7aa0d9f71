//! A queue with negligible cost: Sluice's in-memory queue behind the protocol of SQS.
//!
//! The stand-in for AWS scans every message of a queue with each receive. With 20,000 messages, a
//! benchmark would measure the stand-in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use sluice::object::ObjectRef;
use sluice::queue::memory::MemoryQueue;
use sluice::queue::{Queue, ReceiptHandle};
use sluice_testkit::serve::{Answer, Server};

use crate::objects::ObjectServer;

const MAX_RECEIVE_COUNT: u32 = 20;
const DEAD_LETTERS: &str = "dead-letters";

/// The addresses of a queue and of the objects that it announces.
pub(crate) struct Addresses {
    pub(crate) queue_url: String,
    /// `http://127.0.0.1:PORT` of the queue; `s3` has the same form.
    pub(crate) sqs: String,
    pub(crate) s3: String,
}

/// The server, which stops when it is dropped.
pub(crate) struct QueueServer {
    shared: Arc<Shared>,
    server: Server,
}

struct Shared {
    queue: MemoryQueue,
    requests: AtomicU64,
    first_receive: OnceLock<Instant>,
    last_delete: Mutex<Option<Instant>>,
}

/// The fields of all requests. Those that a request does not use are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RequestBody {
    queue_url: String,
    max_number_of_messages: usize,
    wait_time_seconds: u64,
    visibility_timeout: u64,
    entries: Vec<Entry>,
}

impl Default for RequestBody {
    fn default() -> Self {
        Self {
            queue_url: String::new(),
            max_number_of_messages: 1,
            wait_time_seconds: 0,
            visibility_timeout: 30,
            entries: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    id: String,
    receipt_handle: String,
    #[serde(default)]
    visibility_timeout: u64,
}

impl QueueServer {
    /// Starts a queue with a message for each object, as S3 sends them.
    pub(crate) async fn start<'a>(
        objects: impl IntoIterator<Item = &'a ObjectRef>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            queue: MemoryQueue::new(MAX_RECEIVE_COUNT),
            requests: AtomicU64::new(0),
            first_receive: OnceLock::new(),
            last_delete: Mutex::new(None),
        });
        let served = shared.clone();
        let server = Server::start(move |request| served.clone().answer(request)).await?;
        let queue = Self { shared, server };
        for object in objects {
            queue.announce(object);
        }
        Ok(queue)
    }

    /// Sends the message for another object.
    pub(crate) fn announce(&self, object: &ObjectRef) {
        self.shared.queue.send(announcement(object));
    }

    /// Returns the addresses for a worker.
    pub(crate) fn addresses(&self, objects: &ObjectServer) -> Addresses {
        let sqs = self.server.url();
        Addresses {
            queue_url: format!("{sqs}/000000000000/queue"),
            sqs,
            s3: objects.endpoint().to_owned(),
        }
    }

    /// Returns the number of visible and of in-flight messages.
    pub(crate) async fn depth(&self) -> Result<(u64, u64)> {
        let attributes = self.shared.queue.attributes().await?;
        Ok((attributes.visible, attributes.in_flight))
    }

    /// Returns the time from the first receive to the last delete.
    pub(crate) fn processing_time(&self) -> Result<Duration> {
        let first = self.shared.first_receive.get();
        let last = *self
            .shared
            .last_delete
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let first = *first.context("nothing was received")?;
        Ok(last.context("nothing was deleted")? - first)
    }

    /// Returns the number of requests.
    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Shared {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let host = request.headers().get(HOST).context("no host")?;
        let host = host.to_str()?.to_owned();
        let target = request.headers().get("x-amz-target");
        let target = target.context("no x-amz-target")?.to_str()?.to_owned();
        let body = request.into_body().collect().await?.to_bytes();
        let body: RequestBody = serde_json::from_slice(&body)?;
        let answer = match target.trim_start_matches("AmazonSQS.") {
            "ReceiveMessage" => {
                self.first_receive.get_or_init(Instant::now);
                self.receive(&body).await?
            }
            "DeleteMessageBatch" => {
                let entries = body.entries.iter();
                let handles: Vec<_> = entries.map(|it| handle(&it.receipt_handle)).collect();
                self.queue.delete(&handles).await?;
                *self
                    .last_delete
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                all_successful(&body)
            }
            "ChangeMessageVisibilityBatch" => {
                let entries = body.entries.iter().map(|it| {
                    let timeout = Duration::from_secs(it.visibility_timeout);
                    (handle(&it.receipt_handle), timeout)
                });
                let entries: Vec<_> = entries.collect();
                self.queue.change_visibility(&entries).await?;
                all_successful(&body)
            }
            "GetQueueAttributes" => self.attributes(&body).await?,
            "GetQueueUrl" => {
                json!({"QueueUrl": format!("http://{host}/000000000000/{DEAD_LETTERS}")})
            }
            other => bail!("unsupported operation {other}"),
        };
        let mut response = Response::new(Bytes::from(answer.to_string()).into());
        let json = "application/x-amz-json-1.0".parse()?;
        response.headers_mut().insert(CONTENT_TYPE, json);
        Ok(response)
    }

    async fn receive(&self, body: &RequestBody) -> Result<Value> {
        let wait = Duration::from_secs(body.wait_time_seconds);
        let visibility = Duration::from_secs(body.visibility_timeout);
        let max = body.max_number_of_messages;
        let received = self.queue.receive(max, wait, visibility).await?;
        let messages = received.into_iter().map(|message| {
            let sent_at = (SystemTime::now() - message.age).duration_since(UNIX_EPOCH);
            json!({
                "MessageId": message.id,
                "ReceiptHandle": message.handle.0,
                "Body": message.body,
                "Attributes": {
                    "ApproximateReceiveCount": message.receive_count.to_string(),
                    "SentTimestamp": sent_at.unwrap_or_default().as_millis().to_string(),
                },
            })
        });
        Ok(json!({"Messages": messages.collect::<Vec<_>>()}))
    }

    async fn attributes(&self, body: &RequestBody) -> Result<Value> {
        if body.queue_url.ends_with(DEAD_LETTERS) {
            return Ok(json!({"Attributes": {"ApproximateNumberOfMessages": "0"}}));
        }
        let it = self.queue.attributes().await?;
        let policy = json!({
            "deadLetterTargetArn": format!("arn:aws:sqs:us-east-1:000000000000:{DEAD_LETTERS}"),
            "maxReceiveCount": MAX_RECEIVE_COUNT,
        });
        Ok(json!({"Attributes": {
            "QueueArn": it.arn,
            "ApproximateNumberOfMessages": it.visible.to_string(),
            "ApproximateNumberOfMessagesNotVisible": it.in_flight.to_string(),
            "RedrivePolicy": policy.to_string(),
        }}))
    }
}

fn handle(text: &str) -> ReceiptHandle {
    ReceiptHandle(text.to_owned())
}

fn all_successful(body: &RequestBody) -> Value {
    let ids = body.entries.iter().map(|entry| json!({"Id": entry.id}));
    json!({"Successful": ids.collect::<Vec<_>>(), "Failed": []})
}

/// Returns the message with which S3 announces an object.
fn announcement(object: &ObjectRef) -> String {
    json!({"Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "us-east-1",
        "eventTime": "2026-07-14T12:00:00.000Z",
        "eventName": "ObjectCreated:Put",
        "userIdentity": {"principalId": "AWS:AROAEXAMPLE:uploader"},
        "requestParameters": {"sourceIPAddress": "192.0.2.1"},
        "responseElements": {"x-amz-request-id": "C3D13FE58DE4C810", "x-amz-id-2": "FMyUVURIY8/IgAtTv8xRjskZQpcIZ9KG4V5Wp6S7S/JRWeUWerMUE5JgHvANOjpD"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "uploads",
            "bucket": {"name": object.bucket, "ownerIdentity": {"principalId": "A3NL1KOZZKExample"}, "arn": format!("arn:aws:s3:::{}", object.bucket)},
            "object": {"key": object.key, "size": object.size, "eTag": object.etag, "sequencer": "0062E99A88DC407460"},
        },
    }]})
    .to_string()
}
