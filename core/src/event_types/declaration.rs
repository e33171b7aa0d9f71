//! Declaration files: YAML parsed into structs, but not checked yet.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::paths::Path;
use crate::yaml;

/// One file of config/event_types. Its name, without `.yaml`, is the event type's name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Declaration {
    #[serde(default, rename = "abstract")]
    pub is_abstract: bool,
    pub extends: Option<String>,
    pub table: Option<String>,
    pub rule: Option<DeclaredRule>,
    pub keys: Option<Vec<String>>,
    pub order_by: Option<Vec<String>>,
    pub partition_by: Option<String>,
    #[serde(default)]
    pub columns: Vec<DeclaredColumn>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredRule {
    pub all: Option<Vec<DeclaredRule>>,
    pub any: Option<Vec<DeclaredRule>>,
    pub not: Option<Box<DeclaredRule>>,
    pub path: Option<Path>,
    pub equals: Option<String>,
    #[serde(rename = "in")]
    pub one_of: Option<Vec<String>>,
    pub present: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredColumn {
    pub name: String,
    #[serde(rename = "type")]
    pub column_type: String,
    pub path: Option<Path>,
    #[serde(default)]
    pub fallbacks: Vec<Path>,
    pub otherwise: Option<Otherwise>,
    #[serde(default)]
    pub required: bool,
    /// Whether the author asserts that every row has a value here that identifies it.
    #[serde(default)]
    pub identifies: bool,
    pub expression: Option<String>,
    #[serde(default)]
    pub inputs: BTreeMap<String, Path>,
}

impl DeclaredColumn {
    /// Returns whether rows cannot collapse because this value of their sorting key is missing: the
    /// line's hash replaces it, lines without it are rejected, or the author asserts that every row
    /// has it.
    pub(super) fn keeps_rows_apart(&self) -> bool {
        self.otherwise.is_some() || self.required || self.identifies
    }
}

/// What replaces a text that is missing or empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Otherwise {
    /// The line's 128-bit hash in hexadecimal, so that the same line always gets the same value.
    LineHash,
}

/// Parses the text of one file.
pub(super) fn parse(text: &str) -> Result<Declaration, String> {
    yaml::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_case_and_their_dots() {
        let declared = parse(
            "table: T\ncolumns:\n- {name: aB, type: String, path: [\"http://x.y/Z\", homePage], inputs: {In: [a]}}",
        )
        .unwrap();
        let column = &declared.columns[0];
        assert_eq!(column.name, "aB");
        assert_eq!(
            column.path.as_deref().unwrap(),
            ["http://x.y/Z", "homePage"]
        );
        assert!(column.inputs.contains_key("In"));
    }

    #[test]
    fn unknown_keys_are_errors_that_name_the_place() {
        let error = parse("columns:\n- {name: a, type: String, pth: [a]}").unwrap_err();
        assert!(
            error.contains("columns[0]") && error.contains("pth"),
            "{error}"
        );
        assert!(parse("tabel: x").unwrap_err().contains("tabel"));
        assert!(
            parse("rule: {path: [a], eq: 1}")
                .unwrap_err()
                .contains("eq")
        );
    }

    #[test]
    fn invalid_yaml_is_an_error() {
        assert!(parse("a: [").is_err());
        assert!(parse("- a").is_err());
    }
}
