//! The preflight check: looks for reasons not to load, before the first insert and while intake is
//! paused.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{debug, warn};

use super::note;
use super::topology::TopologyCheck;
use crate::clickhouse::error_class::PauseReason;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::config::Unproven;

/// The reason why loading must not start: a class and a message.
pub(super) type Problem = (PauseReason, String);

/// Queries ClickHouse for reasons not to load.
pub(super) struct Preflight {
    warehouse: Warehouse,
    tables: Vec<String>,
    topology: TopologyCheck,
    unproven: Unproven,
    /// Whether the warning about an accepted set-up has been logged, or is not needed.
    warned: AtomicBool,
}

impl Preflight {
    /// Creates a check that requires these tables.
    pub(super) fn new(
        warehouse: Warehouse,
        tables: Vec<String>,
        topology: TopologyCheck,
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

    pub(super) fn topology(&self) -> &TopologyCheck {
        &self.topology
    }

    /// Returns the reason not to load, if there is one: tables are missing, the user's profile
    /// disables deduplication, or loading each object once is not proven on this set-up.
    pub(super) async fn problem(&self) -> Result<Option<Problem>, WarehouseError> {
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
                "the setting `{setting}` is 'disable' for this user: rows of a repeated insert \
                 would be duplicated; remove the setting from the user's profile"
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

    /// Warns once about an accepted set-up. If the set-up cannot be determined, loading starts
    /// anyway.
    async fn warn_once(&self) {
        if self.warned.load(Ordering::Relaxed) {
            return;
        }
        match self.topology.unproven().await {
            Ok(found) => {
                self.warned.store(true, Ordering::Relaxed);
                if let Some(found) = found {
                    warning(&format!(
                        "`clickhouse.unproven` is `accept`: {}",
                        found.risk()
                    ));
                }
            }
            Err(error) => debug!(%error, "failed to determine servers and tables; loading anyway"),
        }
    }
}

/// Logs a warning, or prints it to standard error if logging has not been started.
fn warning(text: &str) {
    if tracing::dispatcher::has_been_set() {
        warn!("{text}");
    } else {
        note(&format!("warning: {text}"));
    }
}
