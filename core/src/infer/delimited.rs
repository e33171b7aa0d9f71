//! Finds the records of delimited text, its header, and the texts that stand for NULL.

use std::collections::BTreeSet;

use csv::{ReaderBuilder, StringRecord};
use serde_json::Value;

use super::content::{Content, Found, Source, record};
use super::texts::{TextKind, kind_of};
use crate::formats::Seen;

/// How a file of delimited text is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub delimiter: char,
    pub quoted: bool,
    pub header: bool,
    /// The names of the fields.
    pub names: Vec<String>,
    /// The texts that stand for NULL, in addition to the empty one.
    pub nulls: BTreeSet<String>,
    pub has_comments: bool,
}

impl Table {
    /// Returns what holds for two files.
    pub(super) fn with(mut self, other: Table) -> Self {
        self.nulls.extend(other.nulls);
        self.has_comments |= other.has_comments;
        if other.names.len() > self.names.len() {
            self.names = other.names;
        }
        self
    }
}

/// Texts that producers write for a missing value.
const NULLS: [&str; 8] = ["NULL", "null", "\\N", "N/A", "n/a", "NA", "-", "None"];

/// The number of records that show the delimiter.
const SHOWN_RECORDS: usize = 20;

/// Returns the delimiter of text that begins so: one that all of the first records have as often,
/// outside of quotes, or else the one that is seen in the first lines.
pub(super) fn delimiter(start: &[u8], seen: Seen) -> Option<char> {
    let seen = match seen {
        Seen::Delimited(delimiter) => Some(delimiter),
        Seen::Text => None,
        _ => return None,
    };
    let is_regular = |delimiter: &u8| {
        let mut reader = ReaderBuilder::new();
        reader
            .delimiter(*delimiter)
            .quoting(*delimiter != b'\t')
            .has_headers(false);
        reader.comment(Some(b'#')).flexible(true);
        let records = reader.from_reader(start).into_byte_records();
        let lengths: Vec<usize> = records
            .take(SHOWN_RECORDS + 1)
            .map(|record| record.map_or(0, |record| record.len()))
            .collect();
        // The last one may be cut.
        let whole = &lengths[..lengths.len().saturating_sub(1).max(2).min(lengths.len())];
        let first = whole.first().copied().unwrap_or_default();
        whole.len() > 1 && first > 1 && whole.iter().all(|length| *length == first)
    };
    let regular = [b',', b'\t', b';', b'|'].into_iter().find(is_regular);
    regular.map(char::from).or(seen)
}

pub(super) fn read(content: &[u8], delimiter: char, source: &Source) -> Result<Content, String> {
    let has_comments = content.starts_with(b"#") || content.windows(2).any(|it| it == b"\n#");
    let quoted = !matches!(delimiter, '\t' | ' ');
    let byte = u8::try_from(delimiter).map_err(|_| "the delimiter is not ASCII")?;
    let mut reader = ReaderBuilder::new();
    reader
        .delimiter(byte)
        .quoting(quoted)
        .has_headers(false)
        .flexible(true);
    reader.comment(has_comments.then_some(b'#'));
    let (mut rows, mut unreadable) = (Vec::new(), 0);
    for row in reader.from_reader(content).into_records() {
        match row {
            Ok(row) => rows.push(row),
            // Text that is not UTF-8.
            Err(_) => unreadable += 1,
        }
    }
    // The last one may be a part of a record.
    if source.is_cut {
        rows.pop();
    }
    let header = rows.first().is_some_and(is_header);
    let names = match rows.first() {
        Some(row) if header => names(row),
        Some(row) => (1..=row.len())
            .map(|place| format!("column_{place}"))
            .collect(),
        None => Vec::new(),
    };
    let first = usize::from(header);
    let all = rows.len().saturating_sub(first);
    let rows: Vec<StringRecord> = rows.into_iter().skip(first).collect();
    let rows: Vec<StringRecord> = rows
        .into_iter()
        .filter(|row| row.len() <= names.len())
        .collect();
    unreadable += (all - rows.len()) as u64;
    let nulls = nulls(&rows, names.len());
    let value = |text: &str| {
        if text.is_empty() || nulls.contains(text) {
            Value::Null
        } else {
            Value::from(text)
        }
    };
    let records = rows.iter().map(|row| {
        let texts = (0..names.len()).map(|place| row.get(place).unwrap_or_default());
        record(names.iter().cloned().zip(texts.map(value)))
    });
    Ok(Content {
        records: records.collect(),
        unreadable,
        found: Found::Delimited(Table {
            delimiter,
            quoted,
            header,
            names,
            nulls,
            has_comments,
        }),
    })
}

/// Returns whether these fields are names: they are different, and none is a number, a time or an
/// id.
fn is_header(row: &StringRecord) -> bool {
    let different: BTreeSet<&str> = row.iter().collect();
    let can_be_name = |field| matches!(kind_of(field), TextKind::Other | TextKind::Empty);
    different.len() == row.len() && row.len() > 1 && row.iter().all(can_be_name)
}

/// Returns the names of a header, as the header is read when objects are loaded.
fn names(row: &StringRecord) -> Vec<String> {
    let names = row.iter().zip(1..).map(|(name, place)| {
        if name.trim().is_empty() {
            format!("column_{place}")
        } else {
            name.to_owned()
        }
    });
    names.collect()
}

/// Returns the texts that stand for NULL: those in a column of which all other values are numbers,
/// times or ids.
fn nulls(rows: &[StringRecord], columns: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for column in 0..columns {
        let texts = rows.iter().filter_map(|row| row.get(column));
        let texts: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
        let is_null = |text: &&&str| NULLS.contains(*text);
        let nulls: BTreeSet<&str> = texts.iter().filter(is_null).copied().collect();
        let mut others = texts.iter().filter(|text| !is_null(text)).peekable();
        if others.peek().is_some() && others.all(|text| kind_of(text) != TextKind::Other) {
            found.extend(nulls.into_iter().map(str::to_owned));
        }
    }
    found
}
