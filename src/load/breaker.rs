//! The breaker between Sluice and ClickHouse: while ClickHouse is away or wrongly set up, nothing
//! is tried but one probe at a time, and intake pauses.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// While it stays open for the same reason, the log says so again this often.
const REMINDER: Duration = Duration::from_secs(60);

/// Half-open probing is part of being open: whoever comes first after `next_probe` is let through.
#[derive(Debug)]
pub struct Breaker {
    /// Why it is open; `None` when closed.
    reason: watch::Sender<Option<String>>,
    probing: Mutex<Probing>,
    interval: Duration,
}

#[derive(Debug)]
struct Probing {
    next: Instant,
    opened_at: Instant,
    reminded_at: Instant,
    failures: u64,
}

impl Breaker {
    /// Open at first: ClickHouse has not been heard of.
    pub fn new(interval: Duration) -> Self {
        let now = Instant::now();
        let probing = Probing { next: now, opened_at: now, reminded_at: now, failures: 0 };
        Self {
            reason: watch::Sender::new(Some("ClickHouse has not been reached yet".to_owned())),
            probing: Mutex::new(probing),
            interval,
        }
    }

    /// Why nothing is loaded, while that is so.
    pub fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }

    /// Waits until the breaker is closed.
    pub async fn closed(&self) {
        let mut reason = self.reason.subscribe();
        // The sender lives as long as `self`.
        drop(reason.wait_for(Option::is_none).await);
    }

    /// Waits until the breaker is open.
    pub async fn opened(&self) {
        let mut reason = self.reason.subscribe();
        drop(reason.wait_for(Option::is_some).await);
    }

    /// Waits until a statement may be tried: at once while closed, and as the one probe of an
    /// interval while open.
    pub async fn admit(&self) {
        loop {
            if self.reason.borrow().is_none() {
                return;
            }
            let next = {
                let mut probing = self.probing();
                let now = Instant::now();
                if probing.next <= now {
                    probing.next = now + self.interval;
                    return;
                }
                probing.next
            };
            tokio::select! {
                () = self.closed() => return,
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// A statement met a reason to halt.
    pub fn open(&self, why: &str) {
        let now = Instant::now();
        let mut probing = self.probing();
        probing.failures += 1;
        probing.next = now + self.interval;
        let news = self.reason.send_if_modified(|reason| {
            let news = reason.as_deref() != Some(why);
            if reason.is_none() {
                probing.opened_at = now;
            }
            *reason = Some(why.to_owned());
            news
        });
        if news || now >= probing.reminded_at + REMINDER {
            probing.reminded_at = now;
            let failures = probing.failures;
            warn!(failures, "intake is paused, and what is held stays held: {why}");
        }
    }

    /// A statement succeeded.
    pub fn close(&self) {
        let closed = self.reason.send_if_modified(|reason| reason.take().is_some());
        if closed {
            let mut probing = self.probing();
            let paused_seconds = probing.opened_at.elapsed().as_secs();
            info!(paused_seconds, failures = probing.failures, "ClickHouse answers: intake is open");
            probing.failures = 0;
        }
    }

    fn probing(&self) -> MutexGuard<'_, Probing> {
        self.probing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn lets_one_probe_through_an_interval_while_open() {
        let breaker = Breaker::new(INTERVAL);
        breaker.close();
        breaker.open("away");
        let start = Instant::now();
        for probes in 1..=3 {
            breaker.admit().await;
            assert_eq!(start.elapsed(), INTERVAL * probes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lets_everybody_through_once_closed() {
        let breaker = std::sync::Arc::new(Breaker::new(INTERVAL));
        breaker.close();
        breaker.open("away");
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let breaker = breaker.clone();
                tokio::spawn(async move { breaker.admit().await })
            })
            .collect();
        tokio::task::yield_now().await;
        let start = Instant::now();
        breaker.close();
        for waiter in waiting {
            waiter.await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(breaker.reason(), None);
    }
}
