//! Measures the latency from PUT to queryable: from the response to an object's PUT to the end of
//! the insert that loaded it.
//!
//! The end of the insert is taken from ClickHouse's query log, and the time of the PUT from the
//! test's clock, which is the same clock here. The query ids of a batch's inserts begin with its
//! id. If there are several inserts (a retry, or one per table), the last one counts, since all
//! rows are there only then. The latency includes S3's notification, the time in the queue and the
//! batch window.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use crate::ClickHouse;
use crate::xapi::EventType;
use anyhow::{Context, Result};

/// Latencies of the objects for which both times are known, in ascending order.
#[derive(Debug)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Returns the number of objects.
    pub fn objects(&self) -> usize {
        self.0.len()
    }

    /// Returns the smallest latency that `percent` % of the objects do not exceed.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }
}

/// Measures the latencies of the database's objects. `put_at` has the time of the response to the
/// PUT of each `bucket/key`.
///
/// # Errors
///
/// Fails if a query fails.
pub async fn measure(
    clickhouse: &ClickHouse,
    database: &str,
    put_at: &HashMap<String, SystemTime>,
) -> Result<Latencies> {
    clickhouse.execute("SYSTEM FLUSH LOGS").await?;
    let finished = finished_inserts(clickhouse, database).await?;
    let batches = format!(
        "SELECT DISTINCT source_path AS path, toString(batch_id) AS batch FROM {}.object_rows",
        database
    );
    let mut queryable: HashMap<String, Duration> = HashMap::new();
    for row in clickhouse.rows(&batches).await? {
        let (path, batch) = (text(&row, "path")?, text(&row, "batch")?);
        let of_batch = finished.range(batch.to_owned()..);
        let last = of_batch
            .take_while(|(id, _)| id.starts_with(batch))
            .map(|(_, at)| *at)
            .max();
        if let Some(last) = last {
            let first_load = queryable.entry(path.to_owned()).or_insert(last);
            *first_load = last.min(*first_load);
        }
    }
    let since_1970 = |time: &SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
    let mut latencies: Vec<Duration> = put_at
        .iter()
        .filter_map(|(path, put)| Some(queryable.get(path)?.saturating_sub(since_1970(put)?)))
        .collect();
    latencies.sort_unstable();
    Ok(Latencies(latencies))
}

/// Returns the query id of every insert into the data tables, with the time since 1970 at which it
/// finished.
async fn finished_inserts(
    clickhouse: &ClickHouse,
    database: &str,
) -> Result<BTreeMap<String, Duration>> {
    // The ledger's inserts also carry the batch's id, but they load no rows.
    let tables: Vec<String> = EventType::ALL
        .map(EventType::table)
        .into_iter()
        .map(|table| format!("'{database}.{table}'"))
        .collect();
    let sql = format!(
        "SELECT query_id, toUnixTimestamp64Micro(max(event_time_microseconds)) AS micros \
         FROM system.query_log WHERE type = 'QueryFinish' AND query_kind = 'Insert' \
         AND arrayExists(t -> t IN ({}) OR startsWith(t, '{}.landing_'), tables) \
         GROUP BY query_id",
        tables.join(", "),
        database,
    );
    let rows = clickhouse.rows(&sql).await?;
    rows.iter()
        .map(|row| {
            let micros = row.get("micros").and_then(serde_json::Value::as_u64);
            let micros = micros.context("the query log has no time")?;
            Ok((
                text(row, "query_id")?.to_owned(),
                Duration::from_micros(micros),
            ))
        })
        .collect()
}

fn text<'a>(row: &'a serde_json::Value, column: &str) -> Result<&'a str> {
    row.get(column)
        .and_then(serde_json::Value::as_str)
        .with_context(|| format!("no column {column}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let hundred = Latencies((1..=100).map(Duration::from_millis).collect());
        assert_eq!(hundred.percentile(50), Some(Duration::from_millis(50)));
        assert_eq!(hundred.percentile(99), Some(Duration::from_millis(99)));
        let one = Latencies(vec![Duration::from_secs(1)]);
        assert_eq!(one.percentile(99), Some(Duration::from_secs(1)));
        assert_eq!(Latencies(Vec::new()).percentile(50), None);
    }
}
