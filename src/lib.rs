//! Sluice loads S3 objects into ClickHouse.
//!
//! See `ARCHITECTURE.md` for the path of an object and the code map.

pub mod batch;
pub mod config;
pub mod event_types;
pub mod ledger;
pub mod notification;
pub mod object;
pub mod queue;
pub mod schema;
pub mod settle;
