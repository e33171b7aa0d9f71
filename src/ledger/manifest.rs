//! Writes and reads the manifests of batches.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::events::event;
use super::{BATCHES_TABLE, Claim, Ledger, OBJECTS_TABLE};
use crate::batch::{BatchId, Layout, ReadBy, StatementShape};
use crate::clickhouse::WarehouseError;
use crate::object::{ObjectParts, ObjectRef};
use crate::sql;

/// The manifest of a batch that must be recovered.
#[derive(Debug)]
pub struct Manifest {
    pub objects: Vec<ManifestEntry>,
    pub shape: StatementShape,
    /// The format and the structure in which the objects are read. `None` if this version cannot
    /// read what is recorded, so that the batch cannot be retried.
    pub layout: Option<Layout>,
    /// The highest fenced attempt, or 0 if none is fenced.
    pub fenced: u32,
    /// How long ago the batch was claimed, by ClickHouse's clock. None of its inserts is older.
    pub age: Duration,
}

/// A [`Claim`] as it is read back from the ledger.
#[derive(Debug)]
pub struct ManifestEntry {
    pub object: ObjectRef,
    pub supersedes: Vec<BatchId>,
}

#[derive(Serialize)]
struct ManifestRow<'a> {
    object_id: Uuid,
    bucket: &'a str,
    key: &'a str,
    etag: &'a str,
    version_id: &'a str,
    region: &'a str,
    size: u64,
    read_by: ReadBy,
    batch_id: Uuid,
    plan: Uuid,
    many_blocks: bool,
    layout: &'a str,
    supersedes: Vec<Uuid>,
    lease_seconds: u32,
    statement_seconds: u32,
    worker: &'a str,
}

impl<'a> ManifestRow<'a> {
    /// Returns the row of a claim, without lease and worker.
    fn of(batch: BatchId, claim: &Claim<'a>, shape: StatementShape, layout: &'a str) -> Self {
        let object = claim.object;
        Self {
            object_id: object.id().0,
            bucket: &object.bucket,
            key: &object.key,
            etag: &object.etag,
            version_id: object.version_id.as_deref().unwrap_or_default(),
            region: object.region.as_deref().unwrap_or_default(),
            // An unknown size is planned as one of 0 is (`batch::estimated_bytes`).
            size: object.size.unwrap_or_default(),
            read_by: shape.read_by,
            batch_id: batch.0,
            plan: shape.plan,
            many_blocks: shape.many_blocks,
            layout,
            supersedes: claim.supersedes.iter().map(|batch| batch.0).collect(),
            lease_seconds: 0,
            statement_seconds: 0,
            worker: "",
        }
    }
}

/// An object as it is recorded in `ledger_objects`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RecordedObject {
    bucket: String,
    key: String,
    etag: String,
    version_id: String,
    region: String,
    size: u64,
}

#[derive(Deserialize)]
struct ListedRow {
    #[serde(flatten)]
    object: RecordedObject,
    plan: Uuid,
    many_blocks: bool,
    read_by: ReadBy,
    layout: String,
    supersedes: Vec<Uuid>,
    /// Negative if ClickHouse's clock was set back.
    age_seconds: i64,
}

impl From<ListedRow> for ManifestEntry {
    fn from(row: ListedRow) -> Self {
        Self {
            object: row.object.into(),
            supersedes: row.supersedes.into_iter().map(BatchId).collect(),
        }
    }
}

impl From<RecordedObject> for ObjectRef {
    fn from(row: RecordedObject) -> Self {
        Self::from(ObjectParts {
            bucket: row.bucket,
            key: row.key,
            etag: row.etag,
            size: Some(row.size),
            version_id: Some(row.version_id).filter(|version| !version.is_empty()),
            sequencer: None,
            region: Some(row.region).filter(|region| !region.is_empty()),
        })
    }
}

impl Ledger {
    /// Claims objects for a batch by writing its manifest.
    pub async fn claim(
        &self,
        batch: BatchId,
        claims: &[Claim<'_>],
        shape: StatementShape,
        layout: &Layout,
    ) -> Result<(), WarehouseError> {
        let layout = layout.to_text();
        let rows: Vec<ManifestRow<'_>> = claims
            .iter()
            .map(|claim| ManifestRow {
                lease_seconds: self.lease_seconds(),
                statement_seconds: self.statement_seconds(),
                worker: &self.worker,
                ..ManifestRow::of(batch, claim, shape, &layout)
            })
            .collect();
        self.of(batch).insert(OBJECTS_TABLE, &rows).await
    }

    /// Returns the manifest of a batch and its highest fence, or `None` if it needs no recovery.
    pub async fn manifest(&self, batch: BatchId) -> Result<Option<Manifest>, WarehouseError> {
        #[derive(Deserialize)]
        struct Events {
            ended: u8,
            fenced: u32,
        }
        let sql = format!(
            "SELECT max(event IN ({})) AS ended, maxIf(attempt, event = {}) AS fenced \
             FROM {} WHERE batch_id = {id}",
            sql::strings([event::LOADED, event::RELEASED]),
            sql::string(event::FENCED),
            self.warehouse.table(BATCHES_TABLE),
            id = sql::id(batch.0)
        );
        // A batch that has ended would be recovered for nothing.
        let barrier = self.barrier().await?;
        let tables = [BATCHES_TABLE];
        let events: Vec<Events> = self
            .warehouse
            .rows_after(barrier.as_ref(), &tables, &sql)
            .await?;
        let Some(Events { ended: 0, fenced }) = events.into_iter().next() else {
            return Ok(None);
        };
        let listed = self.list(batch).await?;
        let Some(first) = listed.first() else {
            return Ok(None);
        };
        let shape = StatementShape {
            plan: first.plan,
            many_blocks: first.many_blocks,
            read_by: first.read_by,
        };
        let layout = Layout::parse(&first.layout);
        let age = listed.iter().map(|row| row.age_seconds).max();
        let age = u64::try_from(age.unwrap_or_default()).unwrap_or_default();
        let objects = listed.into_iter().map(ManifestEntry::from).collect();
        Ok(Some(Manifest {
            objects,
            shape,
            layout,
            fenced,
            age: Duration::from_secs(age),
        }))
    }

    /// Returns the number of batches that were claimed after this one. This reads a column of the
    /// whole ledger.
    pub async fn claimed_after(&self, batch: BatchId) -> Result<u64, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            batches: u64,
        }
        let sql = format!(
            "SELECT uniqExact(batch_id) AS batches FROM {claims} WHERE batch_id != {id} \
             AND sealed_at > (SELECT min(sealed_at) FROM {claims} WHERE batch_id = {id})",
            claims = self.warehouse.table(OBJECTS_TABLE),
            id = sql::id(batch.0)
        );
        let rows: Vec<Row> = self.warehouse.rows(&sql).await?;
        Ok(rows.first().map_or(0, |row| row.batches))
    }

    /// Returns the objects in the manifest of a batch, whether or not it has ended.
    pub async fn objects(&self, batch: BatchId) -> Result<Vec<ManifestEntry>, WarehouseError> {
        let listed = self.list(batch).await?;
        Ok(listed.into_iter().map(ManifestEntry::from).collect())
    }

    async fn list(&self, batch: BatchId) -> Result<Vec<ListedRow>, WarehouseError> {
        // A claim that was repeated has its rows twice.
        let columns = "bucket, key, etag, version_id, region, size, plan, many_blocks, read_by, \
                       layout, supersedes";
        let sql = format!(
            "SELECT {columns}, dateDiff('second', min(sealed_at), now64(3)) AS age_seconds \
             FROM {} WHERE batch_id = {id} GROUP BY {columns} ORDER BY key",
            self.warehouse.table(OBJECTS_TABLE),
            id = sql::id(batch.0)
        );
        self.warehouse.rows(&sql).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, to_value};

    use super::*;
    use crate::event_types::Catalog;
    use crate::statements::insert::{Planner, PlannerOptions};
    use crate::statements::s3_source::S3Access;
    use sluice_core::fixtures::{object, planner};

    /// Returns the object and the layout as a recovery reads them back from a claim.
    fn recovered(object: &ObjectRef, layout: &Layout) -> (ObjectRef, Layout) {
        let text = layout.to_text();
        let row = ManifestRow::of(
            BatchId(Uuid::nil()),
            &Claim::of(object),
            StatementShape::default(),
            &text,
        );
        let row = to_value(row).unwrap();
        let layout = Layout::parse(row["layout"].as_str().unwrap()).unwrap();
        let listed: RecordedObject = from_value(row).unwrap();
        (listed.into(), layout)
    }

    fn statements(planner: &Planner, objects: &[ObjectRef], layout: &Layout) -> String {
        let objects: Vec<_> = objects.iter().collect();
        let shape = planner.shape(&objects, StatementShape::of(ReadBy::S3), layout);
        let inserts = planner.inserts(BatchId(Uuid::nil()), &objects, shape, layout, "guard");
        format!("{shape:?} {inserts:?}")
    }

    /// Returns a catalog with a format of each kind.
    fn catalog() -> Catalog {
        let formats = "formats:\n\
             - {name: documents, keys: [documents/**], json: {records: [Records]}}\n\
             - {name: exports, keys: [exports/**], csv: {}}\n\
             - {name: logs, keys: [logs/**], regex: {pattern: '^(?P<one>\\S+)$'}}\n\
             - {name: trips, keys: [trips/**], parquet: {}}\n";
        let click = include_str!("../cli/check/canary.yaml");
        let files = [("click.yaml", click), ("formats.yaml", formats)];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        Catalog::from_files(files.to_vec()).unwrap()
    }

    /// Returns a layout of each format of the catalog, and that of JSON lines.
    fn layouts() -> Vec<Layout> {
        let column = |name: &str| (name.to_owned(), "Nullable(String)".to_owned());
        let of = |format: &str, structure: &[&str]| Layout {
            format: format.to_owned(),
            structure: structure.iter().map(|name| column(name)).collect(),
        };
        vec![
            Layout::default(),
            of("documents", &[]),
            of("exports", &["user name", "it's", "\"quoted\""]),
            of("logs", &[]),
            of("trips", &["id"]),
        ]
    }

    /// A different statement under the same token would be dropped, or would duplicate rows.
    #[test]
    fn a_recovery_sends_the_same_statements_as_the_worker_that_claimed() {
        let planner = Planner::new(PlannerOptions {
            max_bytes: 256 << 20,
            catalog: catalog(),
            ..planner(S3Access::Server, None).options().clone()
        });
        let sizes = [
            None,
            Some(0),
            Some(1),
            Some(64 << 10),
            Some(1 << 20),
            Some(1 << 40),
        ];
        for layout in layouts() {
            for key in ["a.jsonl", "a.jsonl.gz"] {
                for first in sizes {
                    for second in sizes {
                        let objects = [("1", first), ("2", second)].map(|(prefix, size)| {
                            ObjectRef::from(ObjectParts {
                                size,
                                version_id: Some("v".to_owned()),
                                sequencer: Some("1".to_owned()),
                                ..object("b", &format!("{prefix}/{key}"), "e").into_parts()
                            })
                        });
                        let again = objects.each_ref().map(|object| recovered(object, &layout));
                        let recorded = again[0].1.clone();
                        let again = again.map(|(object, _)| object);
                        let claimed = statements(&planner, &objects, &layout);
                        let retried = statements(&planner, &again, &recorded);
                        assert_eq!(claimed, retried, "{objects:?} {layout:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_claim_of_an_earlier_version_is_one_of_json_lines() {
        assert_eq!(Layout::parse(""), Some(Layout::default()));
        assert_eq!(Layout::default().to_text(), "");
    }
}
