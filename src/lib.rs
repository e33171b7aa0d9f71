//! Sluice loads S3 objects into ClickHouse.
//!
//! See `ARCHITECTURE.md` for the path of an object and the code map. What decides is in the crate
//! `sluice-core`; what is here does it.

pub mod admin;
pub mod backfill;
pub mod cli;
pub mod clickhouse;
pub mod config;
pub mod daemon;
pub mod event_types;
pub mod ledger;
pub mod load;
pub mod queue;
pub mod rejects;
pub mod s3;
pub mod telemetry;
pub mod util;

pub use sluice_core::{Env, batch, glob, notification, object, sql, statements};
