//! Reads an object again, to find out which of its rows a table lacks.
//!
//! ClickHouse selects the rows as the object's insert did, and compares them with the table by the
//! sorting key. So a row that a merge has collapsed into an equal one is not taken for lost, and
//! TTLs, DELETEs and partitions are compared with the very rows that are absent.

use serde::Deserialize;
use uuid::Uuid;

use super::compare::Difference;
use super::facts::{Facts, Ttl};
use super::{Loads, Verifier};
use crate::batch::{BatchId, Layout};
use crate::clickhouse::WarehouseError;
use crate::ledger::{BATCHES_TABLE, IS_REPLAY, OBJECTS_TABLE, RecordedObject};
use crate::object::{ObjectParts, ObjectRef};
use crate::sql;
use crate::statements::ddl::collapsing_key;
use crate::statements::s3_source::{KeyAddressing, addressing};
use crate::statements::select::Target;
use sluice_core::verify::{Reread, RereadRows};

/// The claim under which an object was loaded.
#[derive(Debug, Deserialize)]
struct LoadedClaim {
    #[serde(flatten)]
    object: RecordedObject,
    batch_id: Uuid,
    layout: String,
}

/// The queries for the rows of one object in one table.
struct RowsQuery {
    /// The rows of the object, with the types of the table and the time of the load.
    rows: String,
    /// The columns of the sorting key.
    key: String,
    /// The keys that the table has.
    kept: String,
    settings: String,
}

impl RowsQuery {
    /// Returns the query for the rows of the object with the column `sluice_fate`: 1 if the table
    /// has a row with their key, 2 if they have expired, 3 if a DELETE matches them, or else 4.
    fn fates(&self, ttl: Option<&str>, deletions: &[&str]) -> String {
        let Self {
            rows, key, kept, ..
        } = self;
        let expired = ttl.map_or("false".to_owned(), |ttl| format!("({ttl}) <= now()"));
        let deletions: Vec<String> = deletions.iter().map(|it| format!("({it})")).collect();
        let deleted = if deletions.is_empty() {
            "false".to_owned()
        } else {
            deletions.join(" OR ")
        };
        format!(
            "SELECT *, \
               multiIf(({key}) IN ({kept}), 1, {expired}, 2, {deleted}, 3, 4) AS sluice_fate \
             FROM ({rows})"
        )
    }
}

/// What the query for the partitions of absent rows is made of.
struct PartitionsQuery<'a> {
    /// The expression of the partition key.
    key: &'a str,
    /// See [`RowsQuery::fates`].
    fates: &'a str,
    settings: &'a str,
    /// In milliseconds since 1970.
    loaded_at: i64,
}

impl Verifier<'_> {
    /// Reads the object again.
    pub(super) async fn reread(
        &self,
        target: Target<'_>,
        difference: &Difference,
        facts: &Facts,
        loads: Loads,
    ) -> Result<Reread, WarehouseError> {
        let Some(claim) = self.claim_of(difference).await? else {
            let why = "the ledger does not show how the object was read";
            return Ok(Reread::Not(why.to_owned()));
        };
        let query = match self.rows_query(target, &claim, loads.last) {
            Ok(query) => query,
            Err(why) => return Ok(Reread::Not(why.to_owned())),
        };
        let deletions = facts.deletions_since(loads.first, &difference.in_force);
        let conditions = deletions.iter().filter_map(|it| it.condition.as_deref());
        let conditions: Vec<&str> = conditions.collect();
        let mut uncompared = (deletions.len() - conditions.len()) as u64;
        uncompared += u64::from(facts.may_lack_deletions(loads.first));
        let ttl = match &facts.ttl {
            Ttl::Never => None,
            // Which of the rows a replay has loaded later is not known.
            Ttl::After(expression)
                if !(expression.contains("ingested_at") && difference.in_force.len() > 1) =>
            {
                Some(expression.as_str())
            }
            Ttl::After(_) | Ttl::Other => {
                uncompared += 1;
                None
            }
        };
        let mut fates = query.fates(ttl, &conditions);
        let compared = self.count_fates(target, &query, &fates).await;
        let mut rows = match compared {
            // A condition can have a column that the declarations do not have.
            Err(WarehouseError::Server { .. }) if ttl.is_some() || !conditions.is_empty() => {
                uncompared += u64::from(ttl.is_some()) + conditions.len() as u64;
                fates = query.fates(None, &[]);
                self.count_fates(target, &query, &fates).await
            }
            compared => compared,
        };
        if let Ok(rows) = &mut rows
            && rows.absent > 0
            && !facts.partition_key.is_empty()
        {
            let partitions = PartitionsQuery {
                key: &facts.partition_key,
                fates: &fates,
                settings: &query.settings,
                loaded_at: loads.last,
            };
            self.look_at_partitions(target, &partitions, rows).await?;
        }
        match rows {
            Ok(rows) => Ok(Reread::Rows(RereadRows { uncompared, ..rows })),
            // S3 refuses the object, does not have it any more, or has other content.
            Err(error @ WarehouseError::Server { .. }) => {
                let text = error.to_string();
                let first = text.lines().next().unwrap_or_default();
                let first: String = first.chars().take(160).collect();
                Ok(Reread::Not(format!(
                    "the object cannot be read again: {first}"
                )))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the claim of the batch that read the object.
    async fn claim_of(
        &self,
        difference: &Difference,
    ) -> Result<Option<LoadedClaim>, WarehouseError> {
        let url = difference.url();
        let object = ObjectRef::from(ObjectParts {
            bucket: url.bucket,
            key: url.key,
            etag: difference.etag.clone(),
            ..ObjectParts::default()
        });
        let batches = difference.in_force.iter().map(|batch| sql::id(*batch));
        let batches: Vec<String> = batches.collect();
        if batches.is_empty() || object.etag.is_empty() {
            return Ok(None);
        }
        let sql = format!(
            "SELECT bucket, key, etag, version_id, region, size, batch_id, layout FROM {} \
             WHERE object_id = {} AND batch_id IN ({}) AND NOT {IS_REPLAY} ORDER BY sealed_at LIMIT 1",
            self.warehouse.table(OBJECTS_TABLE),
            sql::id(object.id().0),
            batches.join(", ")
        );
        let claims: Vec<LoadedClaim> = self.rows(&[OBJECTS_TABLE], &sql).await?;
        Ok(claims.into_iter().next())
    }

    fn rows_query(
        &self,
        target: Target<'_>,
        claim: &LoadedClaim,
        loaded_at: i64,
    ) -> Result<RowsQuery, &'static str> {
        let object = ObjectRef::from(claim.object.clone());
        if addressing(&object.key) == KeyAddressing::Unaddressable {
            return Err("ClickHouse cannot read an object of this key itself");
        }
        let layout = Layout::parse(&claim.layout).ok_or("its layout is of a later version")?;
        let (select, settings) = self
            .planner
            .rows_of(target, BatchId(claim.batch_id), &object, &layout)
            .ok_or("its format is not declared any more")?;
        // The table has converted the values to its types.
        let columns = match target {
            Target::EventType(event_type) => {
                let declared = event_type.columns.iter().map(|column| {
                    let name = sql::ident(&column.name);
                    let column_type = sql::string(&column.column_type.to_string());
                    format!("CAST({name}, {column_type}) AS {name}")
                });
                let lineage = ["source_path", "source_etag", "batch_id"];
                let lineage = lineage.map(str::to_owned);
                declared.chain(lineage).collect::<Vec<_>>().join(", ")
            }
            Target::RejectedLines | Target::UnmatchedStatements | Target::ObjectRows => {
                "*".to_owned()
            }
        };
        let rows = format!(
            "SELECT {columns}, fromUnixTimestamp64Milli({loaded_at}, 'UTC') AS ingested_at \
             FROM ({select})"
        );
        let key: Vec<String> = collapsing_key(target).into_iter().map(sql::ident).collect();
        let key = key.join(", ");
        let kept = format!(
            "SELECT {key} FROM {table} WHERE ({key}) IN (SELECT {key} FROM ({rows}))",
            table = self.warehouse.table(target.table())
        );
        Ok(RowsQuery {
            rows,
            key,
            kept,
            settings,
        })
    }

    /// Counts the rows of the object by what became of them.
    async fn count_fates(
        &self,
        target: Target<'_>,
        query: &RowsQuery,
        fates: &str,
    ) -> Result<RereadRows, WarehouseError> {
        #[derive(Deserialize)]
        struct Counts {
            kept: u64,
            expired: u64,
            deleted: u64,
            absent: u64,
        }
        let sql = format!(
            "SELECT countIf(sluice_fate = 1) AS kept, countIf(sluice_fate = 2) AS expired, \
               countIf(sluice_fate = 3) AS deleted, countIf(sluice_fate = 4) AS absent \
             FROM ({fates}) SETTINGS {}",
            query.settings
        );
        let counts: Vec<Counts> = self.rows(&[target.table()], &sql).await?;
        let counts = counts.into_iter().next();
        Ok(
            counts.map_or_else(RereadRows::default, |counts| RereadRows {
                kept: counts.kept,
                expired: counts.expired,
                deleted: counts.deleted,
                absent: counts.absent,
                ..RereadRows::default()
            }),
        )
    }

    /// Finds out whether the partitions of the absent rows have any row that was loaded by then.
    async fn look_at_partitions(
        &self,
        target: Target<'_>,
        query: &PartitionsQuery<'_>,
        rows: &mut RereadRows,
    ) -> Result<(), WarehouseError> {
        #[derive(Deserialize)]
        struct Partitions {
            in_emptied: u64,
            emptied: u64,
            has_earlier: bool,
        }
        let PartitionsQuery {
            key,
            fates,
            settings,
            loaded_at,
        } = query;
        let earlier = format!(
            "SELECT DISTINCT toString(tuple({key})) FROM {table} WHERE batch_id IN (\
               SELECT batch_id FROM {batches} WHERE event = 'loaded' \
               AND at <= fromUnixTimestamp64Milli({loaded_at}))",
            table = self.warehouse.table(target.table()),
            batches = self.warehouse.table(BATCHES_TABLE),
        );
        let sql = format!(
            "SELECT countIf(is_emptied) AS in_emptied, \
               uniqExactIf(sluice_place, is_emptied) AS emptied, \
               toBool((SELECT count() FROM ({earlier})) > 0) AS has_earlier FROM (\
               SELECT toString(tuple({key})) AS sluice_place, \
                 sluice_place NOT IN ({earlier}) AS is_emptied \
               FROM ({fates}) WHERE sluice_fate = 4) SETTINGS {settings}"
        );
        let tables = [target.table(), BATCHES_TABLE];
        let partitions: Vec<Partitions> = self.rows(&tables, &sql).await?;
        if let Some(partitions) = partitions.first() {
            rows.in_emptied_partitions = partitions.in_emptied;
            rows.emptied_partitions = partitions.emptied;
            rows.has_earlier_rows = partitions.has_earlier;
        }
        Ok(())
    }
}
