//! What the tables have of a batch.

use serde::Deserialize;

use crate::batch::BatchId;
use crate::event_types::Catalog;
use crate::event_types::select::{BLANK, Target};
use crate::warehouse::{Warehouse, WarehouseError};

pub struct BatchRows<'a> {
    pub warehouse: &'a Warehouse,
    pub catalog: &'a Catalog,
    pub batch: BatchId,
}

/// Lines of one kind that came from one object, as `object_rows` counts them.
#[derive(Debug, Deserialize)]
pub struct Counted {
    pub source_path: String,
    pub kind: String,
    pub rows: u64,
    /// How many blocks brought them.
    pub blocks: u64,
}

/// Lines that were rejected for one reason.
#[derive(Debug, Deserialize)]
pub struct Rejected {
    pub reason: String,
    pub lines: u64,
}

impl BatchRows<'_> {
    /// Whether any table has a row of it.
    pub async fn any(&self) -> Result<bool, WarehouseError> {
        #[derive(Deserialize)]
        struct Found {}
        let checks: Vec<String> = self
            .tables()
            .map(|(_, table)| {
                let batch = self.batch;
                format!("SELECT 1 AS found FROM {table} WHERE batch_id = '{batch}' LIMIT 1")
            })
            .collect();
        let sql = format!("SELECT * FROM ({}) LIMIT 1", checks.join(" UNION ALL "));
        let found: Vec<Found> = self.warehouse.rows(&sql).await?;
        Ok(!found.is_empty())
    }

    /// What was counted as it was inserted.
    pub async fn counted(&self) -> Result<Vec<Counted>, WarehouseError> {
        let sql = format!(
            "SELECT source_path, kind, sum(rows) AS rows, count() AS blocks FROM {} \
             WHERE batch_id = '{}' GROUP BY source_path, kind",
            self.warehouse.table(Target::ObjectRows.table()),
            self.batch,
        );
        self.warehouse.rows(&sql).await
    }

    /// Why lines were rejected.
    pub async fn rejected(&self) -> Result<Vec<Rejected>, WarehouseError> {
        let sql = format!(
            "SELECT reason, count() AS lines FROM {} WHERE batch_id = '{}' GROUP BY reason",
            self.warehouse.table(Target::RejectedLines.table()),
            self.batch,
        );
        self.warehouse.rows(&sql).await
    }

    /// Whether the tables have as many rows as were counted, and these were counted once. Of a kind
    /// that is not declared any more nobody knows; nor, of a batch of many blocks, whether one came
    /// twice.
    pub async fn agree_with(
        &self,
        counted: &[Counted],
        many_blocks: bool,
    ) -> Result<bool, WarehouseError> {
        #[derive(Deserialize)]
        struct Count {
            rows: u64,
        }
        if !many_blocks && counted.iter().any(|it| it.blocks > 1) {
            return Ok(false);
        }
        let targets = Target::all(self.catalog);
        let is_known =
            |kind: &str| kind == BLANK || targets.iter().any(|target| target.kind() == Some(kind));
        if !counted.iter().all(|it| is_known(&it.kind)) {
            return Ok(false);
        }
        for (target, table) in self.tables() {
            let Some(kind) = target.kind() else { continue };
            let of_kind = counted.iter().filter(|it| it.kind == kind);
            let expected: u64 = of_kind.map(|it| it.rows).sum();
            let sql = format!(
                "SELECT count() AS rows FROM {table} WHERE batch_id = '{}'",
                self.batch
            );
            let found: Vec<Count> = self.warehouse.rows(&sql).await?;
            if found.first().is_none_or(|found| found.rows != expected) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn tables(&self) -> impl Iterator<Item = (Target<'_>, String)> {
        let targets = Target::all(self.catalog).into_iter();
        targets.map(|target| (target, self.warehouse.table(target.table())))
    }
}
