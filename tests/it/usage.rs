//! `sluice cost`, compared with the requests that proxies have counted.

use std::time::Duration;

use serde_json::Value;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{EventType, Generator};
use sluice_testkit::{Site, Stack};

use crate::harness::{Sluice, line, upload, wait_until_drained};

/// Starts a proxy that counts all requests.
async fn counting(upstream: &str) -> Proxy {
    let proxy = Proxy::start(upstream).await.unwrap();
    count_all(&proxy);
    proxy
}

fn count_all(proxy: &Proxy) {
    proxy.inject(Fault::Delay(Duration::ZERO), usize::MAX, |_, _| true);
}

/// A site whose worker, and whose ClickHouse, are connected through proxies.
struct Counted {
    site: Site,
    sqs: Proxy,
    s3_of_worker: Proxy,
    s3_of_clickhouse: Proxy,
    sluice: Sluice,
}

impl Counted {
    async fn new(stack: &Stack) -> Self {
        let site = stack.site("cost-report").await.unwrap();
        let aws = stack.aws.endpoint();
        let sqs = Proxy::start(aws).await.unwrap();
        // The SDK repeats a receive, which is billed as well.
        sqs.inject(Fault::Status(500), 1, |parts, _| {
            let target = parts.headers.get("x-amz-target");
            target.is_some_and(|it| it == "AmazonSQS.ReceiveMessage")
        });
        count_all(&sqs);
        let (s3_of_worker, s3_of_clickhouse) = (counting(aws).await, counting(aws).await);
        let sluice = Sluice::new(stack, &site)
            .set("s3.clickhouse_endpoint", s3_of_clickhouse.url())
            .environment("AWS_ENDPOINT_URL_SQS", sqs.url())
            .environment("AWS_ENDPOINT_URL_S3", s3_of_worker.url());
        sluice.migrate();
        Self {
            site,
            sqs,
            s3_of_worker,
            s3_of_clickhouse,
            sluice,
        }
    }

    async fn cost(&self, stack: &Stack, arguments: &[&str]) -> Value {
        stack.clickhouse.execute("SYSTEM FLUSH LOGS").await.unwrap();
        let arguments = [&["cost", "--output", "json"], arguments].concat();
        let output = self.sluice.command(&arguments);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn sum(rows: &[&Value], pointer: &str) -> f64 {
    let values = rows
        .iter()
        .map(|row| row.pointer(pointer).unwrap().as_f64().unwrap());
    values.sum()
}

#[tokio::test]
async fn the_cost_of_loading_is_that_of_the_requests_that_were_sent() {
    let stack = Stack::shared();
    let mut counted = Counted::new(stack).await;
    let bundles: Vec<_> = Generator::new(54).take(20).collect();
    let expected_rows = upload(&counted.site, &bundles).await;
    // The worker streams this object, since ClickHouse cannot address its key.
    counted.site.put("odd*.jsonl", line("odd")).await.unwrap();
    counted.sluice.start();
    wait_until_drained(&counted.site).await;
    assert_eq!(counted.sluice.stop().await.code(), Some(0));

    let report = counted.cost(stack, &[]).await;
    let rows: Vec<&Value> = report["usage"].as_array().unwrap().iter().collect();
    let close = |value: f64, expected: usize, what: &str| {
        let expected = expected as f64;
        assert!(
            (value - expected).abs() < 1e-6,
            "{what}: {value} {expected}"
        );
    };
    let all = |item: &str| sum(&rows, &format!("/amounts/{item}"));
    close(all("sqs_requests"), counted.sqs.hits(), "SQS");
    let reads = counted.s3_of_worker.hits() + counted.s3_of_clickhouse.hits();
    close(all("s3_read_requests"), reads, "S3");
    close(all("s3_write_requests"), 0, "S3 writes");
    let stored: usize = bundles.iter().map(|bundle| bundle.bytes.len()).sum();
    assert!(all("s3_bytes") >= stored as f64, "{report:#}");
    for item in ["clickhouse_processor_seconds", "worker_processor_seconds"] {
        assert!(all(item) > 0.0, "{report:#}");
    }
    for kind in EventType::ALL {
        let rows: Vec<&Value> = rows
            .iter()
            .filter(|row| row["event_type"] == kind.name())
            .copied()
            .collect();
        let lines = sum(&rows, "/lines") as u64;
        assert_eq!(lines, expected_rows.rows(kind), "{kind:?}");
        if lines > 0 {
            assert!(sum(&rows, "/amounts/s3_read_requests") > 0.0, "{kind:?}");
            assert!(sum(&rows, "/cost") > 0.0, "{kind:?}");
        }
    }

    // The prices can be printed, edited, and read again.
    let printed = counted.sluice.command(&["cost", "--print-prices"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    let dearer = printed.replace("price: 0.40\n", "price: 1000000\n");
    let prices = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(prices.path(), &dearer).unwrap();
    let path = prices.path().to_str().unwrap();
    let report = counted.cost(stack, &["--prices", path]).await;
    let of_sqs = report["total"]["costs"]["sqs_requests"].as_f64().unwrap();
    close(of_sqs, counted.sqs.hits(), "one dollar a request");

    std::fs::write(prices.path(), dearer.replace("per: 1000000\n", "per: 0\n")).unwrap();
    let refused = counted.sluice.command(&["cost", "--prices", path]);
    assert_eq!(refused.status.code(), Some(1));
    let complaint = String::from_utf8(refused.stderr).unwrap();
    assert!(complaint.contains("prices.sqs_requests.per"), "{complaint}");

    let text = counted.sluice.command(&["cost"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("total: "), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
}
