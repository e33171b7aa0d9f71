//! The metrics of `/metrics`, sent at an interval.

use anyhow::Context;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_otlp::{MetricExporter, Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};

use super::{Collector, FLUSH, Signal, resource};
use crate::config::TelemetryConfig;

/// The provider of the metrics that are sent, if this is configured.
pub struct PushedMetrics(Option<SdkMeterProvider>);

impl PushedMetrics {
    /// Starts sending as configured. The current runtime sends.
    pub fn start(config: &TelemetryConfig) -> anyhow::Result<Self> {
        let (Some(endpoint), Some(interval)) = (&config.otlp_endpoint, config.metrics_interval)
        else {
            return Ok(Self(None));
        };
        let exporter = MetricExporter::builder()
            .with_http()
            .with_http_client(Collector::new(Signal::Metrics, endpoint)?)
            .with_endpoint(Signal::Metrics.url(endpoint))
            .with_protocol(Protocol::HttpBinary)
            .build()
            .context("failed to set up sending metrics")?;
        // Its thread sends; a request may take longer than the interval, and the next one then waits.
        let reader = PeriodicReader::builder(exporter)
            .with_interval(interval.get())
            .build();
        let provider = SdkMeterProvider::builder()
            .with_reader(reader)
            .with_resource(resource())
            .build();
        Ok(Self(Some(provider)))
    }

    /// Returns what the instruments are created with, or `None` if nothing is sent.
    pub fn meter(&self) -> Option<Meter> {
        self.0.as_ref().map(|provider| provider.meter("sluice"))
    }

    /// Sends the final values.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        let shutdown = move || provider.shutdown_with_timeout(FLUSH);
        Signal::Metrics.end(shutdown).await;
    }
}
