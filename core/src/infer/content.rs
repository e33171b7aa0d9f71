//! Finds the format of content, and its records.

use serde_json::{Deserializer, Map, Value};

use super::delimited::{self, Table};
use crate::event_types::Path;
use crate::formats::{Seen, sniff};

/// The decompressed beginning of a file or an object.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its path or URL, for messages.
    pub name: String,
    pub content: Vec<u8>,
    /// Whether there is more of it.
    pub is_cut: bool,
}

/// How the records of content are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    JsonLines,
    /// JSON objects, or the elements of a list in each of them.
    Documents {
        records: Option<Path>,
    },
    Delimited(Table),
}

/// The records of a sample.
#[derive(Debug, Clone)]
pub struct Content {
    pub found: Found,
    /// Objects; of delimited text, with texts and nulls as values.
    pub records: Vec<Value>,
    /// The number of records that cannot be read.
    pub unreadable: u64,
}

/// The number of bytes that show the delimiter: at least some lines.
const SNIFFED_BYTES: usize = 64 << 10;

/// Reads the records of these sources, which must have the same format. Of each, it takes at most
/// the same share of `max_records`, evenly spaced.
///
/// # Errors
///
/// Names the source whose format cannot be read, or is not that of the others.
pub fn read(sources: &[Source], max_records: usize) -> Result<Content, String> {
    let is_blank = |source: &&Source| source.content.iter().all(u8::is_ascii_whitespace);
    let sources: Vec<&Source> = sources.iter().filter(|source| !is_blank(source)).collect();
    let share = max_records.div_ceil(sources.len().max(1));
    let mut parts: Vec<(&Source, Content)> = Vec::new();
    for source in &sources {
        let mut part = read_one(source)?;
        part.records = spread(part.records, share);
        if let Some((first, other)) = parts.first()
            && !is_alike(&part.found, &other.found)
        {
            return Err(format!(
                "{} and {} have different formats ({} and {}); infer the types of each alone",
                first.name,
                source.name,
                title(&other.found),
                title(&part.found)
            ));
        }
        parts.push((source, part));
    }
    let found = found_of(&parts).ok_or("there are no records in the sample")?;
    let unreadable = parts.iter().map(|(_, part)| part.unreadable).sum();
    let records = parts.into_iter().flat_map(|(_, part)| part.records);
    let records: Vec<Value> = records.collect();
    let content = match envelope(&records, sources.len()) {
        Some(key) if !matches!(found, Found::Delimited(_)) => Content {
            records: spread(open(records, &key), max_records),
            found: Found::Documents {
                records: Some(vec![key]),
            },
            unreadable,
        },
        _ => Content {
            found,
            records,
            unreadable,
        },
    };
    if content.records.is_empty() {
        return Err("there are no records in the sample that can be read".to_owned());
    }
    Ok(content)
}

/// Returns at most this number of records, evenly spaced.
fn spread(records: Vec<Value>, count: usize) -> Vec<Value> {
    let all = records.len();
    if all <= count {
        return records;
    }
    let is_taken = |place: usize| place * count / all != (place + 1) * count / all;
    let records = records.into_iter().enumerate();
    let taken = records.filter(|(place, _)| is_taken(*place));
    taken.map(|(_, record)| record).collect()
}

fn is_alike(one: &Found, other: &Found) -> bool {
    match (one, other) {
        (Found::Delimited(one), Found::Delimited(other)) => {
            one.delimiter == other.delimiter && one.header == other.header
        }
        // A file with one document on one line is both.
        (Found::Delimited(_), _) | (_, Found::Delimited(_)) => false,
        _ => true,
    }
}

/// Returns what holds for all parts.
fn found_of(parts: &[(&Source, Content)]) -> Option<Found> {
    let mut found = parts.iter().map(|(_, part)| part.found.clone());
    let first = found.next()?;
    Some(found.fold(first, |found, next| match (found, next) {
        (Found::JsonLines, next) => next,
        (Found::Delimited(found), Found::Delimited(next)) => Found::Delimited(found.with(next)),
        (found, _) => found,
    }))
}

/// Returns what content of this kind is called.
pub(super) fn title(found: &Found) -> &'static str {
    match found {
        Found::JsonLines => "JSON lines",
        Found::Documents { records: None } => "JSON documents",
        Found::Documents { records: Some(_) } => "JSON documents with a list of records",
        Found::Delimited(table) if table.delimiter == '\t' => "TSV",
        Found::Delimited(_) => "CSV",
    }
}

fn read_one(source: &Source) -> Result<Content, String> {
    let content = source
        .content
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(&source.content);
    let start = &content[..content.len().min(SNIFFED_BYTES)];
    let seen = sniff(start);
    if let Some(delimiter) = delimited::delimiter(start, seen) {
        return delimited::read(content, delimiter, source);
    }
    match seen {
        Seen::JsonLines | Seen::JsonObject | Seen::JsonArray => {
            lines(content, source).map_or_else(|| documents(content, source), Ok)
        }
        seen @ (Seen::Parquet | Seen::Avro | Seen::Orc | Seen::Arrow) => Err(format!(
            "{} looks like {seen}, which has types of its own and is not read here; declare it in \
             formats.yaml, and see its columns in ClickHouse with DESCRIBE",
            source.name
        )),
        seen => Err(format!(
            "{} looks like {seen}; JSON, CSV and TSV can be read, and lines of another kind need a \
             `regex` in formats.yaml",
            source.name
        )),
    }
}

/// Returns the records of JSON lines; `None` if the first line is not an object.
fn lines(content: &[u8], source: &Source) -> Option<Content> {
    let mut lines: Vec<&[u8]> = content.split(|byte| *byte == b'\n').collect();
    // The last one may be a part of a line.
    if source.is_cut && lines.len() > 1 {
        lines.pop();
    }
    let is_blank = |line: &&[u8]| line.iter().all(u8::is_ascii_whitespace);
    let mut lines = lines.into_iter().filter(|line| !is_blank(line)).peekable();
    object(lines.peek()?)?;
    let (mut records, mut unreadable) = (Vec::new(), 0);
    for line in lines {
        match object(line) {
            Some(record) => records.push(record),
            None => unreadable += 1,
        }
    }
    Some(Content {
        found: Found::JsonLines,
        records,
        unreadable,
    })
}

fn object(text: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_slice(text).ok()?;
    value.is_object().then_some(value)
}

/// Returns the records of JSON objects one after the other, and of arrays.
fn documents(content: &[u8], source: &Source) -> Result<Content, String> {
    let mut rest = content.trim_ascii_start();
    let mut records = Vec::new();
    let mut unreadable = 0;
    while !rest.is_empty() {
        // The end of one array, and the beginning of another, are between their elements.
        if let [b'[' | b']' | b',', after @ ..] = rest {
            rest = after.trim_ascii_start();
            continue;
        }
        let mut values = Deserializer::from_slice(rest).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                match value {
                    Value::Object(_) => records.push(value),
                    Value::Null => {}
                    _ => unreadable += 1,
                }
                rest = rest[values.byte_offset()..].trim_ascii_start();
            }
            Some(Err(_)) if source.is_cut && !records.is_empty() => break,
            Some(Err(_)) if source.is_cut => {
                return Err(format!(
                    "the first document of {} is larger than what is read of it; raise --bytes",
                    source.name
                ));
            }
            Some(Err(error)) => {
                return Err(format!(
                    "{} looks like JSON, but it is not: {error} (after {} records)",
                    source.name,
                    records.len()
                ));
            }
            None => break,
        }
    }
    Ok(Content {
        found: Found::Documents { records: None },
        records,
        unreadable,
    })
}

/// The keys of lists of records, in documents of which a file can have several.
const LISTS: [&str; 5] = ["Records", "records", "events", "Events", "logEvents"];

/// Returns the key of the list that has the records, if the documents are envelopes of records: most
/// of their content is in a list of objects.
fn envelope(documents: &[Value], files: usize) -> Option<String> {
    let mut keys: Vec<&String> = Vec::new();
    for document in documents.iter().filter_map(Value::as_object) {
        keys.extend(
            document
                .keys()
                .filter(|key| !keys.contains(key))
                .collect::<Vec<_>>(),
        );
        if keys.len() > 100 {
            return None;
        }
    }
    let is_envelope = |key: &&&String| {
        let list = |document: &Value| {
            let list = document.get(key.as_str())?.as_array()?;
            let is_list = !list.is_empty() && list.iter().all(Value::is_object);
            is_list.then_some(list.len())
        };
        let with_list: Vec<usize> = documents.iter().filter_map(list).collect();
        let is_known = LISTS.contains(&key.as_str());
        let is_one_for_each_file = documents.len() <= files && with_list.iter().any(|it| *it > 1);
        (is_known || is_one_for_each_file)
            && with_list.len() * 10 >= documents.len() * 9
            && has_most_of(documents, key)
    };
    keys.iter().find(is_envelope).map(|key| (**key).clone())
}

/// Returns whether more than half of the documents' text is at this key.
fn has_most_of(documents: &[Value], key: &str) -> bool {
    let length = |value: &Value| value.to_string().len();
    let all: usize = documents.iter().map(length).sum();
    let at_key = documents.iter().filter_map(|document| document.get(key));
    at_key.map(length).sum::<usize>() * 2 > all
}

/// Returns the records in the lists of these documents.
fn open(documents: Vec<Value>, key: &str) -> Vec<Value> {
    let lists = documents.into_iter().filter_map(|mut document| {
        let list = document.get_mut(key)?.as_array_mut()?;
        Some(std::mem::take(list))
    });
    lists.flatten().filter(Value::is_object).collect()
}

/// Returns a record of these names and values.
pub(super) fn record(fields: impl IntoIterator<Item = (String, Value)>) -> Value {
    Value::Object(Map::from_iter(fields))
}
