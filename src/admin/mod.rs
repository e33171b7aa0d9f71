//! The admin listener: health, readiness, metrics, status and the live page. Read-only.

mod condition;
mod connections;
mod events;
mod page;
mod status;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::condition::HealthInputs;
use self::events::{Events, Reporter};
pub use self::status::WorkerStatus;
use crate::daemon::WorkerHandles;

/// The interval at which the recorder aggregates its histograms.
const UPKEEP: Duration = Duration::from_secs(5);

struct Admin {
    handles: WorkerHandles,
    metrics: PrometheusHandle,
    events: Events,
}

/// A listener that is bound, but not served yet. Only binding can fail.
pub struct AdminListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl AdminListener {
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("failed to listen on {address}; change `admin.listen` or free the port")
        })?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves forever, under IP addresses, `localhost` and `allowed_hosts`. Once `stop` is
    /// cancelled, the page shows that the worker is stopping.
    pub async fn serve(
        self,
        handles: WorkerHandles,
        metrics: PrometheusHandle,
        allowed_hosts: Vec<String>,
        stop: CancellationToken,
    ) -> Infallible {
        let reporter = Reporter::new(handles.clone(), stop);
        let upkeep = upkeep(metrics.clone());
        let admin = Admin {
            handles,
            metrics,
            events: reporter.events(),
        };
        let routes = Router::new()
            .merge(page::routes())
            .route("/events", get(events))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(render_metrics))
            .route("/status.json", get(status))
            .with_state(Arc::new(admin));
        tokio::select! {
            never = connections::serve(self.listener, routes, allowed_hosts) => never,
            never = reporter.run() => never,
            never = upkeep => never,
        }
    }
}

/// Aggregates histograms forever. Until then, they keep every value, even if nobody reads them.
async fn upkeep(metrics: PrometheusHandle) -> Infallible {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tick.tick().await;
        metrics.run_upkeep();
    }
}

async fn healthz(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    match admin.handles.health.stuck_for() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(silent) => {
            let seconds = silent.as_secs();
            (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("the event loop has been stuck for {seconds} s\n"),
            )
        }
    }
}

async fn readyz(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let WorkerHandles {
        health, breaker, ..
    } = &admin.handles;
    let paused = breaker.reason();
    let paused = paused.map(|why| format!("intake is paused: {why}\n"));
    let queue = health.queue().away();
    let queue = queue.map(|why| format!("no messages are received: {why}\n"));
    let concerns: String = HealthInputs::of(&admin.handles, false, Instant::now())
        .concerns()
        .iter()
        .map(|concern| format!("attention: {concern}\n"))
        .collect();
    match [paused, queue].into_iter().flatten().collect::<String>() {
        // It loads: concerns are not a reason to take it out of service.
        reasons if reasons.is_empty() => (StatusCode::OK, format!("ready\n{concerns}")),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, reasons + &concerns),
    }
}

async fn status(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, admin.events.status())
}

async fn events(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    admin.events.stream()
}

async fn render_metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        admin.metrics.render(),
    )
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::telemetry::activity::Activity;

    #[tokio::test(start_paused = true)]
    async fn a_stuck_loop_fails_healthz_until_it_turns_again() {
        let handles = WorkerHandles::new(Duration::from_secs(1), Activity::default());
        let admin = Arc::new(Admin {
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            events: Reporter::new(handles.clone(), CancellationToken::new()).events(),
            handles,
        });
        let alive = async || healthz(State(admin.clone())).await.into_response().status();
        assert_eq!(alive().await, StatusCode::OK);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(alive().await, StatusCode::SERVICE_UNAVAILABLE);
        admin.handles.health.beat();
        assert_eq!(alive().await, StatusCode::OK);
    }
}
