//! What a line is: which event type takes it, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Fields, LINE, Lines, TimeRange};
use crate::event_types::paths::{self, Path, PathTexts, PathValues};
use crate::event_types::{Catalog, Column, ColumnType, EventType, Otherwise, Source};
use crate::formats::{Formats, Kind};
use crate::sql;

/// How the values at declared paths are read from the columns of a SELECT.
pub(super) trait Access: PathValues {
    /// Returns the text at the first of these paths that exists, of type Nullable(String).
    fn first_text(&self, paths: &[Path]) -> String;

    /// Returns a condition: whether none of these paths exists.
    fn is_missing(&self, paths: &[Path]) -> String;

    /// Returns the value of this type at the first of these paths that exists, which is NULL where
    /// it cannot be read as such.
    fn read(&self, column_type: ColumnType, paths: &[Path]) -> String;

    /// Returns the same for a value that is known to be of this type.
    fn read_checked(&self, column_type: ColumnType, paths: &[Path]) -> String {
        self.read(column_type, paths)
    }
}

/// Returns the branches that yield the first event type whose rule matches.
pub(super) fn rules(catalog: &Catalog, values: &dyn Access) -> String {
    let branches = catalog.types().iter().map(|event_type| {
        let name = sql::string(&event_type.name);
        let rule = event_type.rule.sql(values);
        let rule = match &event_type.route {
            Some(route) => format!("{} AND ({rule})", route.sql()),
            None => rule,
        };
        format!("                {rule}, {name},")
    });
    branches.collect::<Vec<_>>().join("\n")
}

const TOO_LARGE: &str = "too large";
pub(crate) const BAD_UTF8: &str = "bad UTF-8";
const NOT_JSON: &str = "not JSON";
const NOT_AN_OBJECT: &str = "not an object";
/// A record of delimited text has more fields than there are names.
pub(crate) const TOO_MANY_FIELDS: &str = "too many fields";
/// A line does not match the regular expression of its format.
pub(crate) const NO_MATCH: &str = "no match";

/// Returns what can be wrong with a JSON text that no event type matches, in the order of the
/// checks.
fn unreadable(json: &str) -> [(String, &'static str); 3] {
    [
        (format!("NOT isValidUTF8({json})"), BAD_UTF8),
        (format!("NOT isValidJSON({json})"), NOT_JSON),
        (format!("JSONType({json}) != 'Object'"), NOT_AN_OBJECT),
    ]
}

/// Returns the reason for which a document is rejected that lacks the list of its records.
pub fn no_list(records: &[String]) -> String {
    format!("no list at {}", paths::display(records))
}

/// Returns the reasons for which records of declared formats are rejected, in addition to lines.
fn format_reasons(formats: &Formats) -> Vec<String> {
    let reasons = formats
        .declared()
        .iter()
        .filter_map(|format| match &format.kind {
            Kind::Documents { records } => records.as_deref().map(no_list),
            Kind::Delimited(_) => Some(TOO_MANY_FIELDS.to_owned()),
            Kind::Regex(_) => Some(NO_MATCH.to_owned()),
            Kind::JsonLines | Kind::Parquet | Kind::Avro | Kind::Orc => None,
        });
    reasons.collect()
}

fn missing(column: &Column) -> String {
    format!("missing {}", column.name)
}

fn invalid(column: &Column) -> String {
    format!("invalid {}", column.name)
}

fn out_of_range(column: &Column) -> String {
    format!("{} out of range", column.name)
}

/// Returns every reason for which a line is rejected.
pub fn rejection_reasons(catalog: &Catalog) -> Vec<String> {
    let values = &PathTexts;
    let required = read_values(catalog, values, EventType::required_columns);
    let times = read_values(catalog, values, EventType::partitioning_times);
    let of_lines = [TOO_LARGE, BAD_UTF8, NOT_JSON, NOT_AN_OBJECT];
    let mut reasons = of_lines.map(str::to_owned).to_vec();
    reasons.extend(format_reasons(catalog.formats()));
    reasons.extend(required.iter().map(|value| missing(value.column)));
    reasons.extend(
        required
            .iter()
            .filter(|value| value.can_be_invalid())
            .map(|value| invalid(value.column)),
    );
    reasons.extend(times.iter().map(|value| out_of_range(value.column)));
    reasons.sort_unstable();
    reasons.dedup();
    reasons
}

/// Returns the branches that yield '' for a line that becomes a row, and otherwise what is wrong
/// with it.
pub(super) fn verdicts(catalog: &Catalog, lines: &Lines, values: &dyn Access) -> String {
    let bytes = match &lines.fields {
        Fields::Json(_) => "length(line)",
        Fields::Own(_) => "bytes",
    };
    let mut branches = vec![format!(
        "{bytes} > {}, {}",
        lines.max_line_bytes,
        sql::string(TOO_LARGE)
    )];
    if matches!(lines.fields, Fields::Own(_)) && !lines.problems.is_empty() {
        branches.push("problem != '', problem".to_owned());
    }
    for value in read_values(catalog, values, EventType::required_columns) {
        let missing = sql::string(&missing(value.column));
        let reason = if value.can_be_invalid() {
            let invalid = sql::string(&invalid(value.column));
            format!("if({}, {missing}, {invalid})", value.is_missing)
        } else {
            missing
        };
        let taken = taken_by(&value.types, catalog);
        branches.push(format!("{taken} AND isNull({}), {reason}", value.read));
    }
    if let Some(TimeRange { start, end }) = lines.times {
        let moment = |seconds| format!("toDateTime64({seconds}, 0, 'UTC')");
        let (start, end) = (moment(start), moment(end));
        for ReadValue {
            column,
            read,
            read_checked,
            types,
            ..
        } in read_values(catalog, values, EventType::partitioning_times)
        {
            let taken = taken_by(&types, catalog);
            let reason = sql::string(&out_of_range(column));
            // An earlier branch rejects a required value that cannot be read.
            let read = if column.required { read_checked } else { read };
            branches.push(format!(
                "{taken} AND ifNull({read} < {start} OR {read} >= {end}, false), {reason}"
            ));
        }
    }
    branches.push("taken != '', ''".to_owned());
    if let Fields::Json(json) = &lines.fields {
        branches.extend(json_verdicts(lines, json));
    }
    branches.push("'no event type'".to_owned());
    branches
        .iter()
        .map(|branch| format!("            {branch}"))
        .collect::<Vec<_>>()
        .join(",\n")
}

/// Returns the branches for records that no event type matches, of which the fields are parsed from
/// this JSON text.
fn json_verdicts(lines: &Lines, json: &str) -> Vec<String> {
    let json = if json == LINE { LINE } else { "json" };
    let problems = lines.problems.iter();
    let unreadable = unreadable(json);
    let mut branches = vec![r"match(line, '^\\s*$'), 'blank'".to_owned()];
    branches.extend(problems.map(|(condition, reason)| format!("{condition}, {reason}")));
    branches.extend(
        unreadable.map(|(condition, reason)| format!("{condition}, {}", sql::string(reason))),
    );
    branches
}

/// How many bytes of an invalid or out-of-range value are kept beside its line.
const MAX_VALUE_BYTES: usize = 200;

/// Returns the columns, but for the declared values, of a record about which `verdict` has decided.
pub(super) fn outcome(catalog: &Catalog, lines: &Lines, values: &dyn Access) -> String {
    format!(
        "multiIf(verdict = '', taken, verdict = 'blank', 'blank', verdict = 'no event type', 'unmatched', 'rejected') AS kind,
    if(verdict = 'blank', '', verdict) AS reason,
    {bad_value} AS value,
    if(verdict = '' OR verdict = 'blank', '', line) AS raw,
    if({needs_hash}, sipHash128(trim(TRAILING '\\r' FROM line)), toFixedString('', 16)) AS line_hash,
    source_path, source_etag, row_number,
    toUUID({batch_id}) AS batch_id",
        bad_value = bad_value(catalog, values),
        needs_hash = needs_hash(catalog, values),
        batch_id = sql::id(lines.batch_id),
    )
}

/// Returns an expression for the text of the value for which a line is rejected; NULL if the line
/// is not rejected because of a value that it has.
pub(super) fn bad_value(catalog: &Catalog, values: &dyn Access) -> String {
    let required = read_values(catalog, values, EventType::required_columns).into_iter();
    let invalid_ones = required
        .filter(ReadValue::can_be_invalid)
        .map(|value| (invalid(value.column), value));
    let times = read_values(catalog, values, EventType::partitioning_times).into_iter();
    let out_of_range = times.map(|value| (out_of_range(value.column), value));
    let mut bad_values: BTreeMap<&str, BadValue> = BTreeMap::new();
    for (reason, value) in invalid_ones.chain(out_of_range) {
        let bad = bad_values.entry(&value.column.name).or_default();
        bad.reasons.insert(reason);
        bad.texts.entry(value.text).or_default().extend(value.types);
    }
    if bad_values.is_empty() {
        return "NULL".to_owned();
    }
    // Without AND: in a condition such as `verdict = … AND …`, ClickHouse compares whole subqueries
    // during planning, and these contain the name of every object.
    let branches: Vec<String> = bad_values
        .into_values()
        .map(|BadValue { reasons, texts }| {
            let text = match Vec::from_iter(&texts).as_slice() {
                [(text, _)] => (*text).clone(),
                texts => {
                    let texts = texts.iter().map(|(text, types)| {
                        format!("taken IN ({}), {text}", sql::strings(*types))
                    });
                    format!("multiIf({}, NULL)", texts.collect::<Vec<_>>().join(", "))
                }
            };
            format!("verdict IN ({}), {text}", sql::strings(reasons))
        })
        .collect();
    let branches = branches.join(", ");
    format!("toValidUTF8(substring(multiIf({branches}, NULL), 1, {MAX_VALUE_BYTES}))")
}

/// The reasons for which lines can be rejected in the columns of one name.
#[derive(Default)]
struct BadValue<'a> {
    reasons: BTreeSet<String>,
    /// The texts that such columns read, as expressions, each with the event types of these
    /// columns.
    texts: BTreeMap<String, BTreeSet<&'a str>>,
}

/// A value that a column of one or more event types reads from its paths.
struct ReadValue<'a> {
    column: &'a Column,
    /// The value's text in the line, an expression.
    text: String,
    /// A condition: whether the line has no such value.
    is_missing: String,
    /// The value as the column reads it, an expression; NULL where it cannot be read.
    read: String,
    /// The same if the value can be read.
    read_checked: String,
    types: Vec<&'a str>,
}

impl ReadValue<'_> {
    /// Returns whether the text can be present but not readable as the column's type.
    fn can_be_invalid(&self) -> bool {
        !self.column.column_type.is_text()
    }
}

/// Returns the values of these columns. Event types that read one in the same way, under the same
/// name, share it.
fn read_values<'a>(
    catalog: &'a Catalog,
    values: &dyn Access,
    columns: impl Fn(&'a EventType) -> Vec<&'a Column>,
) -> Vec<ReadValue<'a>> {
    let mut found: Vec<ReadValue<'a>> = Vec::new();
    for event_type in catalog.types() {
        for column in columns(event_type) {
            let Source::Paths { paths, .. } = &column.source else {
                continue;
            };
            let read = values.read(column.column_type, paths);
            match found.iter_mut().find(|other| {
                other.read == read
                    && other.column.name == column.name
                    && other.column.required == column.required
            }) {
                Some(other) => other.types.push(&event_type.name),
                None => found.push(ReadValue {
                    column,
                    text: values.first_text(paths),
                    is_missing: values.is_missing(paths),
                    read,
                    read_checked: values.read_checked(column.column_type, paths),
                    types: vec![&event_type.name],
                }),
            }
        }
    }
    found
}

/// Returns a condition: whether some column uses the hash of the line.
fn needs_hash(catalog: &Catalog, values: &dyn Access) -> String {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for event_type in catalog.types() {
        for column in &event_type.columns {
            let Source::Paths {
                paths,
                otherwise: Some(Otherwise::LineHash),
            } = &column.source
            else {
                continue;
            };
            let text = values.read(column.column_type, paths);
            let text = format!("empty(ifNull({text}, ''))");
            match groups.iter_mut().find(|(other, _)| *other == text) {
                Some((_, types)) => types.push(&event_type.name),
                None => groups.push((text, vec![&event_type.name])),
            }
        }
    }
    if groups.is_empty() {
        return "false".to_owned();
    }
    let parts = groups.into_iter().map(|(text, mut types)| {
        types.dedup();
        format!("{} AND {text}", taken_by(&types, catalog))
    });
    parts.collect::<Vec<_>>().join(" OR ")
}

/// Returns a condition: whether the line belongs to one of these event types.
pub(super) fn taken_by(types: &[&str], catalog: &Catalog) -> String {
    if types.len() == catalog.types().len() {
        "taken != ''".to_owned()
    } else {
        format!("taken IN ({})", sql::strings(types))
    }
}
