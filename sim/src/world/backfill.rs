//! Backfills: they list the bucket and load its objects beside the workers, as `sluice backfill`
//! does. One runs at a time; it can be killed, and started again.

use std::sync::Arc;
use std::time::SystemTime;

use sluice::Env;
use sluice::backfill::{Backfill, Options, Tally};
use sluice::load::breaker::{Breaker, Scope};
use sluice::load::{LoadParts, Loader};
use sluice::object::ObjectUrl;
use sluice::s3::StoreError;
use sluice::s3::listing::{Lister, Selection};
use sluice::telemetry::activity::Activity;
use sluice::util::key_time::KeyTime;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::objects::{BUCKET, Present};
use super::plan::{Fault, mixed, stream};
use super::schedule::{Link, System};
use super::settings::Setup;
use super::worker::{Connections, Simulated, Site};
use super::{LOOK, World};
use crate::network::{Client, Network};
use crate::trace::Trace;

/// The number of the connections of backfills. No worker has a place with this number.
const PLACE: usize = 1_000;
/// The largest number of backfills that are started after the faults. The first ones can still meet
/// late requests.
const MAX_LAST: usize = 10;

/// What a backfill returns: its tally, and the error that ended the listing.
type Ended = (Tally, Result<(), StoreError>);

/// The backfills of a world, one after the other.
pub(super) struct Backfills {
    connections: Connections,
    /// The number of backfills that have been started.
    started: u64,
    running: Option<Running>,
    /// Those that have ended by themselves, so that it is noticed if one has panicked.
    ended: Vec<JoinHandle<Ended>>,
    /// The option `--loaded-before` of the last one. One that continues it has the same.
    replace_before: Option<SystemTime>,
    /// Whether the last one was killed.
    is_interrupted: bool,
}

struct Running {
    client: Client,
    task: JoinHandle<Ended>,
}

impl Backfills {
    pub(super) fn new(seed: u64, trace: &Trace) -> Self {
        Self {
            connections: Connections::new(seed, PLACE, trace),
            started: 0,
            running: None,
            ended: Vec::new(),
            replace_before: None,
            is_interrupted: false,
        }
    }

    /// Returns the connection, if it is one of those that a link names.
    pub(super) fn linked(&self, link: Link) -> Option<&Network> {
        link.worker.is_none().then(|| self.connections.to(link.to))
    }

    /// Starts a backfill, unless one is running. Returns whether it did.
    fn start(&mut self, site: &Site, replace_before: Option<SystemTime>) -> bool {
        self.retire();
        if self.running.is_some() {
            return false;
        }
        self.started += 1;
        self.replace_before = replace_before;
        self.is_interrupted = false;
        self.running = Some(self.run(site));
        true
    }

    /// Kills the backfill, if one is running. Returns whether there was one.
    fn crash(&mut self) -> bool {
        self.retire();
        let Some(running) = self.running.take() else {
            return false;
        };
        // Its tasks end at their next requests. Those that were sent before are carried out.
        running.client.crash();
        self.is_interrupted = true;
        true
    }

    /// Starts a backfill that continues the last one, if that was killed. Returns whether it did.
    fn resume(&mut self, site: &Site) -> bool {
        self.is_interrupted && self.start(site, self.replace_before)
    }

    /// Waits for the end of the backfill that is running, if there is one, and returns its result.
    async fn end(&mut self, by: Instant) -> Result<Option<Ended>, String> {
        let failed = |failed: JoinError| format!("a backfill failed: {failed}");
        for task in std::mem::take(&mut self.ended) {
            drop(task.await.map_err(failed)?);
        }
        let Some(running) = self.running.take() else {
            return Ok(None);
        };
        match timeout_at(by, running.task).await {
            Ok(ended) => ended.map(Some).map_err(failed),
            Err(_) => Err("a backfill has not ended".to_owned()),
        }
    }

    /// Sets the running backfill aside if it has ended.
    fn retire(&mut self) {
        let ended = self.running.take_if(|running| running.task.is_finished());
        self.ended.extend(ended.map(|running| running.task));
    }

    /// Assembles a backfill as the command does, and runs it.
    fn run(&self, site: &Site) -> Running {
        let (seed, settings) = (site.seed, &site.settings);
        let number = PLACE as u64 * 1_000 + self.started;
        let setup = Setup::of(seed, &site.plan, settings, number);
        let replica = stream(seed, "replica", number).usize(..site.plan.replicas);
        let client = Client::new(&format!("backfill-{}", self.started));
        site.trace.note(format_args!(
            "{} starts at replica {replica}; replaces what was loaded before {:?}",
            client.name, self.replace_before
        ));
        let env = Env::seeded(mixed(seed, "backfill", number), site.env.wall_clock());
        let (ledger, tables) = site.server.connect(
            self.connections.to(System::ClickHouse).clone(),
            client.clone(),
            replica,
            setup.planner(settings),
        );
        let connection = self.connections.to(System::Store).clone();
        let store = site.s3.store(connection, client.clone());
        // Closed from the start, since the command has looked for problems before.
        let breaker = Arc::new(Breaker::new(settings.probe_interval));
        breaker.succeeded(Scope::Everything);
        let config = setup.load_config(settings);
        let retry = config.retry;
        let parts: LoadParts<Simulated> = LoadParts {
            ledger,
            tables,
            store: store.clone(),
            breaker,
            activity: Arc::new(Activity::default()),
            env: env.clone(),
        };
        let limits = setup.daemon_options(settings).limits;
        let options = Options {
            batch: limits.batch,
            concurrency: limits.concurrency,
            max_rate: None,
            limit: None,
            replace_before: self.replace_before,
            grace_period: settings.grace_period,
        };
        let loader = Arc::new(Loader::new(config, parts));
        let stop = CancellationToken::new();
        let backfill = Backfill::new(loader, options, stop, |_: &Tally| {});
        let lister = Lister::new(store, whole_bucket(), retry, env);
        let (name, trace) = (client.name.clone(), site.trace.clone());
        let task = tokio::spawn(async move {
            let ended = backfill.run(lister).await;
            trace.note(format_args!("{name} ends: {ended:?}"));
            ended
        });
        Running { client, task }
    }
}

impl World {
    /// Starts a backfill, unless one is running. If it is forced, it loads all objects again that
    /// are loaded.
    pub(super) fn start_backfill(&mut self, is_forced: bool) {
        let replace_before = is_forced.then(|| self.site.env.wall_clock());
        if self.backfills.start(&self.site, replace_before) {
            self.count(Fault::Backfill);
            if is_forced {
                self.count(Fault::Forced);
            }
        }
    }

    pub(super) fn crash_backfill(&mut self) {
        if self.backfills.crash() {
            self.count(Fault::BackfillCrash);
        }
    }

    pub(super) fn resume_backfill(&mut self) {
        if self.backfills.resume(&self.site) {
            self.count(Fault::Backfill);
        }
    }

    /// Runs backfills until one finds everything loaded that can be, in a world that has backfills
    /// and no faults any more. Reports a violation if none does.
    pub(super) async fn complete_backfill(&mut self, done_by: Instant) {
        if !self.site.plan.has(Fault::Backfill) {
            return;
        }
        if let Err(objection) = self.try_to_complete(done_by).await {
            self.site.violations.report(objection);
        }
    }

    async fn try_to_complete(&mut self, done_by: Instant) -> Result<(), String> {
        // One that the world has started during the faults can have any result.
        self.backfills.end(done_by).await?;
        let mut objection = String::new();
        for _ in 0..MAX_LAST {
            self.start_backfill(false);
            let ended = self.backfills.end(done_by).await?;
            match objection_to(ended.as_ref(), self.site.objects.present()) {
                None => return Ok(()),
                Some(found) => objection = found,
            }
            sleep(LOOK).await;
        }
        Err(objection)
    }
}

/// Returns why this is not the result of a backfill that finds everything loaded that can be, if so.
/// Objects that cannot be loaded must be reported as failed.
fn objection_to(ended: Option<&Ended>, present: Present) -> Option<String> {
    let Some((tally, listed)) = ended else {
        return Some("no backfill was started".to_owned());
    };
    let Present {
        all,
        unloadable,
        doubtful,
    } = present;
    let open = tally.missing + tally.in_other_hands + tally.replacing_elsewhere + tally.left();
    let is_right = listed.is_ok()
        && tally.found == all
        && open == 0
        && (unloadable..=unloadable + doubtful).contains(&tally.failed);
    (!is_right).then(|| format!("the last backfill ended with {ended:?}, while S3 has {present:?}"))
}

/// Returns the selection of all objects.
fn whole_bucket() -> Selection {
    Selection {
        prefix: ObjectUrl {
            bucket: BUCKET.to_owned(),
            key: String::new(),
        },
        filters: Vec::new(),
        since: None,
        until: None,
        key_time: KeyTime::Upload,
    }
}
