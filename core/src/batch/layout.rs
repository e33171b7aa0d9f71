//! The layout of a batch's objects: what its manifest records about their format.

use serde::{Deserialize, Serialize};

/// How the objects of a batch are read: the name of their declared format, and the fields or
/// columns that were found in them before the batch was claimed. Nothing is inferred while they are
/// inserted, so that a retry reads what the first attempt read.
///
/// The default is JSON lines, which have no declaration.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The name of the format; empty for JSON lines.
    pub format: String,
    /// The names and the ClickHouse types of the fields, in their order in the objects; empty for a
    /// format that needs none, and for objects without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub structure: Vec<(String, String)>,
}

impl Layout {
    /// Returns whether these are JSON lines, which are read as before there were other formats.
    pub fn is_json_lines(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the value of `ledger_objects.layout`: empty for JSON lines, and JSON otherwise.
    pub fn to_text(&self) -> String {
        if self.is_json_lines() {
            return String::new();
        }
        serde_json::to_string(self).expect("strings are always valid JSON")
    }

    /// Returns the layout with this text; `None` if it is not one of [`Layout::to_text`], for
    /// instance because a later version wrote it.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_read_as_it_was_written() {
        let column = |name: &str| (name.to_owned(), "Nullable(String)".to_owned());
        for structure in [vec![], vec![column("Trip ID"), column("b\"'\\")]] {
            let layout = Layout {
                format: "exports".to_owned(),
                structure,
            };
            assert!(!layout.is_json_lines());
            assert_eq!(Layout::parse(&layout.to_text()), Some(layout));
        }
    }

    #[test]
    fn json_lines_have_an_empty_layout() {
        assert_eq!(Layout::default().to_text(), "");
        assert_eq!(Layout::parse(""), Some(Layout::default()));
        assert!(Layout::default().is_json_lines());
    }

    #[test]
    fn the_layout_of_a_later_version_is_not_understood() {
        assert_eq!(Layout::parse("{\"format\":\"a\",\"pages\":1}"), None);
        assert_eq!(Layout::parse("a"), None);
    }
}
