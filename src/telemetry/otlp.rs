//! Sends traces and metrics to a collector, by OTLP over HTTP. An unavailable collector is harmless:
//! spans that do not fit into a bounded queue are dropped, and metrics are sent again with the next
//! interval.

mod metrics;
mod traces;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::KeyValue;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::util::error_chain::with_sources;
use crate::util::http;
use crate::util::outage::OutageLog;
pub use metrics::PushedMetrics;
pub use traces::Traces;

/// The time that one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The time to send what remains at the end.
const FLUSH: Duration = Duration::from_secs(5);
/// The largest response that is read, in bytes. A collector sends only a few.
const MAX_ANSWER: usize = 1 << 20;

/// What is sent to the collector.
#[derive(Clone, Copy, Debug)]
enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }

    /// Returns the URL that it is sent to.
    fn url(self, endpoint: &str) -> String {
        format!("{}/v1/{}", endpoint.trim_end_matches('/'), self.name())
    }

    /// Sends what remains, by `shutdown`, which blocks.
    async fn end(self, shutdown: impl FnOnce() -> OTelSdkResult + Send + 'static) {
        let error = match spawn_blocking(shutdown).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        warn!(error, "failed to send the remaining {}", self.name());
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
    signal: Signal,
    endpoint: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    outage: Mutex<OutageLog>,
}

impl Collector {
    fn new(signal: Signal, endpoint: &str) -> anyhow::Result<Self> {
        Ok(Self {
            signal,
            endpoint: endpoint.to_owned(),
            client: http::client(TIMEOUT, None)?,
            runtime: Handle::current(),
            outage: Mutex::new(OutageLog::once()),
        })
    }

    /// Logs the first failure of an outage, and its end.
    fn note(&self, error: Option<&str>) {
        let (endpoint, signal) = (self.endpoint.as_str(), self.signal.name());
        if let Some(error) = error {
            if self.outage().failed(()).is_mentioned {
                warn!(
                    endpoint,
                    error,
                    "failed to send {signal} to the OTLP collector; dropping them until it recovers; \
                     check `telemetry.otlp_endpoint`"
                );
            }
        } else if self.outage().succeeded().is_some() {
            info!(
                endpoint,
                "the OTLP collector has recovered; sending {signal} resumed"
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
