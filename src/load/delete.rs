//! Deleting rows.

use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Cancelled, Loader};
use crate::statements::select::Target;

impl Loader {
    /// Deletes rows of a table until there are none.
    pub(super) async fn delete(
        &self,
        target: Target<'_>,
        condition: &str,
        cancel: &CancellationToken,
    ) -> Result<(), Cancelled> {
        let table = target.table();
        // Not the short timeout: a mutation of many parts takes its time.
        let timeout = self.limits.insert_timeout;
        let mut tries = 0;
        loop {
            let has_rows = self.persist(cancel, || self.warehouse.has_rows(table, condition));
            if !has_rows.await? {
                return Ok(());
            }
            if tries > 0 {
                self.pause(tries, cancel).await?;
            }
            tries += 1;
            let _alone = self.deletions.lock().await;
            self.persist(cancel, || async {
                // Of a worker that is gone, or of a try whose answer did not come.
                if self.warehouse.is_deleting(table, condition).await {
                    return Ok(());
                }
                debug!(table, tries, "deleting rows");
                self.warehouse.delete(table, condition, timeout).await
            })
            .await?;
        }
    }
}
