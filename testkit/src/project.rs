//! The project's own files, which tests read and partly generate.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the path of a file of the project.
pub fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

/// Returns the content of a file of the project.
///
/// # Panics
///
/// Panics if the file does not exist.
#[track_caller]
pub fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Returns the files below a directory of the project that have this extension, in order.
///
/// # Panics
///
/// Panics if the directory does not exist.
#[track_caller]
pub fn files_below(directory: &str, extension: &str) -> Vec<PathBuf> {
    fn collect(directory: &Path, extension: &str, into: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(directory);
        let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, extension, into);
            } else if path.extension().is_some_and(|it| it == extension) {
                into.push(path);
            }
        }
    }
    let root = path(directory).canonicalize();
    let root = root.unwrap_or_else(|error| panic!("{directory}: {error}"));
    let mut found = Vec::new();
    collect(&root, extension, &mut found);
    found.sort_unstable();
    found
}

/// Returns whether generated files are to be written instead of compared.
pub fn updates_docs() -> bool {
    std::env::var_os("UPDATE_DOCS").is_some()
}

/// Compares a generated file, or writes it.
///
/// # Panics
///
/// Panics if the file is out of date; the message gives the command, with `tests` such as `--lib
/// config`, that writes it.
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
