//! A difference between a table and the ledger, as it is printed.

use serde::{Serialize, Serializer, ser::SerializeStruct};
use uuid::Uuid;

use sluice_core::verify::{Judgement, Stray};

/// What was found about one object in one table.
#[derive(Clone, Debug)]
pub struct Finding {
    /// `s3://bucket/key`
    pub object: String,
    pub etag: String,
    pub table: String,
    /// The number of rows that the object should have in the table.
    pub expected: u64,
    /// The number that it has.
    pub found: u64,
    /// The batches that have loaded it, and those of which the table has rows in addition.
    pub batches: Vec<Uuid>,
    /// Those of which the table has rows in addition.
    pub strays: Vec<Stray>,
    pub judgement: Judgement,
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut finding = serializer.serialize_struct("Finding", 10)?;
        finding.serialize_field("object", &self.object)?;
        finding.serialize_field("etag", &self.etag)?;
        finding.serialize_field("table", &self.table)?;
        finding.serialize_field("verdict", self.judgement.verdict.label())?;
        finding.serialize_field("confidence", self.judgement.confidence.label())?;
        finding.serialize_field("rows", &self.judgement.rows)?;
        finding.serialize_field("expected", &self.expected)?;
        finding.serialize_field("found", &self.found)?;
        finding.serialize_field("batches", &self.batches)?;
        finding.serialize_field("evidence", &self.judgement.evidence)?;
        finding.end()
    }
}
