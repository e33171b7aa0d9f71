//! A worker: the tasks that `sluice run` starts, without the admin listener.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice::Env;
use sluice::batch::BatchId;
use sluice::daemon::{self, Daemon, QueueOutage, WorkerHandles};
use sluice::load::breaker::Breaker;
use sluice::load::janitor::Janitor;
use sluice::load::ports::{BatchTables, Ports};
use sluice::load::{LoadParts, Loader};
use sluice::notification::Envelopes;
use sluice::notification::filter::Filter;
use sluice::queue::Queue;
use sluice::queue::memory::MemoryQueue;
use sluice::telemetry::activity::Activity;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::bounds::Bounds;
use super::objects::Objects;
use super::plan::{Fault, Plan, mixed, stream};
use super::schedule::{Link, System};
use super::settings::{Settings, Setup};
use super::violations::Violations;
use super::watched_queue::{Expectations, WatchedQueue, max_in_flight};
use crate::network::{Client, Network};
use crate::queue::SimQueue;
use crate::s3::{SimS3, SimStore};
use crate::server::{SimLedger, SimServer, SimTables};
use crate::trace::Trace;

/// How long after its grace period a worker that stops may run: it waits for cancelled loads, and
/// then for its last requests to the queue.
const CLEAN_UP: Duration = Duration::from_secs(15);

/// The simulated systems.
pub(super) struct Simulated;

impl Ports for Simulated {
    type Ledger = SimLedger;
    type Tables = SimTables;
    type Objects = SimStore;
}

/// What the workers and backfills of a world share.
pub(super) struct Site {
    pub(super) seed: u64,
    pub(super) plan: Plan,
    pub(super) settings: Settings,
    pub(super) env: Env,
    pub(super) server: SimServer,
    pub(super) s3: SimS3,
    pub(super) queue: MemoryQueue,
    pub(super) objects: Arc<Objects>,
    pub(super) trace: Trace,
    pub(super) violations: Violations,
    /// Whether an operator has deployed the fixed declarations.
    pub(super) is_fixed: bool,
}

impl Site {
    fn expectations(&self, setup: &Setup, bounds: &Arc<Bounds>) -> Expectations {
        // Deletions wait while the queue fails, also if single entries are retried. And a message
        // that SQS delivers to another worker, or makes visible, is no longer the worker's: if it
        // is not loaded, nothing is returned, and this side cannot see that the worker has settled
        // it. The bounds of its memory still hold.
        let of_queue = [
            Fault::QueueNetwork,
            Fault::QueueCut,
            Fault::QueueErrors,
            Fault::FailedEntries,
            Fault::Redelivery,
            Fault::VisibilityLimit,
        ];
        let does_queue_fail = of_queue.into_iter().any(|fault| self.plan.has(fault));
        Expectations {
            objects: self.objects.clone(),
            server: self.server.clone(),
            violations: self.violations.clone(),
            acknowledge_missing: self.settings.acknowledge_missing,
            visibility: self.settings.visibility,
            bounds: bounds.clone(),
            max_in_flight: (!does_queue_fail)
                .then(|| max_in_flight(setup.max_held, setup.receivers)),
        }
    }
}

/// The connections of the workers that run in one place, one after the other. A request of one can
/// arrive when the next is running.
#[derive(Debug)]
pub(super) struct Connections {
    clickhouse: Network,
    queue: Network,
    store: Network,
}

impl Connections {
    pub(super) fn new(seed: u64, place: usize, trace: &Trace) -> Self {
        let network = |purpose: &str| {
            let rng = stream(seed, purpose, place as u64);
            Network::new(rng, trace.clone())
        };
        Self {
            clickhouse: network("network to ClickHouse"),
            queue: network("network to the queue"),
            store: network("network to S3"),
        }
    }

    pub(super) fn to(&self, system: System) -> &Network {
        match system {
            System::ClickHouse => &self.clickhouse,
            System::Queue => &self.queue,
            System::Store => &self.store,
        }
    }
}

/// A place in which one worker runs at a time.
#[derive(Debug)]
pub(super) struct Place {
    number: usize,
    connections: Connections,
    /// The number of workers that have been started here.
    started: u64,
    worker: Option<Worker>,
}

impl Place {
    pub(super) fn new(seed: u64, number: usize, trace: &Trace) -> Self {
        Self {
            number,
            connections: Connections::new(seed, number, trace),
            started: 0,
            worker: None,
        }
    }

    pub(super) fn worker(&self) -> Option<&Worker> {
        self.worker.as_ref()
    }

    pub(super) fn to_clickhouse(&self) -> &Network {
        self.connections.to(System::ClickHouse)
    }

    /// Returns the connection, if it is one of those that a link names.
    pub(super) fn linked(&self, link: Link) -> Option<&Network> {
        let is_named = link.worker.is_none_or(|number| number == self.number);
        is_named.then(|| self.connections.to(link.to))
    }

    /// Starts a worker, unless one is running. Returns whether it did.
    pub(super) fn start(&mut self, site: &Site) -> bool {
        if self.worker.is_some() {
            return false;
        }
        self.started += 1;
        self.worker = Some(Worker::start(site, self));
        true
    }

    /// Kills the worker, if there is one. Returns whether there was.
    pub(super) fn crash(&mut self) -> bool {
        let Some(worker) = self.worker.take() else {
            return false;
        };
        worker.end();
        true
    }

    /// Stops the worker, if there is one, and returns the task that waits for its end.
    pub(super) fn stop(&mut self, violations: &Violations) -> Option<JoinHandle<()>> {
        let worker = self.worker.take()?;
        Some(tokio::spawn(worker.stop(violations.clone())))
    }
}

/// A running worker.
#[derive(Debug)]
pub(super) struct Worker {
    name: Arc<str>,
    client: Client,
    stop: CancellationToken,
    breaker: Arc<Breaker>,
    bounds: Arc<Bounds>,
    daemon: JoinHandle<()>,
    /// The prober and the janitor.
    others: [JoinHandle<()>; 2],
    grace_period: Duration,
}

impl Worker {
    fn start(site: &Site, place: &Place) -> Self {
        let (seed, settings) = (site.seed, &site.settings);
        let number = place.number as u64 * 1_000 + place.started;
        let mut setup = Setup::of(seed, &site.plan, settings, number);
        if site.is_fixed {
            setup = setup.fixed();
        }
        let replica = stream(seed, "replica", number).usize(..site.plan.replicas);
        let client = Client::new(&format!("worker-{}.{}", place.number, place.started));
        site.trace.note(format_args!(
            "{} starts at replica {replica}: {setup:?}",
            client.name
        ));
        let env = Env::seeded(mixed(seed, "worker", number), site.env.wall_clock());
        let connect = || {
            site.server.connect(
                place.connections.clickhouse.clone(),
                client.clone(),
                replica,
                setup.planner(settings),
            )
        };
        let handles = WorkerHandles::new(settings.probe_interval, Activity::default());
        let breaker = handles.breaker.clone();
        let (ledger, tables) = connect();
        let parts: LoadParts<Simulated> = LoadParts {
            ledger,
            tables,
            store: site
                .s3
                .store(place.connections.store.clone(), client.clone()),
            breaker: breaker.clone(),
            activity: handles.activity.clone(),
            env: env.clone(),
        };
        let loader = Arc::new(Loader::new(setup.load_config(settings), parts));
        let queue = SimQueue::new(
            site.queue.clone(),
            place.connections.queue.clone(),
            client.clone(),
        );
        let options = setup.daemon_options(settings);
        let bounds = Arc::new(Bounds::new(
            client.name.clone(),
            handles.health.clone(),
            &options,
            site.violations.clone(),
        ));
        let expectations = site.expectations(&setup, &bounds);
        let stop = CancellationToken::new();
        let (_, tables_of_prober) = connect();
        let janitor = Janitor::new(loader.clone());
        let daemon = Daemon {
            queue: Arc::new(WatchedQueue::new(queue, client.name.clone(), expectations)),
            loader,
            handles,
            envelopes: Envelopes::default(),
            filter: Filter::default(),
            options,
            env,
        };
        Self {
            name: client.name.clone(),
            client,
            daemon: tokio::spawn(serve(daemon, stop.clone())),
            others: [
                tokio::spawn(probe(tables_of_prober, breaker.clone())),
                tokio::spawn(janitor.run(settings.janitor_interval, stop.clone())),
            ],
            stop,
            breaker,
            bounds,
            grace_period: settings.grace_period,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns why the worker's intake is paused, if it is.
    pub(super) fn pause(&self) -> Option<String> {
        self.breaker.reason()
    }

    /// Returns whether the daemon has ended, although nobody has stopped it.
    pub(super) fn has_ended(&self) -> bool {
        self.daemon.is_finished()
    }

    /// Stops the worker as SIGTERM does, and reports a violation if this takes too long.
    async fn stop(mut self, violations: Violations) {
        self.stop.cancel();
        let within = self.grace_period + CLEAN_UP;
        match timeout(within, &mut self.daemon).await {
            Ok(Ok(())) => {}
            Ok(Err(failed)) => violations.report(format_args!("{} failed: {failed}", self.name)),
            Err(_) => violations.report(format_args!(
                "{} has not stopped within {} s",
                self.name,
                within.as_secs()
            )),
        }
        self.end();
    }

    /// Ends the process. Requests that have not been sent yet are never sent.
    fn end(self) {
        self.bounds.check();
        self.client.crash();
        self.daemon.abort();
        for task in self.others {
            task.abort();
        }
    }
}

/// Runs the daemon once the queue answers.
async fn serve(daemon: Daemon<WatchedQueue, Loader<Simulated>>, stop: CancellationToken) {
    let mut outage = QueueOutage::new(daemon.env.clone());
    loop {
        let attributes = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            attributes = daemon.queue.attributes() => attributes,
        };
        let Err(error) = attributes else { break };
        let pause = outage.note(&error);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
    daemon::run(daemon, stop).await;
}

/// Queries ClickHouse whenever the open breaker is due for a probe, as the worker's preflight check
/// does: whether it responds, and whether its tables can be read.
async fn probe(tables: SimTables, breaker: Arc<Breaker>) {
    let no_batch = BatchId(Uuid::nil());
    let check = async || {
        tables.ping().await?;
        tables.has_any(no_batch, None).await?;
        Ok(None)
    };
    breaker.keep_probing(check).await;
}

/// When the wall clock of every world begins: in 2023.
pub(super) fn began_at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}
