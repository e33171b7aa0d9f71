//! Failures around and within the daemon, on the real engine and with the real binary. Each test
//! ends by comparing the rows of every object and kind with the rows that the generator expects.

#![expect(
    clippy::disallowed_methods,
    reason = "tests are not part of a simulation"
)]

mod backfill;
mod connections;
mod dead_letters;
mod failpoints;
mod formats;
mod harness;
mod objects;
mod outages;
mod plans;
mod replay;
mod replicas;
mod streams;
mod upgrade;
mod workers;
