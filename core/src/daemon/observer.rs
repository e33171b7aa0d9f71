//! Events of the daemon's core, for metrics and the live page.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::batch::CloseReason;
use crate::notification::{EnvelopeKind, Malformed};
use crate::queue::Message;

/// Observes what the core receives and does, without influencing its decisions.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Called when a message has been received.
    fn received(&self, message: &Message, now: Instant);
    /// Called when a message's body has been read. `outcome` is `objects`, or why there is nothing
    /// to load.
    fn notification(&self, form: EnvelopeKind, outcome: &'static str);
    /// Called for a malformed message. `is_new` is whether this is its first receive.
    fn malformed(&self, message: &Message, form: EnvelopeKind, why: &Malformed, is_new: bool);
    /// Called when `count` objects have had this outcome.
    fn objects(&self, outcome: &'static str, count: usize);
    /// Called when an object has been loaded, with the time since its creation.
    fn lag(&self, lag: Duration, now: Instant);
    /// Called when a batch has been closed and its load begins.
    fn batch_closed(&self, reason: CloseReason);
    /// Called when a request has extended the visibility of `extended` messages, and has failed for
    /// `failed`.
    fn extended(&self, extended: usize, failed: usize);
    /// Called when a message's visibility has not been extended in time.
    fn heartbeat_missed(&self);
}

/// An observer that ignores everything.
#[cfg(any(test, feature = "fixtures"))]
#[derive(Debug)]
pub struct Unobserved;

#[cfg(any(test, feature = "fixtures"))]
impl Observer for Unobserved {
    fn received(&self, _: &Message, _: Instant) {}
    fn notification(&self, _: EnvelopeKind, _: &'static str) {}
    fn malformed(&self, _: &Message, _: EnvelopeKind, _: &Malformed, _: bool) {}
    fn objects(&self, _: &'static str, _: usize) {}
    fn lag(&self, _: Duration, _: Instant) {}
    fn batch_closed(&self, _: CloseReason) {}
    fn extended(&self, _: usize, _: usize) {}
    fn heartbeat_missed(&self) {}
}
