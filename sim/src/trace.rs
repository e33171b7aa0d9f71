//! What happens in a world, as lines with the virtual time.
//!
//! Two runs are the same if their traces have the same digest. The lines themselves are kept only
//! if somebody is going to read them.

use std::fmt::{Arguments, Write};
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// The trace of a world. Clones share it.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    began: Instant,
    /// Has fixed keys, so that digests of different processes can be compared.
    digest: DefaultHasher,
    kept: Option<Vec<String>>,
    /// The latest line. Its memory is used again for the next.
    line: String,
}

impl Trace {
    /// Begins a trace at the current virtual time. Its lines are kept only if `keep` is set.
    pub fn new(keep: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            began: Instant::now(),
            digest: DefaultHasher::new(),
            kept: keep.then(Vec::new),
            line: String::new(),
        })))
    }

    /// Appends a line: the seconds since the trace began, with milliseconds, and `what`.
    pub fn note(&self, what: Arguments<'_>) {
        let mut state = self.state();
        let state = &mut *state;
        let elapsed = state.began.elapsed();
        state.line.clear();
        let (seconds, millis) = (elapsed.as_secs(), elapsed.subsec_millis());
        write!(state.line, "{seconds}.{millis:03} {what}").expect("a string accepts any text");
        state.digest.write(state.line.as_bytes());
        state.digest.write_u8(b'\n');
        if let Some(kept) = &mut state.kept {
            kept.push(state.line.clone());
        }
    }

    /// Returns a hash of all lines so far.
    pub fn digest(&self) -> u64 {
        self.state().digest.finish()
    }

    /// Returns the lines so far, or none if they are not kept.
    pub fn lines(&self) -> Vec<String> {
        self.state().kept.clone().unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_have_the_virtual_time_and_are_kept_only_on_request() {
        let [kept, hashed] = [true, false].map(Trace::new);
        for trace in [&kept, &hashed] {
            trace.note(format_args!("begins"));
        }
        tokio::time::advance(Duration::from_millis(61_050)).await;
        for trace in [&kept, &hashed] {
            trace.note(format_args!("{} things", 2));
        }
        assert_eq!(kept.lines(), ["0.000 begins", "61.050 2 things"]);
        assert_eq!(hashed.lines(), Vec::<String>::new());
        assert_eq!(kept.digest(), hashed.digest());
        hashed.note(format_args!("another"));
        assert_ne!(kept.digest(), hashed.digest());
    }
}
