//! config/examples/formats loads files as their producers write them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluice_testkit::project;

use super::{Load, Objects, READERS, fixture};

/// The objects: each has a key as its producer would give it, and a file below
/// tests/fixtures/formats.
const OBJECTS: [(&str, &str); 13] = [
    (
        "AWSLogs/123456789012/CloudTrail/eu-central-1/2026/11/20/1.json.gz",
        "cloudtrail/123456789012_CloudTrail_eu-central-1_20261120T0805Z_h3TxQz7LkPq1Ab2C.json.gz",
    ),
    (
        "AWSLogs/123456789012/CloudTrail-Digest/eu-central-1/2026/11/20/1.json.gz",
        "cloudtrail/123456789012_CloudTrail-Digest_eu-central-1_trail_eu-central-1_20261120T081500Z.json.gz",
    ),
    (
        "AWSLogs/123456789012/elasticloadbalancing/us-east-2/2026/11/20/1.log.gz",
        "alb/123456789012_elasticloadbalancing_us-east-2_app.shop.50dc6c495c0c9188_20261120T2340Z_172.160.001.192_20sg8hgm.log.gz",
    ),
    (
        "AWSLogs/123456789010/vpcflowlogs/us-east-1/2026/11/20/1.log.gz",
        "vpc_flow/123456789010_vpcflowlogs_us-east-1_fl-1234abcd_20261120T2305Z_hash.log.gz",
    ),
    (
        "access-logs/2026-11-20-00-15-33-7C1B2A3D4E5F6071",
        "s3_access/2026-11-20-00-15-33-7C1B2A3D4E5F6071",
    ),
    (
        "firehose/logs/2026/11/20/09/1.gz",
        "firehose/logs-1-2026-11-20-09-05-01-7b1c9d2e-1f3a-4c58-8e6d-2a4b6c8d0e1f.gz",
    ),
    (
        "firehose/orders/2026/11/20/09/orders-1",
        "firehose/orders-1-2026-11-20-09-00-01-4f6d2a1e-8c1b-4a53-9b7e-0d5f7c6b8a90",
    ),
    ("api/pretty.json", "documents/pretty.json"),
    ("exports/2026/export.csv", "csv/export.csv"),
    ("cloudfront/E1/1.tsv.gz", "csv/cloudfront.tsv.gz"),
    (
        "trips/yellow_tripdata_2026-11.parquet",
        "parquet/yellow_tripdata_2026-11.parquet",
    ),
    (
        "trips/yellow_tripdata_2026-11.orc",
        "orc/yellow_tripdata_2026-11.orc",
    ),
    ("shop/orders.avro", "avro/orders.avro"),
];

/// The rows of all objects by kind.
fn expected_rows() -> Value {
    json!({
        "alb_request": 20,
        "cloudfront_request": 16,
        "cloudtrail": 12,
        "export_trip": 15,
        "log_event": 9,
        "order": 67,
        "s3_access": 24,
        "shop_order": 50,
        "taxi_trip": 400,
        // The digest.
        "unmatched": 1,
        "vpc_flow": 40,
    })
}

const TABLES: [&str; 11] = [
    "alb_requests",
    "cloudfront_requests",
    "cloudtrail_events",
    "export_trips",
    "log_events",
    "orders",
    "s3_requests",
    "shop_orders",
    "taxi_trips",
    "vpc_flows",
    "unmatched_statements",
];

/// Returns the number of rows by kind, without blank lines.
async fn rows_by_kind(load: &Load<'_>) -> Value {
    let sql =
        "SELECT kind, sum(rows) AS rows FROM $.object_rows WHERE kind != 'blank' GROUP BY kind";
    let rows = load.rows(sql).await;
    let kind = |row: &Value| {
        (
            row["kind"].as_str().unwrap().to_owned(),
            row["rows"].clone(),
        )
    };
    rows.iter()
        .map(kind)
        .collect::<BTreeMap<_, _>>()
        .into_iter()
        .collect()
}

/// Returns all values of all rows, except for those that differ between loads.
async fn all_values(load: &Load<'_>) -> Vec<String> {
    let mut values = Vec::new();
    for table in TABLES {
        let sql = format!(
            "SELECT '{table}', hex(toString(tuple(* EXCEPT (batch_id, ingested_at)))) AS row \
             FROM $.{table} ORDER BY row"
        );
        values.extend(load.query(&sql).await.lines().map(str::to_owned));
    }
    values
}

/// Queries, each with its result.
const VALUES: [(&str, &str); 14] = [
    (
        "SELECT event_time, event_name, event_source, identity_type, read_only, \
         JSONExtractString(request_parameters, 'bucketName') FROM $.cloudtrail_events \
         ORDER BY event_time LIMIT 1",
        "2026-11-20 08:00:31\tPutBucketPolicy\ts3.amazonaws.com\tAssumedRole\tfalse\treports\n",
    ),
    (
        "SELECT countIf(error_code = 'Client.UnauthorizedOperation'), uniqExact(event_id) \
         FROM $.cloudtrail_events",
        "3\t12\n",
    ),
    (
        "SELECT min(at), countIf(target IS NULL), countIf(method IS NULL), min(url) \
         FROM $.alb_requests",
        "2026-11-20 23:39:00.044211\t4\t1\thttp://www.example.com:80-\n",
    ),
    (
        "SELECT begins_at, ends_at, source_port, destination_port, action, status \
         FROM $.vpc_flows ORDER BY begins_at LIMIT 1",
        "2026-11-21 00:13:20\t2026-11-21 00:14:20\t20641\t3389\tREJECT\tOK\n",
    ),
    (
        "SELECT status, countIf(action IS NULL), countIf(packets IS NULL) = countIf(source = '') \
         FROM $.vpc_flows WHERE status != 'OK' GROUP BY status ORDER BY status LIMIT 1",
        "NODATA\t4\t1\n",
    ),
    (
        "SELECT at, operation, key, status, bytes_sent, user_agent FROM $.s3_requests \
         ORDER BY at LIMIT 1",
        "2026-11-20 00:00:00\tREST.GET.OBJECT\tphotos/2026/k%C3%A9y.jpg\t200\t2662992\t\
         aws-sdk-java/2.30.0 (\\\\\"quoted\\\\\")\n",
    ),
    (
        "SELECT at, length(id), startsWith(message, 'START RequestId: ') FROM $.log_events \
         ORDER BY at LIMIT 1",
        "2026-11-20 09:05:00.000\t56\t1\n",
    ),
    (
        "SELECT placed_at, country, total, items FROM $.orders \
         WHERE source_path LIKE '%orders-1' ORDER BY placed_at LIMIT 1 OFFSET 1",
        "2026-11-20 09:00:01.001\tFR\t50.63\t[{\"sku\":\"A-0\",\"quantity\":1}]\n",
    ),
    (
        "SELECT count(), countIf(note IS NULL) FROM $.orders WHERE source_path LIKE '%pretty.json'",
        "7\t4\n",
    ),
    (
        "SELECT trip_id, client, amount, currency, paid_at, remark FROM $.export_trips \
         ORDER BY trip_id LIMIT 3",
        "T-0000\tACME\t0\tEUR\t\\N\t\\N\n\
         T-0001\tMüller, GmbH\t10.5\tEUR\t2026-11-02 10:00:00\ttwo\\r\\nlines\n\
         T-0002\tMüller, GmbH\t21\t\\N\t2026-11-03 10:00:00\t\\N\n",
    ),
    (
        "SELECT at, host, path, status, bytes, referer, length(request) \
         FROM $.cloudfront_requests ORDER BY at LIMIT 2",
        "2026-11-20 08:00:00\td111111abcdef8.cloudfront.net\t/view/0.html\t404\t390\t\
         https://example.com/\t32\n\
         2026-11-20 08:00:01\td111111abcdef8.cloudfront.net\t/view/1.html\t200\t391\t\\N\t32\n",
    ),
    (
        "SELECT count(), round(sum(fare), 2), count(passengers), min(picked_up_at), \
         uniqExact(trip_id) FROM $.taxi_trips WHERE source_path LIKE '%.parquet'",
        "200\t198.93\t181\t2026-11-01 00:00:00.000000\t200\n",
    ),
    (
        "SELECT count(), round(sum(fare), 2), count(passengers), min(picked_up_at), \
         uniqExact(trip_id) FROM $.taxi_trips WHERE source_path LIKE '%.orc'",
        "200\t198.93\t181\t2026-11-01 00:00:00.000000\t200\n",
    ),
    (
        "SELECT id, created_at, customer, country, score, channel, gift, items \
         FROM $.shop_orders ORDER BY id LIMIT 2",
        "0\t2026-11-20 08:00:00.123\tc0\tDE\t\\N\tweb\ttrue\t[]\n\
         1\t2026-11-20 08:00:01.123\tc1\tDE\t1\tshop\tfalse\t[{\"sku\":\"A-0\",\"quantity\":1}]\n",
    ),
];

#[tokio::test]
async fn every_example_is_loaded_alike_by_both_readers_and_strategies() {
    let declarations = project::path("config/examples/formats");
    let objects = Objects::new("examples", &declarations).await;
    for (key, file) in OBJECTS {
        objects
            .put(key, std::fs::read(fixture(file)).unwrap())
            .await;
    }
    let mut first: Option<Vec<String>> = None;
    for strategy in ["single_pass", "per_type"] {
        for reader in READERS {
            let name = format!("{strategy}_{reader}");
            let settings = [("load.fallback", reader), ("load.strategy", strategy)];
            let load = objects.load(&name, &settings);
            assert!(
                load.failures().await.is_empty(),
                "{:#?}",
                load.failures().await
            );
            assert_eq!(rows_by_kind(&load).await, expected_rows(), "{name}");
            let values = all_values(&load).await;
            match &first {
                None => {
                    for (sql, expected) in VALUES {
                        assert_eq!(load.query(sql).await, expected, "{sql}");
                    }
                    first = Some(values);
                }
                // Not `assert_eq`, which would print hundreds of rows.
                Some(first) => assert!(values == *first, "{name} has other rows"),
            }
            load.drop_tables().await;
        }
    }
}

/// `orders.parquet` has the rows of `orders.avro`, which would collapse with these.
#[test]
fn every_fixture_has_an_example() {
    let mut files: Vec<String> = ["gz", "json", "csv", "orc", "parquet", "avro"]
        .iter()
        .flat_map(|extension| project::files_below("tests/fixtures/formats", extension))
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let names = |file: &str| {
        OBJECTS
            .iter()
            .any(|(_, it)| it.ends_with(&format!("/{file}")))
    };
    files.retain(|file| file != "orders.parquet" && !names(file));
    assert_eq!(files, Vec::<String>::new());
}
