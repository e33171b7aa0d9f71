//! Reports the events of the daemon's core to the metrics and to the live page.

use std::sync::Arc;
use std::time::Duration;

use sluice_core::daemon::Observer;
use tokio::time::Instant;

use crate::batch::CloseReason;
use crate::notification::{EnvelopeKind, Malformed};
use crate::queue::Message;
use crate::telemetry::activity::Activity;
use crate::telemetry::metrics::{self, SqsOperation};

/// The metrics, and the activity that the live page shows.
#[derive(Debug)]
pub struct Telemetry(pub Arc<Activity>);

impl Observer for Telemetry {
    fn received(&self, message: &Message, now: Instant) {
        metrics::queue_age(message.age);
        self.0.received(message, now);
    }

    fn notification(&self, form: EnvelopeKind, outcome: &'static str) {
        metrics::notification(form, outcome);
    }

    fn malformed(&self, message: &Message, form: EnvelopeKind, why: &Malformed, is_new: bool) {
        metrics::notification(form, "malformed");
        if is_new {
            let what = format!("message {}", message.id);
            self.0.failed(what, "malformed", &why.to_string());
        }
    }

    fn objects(&self, outcome: &'static str, count: usize) {
        metrics::objects(outcome, count);
    }

    fn lag(&self, lag: Duration, now: Instant) {
        metrics::lag(lag);
        self.0.lag(lag, now);
    }

    fn batch_closed(&self, reason: CloseReason) {
        metrics::batch_closed(reason.label());
    }

    fn extended(&self, extended: usize, failed: usize) {
        metrics::heartbeats(extended);
        metrics::sqs_failures(SqsOperation::Heartbeat, failed);
    }

    fn heartbeat_missed(&self) {
        metrics::heartbeat_missed();
    }
}
