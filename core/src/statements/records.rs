//! The records of objects of a declared format, as a source of [`Lines`].
//!
//! ClickHouse parses every format, also of what the worker reads: the same rows come from both. The
//! text of a JSON record stays as it is in the object. The fields of the other formats are read
//! directly; a record becomes a JSON text only if it is rejected or unmatched, or if the file has
//! columns whose types are not known ([`typed_texts`]). docs/formats.md describes unusual content.

use uuid::Uuid;

use crate::event_types::Shape;
use crate::event_types::paths::Path;
use crate::formats::{Delimited, Format, Formats, Kind, Regex, SURPLUS};
use crate::object::ObjectRef;
use crate::sql;
use crate::statements::delimited;
use crate::statements::s3_source::S3Source;
use crate::statements::select::{Fields, Lines, NO_MATCH, OwnFields, TOO_MANY_FIELDS, no_list};

/// The names and the types of the fields of an object, as in a layout.
pub(crate) type Structure = [(String, String)];

/// Where ClickHouse gets the content from.
#[derive(Clone, Copy)]
pub(crate) enum Reader<'a> {
    /// From S3.
    Objects {
        source: &'a S3Source,
        objects: &'a [&'a ObjectRef],
        /// Whether the records become one block, whatever blocks they are read in.
        is_coalesced: bool,
    },
    /// From the body of the insert, which is one object.
    Body { path: &'a str, etag: &'a str },
    /// From the query.
    Content { path: &'a str, content: &'a [u8] },
}

impl Reader<'_> {
    /// Returns the table expression for content of this format.
    pub(crate) fn table(self, format: &str, structure: &str) -> String {
        match self {
            Self::Objects {
                source, objects, ..
            } => source.table(objects, format, structure),
            Self::Body { .. } => format!("input({})", sql::string(structure)),
            Self::Content { content, .. } => format!(
                "format({format}, {}, {})",
                sql::string(structure),
                sql::bytes(content)
            ),
        }
    }

    /// Returns a subquery for these columns and those of a record's origin: `_path`, `_etag` and,
    /// under the name in `number`, its number.
    pub(crate) fn rows(self, columns: &str, number: &str, format: &str, structure: &str) -> String {
        let table = self.table(format, structure);
        let origin = match self {
            Self::Objects { .. } if format == ORC => {
                format!("_path, _etag, rowNumberInAllBlocks() AS {number}")
            }
            Self::Objects { .. } if number == ROW_NUMBER => "_path, _etag, _row_number".to_owned(),
            Self::Objects { .. } => format!("_path, _etag, _row_number AS {number}"),
            Self::Body { path, etag } => literal_origin(path, etag, number),
            Self::Content { path, .. } => literal_origin(path, "", number),
        };
        format!("(SELECT {columns}, {origin} FROM {table})")
    }

    /// Returns the same lines, in one block if this reader wants them so.
    pub(crate) fn gathered(self, lines: String) -> String {
        match self {
            Self::Objects {
                is_coalesced: true, ..
            } => coalesced(&lines),
            _ => lines,
        }
    }
}

/// The column with the number of a record in its object.
pub(crate) const ROW_NUMBER: &str = "_row_number";

const ORC: &str = "ORC";

fn literal_origin(path: &str, etag: &str, number: &str) -> String {
    format!(
        "{} AS _path, {} AS _etag, rowNumberInAllBlocks() AS {number}",
        sql::string(path),
        sql::string(etag)
    )
}

/// Returns lines in one block, whatever blocks they are read in.
///
/// ClickHouse evaluates a SELECT block by block, and each object that `s3()` reads begins a block
/// of its own. It also recognises a repeated insert only if the SELECT yields as many blocks as it
/// did the first time, which is not guaranteed where they depend on threads, or on how a table's
/// parts have been merged. One array of all lines is one row, and one block from there on.
pub(crate) fn coalesced(lines: &str) -> String {
    format!(
        "(SELECT tupleElement(gathered, 1) AS line, \
         toLowCardinality(tupleElement(gathered, 2)) AS _path, \
         toLowCardinality(tupleElement(gathered, 3)) AS _etag, \
         tupleElement(gathered, 4) AS _row_number \
         FROM (SELECT groupArray((line, _path, _etag, _row_number)) AS of_all FROM {lines}) \
         ARRAY JOIN of_all AS gathered)"
    )
}

/// Returns ClickHouse's name of the format that reads a body of this kind.
pub(crate) fn clickhouse_format(kind: &Kind) -> &'static str {
    match kind {
        Kind::JsonLines | Kind::Regex(_) => "LineAsString",
        Kind::Documents { records: None } => "JSONAsString",
        Kind::Documents { records: Some(_) } => "JSONEachRow",
        Kind::Delimited(Delimited { quoted: true, .. }) => "CSV",
        Kind::Delimited(_) => "LineAsString",
        Kind::Parquet => "Parquet",
        Kind::Avro => "Avro",
        Kind::Orc => ORC,
    }
}

/// Returns whether the records are numbered as they arrive, in one thread.
pub(crate) fn are_numbered_on_arrival(kind: &Kind, is_streamed: bool) -> bool {
    is_streamed && !kind.is_json_lines() || kind.is_alone()
}

/// Returns the records of this kind.
pub(crate) fn records(
    kind: &Kind,
    structure: &Structure,
    reader: Reader<'_>,
    batch_id: Uuid,
) -> Lines {
    let lines = match kind {
        Kind::JsonLines | Kind::Documents { records: None } => {
            let lines = reader.rows("line", ROW_NUMBER, clickhouse_format(kind), "line String");
            Lines::of_objects(reader.gathered(lines), batch_id)
        }
        Kind::Documents {
            records: Some(records),
        } => elements(records, reader, batch_id),
        Kind::Delimited(declared) => delimited::records(declared, structure, reader, batch_id),
        Kind::Regex(regex) => matches(regex, reader, batch_id),
        Kind::Parquet | Kind::Avro | Kind::Orc => typed(kind, structure, reader, batch_id),
    };
    Lines {
        settings: super::format_settings::of(kind),
        ..lines
    }
}

/// What stands for the list of a document that lacks it. It occurs in no JSON.
const NO_LIST: &str = "\u{1}";

/// Returns the elements of a list in each document, each with its own text. They are numbered from
/// the number of their document times 2^32, so that those of a single document count from 0.
fn elements(records: &Path, reader: Reader<'_>, batch_id: Uuid) -> Lines {
    let (Some(first), rest) = (records.first(), records.get(1..).unwrap_or_default()) else {
        unreachable!("a checked path has at least one key");
    };
    // ClickHouse notices that the first key is missing. If one below it is, the list is empty.
    let mut list_type = "Array(String)".to_owned();
    let mut missing = format!("[{}]", sql::string(NO_LIST));
    for key in rest.iter().rev() {
        list_type = format!("Tuple({} {list_type})", sql::ident(key));
        missing = format!("tuple({missing})");
    }
    let structure = format!("{} {list_type} DEFAULT {missing}", sql::ident(first));
    let list = rest.iter().fold(sql::ident(first), |outer, key| {
        format!("tupleElement({outer}, {})", sql::string(key))
    });
    // A name that is not the list's.
    let document = sql::ident(SURPLUS);
    let documents = reader.rows(
        &format!("{list} AS of_document"),
        &document,
        "JSONEachRow",
        &structure,
    );
    let elements = format!(
        "(SELECT line, _path, _etag, \
         toUInt64({document} * 4294967296 + place - 1) AS _row_number \
         FROM {documents} \
         ARRAY JOIN of_document AS line, arrayEnumerate(of_document) AS place)"
    );
    Lines {
        problems: vec![(
            format!("line = {}", sql::string(NO_LIST)),
            sql::string(&no_list(records)),
        )],
        ..Lines::of_objects(reader.gathered(elements), batch_id)
    }
}

/// Returns lines whose fields are the groups of a regular expression.
fn matches(regex: &Regex, reader: Reader<'_>, batch_id: Uuid) -> Lines {
    let lines = reader.rows("line", ROW_NUMBER, "LineAsString", "line String");
    let lines = reader.gathered(lines);
    Lines {
        fields: Fields::Own(OwnFields::of_texts(
            regex.names.iter().cloned().zip(groups(regex, GROUPS)),
            "length(line)".to_owned(),
        )),
        problems: vec![
            (
                format!(r"empty({GROUPS}) AND match(line, '^\\s*$')"),
                "'blank'".to_owned(),
            ),
            delimited::bad_utf8("line"),
            (format!("empty({GROUPS})"), sql::string(NO_MATCH)),
        ],
        ..Lines::of_objects(
            format!(
                "(SELECT *, {} AS {GROUPS} FROM {lines})",
                extracted(regex, "line")
            ),
            batch_id,
        )
    }
}

/// The JSON text of a record without fields.
pub(crate) const EMPTY_OBJECT: &str = "{}";
/// The column with the texts of a line's groups, or with those between its delimiters.
pub(crate) const GROUPS: &str = "fields";

/// Returns the texts of all groups; none if the line does not match.
fn extracted(regex: &Regex, line: &str) -> String {
    let line = format!("trim(TRAILING '\\r' FROM {line})");
    format!("extractGroups({line}, {})", sql::string(&regex.pattern))
}

/// Returns the value of each group. ClickHouse shows a group that takes no part in the match as one
/// without text: both are NULL.
fn groups(regex: &Regex, groups: &str) -> Vec<String> {
    let mut nulls = vec![""];
    nulls.extend(regex.nulls.iter().map(String::as_str));
    let value = |place: usize| {
        let text = format!("arrayElement({groups}, {place})");
        format!("if({text} IN ({}), NULL, {text})", sql::strings(&nulls))
    };
    (1..=regex.names.len()).map(value).collect()
}

/// Returns the rows of a file that has its own types.
fn typed(kind: &Kind, structure: &Structure, reader: Reader<'_>, batch_id: Uuid) -> Lines {
    match shapes(structure) {
        Some(shapes) => typed_values(kind, structure, shapes, reader, batch_id),
        None => typed_texts(kind, structure, reader, batch_id),
    }
}

/// Returns the shapes of all columns; `None` if the rows must be read by their JSON text.
fn shapes(structure: &Structure) -> Option<Vec<Shape>> {
    let is_own = |name: &str| name.starts_with(SURPLUS);
    if structure.is_empty() || structure.iter().any(|(name, _)| is_own(name)) {
        return None;
    }
    let types = structure.iter();
    types.map(|(_, of_type)| Shape::parse(of_type)).collect()
}

/// Returns rows whose values are those of the file. A text is made only of those that need one.
///
/// They are not gathered: this takes as long for 300 files of 300 rows, and twice the memory.
fn typed_values(
    kind: &Kind,
    structure: &Structure,
    shapes: Vec<Shape>,
    reader: Reader<'_>,
    batch_id: Uuid,
) -> Lines {
    // Names that no column has: those of a SELECT hide the names in its source.
    let own: Vec<String> = (1..=structure.len())
        .map(|place| sql::ident(&format!("{SURPLUS} {place}")))
        .collect();
    let renamed = structure
        .iter()
        .zip(&own)
        .map(|((name, _), own)| format!("{} AS {own}", sql::ident(name)));
    let renamed: Vec<String> = renamed.collect();
    let from = reader.rows(
        &renamed.join(", "),
        ROW_NUMBER,
        clickhouse_format(kind),
        &columns(structure),
    );
    let large = shapes.iter().zip(&own);
    let large: Vec<&str> = large
        .filter(|(shape, _)| shape.can_be_large())
        .map(|(_, own)| own.as_str())
        .collect();
    let bytes = if large.is_empty() {
        "0".to_owned()
    } else {
        format!("byteSize({})", large.join(", "))
    };
    let names = structure.iter().map(|(name, _)| name.clone());
    let line = valid_json_object(&own, structure);
    Lines {
        line,
        fields: Fields::Own(OwnFields::of_shapes(
            names.zip(own.into_iter().zip(shapes)),
            bytes,
        )),
        ..Lines::of_objects(from, batch_id)
    }
}

/// Returns rows that each have a JSON text, for types that a parser of JSON may refuse or change,
/// and for files without columns.
fn typed_texts(kind: &Kind, structure: &Structure, reader: Reader<'_>, batch_id: Uuid) -> Lines {
    // No column has this name, which stands for the text, and for the columns of an empty file.
    let own = sql::ident(SURPLUS);
    let (text, read) = if structure.is_empty() {
        (sql::string(EMPTY_OBJECT), format!("{own} Nullable(String)"))
    } else {
        let names = structure.iter().map(|(name, _)| sql::ident(name));
        let text = valid_json_object(&Vec::from_iter(names), structure);
        (text, columns(structure))
    };
    let format = clickhouse_format(kind);
    let rows = reader.rows(&format!("{text} AS {own}"), ROW_NUMBER, format, &read);
    let lines = format!("(SELECT {own} AS line, _path, _etag, _row_number FROM {rows})");
    Lines::of_objects(reader.gathered(lines), batch_id)
}

/// Returns the declarations of columns.
pub(crate) fn columns(structure: &Structure) -> String {
    let columns = structure
        .iter()
        .map(|(name, column_type)| format!("{} {column_type}", sql::ident(name)));
    columns.collect::<Vec<_>>().join(", ")
}

/// Returns the JSON object of these values, of which the names and types are those of `columns`. A
/// plain `tuple` loses names that are not identifiers.
pub(crate) fn json_object(values: &[String], columns: &str) -> String {
    format!(
        "toJSONString(CAST(tuple({}), {}))",
        values.join(", "),
        sql::string(&format!("Tuple({columns})"))
    )
}

/// Returns the JSON object of the values of these columns. No parser reads text that is not UTF-8.
fn valid_json_object(values: &[String], structure: &Structure) -> String {
    format!("toValidUTF8({})", json_object(values, &columns(structure)))
}

/// Returns the fields of rejects, of which the text is a line for some formats, and JSON for the
/// others. What is declared now applies, by the key, to what was rejected before.
///
/// Without such formats, these are lines of JSON.
pub(crate) fn of_rejects(lines: Lines, formats: &Formats) -> Lines {
    let declared = formats.declared();
    if !declared
        .iter()
        .any(|format| is_read_by_format(&format.kind))
    {
        return lines;
    }
    let mut sources = Vec::new();
    let mut texts = String::new();
    let mut reasons = String::new();
    for (format, place) in declared.iter().zip(1..) {
        let (Format { kind, .. }, Some(route)) = (format, &format.route) else {
            continue;
        };
        let on_route = route.sql();
        let (text, reason) = match kind {
            Kind::Regex(regex) => {
                let found = format!("{GROUPS}_{place}");
                sources.push(format!("{} AS {found}", extracted(regex, "line")));
                (text_of_match(regex, &found), NO_MATCH)
            }
            Kind::Delimited(delimited) => (delimited::text_of_reject(delimited), TOO_MANY_FIELDS),
            _ => ("line".to_owned(), ""),
        };
        texts += &format!("{on_route}, {text}, ");
        if !reason.is_empty() {
            reasons += &format!("{on_route}, {}, ", sql::string(reason));
        }
    }
    // Within conditions alone, the groups would be searched for once for each of their uses.
    let found = (1..=declared.len())
        .zip(declared)
        .filter(|(_, format)| matches!(format.kind, Kind::Regex(_)))
        .map(|(place, _)| format!("length({GROUPS}_{place})"));
    let found: Vec<String> = found.collect();
    let evaluated = if found.is_empty() {
        String::new()
    } else {
        format!("{} < 0, '', ", found.join(" + "))
    };
    sources.insert(0, "*".to_owned());
    Lines {
        from: format!("(SELECT {} FROM {})", sources.join(", "), lines.from),
        fields: Fields::Json(format!("multiIf({evaluated}{texts}line)")),
        problems: vec![(
            "json = ''".to_owned(),
            format!("multiIf({reasons}'not JSON')"),
        )],
        settings: super::format_settings::of_texts(),
        ..lines
    }
}

/// Returns whether the raw text of a reject of this kind is not read as a line of JSON.
fn is_read_by_format(kind: &Kind) -> bool {
    matches!(kind, Kind::Regex(_) | Kind::Delimited(_))
}

/// Returns the JSON text of a line with these groups; an empty text if it does not match.
fn text_of_match(regex: &Regex, found: &str) -> String {
    let structure = texts(&regex.names);
    let object = json_object(&groups(regex, found), &columns(&structure));
    format!("if(empty({found}), '', {object})")
}

/// Returns the structure of fields that are texts.
pub(crate) fn texts(names: &[String]) -> Vec<(String, String)> {
    let names = names.iter().cloned();
    names
        .map(|name| (name, "Nullable(String)".to_owned()))
        .collect()
}

#[cfg(test)]
mod tests;
