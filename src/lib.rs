//! Sluice loads S3 objects into ClickHouse.
//!
//! See `ARCHITECTURE.md` for the path of an object and the code map.

pub mod config;
pub mod event_types;
pub mod schema;
pub mod sql;
