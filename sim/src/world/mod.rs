//! One world: workers, an operator and simulated systems, faults for some minutes, then none until
//! everything is loaded, and the checks of what must hold.
//!
//! Begin with [`run_plan`]. [`plan`] has the size of a world and its kinds of faults, `settings` its
//! configuration, `arrivals` its objects and messages, `schedule` the times of its faults, `inject`
//! what each does (`manners` what SQS does rarely, `backfill` what backfills do, `replays` what
//! replays of rejects do, with the event types in `declarations`), `objects`, `watched_queue` and
//! `bounds` what must hold, and [`shrink()`] finds the smallest plan that still fails.
//!
//! What must hold:
//!
//! - At the end, each object has exactly its rows, of one loaded batch, in each table. One that was
//!   replaced or deleted before it was loaded may be absent; one that is cut short must be. It is the
//!   same whether workers or backfills have loaded it, and how often backfills have replaced it.
//! - Where an operator fixes declarations and replays rejects, each line is in its table once: either
//!   the batch of its object has inserted it, or a loaded replay, and then it is not a reject any
//!   more. No line is lost.
//! - A message is deleted only when its objects are recorded as loaded, or replaced by others that
//!   are, or acknowledged as missing.
//! - A message becomes a dead letter only if an object of it cannot be loaded. Where no fault costs
//!   receives, two receives suffice, and three for each worker that ends.
//! - A worker has no more messages in flight than it may have, and stops in time. What it holds in
//!   memory never exceeds the bounds that follow from its configuration.
//! - After the faults, the queue becomes empty. A backfill then finds all objects, and reports that
//!   those fail that cannot be loaded, and no others.
//! - The invariants of the protocol, at each step: [`Checks`].

mod arrivals;
mod backfill;
mod bounds;
mod declarations;
mod inject;
mod manners;
mod objects;
mod plan;
mod replays;
mod schedule;
mod settings;
mod shrink;
mod violations;
mod watched_queue;
mod worker;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use sluice::Env;
use sluice::queue::memory::{Manners, MemoryQueue};
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep, sleep_until};

pub use self::plan::{Fault, Plan};
pub use self::shrink::shrink;

use self::arrivals::Arrivals;
use self::backfill::Backfills;
use self::objects::Objects;
use self::plan::{mixed, stream};
use self::replays::Replays;
use self::schedule::{Event, Timed};
use self::settings::Settings;
use self::violations::Violations;
use self::worker::{Place, Site, began_at};
use crate::s3::SimS3;
use crate::server::{Checks, Options, SimServer, Violation};
use crate::trace::Trace;

/// How often the world is looked at once the faults are over.
const LOOK: Duration = Duration::from_secs(2);
/// How long nothing must change before a world is done: requests and statements can be late.
const QUIET: Duration = Duration::from_secs(45);
/// How long the world waits for open batches once no message is left. A batch can stay open: nobody
/// looks it up any more if its worker died after it had yielded to another, or if its messages are
/// dead letters.
const OPEN_FOR: Duration = Duration::from_secs(120);
/// How long after everything is loaded the tables may differ from what must be there: janitors
/// delete late rows of released batches.
const CLEANED_WITHIN: Duration = Duration::from_secs(30 * 60);
/// How long a world may take once the faults are over.
const DONE_WITHIN: Duration = Duration::from_secs(3 * 3_600);

/// What happened in a world.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    /// Of all lines of the trace.
    pub digest: u64,
    /// The violations, each with its time. Empty if all invariants held.
    pub violations: Vec<String>,
    /// Empty unless the trace was to be kept.
    pub trace: Vec<String>,
    /// How often each kind of fault happened.
    pub faults: BTreeMap<&'static str, u64>,
    /// The number of objects that were uploaded.
    pub objects: usize,
    /// How long the world lasted, by its own clock.
    pub virtual_time: Duration,
}

/// Runs the world of a seed.
pub fn run(seed: u64, keep_trace: bool) -> Report {
    run_plan(seed, &Plan::of(seed), keep_trace)
}

/// Runs the world of a seed with another plan than its own.
pub fn run_plan(seed: u64, plan: &Plan, keep_trace: bool) -> Report {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing of the system");
    let (trace, violations, began) = {
        let _within = runtime.enter();
        let trace = Trace::new(keep_trace);
        (trace.clone(), Violations::new(trace), Instant::now())
    };
    let world = async {
        let mut world = World::new(seed, plan, &trace, &violations);
        world.run().await;
        (world.tally, world.site.objects.count(), began.elapsed())
    };
    let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(world)));
    let _within = runtime.enter();
    let (faults, objects, virtual_time) = ran.unwrap_or_else(|_| {
        violations.report("the simulation itself panicked");
        Default::default()
    });
    Report {
        seed,
        digest: trace.digest(),
        violations: violations.found(),
        trace: trace.lines(),
        faults,
        objects,
        virtual_time,
    }
}

/// A world while it runs.
struct World {
    site: Site,
    places: Vec<Place>,
    backfills: Backfills,
    /// Those of the queue.
    manners: Manners,
    timeline: Vec<Timed>,
    /// How often each kind of fault has happened.
    tally: BTreeMap<&'static str, u64>,
    /// The number of dead letters that the operator has looked at, and has moved back or left.
    redriven: usize,
    replays: Replays,
}

impl World {
    fn new(seed: u64, plan: &Plan, trace: &Trace, violations: &Violations) -> Self {
        let arrivals = Arrivals::of(seed, plan);
        let mut timeline = arrivals.events;
        timeline.extend(schedule::faults(seed, plan, schedule::faults_for(seed)));
        timeline.sort_by_key(|timed| timed.at);
        let is_end =
            |timed: &&Timed| matches!(timed.event, Event::CrashWorker(_) | Event::StopWorker(_));
        let ends = timeline.iter().filter(is_end).count();
        let settings = Settings::of(seed, plan, u32::try_from(ends).unwrap_or(u32::MAX));
        trace.note(format_args!("plan: {plan}"));
        trace.note(format_args!("settings: {settings:?}"));
        let env = Env::seeded(mixed(seed, "world", 0), began_at());
        let s3 = SimS3::new(trace.clone());
        let options = Options {
            replicas: plan.replicas,
            dedup_window: settings.dedup_window,
            dedup_age: settings.dedup_age,
            lease: settings.visibility,
            statement: settings.statement(),
            keeps_lines: plan.has(Fault::Replay),
        };
        let server = SimServer::new(
            options,
            s3.clone(),
            env.clone(),
            stream(seed, "server", 0),
            trace.clone(),
            checks(violations),
        );
        let manners = manners::initial(seed, plan, &settings);
        let queue = MemoryQueue::new(settings.max_receive_count);
        queue.set_manners(manners.clone());
        let site = Site {
            seed,
            plan: plan.clone(),
            env,
            server,
            s3,
            queue,
            objects: Arc::new(Objects::new(arrivals.uploads, arrivals.messages)),
            settings,
            trace: trace.clone(),
            violations: violations.clone(),
            is_fixed: false,
        };
        let places = (0..plan.workers).map(|number| Place::new(seed, number, trace));
        Self {
            site,
            places: places.collect(),
            backfills: Backfills::new(seed, trace),
            manners,
            timeline,
            tally: BTreeMap::new(),
            redriven: 0,
            replays: Replays::default(),
        }
    }

    async fn run(&mut self) {
        let began = Instant::now();
        if self.site.plan.has(Fault::VisibilityLimit) {
            self.count(Fault::VisibilityLimit);
        }
        self.apply(Event::StartWorkers);
        for Timed { at, event } in std::mem::take(&mut self.timeline) {
            sleep_until(began + at).await;
            self.apply(event);
        }
        self.finish().await;
        self.check_dead_letters();
        self.stop_workers().await;
    }

    /// Waits until everything is loaded and rejects are replayed, the tables are as they must be, and
    /// stay so for a while.
    async fn finish(&mut self) {
        let done_by = Instant::now() + DONE_WITHIN;
        self.complete_backfill(done_by).await;
        let mut cleaned_by = None;
        loop {
            while !self.is_drained() {
                if Instant::now() >= done_by {
                    self.report_stuck();
                    return;
                }
                sleep(LOOK).await;
            }
            let cleaned_by = *cleaned_by.get_or_insert_with(|| Instant::now() + CLEANED_WITHIN);
            self.finish_replays(done_by).await;
            self.wait_for_open_batches().await;
            sleep(QUIET).await;
            if !self.is_drained() {
                continue;
            }
            let differences = self.differences();
            if differences.is_empty() {
                return;
            }
            if Instant::now() >= cleaned_by {
                for difference in differences {
                    self.site.violations.report(difference);
                }
                return;
            }
        }
    }

    async fn wait_for_open_batches(&self) {
        let until = Instant::now() + OPEN_FOR;
        while self.site.server.has_open_batches() && Instant::now() < until {
            sleep(LOOK).await;
        }
    }

    /// Returns whether no message is left. Moves dead letters back that can be loaded since access
    /// was granted.
    fn is_drained(&mut self) -> bool {
        self.check_daemons();
        let moved = self.redrive(|objects, body| objects.is_loadable(body));
        moved == 0 && self.site.queue.receive_counts().is_empty()
    }

    /// Moves dead letters back that `is_moved` selects, and returns their number. Each is looked at
    /// once.
    fn redrive(&mut self, is_moved: impl Fn(&Objects, &str) -> bool) -> usize {
        let dead = self.site.queue.dead_letters();
        let new = dead.get(self.redriven..).unwrap_or_default();
        let objects = &self.site.objects;
        let mut moved = 0;
        for body in new {
            if objects.may_be_dead(body) && is_moved(objects, body) {
                self.site.send(body.clone());
                moved += 1;
            }
        }
        self.redriven = dead.len();
        if moved > 0 {
            let trace = &self.site.trace;
            trace.note(format_args!("operator: moves {moved} dead letters back"));
        }
        moved
    }

    fn check_daemons(&self) {
        for worker in self.places.iter().filter_map(Place::worker) {
            if worker.has_ended() {
                let violations = &self.site.violations;
                violations.report(format_args!("the daemon of {} has ended", worker.name()));
            }
        }
    }

    fn check_dead_letters(&self) {
        for body in self.site.queue.dead_letters() {
            if !self.site.objects.may_be_dead(&body) {
                let violations = &self.site.violations;
                violations.report(format_args!(
                    "a message is a dead letter although its objects can be loaded: {body}"
                ));
            }
        }
    }

    fn report_stuck(&self) {
        let site = &self.site;
        let pauses: Vec<String> = self
            .places
            .iter()
            .filter_map(Place::worker)
            .map(|worker| format!("{}: {:?}", worker.name(), worker.pause()))
            .collect();
        site.violations.report(format_args!(
            "stuck: messages by their receives: {:?}; has open batches: {}; pauses: {}",
            site.queue.receive_counts(),
            site.server.has_open_batches(),
            pauses.join("; ")
        ));
        for difference in self.differences() {
            site.violations.report(difference);
        }
    }

    /// Returns how the tables differ from what must be there.
    fn differences(&self) -> Vec<String> {
        let Site {
            plan,
            objects,
            server,
            ..
        } = &self.site;
        match plan.has(Fault::Replay) {
            true => objects.line_differences(server),
            false => objects.differences(server),
        }
    }

    async fn stop_workers(&mut self) {
        let violations = &self.site.violations;
        let stops = self.places.iter_mut();
        let stops: Vec<_> = stops.filter_map(|place| place.stop(violations)).collect();
        for stop in stops {
            if let Err(failed) = stop.await {
                violations.report(format_args!("a stop failed: {failed}"));
            }
        }
    }
}

/// Returns the function that the server reports violations to.
fn checks(violations: &Violations) -> Checks {
    let violations = violations.clone();
    Arc::new(move |violation: &Violation| violations.report(&violation.what))
}
