//! Logs and metrics.

pub mod depths;
pub mod metrics;

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Starts logging to standard error; standard output is for what a command was asked to print.
pub fn start_logging(config: &LogConfig) -> anyhow::Result<()> {
    // The client tells whole answers, in which ClickHouse can quote a statement with its secrets.
    // What matters of them is told here, without.
    let silent_client = "clickhouse=off".parse().context("a directive")?;
    let filter = EnvFilter::try_new(&config.level)
        .context("`log.level` is no filter")?
        .add_directive(silent_client);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging could not be started: {error}"))
}

/// An error and what caused it, in one line.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
