//! Named places at which a test can end the process as `kill -9` would.
//!
//! Compiled to nothing without the feature `failpoints`. With it, `FAILPOINTS=seal.after=return`
//! ends the process the first time that the place is reached, and `seal.after=2*off->return` the
//! third time.

/// Reads `FAILPOINTS`; the places are armed for as long as the value lives.
pub(crate) fn arm() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}

/// A place of this name is reached.
pub(crate) fn reach(_name: &str) {
    fail::fail_point!(_name, |_| std::process::abort());
}
