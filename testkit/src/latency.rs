//! PUT to queryable: from the answer to an object's PUT to the end of the insert that loaded it.
//!
//! The end of the insert is when ClickHouse's query log says that it finished, by ClickHouse's
//! clock; the PUT is by ours, which is the same clock here. A batch's inserts carry its id at the
//! start of their query id; where there are several (a replay, or one a table), the last counts,
//! since only then is everything there. It includes S3's notification, the time in the queue and
//! the batch window.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use crate::ClickHouse;
use crate::xapi::EventType;
use anyhow::{Context, Result};

/// Latencies of the objects for which both times are known, in ascending order.
#[derive(Debug)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// How many objects these are.
    pub fn objects(&self) -> usize {
        self.0.len()
    }

    /// The smallest latency that `percent` of the objects do not exceed.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }
}

/// Of the objects of this database; `put_at` is when the PUT of each `bucket/key` was answered.
///
/// # Errors
///
/// What ClickHouse says.
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

/// Query id of every insert into the data tables, and when it finished, since 1970.
async fn finished_inserts(
    clickhouse: &ClickHouse,
    database: &str,
) -> Result<BTreeMap<String, Duration>> {
    // The ledger's inserts carry the batch's id as well and are none of ours.
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
