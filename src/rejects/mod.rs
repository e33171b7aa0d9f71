//! Lines that became no row of an event type, and are kept with the reason.

pub mod replay;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clickhouse::{Warehouse, WarehouseError};
use crate::ledger::BATCHES_TABLE;
use crate::object::ObjectUrl;
use crate::sql;
pub use crate::statements::RejectKind;

/// So much of a line is its beginning.
pub const SHOWN_BYTES: u64 = 200;

/// Which kept lines are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RejectSelector {
    pub kind: Option<RejectKind>,
    /// A bucket, and what its keys begin with.
    pub prefix: Option<ObjectUrl>,
    /// The reason contains this, in upper or lower case.
    pub reason: Option<String>,
    /// Kept within this time.
    pub since: Option<Duration>,
}

impl RejectSelector {
    /// The tables in which there can be such lines.
    pub fn kinds(&self) -> impl Iterator<Item = RejectKind> {
        let kind = self.kind;
        RejectKind::ALL
            .into_iter()
            .filter(move |kept| kind.is_none_or(|kind| kind == *kept))
    }

    fn conditions(&self) -> Vec<String> {
        let prefix = self
            .prefix
            .as_ref()
            .map(|prefix| format!("startsWith(source_path, {})", sql::string(&prefix.path())));
        let reason = self.reason.as_ref().map(|reason| {
            format!(
                "positionCaseInsensitiveUTF8(reason, {}) > 0",
                sql::string(reason)
            )
        });
        let since = self.since.map(|since| {
            format!(
                "ingested_at > now64(3) - toIntervalSecond({})",
                since.as_secs()
            )
        });
        [prefix, reason, since].into_iter().flatten().collect()
    }
}

/// Lines of one reason, of one object or of all.
#[derive(Debug, Serialize, Deserialize)]
pub struct Group {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// `rejected` or `unmatched`.
    pub kind: String,
    pub reason: String,
    pub lines: u64,
    pub objects: u64,
    /// UTC, as all times here.
    pub first_kept_at: String,
    pub last_kept_at: String,
}

/// How lines are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    Reason,
    ObjectAndReason,
}

/// A kept line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    pub kind: String,
    pub etag: String,
    /// From 0, as in the tables.
    pub row_number: u64,
    pub reason: String,
    /// The value that is invalid or out of range, or its first 200 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    pub bytes: u64,
    pub kept_at: String,
    /// What can be shown of its beginning.
    #[serde(skip_serializing)]
    pub start: String,
    /// The whole line, where it was asked for and is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// The whole line, where it was asked for and is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line_base64: Option<String>,
}

/// The order of the tables; no two lines of a table have the same.
#[derive(Clone, Debug, Deserialize)]
pub struct LineKey {
    source_path: String,
    source_etag: String,
    row_number: u64,
}

impl LineKey {
    /// Said of the path, too: that is what the index is used for.
    fn after(&self) -> String {
        let path = sql::string(&self.source_path);
        format!(
            "source_path >= {path} AND {COLUMNS_OF_KEY} > {}",
            self.tuple()
        )
    }

    fn up_to(&self) -> String {
        let path = sql::string(&self.source_path);
        format!(
            "source_path <= {path} AND {COLUMNS_OF_KEY} <= {}",
            self.tuple()
        )
    }

    fn tuple(&self) -> String {
        let key = sql::strings([&self.source_path, &self.source_etag]);
        format!("({key}, {})", self.row_number)
    }
}

const COLUMNS_OF_KEY: &str = "(source_path, source_etag, row_number)";

/// Lines that are moved at once, in one block.
#[derive(Debug)]
pub struct Page {
    pub kept: RejectKind,
    /// The lines, as what follows FROM.
    pub rows: String,
    pub last: LineKey,
    pub lines: u64,
}

const PAGE_LINES: u64 = 20_000;
const PAGE_BYTES: u64 = 64 << 20;

/// What is kept, for people and for a replay.
#[derive(Clone)]
pub struct Rejects {
    warehouse: Warehouse,
    /// All lines may have to be looked at.
    timeout: Duration,
}

impl Rejects {
    pub fn new(warehouse: Warehouse, timeout: Duration) -> Self {
        Self { warehouse, timeout }
    }

    /// The chosen lines of one table, as what follows FROM. Lines of a batch that is not on record
    /// as loaded may be on their way back.
    fn rows(&self, kept: RejectKind, choice: &RejectSelector, further: &[String]) -> String {
        let loaded = format!(
            "batch_id IN (SELECT batch_id FROM {} WHERE event = 'loaded')",
            self.warehouse.table(BATCHES_TABLE)
        );
        let conditions = [&[loaded], choice.conditions().as_slice(), further].concat();
        format!(
            "{} FINAL WHERE {}",
            self.warehouse.table(kept.table()),
            conditions.join(" AND ")
        )
    }

    /// Returns the query for the chosen lines of all tables, with their kind and these columns.
    fn select_all(
        &self,
        columns: impl Fn(RejectKind) -> String,
        choice: &RejectSelector,
        further: &[String],
    ) -> String {
        let selects = choice.kinds().map(|kept| {
            let (kind, columns) = (sql::string(kept.kind()), columns(kept));
            let rows = self.rows(kept, choice, further);
            format!("SELECT {kind} AS kind, {columns} FROM {rows}")
        });
        selects.collect::<Vec<_>>().join(" UNION ALL ")
    }

    /// How many there are.
    pub async fn count(&self, choice: &RejectSelector) -> Result<u64, WarehouseError> {
        #[derive(Deserialize)]
        struct Count {
            lines: u64,
        }
        let lines = self.select_all(|_| "1".to_owned(), choice, &[]);
        let sql = format!("SELECT count() AS lines FROM ({lines})");
        let counts: Vec<Count> = self.warehouse.rows_within(&sql, self.timeout).await?;
        Ok(counts.iter().map(|count| count.lines).sum())
    }

    /// The chosen lines of a table that come after `after`, as many as are moved at once.
    pub async fn page(
        &self,
        kept: RejectKind,
        choice: &RejectSelector,
        after: Option<&LineKey>,
    ) -> Result<Option<Page>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            lines: u64,
            #[serde(flatten)]
            last: LineKey,
        }
        let after: Vec<String> = after.map(LineKey::after).into_iter().collect();
        let rows = self.rows(kept, choice, &after);
        // At least one, however long.
        let sql = format!(
            "SELECT source_path, source_etag, row_number, lines FROM (\
               SELECT source_path, source_etag, row_number, \
                 sum(bytes) OVER so_far AS so_many, row_number() OVER so_far AS lines FROM (\
                 SELECT source_path, source_etag, row_number, length(raw) AS bytes FROM {rows} \
                 ORDER BY source_path, source_etag, row_number LIMIT {PAGE_LINES}\
               ) WINDOW so_far AS (ORDER BY source_path, source_etag, row_number \
                 ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)\
             ) WHERE lines = 1 OR so_many <= {PAGE_BYTES} ORDER BY lines DESC LIMIT 1"
        );
        let found: Vec<Row> = self.warehouse.rows_within(&sql, self.timeout).await?;
        let Some(Row { lines, last }) = found.into_iter().next() else {
            return Ok(None);
        };
        let range = [after, vec![last.up_to()]].concat();
        Ok(Some(Page {
            kept,
            rows: self.rows(kept, choice, &range),
            last,
            lines,
        }))
    }

    /// How many lines of which reason there are, the most first.
    pub async fn groups(
        &self,
        choice: &RejectSelector,
        by: GroupBy,
        limit: u64,
    ) -> Result<Vec<Group>, WarehouseError> {
        let (object, keys) = match by {
            GroupBy::Reason => ("", "kind, reason"),
            GroupBy::ObjectAndReason => (
                "concat('s3://', source_path) AS object, ",
                "source_path, kind, reason",
            ),
        };
        let lines = self.select_all(
            |_| "source_path, toString(reason) AS reason, ingested_at".to_owned(),
            choice,
            &[],
        );
        let sql = format!(
            "SELECT {object}kind, reason, count() AS lines, uniqExact(source_path) AS objects, \
               toString(min(ingested_at)) AS first_kept_at, \
               toString(max(ingested_at)) AS last_kept_at \
             FROM ({lines}) GROUP BY {keys} ORDER BY lines DESC, {keys} LIMIT {limit}"
        );
        self.warehouse.rows_within(&sql, self.timeout).await
    }

    /// The lines of one object in their order; `whole`: with all of their text.
    pub async fn of_object(
        &self,
        object: &ObjectUrl,
        whole: bool,
        limit: u64,
    ) -> Result<Vec<Line>, WarehouseError> {
        let (line, line_base64) = if whole {
            (
                "if(isValidUTF8(raw), raw, NULL)",
                "if(isValidUTF8(raw), NULL, base64Encode(raw))",
            )
        } else {
            ("NULL", "NULL")
        };
        let of_object = format!("source_path = {}", sql::string(&object.path()));
        let lines = self.select_all(
            |kept| {
                let value = match kept {
                    RejectKind::Rejected => "value",
                    RejectKind::Unmatched => "NULL",
                };
                format!(
                    "source_etag, row_number, toString(reason) AS reason, {value} AS value, raw, \
                     ingested_at"
                )
            },
            &RejectSelector::default(),
            &[of_object],
        );
        let sql = format!(
            "SELECT kind, source_etag AS etag, row_number, reason, value, length(raw) AS bytes, \
               toString(ingested_at) AS kept_at, \
               toValidUTF8(substring(raw, 1, {SHOWN_BYTES})) AS start, \
               {line} AS line, {line_base64} AS line_base64 \
             FROM ({lines}) ORDER BY etag, row_number LIMIT {limit}"
        );
        self.warehouse.rows_within(&sql, self.timeout).await
    }
}
