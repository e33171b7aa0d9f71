//! Output on the terminal: results on standard output, everything else on standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const PLAIN_INTERVAL: Duration = Duration::from_secs(3);

/// Prints a line of the result.
#[expect(clippy::print_stdout, reason = "the result is for standard output")]
pub(crate) fn print(line: &str) {
    println!("{line}");
}

/// Prints a line about progress.
#[expect(clippy::print_stderr, reason = "progress is for standard error")]
pub(crate) fn note(line: &str) {
    eprintln!("{line}");
}

/// Progress on one line, which is overwritten on a terminal. Elsewhere a line is printed every few
/// seconds.
pub(crate) struct Progress {
    terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            shown: None,
        }
    }

    pub(crate) fn show(&mut self, line: &str) {
        if self.terminal {
            overwrite(line);
            self.shown = Some(Instant::now());
        } else if self
            .shown
            .is_none_or(|shown| shown.elapsed() >= PLAIN_INTERVAL)
        {
            note(line);
            self.shown = Some(Instant::now());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.shown.is_some() {
            note("");
        }
    }
}

fn overwrite(line: &str) {
    let mut stderr = std::io::stderr().lock();
    // Failing to show progress must not stop the command.
    drop(write!(stderr, "\r\x1b[2K{line}").and_then(|()| stderr.flush()));
}
