//! Records like those of taxi trips, how they are written in each format, and how a person would
//! load them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sluice_testkit::ClickHouse;

/// The event type of the records.
pub(super) const EVENT_TYPE: &str = "trip";

/// A format, or an arrangement of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Lines,
    Concatenated,
    Array,
    Envelopes,
    Csv,
    Log,
    Parquet,
    Avro,
    Orc,
}

/// The records of one envelope.
const RECORDS_OF_ENVELOPE: usize = 5_000;

/// The columns: name and type, in a table as in a declaration.
const COLUMNS: [(&str, &str); 12] = [
    ("trip_id", "String"),
    ("vendor", "UInt8"),
    ("picked_up_at", "DateTime64(6, 'UTC')"),
    ("dropped_off_at", "DateTime64(6, 'UTC')"),
    ("passengers", "Nullable(Int64)"),
    ("miles", "Float64"),
    ("rate", "Nullable(Int64)"),
    ("flag", "LowCardinality(String)"),
    ("from_zone", "Int32"),
    ("to_zone", "Int32"),
    ("fare", "Float64"),
    ("tip", "Float64"),
];

const FORMATS: &str = "formats:
  - {name: documents, keys: [concatenated/**, array/**], json: {}}
  - {name: envelopes, keys: [envelopes/**], json: {records: [Records]}}
  - {name: csv, keys: [csv/**], csv: {}}
  - name: log
    keys: [log/**]
    regex: {pattern: 'PATTERN', nulls: ['-']}
  - {name: parquet, keys: [parquet/**], parquet: {}}
  - {name: avro, keys: [avro/**], avro: {}}
  - {name: orc, keys: [orc/**], orc: {}}
";

impl Form {
    pub(super) const ALL: [Self; 9] = [
        Self::Lines,
        Self::Concatenated,
        Self::Array,
        Self::Envelopes,
        Self::Csv,
        Self::Log,
        Self::Parquet,
        Self::Avro,
        Self::Orc,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lines => "lines",
            Self::Concatenated => "concatenated",
            Self::Array => "array",
            Self::Envelopes => "envelopes",
            Self::Csv => "csv",
            Self::Log => "log",
            Self::Parquet => "parquet",
            Self::Avro => "avro",
            Self::Orc => "orc",
        }
    }

    pub(super) fn key(self) -> String {
        format!("{}/trips", self.name())
    }

    /// Returns the content of an object with this many records.
    pub(super) async fn written(self, clickhouse: &ClickHouse, records: u64) -> Result<Vec<u8>> {
        let select = select(records);
        let (sql, format) = match self {
            Self::Lines | Self::Concatenated | Self::Array | Self::Envelopes => {
                (select, "JSONEachRow")
            }
            Self::Csv => (select, "CSVWithNames"),
            Self::Log => (log_lines(&select), "LineAsString"),
            Self::Parquet => (select, "Parquet"),
            Self::Avro => (select, "Avro"),
            Self::Orc => (select, "ORC"),
        };
        let sql = format!(
            "{sql} SETTINGS date_time_output_format = 'iso', format_csv_null_representation = ''"
        );
        let written = clickhouse.bytes(&sql, format).await?;
        self.arranged(written)
            .with_context(|| format!("{} is not UTF-8", self.name()))
    }

    fn arranged(self, written: Vec<u8>) -> Result<Vec<u8>> {
        let lines = match self {
            Self::Concatenated | Self::Array | Self::Envelopes => String::from_utf8(written)?,
            _ => return Ok(written),
        };
        let text = match self {
            Self::Concatenated => lines.replace('\n', ""),
            Self::Array => format!("[{}]", lines.trim_end().replace('\n', ",\n")),
            _ => {
                let records: Vec<&str> = lines.lines().collect();
                let envelopes = records.chunks(RECORDS_OF_ENVELOPE);
                envelopes
                    .map(|records| format!("{{\"Records\":[{}]}}\n", records.join(",")))
                    .collect()
            }
        };
        Ok(text.into_bytes())
    }

    /// Returns the statement that a person would write to load an object, with what is to be kept
    /// of the origin of each record.
    pub(super) fn insert(self, table: &str, url: &str, origin: Origin) -> String {
        let kept = origin.columns();
        let structure = structure().replace('\'', "\\'");
        let source = |format: &str, structure: &str| {
            format!("s3('{url}', 'test', 'test', '{format}', '{structure}')")
        };
        let select = match self {
            Self::Lines | Self::Concatenated | Self::Array => {
                format!("SELECT *{kept} FROM {}", source("JSONEachRow", &structure))
            }
            Self::Envelopes => {
                let fields = COLUMNS.map(|(name, _)| format!("record.{name}"));
                let list = format!("Records Array(Tuple({structure}))");
                format!(
                    "SELECT {}{kept} FROM (SELECT arrayJoin(Records) AS record{kept} FROM {})",
                    fields.join(", "),
                    source("JSONEachRow", &list)
                )
            }
            Self::Csv => format!("SELECT *{kept} FROM {}", source("CSVWithNames", &structure)),
            Self::Log => {
                let fields: Vec<String> = (1..).zip(COLUMNS).map(by_hand).collect();
                format!(
                    "SELECT {}{kept} FROM (SELECT extractGroups(line, '{}') AS g{kept} FROM {})",
                    fields.join(", "),
                    pattern().replace("\\", "\\\\"),
                    source("LineAsString", "line String")
                )
            }
            Self::Parquet => format!("SELECT *{kept} FROM {}", source("Parquet", &structure)),
            Self::Avro => format!("SELECT *{kept} FROM {}", source("Avro", &structure)),
            Self::Orc => format!("SELECT *{kept} FROM {}", source("ORC", &structure)),
        };
        let into = match origin {
            Origin::Nothing => String::new(),
            Origin::Object => {
                let names = COLUMNS.map(|(name, _)| name).join(", ");
                format!(" ({names}, source_path, source_etag)")
            }
        };
        format!(
            "INSERT INTO {table}{into} {select} SETTINGS date_time_input_format = 'best_effort'"
        )
    }
}

/// Returns the value of a group of the pattern, in the column's type.
fn by_hand((group, (_, column_type)): (usize, (&str, &str))) -> String {
    let text = format!("g[{group}]");
    match column_type {
        "String" | "LowCardinality(String)" => text,
        "UInt8" => format!("toUInt8({text})"),
        "Int32" => format!("toInt32({text})"),
        "Float64" => format!("toFloat64({text})"),
        "Nullable(Int64)" => format!("toInt64OrNull({text})"),
        _ => format!("parseDateTime64BestEffort({text}, 6, 'UTC')"),
    }
}

fn structure() -> String {
    let columns = COLUMNS.map(|(name, column_type)| format!("{name} {column_type}"));
    columns.join(", ")
}

/// Returns a pattern with one group for each column.
fn pattern() -> String {
    let groups = COLUMNS.map(|(name, _)| format!("(?P<{name}>\\S+)"));
    format!("^{}", groups.join(" "))
}

/// What a bare insert keeps of the origin of each record.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Nothing,
    /// The object and its version.
    Object,
}

impl Origin {
    fn columns(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Object => ", _path, _etag",
        }
    }
}

/// Returns the statement that creates the table of the bare insert.
pub(super) fn create(table: &str, origin: Origin) -> String {
    let lineage = match origin {
        Origin::Nothing => "",
        Origin::Object => {
            ", source_path String CODEC(ZSTD), source_etag String CODEC(ZSTD), \
             batch_id UUID DEFAULT toUUID('01a22ae5-b983-740e-9c46-1906b5ff6d47'), \
             ingested_at DateTime64(3, 'UTC') DEFAULT now64(3)"
        }
    };
    format!(
        "CREATE TABLE {table} ({}{lineage}) ENGINE = MergeTree ORDER BY (picked_up_at, trip_id)",
        structure()
    )
}

fn select(records: u64) -> String {
    format!(
        "SELECT lower(hex(sipHash128(number))) AS trip_id, \
         toUInt8(number % 2 + 1) AS vendor, \
         toDateTime64('2026-07-01 00:00:00', 6, 'UTC') + toIntervalMillisecond(number * 613) \
           AS picked_up_at, \
         picked_up_at + toIntervalSecond(300 + cityHash64(number) % 3000) AS dropped_off_at, \
         if(number % 11 = 0, NULL, toInt64(number % 5)) AS passengers, \
         (cityHash64(number, 1) % 3000) / 100 AS miles, \
         if(number % 11 = 0, NULL, toInt64(1 + number % 3)) AS rate, \
         if(number % 7 = 0, 'Y', 'N') AS flag, \
         toInt32(cityHash64(number, 2) % 265) AS from_zone, \
         toInt32(cityHash64(number, 3) % 265) AS to_zone, \
         (cityHash64(number, 4) % 10000) / 100 AS fare, \
         (cityHash64(number, 5) % 2000) / 100 AS tip FROM numbers({records})"
    )
}

/// Returns the same records as lines with spaces between the fields.
fn log_lines(select: &str) -> String {
    let fields = COLUMNS.map(|(name, column_type)| match column_type {
        "DateTime64(6, 'UTC')" => {
            format!("concat(replaceOne(toString({name}), ' ', 'T'), 'Z')")
        }
        _ => format!("ifNull(toString({name}), '-')"),
    });
    format!("SELECT concat({}) FROM ({select})", fields.join(", ' ', "))
}

/// Writes the declarations of the formats and of the event type to a directory.
pub(super) fn write_declarations(directory: &Path) -> Result<()> {
    let formats = FORMATS.replace("PATTERN", &pattern());
    fs::write(directory.join("formats.yaml"), formats)?;
    let mut text = String::from(
        "table: trips\nrule: {path: [trip_id], present: true}\n\
         order_by: [picked_up_at, trip_id]\ncolumns:\n",
    );
    for (name, column_type) in COLUMNS {
        let required = if name == "picked_up_at" {
            ", required: true"
        } else {
            ""
        };
        text += &format!("- {{name: {name}, type: \"{column_type}\", path: [{name}]{required}}}\n");
    }
    fs::write(directory.join(format!("{EVENT_TYPE}.yaml")), text)?;
    Ok(())
}
