//! Measures the worker's own processing of 100,000 messages, step by step and without servers:
//! `cargo bench --package sluice-bench`.

use sluice::Env;
use std::time::Duration;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use sluice::batch::{Batch, BatchId, BatchLimits, Batcher, Layout, ReadBy, StatementShape};
use sluice::daemon::in_flight::{Disposition, InFlightMessages, VisibilityPolicy};
use sluice::event_types::Catalog;
use sluice::notification::{Notification, parse_notification};
use sluice::object::ObjectRef;
use sluice::queue::{Message, ReceiptHandle, VISIBILITY_LIMIT};
use sluice::statements::insert::{Planner, PlannerOptions, Strategy, TimeLimits};
use sluice::statements::s3_source::{S3Access, S3Source};
use tokio::time::Instant;

const MESSAGES: usize = 100_000;

fn main() {
    divan::main();
}

fn body(number: usize) -> String {
    serde_json::json!({"Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "us-east-1",
        "eventTime": "2026-07-14T12:00:00.000Z",
        "eventName": "ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "uploads",
            "bucket": {"name": "uploads", "arn": "arn:aws:s3:::uploads"},
            "object": {
                "key": format!("section/{}/video/2026-07-14T12-00-00_{number:016x}.jsonl", 4000 + number % 800),
                "size": 1500,
                "eTag": format!("{number:032x}"),
                "sequencer": format!("{number:016X}"),
            },
        },
    }]})
    .to_string()
}

fn objects() -> Vec<ObjectRef> {
    let parsed = (0..MESSAGES).flat_map(|number| match parse_notification(&body(number)) {
        Ok(Notification::Objects(announced)) => announced,
        other => panic!("{other:?}"),
    });
    parsed.map(|announced| announced.object).collect()
}

fn batches() -> Vec<Batch> {
    let mut batcher = Batcher::new(BatchLimits {
        window: Duration::from_secs(10),
        flush_when_idle: true,
        max_objects: 1_000,
        max_bytes: 128 << 20,
    });
    let now = Instant::now();
    let closed = objects()
        .into_iter()
        .flat_map(|object| batcher.add(object, now));
    let mut batches: Vec<Batch> = closed.collect();
    batches.extend(batcher.take_all(now));
    batches
}

#[divan::bench]
fn parse(bencher: Bencher) {
    let bodies: Vec<String> = (0..MESSAGES).map(body).collect();
    bencher.counter(ItemsCount::new(MESSAGES)).bench(|| {
        for body in &bodies {
            black_box(parse_notification(body)).expect("a notification");
        }
    });
}

#[divan::bench]
fn batch(bencher: Bencher) {
    let limits = BatchLimits {
        window: Duration::from_secs(10),
        flush_when_idle: true,
        max_objects: 1_000,
        max_bytes: 128 << 20,
    };
    let input = || (Batcher::new(limits), objects());
    let bencher = bencher
        .counter(ItemsCount::new(MESSAGES))
        .with_inputs(input);
    bencher.bench_values(|(mut batcher, objects)| {
        let now = Instant::now();
        for object in objects {
            black_box(batcher.add(object, now));
        }
    });
}

#[divan::bench]
fn plan(bencher: Bencher) {
    let planner = Planner::new(PlannerOptions {
        catalog: Catalog::builtin(),
        source: S3Source {
            endpoint: None,
            default_region: "us-east-1".into(),
            access: S3Access::Server,
        },
        strategy: Strategy::SinglePass,
        database: "sluice".into(),
        max_bytes: 128 << 20,
        max_line_bytes: 16 << 20,
        times: TimeLimits::ANY,
        insert_timeout: Duration::from_secs(600),
    });
    let batches = batches();
    bencher.counter(ItemsCount::new(MESSAGES)).bench(|| {
        for batch in &batches {
            let objects: Vec<&ObjectRef> = batch.objects.iter().collect();
            let shape = StatementShape::of(ReadBy::S3);
            let layout = Layout::default();
            let batch = BatchId::new(&Env::default());
            black_box(planner.inserts(batch, &objects, shape, &layout, "0"));
        }
    });
}

#[divan::bench]
fn settle(bencher: Bencher) {
    let policy = VisibilityPolicy {
        timeout: Duration::from_secs(120),
        limit: VISIBILITY_LIMIT,
        retry_min: Duration::from_secs(10),
        retry_max: Duration::from_secs(900),
    };
    let ids: Vec<_> = objects().iter().map(ObjectRef::id).collect();
    let messages: Vec<Message> = (0..MESSAGES).map(message).collect();
    bencher
        .counter(ItemsCount::new(MESSAGES))
        .with_inputs(|| InFlightMessages::new(policy))
        .bench_refs(|in_flight| {
            let now = Instant::now();
            for (message, id) in messages.iter().zip(&ids) {
                black_box(in_flight.track(message, &[*id], now));
            }
            for id in &ids {
                black_box(in_flight.resolve(*id, Disposition::Done, 0.5));
            }
        });
}

fn message(number: usize) -> Message {
    Message {
        id: format!("{number:032x}"),
        handle: ReceiptHandle(format!("{number:0256x}")),
        body: String::new(),
        receive_count: 1,
        age: Duration::ZERO,
    }
}
