//! The random faults, one after the other.

use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use sluice_testkit::proxy::{Fault, Proxy};
use tokio::time::{Instant, sleep};

use super::Tally;
use super::arrivals::Arrivals;
use super::outages::Outages;
use super::workers::Workers;
use super::world::World;
use crate::console::Progress;

/// The longest time between two faults.
const PAUSE: Duration = Duration::from_millis(900);

/// Every step of the daemon that has failpoints.
const STEPS: &[&str] = &[
    "look_up",
    "recover",
    "seal",
    "verify",
    "insert",
    "kill",
    "fence",
    "check_rows",
    "check_complete",
    "take_back",
    "release",
    "record",
    "delete",
];

/// Injects random faults for this duration.
pub(super) async fn inject(
    rng: &mut Rng,
    duration: Duration,
    world: &World,
    workers: &mut Workers,
    arrivals: &Arrivals,
    tally: &mut Tally,
) -> Result<()> {
    let end = Instant::now() + duration;
    let mut progress = Progress::new();
    let mut outages = Outages::new(world);
    while Instant::now() < end {
        sleep(PAUSE.mul_f64(rng.f64())).await;
        progress.show(&format!(
            "{} objects arrived, {} s left",
            arrivals.count(),
            end.saturating_duration_since(Instant::now()).as_secs()
        ));
        workers.reap(tally)?;
        outages.reap(tally).await?;
        if outages.is_next(rng) {
            if let Some(done) = outages.begin_any(rng) {
                tally.add(done);
            }
            continue;
        }
        let slot = rng.usize(..workers.count());
        let done = match rng.u32(0..100) {
            0..12 => workers.kill(slot)?.then_some("workers killed"),
            12..20 => workers.terminate(slot).then_some("workers terminated"),
            20..45 => {
                let failpoints = if rng.bool() {
                    failpoint(rng)
                } else {
                    String::new()
                };
                let started = workers.start_worker(slot, &failpoints)?;
                started.then_some("workers restarted")
            }
            45..65 => {
                let proxy = any_proxy(rng, &world.to_clickhouse);
                disrupt_clickhouse(rng, proxy);
                None
            }
            65..80 => {
                disrupt_s3(rng, &world.to_s3);
                None
            }
            80..90 => {
                disrupt_sqs(rng, &world.to_sqs);
                None
            }
            90..97 => {
                world.heal();
                None
            }
            _ => outages.kill_server(rng),
        };
        if let Some(done) = done {
            tally.add(done);
        }
    }
    outages.end(tally).await
}

fn any_proxy<'a>(rng: &mut Rng, proxies: &'a [Proxy]) -> &'a Proxy {
    match proxies {
        [only] => only,
        several => &several[rng.usize(..several.len())],
    }
}

/// Returns a failpoint at which the worker aborts, the first time it gets there or later.
fn failpoint(rng: &mut Rng) -> String {
    let step = STEPS[rng.usize(..STEPS.len())];
    let when = if rng.bool() { "before" } else { "after" };
    match rng.u32(0..4) {
        0 => format!("{step}.{when}=return"),
        times => format!("{step}.{when}={times}*off->return"),
    }
}

/// Returns a random duration of up to `max` milliseconds.
fn up_to(rng: &mut Rng, max: u64) -> Duration {
    Duration::from_millis(rng.u64(1..=max))
}

fn any_fault(rng: &mut Rng) -> Fault {
    match rng.u32(0..8) {
        0 => Fault::CutBeforeRequest,
        1 => Fault::CutInRequest,
        2 => Fault::CutBeforeResponse,
        3 => Fault::CutInResponse,
        4 => Fault::Delay(up_to(rng, 4_000)),
        5 => Fault::Late(up_to(rng, 15_000)),
        6 => Fault::Status([500, 502, 503][rng.usize(..3)]),
        _ => Fault::Status(503),
    }
}

/// Injects a fault into some of the next requests: into any, only inserts, only ledger writes, or
/// only kills.
fn disrupt_clickhouse(rng: &mut Rng, proxy: &Proxy) {
    let (fault, times) = (any_fault(rng), rng.usize(1..=4));
    let words: &'static [&'static str] = match rng.u32(0..4) {
        0 => &["INSERT INTO", " s3("],
        1 => &["ledger_batches"],
        2 => &["KILL QUERY"],
        _ => &[],
    };
    proxy.inject(fault, times, move |parts, body| {
        let query = parts.uri.query().unwrap_or_default();
        let body = String::from_utf8_lossy(body);
        words
            .iter()
            .all(|word| body.contains(word) || query.contains(word))
    });
}

/// Injects a fault that leaves the object loadable: a missing or forbidden object would be recorded
/// as failed.
fn disrupt_s3(rng: &mut Rng, proxy: &Proxy) {
    let fault = match any_fault(rng) {
        // A read has no effects, so a late one is not useful.
        Fault::Late(delay) => Fault::Delay(delay),
        fault => fault,
    };
    proxy.inject(fault, rng.usize(1..=20), |_, _| true);
}

fn disrupt_sqs(rng: &mut Rng, proxy: &Proxy) {
    proxy.inject(any_fault(rng), rng.usize(1..=6), |_, _| true);
}
