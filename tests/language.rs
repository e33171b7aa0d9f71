//! STYLE.md as a test: names and phrases that were replaced do not return. docs/glossary.md has the
//! terms that replaced them.

use std::path::{Path, PathBuf};

use sluice_testkit::project::files_below;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Names of the code that were replaced, each by a term of the field.
const NAMES: &[&str] = &[
    "Held",
    "HeldMessage",
    "Holdings",
    "Vitals",
    "Standing",
    "standings",
    "SealedBatch",
    "SealedObject",
    "DOOMED",
    "TakeBack",
    "TakenBack",
    "keep_nothing",
    "Verdict",
    "Naming",
    "HaltedInsert",
    "unprobed",
    "KeptLines",
    "Kept",
    "Desk",
    "Sweep",
    "Survey",
    "Letter",
    "forgetful_setting",
    "whose_fault",
];

/// Idioms that a new reader does not know.
const PHRASES: &[&str] = &[
    "trying on",
    "goes on",
    "of late",
    "on record",
    "in hand",
    "in other hands",
    "in good hands",
    "taken back",
    "frozen list",
    "kept line",
    "given back",
    "so many",
    "doomed",
    "is no glob",
    "is no filter",
    "does not tell",
];

/// Whether the text has these words, as whole words.
fn has(text: &str, words: &str) -> bool {
    let is_part = |next: Option<char>| next.is_some_and(|it| it.is_alphanumeric() || it == '_');
    text.match_indices(words).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + words.len()..]);
        !is_part(before.chars().next_back()) && !is_part(after.chars().next())
    })
}

/// Returns each line of these files that has one of the words. A phrase that is split by a line
/// break is not found.
fn found(files: &[PathBuf], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            for words in words.iter().filter(|words| has(line, words)) {
                let file = file.strip_prefix(ROOT).unwrap_or(file).display();
                found.push(format!("{file}:{number}: `{words}`"));
            }
        }
    }
    found
}

fn code() -> Vec<PathBuf> {
    let files = ["src", "core/src"].map(|directory| files_below(directory, "rs"));
    let files = files.concat();
    assert!(files.len() > 100);
    files
}

#[test]
fn names_that_were_replaced_stay_replaced() {
    assert_eq!(found(&code(), NAMES), Vec::<String>::new());
}

#[test]
fn comments_logs_and_errors_have_no_private_idioms() {
    assert_eq!(found(&code(), PHRASES), Vec::<String>::new());
}

/// Excludes documents that are generated from checked sources, and records of the past.
#[test]
fn documents_have_no_private_idioms() {
    let mut files: Vec<PathBuf> = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ]
    .map(|name| Path::new(ROOT).join(name))
    .into();
    for directory in ["docs", "docs/runbooks"] {
        for entry in std::fs::read_dir(Path::new(ROOT).join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|it| it == "md") {
                files.push(path);
            }
        }
    }
    assert_eq!(found(&files, PHRASES), Vec::<String>::new());
}
