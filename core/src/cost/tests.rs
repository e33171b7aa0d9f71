use super::prices::Prices;
use super::*;

fn clickhouse(day: &str, event_type: &str, read_requests: f64) -> ClickHouseUsage {
    ClickHouseUsage {
        day: day.to_owned(),
        event_type: event_type.to_owned(),
        read_requests,
        write_requests: 0.0,
        bytes_read: 100.0,
        processor_seconds: 2.0,
    }
}

fn worker(day: &str, kind: UsageKind, operation: &str, amount: f64) -> WorkerUsage {
    WorkerUsage {
        day: day.to_owned(),
        kind: kind.label().to_owned(),
        operation: operation.to_owned(),
        amount,
    }
}

fn lines(day: &str, event_type: &str, lines: u64) -> LoadedLines {
    LoadedLines {
        day: day.to_owned(),
        event_type: event_type.to_owned(),
        lines,
    }
}

#[test]
fn what_workers_use_is_divided_by_the_lines_of_the_day() {
    let workers = [
        worker("2026-01-01", UsageKind::SqsRequests, "ReceiveMessage", 30.0),
        worker(
            "2026-01-01",
            UsageKind::SqsRequests,
            "DeleteMessageBatch",
            10.0,
        ),
        worker("2026-01-01", UsageKind::S3Requests, "GetObject", 8.0),
        worker("2026-01-01", UsageKind::S3Requests, "ListObjectsV2", 4.0),
        worker("2026-01-01", UsageKind::S3Bytes, "", 1000.0),
        worker("2026-01-01", UsageKind::ProcessorTime, "", 4e6),
        // Nothing was loaded on this day.
        worker("2026-01-02", UsageKind::SqsRequests, "ReceiveMessage", 5.0),
    ];
    let loaded = [
        lines("2026-01-01", "video", 30),
        lines("2026-01-01", "page", 10),
    ];
    let rows = divide(&[], &workers, &loaded);
    let of = |row: &Usage| {
        (
            row.day.clone(),
            row.event_type.clone(),
            row.amounts.sqs_requests,
        )
    };
    let text = str::to_owned;
    assert_eq!(
        rows.iter().map(of).collect::<Vec<_>>(),
        [
            (text("2026-01-02"), text(NO_EVENT_TYPE), 5.0),
            (text("2026-01-01"), text("page"), 10.0),
            (text("2026-01-01"), text("video"), 30.0),
        ]
    );
    let page = &rows[1].amounts;
    assert_eq!((page.s3_read_requests, page.s3_write_requests), (2.0, 1.0));
    assert_eq!((page.s3_bytes, page.worker_processor_seconds), (250.0, 1.0));
}

#[test]
fn what_clickhouse_uses_keeps_its_event_type() {
    let used = [
        clickhouse("2026-01-01", "video", 6.0),
        clickhouse("2026-01-01", "", 1.0),
    ];
    let loaded = [lines("2026-01-01", "video", 3)];
    let rows = divide(&used, &[], &loaded);
    let reads: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.event_type.as_str(),
                row.lines,
                row.amounts.s3_read_requests,
            )
        })
        .collect();
    assert_eq!(reads, [("video", 3, 6.0), (NO_EVENT_TYPE, 0, 1.0)]);
    assert_eq!(rows[0].amounts.clickhouse_processor_seconds, 2.0);
}

#[test]
fn nothing_is_lost_in_the_division() {
    let workers = [worker(
        "2026-01-01",
        UsageKind::SqsRequests,
        "ReceiveMessage",
        100.0,
    )];
    let loaded = [1, 2, 4].map(|count| lines("2026-01-01", &count.to_string(), count));
    let rows = divide(&[], &workers, &loaded);
    let total: f64 = rows.iter().map(|row| row.amounts.sqs_requests).sum();
    assert!((total - 100.0).abs() < 1e-9, "{total}");
}

#[test]
fn a_kind_of_a_later_version_costs_nothing() {
    let mut used = worker("2026-01-01", UsageKind::S3Bytes, "", 7.0);
    used.kind = "kms_requests".to_owned();
    let rows = divide(&[], &[used], &[]);
    assert_eq!(rows[0].amounts, Amounts::default());
}

#[test]
fn the_prices_that_come_with_sluice_are_valid() {
    let prices = Prices::default();
    let amounts = Amounts {
        sqs_requests: 2e6,
        s3_read_requests: 1e4,
        s3_write_requests: 1e3,
        s3_bytes: 1e12,
        clickhouse_processor_seconds: 3600.0,
        worker_processor_seconds: 1800.0,
    };
    let cost = prices.cost(&amounts);
    let is = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-9, "{value}");
    is(cost.sqs_requests, 0.8);
    is(cost.s3_read_requests, 0.004);
    is(cost.s3_write_requests, 0.005);
    is(cost.s3_bytes, 0.0);
    is(cost.clickhouse_processor_seconds, 0.0504);
    is(cost.worker_processor_seconds, 0.02024);
    is(cost.total(), 0.87964);
}

#[test]
fn prices_that_cannot_be_used_are_refused() {
    let default = prices::DEFAULT;
    for (from, to, problem) in [
        ("price: 0.40", "price: -1", "prices.sqs_requests.price"),
        ("per: 1000000\n", "per: 0\n", "prices.sqs_requests.per"),
        ("currency: USD", "", "currency"),
        ("  s3_bytes:", "  s4_bytes:", "s4_bytes"),
        ("price: 0.40", "price: free", "prices.sqs_requests.price"),
    ] {
        let text = default.replacen(from, to, 1);
        assert_ne!(text, default, "{from}");
        let error = Prices::from_yaml(&text).unwrap_err();
        assert!(error.contains(problem), "{to}: {error}");
    }
}
