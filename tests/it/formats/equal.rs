//! The same records have the same rows in every format.

use std::collections::BTreeMap;

use super::{Objects, READERS};

const FORMATS: &str = "formats:
- {name: documents, keys: [documents/**, array/**], json: {}}
- {name: lists, keys: [lists/**], json: {records: [Records]}}
- {name: csv, keys: [csv/**], csv: {}}
- {name: parquet, keys: [parquet/**], parquet: {}}
- {name: avro, keys: [avro/**], avro: {}}
- {name: orc, keys: [orc/**], orc: {}}
";

const VALUE: &str = "table: value_events
rule: {path: [id], present: true}
order_by: [source, id]
columns:
- {name: id, type: UInt64, path: [id], required: true}
- {name: source, type: String, expression: '{source_path}'}
- {name: text, type: String, path: [text]}
- {name: optional, type: Nullable(String), path: [optional]}
- {name: small, type: Int8, path: [small]}
- {name: large, type: Int64, path: [large]}
- {name: float, type: Float64, path: [float]}
- {name: flag, type: Bool, path: [flag]}
- {name: at, type: \"DateTime64(3, 'UTC')\", path: [at], required: true}
- {name: unique, type: UUID, path: [unique]}
";

/// Values at the bounds of their types, and texts that formats must quote.
const VALUES: &str = r#"SELECT number AS id,
    ['', 'a', ' b ', 'é', 'a,b', 'say "a"', '\'', 'two\nlines', 'tab\t', '\\', 'NULL', '1.0', '{}', '#']
      [number % 14 + 1] AS text,
    if(number % 3 = 0, NULL, concat('x', toString(number))) AS optional,
    toInt8(number % 256) AS small,
    [0, 1, -1, 9223372036854775807, -9223372036854775808, 9007199254740993]::Array(Int64)
      [number % 6 + 1] AS large,
    [0, 1.5, -0.1, 1e300, 123456.789]::Array(Float64)[number % 5 + 1] AS float,
    toBool(number % 2 = 0) AS flag,
    toDateTime64('2026-07-14 08:00:00.000', 3, 'UTC') + toIntervalMillisecond(number * 997) AS at,
    toString(toUUID(concat('00000000-0000-4000-8000-', leftPad(toString(number), 12, '0'))))
      AS unique
    FROM numbers(300)"#;

/// The folders, each with the format in which ClickHouse writes its object.
const FOLDERS: [(&str, &str); 8] = [
    ("lines", "JSONEachRow"),
    ("documents", "JSONEachRow"),
    ("array", "JSONEachRow"),
    ("lists", "JSONEachRow"),
    ("csv", "CSVWithNames"),
    ("parquet", "Parquet"),
    ("avro", "Avro"),
    ("orc", "ORC"),
];

/// Arranges lines of JSON as the folder has them.
fn arranged(folder: &str, written: Vec<u8>) -> Vec<u8> {
    if !["documents", "array", "lists"].contains(&folder) {
        return written;
    }
    let text = String::from_utf8(written).unwrap();
    let records: Vec<&str> = text.lines().collect();
    let text = match folder {
        "documents" => records.concat(),
        "array" => format!("[{}]", records.join(",\n")),
        _ => format!("{{\"Records\":[{}]}}", records.join(",")),
    };
    text.into_bytes()
}

#[tokio::test]
async fn a_record_has_the_same_row_in_every_format() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("formats.yaml"), FORMATS).unwrap();
    std::fs::write(directory.path().join("value.yaml"), VALUE).unwrap();
    let objects = Objects::new("equal", directory.path()).await;
    for (folder, format) in FOLDERS {
        // As a producer writes times and missing values.
        let sql = format!(
            "{VALUES} SETTINGS date_time_output_format = 'iso', format_csv_null_representation = '', \
             output_format_json_quote_64bit_integers = 0"
        );
        let written = objects.written(&sql, format).await;
        let key = format!("{folder}/values");
        objects.put(&key, arranged(folder, written)).await;
    }
    for strategy in ["single_pass", "per_type"] {
        for reader in READERS {
            let settings = [("load.fallback", reader), ("load.strategy", strategy)];
            let load = objects.load(&format!("{strategy}_{reader}"), &settings);
            assert!(
                load.failures().await.is_empty(),
                "{:?}",
                load.failures().await
            );
            let sql = format!(
                "SELECT splitByChar('/', source_path)[2] AS folder, \
                   arraySort(groupArray(toString(tuple(* EXCEPT \
                     (source, source_path, source_etag, batch_id, ingested_at))))) AS rows \
                 FROM {}.value_events GROUP BY folder",
                load.database
            );
            let rows: BTreeMap<String, String> = load
                .rows(&sql)
                .await
                .into_iter()
                .map(|row| {
                    let folder = row["folder"].as_str().unwrap().to_owned();
                    (folder, row["rows"].to_string())
                })
                .collect();
            assert_eq!(rows.len(), FOLDERS.len());
            for (folder, found) in &rows {
                assert!(
                    *found == rows["lines"],
                    "{folder}, {strategy}, {reader}: {found}\n{}",
                    rows["lines"]
                );
            }
            assert_eq!(
                load.query("SELECT count() FROM $.value_events").await,
                "2400\n"
            );
            load.drop_tables().await;
        }
    }
}
