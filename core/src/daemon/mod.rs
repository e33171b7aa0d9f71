//! The daemon's decisions: which messages are held, when batches close, which heartbeats are due.

pub mod core;
pub mod heartbeats;
mod holdings;
pub mod in_flight;
mod observer;

pub use holdings::Holdings;
pub use observer::Observer;
#[cfg(any(test, feature = "fixtures"))]
pub use observer::Unobserved;
