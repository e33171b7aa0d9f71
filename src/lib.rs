//! Sluice loads S3 objects into ClickHouse.
//!
//! See `ARCHITECTURE.md` for the path of an object and the code map.

pub mod activity;
pub mod admin;
pub mod announce;
pub mod backfill;
pub mod batch;
pub mod batch_rows;
pub mod cli;
pub mod config;
pub mod event_types;
mod failpoint;
pub mod frames;
pub mod framing;
pub mod glob;
pub mod heartbeats;
pub mod history;
pub mod http;
pub mod kept;
mod label;
pub mod ledger;
pub mod listing;
pub mod load;
pub mod notification;
pub mod object;
pub mod pipeline;
pub mod plan;
pub mod queue;
pub mod replay;
pub mod schema;
pub mod settle;
pub mod sql;
pub mod store;
pub mod telemetry;
pub mod warehouse;
mod yaml;
