//! The decisions of Sluice, without I/O: functions receive events as arguments, and return the
//! actions to perform.
//!
//! It is a crate of its own so that Cargo keeps I/O out of it: it depends on neither the AWS SDKs
//! nor ClickHouse's client. Time is an argument; randomness, the wall clock and new ids come from
//! an [`Env`]; metrics and the live page observe through a [`daemon::Observer`].

pub mod backoff;
pub mod batch;
pub mod cost;
pub mod daemon;
pub mod env;
pub mod event_types;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod formats;
pub mod glob;
pub mod infer;
mod label;
pub mod ledger;
pub mod notification;
pub mod object;
pub mod outcome;
pub mod queue;
pub mod secret;
pub mod sliding_window;
pub mod sql;
pub mod statements;
pub mod verify;
mod yaml;

pub use env::Env;
