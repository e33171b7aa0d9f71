//! Values of typed files, of every type, in columns of every type.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::{Objects, READERS};

const FORMATS: &str = "formats:
- {name: parquet, keys: [parquet/**, text/**], parquet: {}}
- {name: orc, keys: [orc/**], orc: {}}
";

/// Paths, each with the expression and the type of the column that it begins with.
///
/// Missing here are values that JSON cannot have, such as whole numbers of more than 64 bits, and
/// those that ORC cannot.
const SOURCES: [(&str, &str); 22] = [
    ("i8", "toInt8(number - 100)"),
    ("i32", "toInt32(number * 21474836 - 2147483648)"),
    (
        "i64",
        "[0, 1, -1, 255, 9223372036854775807, -9223372036854775808, 9007199254740993]::Array(Int64)[number % 7 + 1]",
    ),
    ("u8", "toUInt8(number % 128)"),
    ("u32", "toUInt32(number * 10737418)"),
    ("u64", "[0, 1, 127, 9223372036854775807]::Array(UInt64)[number % 4 + 1]"),
    ("f32", "toFloat32(number / 10)"),
    (
        "f64",
        "[0, 1, -1, 0.1, 255, 256, 2.5, 1e15, 829003391206133120, 1e300, 5e-324, nan, inf]::Array(Float64)[number % 13 + 1]",
    ),
    ("d9", "toDecimal32(number / 8, 3)"),
    ("d18", "toDecimal64(['0', '1.1', '-2', '12345678901234.56', '9999999999999999.99'][number % 5 + 1], 2)"),
    ("flag", "toBool(number % 2)"),
    (
        "at3",
        "fromUnixTimestamp64Milli([0, 999, 1784030400123, 7258118400000]::Array(Int64)[number % 4 + 1], 'UTC')",
    ),
    ("at6", "toDateTime64('2026-07-14 08:00:00.123456', 6, 'UTC') + toIntervalMillisecond(number)"),
    ("at9", "toDateTime64('2026-07-14 08:00:00.123456789', 9, 'UTC') + toIntervalMillisecond(number)"),
    ("day", "toDate('2026-07-14') + number"),
    ("unique", "toString(toUUID('00000000-0000-4000-8000-000000000001'))"),
    (
        "text",
        "['', 'a', '1', '-1', '1.0', '[1]', 'true', '0', '300', '1e3', 'nan', '2026-07-14T08:00:00Z', '2026-07-14', 'é', ' 1']
          [number % 15 + 1]",
    ),
    ("optional", "if(number % 3 = 0, NULL, toInt32(number))"),
    ("list", "range(number % 3)::Array(Int32)"),
    ("map", "map('k', toInt64(number), 'l', 0)"),
    ("nested", "tuple(toInt32(number), 'é\"')::Tuple(a Int32, b String)"),
    ("a name", "toString(number)"),
];

/// Paths below columns.
const BELOW: [&[&str]; 3] = [&["map", "k"], &["map", "none"], &["nested", "a"]];

const TYPES: [&str; 13] = [
    "String",
    "UInt8",
    "UInt64",
    "Int8",
    "Int32",
    "Int64",
    "Float32",
    "Float64",
    "Bool",
    "UUID",
    "DateTime64(0, 'UTC')",
    "DateTime64(3, 'UTC')",
    "DateTime64(6, 'UTC')",
];

/// Declares a column of each type for each path.
fn declared() -> String {
    let mut text = "table: converted\nrule: {path: [i8], present: true}\norder_by: [source, id]\n\
                    columns:\n- {name: id, type: UInt64, expression: '{row_number}', identifies: true}\n\
                    - {name: source, type: String, expression: '{source_path}'}\n\
                    - {name: first, type: String, path: [optional], fallbacks: [[text]]}\n\
                    - {name: number, type: Nullable(Int64), path: [optional], fallbacks: [[i32]]}\n\
                    - {name: length, type: UInt64, expression: 'length({value})', path: [at6]}\n"
        .to_owned();
    let below = BELOW.iter().map(|path| path.to_vec());
    // A path cannot be both a value and an object.
    let whole = SOURCES.iter().map(|(name, _)| *name);
    let whole = whole.filter(|name| !BELOW.iter().any(|path| path[0] == *name));
    let paths = whole.map(|name| vec![name]).chain(below);
    for (place, path) in paths.enumerate() {
        let path = serde_json::to_string(&path).unwrap();
        for (number, of_type) in TYPES.iter().enumerate() {
            writeln!(
                text,
                "- {{name: c{place}_{number}, type: \"Nullable({of_type})\", path: {path}}}"
            )
            .unwrap();
        }
    }
    text
}

fn select(more: &str) -> String {
    let columns = SOURCES
        .iter()
        .map(|(name, value)| format!("{value} AS `{name}`"));
    let columns: Vec<String> = columns.collect();
    format!("SELECT {}{more} FROM numbers(200)", columns.join(", "))
}

#[tokio::test]
async fn a_value_is_that_of_its_json_text_whatever_its_type_is() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("formats.yaml"), FORMATS).unwrap();
    std::fs::write(directory.path().join("converted.yaml"), declared()).unwrap();
    let objects = Objects::new("conversions", directory.path()).await;
    let json = "SETTINGS date_time_output_format = 'iso', \
                output_format_json_quote_64bit_integers = 0, \
                output_format_json_named_tuples_as_objects = 1";
    let sql = format!("{} {json}", select(""));
    let lines = objects.written(&sql, "JSONEachRow").await;
    objects.put("lines/1", lines).await;
    for (folder, format, more) in [
        ("parquet", "Parquet", ""),
        ("orc", "ORC", ""),
        // A type of which the rows are read by their JSON text.
        ("text", "Parquet", ", toDecimal128(number, 2) AS wide"),
    ] {
        let written = objects.written(&select(more), format).await;
        objects.put(&format!("{folder}/1"), written).await;
    }
    for strategy in ["single_pass", "per_type"] {
        for reader in READERS {
            let settings = [("load.fallback", reader), ("load.strategy", strategy)];
            let load = objects.load(&format!("{strategy}_{reader}"), &settings);
            let failures = load.failures().await;
            assert!(failures.is_empty(), "{failures:?}");
            let sql = "SELECT splitByChar('/', source_path)[2] AS folder, * EXCEPT \
                       (source, source_path, source_etag, batch_id, ingested_at) \
                       FROM $.converted ORDER BY folder, id";
            let mut rows: BTreeMap<String, Vec<Value>> = BTreeMap::new();
            for mut row in load.rows(sql).await {
                let folder = row.as_object_mut().unwrap().remove("folder").unwrap();
                let folder = folder.as_str().unwrap().to_owned();
                rows.entry(folder).or_default().push(row);
            }
            assert_eq!(rows.len(), 4);
            let expected = rows.remove("lines").unwrap();
            assert_eq!(expected.len(), 200);
            // `at3` as seconds: beyond the end of DateTime.
            assert_eq!(expected[3]["c11_10"], "2200-01-01 00:00:00");
            for (folder, rows) in rows {
                assert_eq!(rows.len(), expected.len(), "{folder}");
                let wrong = differences(&rows, &expected, &folder);
                assert!(
                    wrong.is_empty(),
                    "{folder}, {strategy}, {reader}: {wrong:#?}"
                );
            }
            load.drop_tables().await;
        }
    }
}

/// Returns an example of each column in which rows differ.
fn differences(rows: &[Value], expected: &[Value], folder: &str) -> BTreeMap<String, String> {
    let mut wrong = BTreeMap::new();
    for (row, expected) in rows.iter().zip(expected) {
        for (column, value) in expected.as_object().unwrap() {
            // ORC has nanoseconds, which a text shows.
            let is_text = column == "length" || column.ends_with("_0");
            let is_longer = folder == "orc" && is_text;
            if row[column] != *value && !is_longer {
                wrong.insert(column.clone(), format!("{} for {value}", row[column]));
            }
        }
    }
    wrong
}
