//! Waits for conditions, with a bound.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Returns the pause before the next poll. It grows with the time that has passed: most conditions
/// are met soon, and polling for the others takes processor time from what they wait for.
fn pause(elapsed: Duration) -> Duration {
    (elapsed / 10).clamp(Duration::from_millis(20), Duration::from_millis(400))
}

/// Polls `condition` until it returns a value. `Ok(None)` and an error both mean "not yet"; the
/// text of the last error is reported if the bound passes.
///
/// # Panics
///
/// Panics if `bound` passes first; the message has `what` and the last status.
pub async fn wait_for<T>(
    what: &str,
    bound: Duration,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> T {
    let started = Instant::now();
    loop {
        let status = match condition().await {
            Ok(Some(value)) => return value,
            Ok(None) => String::from("not yet"),
            Err(error) => format!("{error:#}"),
        };
        assert!(
            started.elapsed() < bound,
            "timed out after {bound:?} waiting for {what}; last status: {status}"
        );
        tokio::time::sleep(pause(started.elapsed())).await;
    }
}

/// Polls a blocking `condition`; returns `None` if the bound passes.
pub(crate) fn poll<T>(
    bound: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(Some(value));
        }
        if started.elapsed() >= bound {
            return Ok(None);
        }
        std::thread::sleep(pause(started.elapsed()));
    }
}
