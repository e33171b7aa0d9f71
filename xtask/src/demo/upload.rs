//! Uploads generated objects by ordinary PUTs, and records what was uploaded and when.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sluice_testkit::Site;
use sluice_testkit::xapi::{Bundle, ExpectedRows, Generator};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

const UPLOADERS: usize = 16;
const TRIES: u32 = 5;

pub(super) struct Plan {
    pub(super) objects: u64,
    pub(super) rate: Option<f64>,
    pub(super) seed: u64,
}

/// What has been uploaded so far.
#[derive(Default)]
pub(super) struct Uploads {
    totals: Mutex<Totals>,
}

#[derive(Default)]
pub(super) struct Totals {
    /// The rows that Sluice must make of all uploaded objects.
    pub(super) expected_rows: ExpectedRows,
    /// The time of the response to the PUT of `bucket/key`, by this machine's clock.
    pub(super) put_at: HashMap<String, SystemTime>,
    pub(super) bytes: u64,
}

impl Uploads {
    pub(super) fn lock(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Source {
    generator: Generator,
    next: u64,
}

/// Starts the uploads. Every task of the set exits when nothing is left to upload.
pub(super) fn start(uploads: Arc<Uploads>, site: &Site, plan: Plan) -> JoinSet<Result<()>> {
    let started = Instant::now();
    let source = Source {
        generator: Generator::new(plan.seed),
        next: 0,
    };
    let (source, plan) = (Arc::new(Mutex::new(source)), Arc::new(plan));
    let mut tasks = JoinSet::new();
    for _ in 0..UPLOADERS {
        let (source, plan) = (Arc::clone(&source), Arc::clone(&plan));
        let (uploads, s3, bucket) = (Arc::clone(&uploads), site.s3.clone(), site.bucket.clone());
        tasks.spawn(async move {
            while let Some((number, bundle)) = next_bundle(&source, plan.objects) {
                if let Some(rate) = plan.rate {
                    #[expect(clippy::cast_precision_loss, reason = "object counts are small")]
                    sleep_until(started + Duration::from_secs_f64(number as f64 / rate)).await;
                }
                put(&s3, &bucket, &bundle).await?;
                let mut totals = uploads.lock();
                totals.expected_rows += &bundle.expected_rows;
                totals.bytes += bundle.bytes.len() as u64;
                totals
                    .put_at
                    .insert(format!("{bucket}/{}", bundle.key), SystemTime::now());
            }
            Ok(())
        });
    }
    tasks
}

fn next_bundle(source: &Mutex<Source>, objects: u64) -> Option<(u64, Bundle)> {
    let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
    let number = source.next;
    if number >= objects {
        return None;
    }
    source.next += 1;
    Some((number, source.generator.bundle()))
}

/// A PUT that is retried has the same bytes, hence it is the same object to Sluice.
async fn put(s3: &aws_sdk_s3::Client, bucket: &str, bundle: &Bundle) -> Result<()> {
    let mut tried = 1;
    loop {
        let body = bundle.bytes.clone().into();
        let request = s3.put_object().bucket(bucket).key(&bundle.key).body(body);
        match request.send().await {
            Ok(_) => return Ok(()),
            Err(_) if tried < TRIES => {
                sleep(Duration::from_millis(100) * 2_u32.pow(tried)).await;
                tried += 1;
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot put {} after {TRIES} tries", bundle.key));
            }
        }
    }
}
