//! The order in which the operations of the ledger are used, as a state machine, and an exhaustive
//! search of its interleavings.

#[cfg(test)]
mod model;
pub mod protocol;
