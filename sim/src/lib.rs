//! A simulation of Sluice: whole workers, as `sluice run` starts them, on a paused clock, against a
//! simulated ClickHouse, S3 and queue that fail as the seed decides.
//!
//! A [`world`] has several workers that share a queue. Everything in it runs in one thread, and
//! whatever is random in it follows from its seed: so the same seed yields the same [`trace`], line
//! by line, and a failure can be repeated. `cargo xtask sim` runs many worlds.
//!
//! The workers are the production code above the traits of `sluice::load::ports` and
//! `sluice::queue`. The simulated systems implement these traits:
//!
//! - [`server`] is ClickHouse, one server or several replicas, with the ledger and the tables.
//! - [`s3`] is a bucket whose objects change, vanish, are cut short or refused.
//! - [`queue`] is SQS.
//! - [`network`] decides what happens to each request on its way to one of them.
//!
//! **Does not:** run SQL, parse JSON, or use sockets. The contract suites and the tests on the
//! embedded stack cover what is below the traits.

pub mod network;
pub mod queue;
pub mod s3;
pub mod server;
pub mod trace;
pub mod world;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Calls `work` with each seed, in a thread for each core. Returns the number of threads.
pub fn on_all_cores(seeds: Range<u64>, work: impl Fn(u64) + Sync) -> usize {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(seeds.start);
    let run = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) {
                break;
            }
            work(seed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(run);
        }
    });
    threads
}
