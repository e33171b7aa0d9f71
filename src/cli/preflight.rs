//! Reasons not to load: looked for before the first insert, and while intake is paused.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{debug, warn};

use super::note;
use super::topology::Topology;
use crate::clickhouse::error_class::PauseReason;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::config::Unproven;

/// Why nothing must be loaded, and the same in words.
pub(super) type Problem = (PauseReason, String);

/// Asks ClickHouse whether anything speaks against loading.
pub(super) struct Preflight {
    warehouse: Warehouse,
    tables: Vec<String>,
    topology: Topology,
    unproven: Unproven,
    /// Whether the warning of a set-up that is accepted has been given, or there is none to give.
    warned: AtomicBool,
}

impl Preflight {
    /// Returns one that looks for these tables.
    pub(super) fn new(
        warehouse: Warehouse,
        tables: Vec<String>,
        topology: Topology,
        unproven: Unproven,
    ) -> Self {
        Self {
            warehouse,
            tables,
            topology,
            unproven,
            warned: AtomicBool::new(false),
        }
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Returns what speaks against loading.
    pub(super) async fn problem(&self) -> Result<Option<Problem>, WarehouseError> {
        // Before it is advised to make such tables.
        if let Some(found) = self.topology.configured()
            && self.unproven == Unproven::Refuse
        {
            return Ok(Some((PauseReason::Unproven, found.refusal())));
        }
        let missing = self.warehouse.missing_tables(&self.tables).await?;
        if !missing.is_empty() {
            let why = format!(
                "tables are missing in database {}: {}; run `sluice migrate`",
                self.warehouse.database(),
                missing.join(", "),
            );
            return Ok(Some((PauseReason::Schema, why)));
        }
        if let Some(setting) = self.warehouse.dedup_disabled_by().await? {
            let why = format!(
                "`{setting}` is 'disable' for this user: rows of a repeated insert would be \
                 doubled; take it out of the user's profile"
            );
            return Ok(Some((PauseReason::Settings, why)));
        }
        match self.unproven {
            Unproven::Refuse => {
                let found = self.topology.unproven().await?;
                Ok(found.map(|found| (PauseReason::Unproven, found.refusal())))
            }
            Unproven::Accept => {
                self.warn_once().await;
                Ok(None)
            }
        }
    }

    /// Says what is accepted. Nothing depends on it: where that cannot be found out, loading
    /// begins all the same.
    async fn warn_once(&self) {
        if self.warned.load(Ordering::Relaxed) {
            return;
        }
        match self.topology.unproven().await {
            Ok(found) => {
                self.warned.store(true, Ordering::Relaxed);
                if let Some(found) = found {
                    warning(&format!(
                        "`clickhouse.unproven` is accept: {}",
                        found.risk()
                    ));
                }
            }
            Err(error) => debug!(%error, "failed to find out which servers and tables there are"),
        }
    }
}

/// Says it in the log, or where there is none, as commands say what goes with their result.
fn warning(text: &str) {
    if tracing::dispatcher::has_been_set() {
        warn!("{text}");
    } else {
        note(&format!("warning: {text}"));
    }
}
