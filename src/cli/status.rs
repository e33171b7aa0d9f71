//! `sluice status`

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use serde::Serialize;

use super::app::App;
use super::output::{Output, first_words, shown, table};
use super::{classes, worker};
use crate::admin::WorkerStatus;
use crate::config::{Config, HumanDuration};
use crate::ledger::DISMISSED;
use crate::ledger::history::{
    FailedObject, FailureFilter, ObjectStory, OpenBatches, WorkerActivity,
};
use crate::object::ObjectUrl;
use crate::queue::Queue;
use crate::queue::sqs::SqsQueue;
use crate::telemetry::metrics::InFlightStats;
use sluice_core::sliding_window::Summary;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Object whose history to show instead, such as s3://bucket/key
    #[arg(value_name = "S3-URL")]
    object: Option<ObjectUrl>,

    /// List failed objects whose keys have not been loaded since
    #[arg(long, conflicts_with = "object")]
    failed: bool,

    /// Look-back window [default: 10m for activity, unlimited for failures]
    #[arg(long, value_name = "DURATION", conflicts_with = "object")]
    since: Option<HumanDuration>,

    /// With --failed: only failures of this class
    #[arg(long, value_name = "CLASS", value_parser = classes::of_objects(), requires = "failed")]
    error_class: Option<String>,

    /// With --failed: only objects under this prefix, such as s3://bucket/2026/
    #[arg(long, value_name = "S3-URL", requires = "failed")]
    prefix: Option<ObjectUrl>,

    /// With --failed: list at most COUNT objects
    #[arg(long, value_name = "COUNT", default_value_t = 100, requires = "failed")]
    limit: u64,

    /// Query the worker at this admin listener instead of `admin.listen` (can be repeated)
    #[arg(long = "worker", value_name = "HOST:PORT", conflicts_with_all = ["object", "failed"])]
    workers: Vec<String>,

    #[command(flatten)]
    output: Output,
}

const ACTIVITY: Duration = Duration::from_secs(600);

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let history = app.history()?;
    let unanswered = || {
        let url = &app.config.clickhouse.url;
        format!("failed to query ClickHouse at {url}")
    };
    let since = arguments.since.map(HumanDuration::get);
    if let Some(url) = &arguments.object {
        let versions = history.object(url).await.with_context(unanswered)?;
        let object = url.to_string();
        return arguments.output.show(&Story { object, versions });
    }
    if arguments.failed {
        let filter = FailureFilter {
            class: arguments.error_class.clone(),
            since,
            prefix: arguments.prefix.clone(),
        };
        let failed = history.failed(&filter, arguments.limit).await;
        let failed = failed.with_context(unanswered)?;
        return arguments.output.show(&Failed(failed));
    }
    let queues = async {
        let queue = app.queue(&app.aws().await)?;
        anyhow::Ok(queues(&queue).await?)
    };
    let since = since.unwrap_or(ACTIVITY);
    let (queue, loaded, open, processes) = tokio::join!(
        queues,
        history.workers(since),
        history.open_batches(),
        processes(app.config, &arguments.workers),
    );
    let overview = Overview {
        queue: part(queue),
        processes,
        since_seconds: since.as_secs(),
        workers: part(loaded.map_err(Into::into)),
        open_batches: part(open.map_err(Into::into)),
    };
    arguments.output.show(&overview)?;
    let is_answered = |process: &Process| matches!(process.status, Part::Known(_));
    anyhow::ensure!(
        // A worker that is not running here is reported, but is not a failure.
        overview.is_whole()
            && (arguments.workers.is_empty() || overview.processes.iter().all(is_answered)),
        "some sources could not be queried; see above"
    );
    Ok(())
}

/// The answer to a query, or why there is none.
#[derive(Serialize)]
#[serde(untagged)]
enum Part<T> {
    Known(T),
    Unknown { error: String },
}

fn part<T>(answer: anyhow::Result<T>) -> Part<T> {
    match answer {
        Ok(known) => Part::Known(known),
        Err(error) => Part::Unknown {
            error: format!("{error:#}"),
        },
    }
}

impl<T> Part<T> {
    fn fmt(
        &self,
        f: &mut fmt::Formatter<'_>,
        known: impl Fn(&T, &mut fmt::Formatter<'_>) -> fmt::Result,
    ) -> fmt::Result {
        match self {
            Self::Known(value) => known(value, f),
            Self::Unknown { error } => writeln!(f, "unknown: {}", shown(error)),
        }
    }
}

#[derive(Serialize)]
struct Overview {
    queue: Part<Queues>,
    processes: Vec<Process>,
    since_seconds: u64,
    workers: Part<Vec<WorkerActivity>>,
    open_batches: Part<OpenBatches>,
}

/// A worker, as its admin listener reports it.
#[derive(Serialize)]
struct Process {
    address: String,
    status: Part<WorkerStatus>,
}

async fn processes(config: &Config, named: &[String]) -> Vec<Process> {
    let addresses = if named.is_empty() {
        worker::address_here(config).into_iter().collect()
    } else {
        named.to_vec()
    };
    let processes = addresses.into_iter().map(async |address| Process {
        status: part(status_of(&address).await),
        address,
    });
    join_all(processes).await
}

async fn status_of(address: &str) -> anyhow::Result<WorkerStatus> {
    let (status, body) = worker::get(address, "/status.json").await?;
    anyhow::ensure!(status.is_success(), "the response has status {status}");
    serde_json::from_slice(&body).context("the response is not the status of a worker")
}

#[derive(Serialize)]
struct Queues {
    url: String,
    visible: u64,
    in_flight: u64,
    dead_letter_queue: Option<DeadLetters>,
}

#[derive(Serialize)]
struct DeadLetters {
    url: String,
    messages: u64,
}

async fn queues(queue: &SqsQueue) -> Result<Queues, crate::queue::QueueError> {
    let attributes = queue.attributes().await?;
    let dead_letter_queue = match queue.dead_letter_queue().await? {
        None => None,
        Some(dead) => {
            let attributes = dead.attributes().await?;
            Some(DeadLetters {
                url: dead.url().to_owned(),
                messages: attributes.visible + attributes.in_flight,
            })
        }
    };
    Ok(Queues {
        url: queue.url().to_owned(),
        visible: attributes.visible,
        in_flight: attributes.in_flight,
        dead_letter_queue,
    })
}

impl Overview {
    fn is_whole(&self) -> bool {
        matches!(
            (&self.queue, &self.workers, &self.open_batches),
            (Part::Known(_), Part::Known(_), Part::Known(_))
        )
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue         ")?;
        self.queue.fmt(f, |queue, f| {
            let (visible, in_flight) = (queue.visible, queue.in_flight);
            writeln!(
                f,
                "{visible} visible, {in_flight} in flight ({})",
                queue.url
            )?;
            match &queue.dead_letter_queue {
                Some(dead) => writeln!(f, "dead letters  {} ({})", dead.messages, dead.url),
                None => writeln!(f, "dead letters  none: the queue has no redrive policy"),
            }
        })?;
        for process in &self.processes {
            write!(f, "worker        {}: ", shown(&process.address))?;
            process.status.fmt(f, show_worker)?;
        }
        write!(f, "open batches  ")?;
        self.open_batches.fmt(f, |open, f| {
            write!(f, "{} with {} objects", open.batches, open.objects)?;
            if open.batches > 0 {
                write!(f, ", the oldest open for {}", seconds(open.oldest_seconds))?;
            }
            writeln!(f)
        })?;
        write!(f, "\nloaded in the last {}\n", seconds(self.since_seconds))?;
        self.workers.fmt(f, |workers, f| {
            if workers.is_empty() {
                return writeln!(f, "nothing");
            }
            let rows = workers.iter().map(|worker| {
                vec![
                    shown(&worker.worker),
                    worker.batches.to_string(),
                    worker.objects.to_string(),
                    worker.rows.to_string(),
                    worker.rejected.to_string(),
                    worker.unmatched.to_string(),
                    per_second(worker.rows, self.since_seconds),
                    worker.last_batch_at.clone(),
                ]
            });
            let header = [
                "worker",
                "batches",
                "objects",
                "rows",
                "rejected",
                "unmatched",
                "rows/s",
                "last batch (UTC)",
            ];
            writeln!(f, "{}", table(&header, rows))
        })
    }
}

fn show_worker(worker: &WorkerStatus, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut held_up = [
        ("paused", &worker.paused),
        ("not receiving", &worker.queue_away),
    ]
    .into_iter()
    .filter_map(|(what, why)| Some(format!("{what}: {}", shown(why.as_ref()?))))
    .collect::<Vec<_>>()
    .join("; ");
    if held_up.is_empty() {
        held_up = format!("ready, up for {}", seconds(worker.uptime_seconds));
    }
    writeln!(f, "{held_up}")?;
    let InFlightStats {
        messages,
        oldest_seconds,
        objects_waiting,
        batches_in_flight,
        lag,
        queue_age,
        ..
    } = &worker.holdings;
    writeln!(
        f,
        "  in flight   {messages} messages, the oldest for {oldest_seconds:.1} s; \
         {objects_waiting} objects waiting for their window, {batches_in_flight} batches being \
         loaded"
    )?;
    let recent = |what: &str, summary: &Option<Summary>| match summary {
        None => format!("  {what}no recent samples\n"),
        Some(Summary {
            count,
            p50,
            p99,
            max,
        }) => format!(
            "  {what}median {p50:.1} s, p99 {p99:.1} s, longest {max:.1} s ({count} recent)\n"
        ),
    };
    write!(
        f,
        "{}{}",
        recent("lag         ", lag),
        recent("in queue    ", queue_age)
    )
}

fn seconds(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

#[expect(clippy::cast_precision_loss, reason = "rounded for display")]
fn per_second(count: u64, seconds: u64) -> String {
    format!("{:.1}", count as f64 / seconds.max(1) as f64)
}

#[derive(Serialize)]
struct Failed(Vec<FailedObject>);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return writeln!(f, "no failed objects");
        }
        let rows = self.0.iter().map(|failed| {
            vec![
                format!("s3://{}/{}", failed.bucket, failed.key),
                failed.class.clone(),
                failed.tries.to_string(),
                failed.last_at.clone(),
                first_words(&failed.reason),
            ]
        });
        let header = ["object", "class", "tries", "last (UTC)", "reason"];
        writeln!(f, "{}", table(&header, rows))
    }
}

#[derive(Serialize)]
struct Story {
    object: String,
    versions: Vec<ObjectStory>,
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", shown(&self.object))?;
        if self.versions.is_empty() {
            return writeln!(
                f,
                "\nno record of it: it was not announced, is still in the queue or in an open \
                 batch, or its record has expired"
            );
        }
        for version in &self.versions {
            write!(f, "\n{version}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ObjectStory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.loaded { "loaded" } else { "not loaded" };
        writeln!(f, "etag {}: {state}", shown(&self.etag))?;
        for (kind, rows) in &self.rows {
            writeln!(f, "  {rows} {}", shown(kind))?;
        }
        for (reason, lines) in &self.rejected {
            writeln!(f, "  {lines} rejected: {}", shown(reason))?;
        }
        for batch in &self.batches {
            let (state, id) = (&batch.state, &batch.batch_id);
            let worker = shown(&batch.worker);
            write!(
                f,
                "  claimed {} by {worker}, batch {id}: {state}",
                batch.sealed_at
            )?;
            if !batch.ended_at.is_empty() {
                write!(f, " {}", batch.ended_at)?;
            }
            match batch.read_by.as_str() {
                "s3" => {}
                "stream" => write!(f, ", streamed")?,
                table => write!(f, ", replayed from {}", shown(table))?,
            }
            if batch.attempts > 1 {
                write!(f, ", {} attempts", batch.attempts)?;
            }
            if !batch.reason.is_empty() {
                write!(f, " ({})", shown(&batch.reason))?;
            }
            writeln!(f)?;
        }
        for failure in &self.failures {
            let (at, reason) = (&failure.at, shown(&failure.reason));
            if failure.class == DISMISSED {
                writeln!(f, "  {DISMISSED} {at}: {reason}")?;
            } else {
                writeln!(f, "  failed {at} as {}: {reason}", failure.class)?;
                for record in &failure.sample {
                    writeln!(f, "    {}", shown(record))?;
                }
            }
        }
        Ok(())
    }
}
