//! The worker's status as a stream, built once a second for all its readers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::WorkerHandles;
use super::status::LiveStatus;
use crate::telemetry::activity::STEP;

const INTERVAL: Duration = Duration::from_secs(1);
/// The number of pages that can be open at a time.
const MAX_STREAMS: usize = 32;

/// The source of the status.
#[derive(Clone)]
struct Source {
    handles: WorkerHandles,
    stop: CancellationToken,
}

impl Source {
    fn json(&self) -> String {
        let json = serde_json::to_string(&LiveStatus::of(&self.handles, &self.stop));
        json.unwrap_or_else(|failed| {
            error!("failed to serialize the status; sending an empty one: {failed}");
            "{}".to_owned()
        })
    }
}

/// Produces the events, which all readers share.
pub(super) struct Reporter {
    source: Source,
    latest: watch::Sender<Arc<str>>,
}

/// The readers' side of the events.
pub(super) struct Events {
    source: Source,
    latest: watch::Receiver<Arc<str>>,
    places: Arc<Semaphore>,
}

impl Reporter {
    pub(super) fn new(handles: WorkerHandles, stop: CancellationToken) -> Self {
        let source = Source { handles, stop };
        let latest = watch::Sender::new(source.json().into());
        Self { source, latest }
    }

    pub(super) fn events(&self) -> Events {
        Events {
            source: self.source.clone(),
            latest: self.latest.subscribe(),
            places: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }

    /// Produces the events forever. Streams end when this is dropped.
    pub(super) async fn run(self) -> Infallible {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut step_at = Instant::now() + STEP;
        loop {
            let now = tick.tick().await;
            if now >= step_at {
                step_at += STEP;
                let WorkerHandles {
                    breaker, activity, ..
                } = &self.source.handles;
                activity.step(now, breaker.pause_reason().is_some());
            }
            self.latest.send_replace(self.source.json().into());
        }
    }
}

impl Events {
    /// Returns the status as of now.
    pub(super) fn status(&self) -> String {
        self.source.json()
    }

    /// Returns a stream of one event a second, the first at once. A slow client gets fewer.
    pub(super) fn stream(&self) -> Response {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            let text = "too many live pages are open\n";
            return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
        };
        let mut latest = self.latest.clone();
        latest.mark_changed();
        let stream = unfold((latest, place), async |(mut latest, place)| {
            latest.changed().await.ok()?;
            let event = Event::default().data(&**latest.borrow_and_update());
            Some((Ok::<_, Infallible>(event), (latest, place)))
        });
        Sse::new(stream).into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;
    use crate::telemetry::activity::Activity;

    fn reporter() -> Reporter {
        let handles = WorkerHandles::new(INTERVAL, Activity::default());
        Reporter::new(handles, CancellationToken::new())
    }

    #[tokio::test]
    async fn the_number_of_open_pages_is_limited() {
        let events = reporter().events();
        let mut open: Vec<Response> = (0..MAX_STREAMS).map(|_| events.stream()).collect();
        assert!(open.iter().all(|page| page.status() == StatusCode::OK));
        let refused = events.stream().status();
        assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
        open.pop();
        assert_eq!(events.stream().status(), StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_begins_at_once_and_ends_with_the_reporter() {
        let reporter = reporter();
        let (events, health) = (reporter.events(), reporter.source.handles.health.clone());
        let page = events.stream();
        let reading = tokio::spawn(to_bytes(page.into_body(), usize::MAX));
        tokio::task::yield_now().await;
        let reporting = tokio::spawn(reporter.run());
        health.queue_fails("no <route>".to_owned());
        tokio::time::sleep(STEP * 5).await;
        reporting.abort();
        let read = reading.await.unwrap().unwrap();
        let read: Vec<_> = std::str::from_utf8(&read).unwrap().split("\n\n").collect();
        assert!(read.len() > 5, "{read:?}");
        let first: serde_json::Value =
            serde_json::from_str(read[0].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(first["condition"]["word"], "starting");
        let last: serde_json::Value = serde_json::from_str(&events.status()).unwrap();
        assert_eq!(last["condition"]["word"], "paused");
        assert_eq!(last["queue_away"], "no <route>");
        let steps = last["history"]["paused"].as_array().unwrap();
        assert!((4..=5).contains(&steps.len()), "{last}");
    }
}
