//! The violations of a world's invariants.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::trace::Trace;

/// The largest number of violations that are kept: many follow from one cause.
const MAX_VIOLATIONS: usize = 100;

/// Collects violations, and writes them into the trace.
#[derive(Clone, Debug)]
pub(super) struct Violations {
    began: Instant,
    trace: Trace,
    found: Arc<Mutex<Vec<String>>>,
}

impl Violations {
    /// Creates a list that is empty. The world begins now.
    pub(super) fn new(trace: Trace) -> Self {
        Self {
            began: Instant::now(),
            trace,
            found: Arc::default(),
        }
    }

    pub(super) fn report(&self, what: impl Display) {
        self.trace.note(format_args!("violation: {what}"));
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() < MAX_VIOLATIONS {
            let seconds = self.began.elapsed().as_secs_f64();
            found.push(format!("after {seconds:.3} s: {what}"));
        }
    }

    /// Returns the violations so far.
    pub(super) fn found(&self) -> Vec<String> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.clone()
    }
}
