//! Deleting rows.

use serde::de::IgnoredAny;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Cancelled, Loader};
use crate::event_types::select::Target;
use crate::warehouse::{MAX_QUERY_BYTES, Statement};

impl Loader {
    /// Deletes rows of a table until there are none. Of two mutations that are begun at once,
    /// ClickHouse (26.7) can lose one without a word.
    pub(super) async fn delete(
        &self,
        target: Target<'_>,
        condition: &str,
        cancel: &CancellationToken,
    ) -> Result<(), Cancelled> {
        let table = self.warehouse.table(target.table());
        let any = format!("SELECT 1 AS found FROM {table} WHERE {condition} LIMIT 1");
        let delete = Statement::new(format!("DELETE FROM {table} WHERE {condition}"))
            .with("max_query_size", MAX_QUERY_BYTES);
        // Not the short timeout: each repetition is one more mutation in the queue.
        let timeout = self.limits.insert_timeout;
        let mut tries = 0;
        loop {
            let found: Vec<IgnoredAny> = self.persist(cancel, || self.warehouse.rows(&any)).await?;
            if found.is_empty() {
                return Ok(());
            }
            if tries > 0 {
                warn!(table, "a deletion has left rows: deleting again");
                self.pause(tries, cancel).await?;
            }
            tries += 1;
            let _alone = self.deletions.lock().await;
            self.persist(cancel, || self.warehouse.execute(&delete, None, timeout))
                .await?;
        }
    }
}
