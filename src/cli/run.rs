//! `sluice run`

use std::sync::Arc;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::app::{App, region};
use super::stop::stop_on_signals;
use crate::Env;
use crate::admin::AdminListener;
use crate::daemon;
use crate::daemon::{QueueOutage, WorkerHandles, depths};
use crate::event_types::Catalog;
use crate::load::janitor::Janitor;
use crate::queue::Queue;
use crate::queue::payload::WithPayloads;
use crate::queue::sqs::SqsQueue;
use crate::s3::Store;
use crate::statements::select::Target;
use crate::telemetry::activity::Activity;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::{self, SqsOperation};
use crate::telemetry::{PushedMetrics, start_logging_and_traces};
use crate::usage::Usage;
use crate::util::failpoint;

pub(super) async fn run(app: &App<'_>) -> anyhow::Result<()> {
    let config = app.config;
    let queue_url = config.queue.require_url()?;
    let catalog = app.catalog()?;
    let envelopes = app.envelopes()?;
    let filter = app.notification_filter()?;
    let traces = start_logging_and_traces(&config.log, &config.telemetry)?;
    let _armed = failpoint::arm();
    let pushed_metrics = PushedMetrics::start(&config.telemetry)?;
    let metrics = metrics::install(&catalog, pushed_metrics.meter().as_ref())
        .context("failed to start the metrics")?;
    let stop = stop_on_signals()?;

    let aws = app.aws().await;
    let usage = Arc::new(Usage::default());
    let queue = Arc::new(app.queue(&aws)?.observed(usage.clone()));
    let warehouse = app.warehouse()?;
    let planner = app.planner(catalog.clone(), region(&aws))?;
    let preflight = app.preflight(&catalog)?;
    let handles = WorkerHandles::new(config.load.probe_interval.get(), activity(&catalog));
    let breaker = handles.breaker.clone();

    let admin = AdminListener::bind(config.admin.listen).await?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        queue = queue_url,
        clickhouse = config.clickhouse.url,
        database = config.clickhouse.database,
        admin = %admin.address(),
        event_types = catalog.types().len(),
        "starting"
    );
    if config.clickhouse.is_in_clear() {
        warn!(
            "`clickhouse.url` is an http:// URL of another machine: the password and all rows are \
             sent unencrypted; use https:// unless the network is trusted"
        );
    }
    let admin = tokio::spawn(admin.serve(
        handles.clone(),
        metrics,
        config.admin.allowed_hosts.clone(),
        stop.clone(),
    ));
    let prober = tokio::spawn({
        let breaker = breaker.clone();
        async move { breaker.keep_probing(|| preflight.problem()).await }
    });

    if check_queue(
        queue.as_ref(),
        config.queue.allow_missing_dlq,
        &handles.health,
        &stop,
        app.env.clone(),
    )
    .await?
    {
        let health = handles.health.clone();
        let report = move |depth| health.queue_is(depth);
        let depths = tokio::spawn(depths::watch(SqsQueue::clone(&queue), report));
        let activity = handles.activity.clone();
        let store = Store::new(&aws).observed(usage.clone());
        let recording = app.record_usage(usage, warehouse.clone());
        let loader = app.loader(planner, warehouse, store.clone(), breaker, activity);
        let loader = Arc::new(loader);
        let janitor = Janitor::new(loader.clone());
        tokio::spawn(janitor.run(config.load.janitor_interval.get(), stop.clone()));
        let queue = WithPayloads::new(SqsQueue::clone(&queue), store);
        let daemon = daemon::Daemon {
            queue: Arc::new(queue),
            loader,
            handles,
            envelopes,
            filter,
            options: app.daemon_options(),
            env: app.env.clone(),
        };
        daemon::run(daemon, stop).await;
        depths.abort();
        recording.end().await;
    }
    prober.abort();
    admin.abort();
    tokio::join!(traces.end(), pushed_metrics.end());
    Ok(())
}

/// Returns an activity that lists every kind of row, even before there are any.
fn activity(catalog: &Catalog) -> Activity {
    let targets = Target::all(catalog);
    Activity::of_kinds(targets.iter().filter_map(Target::kind))
}

/// The problem of a queue without a redrive policy, and what to do about it.
pub(super) const NO_REDRIVE_POLICY: (&str, &str) = (
    "the queue has no redrive policy: a message that can never be loaded would be redelivered \
     until its retention period ends, and then be lost",
    "configure a dead-letter queue (RedrivePolicy with deadLetterTargetArn and maxReceiveCount), \
     or set `queue.allow_missing_dlq`",
);

/// Waits until the queue answers, and refuses one without a dead-letter queue. Returns false if
/// `stop` is cancelled first.
async fn check_queue(
    queue: &impl Queue,
    allow_missing_dlq: bool,
    health: &Health,
    stop: &CancellationToken,
    env: Env,
) -> anyhow::Result<bool> {
    let mut outage = QueueOutage::new(env);
    loop {
        health.beat();
        let attributes = tokio::select! {
            () = stop.cancelled() => return Ok(false),
            attributes = queue.attributes() => attributes,
        };
        match attributes {
            Ok(attributes) if attributes.redrive_policy.is_some() || allow_missing_dlq => {
                health.queue_answers();
                info!(
                    visible = attributes.visible,
                    in_flight = attributes.in_flight,
                    "queue found"
                );
                return Ok(true);
            }
            Ok(_) => {
                let (problem, advice) = NO_REDRIVE_POLICY;
                bail!("{problem}; {advice}")
            }
            Err(error) => {
                metrics::sqs_failures(SqsOperation::Attributes, 1);
                health.queue_fails(error.to_string());
                let pause = outage.note(&error);
                tokio::select! {
                    () = stop.cancelled() => return Ok(false),
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}
