//! Sends traces to a collector, by OTLP over HTTP. An unavailable collector is harmless: spans that
//! do not fit into a bounded queue are dropped.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::{KeyValue, global};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::config::TelemetryConfig;
use crate::util::error_chain::with_sources;
use crate::util::http;
use crate::util::outage::OutageLog;

/// The time that one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The time to send the remaining traces at the end.
const FLUSH: Duration = Duration::from_secs(5);
/// The largest response that is read, in bytes. A collector sends only a few.
const MAX_ANSWER: usize = 1 << 20;

/// The provider of traces, if they are configured.
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Starts traces as configured. The current runtime sends them.
    pub(super) fn start(config: &TelemetryConfig) -> anyhow::Result<Self> {
        let Some(endpoint) = &config.otlp_endpoint else {
            return Ok(Self::none());
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(endpoint)?)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_protocol(Protocol::HttpBinary)
            .build()
            .context("failed to set up traces")?;
        let sampler = Sampler::TraceIdRatioBased(config.sample_ratio.get());
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_resource(resource())
            .build();
        global::set_tracer_provider(provider.clone());
        Ok(Self(Some(provider)))
    }

    pub(super) fn provider(&self) -> Option<&SdkTracerProvider> {
        self.0.as_ref()
    }

    /// Sends the remaining traces.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        let flush = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH));
        let error = match flush.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        warn!(error, "failed to send the remaining traces");
    }
}

/// Returns the attributes of the worker. Those of the environment take precedence.
fn resource() -> Resource {
    Resource::builder_empty()
        .with_service_name("sluice")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()))
        .build()
}

/// Sends requests on the runtime: the exporter calls from a thread of its own.
#[derive(Debug)]
struct Collector {
    endpoint: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    outage: Mutex<OutageLog>,
}

impl Collector {
    fn new(endpoint: &str) -> anyhow::Result<Self> {
        Ok(Self {
            endpoint: endpoint.to_owned(),
            client: http::client(TIMEOUT, None)?,
            runtime: Handle::current(),
            outage: Mutex::new(OutageLog::once()),
        })
    }

    /// Logs the first failure of an outage, and its end.
    fn note(&self, error: Option<&str>) {
        let endpoint = self.endpoint.as_str();
        if let Some(error) = error {
            if self.outage().failed(()).is_mentioned {
                warn!(
                    endpoint,
                    error,
                    "failed to send traces to the OTLP collector; dropping them until it recovers; \
                     check `telemetry.otlp_endpoint`"
                );
            }
        } else if self.outage().succeeded().is_some() {
            info!(
                endpoint,
                "the OTLP collector has recovered; sending traces resumed"
            );
        }
    }

    fn outage(&self) -> MutexGuard<'_, OutageLog> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = send(self.client.clone(), request);
        let answer = self.runtime.spawn(sent).await.map_err(HttpError::from);
        let answer = answer.and_then(|answer| answer);
        match &answer {
            Ok(answer) if answer.status().is_success() => self.note(None),
            Ok(answer) => self.note(Some(&format!("status {}", answer.status()))),
            Err(error) => self.note(Some(&with_sources(error.as_ref()))),
        }
        answer
    }
}

async fn send(
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let exchange = async {
        let response = client.request(request.map(Full::new)).await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    tokio::time::timeout(TIMEOUT, exchange).await?
}
