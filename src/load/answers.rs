//! A cache of the server's answers. They expire, since the server can be upgraded, and its profiles
//! changed, while Sluice runs.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const ASK_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// Answers by question, each with the time at which it was asked.
#[derive(Debug)]
pub(super) struct Answers<Q, A>(Mutex<HashMap<Q, (A, Instant)>>);

impl<Q, A> Default for Answers<Q, A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<Q: Eq + Hash, A: Clone> Answers<Q, A> {
    /// Returns the answer to a question, unless it has expired.
    pub(super) fn known(&self, question: &Q) -> Option<A> {
        let answers = self.answers();
        let answer = answers.get(question);
        let recent = answer.filter(|(_, asked)| asked.elapsed() < ASK_AGAIN_AFTER);
        recent.map(|(answer, _)| answer.clone())
    }

    pub(super) fn learn(&self, question: Q, answer: A) {
        self.answers().insert(question, (answer, Instant::now()));
    }

    fn answers(&self) -> MutexGuard<'_, HashMap<Q, (A, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
