//! Reads what workers and ClickHouse have used, by day, for `sluice cost`.

use std::time::Duration;

use sluice_core::cost::{ClickHouseUsage, LoadedLines, WorkerUsage};

use crate::clickhouse::{Warehouse, WarehouseError};
use crate::ledger::BATCHES_TABLE;
use crate::sql;
use crate::statements::ddl::USAGE_TABLE;

/// The query log of a busy server is large.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Everything that was used in the last days.
#[derive(Debug)]
pub struct Used {
    pub clickhouse: Vec<ClickHouseUsage>,
    pub workers: Vec<WorkerUsage>,
    pub loaded: Vec<LoadedLines>,
}

/// Reads what was used in the last `days` days of UTC, today included.
///
/// # Errors
///
/// Fails if a table does not exist or may not be read, also `system.query_log`.
pub async fn used(warehouse: &Warehouse, days: u16) -> Result<Used, WarehouseError> {
    let query_log = everywhere(warehouse, "system.query_log").await?;
    let clickhouse = clickhouse_sql(warehouse, &query_log, days);
    let workers = workers_sql(warehouse, days);
    let loaded = loaded_sql(warehouse, days);
    Ok(Used {
        clickhouse: warehouse.rows_within(&clickhouse, TIMEOUT).await?,
        workers: warehouse.rows_within(&workers, TIMEOUT).await?,
        loaded: warehouse.rows_within(&loaded, TIMEOUT).await?,
    })
}

/// Returns the table expression of a system table, of which each server has its own.
async fn everywhere(warehouse: &Warehouse, table: &str) -> Result<String, WarehouseError> {
    Ok(match warehouse.replicas().await? {
        Some(replicas) => {
            let cluster = sql::string(&replicas.cluster);
            format!("clusterAllReplicas({cluster}, {table})")
        }
        None => table.to_owned(),
    })
}

/// Returns the condition for the last days. `time` is an expression.
fn within(time: &str, days: u16) -> String {
    format!("toDate({time}, 'UTC') > toDate(now(), 'UTC') - {days}")
}

/// Sums up the statements that Sluice sent, which their comments show, and divides those of a batch
/// by the lines of each kind.
///
/// `S3ReadRequestsCount` counts GET and HEAD, and a listing as well: three objects in a list of
/// names made 3 `S3HeadObject` and 3 `S3GetObject`, and this was 6; a glob that matched one object
/// made 2 `S3ListObjects` and 1 `S3GetObject`, and this was 3 (measured with 26.7.3). Failed
/// statements have these events, too. Those of distributed queries are in the logs of the servers
/// that executed them.
fn clickhouse_sql(warehouse: &Warehouse, query_log: &str, days: u16) -> String {
    format!(
        "WITH used AS (\
           SELECT toString(toDate(event_time, 'UTC')) AS day, \
             toUUIDOrZero(extract(log_comment, '^sluice batch ([0-9a-f-]{{36}})')) AS batch_id, \
             sum(ProfileEvents['S3ListObjects']) AS listings, \
             sum(ProfileEvents['S3ReadRequestsCount']) - listings AS reads, \
             sum(ProfileEvents['S3WriteRequestsCount']) + listings AS writes, \
             sum(ProfileEvents['ReadBufferFromS3Bytes']) AS bytes, \
             sum(ProfileEvents['OSCPUVirtualTimeMicroseconds']) / 1e6 AS seconds \
           FROM {query_log} \
           WHERE {recent} AND event_date >= toDate(now(), 'UTC') - {days} - 1 \
           AND type IN ('QueryFinish', 'ExceptionWhileProcessing') \
           AND startsWith(log_comment, 'sluice') AND has(databases, {database}) \
           GROUP BY day, batch_id\
         ), shares AS (\
           SELECT batch_id, kind, \
             sum(rows) / sum(sum(rows)) OVER (PARTITION BY batch_id) AS share \
           FROM {rows} WHERE batch_id IN (SELECT batch_id FROM used) GROUP BY batch_id, kind\
         ), divided AS (\
           SELECT u.day AS day, ifNull(s.kind, '') AS event_type, \
             if(event_type = '', 1, s.share) AS part, reads, writes, bytes, seconds \
           FROM used AS u LEFT JOIN shares AS s ON u.batch_id = s.batch_id\
         ) \
         SELECT day, event_type, \
           sum(reads * part) AS read_requests, sum(writes * part) AS write_requests, \
           sum(bytes * part) AS bytes_read, sum(seconds * part) AS processor_seconds \
         FROM divided GROUP BY day, event_type ORDER BY day, event_type",
        recent = within("event_time", days),
        database = sql::string(warehouse.database()),
        rows = warehouse.table("object_rows"),
    )
}

fn workers_sql(warehouse: &Warehouse, days: u16) -> String {
    format!(
        "SELECT toString(toDate(at, 'UTC')) AS day, kind, operation, sum(amount) AS amount \
         FROM {} WHERE {} GROUP BY day, kind, operation ORDER BY day, kind, operation",
        warehouse.table(USAGE_TABLE),
        within("at", days),
    )
}

fn loaded_sql(warehouse: &Warehouse, days: u16) -> String {
    format!(
        "SELECT toString(toDate(ingested_at, 'UTC')) AS day, kind AS event_type, \
           sum(rows) AS lines \
         FROM {rows} WHERE {recent} AND batch_id IN (\
           SELECT batch_id FROM {batches} WHERE event = 'loaded') \
         GROUP BY day, event_type ORDER BY day, event_type",
        rows = warehouse.table("object_rows"),
        batches = warehouse.table(BATCHES_TABLE),
        recent = within("ingested_at", days),
    )
}
