//! The records of delimited text: CSV, TSV, and lines that are cut at each delimiter.

use uuid::Uuid;

use crate::event_types::paths;
use crate::formats::{Delimited, SURPLUS};
use crate::sql;
use crate::statements::records::{
    EMPTY_OBJECT, GROUPS, ROW_NUMBER, Reader, Structure, columns, json_object, texts,
};
use crate::statements::select::{BAD_UTF8, BLANK, Fields, Lines, OwnFields, TOO_MANY_FIELDS};

/// Returns the records of text with these fields. Fields are found by their place, since ClickHouse
/// ignores those whose name it does not know, and those beyond the last name.
///
/// A record with too few fields has NULL in the rest.
pub(crate) fn records(
    declared: &Delimited,
    structure: &Structure,
    reader: Reader<'_>,
    batch_id: Uuid,
) -> Lines {
    let names: Vec<String> = structure.iter().map(|(name, _)| name.clone()).collect();
    if declared.quoted {
        quoted(declared, &names, reader, batch_id)
    } else {
        split(declared, &names, reader, batch_id)
    }
}

/// How many fields beyond the names are read. ClickHouse ignores the others, and they are noticed only
/// if one of these is not empty.
const SURPLUS_FIELDS: usize = 8;
/// The column with a line as it is in the object.
const TEXT: &str = "text";

/// Returns the records of the format CSV, of which quoted fields can contain line breaks. They are
/// numbered from 0 after the header.
fn quoted(declared: &Delimited, names: &[String], reader: Reader<'_>, batch_id: Uuid) -> Lines {
    let places: Vec<String> = (1..=names.len()).map(|place| format!("c{place}")).collect();
    let rest: Vec<String> = (1..=SURPLUS_FIELDS)
        .map(|place| format!("rest{place}"))
        .collect();
    let read = [&places[..], &rest].concat();
    let from = reader.rows("*", ROW_NUMBER, "CSV", &columns(&texts(&read)));
    let nulls = Nulls::of(declared);
    let mut values: Vec<String> = places.iter().map(|column| nulls.applied(column)).collect();
    let all = concatenated(&read);
    let bytes = format!("length({all}) - {}", read.len() - 1);
    let mut blank = format!("{bytes} = 0");
    if let Some(first) = places.first() {
        blank += &comment(declared, &format!("ifNull({first}, '')"));
        if has_byte_order_mark(declared) {
            values[0] = nulls.applied(&without_byte_order_mark(first));
        }
    }
    if nulls.is_empty_null
        && let (Some(last), Some(value)) = (places.last(), values.last_mut())
    {
        // ClickHouse takes no empty field at the end of a line for NULL if more columns are declared.
        // Whether it was quoted is not known.
        *value = format!("if({last} = '' AND isNull(rest1), NULL, {value})");
    }
    let rest = rest.iter().map(|column| format!("ifNull({column}, '')"));
    let rest = format!(
        "concatWithSeparator({}, {})",
        sql::string(&declared.delimiter.to_string()),
        rest.collect::<Vec<_>>().join(", ")
    );
    let rest = format!(
        "trim(TRAILING {} FROM {rest})",
        sql::string(&declared.delimiter.to_string())
    );
    let surplus = format!("notEmpty({rest})");
    Lines {
        line: text(names, &values, &surplus, &rest),
        problems: vec![
            (blank, sql::string(BLANK)),
            bad_utf8(&all),
            (surplus, sql::string(TOO_MANY_FIELDS)),
        ],
        fields: Fields::Own(OwnFields::of_texts(
            names.iter().cloned().zip(values),
            bytes,
        )),
        ..Lines::of_objects(from, batch_id)
    }
}

/// Returns lines that are cut at each delimiter. They are numbered as in the object: a header on the
/// first line has the number 0.
fn split(declared: &Delimited, names: &[String], reader: Reader<'_>, batch_id: Uuid) -> Lines {
    let lines = reader.rows("line", ROW_NUMBER, "LineAsString", "line String");
    let lines = reader.gathered(lines);
    let delimiter = sql::string(&declared.delimiter.to_string());
    let mut cut = "trim(TRAILING '\\r' FROM line)".to_owned();
    if has_byte_order_mark(declared) {
        cut = without_byte_order_mark(&cut);
    }
    let skipped = declared.skip_lines + u32::from(declared.header);
    // Not `line`, which is what the JSON text of a record is called.
    let from = format!(
        "(SELECT line AS {TEXT}, _path, _etag, _row_number, \
         splitByChar({delimiter}, {cut}) AS {GROUPS} \
         FROM {lines} WHERE _row_number >= {skipped})"
    );
    let nulls: Vec<&str> = declared.nulls.iter().map(String::as_str).collect();
    let values = (1..=names.len()).map(|place| {
        let text = format!("arrayElement({GROUPS}, {place})");
        let is_null = if nulls.is_empty() {
            String::new()
        } else {
            format!(" OR {text} IN ({})", sql::strings(&nulls))
        };
        format!("if(length({GROUPS}) < {place}{is_null}, NULL, {text})")
    });
    let values: Vec<String> = values.collect();
    let count = names.len();
    let surplus = format!("length({GROUPS}) > {count}");
    let rest = format!(
        "arrayStringConcat(arraySlice({GROUPS}, {}), {delimiter})",
        count + 1
    );
    let blank = format!("match({TEXT}, '^\\\\s*$'){}", comment(declared, TEXT));
    Lines {
        line: text(names, &values, &surplus, &rest),
        problems: vec![
            (blank, sql::string(BLANK)),
            bad_utf8(TEXT),
            (surplus, sql::string(TOO_MANY_FIELDS)),
        ],
        // Within conditions alone, each line would be cut once for each of them.
        fields: Fields::Own(OwnFields::of_texts(
            names.iter().cloned().zip(values),
            format!("length({TEXT}) + ignore({GROUPS})"),
        )),
        ..Lines::of_objects(from, batch_id)
    }
}

/// Returns the JSON text of a record. What has no name is kept under a key of its own, so that a
/// replay also finds it.
fn text(names: &[String], values: &[String], has_surplus: &str, surplus: &str) -> String {
    let object = |names: &[String], values: &[String]| {
        if names.is_empty() {
            sql::string(EMPTY_OBJECT)
        } else {
            json_object(values, &columns(&texts(names)))
        }
    };
    let with_surplus = object(
        &[names, &[SURPLUS.to_owned()]].concat(),
        &[values, &[surplus.to_owned()]].concat(),
    );
    format!(
        "if({has_surplus}, {with_surplus}, {})",
        object(names, values)
    )
}

/// Returns the JSON text of a reject, with what is now declared as NULL; an empty text if it has too
/// many fields.
pub(crate) fn text_of_reject(declared: &Delimited) -> String {
    let has_surplus = format!("JSONHas(line, {})", sql::string(SURPLUS));
    let nulls: Vec<&str> = declared.nulls.iter().map(String::as_str).collect();
    // Whether an empty field was quoted is in the text.
    let nulls: Vec<&str> = nulls.into_iter().filter(|text| !text.is_empty()).collect();
    if nulls.is_empty() {
        return format!("if({has_surplus}, '', line)");
    }
    format!(
        "if({has_surplus}, '', toJSONString(mapApply((name, value) -> \
         (name, if(value IN ({}), NULL, value)), \
         JSONExtract(line, 'Map(String, {})'))))",
        sql::strings(&nulls),
        paths::TEXT
    )
}

/// Returns the rest of a condition: or whether this text begins as a comment.
fn comment(declared: &Delimited, text: &str) -> String {
    let comment = declared.comment.as_ref();
    comment.map_or_else(String::new, |comment| {
        format!(" OR startsWith({text}, {})", sql::string(comment))
    })
}

/// Returns the problem of a record whose text is not valid UTF-8.
pub(crate) fn bad_utf8(text: &str) -> (String, String) {
    (format!("NOT isValidUTF8({text})"), sql::string(BAD_UTF8))
}

/// Returns the texts of all fields, with a comma between two of them: a character that is cut between
/// two fields stays cut. One function for all fields takes half the time of one for each of them.
/// The text in a field that is NULL is empty.
fn concatenated(columns: &[String]) -> String {
    let columns = columns.iter();
    let texts = columns.map(|column| format!("assumeNotNull({column})"));
    format!(
        "concatWithSeparator(',', {})",
        texts.collect::<Vec<_>>().join(", ")
    )
}

/// Returns whether the first record can begin with a byte order mark: a line that is skipped takes
/// it along.
fn has_byte_order_mark(declared: &Delimited) -> bool {
    !declared.header && declared.skip_lines == 0
}

/// Returns a text without the byte order mark with which an object can begin.
fn without_byte_order_mark(text: &str) -> String {
    format!(
        "if(_row_number = 0 AND startsWith({text}, '\\xEF\\xBB\\xBF'), substring({text}, 4), {text})"
    )
}

/// The texts that stand for NULL in quoted text.
///
/// ClickHouse takes one of them, and the empty text, as NULL only where they are not quoted. The
/// others are compared afterwards, quoted or not.
pub(crate) struct Nulls<'a> {
    /// The one that ClickHouse recognises.
    pub(crate) own: &'a str,
    pub(crate) is_empty_null: bool,
    others: Vec<&'a str>,
}

impl<'a> Nulls<'a> {
    pub(crate) fn of(declared: &'a Delimited) -> Self {
        let mut texts = declared.nulls.iter().map(String::as_str);
        let is_empty_null = texts.clone().any(str::is_empty);
        let own = texts.find(|text| !text.is_empty());
        // A text that is in no field.
        let nothing = if is_empty_null { "" } else { SURPLUS };
        Self {
            own: own.unwrap_or(nothing),
            is_empty_null,
            others: texts.filter(|text| !text.is_empty()).collect(),
        }
    }

    /// Returns the value of a column.
    fn applied(&self, column: &str) -> String {
        if self.others.is_empty() {
            return column.to_owned();
        }
        format!(
            "if({column} IN ({}), NULL, {column})",
            sql::strings(&self.others)
        )
    }
}
