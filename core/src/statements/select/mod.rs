//! The SELECTs: from lines to `landing`, and from `landing` to the tables.
//!
//! `landing` has a row for each line: the declared values, each in a column, and what the line is
//! (its `kind`: an event type's name, `rejected`, `unmatched` or `blank`). The SELECTs that fill
//! the tables read from it, either as a table (in materialized views) or as the SELECT that would
//! fill it ([`per_type_select`]), so that both produce the same rows.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::event_types::paths::{self, Path};
use crate::event_types::{Catalog, Column, EventType, Otherwise, Source};
use crate::formats::{Formats, Kind};
use crate::sql;
use crate::statements::framing::{OBJECT_DIGITS, ROW_DIGITS};

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
    /// With [`Fields::Texts`], they are expressions over the source. They are checked before the
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
    Texts(Texts),
}

/// The fields of a record, each as an expression of type `Nullable(String)` over the source.
///
/// None is inside of a condition: ClickHouse would evaluate what it is computed from, such as the
/// groups of a regular expression, once for each of them (100 times as long, measured).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// By the name of the field, which is the only key of its path.
    pub values: BTreeMap<String, String>,
    /// The size of the record in bytes, an expression.
    pub bytes: String,
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
}

/// A table that is filled from `landing`.
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

/// Returns the columns of `landing`, in the order of [`landing_select`], with their types.
pub fn landing_columns(catalog: &Catalog) -> Vec<(String, &'static str)> {
    let values = catalog.tree().leaves().into_iter();
    let values = values.map(|path| (paths::display(&path), paths::TEXT));
    let of_the_line = [
        ("kind", "LowCardinality(String)"),
        ("reason", "LowCardinality(String)"),
        ("value", paths::TEXT),
        ("raw", "String"),
        ("line_hash", "FixedString(16)"),
        ("source_path", "String"),
        ("source_etag", "String"),
        ("row_number", "UInt64"),
        ("batch_id", "UUID"),
    ];
    values
        .chain(of_the_line.map(|(name, column_type)| (name.to_owned(), column_type)))
        .collect()
}

/// Returns the SELECT from lines to the rows of `landing`.
///
/// Each line is parsed once. More expensive expressions (validity, the paths of an ambiguous line,
/// the hash) are behind conditions, so that ClickHouse evaluates them only for the lines that need
/// them.
pub fn landing_select(catalog: &Catalog, lines: &Lines) -> String {
    let tree = catalog.tree();
    let leaves = tree.leaves().into_iter();
    let columns: Vec<String> = leaves.map(|path| paths::column(&path)).collect();
    let read = match &lines.fields {
        Fields::Json(json) => parsed_values(catalog, lines, json),
        Fields::Texts(texts) => text_values(catalog, lines, texts),
    };
    format!(
        "SELECT
    {columns},
    multiIf(verdict = '', taken, verdict = 'blank', 'blank', verdict = 'no event type', 'unmatched', 'rejected') AS kind,
    if(verdict = 'blank', '', verdict) AS reason,
    {bad_value} AS value,
    if(verdict = '' OR verdict = 'blank', '', line) AS raw,
    if({needs_hash}, sipHash128(trim(TRAILING '\\r' FROM line)), toFixedString('', 16)) AS line_hash,
    source_path, source_etag, row_number,
    toUUID({batch_id}) AS batch_id
FROM (
    SELECT
        *,
        multiIf(
{verdicts}
        ) AS verdict
    FROM (
        SELECT
            *,
            multiIf(
{rules}
                ''
            ) AS taken
        FROM (
{read}
        )
    )
)",
        needs_hash = needs_hash(catalog),
        batch_id = sql::id(lines.batch_id),
        bad_value = bad_value(catalog),
        verdicts = verdicts(catalog, lines),
        rules = rules(catalog),
        columns = columns.join(",\n    "),
    )
}

/// Returns the SELECT of the declared values of each record, which are parsed from this JSON text.
fn parsed_values(catalog: &Catalog, lines: &Lines, json: &str) -> String {
    let tree = catalog.tree();
    format!(
        "            SELECT
                {passed_on}, source_path, source_etag, row_number,
                {values}
            FROM (
                SELECT
                    {line} AS line,
                    if(length(line) > {max_line_bytes}, '', {json}) AS json,
                    {source_path} AS source_path,
                    trim(BOTH '\"' FROM {source_etag}) AS source_etag,
                    {row_number} AS row_number,
                    JSONExtract(json, {tuple_type}) AS parsed,
                    {absent} AS absent
                FROM {from}{filter}
            )",
        passed_on = if json == LINE { LINE } else { "line, json" },
        values = tree.values("parsed", "absent").join(",\n                "),
        absent = tree.absent("json", "parsed"),
        max_line_bytes = lines.max_line_bytes,
        line = lines.line,
        source_path = lines.source_path,
        source_etag = lines.source_etag,
        row_number = lines.row_number,
        tuple_type = sql::string(&tree.tuple_type()),
        from = lines.from,
        filter = filter(lines, 16),
    )
}

/// Returns the SELECT of the declared values of each record, which are among its fields.
fn text_values(catalog: &Catalog, lines: &Lines, texts: &Texts) -> String {
    let nothing = format!("CAST(NULL, {})", sql::string(paths::TEXT));
    let values = catalog.tree().leaves().into_iter().map(|path| {
        let text = match path.as_slice() {
            [name] => texts.values.get(name),
            _ => None,
        };
        let text = text.unwrap_or(&nothing);
        format!("{text} AS {}", paths::column(&path))
    });
    let problems = lines.problems.iter();
    let problems: String = problems
        .map(|(condition, reason)| format!("{condition}, {reason}, "))
        .collect();
    format!(
        "            SELECT
                {line} AS line,
                {bytes} AS bytes,
                multiIf({problems}'') AS problem,
                {source_path} AS source_path,
                trim(BOTH '\"' FROM {source_etag}) AS source_etag,
                {row_number} AS row_number,
                {values}
            FROM {from}{filter}",
        line = lines.line,
        bytes = texts.bytes,
        source_path = lines.source_path,
        source_etag = lines.source_etag,
        row_number = lines.row_number,
        values = values.collect::<Vec<_>>().join(",\n                "),
        from = lines.from,
        filter = filter(lines, 12),
    )
}

/// Returns the WHERE clause of a source, on a line of its own.
fn filter(lines: &Lines, indentation: usize) -> String {
    let filter = lines.filter.as_ref();
    filter.map_or_else(String::new, |filter| {
        format!("\n{:indentation$}WHERE {filter}", "")
    })
}

/// Returns the branches that yield the first event type whose rule matches.
fn rules(catalog: &Catalog) -> String {
    let branches = catalog.types().iter().map(|event_type| {
        let name = sql::string(&event_type.name);
        let rule = event_type.rule.sql();
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
    let required = read_values(catalog, EventType::required_columns);
    let times = read_values(catalog, EventType::partitioning_times);
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
fn verdicts(catalog: &Catalog, lines: &Lines) -> String {
    let bytes = match &lines.fields {
        Fields::Json(_) => "length(line)",
        Fields::Texts(_) => "bytes",
    };
    let mut branches = vec![format!(
        "{bytes} > {}, {}",
        lines.max_line_bytes,
        sql::string(TOO_LARGE)
    )];
    if matches!(lines.fields, Fields::Texts(_)) {
        branches.push("problem != '', problem".to_owned());
    }
    for value in read_values(catalog, EventType::required_columns) {
        let missing = sql::string(&missing(value.column));
        let reason = if value.can_be_invalid() {
            let invalid = sql::string(&invalid(value.column));
            format!("if(isNull({}), {missing}, {invalid})", value.text)
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
            text,
            read,
            types,
        } in read_values(catalog, EventType::partitioning_times)
        {
            let taken = taken_by(&types, catalog);
            let reason = sql::string(&out_of_range(column));
            // An earlier branch rejects a required value that cannot be read.
            let read = if column.required {
                column.column_type.read_checked(&text)
            } else {
                read
            };
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

/// Returns an expression for the text of the value for which a line is rejected; NULL if the line
/// is not rejected because of a value that it has.
fn bad_value(catalog: &Catalog) -> String {
    let required = read_values(catalog, EventType::required_columns).into_iter();
    let invalid_ones = required
        .filter(ReadValue::can_be_invalid)
        .map(|value| (invalid(value.column), value));
    let times = read_values(catalog, EventType::partitioning_times).into_iter();
    let out_of_range = times.map(|value| (out_of_range(value.column), value));
    let mut values: BTreeMap<&str, BadValue> = BTreeMap::new();
    for (reason, value) in invalid_ones.chain(out_of_range) {
        let bad = values.entry(&value.column.name).or_default();
        bad.reasons.insert(reason);
        bad.texts.entry(value.text).or_default().extend(value.types);
    }
    if values.is_empty() {
        return "NULL".to_owned();
    }
    // Without AND: in a condition such as `verdict = … AND …`, ClickHouse compares whole subqueries
    // during planning, and these contain the name of every object.
    let branches: Vec<String> = values
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
    /// The value as the column reads it, an expression; NULL where it cannot be read.
    read: String,
    types: Vec<&'a str>,
}

impl ReadValue<'_> {
    /// Returns whether the text can be present but not readable as the column's type.
    fn can_be_invalid(&self) -> bool {
        self.read != self.text
    }
}

/// Returns the values of these columns. Event types that read one in the same way, under the same
/// name, share it.
fn read_values<'a>(
    catalog: &'a Catalog,
    columns: impl Fn(&'a EventType) -> Vec<&'a Column>,
) -> Vec<ReadValue<'a>> {
    let mut values: Vec<ReadValue<'a>> = Vec::new();
    for event_type in catalog.types() {
        for column in columns(event_type) {
            let Source::Paths { paths, .. } = &column.source else {
                continue;
            };
            let text = first_of(paths);
            let read = column.column_type.read(&text);
            match values.iter_mut().find(|other| {
                other.read == read
                    && other.column.name == column.name
                    && other.column.required == column.required
            }) {
                Some(other) => other.types.push(&event_type.name),
                None => values.push(ReadValue {
                    column,
                    text,
                    read,
                    types: vec![&event_type.name],
                }),
            }
        }
    }
    values
}

/// Returns a condition: whether some column uses the hash of the line.
fn needs_hash(catalog: &Catalog) -> String {
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
            let text = format!("empty(ifNull({}, ''))", first_of(paths));
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

fn taken_by(types: &[&str], catalog: &Catalog) -> String {
    if types.len() == catalog.types().len() {
        "taken != ''".to_owned()
    } else {
        format!("taken IN ({})", sql::strings(types))
    }
}

/// Returns the SELECT from `landing`, given as a table expression, to the rows of a table.
pub fn view_select(target: Target<'_>, landing: &str) -> String {
    match target {
        Target::EventType(event_type) => {
            let columns = event_type
                .columns
                .iter()
                .map(|column| format!("    {} AS {},\n", value(column), sql::ident(&column.name)));
            format!(
                "SELECT\n{}    source_path, source_etag, batch_id\nFROM {landing}\nWHERE kind = {}",
                columns.collect::<String>(),
                sql::string(&event_type.name)
            )
        }
        Target::RejectedLines | Target::UnmatchedStatements => format!(
            "SELECT {}\nFROM {landing}\nWHERE kind = {}",
            target.columns().join(", "),
            sql::string(target.kind().unwrap_or_default())
        ),
        Target::ObjectRows => format!(
            "SELECT batch_id, source_path, source_etag, kind, count() AS rows\n\
             FROM {landing}\n\
             GROUP BY batch_id, source_path, source_etag, kind"
        ),
    }
}

/// Returns the SELECT from lines to the rows of one table, for use without views.
pub fn per_type_select(catalog: &Catalog, target: Target<'_>, lines: &Lines) -> String {
    view_select(target, &parsed_lines(catalog, lines))
}

/// Returns a table expression for the rows of `landing` that these lines would become.
///
/// The LIMIT does not limit anything: it keeps the planner from pushing the condition on `kind`
/// down to the lines. To do so, it would expand the whole expression of `kind` once for each use,
/// which takes a second for a query that otherwise takes a tenth of a second.
pub fn parsed_lines(catalog: &Catalog, lines: &Lines) -> String {
    let select = landing_select(catalog, lines);
    format!("(\n{select}\nLIMIT {}\n)", i64::MAX)
}

/// Returns a column's value, from a row of `landing`.
fn value(column: &Column) -> String {
    let kind = column.column_type;
    match &column.source {
        Source::Paths {
            paths,
            otherwise: None,
        } => {
            let text = first_of(paths);
            let read = if column.required {
                kind.read_checked(&text)
            } else {
                kind.read(&text)
            };
            kind.or_default(&read)
        }
        Source::Paths {
            paths,
            otherwise: Some(Otherwise::LineHash),
        } => {
            let text = format!("ifNull({}, '')", first_of(paths));
            format!("if(empty({text}), lower(hex(line_hash)), {text})")
        }
        Source::Expression { template, inputs } => {
            let expression = fill(template.trim(), |name| {
                let input = inputs.iter().find(|(input, _)| input == name);
                input.map_or_else(|| name.to_owned(), |(_, paths)| first_of(paths))
            });
            kind.or_default(&expression)
        }
    }
}

/// Returns a column's value as its table stores it, from a row of `landing`.
pub fn stored_value(column: &Column) -> String {
    let column_type = column.column_type.to_string();
    format!("CAST({}, {})", value(column), sql::string(&column_type))
}

/// Returns the template with each `{name}` replaced. The replacements are not expanded again.
fn fill(template: &str, replace: impl Fn(&str) -> String) -> String {
    let mut parts = template.split('{');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').unwrap_or((part, ""));
        out.push_str(&replace(name));
        out.push_str(rest);
    }
    out
}

/// Returns the text at the first of these paths that exists.
fn first_of(paths: &[Path]) -> String {
    let texts: Vec<_> = paths.iter().map(|path| paths::column(path)).collect();
    match texts.as_slice() {
        [one] => one.clone(),
        many => format!("coalesce({})", many.join(", ")),
    }
}

#[cfg(test)]
mod tests;
