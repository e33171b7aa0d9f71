//! Tests of the daemon on a paused clock, with a queue in memory and scripted loads.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

use super::*;
use crate::batch::{Batch, BatchLimits};
use crate::daemon::in_flight::VisibilityPolicy;
use crate::load::Outcome;
use crate::load::breaker::Scope;
use crate::queue::memory::MemoryQueue;
use crate::queue::{Message, QueueAttributes, ReceiptHandle, VISIBILITY_LIMIT};
use crate::telemetry::activity::Activity;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const VISIBILITY: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(60);
const MAX_RECEIVES: u32 = 4;

const OPTIONS: Options = Options {
    limits: Limits {
        batch: BatchLimits {
            window: WINDOW,
            flush_when_idle: true,
            max_objects: 3,
            max_bytes: 1 << 20,
        },
        visibility: VisibilityPolicy {
            timeout: VISIBILITY,
            limit: VISIBILITY_LIMIT,
            retry_min: Duration::from_secs(10),
            retry_max: Duration::from_secs(600),
        },
        concurrency: 2,
        max_held: 1000,
    },
    receivers: 2,
    wait_time: Duration::from_secs(20),
    grace_period: GRACE,
};

/// A batch for each object.
fn one_object_a_batch() -> Options {
    let mut options = OPTIONS;
    options.limits.batch.max_objects = 1;
    options
}

/// Every batch waits for its window.
fn fixed_window() -> Options {
    let mut options = OPTIONS;
    options.limits.batch.flush_when_idle = false;
    options
}

/// How slow a queue is.
#[derive(Clone, Copy, Default)]
struct Slowness {
    /// The time of any request: half of it before and half of it after it takes effect.
    request: Duration,
    /// The response to a receive takes this much longer.
    receive_answer: Duration,
    /// A delete takes this much longer to take effect.
    delete: Duration,
}

/// The queue, and counts of the requests to it.
struct Spied {
    queue: MemoryQueue,
    slowness: Slowness,
    /// The requests that the queue processes at a time.
    lanes: Semaphore,
    receives: AtomicUsize,
    /// Messages in requests to delete, successful or not.
    deletes: AtomicUsize,
    changes: AtomicUsize,
}

impl Queue for Spied {
    async fn receive(
        &self,
        max: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        self.receives.fetch_add(1, Ordering::Relaxed);
        // Waiting for messages keeps no other request waiting.
        drop(self.begin().await);
        // SQS keeps serving a receive after its client has disconnected.
        let queue = self.queue.clone();
        let received = tokio::spawn(async move { queue.receive(max, wait, visibility).await });
        let received = received.await.expect("a receive does not panic");
        drop(self.begin().await);
        pass(self.slowness.receive_answer).await;
        received
    }

    async fn delete(&self, handles: &[ReceiptHandle]) -> Result<FailedEntries, QueueError> {
        self.deletes.fetch_add(handles.len(), Ordering::Relaxed);
        let _lane = self.begin().await;
        pass(self.slowness.delete).await;
        let deleted = self.queue.delete(handles).await;
        pass(self.slowness.request / 2).await;
        deleted
    }

    async fn change_visibility(
        &self,
        entries: &[(ReceiptHandle, Duration)],
    ) -> Result<FailedEntries, QueueError> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let _lane = self.begin().await;
        let changed = self.queue.change_visibility(entries).await;
        pass(self.slowness.request / 2).await;
        changed
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        self.queue.attributes().await
    }
}

impl Spied {
    fn new(max_receives: u32) -> Self {
        Self {
            queue: MemoryQueue::new(max_receives),
            slowness: Slowness::default(),
            lanes: Semaphore::new(Semaphore::MAX_PERMITS),
            receives: AtomicUsize::new(0),
            deletes: AtomicUsize::new(0),
            changes: AtomicUsize::new(0),
        }
    }

    async fn begin(&self) -> SemaphorePermit<'_> {
        let lane = self.lanes.acquire().await.unwrap();
        pass(self.slowness.request / 2).await;
        lane
    }
}

type Ending = Pin<Box<dyn Future<Output = Outcome> + Send>>;
/// Receives the number of the load, from 0, its keys, and the token that cancels it. Its outcome
/// applies to every object.
type Script = Box<dyn Fn(usize, Vec<String>, CancellationToken) -> Ending + Send + Sync>;

struct Scripted {
    loads: Mutex<Vec<(Instant, Vec<String>)>>,
    script: Script,
}

impl Load for Scripted {
    async fn load(&self, batch: Batch, cancel: CancellationToken) -> Outcomes {
        let keys: Vec<String> = batch.objects.iter().map(|o| o.key.clone()).collect();
        let number = {
            let mut loads = lock(&self.loads);
            loads.push((Instant::now(), keys.clone()));
            loads.len() - 1
        };
        let outcome = (self.script)(number, keys, cancel).await;
        let objects = batch.objects.iter();
        objects.map(|o| (o.id(), outcome)).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn script<F>(
    ending: impl Fn(usize, Vec<String>, CancellationToken) -> F + Send + Sync + 'static,
) -> Script
where
    F: Future<Output = Outcome> + Send + 'static,
{
    Box::new(move |number, keys, cancel| Box::pin(ending(number, keys, cancel)))
}

/// Every load ends with `outcome`, after the time `takes`.
fn always(outcome: Outcome, takes: Duration) -> Script {
    script(move |_, _, _| async move {
        tokio::time::sleep(takes).await;
        outcome
    })
}

/// Each load waits for a permit.
fn gated(gate: &Arc<Semaphore>) -> Script {
    let gate = gate.clone();
    script(move |_, _, _| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Outcome::Loaded
        }
    })
}

/// Loads end only when they are cancelled, and then at once.
fn until_cancelled() -> Script {
    script(|_, _, cancel| async move {
        cancel.cancelled().await;
        Outcome::Abandoned
    })
}

struct Rig {
    spied: Arc<Spied>,
    loader: Arc<Scripted>,
    handles: WorkerHandles,
    stop: CancellationToken,
    daemon: JoinHandle<()>,
}

impl Rig {
    fn start(options: Options, script: Script) -> Self {
        let rig = Self::start_open(options, script);
        rig.handles.breaker.succeeded(Scope::Everything);
        rig
    }

    /// With an open breaker.
    fn start_open(options: Options, script: Script) -> Self {
        Self::start_on(Spied::new(MAX_RECEIVES), options, script)
    }

    fn start_on(spied: Spied, options: Options, script: Script) -> Self {
        let spied = Arc::new(spied);
        let loader = Arc::new(Scripted {
            loads: Mutex::default(),
            script,
        });
        let handles = WorkerHandles::new(SECOND, Activity::default());
        let stop = CancellationToken::new();
        let daemon = Daemon {
            queue: spied.clone(),
            loader: loader.clone(),
            handles: handles.clone(),
            envelopes: Envelopes::default(),
            filter: Filter::default(),
            options,
            env: Env::default(),
        };
        let daemon = tokio::spawn(run(daemon, stop.clone()));
        Self {
            spied,
            loader,
            handles,
            stop,
            daemon,
        }
    }

    fn send(&self, keys: &[&str]) {
        self.spied.queue.send(announcement(keys));
    }

    /// The keys of every load so far.
    fn loads(&self) -> Vec<Vec<String>> {
        let loads = lock(&self.loader.loads);
        loads.iter().map(|(_, keys)| keys.clone()).collect()
    }

    fn load_times(&self) -> Vec<Instant> {
        lock(&self.loader.loads).iter().map(|(at, _)| *at).collect()
    }

    /// How often each message that is not deleted was received.
    fn receive_counts(&self) -> Vec<u32> {
        self.spied.queue.receive_counts()
    }

    fn is_empty(&self) -> bool {
        self.receive_counts().is_empty()
    }

    fn deletes(&self) -> usize {
        self.spied.deletes.load(Ordering::Relaxed)
    }

    fn receives(&self) -> usize {
        self.spied.receives.load(Ordering::Relaxed)
    }

    async fn attributes(&self) -> QueueAttributes {
        self.spied.attributes().await.unwrap()
    }

    /// Stops the daemon, and returns how long that takes.
    async fn stop(&mut self) -> Duration {
        let start = Instant::now();
        self.stop.cancel();
        timeout(HOUR, &mut self.daemon)
            .await
            .expect("the daemon ends")
            .unwrap();
        start.elapsed()
    }
}

fn announcement(keys: &[&str]) -> String {
    let records = keys.iter().map(|key| {
        json!({
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": "uploads"}, "object": {"key": key, "eTag": "e", "size": 1}},
        })
    });
    json!({"Records": records.collect::<Vec<_>>()}).to_string()
}

/// Lets the paused clock run until `condition` holds.
#[track_caller]
fn until(what: &str, condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let give_up = Instant::now() + 12 * HOUR;
        while !condition() {
            assert!(Instant::now() < give_up, "{caller}: never {what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Lets everything happen that is going to happen within this time.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn a_window_closes_a_batch() {
    let rig = Rig::start(fixed_window(), always(Outcome::Loaded, Duration::ZERO));
    let start = Instant::now();
    rig.send(&["a"]);
    pass(WINDOW - SECOND).await;
    rig.send(&["b"]);
    assert_eq!(rig.loads(), Vec::<Vec<String>>::new());
    until("empty", || rig.is_empty()).await;
    assert_eq!(rig.loads(), [["a", "b"]]);
    assert!(rig.load_times()[0] - start >= WINDOW);
    assert_eq!(rig.deletes(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_loads_at_once_and_a_busy_one_after_the_window() {
    let mut options = OPTIONS;
    options.limits.batch.max_objects = 1000;
    let rig = Rig::start(options, always(Outcome::Loaded, SECOND / 4));
    for key in ["a", "b", "c"] {
        let sent = Instant::now();
        rig.send(&[key]);
        until("empty", || rig.is_empty()).await;
        assert!(sent.elapsed() < SECOND);
        pass(WINDOW / 2).await;
    }
    assert_eq!(rig.loads(), [["a"], ["b"], ["c"]]);
    // Twenty per second: none of them is alone.
    for number in 0..1200 {
        rig.send(&[&format!("k{number}")]);
        pass(SECOND / 20).await;
    }
    until("empty", || rig.is_empty()).await;
    let loads = rig.load_times();
    assert!((3 + 6..=3 + 7).contains(&loads.len()), "{loads:?}");
    for pair in loads[3..].windows(2) {
        assert!(pair[1] - pair[0] <= WINDOW + SECOND / 10, "{loads:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_due_batch_keeps_filling_until_a_load_slot_is_free() {
    let gate = Arc::new(Semaphore::new(0));
    let mut options = fixed_window();
    options.limits.batch.max_objects = 100;
    options.limits.concurrency = 1;
    let rig = Rig::start(options, gated(&gate));
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    // One per hour, long after the window of the first.
    for key in ["b", "c", "d"] {
        rig.send(&[key]);
        pass(HOUR).await;
    }
    assert_eq!(rig.loads(), [["a"]]);
    gate.add_permits(2);
    until("empty", || rig.is_empty()).await;
    assert_eq!(rig.loads(), [vec!["a"], vec!["b", "c", "d"]]);
    assert_eq!(rig.deletes(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_due_batch_is_not_overtaken_indefinitely_by_full_ones() {
    let gate = Arc::new(Semaphore::new(0));
    let mut options = fixed_window();
    options.limits.batch.max_objects = 2;
    options.limits.concurrency = 1;
    let rig = Rig::start(options, gated(&gate));
    let send = |bucket: &str, keys: &[&str]| {
        let body = announcement(keys).replace("uploads", bucket);
        rig.spied.queue.send(body);
    };
    send("busy", &["a1", "a2"]);
    send("busy", &["b1", "b2"]);
    until("a load", || rig.loads().len() == 1).await;
    send("quiet", &["alone"]);
    pass(SECOND).await;
    send("busy", &["c1", "c2"]);
    pass(WINDOW).await;
    gate.add_permits(4);
    until("empty", || rig.is_empty()).await;
    let loads: Vec<String> = rig.loads().iter().map(|keys| keys.concat()).collect();
    assert_eq!(loads, ["a1a2", "b1b2", "alone", "c1c2"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_returns_the_messages_of_a_due_batch_that_waits_for_a_load_slot() {
    let mut options = fixed_window();
    options.limits.concurrency = 1;
    let mut rig = Rig::start(options, always(Outcome::Loaded, GRACE / 2 + WINDOW));
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    rig.send(&["b"]);
    pass(WINDOW * 2).await;
    rig.stop().await;
    assert_eq!((rig.loads().len(), rig.deletes()), (1, 1));
    assert_eq!(rig.attributes().await.visible, 1);
}

#[tokio::test(start_paused = true)]
async fn a_count_closes_a_batch_before_its_window_ends() {
    let rig = Rig::start(OPTIONS, always(Outcome::Loaded, Duration::ZERO));
    let start = Instant::now();
    for key in ["a", "b", "c"] {
        rig.send(&[key]);
    }
    until("empty", || rig.is_empty()).await;
    assert_eq!(rig.loads(), [["a", "b", "c"]]);
    assert!(rig.load_times()[0] - start < WINDOW);
}

#[tokio::test(start_paused = true)]
async fn a_message_of_two_batches_is_deleted_after_both() {
    let gate = Arc::new(Semaphore::new(0));
    let rig = Rig::start(one_object_a_batch(), gated(&gate));
    rig.send(&["a", "b"]);
    until("two loads", || rig.loads().len() == 2).await;
    gate.add_permits(1);
    pass(HOUR).await;
    assert_eq!((rig.receive_counts(), rig.deletes()), (vec![1], 0));
    gate.add_permits(1);
    until("empty", || rig.is_empty()).await;
    assert_eq!((rig.loads().len(), rig.deletes()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_message_of_two_batches_comes_back_when_one_fails() {
    let script = script(|number, keys, _| async move {
        if keys == ["b"] && number < 2 {
            Outcome::Failed
        } else {
            Outcome::Loaded
        }
    });
    let rig = Rig::start(one_object_a_batch(), script);
    rig.send(&["a", "b"]);
    until("empty", || rig.is_empty()).await;
    let mut loads = rig.loads();
    loads.sort();
    assert_eq!(loads, [["a"], ["a"], ["b"], ["b"]]);
    assert_eq!(rig.deletes(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_load_fails_backs_off_until_it_is_a_dead_letter() {
    let rig = Rig::start(
        one_object_a_batch(),
        always(Outcome::Failed, Duration::ZERO),
    );
    rig.send(&["a"]);
    until("dead", || !rig.spied.queue.dead_letters().is_empty()).await;
    assert_eq!(rig.spied.queue.dead_letters(), [announcement(&["a"])]);
    assert_eq!(rig.deletes(), 0);
    assert_eq!(rig.loads().len(), MAX_RECEIVES as usize);
    let times = rig.load_times();
    let gaps: Vec<u64> = times.windows(2).map(|w| (w[1] - w[0]).as_secs()).collect();
    // 10, 20 and 40 s, each scaled to between half and all of it.
    for (gap, full) in gaps.iter().zip([10, 20, 40]) {
        assert!((full / 2..=full + 1).contains(gap), "{gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_of_ten_visibility_timeouts_needs_one_receive() {
    let rig = Rig::start(OPTIONS, always(Outcome::Loaded, VISIBILITY * 10));
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    pass(VISIBILITY * 9).await;
    assert_eq!(rig.receive_counts(), [1]);
    until("empty", || rig.is_empty()).await;
    assert_eq!((rig.loads().len(), rig.deletes()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_message_is_returned_before_it_is_in_flight_for_twelve_hours() {
    let rig = Rig::start(OPTIONS, always(Outcome::Loaded, 20 * HOUR));
    rig.send(&["a"]);
    let start = Instant::now();
    // In one step: polling every few milliseconds for half a day takes minutes.
    pass(11 * HOUR + 28 * MINUTE).await;
    assert_eq!(rig.receive_counts(), [1]);
    until("received again", || rig.receive_counts() == [2]).await;
    assert!((11 * HOUR..12 * HOUR).contains(&start.elapsed()));
    until("empty", || rig.is_empty()).await;
    assert_eq!((rig.loads().len(), rig.deletes()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn messages_that_wait_for_a_load_stay_hidden() {
    let mut options = one_object_a_batch();
    options.limits.concurrency = 1;
    let rig = Rig::start(options, always(Outcome::Loaded, VISIBILITY * 2));
    for key in ["a", "b", "c", "d", "e"] {
        rig.send(&[key]);
    }
    until("the last load", || rig.loads().len() == 5).await;
    assert_eq!(rig.receive_counts(), [1]);
    until("empty", || rig.is_empty()).await;
    assert_eq!((rig.loads().len(), rig.deletes()), (5, 5));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_survive_a_queue_outage_shorter_than_the_visibility_timeout() {
    let rig = Rig::start(OPTIONS, always(Outcome::Loaded, VISIBILITY * 4));
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    for _ in 0..3 {
        let away = QueueError::Transient("away".into());
        rig.spied.queue.fail_with(Some(away));
        pass(VISIBILITY / 3).await;
        rig.spied.queue.fail_with(None);
        pass(VISIBILITY / 3).await;
    }
    assert_eq!(rig.receive_counts(), [1]);
    until("empty", || rig.is_empty()).await;
    assert_eq!((rig.loads().len(), rig.deletes()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn malformed_messages_become_dead_letters_and_test_events_are_deleted() {
    let rig = Rig::start(OPTIONS, always(Outcome::Loaded, Duration::ZERO));
    let odd = ["not JSON", r#"{"Records": []}"#, r#"{"Records": [{}]}"#, ""];
    for body in odd {
        rig.spied.queue.send(body);
    }
    rig.spied
        .queue
        .send(r#"{"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}"#);
    let start = Instant::now();
    until("empty", || rig.is_empty()).await;
    let mut dead = rig.spied.queue.dead_letters();
    dead.sort();
    let mut odd = odd.to_vec();
    odd.sort_unstable();
    assert_eq!(dead, odd);
    assert_eq!(rig.deletes(), 1);
    assert_eq!(rig.loads().len(), 0);
    // Not in a loop: with a growing pause before each of the later receives.
    assert!(start.elapsed() > Duration::from_secs(5 + 10 + 20));
}

#[tokio::test(start_paused = true)]
async fn pause_while_the_breaker_is_open_nothing_is_received() {
    let rig = Rig::start_open(OPTIONS, always(Outcome::Loaded, Duration::ZERO));
    rig.send(&["a"]);
    pass(24 * HOUR).await;
    assert_eq!((rig.receive_counts(), rig.receives()), (vec![0], 0));
    rig.handles.breaker.succeeded(Scope::Everything);
    until("empty", || rig.is_empty()).await;
    assert_eq!(rig.loads(), [["a"]]);
}

#[tokio::test(start_paused = true)]
async fn pause_messages_in_flight_are_kept_and_no_more_are_received() {
    let gate = Arc::new(Semaphore::new(0));
    let rig = Rig::start(one_object_a_batch(), gated(&gate));
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    rig.handles
        .breaker
        .open(Scope::Inserts, PauseReason::Unreachable, "away");
    // The long polls in flight may still receive messages.
    pass(OPTIONS.wait_time).await;
    rig.send(&["b"]);
    pass(8 * HOUR).await;
    assert_eq!(rig.receive_counts(), [1, 0]);
    rig.handles.breaker.succeeded(Scope::Inserts);
    gate.add_permits(2);
    until("empty", || rig.is_empty()).await;
    assert_eq!((rig.loads().len(), rig.deletes()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn receives_back_off_while_the_queue_is_unavailable() {
    let rig = Rig::start(OPTIONS, always(Outcome::Loaded, Duration::ZERO));
    for error in [
        QueueError::Transient("away".into()),
        QueueError::Denied("no such queue".into()),
    ] {
        rig.spied.queue.fail_with(Some(error));
        let before = rig.receives();
        pass(HOUR).await;
        let receives = rig.receives() - before;
        // Each receiver every 22 to 30 s, once the backoff has grown.
        assert!((120 * 2..180 * 2).contains(&receives), "{receives}");
    }
    rig.spied.queue.fail_with(None);
    rig.send(&["a"]);
    until("empty", || rig.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_delete_is_retried_until_the_queue_has_recovered() {
    let rig = Rig::start(one_object_a_batch(), always(Outcome::Loaded, SECOND));
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    let away = QueueError::Transient("away".into());
    rig.spied.queue.fail_with(Some(away));
    pass(5 * SECOND).await;
    rig.spied.queue.fail_with(None);
    until("empty", || rig.is_empty()).await;
    assert_eq!(rig.loads().len(), 1);
    assert!(rig.deletes() > 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_could_not_be_deleted_comes_back_as_a_duplicate() {
    let script = script(|number, _, _| async move {
        tokio::time::sleep(SECOND).await;
        match number {
            0 => Outcome::Loaded,
            _ => Outcome::Duplicate,
        }
    });
    let rig = Rig::start(one_object_a_batch(), script);
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    let away = QueueError::Transient("away".into());
    rig.spied.queue.fail_with(Some(away));
    pass(10 * 60 * SECOND).await;
    rig.spied.queue.fail_with(None);
    until("empty", || rig.is_empty()).await;
    assert_eq!(rig.loads(), [["a"], ["a"]]);
    assert_eq!(rig.spied.queue.dead_letters(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_load_that_panics_returns_its_messages() {
    let script = script(|number, _, _| async move {
        assert!(number > 0, "the first load panics");
        Outcome::Loaded
    });
    let rig = Rig::start(fixed_window(), script);
    rig.send(&["a"]);
    rig.send(&["b"]);
    until("empty", || rig.is_empty()).await;
    assert_eq!(rig.loads(), [["a", "b"], ["a", "b"]]);
    assert_eq!(rig.deletes(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_busy_object_is_looked_up_again_without_going_back_to_the_queue() {
    let script = script(|number, _, _| async move {
        match number {
            0..20 => Outcome::Busy,
            _ => Outcome::Duplicate,
        }
    });
    let rig = Rig::start(one_object_a_batch(), script);
    let start = Instant::now();
    rig.send(&["a"]);
    until("the last load", || rig.loads().len() == 21).await;
    // Neither a hot loop nor an expired message.
    assert!(start.elapsed() > VISIBILITY);
    assert!(rig.receive_counts().iter().all(|count| *count == 1));
    until("empty", || rig.is_empty()).await;
    assert_eq!(rig.deletes(), 1);
}

/// Messages that the receivers may still receive before the loop reduces their room.
const OVERRUN: usize = 2 * OPTIONS.receivers * crate::queue::MAX_BATCH;

#[tokio::test(start_paused = true)]
async fn no_more_messages_are_in_flight_than_allowed() {
    let mut options = fixed_window();
    options.limits.batch.window = HOUR;
    options.limits.batch.max_objects = 1000;
    options.limits.max_held = 100;
    let rig = Rig::start(options, always(Outcome::Loaded, Duration::ZERO));
    for number in 0..200 {
        rig.send(&[&format!("k{number}")]);
    }
    pass(HOUR / 2).await;
    let received = rig.receive_counts().iter().filter(|c| **c > 0).count();
    assert!((100..=100 + OVERRUN).contains(&received), "{received}");
    assert!(rig.receive_counts().iter().all(|count| *count <= 1));
    until("empty", || rig.is_empty()).await;
    assert_eq!((rig.loads().len(), rig.deletes()), (2, 200));
}

/// The remainder of a full queue waits neither for the batches before it nor for the window.
#[tokio::test(start_paused = true)]
async fn a_free_load_slot_does_not_wait_for_the_others() {
    let gate = Arc::new(Semaphore::new(0));
    let rig = Rig::start(OPTIONS, gated(&gate));
    for key in ["a", "b", "c", "d"] {
        rig.send(&[key]);
    }
    let start = Instant::now();
    until("two loads", || rig.loads().len() == 2).await;
    assert!(start.elapsed() < WINDOW / 2);
    assert_eq!(rig.deletes(), 0);
    gate.add_permits(2);
    until("empty", || rig.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_messages_are_received_than_the_next_loads_need() {
    let gate = Arc::new(Semaphore::new(0));
    let options = one_object_a_batch();
    let rig = Rig::start(options, gated(&gate));
    for number in 0..200 {
        rig.send(&[&format!("k{number}")]);
    }
    pass(HOUR).await;
    let received = rig.receive_counts().iter().filter(|c| **c > 0).count();
    let needed = 2 * options.limits.concurrency;
    assert!(
        (needed..=needed + OVERRUN).contains(&received),
        "{received}"
    );
    assert!(rig.receive_counts().iter().all(|count| *count <= 1));
    gate.add_permits(200);
    until("empty", || rig.is_empty()).await;
    assert_eq!((rig.loads().len(), rig.deletes()), (200, 200));
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_the_window_returns_messages_at_once() {
    let mut rig = Rig::start(fixed_window(), always(Outcome::Loaded, Duration::ZERO));
    rig.send(&["a"]);
    rig.send(&["b"]);
    pass(WINDOW / 2).await;
    assert!(rig.stop().await <= OPTIONS.wait_time);
    assert_eq!(rig.attributes().await.visible, 2);
    // Not received again by a long poll of the worker that returns them.
    assert_eq!(rig.receive_counts(), [1, 1]);
    assert_eq!((rig.loads().len(), rig.deletes()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_running_loads_finish() {
    let takes = GRACE / 2;
    let mut rig = Rig::start(one_object_a_batch(), always(Outcome::Loaded, takes));
    // Two are loaded, the third has not begun.
    for key in ["a", "b", "c"] {
        rig.send(&[key]);
    }
    until("two loads", || rig.loads().len() == 2).await;
    let took = rig.stop().await;
    assert!(took <= takes + SECOND, "{took:?}");
    assert_eq!((rig.loads().len(), rig.deletes()), (2, 2));
    assert_eq!(rig.receive_counts(), [1]);
    assert_eq!(rig.attributes().await.visible, 1);
}

#[tokio::test(start_paused = true)]
async fn a_load_longer_than_the_grace_period_is_cancelled_and_returned() {
    let mut rig = Rig::start(one_object_a_batch(), until_cancelled());
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    let took = rig.stop().await;
    assert!((GRACE..GRACE + SECOND).contains(&took), "{took:?}");
    assert_eq!(rig.attributes().await.visible, 1);
    assert_eq!((rig.receive_counts(), rig.deletes()), (vec![1], 0));
}

#[tokio::test(start_paused = true)]
async fn a_load_that_ignores_its_cancellation_does_not_delay_the_stop() {
    let script = script(|_, _, _| std::future::pending());
    let mut rig = Rig::start(one_object_a_batch(), script);
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    let took = rig.stop().await;
    assert!(took <= GRACE + 2 * CLEAN_UP, "{took:?}");
    assert_eq!(rig.attributes().await.visible, 1);
    assert_eq!((rig.receive_counts(), rig.deletes()), (vec![1], 0));
}

#[tokio::test(start_paused = true)]
async fn messages_received_while_stopping_are_returned_at_once() {
    let mut rig = Rig::start(one_object_a_batch(), always(Outcome::Loaded, 10 * SECOND));
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    rig.stop.cancel();
    // Shortly before the long polls end.
    pass(OPTIONS.wait_time - SECOND).await;
    rig.send(&["b"]);
    rig.stop().await;
    assert_eq!((rig.loads().len(), rig.deletes()), (1, 1));
    assert_eq!(rig.attributes().await.visible, 1);
    assert!(rig.receive_counts()[0] <= 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_responses_to_the_last_receives() {
    let slowness = Slowness {
        receive_answer: 4 * SECOND,
        ..Slowness::default()
    };
    let spied = Spied {
        slowness,
        ..Spied::new(MAX_RECEIVES)
    };
    let ending = always(Outcome::Loaded, Duration::ZERO);
    let mut rig = Rig::start_on(spied, fixed_window(), ending);
    rig.handles.breaker.succeeded(Scope::Everything);
    rig.send(&["a"]);
    pass(SECOND).await;
    assert_eq!(rig.receive_counts(), [1]);
    rig.stop().await;
    assert_eq!(rig.attributes().await.visible, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_clickhouse_is_unavailable_ends_at_once() {
    let mut rig = Rig::start_open(OPTIONS, always(Outcome::Loaded, Duration::ZERO));
    rig.send(&["a"]);
    pass(HOUR).await;
    assert!(rig.stop().await <= SECOND);
    assert_eq!(rig.receive_counts(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_event_loop_is_detected() {
    let rig = Rig::start(OPTIONS, always(Outcome::Loaded, HOUR));
    rig.send(&["a"]);
    for _ in 0..60 {
        pass(MINUTE).await;
        assert_eq!(rig.handles.health.stuck_for(), None);
    }
    rig.daemon.abort();
    pass(MINUTE).await;
    assert!(rig.handles.health.stuck_for() >= Some(MINUTE / 2));
}

#[tokio::test(start_paused = true)]
async fn two_messages_of_one_object_cause_one_load() {
    let gate = Arc::new(Semaphore::new(0));
    let rig = Rig::start(one_object_a_batch(), gated(&gate));
    rig.send(&["a"]);
    until("a load", || rig.loads().len() == 1).await;
    rig.send(&["a"]);
    until("both received", || rig.receive_counts() == [1, 1]).await;
    pass(HOUR).await;
    gate.add_permits(1);
    until("empty", || rig.is_empty()).await;
    assert_eq!((rig.loads().len(), rig.deletes()), (1, 2));
}

/// A queue that dead-letters each message that reappears once, with messages in an open batch.
fn start_slow(slowness: Slowness, lanes: usize, messages: usize) -> Rig {
    let mut options = fixed_window();
    options.limits.batch.window = 10 * HOUR;
    options.limits.batch.max_objects = 10_000;
    options.limits.max_held = 10_000;
    options.wait_time = SECOND;
    let spied = Spied {
        slowness,
        lanes: Semaphore::new(lanes),
        ..Spied::new(1)
    };
    let rig = Rig::start_on(spied, options, always(Outcome::Loaded, Duration::ZERO));
    for number in 0..messages {
        rig.send(&[&format!("k{number}")]);
    }
    rig.handles.breaker.succeeded(Scope::Everything);
    rig
}

/// Asserts that no received message becomes visible again within this time.
async fn assert_nothing_reappears(rig: &Rig, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        pass(SECOND).await;
        let counts = rig.receive_counts();
        let unreceived = counts.iter().filter(|count| **count == 0).count();
        assert_eq!(rig.attributes().await.visible, unreceived as u64);
        assert_eq!(rig.spied.queue.dead_letters(), Vec::<String>::new());
    }
}

fn received(rig: &Rig) -> usize {
    rig.receive_counts().iter().filter(|it| **it > 0).count()
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_too_slow_is_not_received_from_and_no_message_reappears() {
    for (millis, lanes) in [(100, 1), (500, 1), (1000, 2), (2000, 8)] {
        let request = Duration::from_millis(millis);
        let slowness = Slowness {
            request,
            ..Slowness::default()
        };
        let rig = start_slow(slowness, lanes, 2000);
        assert_nothing_reappears(&rig, 3 * MINUTE).await;
        // At most what consecutive requests extend within a visibility timeout.
        let extended = VISIBILITY.as_millis() as usize / millis as usize * lanes * 10;
        let received = received(&rig);
        assert!(
            (20..=extended).contains(&received),
            "{millis} ms, {lanes} lanes: {received}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_becomes_slow_is_not_received_from_until_it_is_fast_again() {
    let slowness = Slowness {
        request: Duration::from_millis(20),
        ..Slowness::default()
    };
    let rig = start_slow(slowness, 100, 1000);
    assert_nothing_reappears(&rig, MINUTE).await;
    assert_eq!(received(&rig), 1000);
    let blocked = rig.spied.lanes.acquire_many(100).await.unwrap();
    let receives = rig.receives();
    assert_nothing_reappears(&rig, VISIBILITY / 2).await;
    drop(blocked);
    assert_nothing_reappears(&rig, MINUTE).await;
    assert!(rig.receives() > receives);
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_receive_returned_late_stays_hidden() {
    let slowness = Slowness {
        receive_answer: VISIBILITY * 3 / 4,
        ..Slowness::default()
    };
    let rig = start_slow(slowness, 100, 20);
    assert_nothing_reappears(&rig, 3 * MINUTE).await;
    assert_eq!(received(&rig), 20);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_waits_for_its_deletion_stays_hidden() {
    let mut options = OPTIONS;
    options.limits.batch.max_objects = 1000;
    let spied = Spied {
        slowness: Slowness {
            delete: VISIBILITY / 2,
            ..Slowness::default()
        },
        ..Spied::new(1)
    };
    let rig = Rig::start_on(spied, options, always(Outcome::Loaded, SECOND));
    for number in 0..500 {
        rig.send(&[&format!("k{number}")]);
    }
    rig.handles.breaker.succeeded(Scope::Everything);
    until("empty", || rig.is_empty()).await;
    assert_eq!(rig.spied.queue.dead_letters(), Vec::<String>::new());
    assert_eq!(rig.deletes(), 500);
}

#[tokio::test(start_paused = true)]
async fn a_message_needs_one_heartbeat_for_each_third_of_the_visibility_timeout() {
    let rig = start_slow(Slowness::default(), 100, 200);
    pass(SECOND).await;
    assert_eq!(
        (received(&rig), rig.spied.changes.load(Ordering::Relaxed)),
        (200, 0)
    );
    pass(10 * VISIBILITY).await;
    let changes = rig.spied.changes.load(Ordering::Relaxed);
    // Ten messages per request.
    assert!((25 * 20..=30 * 20).contains(&changes), "{changes}");
}
