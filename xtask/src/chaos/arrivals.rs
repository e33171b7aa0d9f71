//! Objects that arrive steadily, and announcements that arrive more than once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use sluice_testkit::xapi::{Bundle, Generator};
use sluice_testkit::{Aws, Site};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Between two objects, at most.
const PAUSE: Duration = Duration::from_millis(250);
/// The share of objects that are announced again at once, and after which a random older one is.
const DUPLICATES: f64 = 0.2;

pub(super) struct Arrivals {
    task: JoinHandle<Result<Arrived>>,
    over: watch::Sender<bool>,
    count: Arc<AtomicU64>,
}

/// What has arrived.
#[derive(Default)]
pub(super) struct Arrived {
    pub(super) bundles: Vec<Bundle>,
    pub(super) duplicates: u64,
}

/// S3 and the queue, straight.
struct Source {
    s3: aws_sdk_s3::Client,
    sqs: aws_sdk_sqs::Client,
    bucket: String,
    queue_url: String,
}

impl Arrivals {
    pub(super) fn start(site: &Site, aws: &Aws, mut rng: Rng) -> Self {
        let source = Source {
            s3: aws.s3(),
            sqs: aws.sqs(),
            bucket: site.bucket.clone(),
            queue_url: site.queue_url.clone(),
        };
        let (over, mut is_over) = watch::channel(false);
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        let task = tokio::spawn(async move {
            let mut generator = Generator::new(rng.u64(..));
            let mut arrived = Arrived::default();
            let mut announcements: Vec<String> = Vec::new();
            while !*is_over.borrow_and_update() {
                let bundle = generator.bundle();
                let etag = source.put(&bundle).await?;
                let announcement = Site::announcement_of(&source.bucket, &bundle, &etag);
                if rng.f64() < DUPLICATES {
                    source.announce(&announcement).await?;
                    arrived.duplicates += 1;
                    if let Some(older) = rng.choice(&announcements) {
                        source.announce(older).await?;
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
        Self { task, over, count }
    }

    /// Objects so far.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// No more.
    pub(super) async fn end(self) -> Result<Arrived> {
        self.over.send_replace(true);
        self.task.await?
    }
}

impl Source {
    async fn put(&self, bundle: &Bundle) -> Result<String> {
        let request = self.s3.put_object().bucket(&self.bucket).key(&bundle.key);
        let output = request.body(bundle.bytes.clone().into()).send().await?;
        let etag = output.e_tag().context("S3 gave no etag")?;
        Ok(etag.trim_matches('"').to_owned())
    }

    async fn announce(&self, body: &str) -> Result<()> {
        let request = self.sqs.send_message().queue_url(&self.queue_url);
        request.message_body(body).send().await?;
        Ok(())
    }
}
