//! The layouts of objects: what must be looked up in them before they are loaded.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::batch::Layout;
use crate::formats::{
    Delimited, Format, FormatId, Kind, SURPLUS, VIRTUAL, header_names, shown_names,
};
use crate::object::ObjectRef;
use crate::sql;
use crate::statements::guard::CHANGED_TEXT;
use crate::statements::insert::{Planner, changed};
use crate::statements::records::{Reader, clickhouse_format, records, texts};
use crate::statements::select::{Lines, Settings};

/// A query for the fields of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StructureQuery {
    /// For rows of `name` and `type`, one for each column. ClickHouse's error 636 means that the
    /// object is empty: it has no columns.
    Columns(String),
    /// For one row of `line`, or none if the object has no header. It begins with the lines to skip
    /// where they must be looked at.
    Header(String),
}

/// The answer to a [`StructureQuery`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StructureAnswer {
    /// The names and the types of all columns.
    Columns(Vec<(String, String)>),
    Header(Option<String>),
}

/// The most bytes of a header.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// How many of the first bytes of an object show what it is.
const SNIFFED_BYTES: u64 = 512;
/// Settings of queries for what an object is.
const LOOKUP_SETTINGS: &str = "s3_ignore_file_doesnt_exist = 0, use_hive_partitioning = 0, \
                               input_format_parallel_parsing = 0, max_threads = 1";

impl Planner {
    /// Returns the format of the object with this key.
    pub fn format_of(&self, key: &str) -> FormatId {
        self.catalog().formats().of(key)
    }

    /// Returns the layout of all objects of a format; `None` if it must be looked up in each of
    /// them, with [`Planner::structure_query`].
    pub fn layout_of(&self, format: FormatId) -> Option<Layout> {
        let Format { name, kind, .. } = self.catalog().formats().get(format);
        if kind.is_json_lines() {
            return Some(Layout::default());
        }
        let names = match kind {
            _ if kind.needs_structure() => return None,
            Kind::Delimited(delimited) => delimited.columns.as_deref().unwrap_or_default(),
            _ => &[],
        };
        Some(Layout {
            format: name.clone(),
            structure: texts(names),
        })
    }

    /// Returns the query for the fields of an object, of which the answer is an argument of
    /// [`Planner::layout_with`].
    pub fn structure_query(&self, format: FormatId, object: &ObjectRef) -> StructureQuery {
        let reader = Reader::Objects {
            source: &self.options().source,
            objects: &[object],
            is_coalesced: false,
        };
        structure_query(self.kind(format), reader)
    }

    /// Returns the query of [`Planner::structure_query`] for content that is not in S3,
    /// decompressed.
    pub fn structure_query_of_content(&self, format: FormatId, content: &[u8]) -> StructureQuery {
        structure_query(self.kind(format), Reader::Content { path: "", content })
    }

    /// Returns the layout of an object with these fields.
    ///
    /// # Errors
    ///
    /// Says what is wrong with its header or with its columns.
    pub fn layout_with(&self, format: FormatId, answer: StructureAnswer) -> Result<Layout, String> {
        let Format { name, kind, .. } = self.catalog().formats().get(format);
        let structure = match (kind, answer) {
            (Kind::Delimited(_), StructureAnswer::Header(None)) => Vec::new(),
            (Kind::Delimited(delimited), StructureAnswer::Header(Some(text))) => {
                match header_of(&text, delimited)? {
                    Some(line) if delimited.header => texts(&self.checked_header(line, delimited)?),
                    Some(_) => texts(delimited.columns.as_deref().unwrap_or_default()),
                    None => Vec::new(),
                }
            }
            (_, StructureAnswer::Columns(columns)) => checked_columns(columns)?,
            (_, StructureAnswer::Header(_)) => Vec::new(),
        };
        Ok(Layout {
            format: name.clone(),
            structure,
        })
    }

    /// Returns the names in a header, which must be those that are declared, or else have one that
    /// some event type reads.
    fn checked_header(&self, line: &str, delimited: &Delimited) -> Result<Vec<String>, String> {
        let names = header_names(line, delimited)?;
        let found: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let is_expected = match &delimited.columns {
            Some(declared) => found == declared.iter().map(String::as_str).collect::<BTreeSet<_>>(),
            None => {
                let leaves = self.catalog().tree().leaves();
                leaves
                    .iter()
                    .any(|path| path.len() == 1 && found.contains(path[0].as_str()))
            }
        };
        if is_expected {
            return Ok(names);
        }
        let shown = shown_names(&names);
        Err(match &delimited.columns {
            Some(declared) => format!(
                "its header has other names than those declared (header: {shown}; declared: {})",
                shown_names(declared)
            ),
            None => format!("its header has none of the declared columns (header: {shown})"),
        })
    }

    /// Returns the records of an object, for a preview.
    pub fn records_of(&self, object: &ObjectRef, layout: &Layout) -> Lines {
        self.records(layout, &[object], false, Uuid::nil())
    }

    /// Returns the records of content that is not in S3, decompressed, for a preview. `path` is
    /// bucket and key, by which routes decide.
    pub fn records_of_content(&self, content: &[u8], path: &str, layout: &Layout) -> Lines {
        let reader = Reader::Content { path, content };
        records(self.kind_of(layout), &layout.structure, reader, Uuid::nil())
    }

    /// Returns the query for the objects that have at least one record, blank or not: rows of
    /// `path`. It reads the records, since the number of rows that ClickHouse caches for a file can
    /// be wrong.
    pub fn paths_with_records(&self, objects: &[&ObjectRef], layout: &Layout) -> String {
        let (from, line, settings) = if layout.is_json_lines() {
            let lines = self.lines_table(objects);
            (lines, "line".to_owned(), Vec::new())
        } else {
            let records = self.records(layout, objects, false, Uuid::nil());
            (records.from, records.line, records.settings)
        };
        format!(
            "SELECT DISTINCT _path AS path FROM {from} WHERE NOT ignore({line}) \
             SETTINGS use_cache_for_count_from_files = 0, s3_ignore_file_doesnt_exist = 0, \
             use_hive_partitioning = 0, glob_expansion_max_elements = 1000000{}",
            assignments(&settings)
        )
    }

    /// Returns the query for the first 512 bytes of an object as it is stored: one row of `bytes`,
    /// which are written in hexadecimal.
    pub fn first_bytes(&self, object: &ObjectRef) -> String {
        let table = self
            .options()
            .source
            .table_as_stored(object, "RowBinary", "byte UInt8");
        format!(
            "SELECT hex(arrayStringConcat(groupArray(char(byte)))) AS bytes \
             FROM (SELECT byte FROM {table} LIMIT {SNIFFED_BYTES}) SETTINGS {LOOKUP_SETTINGS}"
        )
    }

    /// Returns the records of objects in S3 for an insert of this batch.
    pub(super) fn records(
        &self,
        layout: &Layout,
        objects: &[&ObjectRef],
        is_coalesced: bool,
        batch_id: Uuid,
    ) -> Lines {
        let reader = Reader::Objects {
            source: &self.options().source,
            objects,
            is_coalesced,
        };
        records(self.kind_of(layout), &layout.structure, reader, batch_id)
    }

    /// Returns the kind of a layout's format. One that is not declared has no plan, and its
    /// statements are never sent.
    pub(super) fn kind_of(&self, layout: &Layout) -> &Kind {
        let format = self.catalog().formats().named(&layout.format);
        self.kind(format.unwrap_or_default())
    }

    fn kind(&self, format: FormatId) -> &Kind {
        &self.catalog().formats().get(format).kind
    }
}

fn structure_query(kind: &Kind, reader: Reader<'_>) -> StructureQuery {
    let skipped = match kind {
        Kind::Parquet | Kind::Avro | Kind::Orc => {
            let table = reader.table(clickhouse_format(kind), "auto");
            return StructureQuery::Columns(format!(
                "DESCRIBE TABLE {table} SETTINGS print_pretty_type_names = 0, \
                 describe_include_subcolumns = 0, schema_inference_use_cache_for_s3 = 0, \
                 {LOOKUP_SETTINGS}"
            ));
        }
        Kind::Delimited(delimited) if delimited.skips_records() => {
            let table = reader.table("LineAsString", "line String");
            return StructureQuery::Header(format!(
                "SELECT arrayStringConcat(groupArray(first), '\\n') AS line FROM (\
                   SELECT toValidUTF8(substring(line, 1, {MAX_HEADER_BYTES})) AS first \
                   FROM {table}{} LIMIT {}) SETTINGS {LOOKUP_SETTINGS}",
                unchanged(reader),
                delimited.skip_lines + 1
            ));
        }
        Kind::Delimited(delimited) => delimited.skip_lines,
        Kind::JsonLines | Kind::Documents { .. } | Kind::Regex(_) => 0,
    };
    let table = reader.table("LineAsString", "line String");
    StructureQuery::Header(format!(
        "SELECT toValidUTF8(substring(line, 1, {MAX_HEADER_BYTES})) AS line FROM {table}{} \
         LIMIT 1 OFFSET {skipped} SETTINGS {LOOKUP_SETTINGS}",
        unchanged(reader)
    ))
}

/// Returns the header, or the first record, in the answer to a [`StructureQuery::Header`].
fn header_of<'t>(text: &'t str, delimited: &Delimited) -> Result<Option<&'t str>, String> {
    if !delimited.skips_records() {
        return Ok(Some(text));
    }
    let mut lines = text.split('\n');
    let skipped = lines.by_ref().take(delimited.skip_lines as usize);
    let is_open = |line: &str| line.matches('"').count() % 2 == 1;
    if skipped.into_iter().any(is_open) {
        return Err(
            "one of the lines to skip has a quote that is not closed on it, so that ClickHouse \
             would also skip what follows; set `quoted: false`, or remove these lines"
                .to_owned(),
        );
    }
    Ok(lines.next())
}

/// Returns the WHERE clause by which a query fails on another version of the object than the one
/// that was announced: its header may have the same names in another order.
fn unchanged(reader: Reader<'_>) -> String {
    match reader {
        Reader::Objects { objects, .. } if objects.iter().all(|it| !it.etag.is_empty()) => {
            format!(" WHERE {}", sql::throw_if(&changed(objects), CHANGED_TEXT))
        }
        _ => String::new(),
    }
}

/// Returns columns that can be NULL where a file lacks them.
fn checked_columns(columns: Vec<(String, String)>) -> Result<Vec<(String, String)>, String> {
    let reserved = columns
        .iter()
        .find(|(name, _)| VIRTUAL.contains(&name.as_str()) || name == SURPLUS);
    if let Some((name, _)) = reserved {
        return Err(format!(
            "it has a column {name:?}, which is ClickHouse's name for where a row comes from; \
             rename the column"
        ));
    }
    let columns = columns.into_iter();
    Ok(columns
        .map(|(name, column_type)| (name, nullable(column_type)))
        .collect())
}

/// Types that cannot be within Nullable, or are already.
const NEVER_NULLABLE: [&str; 10] = [
    "Array(",
    "Dynamic",
    "JSON",
    "LowCardinality(",
    "Map(",
    "Nested(",
    "Nullable(",
    "Object(",
    "Tuple(",
    "Variant(",
];

fn nullable(column_type: String) -> String {
    if NEVER_NULLABLE
        .iter()
        .any(|prefix| column_type.starts_with(prefix))
    {
        column_type
    } else {
        format!("Nullable({column_type})")
    }
}

/// Returns settings as they follow others in a query.
pub(super) fn assignments(settings: &Settings) -> String {
    let assignments = settings
        .iter()
        .map(|(name, value)| format!(", {name} = {}", sql::string(value)));
    assignments.collect()
}
