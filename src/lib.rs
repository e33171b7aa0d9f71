//! Sluice loads S3 objects into ClickHouse.
//!
//! See `ARCHITECTURE.md` for the path of an object and the code map.

pub mod admin;
pub mod backfill;
pub mod batch;
pub mod cli;
pub mod clickhouse;
pub mod config;
pub mod daemon;
pub mod event_types;
pub mod glob;
mod label;
pub mod ledger;
pub mod load;
pub mod notification;
pub mod object;
pub mod queue;
pub mod rejects;
pub mod s3;
pub mod sql;
pub mod statements;
pub mod telemetry;
pub mod util;
mod yaml;
