//! Deletes and returns messages in batch requests, and retries what fails. Also sends heartbeats,
//! which [`crate::daemon::heartbeats`] retries.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tracing::warn;

use super::Traced;
use crate::Env;
use crate::daemon::heartbeats::Extension;
use crate::daemon::in_flight::Settlement;
use crate::queue::{FailedEntries, MAX_BATCH, Queue, QueueError, ReceiptHandle, except_gone};
use crate::telemetry::activity::Activity;
use crate::telemetry::metrics::{self, SqsOperation};
use crate::util::failpoint;
use sluice_core::backoff::Backoff;

/// Requests in flight at a time.
const CONCURRENCY: usize = 8;
/// The number of times that a request is tried. After that, the messages reappear by themselves,
/// and the ledger recognises their objects.
const TRIES: u32 = 6;
const BACKOFF: Backoff = Backoff {
    min: Duration::from_millis(500),
    max: Duration::from_secs(16),
};

/// Performs settlements until their sender is gone and all are done. Reports the handles of
/// messages to delete once their deletion has succeeded or was given up.
pub(super) async fn run<Q: Queue>(
    queue: Arc<Q>,
    env: Env,
    activity: Arc<Activity>,
    mut settlements: mpsc::UnboundedReceiver<Traced>,
    deleted: mpsc::UnboundedSender<Vec<ReceiptHandle>>,
) {
    let mut requests = JoinSet::new();
    let mut received = Vec::new();
    loop {
        if settlements
            .recv_many(&mut received, MAX_BATCH * CONCURRENCY)
            .await
            == 0
        {
            break;
        }
        let mut deletes = Vec::new();
        let mut returns = Vec::new();
        for (settlement, trace) in received.drain(..) {
            match settlement {
                Settlement::Delete(handle) => deletes.push((handle, trace)),
                Settlement::Return { handle, delay } => returns.push(((handle, delay), trace)),
            }
        }
        for (handles, traces) in in_requests(deletes) {
            let delete = delete(
                queue.clone(),
                env.clone(),
                activity.clone(),
                handles.clone(),
            );
            let deleted = deleted.clone();
            requests.spawn(delete.map(move |()| {
                drop(traces);
                // While the worker stops, nobody receives them any more.
                drop(deleted.send(handles));
            }));
        }
        for (entries, traces) in in_requests(returns) {
            let done = return_messages(queue.clone(), env.clone(), activity.clone(), entries);
            requests.spawn(done.map(|()| drop(traces)));
        }
        while requests.len() > CONCURRENCY {
            requests.join_next().await;
        }
    }
    requests.join_all().await;
}

/// Divides entries into requests, each with the traces that end with it.
fn in_requests<T, U>(entries: Vec<(T, U)>) -> impl Iterator<Item = (Vec<T>, Vec<U>)> {
    let mut entries = entries.into_iter();
    std::iter::from_fn(move || {
        let request: (Vec<_>, Vec<_>) = entries.by_ref().take(MAX_BATCH).unzip();
        (!request.0.is_empty()).then_some(request)
    })
}

async fn delete<Q: Queue>(
    queue: Arc<Q>,
    env: Env,
    activity: Arc<Activity>,
    handles: Vec<ReceiptHandle>,
) {
    failpoint::reach("delete.before");
    let done = retry(SqsOperation::Delete, &env, handles, |handles| {
        let queue = queue.clone();
        async move { queue.delete(&handles).await }
    })
    .await;
    failpoint::reach("delete.after");
    metrics::messages_deleted(done);
    activity.deleted(done);
}

async fn return_messages<Q: Queue>(
    queue: Arc<Q>,
    env: Env,
    activity: Arc<Activity>,
    entries: Vec<(ReceiptHandle, Duration)>,
) {
    let done = retry(SqsOperation::Release, &env, entries, |entries| {
        let queue = queue.clone();
        async move { queue.change_visibility(&entries).await }
    })
    .await;
    metrics::messages_released(done);
    activity.released(done);
}

/// Sends a heartbeat once. Returns its number and its result.
pub(super) async fn extend<Q: Queue>(
    queue: Arc<Q>,
    extension: Extension,
) -> (u64, Result<FailedEntries, QueueError>) {
    let request = queue.change_visibility(&extension.entries);
    // A request that panics must not keep its place among those in flight.
    let request = AssertUnwindSafe(request).catch_unwind();
    let result = match timeout_at(extension.give_up, request).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(QueueError::Transient("the request panicked".to_owned())),
        Err(_) => {
            let text = "no response before the visibility timeout expired".to_owned();
            Err(QueueError::Transient(text))
        }
    };
    (extension.number, result)
}

/// Retries a batch request for the entries that failed. Returns how many succeeded in the end.
async fn retry<T: Clone, F>(
    operation: SqsOperation,
    env: &Env,
    mut entries: Vec<T>,
    request: impl Fn(Vec<T>) -> F,
) -> usize
where
    F: Future<Output = Result<FailedEntries, QueueError>>,
{
    let total = entries.len();
    for attempt in 1.. {
        let error = match request(entries.clone()).await {
            Ok(failed) => {
                let failed = except_gone(failed);
                let Some((_, error)) = failed.first().cloned() else {
                    return total;
                };
                entries = failed
                    .iter()
                    .filter_map(|(index, _)| entries.get(*index).cloned())
                    .collect();
                error
            }
            Err(error) => error,
        };
        metrics::sqs_failures(operation, entries.len());
        if attempt == TRIES {
            warn!(
                operation = operation.label(),
                messages = entries.len(),
                tries = TRIES,
                error = %error,
                "giving up on SQS request; messages reappear after their visibility timeout"
            );
            break;
        }
        tokio::time::sleep(BACKOFF.pause(attempt, env.fraction())).await;
    }
    total - entries.len()
}
