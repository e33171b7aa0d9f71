//! Limits repeated lines, so that an outage does not flood the log: of each kind of failure, some
//! lines are written, and the others are counted.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, warn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How long a kind of failure is counted before the count is written.
const WINDOW: Duration = Duration::from_secs(30);
/// Lines of one kind that are written in a window.
const BURST: u32 = 10;
/// How often to look whether a window has ended.
const TICK: Duration = Duration::from_secs(1);

/// The repeats of this process. Each place in the code is a kind of failure.
static REPEATS: LazyLock<Repeats<Identifier>> = LazyLock::new(Repeats::new);

/// The lines that were left out, by kind.
struct Repeats<K>(Mutex<HashMap<K, Kind>>);

struct Kind {
    window_began: Instant,
    written: u32,
    left_out: Option<LeftOut>,
}

/// Lines that were not written.
struct LeftOut {
    message: String,
    count: u64,
    since: Instant,
}

impl<K: Eq + Hash> Repeats<K> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    /// Returns whether to write a line of this kind. Otherwise, it is counted.
    fn admits(&self, kind: K, message: impl FnOnce() -> String) -> bool {
        let now = Instant::now();
        let mut kinds = self.kinds();
        let kind = kinds.entry(kind).or_insert(Kind {
            window_began: now,
            written: 0,
            left_out: None,
        });
        if now >= kind.window_began + WINDOW {
            kind.window_began = now;
            kind.written = 0;
        }
        if kind.written < BURST {
            kind.written += 1;
            return true;
        }
        let left_out = kind.left_out.get_or_insert_with(|| LeftOut {
            message: message(),
            count: 0,
            since: now,
        });
        left_out.count += 1;
        false
    }

    /// Takes the lines that have been left out since `before` or longer.
    fn take(&self, before: Instant) -> Vec<LeftOut> {
        self.kinds()
            .values_mut()
            .filter_map(|kind| kind.left_out.take_if(|it| it.since <= before))
            .collect()
    }

    fn kinds(&self) -> MutexGuard<'_, HashMap<K, Kind>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the counts of windows that have ended, indefinitely.
pub(super) async fn report() {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        if let Some(before) = Instant::now().checked_sub(WINDOW) {
            write(REPEATS.take(before));
        }
    }
}

/// Writes all counts, before the process ends.
pub(super) fn report_all() {
    write(REPEATS.take(Instant::now()));
}

fn write(left_out: Vec<LeftOut>) {
    for LeftOut {
        message,
        count,
        since,
    } in left_out
    {
        let seconds = since.elapsed().as_secs();
        warn!(
            repeated = count,
            "… and {count} more like it in the last {seconds} s: {message}"
        );
    }
}

/// Writes all lines that are not failures, and those failures that [`Repeats`] admits.
///
/// It is a format, not a filter: after a filter has rejected an event by its content,
/// `tracing_subscriber` 0.3 also rejects another one.
pub(super) struct FewOfEachKind<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for FewOfEachKind<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let is_written = *metadata.level() > Level::WARN
            || metadata.target() == module_path!()
            || REPEATS.admits(metadata.callsite(), || message_of(event));
        if is_written {
            self.0.format_event(context, writer, event)?;
        }
        Ok(())
    }
}

fn message_of(event: &Event<'_>) -> String {
    struct Message(String);
    impl Visit for Message {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            }
        }
    }
    let mut message = Message(String::new());
    event.record(&mut message);
    message.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(repeats: &Repeats<&'static str>, kind: &'static str, times: u32) -> u32 {
        let admitted = (0..times).filter(|_| repeats.admits(kind, || kind.to_owned()));
        admitted.count() as u32
    }

    fn due(repeats: &Repeats<&'static str>) -> Vec<(String, u64)> {
        let Some(before) = Instant::now().checked_sub(WINDOW) else {
            return Vec::new();
        };
        let left_out = repeats.take(before).into_iter();
        left_out.map(|it| (it.message, it.count)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn some_lines_of_each_kind_are_written_and_the_rest_are_counted() {
        let repeats = Repeats::new();
        assert_eq!(fail(&repeats, "delete", BURST + 41), BURST);
        assert_eq!(fail(&repeats, "poll", 1), 1);
        tokio::time::advance(WINDOW - Duration::from_millis(1)).await;
        assert_eq!(due(&repeats), []);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(due(&repeats), [("delete".to_owned(), 41)]);
        assert_eq!(due(&repeats), []);
    }

    #[tokio::test(start_paused = true)]
    async fn an_hour_of_failures_writes_few_lines_and_counts_every_failure() {
        let repeats = Repeats::new();
        let (mut written, mut counts) = (0, Vec::new());
        for _ in 0..3600 {
            written += fail(&repeats, "delete", 100);
            counts.extend(due(&repeats));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        counts.extend(due(&repeats));
        tokio::time::advance(WINDOW).await;
        counts.extend(due(&repeats));
        let counted: u64 = counts.iter().map(|(_, count)| count).sum();
        assert_eq!(u64::from(written) + counted, 360_000);
        assert_eq!(written, 120 * BURST);
        assert!(counts.len() <= 121, "{}", counts.len());
    }
}
