//! Implements [`BatchTables`] on ClickHouse.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::Stream;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::time::Instant;

use super::bounds::Bounds;
use super::empty_columns::{self, Seen};
use super::janitor::{self, StrayRows};
use super::ports::{BatchTables, Insert, Rows};
use super::truncation::{Truncation, Truncations};
use crate::batch::{BatchId, Layout};
use crate::clickhouse::batch_rows::{BatchRows, Contents, Rejected, RejectedRecord};
use crate::clickhouse::failing_view::Failing;
use crate::clickhouse::replicas::Barrier;
use crate::clickhouse::{Statement, Warehouse, WarehouseError};
use crate::event_types::{Column, EventType};
use crate::formats::FormatId;
use crate::ledger::{BATCHES_TABLE, ManifestEntry};
use crate::object::{Compression, GZIP_MAGIC, ObjectRef, ZSTD_MAGIC};
use crate::s3::{ObjectMeta, StoreError};
use crate::sql;
use crate::statements::ddl::REPLAYED;
use crate::statements::insert::Planner;
use crate::statements::layouts::{StructureAnswer, StructureQuery};
use crate::statements::select::Target;

/// How often ClickHouse repeats a request to its Keeper in an insert. With its default, 20, an
/// insert can commit minutes after its time limit, which recoveries on replicas have to wait for.
const KEEPER_RETRIES: &str = "4";

/// The landing tables, the event tables and Sluice's other tables in one database of ClickHouse.
pub struct ClickHouseTables {
    warehouse: Warehouse,
    planner: Planner,
    bounds: Bounds,
    truncations: Truncations,
}

impl ClickHouseTables {
    pub fn new(warehouse: Warehouse, planner: Planner, max_memory: u64) -> Self {
        let views = Target::all(planner.catalog()).len();
        Self {
            bounds: Bounds::new(planner.options().max_bytes, max_memory, views),
            truncations: Truncations::default(),
            warehouse,
            planner,
        }
    }

    /// Returns the client of the database.
    pub(crate) fn warehouse(&self) -> &Warehouse {
        &self.warehouse
    }

    /// Returns the statements with a setting by which none commits long after its time limit, on
    /// which the wait for a server that cannot be reached relies.
    pub(crate) async fn committing_in_time(
        &self,
        statements: Vec<Statement>,
    ) -> Result<Vec<Statement>, WarehouseError> {
        if self.warehouse.replicas().await?.is_none() {
            return Ok(statements);
        }
        let in_time = statements
            .into_iter()
            .map(|statement| statement.with("insert_keeper_max_retries", KEEPER_RETRIES));
        Ok(in_time.collect())
    }

    fn rows(&self, batch: BatchId) -> BatchRows<'_> {
        BatchRows {
            warehouse: &self.warehouse,
            catalog: self.planner.catalog(),
            strategy: self.planner.options().strategy,
            batch,
        }
    }

    /// Returns the layout of an object with the answer to this query.
    async fn layout(
        &self,
        format: FormatId,
        query: &StructureQuery,
    ) -> Result<Result<Layout, String>, WarehouseError> {
        let answer = structure(&self.warehouse, query).await?;
        Ok(self.planner.layout_with(format, answer))
    }

    fn condition(&self, rows: Rows<'_>) -> String {
        match rows {
            Rows::Of(batch) => format!("batch_id = {}", sql::id(batch.0)),
            Rows::InParts(batch, parts) => format!(
                "batch_id = {} AND _part IN ({})",
                sql::id(batch.0),
                sql::strings(parts)
            ),
            Rows::SupersededBy(objects) => superseded_by(objects),
            Rows::MovedBy(batch) => format!(
                "(source_path, source_etag, row_number, batch_id) IN (\
                   SELECT source_path, source_etag, row_number, kept_batch_id FROM {} \
                   WHERE batch_id = {})",
                self.warehouse.table(REPLAYED),
                sql::id(batch.0),
            ),
        }
    }
}

impl BatchTables for ClickHouseTables {
    fn planner(&self) -> &Planner {
        &self.planner
    }

    async fn ping(&self) -> Result<(), WarehouseError> {
        self.warehouse.ping().await
    }

    async fn statements(&self, insert: &Insert<'_>) -> Result<Vec<Statement>, WarehouseError> {
        let Insert {
            batch,
            objects,
            shape,
            layout,
            guard,
        } = *insert;
        let bounds = self.bounds.settings(&self.warehouse, shape.many_blocks);
        let bounds = bounds.await?;
        let statements = self.planner.inserts(batch, objects, shape, layout, guard);
        let bounded = statements.into_iter().map(|statement| {
            bounds.iter().fold(statement, |statement, (name, bound)| {
                statement.with(name, bound.to_string())
            })
        });
        self.committing_in_time(bounded.collect()).await
    }

    async fn execute(
        &self,
        statement: &Statement,
        query_id: &str,
        timeout: Duration,
    ) -> Result<(), WarehouseError> {
        let execute = self.warehouse.execute(statement, Some(query_id), timeout);
        execute.await
    }

    async fn stream(
        &self,
        statement: &Statement,
        body: impl Stream<Item = Result<Vec<u8>, StoreError>> + Send,
        query_id: &str,
        timeout: Duration,
    ) -> Result<(), WarehouseError> {
        let stream = self.warehouse.stream(statement, body, query_id, timeout);
        stream.await
    }

    async fn kill(&self, batch: BatchId) -> Result<(), WarehouseError> {
        self.warehouse.kill(&batch.to_string()).await
    }

    async fn has_any(
        &self,
        batch: BatchId,
        after: Option<&Barrier>,
    ) -> Result<bool, WarehouseError> {
        self.rows(batch).any(after).await
    }

    async fn contents(
        &self,
        batch: BatchId,
        after: Option<&Barrier>,
    ) -> Result<Contents, WarehouseError> {
        self.rows(batch).contents(after).await
    }

    async fn are_complete(
        &self,
        batch: BatchId,
        contents: &Contents,
        many_blocks: bool,
        since: Option<Instant>,
    ) -> Result<bool, WarehouseError> {
        let rows = self.rows(batch);
        rows.are_complete(contents, many_blocks, since).await
    }

    async fn rejected(&self, batch: BatchId) -> Result<Vec<Rejected>, WarehouseError> {
        self.rows(batch).rejected().await
    }

    async fn compressed_line(&self, batch: BatchId) -> Result<Option<String>, WarehouseError> {
        #[derive(Deserialize)]
        struct First {
            source_path: String,
        }
        let sql = format!(
            "SELECT source_path FROM {} WHERE batch_id = {} AND row_number = 0 AND ({} OR {}) \
             LIMIT 1",
            self.warehouse.table(Target::RejectedLines.table()),
            sql::id(batch.0),
            sql::starts_with("raw", &GZIP_MAGIC),
            sql::starts_with("raw", &ZSTD_MAGIC),
        );
        let found: Vec<First> = self.warehouse.rows(&sql).await?;
        Ok(found.into_iter().next().map(|first| first.source_path))
    }

    async fn sample(
        &self,
        batch: BatchId,
        path: &str,
    ) -> Result<Vec<RejectedRecord>, WarehouseError> {
        self.rows(batch).sample(path).await
    }

    async fn structure(
        &self,
        format: FormatId,
        object: &ObjectRef,
    ) -> Result<Result<Layout, String>, WarehouseError> {
        let query = self.planner.structure_query(format, object);
        self.layout(format, &query).await
    }

    async fn structure_of_part(
        &self,
        format: FormatId,
        part: &[u8],
    ) -> Result<Result<Layout, String>, WarehouseError> {
        let query = self.planner.structure_query_of_content(format, part);
        if part.is_empty() {
            // ClickHouse has no answer for an empty text.
            let nothing = match query {
                StructureQuery::Columns(_) => StructureAnswer::Columns(Vec::new()),
                StructureQuery::Header(_) => StructureAnswer::Header(None),
            };
            return Ok(self.planner.layout_with(format, nothing));
        }
        self.layout(format, &query).await
    }

    async fn first_bytes(&self, object: &ObjectRef) -> Result<Vec<u8>, WarehouseError> {
        first_bytes(&self.warehouse, &self.planner, object).await
    }

    async fn left_in_views(&self, batch: BatchId) -> Result<Option<String>, WarehouseError> {
        self.rows(batch).left_in_views().await
    }

    async fn has_rows(
        &self,
        table: &str,
        rows: Rows<'_>,
        after: Option<&Barrier>,
    ) -> Result<bool, WarehouseError> {
        let condition = self.condition(rows);
        let mut tables = vec![table];
        if let Rows::MovedBy(_) = rows {
            // Without the snapshot, no row seems to be moved.
            tables.push(REPLAYED);
        }
        self.warehouse.has_rows(&tables, &condition, after).await
    }

    async fn is_deleting(&self, table: &str, rows: Rows<'_>) -> bool {
        let condition = self.condition(rows);
        self.warehouse.is_deleting(table, &condition).await
    }

    async fn delete(
        &self,
        table: &str,
        rows: Rows<'_>,
        timeout: Duration,
    ) -> Result<(), WarehouseError> {
        let condition = self.condition(rows);
        self.warehouse.delete(table, &condition, timeout).await
    }

    async fn stray_batches(
        &self,
        table: &str,
        since: Duration,
        limit: usize,
        timeout: Duration,
    ) -> Result<Vec<BatchId>, WarehouseError> {
        janitor::stray_batches(&self.warehouse, table, since, limit, timeout).await
    }

    async fn stray_rows(
        &self,
        target: Target<'_>,
        batch: BatchId,
        timeout: Duration,
    ) -> Result<Vec<StrayRows>, WarehouseError> {
        janitor::stray_rows(&self.warehouse, target, batch, timeout).await
    }

    async fn head(
        &self,
        objects: &[&ObjectRef],
    ) -> Result<Vec<(String, ObjectMeta)>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            path: String,
            etag: String,
            size: u64,
        }
        let query = self.planner.probe(objects);
        let rows: Vec<Row> = self.warehouse.rows(&query).await?;
        let present = rows.into_iter().map(|row| {
            let Row { path, etag, size } = row;
            let size = Some(size);
            (path, ObjectMeta { etag, size })
        });
        Ok(present.collect())
    }

    async fn with_lines(&self, objects: &[&ObjectRef]) -> Result<Vec<String>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            path: String,
        }
        let query = self.planner.paths_with_records(objects, &Layout::default());
        let rows: Vec<Row> = self.warehouse.rows(&query).await?;
        Ok(rows.into_iter().map(|row| row.path).collect())
    }

    fn known_truncation(&self, compression: Compression) -> Option<Truncation> {
        self.truncations.known(compression)
    }

    async fn truncation(&self, compression: Compression) -> Result<Truncation, WarehouseError> {
        self.truncations.ask(compression, &self.warehouse).await
    }

    async fn has_passed(&self, failing: &Failing) -> Result<bool, WarehouseError> {
        let targets = Target::all(self.planner.catalog());
        let target = targets
            .iter()
            .find(|target| Some(target.table()) == failing.table.as_deref());
        let Some(kind) = target.and_then(|target| target.kind()) else {
            return Ok(false);
        };
        let sql = format!(
            "SELECT 1 AS found FROM {} WHERE kind = {} AND ingested_at > (\
               SELECT max(metadata_modification_time) FROM system.tables \
               WHERE concat(database, '.', name) = {}) \
             AND batch_id IN (SELECT batch_id FROM {} WHERE event = 'loaded') LIMIT 1",
            self.warehouse.table(Target::ObjectRows.table()),
            sql::string(kind),
            sql::string(&failing.view.replace('`', "")),
            self.warehouse.table(BATCHES_TABLE),
        );
        let found: Vec<IgnoredAny> = self.warehouse.rows(&sql).await?;
        Ok(!found.is_empty())
    }

    async fn look_at(
        &self,
        event_type: &EventType,
        columns: &[&Column],
        batch: BatchId,
    ) -> Result<Seen, WarehouseError> {
        let rows = format!("WHERE {}", self.condition(Rows::Of(batch)));
        empty_columns::look_at(&self.warehouse, &event_type.table, columns, &rows).await
    }
}

/// ClickHouse's error for an object without any content, which has no columns.
const CANNOT_EXTRACT_TABLE_STRUCTURE: u32 = 636;

/// Returns the answer to a query for the structure of an object.
pub(crate) async fn structure(
    warehouse: &Warehouse,
    query: &StructureQuery,
) -> Result<StructureAnswer, WarehouseError> {
    #[derive(Deserialize)]
    struct Column {
        name: String,
        #[serde(rename = "type")]
        column_type: String,
    }
    #[derive(Deserialize)]
    struct Header {
        line: String,
    }
    match query {
        StructureQuery::Columns(sql) => {
            let columns: Vec<Column> = match warehouse.rows(sql).await {
                Err(error) if is_of_empty_object(&error) => Vec::new(),
                columns => columns?,
            };
            let columns = columns.into_iter();
            let columns = columns.map(|column| (column.name, column.column_type));
            Ok(StructureAnswer::Columns(columns.collect()))
        }
        StructureQuery::Header(sql) => {
            let header: Vec<Header> = warehouse.rows(sql).await?;
            let line = header.into_iter().next().map(|header| header.line);
            Ok(StructureAnswer::Header(line))
        }
    }
}

/// Returns the first bytes of an object as ClickHouse reads them, without decompressing them.
pub(crate) async fn first_bytes(
    warehouse: &Warehouse,
    planner: &Planner,
    object: &ObjectRef,
) -> Result<Vec<u8>, WarehouseError> {
    #[derive(Deserialize)]
    struct First {
        bytes: String,
    }
    let rows: Vec<First> = warehouse.rows(&planner.first_bytes(object)).await?;
    let first = rows.into_iter().next().map(|first| first.bytes);
    Ok(of_hexadecimal(&first.unwrap_or_default()))
}

/// Returns whether the structure of an object is unknown because the object has no content. The
/// error has other causes, too.
fn is_of_empty_object(error: &WarehouseError) -> bool {
    let text = error.to_string();
    error.code() == Some(CANNOT_EXTRACT_TABLE_STRUCTURE)
        && (text.contains("file is empty") || text.contains("files are empty"))
}

/// Returns the bytes that are written in hexadecimal, up to the first that are not.
fn of_hexadecimal(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| {
        let digits = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(digits, 16).ok()
    };
    pairs.map_while(byte).collect()
}

/// Returns the condition for the rows that these objects supersede. All batches that have loaded an
/// object are superseded, so it does not matter which batch had which object.
fn superseded_by(objects: &[ManifestEntry]) -> String {
    let mut batches = BTreeSet::new();
    let mut sources = Vec::new();
    for ManifestEntry { object, supersedes } in objects {
        if !supersedes.is_empty() {
            batches.extend(supersedes.iter().map(|batch| sql::id(batch.0)));
            let (path, etag) = (sql::string(&object.path()), sql::string(&object.etag));
            sources.push(format!("({path},{etag})"));
        }
    }
    let batches: Vec<_> = batches.into_iter().collect();
    format!(
        "batch_id IN ({}) AND (source_path, source_etag) IN ({})",
        batches.join(","),
        sources.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_from_hexadecimal() {
        assert_eq!(of_hexadecimal("50415231"), b"PAR1");
        assert_eq!(of_hexadecimal("1F8b08"), [0x1f, 0x8b, 8]);
        assert_eq!(of_hexadecimal(""), b"");
    }

    #[test]
    fn only_an_empty_object_has_no_structure() {
        let error = |code, text: &str| WarehouseError::Server {
            code,
            text: text.to_owned(),
        };
        let empty =
            "The table structure cannot be extracted from a Avro format file: the file is empty.";
        assert!(is_of_empty_object(&error(636, empty)));
        assert!(!is_of_empty_object(&error(636, "no such column name")));
        assert!(!is_of_empty_object(&error(117, empty)));
    }
}
