//! Everything that can go wrong around and within the daemon, on the real engine and the real
//! binary. Whatever happens, each test ends with the comparison of the rows of every object and
//! kind with what the generator reckoned.

#![expect(
    clippy::disallowed_methods,
    reason = "tests are no part of a simulation"
)]

mod backfill;
mod connections;
mod dead_letters;
mod failpoints;
mod harness;
mod objects;
mod outages;
mod plans;
mod replay;
mod streams;
mod upgrade;
mod workers;
