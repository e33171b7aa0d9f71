//! Loads objects again: the new batch supersedes those that loaded the objects before.
//!
//! The record of the new batch is the commit. Until then, the rows of the earlier batches stay, and
//! the new ones are rolled back if the batch fails. Afterwards, the rows of the earlier batches are
//! garbage, which is deleted at once, or by the next backfill.

use std::time::SystemTime;

use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info};

use super::ports::{LedgerStore, Ports, Rows};
use super::progress::PendingObject;
use super::{Cancelled, Loader, Outcomes};
use crate::batch::{Batch, BatchId};
use crate::ledger::Claims;
use crate::ledger::protocol::ClaimStatus;
use crate::object::ObjectId;
use crate::statements::select::Target;
use crate::telemetry::trace;
use crate::util::failpoint;

impl<P: Ports> Loader<P> {
    /// Loads objects, and replaces the rows that the batches of `loaded_by` inserted for them.
    pub async fn replace(
        &self,
        batch: Batch,
        loaded_by: &Claims,
        cancel: CancellationToken,
    ) -> Outcomes {
        let items = batch.objects.into_iter().map(|object| {
            let loaded_by = loaded_by.get(&object.id()).cloned().unwrap_or_default();
            PendingObject::new(object, loaded_by)
        });
        self.load_items(items.collect(), cancel).await
    }

    /// Calls [`crate::ledger::Ledger::loaded_claims`] until the ledger responds. Returns `None` if
    /// cancelled.
    pub async fn loaded_claims(
        &self,
        objects: &[ObjectId],
        before: SystemTime,
        cancel: &CancellationToken,
    ) -> Option<Claims> {
        self.retry_until_ok(cancel, || self.parts.ledger.loaded_claims(objects, before))
            .await
            .ok()
    }

    /// Finishes the replacements that other workers have left unfinished. Returns the batches that
    /// may still be in progress elsewhere.
    pub async fn finish_replacements(&self, cancel: &CancellationToken) -> Vec<BatchId> {
        self.try_to_finish(cancel).await.unwrap_or_default()
    }

    async fn try_to_finish(&self, cancel: &CancellationToken) -> Result<Vec<BatchId>, Cancelled> {
        let mut in_progress = Vec::new();
        for replacement in self
            .retry_until_ok(cancel, || self.parts.ledger.replacements())
            .await?
        {
            let batch = replacement.batch;
            let span = trace::recover(batch);
            match replacement.status {
                ClaimStatus::Loaded => self.clean(batch, cancel).instrument(span).await?,
                status if status.has_expired_lease() => {
                    self.recover(batch, cancel).instrument(span).await?;
                }
                _ => in_progress.push(batch),
            }
        }
        Ok(in_progress)
    }

    /// Deletes the rows that loaded batches supersede, once more: rows that were put back. Returns
    /// whether it was not cancelled.
    pub async fn clean_again(&self, batches: &[BatchId], cancel: &CancellationToken) -> bool {
        for batch in batches {
            let span = trace::recover(*batch);
            if self.clean(*batch, cancel).instrument(span).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Deletes the rows that a loaded batch supersedes.
    pub(super) async fn clean(
        &self,
        batch: BatchId,
        cancel: &CancellationToken,
    ) -> Result<(), Cancelled> {
        failpoint::reach("clean.before");
        let objects = self
            .retry_until_ok(cancel, || self.parts.ledger.objects(batch))
            .await?;
        let superseded = Rows::SupersededBy(&objects);
        for target in Target::all(self.planner().catalog()) {
            self.delete(target, superseded, cancel).await?;
            failpoint::reach("clean.table");
        }
        self.retry_until_ok(cancel, || self.parts.ledger.cleaned(batch))
            .await?;
        failpoint::reach("clean.after");
        info!("deleted superseded rows");
        Ok(())
    }
}
