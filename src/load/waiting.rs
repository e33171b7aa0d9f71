//! Waits while another insert or the replica itself has to catch up. Nothing is unavailable then,
//! so this is not a failure, and intake continues.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::ports::Ports;
use super::{Cancelled, Loader};
use crate::clickhouse::WarehouseError;
use crate::clickhouse::error_class::{ErrorClass, classify};
use crate::telemetry::metrics;

/// The number of pauses after which they get no longer. Replicas need moments to catch up.
const MAX_GROWTH: u32 = 3;

/// How long a statement has been waiting.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// When its first error of [`ErrorClass::Wait`] came, if its last error was one.
    since: Option<Instant>,
    pauses: u32,
}

impl<P: Ports> Loader<P> {
    /// Pauses if the statement only has to wait, and returns whether it did.
    ///
    /// Returns `false` after an error of another class, and also if the statement has been waiting
    /// for longer than an insert may take: then no insert can be in progress that would end this,
    /// and the error is an outage.
    pub(super) async fn has_waited(
        &self,
        waiting: &mut Waiting,
        error: &WarehouseError,
        cancel: &CancellationToken,
    ) -> Result<bool, Cancelled> {
        if classify(error) != ErrorClass::Wait {
            *waiting = Waiting::default();
            return Ok(false);
        }
        let since = *waiting.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.config.insert_timeout {
            return Ok(false);
        }
        waiting.pauses = waiting.pauses.saturating_add(1);
        metrics::clickhouse_error(error.code(), ErrorClass::Wait);
        debug!(
            code = error.code(),
            pauses = waiting.pauses,
            error = %error,
            "waiting for another insert or for a replica; retrying"
        );
        self.pause(waiting.pauses.min(MAX_GROWTH), cancel).await?;
        Ok(true)
    }
}
