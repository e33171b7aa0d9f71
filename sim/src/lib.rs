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
