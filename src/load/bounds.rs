//! Bounds on what one insert may use in ClickHouse, so that no object exhausts the server.

use serde::Deserialize;

use super::answers::Answers;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::sql;

/// The largest number of lines in a block. Each takes about 600 bytes of memory, however short it
/// is.
const MAX_LINES: u64 = 2_000_000;
/// The factor by which the lines of one block may exceed `batch.max_bytes`, which limits an
/// estimate: the expanded size of an object is known only after it has been read.
const MAX_EXPANSION: u64 = 4;
/// The bytes that a row of the landing table takes in addition to the text of its line.
const ROW_BYTES: u64 = 256;
const SHORTEST_LINE: u64 = 4;

const ROWS: &str = "max_rows_to_read";
const BYTES: &str = "max_bytes_to_read";
const MEMORY: &str = "max_memory_usage";

/// The bounds of an insert. A limit in the user's profile takes precedence.
///
/// No bound changes what an insert writes: an insert that exceeds one fails.
#[derive(Debug)]
pub(super) struct Bounds {
    rows: u64,
    bytes: u64,
    memory: u64,
    /// The settings that the profile does not limit.
    unlimited: Answers<(), Vec<String>>,
}

impl Bounds {
    /// Creates the bounds. `views` is the number of tables that are filled from the landing table:
    /// ClickHouse counts what an insert reads once for its source and once for each of them.
    pub(super) fn new(max_batch_bytes: u64, max_memory: u64, views: usize) -> Self {
        let times = views as u64 + 1;
        let lines = MAX_LINES.min(max_batch_bytes / SHORTEST_LINE);
        let bytes = max_batch_bytes.saturating_mul(MAX_EXPANSION);
        Self {
            rows: MAX_LINES * times,
            bytes: bytes
                .saturating_add(lines * ROW_BYTES)
                .saturating_mul(times),
            memory: max_memory,
            unlimited: Answers::default(),
        }
    }

    /// Returns the settings of an insert. Many blocks may add up to any size, since they are
    /// processed one at a time.
    pub(super) async fn settings(
        &self,
        warehouse: &Warehouse,
        many_blocks: bool,
    ) -> Result<Vec<(&'static str, u64)>, WarehouseError> {
        let unlimited = self.unlimited(warehouse).await?;
        let mut settings = vec![(MEMORY, self.memory)];
        if !many_blocks {
            settings.extend([(ROWS, self.rows), (BYTES, self.bytes)]);
        }
        settings.retain(|(name, _)| unlimited.iter().any(|it| it == name));
        Ok(settings)
    }

    async fn unlimited(&self, warehouse: &Warehouse) -> Result<Vec<String>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            name: String,
        }
        if let Some(names) = self.unlimited.known(&()) {
            return Ok(names);
        }
        let sql = format!(
            "SELECT name FROM system.settings WHERE name IN ({}) AND value = '0'",
            sql::strings([ROWS, BYTES, MEMORY]),
        );
        let rows: Vec<Row> = warehouse.rows(&sql).await?;
        let names: Vec<String> = rows.into_iter().map(|row| row.name).collect();
        self.unlimited.learn((), names.clone());
        Ok(names)
    }
}
