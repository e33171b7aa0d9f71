//! Parquet, Avro and ORC.

use sluice_testkit::Stack;

use super::{Case, assert_outcomes, case};

const FORMATS: &str = "
- {name: parquet, keys: ['**/*.parquet', '**/*.parquet.gz'], parquet: {}}
- {name: avro, keys: ['**/*.avro'], avro: {}}
- {name: orc, keys: ['**/*.orc'], orc: {}}
";

async fn written(sql: &str, format: &str) -> Vec<u8> {
    let clickhouse = &Stack::shared().clickhouse;
    clickhouse.bytes(sql, format).await.unwrap()
}

/// Returns the beginning of some content.
fn cut(content: &[u8], numerator: usize, denominator: usize) -> Vec<u8> {
    content[..content.len() * numerator / denominator].to_vec()
}

#[tokio::test]
async fn columns_are_read_by_name_and_files_that_are_cut_fail() {
    let two = "SELECT toString(number + 1) AS id, if(number = 0, 'x', NULL) AS a FROM numbers(2)";
    let nothing = "SELECT '1' AS id WHERE 0";
    let unmatched = "SELECT 1 AS other, [1, 2] AS list, map('k', NULL::Nullable(String)) AS m, \
                     tuple('é\"')::Tuple(t String) AS nested, toDecimal64('1.10', 2) AS d, \
                     toDateTime64('2026-07-01 01:02:03.456', 3, 'UTC') AS at, nan AS n";
    let many = "SELECT toString(number) AS id, randomString(100, number) AS a FROM numbers(3000)";
    let mut cases: Vec<Case> = Vec::new();
    for (format, keys) in [
        (
            "Parquet",
            [
                "1.parquet",
                "none.parquet",
                "unmatched.parquet",
                "cut.parquet",
            ],
        ),
        (
            "Avro",
            ["1.avro", "none.avro", "unmatched.avro", "cut.avro"],
        ),
        ("ORC", ["1.orc", "none.orc", "unmatched.orc", "cut.orc"]),
    ] {
        let [whole, none, other, half] = keys;
        cases.push(case(whole, written(two, format).await, "1=x; 2"));
        cases.push(case(none, written(nothing, format).await, ""));
        cases.push(case(other, written(unmatched, format).await, "unmatched"));
        // Avro is cut within a block: one that ends with a block is a whole file.
        let many = written(many, format).await;
        cases.push(case(half, cut(&many, 3, 5), "failed unloadable"));
    }
    // Files of one format need not have the same columns.
    let few = written("SELECT '3' AS id", "Parquet").await;
    let order = written("SELECT 'y' AS a, 5 AS b, 4 AS id", "Parquet").await;
    let spaces = written("SELECT 6 AS `a b`, '6' AS id", "Parquet").await;
    cases.extend([
        case("few.parquet", few, "3"),
        case("order.parquet", order, "4=y"),
        case("spaces.parquet", spaces, "6"),
        case("empty.parquet", "", ""),
        case("empty.avro", "", ""),
        case("empty.orc", "", ""),
    ]);
    let outcomes = assert_outcomes("typed", FORMATS, &cases).await;
    assert_eq!(
        outcomes["unmatched.parquet"].raws(),
        [
            r#"{"other":1,"list":[1,2],"m":{"k":null},"nested":{"t":"é\""},"d":1.1,"at":"2026-07-01T01:02:03.456Z","n":null}"#
        ]
    );
    assert_eq!(outcomes["1.orc"].numbers(), [0, 1]);
}
