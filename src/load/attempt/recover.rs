//! Recovers a batch whose worker was last heard of longer ago than its lease lasts.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::BatchRun;
use crate::batch::BatchId;
use crate::clickhouse::error_class::ErrorClass;
use crate::ledger::protocol::{End, Run};
use crate::load::cause::{BatchFailure, FailureCause};
use crate::load::ports::{LedgerStore, Ports};
use crate::load::progress::PendingObject;
use crate::load::{Cancelled, Loader};

impl<P: Ports> Loader<P> {
    /// Returns when the tables may begin to forget the token of a batch that was claimed this long
    /// ago, or `None` if they do not forget by age.
    pub(super) fn token_expires(&self, age: Duration) -> Option<Instant> {
        let max_age = self.config.max_retry_age?;
        Some(Instant::now() + max_age.saturating_sub(age))
    }

    /// Finishes or releases a batch whose lease has expired.
    ///
    /// The future is boxed, since a run that meets such a batch recovers it as one of its steps.
    pub(in crate::load) fn recover<'a>(
        &'a self,
        batch: BatchId,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<(), Cancelled>> {
        Box::pin(self.recover_now(batch, cancel))
    }

    async fn recover_now(
        &self,
        batch: BatchId,
        cancel: &CancellationToken,
    ) -> Result<(), Cancelled> {
        let Some(manifest) = self
            .retry_until_ok(cancel, || self.parts.ledger.manifest(batch))
            .await?
        else {
            return Ok(());
        };
        info!(
            objects = manifest.objects.len(),
            "recovering a batch; its lease has expired"
        );
        let items: Vec<PendingObject> = manifest
            .objects
            .into_iter()
            .map(|entry| PendingObject::new(entry.object, entry.supersedes))
            .collect();
        let layout = manifest.layout.as_ref();
        let plan = layout.and_then(|it| self.planner().plan_id(manifest.shape.read_by, it));
        let is_own_plan = plan == Some(manifest.shape.plan);
        // Without a layout, nothing is inserted.
        let layout = Arc::new(manifest.layout.unwrap_or_default());
        let mut batch_run = BatchRun::new(self, cancel, batch, items, manifest.shape, layout);
        batch_run.is_claimed = true;
        batch_run.is_in_doubt = true;
        batch_run.token_expires = self.token_expires(manifest.age);
        let obstacle = if !is_own_plan {
            Some(FailureCause::OtherPlan)
        } else {
            let is_forgotten = batch_run.has_expired_token();
            is_forgotten.then_some(FailureCause::Forgotten)
        };
        // A complete batch is recorded all the same.
        let may_retry = obstacle.is_none();
        if let Some(cause) = obstacle {
            warn!("{cause}; reloading its objects");
            batch_run.failure = Some(BatchFailure::new(ErrorClass::Changed, cause));
        }
        // However the batch ends, its objects are looked up again.
        let end = batch_run
            .run(Run::recover(manifest.fenced, may_retry))
            .await?;
        if end == End::Loaded {
            batch_run.clean().await?;
        }
        info!(?end, "recovery ended");
        Ok(())
    }
}
