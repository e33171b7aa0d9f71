//! Tests on the real engine.

mod cli;
mod end_to_end;
mod harness;
mod outages;
mod queue_contract;
