//! The metrics that a collector receives are those of `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric};
use prost::Message;
use sluice_testkit::xapi::Generator;
use sluice_testkit::{Stack, wait_for};
use tokio::net::TcpListener;

use crate::harness::{BOUND, Sluice, upload, wait_until_drained};
use crate::metrics::{Exported, Labels};

type Received = Arc<Mutex<Vec<ExportMetricsServiceRequest>>>;

async fn receive(State(received): State<Received>, body: Bytes) -> StatusCode {
    let request = ExportMetricsServiceRequest::decode(body).unwrap();
    received.lock().unwrap().push(request);
    StatusCode::OK
}

/// Starts a collector, which ends with the runtime. Returns its URL.
async fn start_collector() -> (String, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let received = Received::default();
    let router = Router::new()
        .route("/v1/metrics", post(receive))
        .with_state(received.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, received)
}

fn labels(attributes: &[KeyValue]) -> Labels {
    let labels = attributes.iter().map(|attribute| {
        let value = attribute.value.as_ref().and_then(|it| it.value.as_ref());
        let Some(Value::StringValue(value)) = value else {
            panic!("{attribute:?}");
        };
        (attribute.key.clone(), value.clone())
    });
    labels.collect()
}

/// Returns the kind of a metric as Prometheus names it, and its series. The value of a histogram is
/// its count.
fn series(metric: &Metric) -> (&'static str, Vec<(Labels, f64)>) {
    let numbers = |points: &[opentelemetry_proto::tonic::metrics::v1::NumberDataPoint]| {
        let values = points.iter().map(|point| {
            let value = match point.value.unwrap() {
                Number::AsInt(value) => value as f64,
                Number::AsDouble(value) => value,
            };
            (labels(&point.attributes), value)
        });
        values.collect()
    };
    let cumulative = AggregationTemporality::Cumulative as i32;
    match metric.data.as_ref().unwrap() {
        Data::Gauge(gauge) => ("gauge", numbers(&gauge.data_points)),
        Data::Sum(sum) => {
            assert!(sum.is_monotonic, "{}", metric.name);
            assert_eq!(sum.aggregation_temporality, cumulative);
            ("counter", numbers(&sum.data_points))
        }
        Data::Histogram(histogram) => {
            assert_eq!(histogram.aggregation_temporality, cumulative);
            let points = histogram.data_points.iter();
            let counts = points.map(|point| (labels(&point.attributes), point.count as f64));
            ("histogram", counts.collect())
        }
        other => panic!("{}: {other:?}", metric.name),
    }
}

/// Returns what a request contains, as [`Exported`] has it.
fn exported(request: &ExportMetricsServiceRequest) -> Exported {
    let mut exported = Exported::default();
    let scopes = request.resource_metrics.iter();
    for metric in scopes
        .flat_map(|it| &it.scope_metrics)
        .flat_map(|it| &it.metrics)
    {
        let (kind, series) = series(metric);
        exported.kinds.insert(metric.name.clone(), kind.to_owned());
        for (labels, value) in series {
            exported.series.insert((metric.name.clone(), labels), value);
        }
    }
    exported
}

/// Removes histograms without a value, which OpenTelemetry does not have.
fn without_empty_histograms(mut exported: Exported) -> Exported {
    let Exported { kinds, series } = &mut exported;
    series.retain(|(name, _), value| kinds[name] != "histogram" || *value > 0.0);
    kinds.retain(|name, _| series.keys().any(|(of, _)| of == name));
    exported
}

#[tokio::test]
async fn a_collector_receives_the_metrics_that_prometheus_reads() {
    let stack = Stack::shared();
    let site = stack.site("pushed").await.unwrap();
    let (url, received) = start_collector().await;
    let mut sluice = Sluice::new(stack, &site)
        .set("telemetry.otlp_endpoint", &url)
        .set("telemetry.metrics_interval", "1s")
        // The collector takes no traces.
        .set("telemetry.sample_ratio", 0);
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(53).take(5).collect();
    upload(&site, &bundles).await;
    site.put("text.jsonl", "no JSON\n").await.unwrap();
    sluice.start();
    wait_until_drained(&site).await;

    // What is sent between two reads of `/metrics` lies between them: polls are counted all the
    // time. What was collected before the first read may arrive after it.
    let before = Exported::fetch(&sluice).await.unwrap();
    let count = received.lock().unwrap().len();
    let request = wait_for("the next metrics", BOUND, async || {
        Ok(received.lock().unwrap().get(count + 1).cloned())
    })
    .await;
    let after = without_empty_histograms(Exported::fetch(&sluice).await.unwrap());
    let pushed = exported(&request);
    assert_eq!(pushed.kinds, after.kinds);
    let names = |it: &Exported| it.series.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&pushed), names(&after));
    for (series, value) in &pushed.series {
        let after = after.series[series];
        let before = before.series.get(series).copied().unwrap_or(after);
        // A gauge also falls.
        let is_between = (before.min(after)..=before.max(after)).contains(value);
        assert!(is_between, "{series:?}: {before} {value} {after}");
    }
    let rejected: BTreeMap<_, _> = [("kind".to_owned(), "rejected".to_owned())].into();
    let rows = ("sluice_rows_total".to_owned(), rejected);
    assert_eq!(pushed.series.get(&rows), Some(&1.0));

    let before = received.lock().unwrap().len();
    assert_eq!(sluice.stop().await.code(), Some(0));
    let received = received.lock().unwrap();
    assert!(received.len() > before, "the final values were not sent");
    assert!(!sluice.log().contains("OTLP"), "{}", sluice.log());
}
