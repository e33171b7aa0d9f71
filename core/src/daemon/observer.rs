//! What the daemon's core has seen, for those who show it.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::batch::CloseReason;
use crate::notification::{EnvelopeKind, Malformed};
use crate::queue::Message;

/// Is told what the core sees and does; nothing that it does changes what the core decides.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A message came.
    fn received(&self, message: &Message, now: Instant);
    /// A message's body was read; `outcome` is `objects` or says why it asks for nothing.
    fn notification(&self, form: EnvelopeKind, outcome: &'static str);
    /// A message is no notification. `is_new` where it has not come before.
    fn malformed(&self, message: &Message, form: EnvelopeKind, why: &Malformed, is_new: bool);
    /// So many objects have ended in this way.
    fn objects(&self, outcome: &'static str, count: usize);
    /// An object was loaded, so long after it was created.
    fn lag(&self, lag: Duration, now: Instant);
    /// A batch was closed, and is being loaded.
    fn batch_closed(&self, reason: CloseReason);
    /// A request has extended the visibility of so many messages, and failed for so many.
    fn extended(&self, extended: usize, failed: usize);
    /// A message was not extended in time.
    fn heartbeat_missed(&self);
}

/// Looks away.
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
