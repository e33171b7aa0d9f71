//! The SELECTs: from lines to a landing table, and from there to the tables.
//!
//! A landing table has a row for each line: the declared values, each in a column, and what the line
//! is (its `kind`: an event type's name, `rejected`, `unmatched` or `blank`). The SELECTs that fill
//! the tables read from it, either as a table (in materialized views) or as the SELECT that would
//! fill it ([`per_type_select`]), so that both produce the same rows.
//!
//! There are two [`Landing`]s: that of JSON has the texts of all paths ([`landing`]), and that of
//! other records has the values of all columns ([`values`]). What a line is, is decided by the same
//! conditions in both ([`verdict`]); [`views`] has the SELECTs from them.

mod gaps;
mod landing;
mod values;
mod verdict;
mod views;

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::event_types::{Catalog, EventType, FileType, Shape};
use crate::sql;
use crate::statements::framing::{OBJECT_DIGITS, ROW_DIGITS};

pub use gaps::gaps_select;
pub use landing::columns as landing_columns;
pub use values::columns as value_columns;
pub(crate) use verdict::{BAD_UTF8, NO_MATCH, TOO_MANY_FIELDS};
pub use verdict::{no_list, rejection_reasons};
pub use views::{stored_value, view_select};

/// A source of lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lines {
    /// The table expression after FROM.
    pub from: String,
    /// A condition on the source itself, such as the ledger's guard.
    pub filter: Option<String>,
    /// The record's text, an expression of type String: a line, or the text of a record that is
    /// not one. It is evaluated for all records only if `fields` are parsed from it.
    pub line: String,
    /// How the values of the declared paths are found.
    pub fields: Fields,
    /// What can be wrong with a record, in addition to what can be wrong with a line: a condition
    /// and the reason, both expressions, in the order of the checks.
    ///
    /// With [`Fields::Own`], they are expressions over the source. They are checked before the
    /// record can become a row, and one of them may have the reason [`BLANK`]. With
    /// [`Fields::Json`], they are expressions over `line`, `json` and `source_path`, and are checked
    /// for records that no event type matches.
    pub problems: Vec<(String, String)>,
    /// The settings with which the source is read.
    pub settings: Settings,
    /// `bucket/key` of the object, an expression of type String.
    pub source_path: String,
    /// The object's etag, with or without quotes, an expression of type String.
    pub source_etag: String,
    /// The line's number in the object, from 0, an expression of type UInt64.
    pub row_number: String,
    /// Lines of more bytes are rejected without being parsed: a parser needs twenty times their
    /// size.
    pub max_line_bytes: u64,
    /// Times outside this range are rejected in the columns by which a table is partitioned.
    pub times: Option<TimeRange>,
    /// The batch that reads the lines.
    pub batch_id: Uuid,
}

/// Settings of a query, by name.
pub type Settings = Vec<(&'static str, String)>;

/// How the values of the declared paths are found in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fields {
    /// They are parsed from a JSON text, which is an expression over the source.
    Json(String),
    /// The record has been divided into fields already.
    Own(OwnFields),
}

/// The fields of a record that is not JSON, as expressions over the source.
///
/// None is inside of a condition: ClickHouse would evaluate what it is computed from, such as the
/// groups of a regular expression, once for each of them (100 times as long, measured).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFields {
    /// By the name of the field, which is the first key of its paths: an expression, and its shape.
    fields: BTreeMap<String, (String, Shape)>,
    /// The size of the record in bytes, an expression.
    bytes: String,
}

impl OwnFields {
    /// Returns fields that each have an expression of type `Nullable(String)`.
    pub(crate) fn of_texts(
        texts: impl IntoIterator<Item = (String, String)>,
        bytes: String,
    ) -> Self {
        let text = Shape::Value(FileType::Text);
        let texts = texts.into_iter();
        let fields = texts.map(|(name, expression)| (name, (expression, text.clone())));
        Self::of_shapes(fields, bytes)
    }

    pub(crate) fn of_shapes(
        fields: impl IntoIterator<Item = (String, (String, Shape))>,
        bytes: String,
    ) -> Self {
        Self {
            fields: fields.into_iter().collect(),
            bytes,
        }
    }

    /// Returns the JSON text of the fields; `None` if they are not texts, and the record's own text
    /// is JSON.
    fn json(&self) -> Option<String> {
        let texts = self.fields.iter().map(|(name, (expression, shape))| {
            let is_text = matches!(shape, Shape::Value(FileType::Text));
            is_text.then(|| format!("{}, {expression}", sql::string(name)))
        });
        let texts: Vec<String> = texts.collect::<Option<_>>()?;
        Some(format!("toJSONString(map({}))", texts.join(", ")))
    }

    /// Returns the value at a path and its type; `None` if no record has one.
    pub(crate) fn at(&self, path: &[String]) -> Option<(String, FileType)> {
        let (name, rest) = path.split_first()?;
        let (expression, shape) = self.fields.get(name)?;
        shape.at(expression, rest)
    }
}

impl Fields {
    /// The record is a line of JSON.
    fn of_line() -> Self {
        Self::Json(LINE.to_owned())
    }
}

/// The column of a source with the text of each record.
const LINE: &str = "line";

/// The range of plausible times. Other times would create partitions, and with them parts, without
/// limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRange {
    /// The first moment, in seconds since 1970.
    pub start: u64,
    /// The first moment after the range, in seconds since 1970.
    pub end: u64,
}

impl Lines {
    /// Returns the lines of `s3()` or `file()` in the format LineAsString with the structure
    /// `line String`. Path, etag and row number are ClickHouse's own columns.
    pub fn of_objects(from: impl Into<String>, batch_id: Uuid) -> Lines {
        Lines {
            from: from.into(),
            filter: None,
            line: LINE.to_owned(),
            fields: Fields::of_line(),
            problems: Vec::new(),
            settings: Vec::new(),
            source_path: "_path".to_owned(),
            source_etag: "_etag".to_owned(),
            row_number: "_row_number".to_owned(),
            max_line_bytes: u64::MAX,
            times: None,
            batch_id,
        }
    }

    /// Returns at most this number of these records. The source must be a subquery.
    pub fn first(self, count: u64) -> Lines {
        Lines {
            from: format!("(SELECT * FROM {} LIMIT {count})", self.from),
            ..self
        }
    }

    /// Returns the lines of a table of rejects. `rows` is what follows FROM.
    pub fn of_rejects(rows: &str, batch_id: Uuid) -> Lines {
        let columns = "raw AS line, source_path AS _path, source_etag AS _etag, \
                       row_number AS _row_number";
        Lines::of_objects(format!("(SELECT {columns} FROM {rows})"), batch_id)
    }

    /// Returns the lines in the body of an insert, each after a prefix with the numbers of its
    /// object and of the line ([`crate::statements::framing`]). `objects` has the path and the etag
    /// of each, in order.
    pub fn of_body(objects: &[(String, &str)], batch_id: Uuid) -> Lines {
        let of_object = |values: Vec<&str>| {
            let object = format!("toUInt32(substring(framed, 1, {OBJECT_DIGITS}))");
            format!("arrayElement([{}], {object})", sql::strings(&values))
        };
        let (row_at, line_at) = (OBJECT_DIGITS + 1, OBJECT_DIGITS + ROW_DIGITS + 1);
        Lines {
            from: "input('framed String')".to_owned(),
            filter: None,
            line: format!("substring(framed, {line_at})"),
            fields: Fields::of_line(),
            problems: Vec::new(),
            settings: Vec::new(),
            source_path: of_object(objects.iter().map(|(path, _)| path.as_str()).collect()),
            source_etag: of_object(objects.iter().map(|(_, etag)| *etag).collect()),
            row_number: format!("toUInt64(substring(framed, {row_at}, {ROW_DIGITS}))"),
            max_line_bytes: u64::MAX,
            times: None,
            batch_id,
        }
    }

    /// Returns the landing table through which they are inserted.
    pub fn landing(&self) -> Landing {
        match self.fields {
            Fields::Json(_) => Landing::Texts,
            Fields::Own(_) => Landing::Values,
        }
    }
}

/// A landing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// It has the texts of all declared paths, for records of JSON, in which most texts are parsed.
    Texts,
    /// It has the values of all declared columns, for records with fields of their own.
    Values,
}

impl Landing {
    /// Returns the landing tables of a catalog.
    pub fn all(catalog: &Catalog) -> Vec<Self> {
        let declared = catalog.formats().declared();
        if declared.iter().any(|format| format.kind.has_own_fields()) {
            vec![Self::Texts, Self::Values]
        } else {
            vec![Self::Texts]
        }
    }
}

/// A table that is filled from a landing table.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// An event type's own table.
    EventType(&'a EventType),
    /// Lines that cannot become a row.
    RejectedLines,
    /// Statements that no event type matches.
    UnmatchedStatements,
    /// The number of lines of each kind in each object.
    ObjectRows,
}

impl<'a> Target<'a> {
    /// Returns every table of a catalog.
    pub fn all(catalog: &'a Catalog) -> Vec<Target<'a>> {
        let own = [
            Target::RejectedLines,
            Target::UnmatchedStatements,
            Target::ObjectRows,
        ];
        catalog
            .types()
            .iter()
            .map(Target::EventType)
            .chain(own)
            .collect()
    }

    /// Returns the name of the table.
    pub fn table(&self) -> &'a str {
        match self {
            Target::EventType(event_type) => &event_type.table,
            Target::RejectedLines => "rejected_lines",
            Target::UnmatchedStatements => "unmatched_statements",
            Target::ObjectRows => "object_rows",
        }
    }

    /// Returns the `kind` of its lines; `None` for the table that counts all of them.
    pub fn kind(&self) -> Option<&'a str> {
        match self {
            Target::EventType(event_type) => Some(&event_type.name),
            Target::RejectedLines => Some("rejected"),
            Target::UnmatchedStatements => Some("unmatched"),
            Target::ObjectRows => None,
        }
    }

    /// Returns whether rows for it can come from the object of this key.
    pub fn is_filled_from(&self, key: &str) -> bool {
        match self {
            Target::EventType(event_type) => event_type.is_looked_for_in(key),
            Target::RejectedLines | Target::UnmatchedStatements | Target::ObjectRows => true,
        }
    }

    /// Returns the columns of its SELECT, in order; the rest have defaults.
    pub fn columns(&self) -> Vec<&'a str> {
        match self {
            Target::EventType(event_type) => {
                let declared = event_type.columns.iter().map(|column| column.name.as_str());
                declared
                    .chain(["source_path", "source_etag", "batch_id"])
                    .collect()
            }
            Target::RejectedLines => [&REJECT_COLUMNS[..], &["value"]].concat(),
            Target::UnmatchedStatements => REJECT_COLUMNS.to_vec(),
            Target::ObjectRows => vec!["batch_id", "source_path", "source_etag", "kind", "rows"],
        }
    }
}

/// The columns of the tables of rejects.
const REJECT_COLUMNS: [&str; 6] = [
    "source_path",
    "source_etag",
    "row_number",
    "raw",
    "reason",
    "batch_id",
];

/// The kind of blank lines. They are also counted: if not even a blank line of an object arrived,
/// the object was not read.
pub const BLANK: &str = "blank";

/// Returns the SELECT from lines to the rows of their landing table.
pub fn landing_select(catalog: &Catalog, lines: &Lines) -> String {
    match &lines.fields {
        Fields::Json(json) => landing::select(catalog, lines, json),
        Fields::Own(fields) => values::select(catalog, lines, fields),
    }
}

/// Returns the SELECT from lines to the rows of one table, for use without views.
pub fn per_type_select(catalog: &Catalog, target: Target<'_>, lines: &Lines) -> String {
    let parsed = parsed_lines(catalog, lines);
    view_select(catalog, lines.landing(), target, &parsed)
}

/// Returns a table expression for the rows of their landing table that these lines would become.
///
/// The LIMIT does not limit anything: it keeps the planner from pushing the condition on `kind`
/// down to the lines. To do so, it would expand the whole expression of `kind` once for each use,
/// which takes a second for a query that otherwise takes a tenth of a second.
pub fn parsed_lines(catalog: &Catalog, lines: &Lines) -> String {
    let select = landing_select(catalog, lines);
    format!("(\n{select}\nLIMIT {}\n)", i64::MAX)
}

/// Returns the WHERE clause of a source, on a line of its own.
fn filter(lines: &Lines, indentation: usize) -> String {
    let filter = lines.filter.as_ref();
    filter.map_or_else(String::new, |filter| {
        format!("\n{:indentation$}WHERE {filter}", "")
    })
}

#[cfg(test)]
mod tests;
