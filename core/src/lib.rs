//! The pure part of Sluice that must never be wrong: the ledger protocol, and an exhaustive search
//! of its interleavings.
//!
//! A crate of its own, so that Cargo keeps I/O out of it, and so that its tests are compiled with
//! optimisation: the search visits millions of states.

mod batch_id;
#[cfg(test)]
mod model;
pub mod protocol;

pub use batch_id::BatchId;
