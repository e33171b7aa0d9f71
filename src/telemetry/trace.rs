//! Spans, for the log and for traces: one trace per batch, from the receive of its first message to
//! the delete of its last.
//!
//! The work of the loader is in spans of `tracing`, whose fields are part of each log line within.
//! The spans around it begin before it is known that there will be a batch, and are created
//! manually here.

use std::future::Future;
use std::time::SystemTime;

use opentelemetry::global::{self, BoxedTracer};
use opentelemetry::trace::{FutureExt, Span as _, Status, TraceContextExt, Tracer, WithContext};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use tokio::time::Instant;
use tracing::{Metadata, Span, error_span, info_span};

use crate::batch::{Batch, BatchId};
use sluice_core::outcome::{Outcome, Outcomes};

/// The target of spans for both log and trace.
const TARGET: &str = "sluice::trace";
/// The target of spans for the trace alone: they would add nothing to a log line.
pub(super) const STEP_TARGET: &str = "sluice::trace::step";
/// A trace names at most this many messages of a batch.
const MESSAGES: usize = 100;

/// Returns whether the span is part of traces.
pub(super) fn is_traced(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with(TARGET)
}

/// Returns the span around the handling of a message.
pub fn message(id: &str) -> Span {
    // At the level of errors, here and below, so that no filter on levels removes the fields.
    error_span!("message", message.id = id)
}

/// Returns the span around the load of a batch.
pub fn load(batch: BatchId) -> Span {
    error_span!(target: TARGET, "load", batch.id = %batch)
}

/// Returns the span around the recovery of a batch that another worker left behind.
pub fn recover(batch: BatchId) -> Span {
    error_span!(target: TARGET, "recover", batch.id = %batch)
}

/// Returns the span around the insert of a batch, and the handling of its response.
pub fn insert(attempt: u32, query_id: &str) -> Span {
    error_span!(target: TARGET, "insert", attempt, query_id)
}

/// Returns the span around one statement.
pub fn statement(query_id: &str) -> Span {
    info_span!(target: STEP_TARGET, "statement", query_id)
}

/// Returns the span of a step of the protocol, which lasts until it is dropped.
pub fn step(name: &str) -> Span {
    info_span!(target: STEP_TARGET, "step", otel.name = name)
}

/// The trace of a batch. It ends when its last clone and those of [`Settling`] are dropped.
#[derive(Clone)]
pub struct BatchTrace(Context);

/// The span in which a batch's messages are deleted or returned. It ends with its last clone.
#[derive(Clone)]
pub struct Settling {
    /// First, so that it ends before the batch.
    _settle: Context,
    _batch: BatchTrace,
}

impl BatchTrace {
    /// Begins the trace of a batch that is about to be loaded.
    #[expect(clippy::disallowed_methods, reason = "times of spans")]
    pub fn begin(batch: &Batch, messages: impl FnOnce() -> Vec<String>) -> Self {
        let (opened, closed) = (time_of(batch.opened_at), time_of(batch.closed_at));
        let tracer = tracer();
        let span = tracer
            .span_builder("batch")
            .with_start_time(opened)
            .start_with_context(&tracer, &Context::new());
        let trace = Self(Context::new().with_span(span));
        let root = trace.0.span();
        if root.is_recording() {
            let messages = messages();
            let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
            root.set_attributes([
                KeyValue::new("bucket", batch.bucket.clone()),
                KeyValue::new("objects", number(batch.objects.len())),
                KeyValue::new("closed_by", batch.reason.label()),
                KeyValue::new("messages", number(messages.len())),
                KeyValue::new("message.ids", first(messages)),
            ]);
            trace.add("window", opened, closed);
            trace.add("queue", closed, SystemTime::now());
        }
        trace
    }

    /// Runs `work` as a part of the trace.
    pub fn around<F: Future>(&self, work: F) -> WithContext<F> {
        work.with_context(self.0.clone())
    }

    /// Ends the load, and begins to settle its messages.
    pub fn settle(&self, outcomes: &Outcomes) -> Settling {
        let outcomes = outcomes.iter().map(|(_, outcome)| outcome);
        let failed = outcomes.filter(|it| matches!(it, Outcome::Failed | Outcome::Missing { .. }));
        let failed = failed.count();
        if failed > 0 {
            let text = format!("{failed} objects cannot be loaded");
            self.0.span().set_status(Status::error(text));
        }
        let span = tracer().start_with_context("settle", &self.0);
        Settling {
            _settle: self.0.with_span(span),
            _batch: self.clone(),
        }
    }

    fn add(&self, name: &'static str, from: SystemTime, until: SystemTime) {
        let tracer = tracer();
        let span = tracer.span_builder(name).with_start_time(from);
        span.start_with_context(&tracer, &self.0)
            .end_with_timestamp(until);
    }
}

/// Returns the tracer, which does nothing unless traces are configured.
fn tracer() -> BoxedTracer {
    global::tracer("sluice")
}

#[expect(clippy::disallowed_methods, reason = "times of spans")]
fn time_of(instant: Instant) -> SystemTime {
    SystemTime::now() - instant.elapsed()
}

fn first(messages: Vec<String>) -> Value {
    let messages = messages.into_iter().take(MESSAGES);
    Value::Array(Array::String(messages.map(StringValue::from).collect()))
}
