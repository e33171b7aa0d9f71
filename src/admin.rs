//! The admin listener: health, readiness, metrics, status. Read-only.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::load::breaker::Breaker;
use crate::telemetry::metrics::Holdings;

/// An event loop that has not come round for this long is stuck: it does so every second.
const STUCK: Duration = Duration::from_secs(30);

/// The event loop's sign of life, and whether the queue answers.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Milliseconds after `started`.
    last_beat: AtomicU64,
    /// Why nothing comes from the queue, while that is so.
    queue_away: Mutex<Option<String>>,
    holdings: Mutex<Holdings>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            last_beat: AtomicU64::new(0),
            queue_away: Mutex::new(Some("the queue has not been reached yet".to_owned())),
            holdings: Mutex::default(),
        }
    }
}

impl Health {
    pub fn beat(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_beat.store(now, Ordering::Relaxed);
    }

    pub fn queue_answers(&self) {
        *self.queue_away() = None;
    }

    pub fn queue_fails(&self, why: String) {
        *self.queue_away() = Some(why);
    }

    pub fn holds(&self, holdings: Holdings) {
        *self.holdings.lock().unwrap_or_else(PoisonError::into_inner) = holdings;
    }

    fn queue_away(&self) -> MutexGuard<'_, Option<String>> {
        self.queue_away
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn silent_for(&self) -> Duration {
        let beat = Duration::from_millis(self.last_beat.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(beat)
    }
}

/// What `/status.json` says of the worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub version: String,
    pub uptime_seconds: u64,
    /// Why intake is paused, if it is.
    pub paused: Option<String>,
    /// Why nothing comes from the queue, if that is so.
    pub queue_away: Option<String>,
    #[serde(flatten)]
    pub holdings: Holdings,
}

struct Admin {
    health: Arc<Health>,
    breaker: Arc<Breaker>,
    metrics: PrometheusHandle,
}

/// A listener that is bound and not yet served: binding is the part that can fail.
pub struct AdminListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl AdminListener {
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address}; change `admin.listen` or free the port")
        })?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves for as long as it is polled.
    pub async fn serve(
        self,
        health: Arc<Health>,
        breaker: Arc<Breaker>,
        metrics: PrometheusHandle,
    ) -> std::io::Result<()> {
        let routes = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(render_metrics))
            .route("/status.json", get(status))
            .with_state(Arc::new(Admin {
                health,
                breaker,
                metrics,
            }));
        axum::serve(self.listener, routes).await
    }
}

async fn healthz(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let silent = admin.health.silent_for();
    if silent < STUCK {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        let seconds = silent.as_secs();
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the event loop is stuck since {seconds} s\n"),
        )
    }
}

async fn readyz(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let paused = admin
        .breaker
        .reason()
        .map(|why| format!("intake is paused: {why}\n"));
    let queue = admin.health.queue_away().clone();
    let queue = queue.map(|why| format!("nothing comes from the queue: {why}\n"));
    match [paused, queue].into_iter().flatten().collect::<String>() {
        reasons if reasons.is_empty() => (StatusCode::OK, "ready\n".to_owned()),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, reasons),
    }
}

async fn status(State(admin): State<Arc<Admin>>) -> Json<WorkerStatus> {
    let health = &admin.health;
    Json(WorkerStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: health.started.elapsed().as_secs(),
        paused: admin.breaker.reason(),
        queue_away: health.queue_away().clone(),
        holdings: health
            .holdings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone(),
    })
}

async fn render_metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    admin.metrics.run_upkeep();
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        admin.metrics.render(),
    )
}
