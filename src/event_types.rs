//! Reads the declared event types from a directory. `sluice-core` checks them.

use std::path::Path as FilePath;

pub use sluice_core::event_types::*;

/// Returns the event types that a directory's `.yaml` and `.yml` files declare.
///
/// # Errors
///
/// All problems of the files, each with its place.
pub fn from_dir(directory: &FilePath) -> Result<Catalog, Vec<Problem>> {
    let problem = |file: &FilePath, error: std::io::Error| Problem {
        file: file.display().to_string(),
        at: String::new(),
        position: None,
        message: format!("cannot be read: {error}"),
    };
    let entries = std::fs::read_dir(directory).map_err(|error| vec![problem(directory, error)])?;
    let mut files = Vec::new();
    let mut problems = Vec::new();
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                problems.push(problem(directory, error));
                continue;
            }
        };
        if !path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml")
        {
            continue;
        }
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                files.push((name, text));
            }
            Err(error) => problems.push(problem(&path, error)),
        }
    }
    match Catalog::from_files(files) {
        Ok(catalog) if problems.is_empty() => Ok(catalog),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_in_a_directory_are_read_and_other_files_are_ignored() {
        let text = include_str!("cli/check/canary.yaml");
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("click.yml"), text).unwrap();
        std::fs::write(directory.path().join("README.md"), "no declaration").unwrap();
        assert_eq!(from_dir(directory.path()).unwrap().types()[0].name, "click");
        let missing = from_dir(&directory.path().join("none")).unwrap_err();
        assert!(missing[0].message.contains("cannot be read"), "{missing:?}");
    }
}
