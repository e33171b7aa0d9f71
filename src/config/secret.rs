//! The sources of secrets.

use std::fs;
use std::path::PathBuf;

pub use sluice_core::secret::Secret;

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    Given(Secret),
    /// Read each time, so that a replaced secret takes effect.
    File(PathBuf),
}

impl SecretSource {
    /// Returns the file if there is one, and the value otherwise.
    pub fn of(given: &Secret, file: Option<&PathBuf>) -> Self {
        match file {
            Some(path) => Self::File(path.clone()),
            None => Self::Given(given.clone()),
        }
    }

    /// Reads the secret as it is now.
    ///
    /// # Errors
    ///
    /// Returns the problem, without quoting the secret.
    pub fn read(&self) -> Result<Secret, String> {
        let secret = match self {
            Self::Given(secret) => secret.clone(),
            Self::File(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|error| format!("failed to read {}: {error}", path.display()))?;
                let line = text.strip_suffix('\n').unwrap_or(&text);
                if line.is_empty() {
                    return Err(format!("{} is empty", path.display()));
                }
                Secret::new(line)
            }
        };
        if secret.expose().chars().any(char::is_control) {
            return Err("contains a control character".to_owned());
        }
        Ok(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::SecretSource;

    #[test]
    fn a_file_is_read_each_time_without_its_line_break() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let source = SecretSource::File(path.clone());
        assert!(source.read().unwrap_err().contains("failed to read"));
        for (text, expected) in [
            ("hunter2", Ok("hunter2")),
            ("hunter3\n", Ok("hunter3")),
            (" hunter4 \n", Ok(" hunter4 ")),
            ("hunter5\r\n", Err("control character")),
            ("hunter6\n\n", Err("control character")),
            ("\n", Err("is empty")),
        ] {
            std::fs::write(&path, text).unwrap();
            match (source.read(), expected) {
                (Ok(secret), Ok(expected)) => assert_eq!(secret.expose(), expected),
                (Err(problem), Err(expected)) => assert!(problem.contains(expected), "{problem}"),
                (found, _) => panic!("{text:?}: {found:?}"),
            }
        }
    }
}
