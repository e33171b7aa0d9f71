//! The configuration of a world and of its workers, drawn from the seed.

use std::sync::LazyLock;
use std::time::Duration;

use sluice::batch::{BatchLimits, Fallback};
use sluice::daemon;
use sluice::daemon::core::Limits;
use sluice::daemon::in_flight::VisibilityPolicy;
use sluice::load::LoadConfig;
use sluice::queue::VISIBILITY_LIMIT;
use sluice::statements::insert::{Planner, PlannerOptions, S3Source, Strategy, TimeLimits};
use sluice::statements::s3_source::S3Access;
use sluice_core::backoff::Backoff;
use sluice_core::event_types::Catalog;

use super::declarations::Declarations;
use super::plan::{Fault, Plan, stream};

/// How long a server has to report that a statement timed out, as in production.
const ANSWER_AFTER_TIMEOUT: Duration = Duration::from_secs(15);
/// The blocks of a batch in a table are at most this number, as in production.
const MAX_BLOCKS_OF_A_BATCH: u64 = 100;
/// The smallest value of `batch.max_bytes` that a configuration may have.
const MIN_MAX_BYTES: u64 = 1 << 20;
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// The receives that a message may use up where faults cost receives although nothing has crashed.
const MANY_RECEIVES: u32 = 40;

/// Values of `batch.max_bytes` with values of `clickhouse.dedup_window`. With the last, no object has
/// many blocks: only then may tables forget the token of a batch before it is retried.
const SIZES: [(u64, u64); 3] = [(2_000, 1_000), (8_000, 10_000), (50_000, 20)];

/// Returns the event types of every world: two with a column each, since whatever a plan contains
/// costs time in each batch. A line is the name of its type.
pub(super) fn catalog() -> &'static Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
        let files = ["viewed", "clicked"].map(|name| declaration(name, ""));
        Catalog::from_files(files).expect("the declarations are sound")
    });
    &CATALOG
}

/// Returns the declaration of an event type, which is looked for in the objects of these keys.
pub(super) fn declaration(name: &str, keys: &str) -> (String, String) {
    let text = format!(
        "table: {name}_events\n{keys}rule: {{path: [kind], equals: {name}}}\norder_by: [id]\n\
         columns:\n- {{name: id, type: String, path: [id], identifies: true}}\n"
    );
    (format!("{name}.yaml"), text)
}

/// What all workers of a world have in common.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The visibility timeout of messages, which is the lease of batches, too.
    pub(super) visibility: Duration,
    /// How long a message can be hidden after its receive at most.
    pub(super) visibility_limit: Duration,
    pub(super) max_receive_count: u32,
    pub(super) insert_timeout: Duration,
    pub(super) probe_interval: Duration,
    pub(super) janitor_interval: Duration,
    pub(super) grace_period: Duration,
    pub(super) acknowledge_missing: bool,
    /// The limit of a batch; larger objects are loaded in many blocks.
    max_bytes: u64,
    pub(super) dedup_window: u64,
    pub(super) dedup_age: Duration,
    wait_time: Duration,
    message_retry: Backoff,
    load_retry: Backoff,
    fallback: Fallback,
    is_replicated: bool,
}

impl Settings {
    /// Draws the settings of a world in which workers crash or stop `ends` times.
    pub(super) fn of(seed: u64, plan: &Plan, ends: u32) -> Self {
        let mut rng = stream(seed, "settings", 0);
        let mut seconds = |least: u64, most: u64| Duration::from_secs(rng.u64(least..=most));
        let visibility = seconds(10, 60);
        let insert_timeout = seconds(20, 60);
        let probe_interval = seconds(1, 5);
        let janitor_interval = seconds(20, 60);
        let grace_period = seconds(5, 20);
        let wait_time = seconds(1, 20);
        let message_retry = Backoff {
            min: seconds(1, 3),
            max: seconds(5, 10),
        };
        let load_retry = Backoff {
            min: seconds(1, 10) / 10,
            max: seconds(2, 10),
        };
        // In other worlds, a message is received once, and again for each worker that ends with it:
        // by the long polls of a worker that has crashed, which continue without it, and by another
        // worker.
        let max_receive_count = if plan.costs_receives() {
            MANY_RECEIVES
        } else {
            2 + 3 * ends
        };
        let (max_bytes, dedup_window) = SIZES[rng.usize(..SIZES.len())];
        Self {
            visibility,
            visibility_limit: visibility_limit(seed, plan, visibility),
            max_receive_count,
            insert_timeout,
            probe_interval,
            janitor_interval,
            grace_period,
            acknowledge_missing: rng.bool(),
            max_bytes,
            dedup_window,
            dedup_age: [DAY / 96, 7 * DAY][rng.usize(..2)],
            wait_time,
            message_retry,
            load_retry,
            fallback: if rng.u32(0..5) == 0 {
                Fallback::Always
            } else {
                Fallback::Auto
            },
            is_replicated: plan.replicas > 1,
        }
    }

    /// Returns how long a statement of a batch can run.
    pub(super) fn statement(&self) -> Duration {
        self.insert_timeout + ANSWER_AFTER_TIMEOUT
    }
}

/// Returns how long a message can be hidden after its receive at most: as in SQS, or for a few
/// visibility timeouts, which outages outlast.
fn visibility_limit(seed: u64, plan: &Plan, visibility: Duration) -> Duration {
    if plan.has(Fault::VisibilityLimit) {
        visibility * stream(seed, "visibility limit", 0).u32(3..=8)
    } else {
        VISIBILITY_LIMIT
    }
}

/// What the workers of a world can differ in.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    strategy: Strategy,
    window: Duration,
    flush_when_idle: bool,
    max_objects: usize,
    max_bytes: u64,
    concurrency: usize,
    pub(super) receivers: usize,
    pub(super) max_held: usize,
    stream_below: u64,
    declarations: Declarations,
}

impl Setup {
    /// Draws the setup of a worker. All have the same, unless the world has a rollout.
    pub(super) fn of(seed: u64, plan: &Plan, settings: &Settings, number: u64) -> Self {
        let number = if plan.has(Fault::Rollout) { number } else { 0 };
        let mut rng = stream(seed, "setup", number);
        Self {
            strategy: if rng.u32(0..3) == 0 {
                Strategy::PerType
            } else {
                Strategy::SinglePass
            },
            window: Duration::from_millis(rng.u64(500..=8_000)),
            flush_when_idle: rng.bool(),
            max_objects: rng.usize(1..=40),
            max_bytes: settings.max_bytes * rng.u64(1..=2),
            concurrency: rng.usize(1..=3),
            receivers: rng.usize(1..=2),
            max_held: rng.usize(10..=60),
            stream_below: [0, 0, 400][rng.usize(..3)],
            declarations: Declarations::of(plan),
        }
    }

    /// Returns the setup with the fixed declarations, if the world has any.
    pub(super) fn fixed(self) -> Self {
        Self {
            declarations: self.declarations.fixed(),
            ..self
        }
    }

    /// Returns the options of the daemon.
    pub(super) fn daemon_options(&self, settings: &Settings) -> daemon::Options {
        daemon::Options {
            limits: Limits {
                batch: BatchLimits {
                    window: self.window,
                    flush_when_idle: self.flush_when_idle,
                    max_objects: self.max_objects,
                    max_bytes: self.max_bytes,
                },
                visibility: VisibilityPolicy {
                    timeout: settings.visibility,
                    limit: settings.visibility_limit,
                    retry_min: settings.message_retry.min,
                    retry_max: settings.message_retry.max,
                },
                concurrency: self.concurrency,
                max_held: self.max_held,
            },
            receivers: self.receivers,
            wait_time: settings.wait_time,
            grace_period: settings.grace_period,
        }
    }

    /// Returns the settings of the loader.
    pub(super) fn load_config(&self, settings: &Settings) -> LoadConfig {
        LoadConfig {
            insert_timeout: settings.insert_timeout,
            retry: settings.load_retry,
            max_rejected_ratio: 1.0,
            on_all_rejected: None,
            max_buffered_bytes: u64::MAX,
            fallback: settings.fallback,
            stream_below: self.stream_below,
            acknowledge_missing: settings.acknowledge_missing,
            accept_unproven: Vec::new(),
            max_retry_age: settings.is_replicated.then_some(settings.dedup_age * 4 / 5),
            max_later_batches: settings.dedup_window / MAX_BLOCKS_OF_A_BATCH,
        }
    }

    /// Returns the planner of the worker's statements.
    pub(super) fn planner(&self, settings: &Settings) -> Planner {
        Planner::new(PlannerOptions {
            catalog: self.declarations.catalog().clone(),
            source: S3Source {
                endpoint: None,
                default_region: "us-east-1".to_owned(),
                access: S3Access::Server,
            },
            strategy: self.strategy,
            database: "sluice".to_owned(),
            max_bytes: self.max_bytes,
            max_line_bytes: self.declarations.max_line_bytes(),
            times: TimeLimits::ANY,
            insert_timeout: settings.insert_timeout,
        })
    }

    /// Returns the planner of a replay's statements. An object of rejects counts with an assumed
    /// size, for which the limits of the workers are too small: no configuration may have such
    /// limits.
    pub(super) fn planner_of_replays(&self, settings: &Settings) -> Planner {
        Planner::new(PlannerOptions {
            max_bytes: self.max_bytes.max(MIN_MAX_BYTES),
            ..self.planner(settings).options().clone()
        })
    }
}
