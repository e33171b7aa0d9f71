//! Deletes rows.

use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::ports::{BatchTables, LedgerStore, Ports, Rows};
use super::{Cancelled, Loader};
use crate::statements::select::Target;

impl<P: Ports> Loader<P> {
    /// Deletes rows of a table, and repeats this until none are left.
    pub(super) async fn delete(
        &self,
        target: Target<'_>,
        rows: Rows<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), Cancelled> {
        let table = target.table();
        // The timeout of a small statement is too short for a mutation of many parts.
        let timeout = self.config.insert_timeout;
        // A replica that lags could show none of them.
        let barrier = self.retry_until_ok(cancel, || self.parts.ledger.barrier());
        let barrier = barrier.await?;
        let mut tries = 0;
        loop {
            let has_rows = self.retry_until_ok(cancel, || {
                let tables = &self.parts.tables;
                tables.has_rows(table, rows, barrier.as_ref())
            });
            if !has_rows.await? {
                return Ok(());
            }
            if tries > 0 {
                self.pause(tries, cancel).await?;
            }
            tries += 1;
            let _alone = self.state.deletions.lock().await;
            self.retry_until_ok(cancel, || async {
                // The mutation can be that of a dead worker, or of a request whose response was
                // lost.
                if self.parts.tables.is_deleting(table, rows).await {
                    return Ok(());
                }
                debug!(table, tries, "deleting rows");
                self.parts.tables.delete(table, rows, timeout).await
            })
            .await?;
        }
    }
}
