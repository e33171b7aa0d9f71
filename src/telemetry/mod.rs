//! Logs, traces and metrics.

pub mod activity;
pub mod health;
mod json;
pub mod metrics;
pub mod observer;
mod otlp;
mod repeats;
pub mod trace;

use std::io::IsTerminal;

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config::{LogConfig, LogFormat, TelemetryConfig};
pub use otlp::{PushedMetrics, Traces};
use repeats::FewOfEachKind;

/// Starts logging to standard error; standard output is for the results of commands.
pub fn start_logging(config: &LogConfig) -> anyhow::Result<()> {
    start(config, &Traces::none())
}

/// Starts logging, and traces if they are configured.
pub fn start_logging_and_traces(
    log: &LogConfig,
    telemetry: &TelemetryConfig,
) -> anyhow::Result<Traces> {
    let traces = Traces::start(telemetry)?;
    start(log, &traces)?;
    Ok(traces)
}

/// Writes the counts of repeated lines, before the process ends.
pub fn end_logging() {
    repeats::report_all();
}

fn start(config: &LogConfig, traces: &Traces) -> anyhow::Result<()> {
    let started = Registry::default()
        .with(traces.provider().map(spans))
        .with(lines(config)?)
        .try_init();
    started.map_err(|error| anyhow::anyhow!("failed to start logging: {error}"))?;
    tokio::spawn(repeats::report());
    Ok(())
}

fn spans<S>(provider: &opentelemetry_sdk::trace::SdkTracerProvider) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let traced = filter_fn(trace::is_traced).with_max_level_hint(LevelFilter::INFO);
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("sluice"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(traced)
}

fn lines<S>(config: &LogConfig) -> anyhow::Result<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    // The client logs whole responses, in which ClickHouse can quote a statement with its secrets.
    // Sluice logs the relevant parts of them, without secrets.
    let silent_client = "clickhouse=off".parse().context("invalid log directive")?;
    let no_steps = format!("{}=off", trace::STEP_TARGET);
    let filter = EnvFilter::try_new(&config.level)
        .context("`log.level` is not a valid filter")?
        .add_directive(silent_client)
        .add_directive(no_steps.parse().context("invalid log directive")?);
    let layer = fmt::layer().with_writer(std::io::stderr);
    Ok(match config.format {
        LogFormat::Text => layer
            .with_ansi(std::io::stderr().is_terminal())
            .event_format(FewOfEachKind(fmt::format()))
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => layer
            .with_ansi(false)
            .fmt_fields(JsonFields::new())
            .event_format(FewOfEachKind(json::FlatJson))
            .with_filter(filter)
            .boxed(),
    })
}
