//! Declaration files: YAML parsed into structs, but not checked yet.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::paths::Path;
use crate::yaml::{self, Misshapen};

/// One file of config/event_types. Its name, without `.yaml`, is the event type's name.
///
/// The comments of its fields are the descriptions in the JSON schema.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(description = "An event type: which records become rows of a table, and how.")]
pub(super) struct Declaration {
    /// Whether the file is only extended by others. It has no rule and no table then.
    #[serde(default, rename = "abstract")]
    pub is_abstract: bool,
    /// The name, without `.yaml`, of a file whose columns come first, and whose `keys`, `order_by`
    /// and `partition_by` apply where this file has none.
    pub extends: Option<String>,
    /// The table in Sluice's database.
    pub table: Option<String>,
    /// Which records belong to this event type.
    pub rule: Option<DeclaredRule>,
    /// The objects that can have such records: globs on keys. Without it, all objects.
    pub keys: Option<Vec<String>>,
    /// The sorting key: columns that cannot be NULL. Records that are equal in all of them collapse
    /// into one row, so end it with the record's id.
    pub order_by: Option<Vec<String>>,
    /// The partition key: a ClickHouse expression over declared columns, such as
    /// `toYYYYMM(event_time)`.
    pub partition_by: Option<String>,
    /// The columns. Every table also has `source_path`, `source_etag`, `batch_id` and
    /// `ingested_at`.
    #[serde(default)]
    pub columns: Vec<DeclaredColumn>,
}

/// A condition on a record: one of `all`, `any`, `not`, and `path` with `equals`, `in` or `present`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Rule")]
pub(super) struct DeclaredRule {
    /// Every one of these rules holds.
    pub all: Option<Vec<DeclaredRule>>,
    /// At least one of these rules holds.
    pub any: Option<Vec<DeclaredRule>>,
    /// This rule does not hold.
    pub not: Option<Box<DeclaredRule>>,
    /// Where the value is: the keys from the top of the record down.
    pub path: Option<Path>,
    /// The value is this text. Numbers and booleans compare as their JSON text.
    #[schemars(extend("type" = ["string", "number", "boolean", "null"]))]
    pub equals: Option<String>,
    /// The value is one of these texts.
    #[serde(rename = "in")]
    pub one_of: Option<Vec<String>>,
    /// There is a value, whatever it is; always `true`.
    pub present: Option<bool>,
}

/// A column of the table.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Column")]
pub(super) struct DeclaredColumn {
    /// The name of the column in ClickHouse.
    pub name: String,
    /// The type of the column in ClickHouse, such as `LowCardinality(String)` or
    /// `DateTime64(3, 'UTC')`.
    #[serde(rename = "type")]
    pub column_type: String,
    /// Where the value is: the keys from the top of the record down.
    pub path: Option<Path>,
    /// Further paths. The first that exists counts, even if its value is invalid.
    #[serde(default)]
    pub fallbacks: Vec<Path>,
    /// What replaces a missing or empty text: the hash of the record.
    pub otherwise: Option<Otherwise>,
    /// Whether a record without a valid value is rejected.
    #[serde(default)]
    pub required: bool,
    /// Whether the author asserts that every row has a value here that identifies it.
    #[serde(default)]
    pub identifies: bool,
    /// ClickHouse SQL instead of the value itself. `{value}` is the text at the path.
    pub expression: Option<String>,
    /// Further paths for the expression, by name.
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
// Its variants have no doc comments: schemars would make a `oneOf` of them, and not an `enum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Otherwise {
    // The line's 128-bit hash in hexadecimal, so that the same line always gets the same value.
    LineHash,
}

/// Parses the text of one file.
pub(super) fn parse(text: &str) -> Result<Declaration, Vec<Misshapen>> {
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
        for (text, expected) in [
            (
                "columns:\n- {name: a, type: String, pth: [a]}",
                "line 2, column 27: columns[0].pth: unknown key `pth`; did you mean `path`?",
            ),
            (
                "tabel: x",
                "line 1, column 1: tabel: unknown key `tabel`; did you mean `table`?",
            ),
            (
                "rule: {path: [a], eq: 1}",
                "line 1, column 19: rule.eq: unknown key `eq`; use one of ",
            ),
        ] {
            let found = parse(text).unwrap_err();
            assert_eq!(found.len(), 1, "{found:?}");
            let found = found[0].to_string();
            assert!(found.starts_with(expected), "{found}");
        }
    }

    #[test]
    fn invalid_yaml_is_an_error() {
        assert!(parse("a: [").is_err());
        assert!(parse("- a").is_err());
    }
}
