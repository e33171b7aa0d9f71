//! The order in which the operations of the ledger are used: as a state machine, with the one
//! interpreter that performs it, and an exhaustive search of its interleavings.

pub mod drive;
#[cfg(test)]
mod model;
pub mod protocol;
