//! What happened to a table, apart from Sluice: its TTL, DELETEs, dropped partitions, and whether
//! it was truncated or restored.

use serde::Deserialize;
use uuid::Uuid;

use super::Verifier;
use crate::clickhouse::WarehouseError;
use crate::ledger::{BATCHES_TABLE, OBJECTS_TABLE};
use crate::sql;
use crate::statements::ddl::REPLAYED;
use crate::statements::select::Target;
use sluice_core::verify::Epochs;

/// What happened to a table. Times are in milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The expression of the partition key; empty if the table is not partitioned.
    pub(super) partition_key: String,
    pub(super) ttl: Ttl,
    deletions: Vec<Deletion>,
    /// If the server has forgotten earlier mutations, the time of the first that it remembers.
    forgotten_before: Option<i64>,
    changes: Vec<Change>,
    pub(super) epochs: Epochs,
}

/// When rows of a table expire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Ttl {
    #[default]
    Never,
    /// When the time of this expression has passed.
    After(String),
    /// By rules that cannot be compared with rows.
    Other,
}

/// A DELETE of rows of the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Deletion {
    at: i64,
    command: String,
    /// The condition, unless it cannot be compared with rows.
    pub(super) condition: Option<String>,
}

/// A mutation, as the server remembers it.
#[derive(Debug, Deserialize)]
struct Mutation {
    at: i64,
    command: String,
}

/// A statement of the query log that removes rows without a condition.
#[derive(Debug, Deserialize)]
struct Change {
    at: i64,
    /// Whether it drops, detaches or moves a partition; otherwise it truncates, exchanges or
    /// restores.
    is_of_partition: bool,
}

impl Facts {
    /// Returns the DELETEs since that time that can concern rows of these batches.
    pub(super) fn deletions_since(&self, at: i64, batches: &[Uuid]) -> Vec<&Deletion> {
        let since = self.deletions.iter().filter(|deletion| deletion.at >= at);
        since.filter(|it| it.concerns(batches)).collect()
    }

    /// Returns whether DELETEs since that time may have been forgotten.
    pub(super) fn may_lack_deletions(&self, at: i64) -> bool {
        self.forgotten_before.is_some_and(|before| at < before)
    }

    /// Returns whether a partition was dropped since that time.
    pub(super) fn was_partition_dropped(&self, at: i64) -> bool {
        let mut changes = self.changes.iter();
        changes.any(|change| change.is_of_partition && change.at >= at)
    }

    /// Returns whether the table was truncated, exchanged or restored since that time.
    pub(super) fn was_truncated(&self, at: i64) -> bool {
        let mut changes = self.changes.iter();
        changes.any(|change| !change.is_of_partition && change.at >= at)
    }
}

impl Deletion {
    fn new(at: i64, command: String) -> Self {
        Self {
            at,
            condition: condition_of(&command),
            command,
        }
    }

    /// Returns whether it can have deleted rows of these batches. Sluice's own deletions name the
    /// batches whose rows they delete, and these are not in force.
    fn concerns(&self, batches: &[Uuid]) -> bool {
        let is_own = is_by_batch(&self.command) || self.command.contains(REPLAYED);
        let is_named = |batch: &Uuid| self.command.contains(&batch.to_string());
        !is_own || batches.iter().any(is_named)
    }
}

impl Mutation {
    fn is_deletion(&self) -> bool {
        let command = self.command.trim_start_matches('(');
        command.starts_with("DELETE ") || command.starts_with("UPDATE _row_exists = 0 ")
    }
}

/// The number of finished mutations that a server remembers of a table, by default.
const REMEMBERED_MUTATIONS: usize = 100;

/// Returns the number of finished mutations that a server remembers of the table with this
/// `engine_full`.
fn remembered_mutations(engine: &str) -> usize {
    let setting = engine.split_once("finished_mutations_to_keep = ");
    let digits = setting.map(|(_, rest)| rest.split(|it: char| !it.is_ascii_digit()).next());
    let number = digits.flatten().and_then(|digits| digits.parse().ok());
    number.unwrap_or(REMEMBERED_MUTATIONS)
}

fn is_by_batch(command: &str) -> bool {
    let condition = command.split_once("WHERE ").map(|(_, condition)| condition);
    let condition = condition.unwrap_or_default().trim_start_matches('(');
    condition.starts_with("batch_id = ") || condition.starts_with("batch_id IN ")
}

/// Returns the condition of a DELETE, as `system.mutations` has it, if rows that are not in the
/// table can be compared with it. A subquery would run with other rights, and can have another
/// result by now; a part or a partition names rows that are in the table.
fn condition_of(command: &str) -> Option<String> {
    let command = command
        .strip_prefix('(')
        .and_then(|command| command.strip_suffix(')'))
        .unwrap_or(command);
    let condition = ["DELETE WHERE ", "UPDATE _row_exists = 0 WHERE "]
        .into_iter()
        .find_map(|prefix| command.strip_prefix(prefix))?;
    let lower = condition.to_lowercase();
    let is_comparable = !["select", "_part", "_block", "_row"]
        .iter()
        .any(|word| lower.contains(word));
    is_comparable.then(|| condition.to_owned())
}

/// Returns the TTL of a table from its `engine_full`.
fn ttl_of(engine: &str) -> Ttl {
    let Some((_, ttl)) = engine.split_once(" TTL ") else {
        return Ttl::Never;
    };
    let ttl = ttl.split_once(" SETTINGS ").map_or(ttl, |(ttl, _)| ttl);
    // A comma after a bracket can begin a second TTL.
    let is_more = [" WHERE ", " GROUP BY ", " TO ", " RECOMPRESS ", "), "]
        .iter()
        .any(|word| ttl.contains(word));
    if is_more {
        Ttl::Other
    } else {
        Ttl::After(ttl.trim_end_matches(" DELETE").to_owned())
    }
}

impl Verifier<'_> {
    /// Returns what happened to the table of a target.
    pub(super) async fn facts(&self, target: Target<'_>) -> Result<Facts, WarehouseError> {
        let mut facts = self.definition(target).await?;
        facts.changes = match self.changes(target).await {
            // The log does not exist, or is not granted.
            Err(WarehouseError::Server { .. }) => Vec::new(),
            changes => changes?,
        };
        facts.epochs = self.epochs(target).await?;
        Ok(facts)
    }

    async fn definition(&self, target: Target<'_>) -> Result<Facts, WarehouseError> {
        #[derive(Deserialize)]
        struct Table {
            engine_full: String,
            partition_key: String,
        }
        let sql = format!(
            "SELECT engine_full, partition_key FROM system.tables \
             WHERE database = {} AND name = {}",
            sql::string(self.warehouse.database()),
            sql::string(target.table())
        );
        let tables: Vec<Table> = self.warehouse.rows(&sql).await?;
        let Some(table) = tables.into_iter().next() else {
            return Ok(Facts::default());
        };
        let mutations = self.mutations(target).await?;
        let first = mutations.iter().map(|mutation| mutation.at).min();
        let is_full = mutations.len() >= remembered_mutations(&table.engine_full);
        let deletions = mutations.into_iter().filter(Mutation::is_deletion);
        Ok(Facts {
            ttl: ttl_of(&table.engine_full),
            partition_key: table.partition_key,
            deletions: deletions
                .map(|mutation| Deletion::new(mutation.at, mutation.command))
                .collect(),
            forgotten_before: first.filter(|_| is_full),
            ..Facts::default()
        })
    }

    async fn mutations(&self, target: Target<'_>) -> Result<Vec<Mutation>, WarehouseError> {
        // The time of a mutation has no fraction of a second: its last millisecond is meant.
        let sql = format!(
            "SELECT toUnixTimestamp(create_time) * 1000 + 999 AS at, command \
             FROM system.mutations WHERE database = {} AND table = {}",
            sql::string(self.warehouse.database()),
            sql::string(target.table())
        );
        self.warehouse.rows(&sql).await
    }

    /// Returns the statements of the query log that removed rows of the table, on all servers that
    /// respond.
    async fn changes(&self, target: Target<'_>) -> Result<Vec<Change>, WarehouseError> {
        let log = match &self.cluster {
            None => "system.query_log".to_owned(),
            Some(cluster) => format!(
                "clusterAllReplicas({}, system.query_log)",
                sql::string(cluster)
            ),
        };
        let sql = format!(
            "SELECT toUnixTimestamp64Milli(event_time_microseconds) AS at, \
               toBool(query_kind = 'Alter') AS is_of_partition \
             FROM {log} WHERE type = 'QueryFinish' AND has(tables, {table}) \
             AND (query_kind IN ('Drop', 'Rename', 'Restore') OR (query_kind = 'Alter' \
               AND match(query, '(?i)(drop|detach|move)[[:space:]]+part'))) \
             SETTINGS skip_unavailable_shards = 1",
            table = sql::string(&format!("{}.{}", self.warehouse.database(), target.table())),
        );
        self.warehouse.rows_within(&sql, self.timeout).await
    }

    /// Returns the batches that have loaded rows into the table and are in force.
    async fn epochs(&self, target: Target<'_>) -> Result<Epochs, WarehouseError> {
        #[derive(Deserialize)]
        struct Batch {
            at: i64,
            has_rows: bool,
        }
        let sql = format!(
            "SELECT toUnixTimestamp64Milli(min(at)) AS at, \
               toBool(batch_id IN (SELECT batch_id FROM {table})) AS has_rows \
             FROM {batches} WHERE event = 'loaded' \
             AND batch_id IN (SELECT batch_id FROM {counts} WHERE kind = {kind}) \
             AND batch_id NOT IN (SELECT arrayJoin(supersedes) FROM {claims}) \
             GROUP BY batch_id",
            table = self.warehouse.table(target.table()),
            batches = self.warehouse.table(BATCHES_TABLE),
            counts = self.warehouse.table(Target::ObjectRows.table()),
            kind = sql::string(target.kind().unwrap_or_default()),
            claims = self.warehouse.table(OBJECTS_TABLE),
        );
        let counts = Target::ObjectRows.table();
        let tables = [target.table(), BATCHES_TABLE, counts, OBJECTS_TABLE];
        let batches: Vec<Batch> = self.rows(&tables, &sql).await?;
        let batches = batches.into_iter().map(|it| (it.at, it.has_rows));
        Ok(Epochs::new(batches.collect()))
    }

    /// Returns for each of these times of a load whether the TTL has passed by now; `None` if that
    /// depends on the rows.
    pub(super) async fn have_expired(
        &self,
        ttl: &Ttl,
        loaded_at: &[i64],
    ) -> Result<Vec<Option<bool>>, WarehouseError> {
        #[derive(Deserialize)]
        struct Load {
            place: usize,
            has_expired: bool,
        }
        let ttl = match ttl {
            Ttl::Never => return Ok(vec![Some(false); loaded_at.len()]),
            Ttl::Other => return Ok(vec![None; loaded_at.len()]),
            Ttl::After(expression) => expression,
        };
        let mut expired = vec![None; loaded_at.len()];
        if loaded_at.is_empty() {
            return Ok(expired);
        }
        let times: Vec<String> = loaded_at.iter().map(i64::to_string).collect();
        let sql = format!(
            "SELECT place, toBool(({ttl}) <= now()) AS has_expired FROM (\
               SELECT load.1 - 1 AS place, fromUnixTimestamp64Milli(load.2, 'UTC') AS ingested_at \
               FROM (SELECT arrayJoin(arrayZip(arrayEnumerate([{times}] AS times), times)) AS load))",
            times = times.join(", ")
        );
        match self.warehouse.rows_within::<Load>(&sql, self.timeout).await {
            // The expression has other columns.
            Err(WarehouseError::Server { .. }) => {}
            loads => {
                for load in loads? {
                    if let Some(expired) = expired.get_mut(load.place) {
                        *expired = Some(load.has_expired);
                    }
                }
            }
        }
        Ok(expired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_of_a_delete_is_compared_if_it_is_about_rows() {
        // As system.mutations of ClickHouse 26.7 has them.
        let is = |condition: &str| Some(condition.to_owned());
        let lightweight = "(UPDATE _row_exists = 0 WHERE event_id = '3')";
        assert_eq!(condition_of(lightweight), is("event_id = '3'"));
        let rewriting = r"(DELETE WHERE (section = 4) AND (event_id IN ('4', '5\'x')))";
        let expected = r"(section = 4) AND (event_id IN ('4', '5\'x'))";
        assert_eq!(condition_of(rewriting), is(expected));
        for command in [
            "(DELETE WHERE id IN (SELECT id FROM x.gone))",
            "(DELETE IN PARTITION ID '202601' WHERE 1)",
            "(UPDATE _row_exists = 0 WHERE (batch_id = 'b') AND (_part IN ('p')))",
            "(UPDATE source_etag = 'e' WHERE section = 5)",
        ] {
            assert_eq!(condition_of(command), None, "{command}");
        }
    }

    #[test]
    fn sluices_own_deletions_concern_the_batches_that_they_name() {
        let batch = Uuid::from_u128(7);
        let of = |condition: &str| {
            let command = format!("(UPDATE _row_exists = 0 WHERE {condition})");
            Deletion::new(0, command)
        };
        let own = format!("batch_id = '{}'", Uuid::from_u128(8));
        assert!(!of(&own).concerns(&[batch]));
        assert!(of(&own).concerns(&[Uuid::from_u128(8)]));
        let superseded = format!("(batch_id IN ('{}')) AND (1 IN (1))", Uuid::from_u128(8));
        assert!(!of(&superseded).concerns(&[batch]));
        let moved = "(source_path, batch_id) IN (SELECT 1 FROM x.replayed_lines)";
        assert!(!of(moved).concerns(&[batch]));
        assert!(of("user_id = 'u'").concerns(&[batch]));
    }

    #[test]
    fn deletes_may_be_missing_once_the_server_has_forgotten_some() {
        assert_eq!(remembered_mutations("MergeTree ORDER BY a"), 100);
        let engine = "MergeTree SETTINGS finished_mutations_to_keep = 7, index_granularity = 1";
        assert_eq!(remembered_mutations(engine), 7);
        let facts = Facts {
            forgotten_before: Some(5),
            ..Facts::default()
        };
        assert!(facts.may_lack_deletions(4) && !facts.may_lack_deletions(5));
        assert!(!Facts::default().may_lack_deletions(0));
    }

    #[test]
    fn a_ttl_is_compared_if_it_is_an_expression() {
        let engine = |ttl: &str| {
            format!(
                "ReplacingMergeTree(ingested_at) ORDER BY (a, b){ttl} SETTINGS index_granularity = 8192"
            )
        };
        let expression = "toDateTime(ingested_at) + toIntervalSecond(60)";
        let is = Ttl::After(expression.to_owned());
        assert_eq!(ttl_of(&engine(&format!(" TTL {expression}"))), is);
        assert_eq!(ttl_of(&engine(&format!(" TTL {expression} DELETE"))), is);
        assert_eq!(ttl_of(&engine("")), Ttl::Never);
        for more in [
            "WHERE a = 1",
            ", toDateTime(a) TO VOLUME 'cold'",
            "TO VOLUME 'cold'",
            "RECOMPRESS CODEC(ZSTD)",
        ] {
            let ttl = format!(" TTL {expression} {more}");
            assert_eq!(ttl_of(&engine(&ttl)), Ttl::Other, "{more}");
        }
    }
}
