//! The protocol of the ledger: a state machine, its driver, and an exhaustive search of their
//! interleavings.

pub mod drive;
#[cfg(test)]
mod model;
pub mod protocol;
