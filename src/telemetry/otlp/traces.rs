//! One trace for each batch.

use anyhow::Context;
use opentelemetry::global;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

use super::{Collector, FLUSH, Signal, resource};
use crate::config::TelemetryConfig;

/// The provider of traces, if they are configured.
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    pub(in crate::telemetry) fn none() -> Self {
        Self(None)
    }

    /// Starts traces as configured. The current runtime sends them.
    pub(in crate::telemetry) fn start(config: &TelemetryConfig) -> anyhow::Result<Self> {
        let Some(endpoint) = &config.otlp_endpoint else {
            return Ok(Self::none());
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(Signal::Traces, endpoint)?)
            .with_endpoint(Signal::Traces.url(endpoint))
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

    pub(in crate::telemetry) fn provider(&self) -> Option<&SdkTracerProvider> {
        self.0.as_ref()
    }

    /// Sends the remaining traces.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        let shutdown = move || provider.shutdown_with_timeout(FLUSH);
        Signal::Traces.end(shutdown).await;
    }
}
