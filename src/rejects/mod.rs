//! Rejects: lines that did not become a row of an event type, which are kept with the reason.

pub mod ports;
pub mod replay;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clickhouse::{Warehouse, WarehouseError};
use crate::ledger::BATCHES_TABLE;
use crate::object::ObjectUrl;
use crate::sql;
pub use crate::statements::RejectKind;

/// The number of bytes at the beginning of a line that are shown.
pub const SHOWN_BYTES: u64 = 200;

/// A selection of rejects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RejectSelector {
    pub kind: Option<RejectKind>,
    /// A bucket, and a prefix of its keys.
    pub prefix: Option<ObjectUrl>,
    /// A part of the reason, in upper or lower case.
    pub reason: Option<String>,
    /// Selects rejects that are at most this old.
    pub since: Option<Duration>,
}

impl RejectSelector {
    /// Returns the kinds of rejects that the selector can match.
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

/// The rejects of one reason, of one object or of all objects.
#[derive(Debug, Serialize, Deserialize)]
pub struct Group {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// `rejected` or `unmatched`.
    pub kind: String,
    pub reason: String,
    pub lines: u64,
    pub objects: u64,
    /// In UTC, as are all times here.
    pub first_kept_at: String,
    pub last_kept_at: String,
}

/// How rejects are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    Reason,
    ObjectAndReason,
}

/// A reject.
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
    /// The beginning of the line, as valid UTF-8.
    #[serde(skip_serializing)]
    pub start: String,
    /// The whole line, if it was requested and is valid UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// The whole line, if it was requested and is not valid UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line_base64: Option<String>,
}

/// The sorting key of the tables, which is unique for each line of a table.
#[derive(Clone, Debug, Deserialize)]
pub struct LineKey {
    pub source_path: String,
    pub source_etag: String,
    pub row_number: u64,
}

impl LineKey {
    /// Returns the condition for later lines. It also bounds the path alone, since the index is
    /// used only for that.
    fn after(&self) -> String {
        let path = sql::string(&self.source_path);
        format!(
            "source_path >= {path} AND {COLUMNS_OF_KEY} > {}",
            self.tuple()
        )
    }

    /// Returns the condition for lines up to this one.
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

/// Rejects that are moved together, in one block: the selected ones of a table from the line after
/// `after`, or from the first line, to `last`.
#[derive(Clone, Debug)]
pub struct RejectPage {
    pub kept: RejectKind,
    pub selector: RejectSelector,
    /// The last line of the page before.
    pub after: Option<LineKey>,
    pub last: LineKey,
    pub lines: u64,
}

impl RejectPage {
    /// Returns the rejects of the page, as the text after FROM.
    fn rows(&self, warehouse: &Warehouse) -> String {
        let after = self.after.iter().map(LineKey::after);
        let range: Vec<String> = after.chain([self.last.up_to()]).collect();
        selected_rows(warehouse, self.kept, &self.selector, &range)
    }
}

const PAGE_LINES: u64 = 20_000;
const PAGE_BYTES: u64 = 64 << 20;

/// Reads the rejects, for reports and for replays.
#[derive(Clone)]
pub struct Rejects {
    warehouse: Warehouse,
    /// The timeout of a query, which may have to read all rejects.
    timeout: Duration,
}

impl Rejects {
    pub fn new(warehouse: Warehouse, timeout: Duration) -> Self {
        Self { warehouse, timeout }
    }

    /// Returns the query for the selected rejects of all tables, with their kind and these columns.
    fn select_all(
        &self,
        columns: impl Fn(RejectKind) -> String,
        choice: &RejectSelector,
        further: &[String],
    ) -> String {
        let selects = choice.kinds().map(|kept| {
            let (kind, columns) = (sql::string(kept.kind()), columns(kept));
            let rows = selected_rows(&self.warehouse, kept, choice, further);
            format!("SELECT {kind} AS kind, {columns} FROM {rows}")
        });
        selects.collect::<Vec<_>>().join(" UNION ALL ")
    }

    /// Returns the number of selected rejects.
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

    /// Returns the next page of selected rejects of a table, after the line `after`, or `None` at
    /// the end.
    pub async fn page(
        &self,
        kept: RejectKind,
        choice: &RejectSelector,
        after: Option<&LineKey>,
    ) -> Result<Option<RejectPage>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            lines: u64,
            #[serde(flatten)]
            last: LineKey,
        }
        let later: Vec<String> = after.map(LineKey::after).into_iter().collect();
        let rows = selected_rows(&self.warehouse, kept, choice, &later);
        // A page has at least one line, however long.
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
        Ok(Some(RejectPage {
            kept,
            selector: choice.clone(),
            after: after.cloned(),
            last,
            lines,
        }))
    }

    /// Returns the numbers of rejects by reason, the largest first.
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

    /// Returns the rejects of one object in order, with their whole text if `whole` is set.
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

/// Returns the selected rejects of one table, as the text after FROM. Excludes batches that are not
/// recorded as loaded, which may still be rolled back.
fn selected_rows(
    warehouse: &Warehouse,
    kept: RejectKind,
    choice: &RejectSelector,
    further: &[String],
) -> String {
    let loaded = format!(
        "batch_id IN (SELECT batch_id FROM {} WHERE event = 'loaded')",
        warehouse.table(BATCHES_TABLE)
    );
    let conditions = [&[loaded], choice.conditions().as_slice(), further].concat();
    format!(
        "{} FINAL WHERE {}",
        warehouse.table(kept.table()),
        conditions.join(" AND ")
    )
}
