//! A bucket listing joined with ledger status, for read-only commands.

use anyhow::Context;

use super::app::App;
use super::selection::SelectionArguments;
use crate::ledger::Ledger;
use crate::ledger::protocol::ClaimStatus;
use crate::s3::listing::Lister;
use crate::s3::{Listed, Store};

pub(super) struct ListingWithStatus {
    lister: Lister,
    ledger: Ledger,
    clickhouse: String,
}

impl ListingWithStatus {
    pub(super) fn new(
        app: &App<'_>,
        selection: &SelectionArguments,
        store: Store,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            lister: selection.lister(app, store)?,
            ledger: app.ledger(app.warehouse()?),
            clickhouse: app.config.clickhouse.url.clone(),
        })
    }

    /// Returns the next objects with their claim statuses; `None` at the end.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Vec<(Listed, ClaimStatus)>>> {
        let Some(listed) = self.lister.next().await? else {
            return Ok(None);
        };
        let ids: Vec<_> = listed.iter().map(|listed| listed.object.id()).collect();
        let claim_statuses = self.ledger.claim_statuses(&ids, None, &[]).await;
        let claim_statuses = claim_statuses
            .with_context(|| format!("failed to query ClickHouse at {}", self.clickhouse))?;
        Ok(Some(listed.into_iter().zip(claim_statuses).collect()))
    }
}
