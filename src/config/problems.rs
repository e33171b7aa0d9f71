//! The problems of a configuration, which are reported all at once.

use std::collections::BTreeSet;
use std::fmt;

/// One problem, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The dotted path of the field, or the file that could not be read.
    pub path: String,
    /// Where the value came from: a file, an environment variable, a flag.
    pub origin: Option<String>,
    /// What is wrong. It never quotes a secret.
    pub message: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Problem {
    pub(super) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            origin: None,
            message: message.into(),
            advice: None,
        }
    }

    pub(super) fn origin(mut self, origin: Option<&str>) -> Self {
        self.origin = origin.map(str::to_owned);
        self
    }

    pub(super) fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        if let Some(origin) = &self.origin {
            write!(f, "\n  from: {origin}")?;
        }
        if let Some(advice) = &self.advice {
            write!(f, "\n  help: {advice}")?;
        }
        Ok(())
    }
}

/// All problems of a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "1 problem in the configuration\n")?,
            count => writeln!(f, "{count} problems in the configuration\n")?,
        }
        for problem in &self.0 {
            writeln!(f, "{problem}\n")?;
        }
        f.write_str("`sluice config schema` lists every field with its type and default")
    }
}

/// The problems found so far.
#[derive(Default)]
pub(super) struct Findings {
    problems: Vec<Problem>,
    paths: BTreeSet<String>,
}

impl Findings {
    pub(super) fn add(&mut self, problem: Problem) {
        self.paths.insert(problem.path.clone());
        self.problems.push(problem);
    }

    /// Returns whether no problem has been found at `path`. A value that was
    /// reset after an error must not cause more of them.
    pub(super) fn is_good(&self, path: &str) -> bool {
        !self.paths.contains(path)
    }

    /// Returns `value`, or the problems if there are any.
    pub(super) fn into_result<T>(self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(Problems(self.problems)),
        }
    }
}
