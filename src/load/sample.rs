//! A load that nothing speaks against but the server: by it Sluice tells an object that cannot be
//! loaded from a server that loads nothing.

use std::time::Duration;

use futures_util::stream;

use super::Loader;
use crate::batch::{BatchId, Form, ReadBy};
use crate::clickhouse::WarehouseError;
use crate::object::ObjectRef;
use crate::statements::framing::Framer;

/// A server that needs longer for one line does not load.
const TIMEOUT: Duration = Duration::from_secs(30);

impl Loader {
    /// Loads one blank line, with the statements of a load and into its tables. All that comes of it
    /// is a row of `object_rows`, of a batch that the ledger does not know.
    pub(super) async fn load_sample(&self) -> Result<(), WarehouseError> {
        let batch = BatchId::new(&self.env);
        let object = ObjectRef {
            bucket: "sluice-sample".to_owned(),
            key: "blank.jsonl".to_owned(),
            etag: "sample".to_owned(),
            size: Some(1),
            version_id: None,
            sequencer: None,
            region: None,
        };
        let mut body = Vec::new();
        Framer::new(0).frame(b"\n", &mut body);
        let guard = self.ledger.guard(batch, 1);
        let statements = self
            .planner
            .inserts(batch, &[&object], Form::of(ReadBy::Stream), &guard);
        for (index, statement) in statements.iter().enumerate() {
            let query_id = format!("{batch}-sample-{index}");
            let body = stream::iter([Ok(body.clone())]);
            let insert = self.warehouse.stream(statement, body, &query_id, TIMEOUT);
            insert.await?;
        }
        Ok(())
    }
}
