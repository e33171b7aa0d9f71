//! Objects that arrive steadily, and announcements that arrive more than once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use sluice_testkit::Site;
use sluice_testkit::xapi::{Bundle, Generator};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// The longest time between two objects.
const PAUSE: Duration = Duration::from_millis(250);
/// No objects arrive while more messages than this wait, so that the run tests faults instead of
/// load.
const BACKLOG: u64 = 500;
/// The share of objects that are announced a second time at once, and of those after which a random
/// older one is announced again.
const DUPLICATES: f64 = 0.2;

pub(super) struct Arrivals {
    task: JoinHandle<Result<Arrived>>,
    stop: watch::Sender<bool>,
    count: Arc<AtomicU64>,
}

/// The objects and announcements so far.
#[derive(Default)]
pub(super) struct Arrived {
    pub(super) bundles: Vec<Bundle>,
    pub(super) duplicates: u64,
}

impl Arrivals {
    pub(super) fn start(site: Site, mut rng: Rng) -> Self {
        let (stop, mut is_stopped) = watch::channel(false);
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        let task = tokio::spawn(async move {
            let mut generator = Generator::new(rng.u64(..));
            let mut arrived = Arrived::default();
            let mut announcements: Vec<String> = Vec::new();
            while !*is_stopped.borrow_and_update() {
                let (visible, in_flight) = site.queue_depth().await?;
                if visible + in_flight > BACKLOG {
                    sleep(PAUSE).await;
                    continue;
                }
                let bundle = generator.bundle();
                let etag = site.put(&bundle.key, bundle.bytes.clone()).await?;
                let announcement = site.announcement(&bundle, &etag);
                if rng.f64() < DUPLICATES {
                    site.send(&announcement).await?;
                    arrived.duplicates += 1;
                    if let Some(older) = rng.choice(&announcements) {
                        site.send(older).await?;
                        arrived.duplicates += 1;
                    }
                }
                announcements.push(announcement);
                arrived.bundles.push(bundle);
                counted.fetch_add(1, Ordering::Relaxed);
                sleep(PAUSE.mul_f64(rng.f64())).await;
            }
            Ok(arrived)
        });
        Self { task, stop, count }
    }

    /// Returns the number of objects so far.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Stops the arrivals and returns what arrived.
    pub(super) async fn stop(self) -> Result<Arrived> {
        self.stop.send_replace(true);
        self.task.await?
    }
}
