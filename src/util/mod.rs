//! Utilities that do not depend on the rest of Sluice.

pub mod aws_requests;
pub mod error_chain;
pub(crate) mod failpoint;
pub mod http;
pub mod key_time;
pub mod outage;
