//! Sluice loads S3 objects into ClickHouse.
//!
//! See `ARCHITECTURE.md` for the path of an object and the code map. The crate `sluice-core` makes
//! the decisions, without I/O; this crate carries them out.

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
pub mod usage;
pub mod util;
pub mod verify;

pub use sluice_core::{Env, batch, formats, glob, notification, object, sql, statements};
