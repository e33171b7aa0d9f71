//! Row counts, read from the tables themselves.

use anyhow::{Context, Result};
use sluice_testkit::xapi::EventType;
use sluice_testkit::{ClickHouse, Site};

const REJECTED: &str = "rejected_lines";
const UNMATCHED: &str = "unmatched_statements";

/// The current number of rows in each table.
#[derive(Default, Clone, PartialEq, Eq)]
pub(super) struct Counts {
    events: [u64; EventType::ALL.len()],
    pub(super) rejected: u64,
    pub(super) unmatched: u64,
}

impl Counts {
    pub(super) fn rows(&self, kind: EventType) -> u64 {
        self.events[kind as usize]
    }

    pub(super) fn loaded(&self) -> u64 {
        self.events.iter().sum()
    }

    pub(super) fn all(&self) -> u64 {
        self.loaded() + self.rejected + self.unmatched
    }
}

/// Counts without FINAL, so that a row that was loaded twice is visible.
pub(super) async fn count(clickhouse: &ClickHouse, site: &Site) -> Result<Counts> {
    let events = EventType::ALL.map(EventType::table);
    let selects: Vec<String> = events
        .into_iter()
        .chain([REJECTED, UNMATCHED])
        .map(|table| format!("(SELECT count() FROM {}.{table}) AS {table}", site.database))
        .collect();
    let rows = clickhouse
        .rows(&format!("SELECT {}", selects.join(", ")))
        .await?;
    let row = rows.first().context("ClickHouse returned no counts")?;
    let of = |table: &str| {
        row.get(table)
            .and_then(serde_json::Value::as_u64)
            .with_context(|| format!("no count of {table}"))
    };
    let mut counts = Counts {
        rejected: of(REJECTED)?,
        unmatched: of(UNMATCHED)?,
        ..Counts::default()
    };
    for kind in EventType::ALL {
        counts.events[kind as usize] = of(kind.table())?;
    }
    Ok(counts)
}
