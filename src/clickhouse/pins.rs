//! Settings of the user's profile that would change what Sluice's statements read or write.
//!
//! Every statement carries each of them with ClickHouse's own default, so that a profile cannot
//! change its meaning: settings of a request take precedence over those of a profile.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

use super::{Warehouse, WarehouseError, bounded};
use crate::sql;

/// A setting and the value that every statement gives it.
type Pin = (&'static str, &'static str);

/// Of a setting that the planner gives an insert, too, the planner's value counts.
///
/// `no_setting_of_a_profile_changes_rows` (tests/it/profiles.rs) flips every setting of the server, to
/// find those that are missing here.
pub const PINNED: &[Pin] = &[
    // These take rows away from a result, or add some.
    ("limit", "0"),
    ("offset", "0"),
    ("additional_result_filter", ""),
    ("additional_table_filters", "{}"),
    ("final", "0"),
    ("apply_deleted_mask", "1"),
    ("empty_result_for_aggregation_by_empty_set", "0"),
    (
        "empty_result_for_aggregation_by_constant_keys_on_empty_set",
        "1",
    ),
    // These take a part of the rows for all of them, where a limit or a timeout is reached.
    ("partial_result_on_first_cancel", "0"),
    ("timeout_overflow_mode", "throw"),
    ("timeout_overflow_mode_leaf", "throw"),
    ("read_overflow_mode", "throw"),
    ("read_overflow_mode_leaf", "throw"),
    ("result_overflow_mode", "throw"),
    ("group_by_overflow_mode", "throw"),
    ("sort_overflow_mode", "throw"),
    ("distinct_overflow_mode", "throw"),
    ("set_overflow_mode", "throw"),
    ("join_overflow_mode", "throw"),
    ("transfer_overflow_mode", "throw"),
    // These change values.
    ("allow_simdjson", "1"),
    ("join_use_nulls", "0"),
    ("aggregate_functions_null_for_empty", "0"),
    // These cut other blocks, by which ClickHouse knows a repeated insert.
    ("input_format_max_block_size_bytes", "0"),
    ("input_format_max_block_wait_ms", "0"),
    ("use_strict_insert_block_limits", "0"),
    // These have other servers, or an earlier result, answer.
    ("use_query_cache", "0"),
    ("enable_parallel_replicas", "0"),
    ("automatic_parallel_replicas_mode", "0"),
    ("parallel_distributed_insert_select", "2"),
];

/// ClickHouse's error for a setting that it does not know.
const UNKNOWN_SETTING: u32 = 115;

/// Those of [`PINNED`] that the server knows, once it was asked. Shared by the clones of a
/// [`Warehouse`].
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

    /// Has the server asked again where it has turned out to be another one.
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

    /// Asks the server which pins it knows.
    ///
    /// The question carries all of them: a profile cannot change its answer, and one that forbids a
    /// pin is found out here. Only a server that lacks one answers a question without any.
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
        // One row, which a profile may take away, but not cut short.
        let sql = format!(
            "SELECT groupArray(name) AS names FROM system.settings WHERE name IN ({})",
            sql::strings(names)
        );
        let rows: Vec<Known> = bounded(self.query_timeout, self.fetch(client, &sql)).await?;
        rows.into_iter().next().map(|row| row.names).ok_or_else(|| {
            WarehouseError::Unknown("it does not say which settings it knows".to_owned())
        })
    }
}

fn with(client: clickhouse::Client, pins: &[Pin]) -> clickhouse::Client {
    pins.iter().fold(client, |client, (name, value)| {
        client.with_setting(*name, *value)
    })
}
