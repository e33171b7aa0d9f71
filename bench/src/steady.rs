//! Objects that arrive steadily, as in production: the time until each can be queried, the worker's
//! memory and the tables' parts.

use std::collections::HashMap;
use std::iter;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sluice::object::ObjectRef;
use sluice_testkit::latency::measure;
use sluice_testkit::xapi::{ExpectedRows, Generator};
use tokio::sync::mpsc;
use tokio::time::{interval, sleep_until};

use crate::contenders::engine::{self, WINDOW};
use crate::contenders::sluice::{Cost, Running, Worker};
use crate::harness::{Database, Harness};
use crate::note;
use crate::plot;
use crate::queue::QueueServer;

const BUCKET: &str = "steady";

/// The result of a run.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Steady {
    objects_per_second: f64,
    minutes: f64,
    /// Additional configuration of the worker.
    configuration: String,
    /// The time from the response to an object's PUT to the end of the insert that loaded it.
    p50_seconds: f64,
    p99_seconds: f64,
    inserts_per_minute: f64,
    cost: Cost,
    moments: Vec<Moment>,
}

/// The state at one time.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Moment {
    minute: f64,
    rss_mib: f64,
    /// The active parts of the table that has the most.
    active_parts: u64,
    /// The same for the bare engine, if it loads the same objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    engine_parts: Option<u64>,
}

impl Steady {
    /// Draws the worker's memory over time.
    pub(crate) fn draw(&self, path: &Path) -> Result<()> {
        let points = self.moments.iter().map(|it| (it.minute, it.rss_mib));
        let rate = self.objects_per_second;
        let title = format!("the worker's resident memory in MiB at {rate} objects/s");
        plot::line(path, &title, &points.collect::<Vec<_>>())
    }

    /// Returns the rows of a Markdown table.
    pub(crate) fn rows(&self) -> String {
        let fixed = if self.configuration.is_empty() {
            String::new()
        } else {
            format!(", `{}`", self.configuration.trim().replace('\n', " "))
        };
        let what = format!(
            "{} objects/s for {} minutes{fixed}",
            self.objects_per_second, self.minutes
        );
        let parts = self.moments.iter().map(|it| it.active_parts).max();
        let engine_parts = self.moments.iter().filter_map(|it| it.engine_parts).max();
        let engine = engine_parts.map_or(String::new(), |parts| {
            format!("; of the bare engine with the same objects, an insert every 10 s: {parts}")
        });
        let third = |third: usize| {
            let length = self.moments.len() / 3;
            let some = self.moments.iter().skip(third * length).take(length);
            some.map(|it| it.rss_mib).fold(0.0, f64::max)
        };
        format!(
            "| {what}: PUT to queryable, p50 and p99 | {:.2} s, {:.2} s |\n\
             | {what}: inserts per minute, most active parts of a table | {:.1}, {}{engine} |\n\
             | {what}: peak resident memory, first and last third | {:.1} MiB, {:.1} MiB |\n",
            self.p50_seconds,
            self.p99_seconds,
            self.inserts_per_minute,
            parts.unwrap_or_default(),
            third(0),
            third(2),
        )
    }
}

/// The parameters of a run.
pub(crate) struct Plan {
    pub(crate) objects_per_second: f64,
    pub(crate) minutes: f64,
    /// Additional configuration of the worker, as YAML.
    pub(crate) configuration: String,
    /// Whether the bare engine loads the same objects at the same time, once per window.
    pub(crate) beside_engine: bool,
}

pub(crate) async fn run(harness: &Harness, plan: Plan) -> Result<Steady> {
    let Plan {
        objects_per_second: rate,
        minutes,
        configuration,
        beside_engine,
    } = plan;
    let database = harness.database().await?;
    let beside = if beside_engine {
        Some(harness.migrated().await?)
    } else {
        None
    };
    let queue = QueueServer::start([]).await?;
    let at = queue.addresses(&harness.objects);
    let mut worker =
        Worker::prepare(&harness.sluice, harness, &at, &database, "", &configuration)?.start()?;
    let length = Duration::from_secs_f64(minutes * 60.0);
    let (arrivals, arrived) = mpsc::unbounded_channel();
    let ((expected_rows, put_at), moments, ()) = tokio::try_join!(
        upload(harness, &queue, rate, length, arrivals),
        watch(&mut worker, &database, beside.as_ref(), length),
        load_alongside(harness, beside.as_ref(), arrived),
    )?;
    worker
        .wait_until(async || Ok(queue.depth().await? == (0, 0)))
        .await?;
    let cost = worker.cost()?;
    drop(worker);
    database.ensure_rows(&expected_rows).await?;
    if let Some(beside) = beside {
        beside.ensure_rows(&expected_rows).await?;
        beside.remove().await?;
    }
    let latencies = measure(&harness.clickhouse, &database.name, &put_at).await?;
    let inserts = format!(
        "SELECT uniqExact(batch_id) FROM {}.object_rows",
        database.name
    );
    let inserts: f64 = harness.clickhouse.scalar(&inserts).await?;
    database.remove().await?;
    let inserts_per_minute = inserts / minutes;
    let seconds = |percent| {
        let latency = latencies
            .percentile(percent)
            .context("nothing was loaded")?;
        anyhow::Ok(latency.as_secs_f64())
    };
    let steady = Steady {
        objects_per_second: rate,
        minutes,
        configuration,
        p50_seconds: seconds(50)?,
        p99_seconds: seconds(99)?,
        inserts_per_minute,
        cost,
        moments,
    };
    note(&format!(
        "{rate} objects/s: p50 {:.2} s, p99 {:.2} s, {inserts_per_minute:.1} inserts per minute",
        steady.p50_seconds, steady.p99_seconds
    ));
    Ok(steady)
}

/// The time of the response to the PUT of each key.
type PutAt = HashMap<String, SystemTime>;

async fn upload(
    harness: &Harness,
    queue: &QueueServer,
    rate: f64,
    length: Duration,
    arrivals: mpsc::UnboundedSender<ObjectRef>,
) -> Result<(ExpectedRows, PutAt)> {
    let mut generator = Generator::new(2).sizes(1..=2).faults(0.0, 0.02);
    let begun = tokio::time::Instant::now();
    let (mut expected_rows, mut put_at) = (ExpectedRows::default(), PutAt::new());
    let mut at = Duration::ZERO;
    while at < length {
        sleep_until(begun + at).await;
        at += Duration::from_secs_f64(1.0 / rate);
        let bundle = generator.bundle();
        expected_rows += &bundle.expected_rows;
        let object = harness.objects.put(BUCKET, bundle);
        put_at.insert(object.path(), SystemTime::now());
        queue.announce(&object);
        // The receiver may be gone.
        arrivals.send(object).ok();
    }
    Ok((expected_rows, put_at))
}

/// Lets the bare engine load the objects that have arrived, once per window, until no more arrive.
async fn load_alongside(
    harness: &Harness,
    database: Option<&Database<'_>>,
    mut arrived: mpsc::UnboundedReceiver<ObjectRef>,
) -> Result<()> {
    let Some(database) = database else {
        return Ok(());
    };
    let mut window = interval(WINDOW);
    let mut ended = false;
    while !ended {
        window.tick().await;
        ended = arrived.is_closed();
        let objects: Vec<ObjectRef> = iter::from_fn(|| arrived.try_recv().ok()).collect();
        engine::load(harness, &objects, database).await?;
    }
    Ok(())
}

async fn watch(
    worker: &mut Running,
    database: &Database<'_>,
    beside: Option<&Database<'_>>,
    length: Duration,
) -> Result<Vec<Moment>> {
    let mut moments = Vec::new();
    let begun = Instant::now();
    let mut tick = interval(length / 30);
    while begun.elapsed() < length {
        tick.tick().await;
        worker.ensure_running()?;
        moments.push(Moment {
            minute: begun.elapsed().as_secs_f64() / 60.0,
            rss_mib: worker.rss_mib()?,
            active_parts: database.most_parts().await?,
            engine_parts: match beside {
                Some(beside) => Some(beside.most_parts().await?),
                None => None,
            },
        });
    }
    Ok(moments)
}
