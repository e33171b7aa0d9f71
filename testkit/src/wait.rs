//! Waiting for a condition instead of for a time.

use std::time::{Duration, Instant};

use anyhow::Result;

const PAUSE: Duration = Duration::from_millis(50);

/// Polls `condition` until it gives a value. `Ok(None)` and an error both mean "not yet"; an
/// error's text is the status that is shown should the bound pass.
///
/// # Panics
///
/// When `bound` passes first, with `what` was waited for and the last status.
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
            "waited {bound:?} for {what}, in vain; last status: {status}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// The same for code that is not async; gives `None` when the bound passes.
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
        std::thread::sleep(PAUSE);
    }
}
