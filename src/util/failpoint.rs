//! Named places in the code at which a test can end the process as `kill -9` would.
//!
//! Without the feature `failpoints`, this compiles to nothing. With it,
//! `FAILPOINTS=seal.after=return` ends the process when the place is first reached, and
//! `seal.after=2*off->return` the third time.

/// Arms the places that `FAILPOINTS` names, for as long as the returned value lives.
pub(crate) fn arm() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}

/// Ends the process if the place of this name is armed.
pub(crate) fn reach(_name: &str) {
    fail::fail_point!(_name, |_| std::process::abort());
}
