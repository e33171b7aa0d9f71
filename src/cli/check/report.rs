//! The results of the checks.

use std::fmt;
use std::io::IsTerminal;

use serde::Serialize;

use crate::cli::output::shown;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Pass,
    /// Sluice works, but an operator should know about it.
    Warn,
    Fail,
    /// Not needed here, or an earlier failure makes it pointless.
    Skip,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Pass, Self::Warn, Self::Fail, Self::Skip];

    fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }

    /// Returns the ANSI code: green, yellow, red or faint.
    fn colour(self) -> &'static str {
        match self {
            Self::Pass => "32",
            Self::Warn => "33",
            Self::Fail => "31",
            Self::Skip => "2",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) result: Outcome,
    pub(super) detail: String,
    /// What to do.
    pub(super) advice: Option<String>,
}

impl Check {
    pub(super) fn pass(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Outcome::Pass, detail.into(), None)
    }

    pub(super) fn skip(name: &'static str, why: impl Into<String>) -> Self {
        Self::new(name, Outcome::Skip, why.into(), None)
    }

    pub(super) fn warn(
        name: &'static str,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(name, Outcome::Warn, detail.into(), Some(advice.into()))
    }

    pub(super) fn fail(
        name: &'static str,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(name, Outcome::Fail, detail.into(), Some(advice.into()))
    }

    fn new(name: &'static str, result: Outcome, detail: String, advice: Option<String>) -> Self {
        Self {
            name,
            result,
            detail,
            advice,
        }
    }
}

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) checks: Vec<Check>,
}

impl Report {
    pub(super) fn count(&self, outcome: Outcome) -> usize {
        let of_it = |check: &&Check| check.result == outcome;
        self.checks.iter().filter(of_it).count()
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, coloured: bool) -> fmt::Result {
        let names = self.checks.iter().map(|check| check.name.len());
        let width = names.max().unwrap_or_default();
        for check in &self.checks {
            let word = check.result.word();
            if coloured {
                let colour = check.result.colour();
                write!(f, "\x1b[{colour}m{word}\x1b[0m")?;
            } else {
                f.write_str(word)?;
            }
            writeln!(f, "  {:width$}  {}", check.name, shown(&check.detail))?;
            if let Some(advice) = &check.advice {
                writeln!(f, "      {:width$}  to do: {}", "", shown(advice))?;
            }
        }
        let counts = Outcome::ALL.map(|outcome| (self.count(outcome), outcome.word()));
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let counts: Vec<String> = counts
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        writeln!(f, "\n{}", counts.join(", "))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        self.write(f, wanted && std::io::stdout().is_terminal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Text<'a>(&'a Report, bool);

    impl fmt::Display for Text<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.write(f, self.1)
        }
    }

    #[test]
    fn lines_are_aligned_and_summed_up() {
        let report = Report {
            checks: vec![
                Check::pass("queue", "reachable"),
                Check::fail("redrive policy", "none", "make\none"),
                Check::skip("tables", "ClickHouse could not be queried"),
            ],
        };
        insta::assert_snapshot!(Text(&report, false), @r"
        pass  queue           reachable
        fail  redrive policy  none
                              to do: make\none
        skip  tables          ClickHouse could not be queried

        1 pass, 1 fail, 1 skip
        ");
        let coloured = Text(&report, true).to_string();
        assert!(
            coloured.starts_with("\u{1b}[32mpass\u{1b}[0m  queue"),
            "{coloured}"
        );
    }
}
