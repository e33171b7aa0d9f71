//! Generated records without nested values, which can be written in every format, and the rows that
//! a loader must produce from them. They are for the event types of [`EventType`], with declarations
//! of their own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::ClickHouse;
use crate::xapi::{Bundle, EventType, ExpectedRows};

/// How the records of an object are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A JSON object on each line.
    Lines,
    /// JSON objects without line ends.
    Documents,
    /// Documents that each have a list of records.
    Envelopes,
    /// Comma-separated values with a header.
    Csv,
    /// Lines that a pattern takes apart.
    Log,
    Parquet,
    Avro,
    Orc,
}

/// The records of one envelope.
const RECORDS_OF_ENVELOPE: usize = 1_000;

/// The kinds of records take turns: one for each event type, one that matches none, and one that
/// lacks a required value.
const KINDS: u64 = EventType::ALL.len() as u64 + 2;

/// The formats of the keys that [`Form::key`] returns.
const FORMATS: &str = r"formats:
  - {name: documents, keys: ['**/*.json'], json: {}}
  - {name: envelopes, keys: ['**/*.envelopes'], json: {records: [detail, list]}}
  - {name: csv, keys: ['**/*.csv'], csv: {}}
  - name: log
    keys: ['**/*.log']
    regex: {pattern: '^(?P<kind>\S+) (?P<id>\S+) (?P<at>\S+)$', nulls: ['-']}
  - {name: parquet, keys: ['**/*.parquet'], parquet: {}}
  - {name: avro, keys: ['**/*.avro'], avro: {}}
  - {name: orc, keys: ['**/*.orc'], orc: {}}
";

impl Form {
    /// All forms.
    pub const ALL: [Self; 8] = [
        Self::Lines,
        Self::Documents,
        Self::Envelopes,
        Self::Csv,
        Self::Log,
        Self::Parquet,
        Self::Avro,
        Self::Orc,
    ];

    /// Returns the key for which this form is declared.
    pub fn key(self, name: &str) -> String {
        let extension = match self {
            Self::Lines => "jsonl",
            Self::Documents => "json",
            Self::Envelopes => "envelopes",
            Self::Csv => "csv",
            Self::Log => "log",
            Self::Parquet => "parquet",
            Self::Avro => "avro",
            Self::Orc => "orc",
        };
        format!("flat/{name}.{extension}")
    }

    /// Returns the format in which ClickHouse writes the records, before they are arranged.
    fn written_as(self) -> &'static str {
        match self {
            Self::Lines | Self::Documents | Self::Envelopes => "JSONEachRow",
            Self::Csv => "CSVWithNames",
            Self::Log => "LineAsString",
            Self::Parquet => "Parquet",
            Self::Avro => "Avro",
            Self::Orc => "ORC",
        }
    }

    fn arrange(self, written: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Documents => Ok(String::from_utf8(written)?.replace('\n', "").into_bytes()),
            Self::Envelopes => {
                let text = String::from_utf8(written)?;
                let lines: Vec<&str> = text.lines().collect();
                let envelopes = lines.chunks(RECORDS_OF_ENVELOPE).map(|records| {
                    format!("{{\"detail\":{{\"list\":[{}]}}}}\n", records.join(",\n"))
                });
                Ok(envelopes.collect::<String>().into_bytes())
            }
            _ => Ok(written),
        }
    }
}

/// Writes the declarations of the event types and of all forms to a directory. The event types have
/// the names and tables of [`EventType`].
///
/// # Errors
///
/// Fails if the directory cannot be written.
pub fn write_declarations(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("formats.yaml"), FORMATS)?;
    for kind in EventType::ALL {
        let (name, table) = (kind.name(), kind.table());
        let text = format!(
            "table: {table}\nrule: {{path: [kind], equals: {name}}}\norder_by: [id]\ncolumns:\n\
             - {{name: id, type: String, path: [id], identifies: true}}\n\
             - {{name: at, type: \"DateTime64(3, 'UTC')\", path: [at], required: true}}\n"
        );
        fs::write(directory.join(format!("{name}.yaml")), text)?;
    }
    Ok(())
}

/// Returns an object with this many records, which ClickHouse writes. `name` is a part of the key
/// and of each record's id.
///
/// # Errors
///
/// Fails with ClickHouse's error.
pub async fn bundle(
    clickhouse: &ClickHouse,
    form: Form,
    name: &str,
    records: u64,
) -> Result<Bundle> {
    let written = clickhouse
        .bytes(&select(form, name, records), form.written_as())
        .await?;
    let bytes = form.arrange(written).context("the records are not UTF-8")?;
    Ok(Bundle {
        key: form.key(name),
        bytes,
        expected_rows: expected(records),
    })
}

/// Returns a SELECT of the records. The last kind has no time.
fn select(form: Form, name: &str, records: u64) -> String {
    let types = EventType::ALL.map(|kind| format!("'{}'", kind.name()));
    let types = types.join(", ");
    let first = EventType::ALL.first().map_or("", |kind| kind.name());
    let last = KINDS - 1;
    let columns = format!(
        "[{types}, 'other', '{first}'][number % {KINDS} + 1] AS kind, \
         concat('{name}-', toString(number)) AS id, \
         if(number % {KINDS} = {last}, NULL, \
            concat('2026-07-14T08:00:00.', leftPad(toString(number % 1000), 3, '0'), 'Z')) AS at"
    );
    let select = format!("SELECT {columns} FROM numbers({records})");
    match form {
        Form::Log => format!("SELECT concat(kind, ' ', id, ' ', ifNull(at, '-')) FROM ({select})"),
        // The declared format reads an empty field as NULL.
        Form::Csv => format!("{select} SETTINGS format_csv_null_representation = ''"),
        Form::Parquet => format!("{select} SETTINGS output_format_parquet_row_group_size = 50000"),
        _ => select,
    }
}

fn expected(records: u64) -> ExpectedRows {
    let of_kind = |kind: u64| records / KINDS + u64::from(records % KINDS > kind);
    let mut rows = ExpectedRows::default();
    for (number, kind) in (0..).zip(EventType::ALL) {
        rows.add(kind, of_kind(number));
    }
    rows.objects = 1;
    rows.unmatched = of_kind(KINDS - 2);
    rows.rejected = of_kind(KINDS - 1);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_expected_once() {
        for records in [0, 1, 6, 7, 8, 1_000] {
            let rows = expected(records);
            assert_eq!(rows.statements(), records);
        }
        let rows = expected(KINDS);
        assert_eq!((rows.loaded(), rows.unmatched, rows.rejected), (5, 1, 1));
    }

    #[test]
    fn envelopes_have_a_list_each() {
        let lines = "{\"a\":1}\n".repeat(RECORDS_OF_ENVELOPE + 1);
        let text = Form::Envelopes.arrange(lines.into_bytes()).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.matches("\"list\":[").count(), 2);
        assert_eq!(text.matches("{\"a\":1}").count(), RECORDS_OF_ENVELOPE + 1);
    }
}
