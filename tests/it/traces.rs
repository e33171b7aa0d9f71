//! Traces, received by an OTLP collector.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use sluice_testkit::Stack;
use sluice_testkit::xapi::Generator;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::harness::{Sluice, assert_rows, upload, wait_until_drained};

#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

/// A collector that receives traces until it is dropped.
struct Collector {
    url: String,
    received: Received,
    task: JoinHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Received::default();
        let router = Router::new()
            .route("/v1/traces", post(receive))
            .with_state(received.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            received,
            task,
        }
    }

    fn resources(&self) -> Vec<Resource> {
        let received = self.received.0.lock().unwrap();
        let spans = received.iter().flat_map(|request| &request.resource_spans);
        spans.filter_map(|spans| spans.resource.clone()).collect()
    }

    /// Returns the spans in the order of their start.
    fn spans(&self) -> Vec<Span> {
        let received = self.received.0.lock().unwrap();
        let scopes = received.iter().flat_map(|request| &request.resource_spans);
        let scopes = scopes.flat_map(|spans| &spans.scope_spans);
        let mut spans: Vec<Span> = scopes.flat_map(|scope| scope.spans.clone()).collect();
        spans.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(State(received): State<Received>, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    received.0.lock().unwrap().push(request);
    StatusCode::OK
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> &'a Value {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    let value = found.and_then(|attribute| attribute.value.as_ref());
    let value = value.and_then(|AnyValue { value }| value.as_ref());
    value.unwrap_or_else(|| panic!("no {key}: {attributes:?}"))
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    match attribute(attributes, key) {
        Value::StringValue(text) => text,
        other => panic!("{key} is {other:?}"),
    }
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut named = spans.iter().filter(|span| span.name == name);
    match (named.next(), named.next()) {
        (Some(only), None) => only,
        other => panic!("{name}: {other:?} of {spans:#?}"),
    }
}

fn children<'a>(spans: &'a [Span], parent: &Span) -> Vec<&'a str> {
    let children = spans
        .iter()
        .filter(|span| span.parent_span_id == parent.span_id);
    children.map(|span| span.name.as_str()).collect()
}

#[tokio::test]
async fn a_batch_is_one_trace_from_the_first_receive_to_the_last_delete() {
    let stack = Stack::shared();
    let site = stack.site("traced").await.unwrap();
    let collector = Collector::start().await;
    let mut sluice = Sluice::new(stack, &site)
        .set("telemetry.otlp_endpoint", &collector.url)
        .set("batch.window", "2s")
        .set("batch.flush_when_idle", false)
        // Traces do not depend on the log level.
        .set("log.level", "off")
        .environment(
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test".into(),
        );
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(51).take(3).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;

    for resource in collector.resources() {
        assert_eq!(text(&resource.attributes, "service.name"), "sluice");
        assert!(!text(&resource.attributes, "service.version").is_empty());
        let environment = text(&resource.attributes, "deployment.environment.name");
        assert_eq!(environment, "test");
    }
    let spans = collector.spans();
    let batch = named(&spans, "batch");
    assert!(batch.parent_span_id.is_empty(), "{batch:?}");
    for span in &spans {
        assert_eq!(span.trace_id, batch.trace_id, "{span:?}");
        assert!(span.start_time_unix_nano >= batch.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= batch.end_time_unix_nano);
    }
    assert_eq!(
        children(&spans, batch),
        ["window", "queue", "load", "settle"]
    );
    let load = named(&spans, "load");
    let steps = ["look_up", "seal", "verify", "insert", "record"];
    assert_eq!(children(&spans, load), steps);
    let insert = named(&spans, "insert");
    assert_eq!(children(&spans, insert), ["statement"]);

    assert_eq!(text(&batch.attributes, "bucket"), site.bucket);
    assert_eq!(
        *attribute(&batch.attributes, "messages"),
        Value::IntValue(3)
    );
    let Value::ArrayValue(messages) = attribute(&batch.attributes, "message.ids") else {
        panic!("{batch:?}");
    };
    assert_eq!(messages.values.len(), 3);
    let statement = named(&spans, "statement");
    let query_id = text(&statement.attributes, "query_id");
    assert_eq!(text(&insert.attributes, "query_id"), query_id);
    stack.clickhouse.execute("SYSTEM FLUSH LOGS").await.unwrap();
    let known = format!(
        "SELECT count() FROM system.query_log WHERE query_id = '{query_id}' \
         AND type = 'QueryFinish'"
    );
    let known: u64 = stack.clickhouse.scalar(&known).await.unwrap();
    assert_eq!(known, 1);
    let recorded = format!(
        "SELECT objects FROM {}.ledger_batches WHERE event = 'loaded' AND batch_id = '{}'",
        site.database,
        text(&load.attributes, "batch.id"),
    );
    let recorded: u64 = stack.clickhouse.scalar(&recorded).await.unwrap();
    assert_eq!(recorded, expected_rows.objects);
    // A trace with the statement would reveal its secrets.
    assert!(!format!("{spans:?}").contains("s3("), "{spans:#?}");
}

#[tokio::test]
async fn a_broken_object_appears_in_its_trace_and_a_sample_ratio_limits_the_traces() {
    let stack = Stack::shared();
    let site = stack.site("traced-broken").await.unwrap();
    let collector = Collector::start().await;
    let mut sluice = Sluice::new(stack, &site).set("telemetry.otlp_endpoint", &collector.url);
    sluice.migrate();
    site.put("bad.jsonl.gz", "no gzip").await.unwrap();
    sluice.start();
    crate::harness::wait_for_dead_letters(&site, 1).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    let spans = collector.spans();
    let batches = spans.iter().filter(|span| span.name == "batch");
    let statuses: Vec<_> = batches
        .map(|span| span.status.clone().unwrap().message)
        .collect();
    assert_eq!(statuses, ["1 objects cannot be loaded"; 5]);

    let before = spans.len();
    let mut sluice = sluice.set("telemetry.sample_ratio", 0);
    sluice.start();
    site.put("good.jsonl", "{}\n").await.unwrap();
    wait_until_drained(&site).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    assert_eq!(collector.spans().len(), before);
}

#[tokio::test]
async fn without_a_collector_everything_is_loaded_and_one_line_is_logged() {
    let stack = Stack::shared();
    let site = stack.site("untraced").await.unwrap();
    let mut sluice = Sluice::new(stack, &site)
        .set("telemetry.otlp_endpoint", "http://127.0.0.1:1")
        .set("batch.max_objects", 1)
        .environment("OTEL_BSP_SCHEDULE_DELAY", "100".into());
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(52).take(10).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    let log = sluice.log();
    assert_eq!(
        log.matches("failed to send traces to the OTLP collector")
            .count(),
        1,
        "{log}"
    );
}
