//! Spans, for the log and for traces: one trace a batch, from the receive of its first message to
//! the delete of its last.
//!
//! What the loader does are spans of `tracing`: their fields stand in each log line within. What is
//! around that, and begins before anybody knows that it will be a batch, is made here by hand.

use std::future::Future;
use std::time::SystemTime;

use opentelemetry::global::{self, BoxedTracer};
use opentelemetry::trace::{FutureExt, Span as _, Status, TraceContextExt, Tracer, WithContext};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use tokio::time::Instant;
use tracing::{Metadata, Span, error_span, info_span};

use crate::batch::{Batch, BatchId};
use sluice_core::outcome::{Outcome, Outcomes};

/// Of the spans that are for log and trace.
const TARGET: &str = "sluice::trace";
/// Of those that are for the trace alone: in a log line they would say nothing.
pub(super) const STEP_TARGET: &str = "sluice::trace::step";
/// Of a batch's messages, this many are named.
const MESSAGES: usize = 100;

/// Whether the span goes into traces.
pub(super) fn is_traced(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with(TARGET)
}

/// Around what is done with a message.
pub fn message(id: &str) -> Span {
    // An error's level, here and below: a filter on levels must not take the fields away.
    error_span!("message", message.id = id)
}

/// Around the load of a batch.
pub fn load(batch: BatchId) -> Span {
    error_span!(target: TARGET, "load", batch.id = %batch)
}

/// Around the recovery of a batch that another worker left behind.
pub fn recover(batch: BatchId) -> Span {
    error_span!(target: TARGET, "recover", batch.id = %batch)
}

/// Around an attempt to insert a batch, and what is made of its answer.
pub fn insert(attempt: u32, query_id: &str) -> Span {
    error_span!(target: TARGET, "insert", attempt, query_id)
}

/// Around one statement.
pub fn statement(query_id: &str) -> Span {
    info_span!(target: STEP_TARGET, "statement", query_id)
}

/// A step of the protocol, for as long as the span is kept.
pub fn step(name: &str) -> Span {
    info_span!(target: STEP_TARGET, "step", otel.name = name)
}

/// The trace of a batch. It ends with its last clone, and those of [`Settling`].
#[derive(Clone)]
pub struct BatchTrace(Context);

/// A batch's messages are being deleted or given back, for as long as there are clones of it.
#[derive(Clone)]
pub struct Settling {
    /// Ends first.
    _settle: Context,
    _batch: BatchTrace,
}

impl BatchTrace {
    /// A batch begins to be loaded.
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

    /// Does this as a part of the trace.
    pub fn around<F: Future>(&self, work: F) -> WithContext<F> {
        work.with_context(self.0.clone())
    }

    /// The load has ended; settling its messages begins.
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

/// Makes nothing where no traces were asked for.
fn tracer() -> BoxedTracer {
    global::tracer("sluice")
}

fn time_of(instant: Instant) -> SystemTime {
    SystemTime::now() - instant.elapsed()
}

fn first(messages: Vec<String>) -> Value {
    let messages = messages.into_iter().take(MESSAGES);
    Value::Array(Array::String(messages.map(StringValue::from).collect()))
}
