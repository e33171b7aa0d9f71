//! The project's own files, which tests read and some of which they write.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a file of the project is.
pub fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

/// What is in it.
///
/// # Panics
///
/// When it is not there.
#[track_caller]
pub fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Whether generated files are to be written, and not compared.
pub fn updates_docs() -> bool {
    std::env::var_os("UPDATE_DOCS").is_some()
}

/// Compares a generated file, or writes it.
///
/// # Panics
///
/// When it is out of date; the text says how `tests`, such as `--lib config`, write it.
#[track_caller]
pub fn assert_generated(file: &str, text: &str, tests: &str) {
    if updates_docs() {
        fs::write(path(file), text).expect("it can be written");
    }
    let found = fs::read_to_string(path(file)).unwrap_or_default();
    assert!(
        found == text,
        "{file} is out of date, run `UPDATE_DOCS=1 cargo test {tests}`"
    );
}
