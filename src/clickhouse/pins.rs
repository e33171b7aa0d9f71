//! Pins the settings by which a user's profile could change what Sluice's statements read or write.
//!
//! Every statement sets each of them to ClickHouse's own default: settings of a request take
//! precedence over those of a profile.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

use super::{Warehouse, WarehouseError, bounded};
use crate::sql;
use crate::statements::{PINNED, Pin};

/// ClickHouse's error code for an unknown setting.
const UNKNOWN_SETTING: u32 = 115;

/// The settings of [`PINNED`] that the server supports, once it has been queried. Shared by the
/// clones of a [`Warehouse`].
#[derive(Clone, Default)]
pub(super) struct Pins(Arc<Mutex<Option<Arc<[Pin]>>>>);

impl Pins {
    fn known(&self) -> Option<Arc<[Pin]>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, pins: Option<Arc<[Pin]>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = pins;
    }

    /// Forgets the known settings if the error shows that the server has changed.
    pub(super) fn note(&self, error: &WarehouseError) {
        if error.code() == Some(UNKNOWN_SETTING) {
            self.set(None);
        }
    }
}

#[derive(Deserialize)]
struct Known {
    names: Vec<String>,
}

impl Warehouse {
    /// Returns a client whose statements carry the pins.
    pub(super) async fn client(&self) -> Result<clickhouse::Client, WarehouseError> {
        let pins = match self.pins.known() {
            Some(pins) => pins,
            None => {
                let pins = self.known_pins().await?;
                self.pins.set(Some(pins.clone()));
                pins
            }
        };
        Ok(with(self.logged_in()?, &pins))
    }

    /// Queries the server for the pins that it supports.
    ///
    /// The query itself sets all pins, so that a profile cannot change its result, and a profile
    /// that forbids a pin is found here. The query is sent without any pins only if the
    /// server does not support one of them.
    async fn known_pins(&self) -> Result<Arc<[Pin]>, WarehouseError> {
        match self.known_names(with(self.logged_in()?, PINNED)).await {
            Err(error) if error.code() == Some(UNKNOWN_SETTING) => {}
            answer => return answer.map(|_| PINNED.into()),
        }
        let names = self.known_names(self.logged_in()?).await?;
        let pins = PINNED.iter().copied();
        Ok(pins
            .filter(|(name, _)| names.iter().any(|known| known == name))
            .collect())
    }

    async fn known_names(&self, client: clickhouse::Client) -> Result<Vec<String>, WarehouseError> {
        let names = PINNED.iter().map(|(name, _)| name);
        // The result has one row, which a profile may suppress but not truncate.
        let sql = format!(
            "SELECT groupArray(name) AS names FROM system.settings WHERE name IN ({})",
            sql::strings(names)
        );
        let rows: Vec<Known> = bounded(self.access.query_timeout, self.fetch(client, &sql)).await?;
        rows.into_iter().next().map(|row| row.names).ok_or_else(|| {
            WarehouseError::Unknown("the query for known settings returned no row".to_owned())
        })
    }
}

fn with(client: clickhouse::Client, pins: &[Pin]) -> clickhouse::Client {
    pins.iter().fold(client, |client, (name, value)| {
        client.with_setting(*name, *value)
    })
}
