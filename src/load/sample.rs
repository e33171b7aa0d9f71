//! Loads one blank line, which only the server can refuse. The result distinguishes an object that
//! cannot be loaded from a server that loads nothing.

use std::time::Duration;

use futures_util::stream;

use super::Loader;
use super::ports::{BatchTables, Insert, LedgerStore, Ports};
use crate::batch::{BatchId, Layout, ReadBy, StatementShape};
use crate::clickhouse::WarehouseError;
use crate::ledger::Permit;
use crate::object::{ObjectParts, ObjectRef};
use crate::statements::framing::Framer;

/// A server that takes longer for one line cannot load anything.
const TIMEOUT: Duration = Duration::from_secs(30);

impl<P: Ports> Loader<P> {
    /// Loads one blank line with the statements of a load, into its tables. The only trace is a row
    /// of `object_rows` of a batch that is not in the ledger.
    pub(super) async fn load_sample(&self) -> Result<(), WarehouseError> {
        let batch = BatchId::new(&self.parts.env);
        let object = ObjectRef::from(ObjectParts {
            bucket: "sluice-sample".to_owned(),
            key: "blank.jsonl".to_owned(),
            etag: "sample".to_owned(),
            size: Some(1),
            ..ObjectParts::default()
        });
        let mut body = Vec::new();
        Framer::new(0).frame(b"\n", &mut body);
        let guard = self.parts.ledger.guard(&Permit::unlimited(batch, 1));
        let layout = Layout::default();
        let insert = Insert {
            batch,
            objects: &[&object],
            shape: StatementShape::of(ReadBy::Stream),
            layout: &layout,
            guard: &guard,
        };
        let tables = &self.parts.tables;
        let statements = tables.statements(&insert).await?;
        for (index, statement) in statements.iter().enumerate() {
            let query_id = format!("{batch}-sample-{index}");
            let body = stream::iter([Ok(body.clone())]);
            let insert = tables.stream(statement, body, &query_id, TIMEOUT);
            insert.await?;
        }
        Ok(())
    }
}
