//! The daemon's decisions: which messages are in flight, when batches are closed, which
//! heartbeats are due.

pub mod core;
pub mod heartbeats;
pub mod in_flight;
mod observer;
mod stats;

pub use observer::Observer;
#[cfg(any(test, feature = "fixtures"))]
pub use observer::Unobserved;
pub use stats::{InFlightCounts, InFlightStats};
