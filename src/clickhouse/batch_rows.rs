//! Reads the rows of a batch from the tables.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::batch::BatchId;
use crate::clickhouse::dependents::filled_by_views;
use crate::clickhouse::replicas::Barrier;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::event_types::Catalog;
use crate::sql;
use crate::statements::ddl::{landing_names, view_name};
use crate::statements::insert::Strategy;
use crate::statements::select::{BLANK, Target};

pub struct BatchRows<'a> {
    pub warehouse: &'a Warehouse,
    pub catalog: &'a Catalog,
    pub strategy: Strategy,
    pub batch: BatchId,
}

/// The rows of a batch in the tables, as counted by its insert and as stored.
#[derive(Debug, Default)]
pub struct Contents {
    /// The counts that the insert wrote to `object_rows`.
    pub counted: Vec<Counted>,
    /// The number of rows that each kind's table has now.
    stored: BTreeMap<String, u64>,
}

/// The number of rejected records that are kept with a failure, and of the bytes of each.
const SAMPLE_RECORDS: u64 = 5;
const SAMPLE_BYTES: u64 = 200;

/// How the rows in the tables of a batch compare with the counts in `object_rows`.
#[derive(Debug, PartialEq, Eq)]
pub enum Agreement {
    Equal,
    /// The tables of these kinds have fewer rows, and no table has more.
    Fewer(Vec<String>),
    /// A table has more rows, or there are rows of an unknown kind.
    Other,
}

/// The lines of one kind from one object, as counted in `object_rows`. A replay of rejects can have
/// several objects of one path, versions of a key.
#[derive(Debug, Deserialize)]
pub struct Counted {
    pub source_path: String,
    pub kind: String,
    pub rows: u64,
    /// The number of blocks in which they were inserted.
    pub blocks: u64,
}

/// The number of lines that were rejected for one reason.
#[derive(Debug, Deserialize)]
pub struct Rejected {
    pub reason: String,
    pub lines: u64,
}

/// A rejected record of an object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RejectedRecord {
    pub row_number: u64,
    pub reason: String,
    /// The beginning of its text, as valid UTF-8.
    pub start: String,
}

impl Contents {
    /// Returns contents of these counts and of these numbers of rows, by kind. Every kind that is
    /// declared has a number.
    pub fn new(counted: Vec<Counted>, stored: impl IntoIterator<Item = (String, u64)>) -> Self {
        Self {
            counted,
            stored: stored.into_iter().collect(),
        }
    }

    /// Returns whether these contents, on whatever server they were read, prove that the only
    /// attempt to insert the batch in one block is complete: its counts were written as a whole, and
    /// every table has the rows.
    pub fn are_proof(&self) -> bool {
        !self.counted.is_empty() && self.agreement(false) == Agreement::Equal
    }

    /// Compares the tables with the counts. Kinds that are not declared any more cannot be
    /// compared. In a batch of many blocks, a block that was inserted twice cannot be recognised.
    pub fn agreement(&self, many_blocks: bool) -> Agreement {
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        for Counted { kind, rows, .. } in &self.counted {
            *expected.entry(kind).or_default() += rows;
        }
        expected.remove(BLANK);
        let is_twice = !many_blocks && self.counted.iter().any(|it| it.blocks > 1);
        let is_unknown = expected.keys().any(|kind| !self.stored.contains_key(*kind));
        if is_twice || is_unknown {
            return Agreement::Other;
        }
        let mut fewer = Vec::new();
        for (kind, stored) in &self.stored {
            let expected = expected.get(kind.as_str()).copied().unwrap_or_default();
            match stored.cmp(&expected) {
                Ordering::Equal => {}
                Ordering::Less => fewer.push(kind.clone()),
                Ordering::Greater => return Agreement::Other,
            }
        }
        if fewer.is_empty() {
            Agreement::Equal
        } else {
            Agreement::Fewer(fewer)
        }
    }
}

impl<'a> BatchRows<'a> {
    /// Returns whether any table has a row of the batch that was inserted before the barrier.
    pub async fn any(&self, after: Option<&Barrier>) -> Result<bool, WarehouseError> {
        #[derive(Deserialize)]
        struct Found {}
        let checks: Vec<String> = self
            .tables()
            .map(|(_, table)| {
                let batch = sql::id(self.batch.0);
                format!("SELECT 1 AS found FROM {table} WHERE batch_id = {batch} LIMIT 1")
            })
            .collect();
        let sql = format!("SELECT * FROM ({}) LIMIT 1", checks.join(" UNION ALL "));
        let found: Vec<Found> = self.rows_after(after, &sql).await?;
        Ok(!found.is_empty())
    }

    /// Returns the contents of the tables for the batch, read by one statement: all that was
    /// inserted before the barrier.
    pub async fn contents(&self, after: Option<&Barrier>) -> Result<Contents, WarehouseError> {
        let batch = sql::id(self.batch.0);
        let mut parts = vec![format!(
            "SELECT source_path, kind, sum(rows) AS rows, count() AS blocks FROM {} \
             WHERE batch_id = {batch} GROUP BY source_path, source_etag, kind",
            self.warehouse.table(Target::ObjectRows.table()),
        )];
        parts.extend(self.tables().filter_map(|(target, table)| {
            let kind = sql::string(target.kind()?);
            Some(format!(
                "SELECT '' AS source_path, {kind} AS kind, count() AS rows, 0 AS blocks \
                 FROM {table} WHERE batch_id = {batch}"
            ))
        }));
        let rows: Vec<Counted> = self.rows_after(after, &parts.join(" UNION ALL ")).await?;
        // Counts of the tables themselves have 0 blocks.
        let (stored, counted): (Vec<_>, Vec<_>) = rows.into_iter().partition(|it| it.blocks == 0);
        let stored = stored.into_iter().map(|it| (it.kind, it.rows));
        Ok(Contents::new(counted, stored))
    }

    /// Returns a description of the rows that a deletion does not reach, or `None` if no views of
    /// users read the tables.
    pub async fn left_in_views(&self) -> Result<Option<String>, WarehouseError> {
        let filled = filled_by_views(self.warehouse, self.catalog).await?;
        Ok(filled.map(|tables| {
            format!("rows of this batch may remain in tables that users' views fill: {tables}")
        }))
    }

    /// Returns the rejected lines of the batch by reason.
    pub async fn rejected(&self) -> Result<Vec<Rejected>, WarehouseError> {
        let sql = format!(
            "SELECT reason, count() AS lines FROM {} WHERE batch_id = {} GROUP BY reason",
            self.warehouse.table(Target::RejectedLines.table()),
            sql::id(self.batch.0),
        );
        self.warehouse.rows(&sql).await
    }

    /// Returns the first rejected records of an object in the batch.
    pub async fn sample(&self, path: &str) -> Result<Vec<RejectedRecord>, WarehouseError> {
        let sql = format!(
            "SELECT row_number, toString(reason) AS reason, \
               toValidUTF8(substring(raw, 1, {SAMPLE_BYTES})) AS start \
             FROM {} WHERE batch_id = {} AND source_path = {} \
             ORDER BY row_number LIMIT {SAMPLE_RECORDS}",
            self.warehouse.table(Target::RejectedLines.table()),
            sql::id(self.batch.0),
            sql::string(path),
        );
        self.warehouse.rows(&sql).await
    }

    /// Returns whether the tables have the rows that were counted.
    ///
    /// `since` is when the only attempt to insert the batch began. Rows that are missing after a
    /// single attempt can have been merged (equal rows collapse), or deleted by a user or a TTL;
    /// after several attempts, they count as lost.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Unfilled`] if a view that fills a table does not exist.
    pub async fn are_complete(
        &self,
        contents: &Contents,
        many_blocks: bool,
        since: Option<Instant>,
    ) -> Result<bool, WarehouseError> {
        let agreement = contents.agreement(many_blocks);
        if agreement == Agreement::Equal {
            return Ok(true);
        }
        if let Some(view) = self.missing_view().await? {
            return Err(WarehouseError::Unfilled { view });
        }
        match (agreement, since) {
            (Agreement::Fewer(kinds), Some(since)) => self.are_rewritten(&kinds, since).await,
            _ => Ok(false),
        }
    }

    /// Returns whether each table of these kinds has had parts merged or mutated since `since`.
    async fn are_rewritten(
        &self,
        kinds: &[String],
        since: Instant,
    ) -> Result<bool, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            tables: u64,
        }
        let tables = tables_of(self.catalog, kinds);
        // Parts that have been replaced since stay in `system.parts` for some minutes.
        let sql = format!(
            "SELECT uniqExact(table) AS tables FROM system.parts \
             WHERE database = {} AND table IN ({}) \
             AND modification_time >= now() - toIntervalSecond({}) \
             AND (level > 0 OR data_version > max_block_number)",
            sql::string(self.warehouse.database()),
            sql::strings(&tables),
            since.elapsed().as_secs() + 2,
        );
        let rows: Vec<Row> = self.warehouse.rows(&sql).await?;
        let rewritten = rows.first().map_or(0, |row| row.tables);
        Ok(usize::try_from(rewritten) == Ok(tables.len()))
    }

    /// Returns a view that should fill a table but does not exist.
    async fn missing_view(&self) -> Result<Option<String>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            name: String,
        }
        if self.strategy != Strategy::SinglePass {
            return Ok(None);
        }
        let targets = Target::all(self.catalog);
        let views: Vec<String> = landing_names(self.catalog)
            .iter()
            .flat_map(|landing| targets.iter().map(move |it| view_name(landing, it.table())))
            .collect();
        let sql = format!(
            "SELECT name FROM system.tables WHERE database = {} AND name IN ({})",
            sql::string(self.warehouse.database()),
            sql::strings(&views),
        );
        let found: Vec<Row> = self.warehouse.rows(&sql).await?;
        let is_there = |view: &String| found.iter().any(|row| row.name == *view);
        Ok(views.into_iter().find(|view| !is_there(view)))
    }

    async fn rows_after<T: DeserializeOwned>(
        &self,
        barrier: Option<&Barrier>,
        sql: &str,
    ) -> Result<Vec<T>, WarehouseError> {
        let targets = Target::all(self.catalog).into_iter();
        let tables: Vec<&str> = targets.map(|target| target.table()).collect();
        self.warehouse.rows_after(barrier, &tables, sql).await
    }

    fn tables(&self) -> impl Iterator<Item = (Target<'a>, String)> {
        let targets = Target::all(self.catalog).into_iter();
        targets.map(|target| (target, self.warehouse.table(target.table())))
    }
}

/// Returns the tables of these kinds.
pub fn tables_of<'a, S: AsRef<str>>(catalog: &'a Catalog, kinds: &[S]) -> Vec<&'a str> {
    let is_of = |target: &Target<'_>| {
        let kind = target.kind();
        kind.is_some_and(|kind| kinds.iter().any(|it| it.as_ref() == kind))
    };
    let targets = Target::all(catalog).into_iter();
    let targets = targets.filter(is_of);
    targets.map(|target| target.table()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(kind: &str, rows: u64, blocks: u64) -> Counted {
        Counted {
            source_path: "b/k".to_owned(),
            kind: kind.to_owned(),
            rows,
            blocks,
        }
    }

    fn contents(counted: Vec<Counted>, stored: &[(&str, u64)]) -> Contents {
        let stored = stored
            .iter()
            .map(|(kind, rows)| ((*kind).to_owned(), *rows));
        Contents::new(counted, stored)
    }

    #[test]
    fn tables_are_compared_with_the_counts() {
        let stored = [("click", 3), ("view", 0)];
        let of = |counted| contents(counted, &stored).agreement(false);
        let two_objects = vec![counted("click", 1, 1), counted("click", 2, 1)];
        assert_eq!(of(two_objects), Agreement::Equal);
        assert_eq!(
            of(vec![counted("click", 3, 1), counted(BLANK, 7, 1)]),
            Agreement::Equal
        );
        assert_eq!(
            of(vec![counted("click", 4, 1)]),
            Agreement::Fewer(vec!["click".to_owned()])
        );
        assert_eq!(
            of(vec![counted("click", 4, 1), counted("view", 1, 1)]),
            Agreement::Fewer(vec!["click".to_owned(), "view".to_owned()])
        );
        assert_eq!(of(vec![counted("click", 2, 1)]), Agreement::Other);
        assert_eq!(of(vec![]), Agreement::Other);
        assert_eq!(
            of(vec![counted("click", 3, 1), counted("gone", 1, 1)]),
            Agreement::Other
        );
    }

    #[test]
    fn one_block_is_counted_once() {
        let twice = || contents(vec![counted("click", 3, 2)], &[("click", 3)]);
        assert_eq!(twice().agreement(false), Agreement::Other);
        assert_eq!(twice().agreement(true), Agreement::Equal);
    }
}
