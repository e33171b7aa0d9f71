//! The breaker between Sluice and ClickHouse: while ClickHouse is unavailable or misconfigured,
//! intake pauses, and only one probe at a time is tried.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::clickhouse::WarehouseError;
use crate::clickhouse::error_class::{PauseReason, diagnosis, with_advice};
use crate::util::outage::{OutageLog, Recovery};

/// How often the log repeats the reason while the breaker stays open.
const REMINDER: Duration = Duration::from_secs(60);

/// The statements that an open breaker blocks, and whose success closes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// ClickHouse is unavailable, or refuses even small statements. Any success closes the breaker.
    Everything,
    /// Small statements succeed, and inserts do not. Only the success of an insert closes the
    /// breaker.
    Inserts,
}

#[derive(Clone, Debug)]
struct Open {
    scope: Scope,
    reason: PauseReason,
    why: String,
}

/// The cause by which the log distinguishes outages; the text is without its digits.
type Cause = (Scope, PauseReason, String);

impl Open {
    /// Returns the cause without digits: an error with a counter in it is not another cause.
    fn cause(&self) -> Cause {
        let words = self.why.replace(|c: char| c.is_ascii_digit(), "");
        (self.scope, self.reason, words)
    }
}

/// A circuit breaker without a half-open state: while it is open, the first statement after each
/// interval is admitted as a probe.
#[derive(Debug)]
pub struct Breaker {
    /// `None` while the breaker is closed.
    open: Mutex<Option<Open>>,
    /// Notified when the breaker opens, closes, or has another reason. It wakes waiters in the order
    /// in which they came (a `watch` does so in random order), so that the same events lead to the
    /// same run.
    changed: Notify,
    probing: Mutex<Probing>,
    interval: Duration,
    halted_inserts: AtomicUsize,
}

#[derive(Debug)]
struct Probing {
    next: Instant,
    outage: OutageLog<Cause>,
}

/// Marks an insert, or another statement that a load requires, that failed for a reason to halt. It
/// is the probe until it succeeds or is given up.
#[derive(Debug)]
pub struct ProbeGuard(Arc<Breaker>);

impl ProbeGuard {
    pub fn new(breaker: &Arc<Breaker>) -> Self {
        breaker.halted_inserts.fetch_add(1, Ordering::Relaxed);
        Self(breaker.clone())
    }
}

impl Drop for ProbeGuard {
    fn drop(&mut self) {
        self.0.halted_inserts.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Breaker {
    /// Creates a breaker that is open, since ClickHouse has not responded yet.
    pub fn new(interval: Duration) -> Self {
        let why = "ClickHouse has not been reached yet".to_owned();
        Self {
            open: Mutex::new(Some(Open {
                scope: Scope::Everything,
                reason: PauseReason::Starting,
                why,
            })),
            changed: Notify::new(),
            probing: Mutex::new(Probing {
                next: Instant::now(),
                outage: OutageLog::with_reminder(REMINDER).begun(),
            }),
            interval,
            halted_inserts: AtomicUsize::new(0),
        }
    }

    /// Returns why nothing is loaded, or `None` while the breaker is closed.
    pub fn reason(&self) -> Option<String> {
        self.state().as_ref().map(|open| open.why.clone())
    }

    /// Returns the reason in one word, or `None` while the breaker is closed.
    pub fn pause_reason(&self) -> Option<PauseReason> {
        self.state().as_ref().map(|open| open.reason)
    }

    /// Waits until the breaker is closed.
    pub async fn closed(&self) {
        self.wait_until_open_is(false).await;
    }

    async fn wait_until_open_is(&self, expected: bool) {
        loop {
            // Begun before the state is read, so that no change in between is missed.
            let changed = self.changed.notified();
            if self.state().is_some() == expected {
                return;
            }
            changed.await;
        }
    }

    /// Runs `check` as the probe whenever one is due, and never ends. `check` returns a reason not
    /// to load, with its class. If there is none, the breaker closes.
    pub async fn keep_probing<F>(&self, check: impl Fn() -> F)
    where
        F: Future<Output = Result<Option<(PauseReason, String)>, WarehouseError>>,
    {
        loop {
            self.probe_due().await;
            match check().await {
                Ok(None) => self.succeeded(Scope::Inserts),
                Ok(Some((reason, why))) => self.open(Scope::Everything, reason, &why),
                Err(error) => {
                    let reason = diagnosis(&error).pause;
                    self.open(Scope::Everything, reason, &with_advice(&error));
                }
            }
        }
    }

    /// Waits until the breaker is open, a probe is due, and no insert is waiting to be that probe.
    async fn probe_due(&self) {
        loop {
            self.wait_until_open_is(true).await;
            let next = self.take_turn();
            match next {
                Ok(()) if self.halted_inserts.load(Ordering::Relaxed) == 0 => return,
                Ok(()) => self.return_turn(),
                Err(_) => {}
            }
            let pause = next.err().unwrap_or_else(|| Instant::now() + self.interval);
            tokio::time::sleep_until(pause).await;
        }
    }

    /// Waits until a small statement (`Scope::Everything`) or an insert may be tried: at once if
    /// the breaker does not block it, otherwise as the one probe of an interval.
    pub async fn admit(&self, what: Scope) {
        loop {
            let changed = self.changed.notified();
            let blocked = self
                .state()
                .as_ref()
                .is_some_and(|open| open.scope == Scope::Everything || what == Scope::Inserts);
            if !blocked {
                return;
            }
            let Err(next) = self.take_turn() else { return };
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Reserves the probe of this interval, or returns when the next one is due.
    fn take_turn(&self) -> Result<(), Instant> {
        let mut probing = self.probing();
        let now = Instant::now();
        if probing.next > now {
            return Err(probing.next);
        }
        probing.next = now + self.interval;
        Ok(())
    }

    fn return_turn(&self) {
        self.probing().next = Instant::now();
    }

    /// Opens the breaker, since a statement failed for a reason to halt.
    pub fn open(&self, scope: Scope, reason: PauseReason, why: &str) {
        let mut probing = self.probing();
        probing.next = Instant::now() + self.interval;
        let opened = Open {
            scope,
            reason,
            why: why.to_owned(),
        };
        let failure = probing.outage.failed(opened.cause());
        *self.state() = Some(opened);
        if failure.is_news {
            self.changed.notify_waiters();
        }
        if failure.is_mentioned {
            warn!(
                class = reason.label(),
                failures = failure.failures,
                error = why,
                "intake is paused; in-flight messages are kept"
            );
        }
    }

    /// Closes the breaker if the success of a small statement (`Scope::Everything`) or of an insert
    /// shows that its reason is over.
    pub fn succeeded(&self, what: Scope) {
        let mut probing = self.probing();
        let closed = self
            .state()
            .take_if(|open| open.scope == Scope::Everything || what == Scope::Inserts)
            .is_some();
        if closed {
            self.changed.notify_waiters();
        }
        if closed && let Some(Recovery { lasted, failures }) = probing.outage.succeeded() {
            info!(
                paused_seconds = lasted.as_secs(),
                failures, "ClickHouse is available; loading resumes"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn probing(&self) -> MutexGuard<'_, Probing> {
        self.probing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    fn opened(scope: Scope) -> Arc<Breaker> {
        let breaker = Breaker::new(INTERVAL);
        breaker.succeeded(Scope::Everything);
        assert_eq!(breaker.reason(), None);
        breaker.open(scope, PauseReason::Unreachable, "away");
        Arc::new(breaker)
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_admits_one_probe_per_interval() {
        let breaker = opened(Scope::Everything);
        let start = Instant::now();
        for probes in 1..=3 {
            breaker.admit(Scope::Everything).await;
            assert_eq!(start.elapsed(), INTERVAL * probes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_breaker_admits_every_statement() {
        let breaker = opened(Scope::Everything);
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let breaker = breaker.clone();
                tokio::spawn(async move { breaker.admit(Scope::Inserts).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let start = Instant::now();
        breaker.succeeded(Scope::Everything);
        for waiter in waiting {
            waiter.await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_insert_closes_a_breaker_that_an_insert_opened() {
        let breaker = opened(Scope::Inserts);
        let start = Instant::now();
        breaker.admit(Scope::Everything).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        breaker.succeeded(Scope::Everything);
        assert_eq!(breaker.reason().as_deref(), Some("away"));
        breaker.admit(Scope::Inserts).await;
        assert_eq!(start.elapsed(), INTERVAL);
        breaker.succeeded(Scope::Inserts);
        assert_eq!(breaker.reason(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn others_probe_only_if_no_insert_is_going_to() {
        let breaker = opened(Scope::Inserts);
        let halted = ProbeGuard::new(&breaker);
        let probe_due = tokio::time::timeout(INTERVAL * 10, breaker.probe_due());
        assert!(probe_due.await.is_err());
        drop(halted);
        breaker.probe_due().await;
    }

    #[tokio::test(start_paused = true)]
    async fn probes_continue_until_nothing_prevents_loading() {
        let breaker = opened(Scope::Inserts);
        let start = Instant::now();
        let reasons = Mutex::new(Vec::new());
        let check = || {
            let mut reasons = reasons.lock().unwrap();
            reasons.push(breaker.pause_reason());
            let answer = match reasons.len() {
                1 => Ok(Some((PauseReason::Schema, "tables are missing".to_owned()))),
                2 => Err(WarehouseError::Unknown("connection reset".to_owned())),
                _ => Ok(None),
            };
            std::future::ready(answer)
        };
        tokio::select! {
            biased;
            () = breaker.keep_probing(check) => unreachable!("it never ends"),
            () = breaker.closed() => {}
        }
        assert_eq!(start.elapsed(), INTERVAL * 3);
        let (away, schema) = (PauseReason::Unreachable, PauseReason::Schema);
        assert_eq!(
            *reasons.lock().unwrap(),
            [Some(away), Some(schema), Some(away)]
        );
    }
}
