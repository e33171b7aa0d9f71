//! Stops commands on SIGTERM and Ctrl-C.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Returns a token that the first SIGTERM or Ctrl-C cancels. A second one ends the process.
pub(super) fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate =
        signal(SignalKind::terminate()).context("failed to handle the signal SIGTERM")?;
    let mut interrupt =
        signal(SignalKind::interrupt()).context("failed to handle the signal SIGINT")?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stopping.is_cancelled() {
                warn!("second signal; exiting at once: batches in flight are recovered later");
                std::process::exit(130);
            }
            stopping.cancel();
        }
    });
    Ok(stop)
}
