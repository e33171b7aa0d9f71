//! What knows nothing of Sluice.

pub mod error_chain;
pub(crate) mod failpoint;
pub mod http;
pub mod outage;
