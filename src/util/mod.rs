//! What knows nothing of Sluice.

pub(crate) mod failpoint;
pub mod http;
