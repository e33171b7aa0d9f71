//! Parsing of declarations in YAML, with the place of each error in the text.
//!
//! Crates that deserialize YAML stop at the first error, and the crate `config` has no positions.
//! Therefore, [`tree`] keeps the position of each node, which the events of `yaml-rust2` have, and
//! [`deserialize`] leaves out the nodes that do not fit until the rest does.

mod deserialize;
mod tree;

use std::fmt;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;

use deserialize::{Error, Reason, Skipped};
pub(crate) use tree::Document;

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

/// A part of a document that does not have the expected shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misshapen {
    /// The place in the document, such as `columns[3].type`; empty for the document as a whole.
    pub(crate) at: String,
    pub(crate) position: Option<Position>,
    pub(crate) message: String,
}

impl fmt::Display for Misshapen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Position { line, column }) = self.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        if !self.at.is_empty() {
            write!(f, "{}: ", self.at)?;
        }
        f.write_str(&self.message)
    }
}

/// Returns the JSON schema (draft 2020-12) of documents that [`parse`] accepts.
pub(crate) fn json_schema<T: JsonSchema>(title: &str) -> serde_json::Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    join_lines(&mut schema);
    schema["title"] = title.into();
    schema
}

/// Joins the lines of descriptions, which are broken only because of the width of the source, and
/// removes the names of Rust's integer types, which mean nothing to other tools.
fn join_lines(schema: &mut serde_json::Value) {
    use serde_json::Value;
    match schema {
        Value::Object(object) => {
            if let Some(Value::String(description)) = object.get_mut("description") {
                *description = description.replace('\n', " ");
            }
            if object.get("format").is_some_and(Value::is_string) {
                object.remove("format");
            }
            object.values_mut().for_each(join_lines);
        }
        Value::Array(items) => items.iter_mut().for_each(join_lines),
        _ => {}
    }
}

/// The number of errors after which a document is not examined further.
const MAX_ERRORS: usize = 100;

/// Parses a YAML document.
///
/// # Errors
///
/// Returns every part of it that does not have the shape of a `T`, in the order of the text.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Vec<Misshapen>> {
    read(&Document::parse(text).map_err(|error| vec![error])?)
}

/// Returns the value of a document.
///
/// # Errors
///
/// Returns every part of it that does not have the shape of a `T`, in the order of the text.
pub(crate) fn read<T: DeserializeOwned>(document: &Document) -> Result<T, Vec<Misshapen>> {
    let mut found = document.duplicates().to_vec();
    let mut skipped = Skipped::default();
    loop {
        match deserialize::value(document, &skipped) {
            Ok(value) if found.is_empty() => return Ok(value),
            Ok(_) => break,
            Err(error) => {
                let is_progress = skip(&error, &mut skipped);
                if let Some(misshapen) = misshapen(error, &skipped) {
                    found.push(misshapen);
                }
                if !is_progress || found.len() >= MAX_ERRORS {
                    break;
                }
            }
        }
    }
    found.sort_by_key(|misshapen| misshapen.position);
    Err(found)
}

/// Leaves out the node that has the error. Returns false if that is the whole document, or if it is
/// left out already.
fn skip(error: &Error, skipped: &mut Skipped) -> bool {
    !error.path.is_empty() && skipped.add(&error.path)
}

/// Returns the error to report; `None` if it is that a key is missing which was left out.
fn misshapen(error: Error, skipped: &Skipped) -> Option<Misshapen> {
    let message = match error.reason {
        Reason::MissingKey(key) => {
            let mut path = error.path.clone();
            path.push(deserialize::Segment::Key(key.to_owned()));
            if skipped.has(&path) {
                return None;
            }
            format!("has no `{key}`, which is needed")
        }
        Reason::Other(message) => message,
    };
    Some(Misshapen {
        at: deserialize::display(&error.path),
        position: error.position,
        message,
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        table: Option<String>,
        #[serde(default)]
        columns: Vec<Column>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Column {
        name: String,
        #[serde(default)]
        required: bool,
        size: Option<u32>,
        path: Option<Vec<String>>,
        kind: Option<Kind>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Plain,
        Pattern(String),
    }

    fn errors(text: &str) -> Vec<String> {
        let errors = parse::<File>(text).err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn scalars_become_what_is_expected_of_them() {
        let file: File = parse(
            "table: 7\ncolumns:\n- {name: true, required: yes, size: '4', path: [1.0, \"null\"]}\n\
             - name: a\n  kind: plain\n- {name: b, kind: {pattern: x}, size: }\n",
        )
        .unwrap();
        assert_eq!(file.table.as_deref(), Some("7"));
        let [first, second, third] = file.columns.as_slice() else {
            panic!("{file:?}")
        };
        assert_eq!((first.name.as_str(), first.required), ("true", true));
        assert_eq!(first.size, Some(4));
        assert_eq!(first.path.as_deref().unwrap(), ["1.0", "null"]);
        assert_eq!(second.kind, Some(Kind::Plain));
        assert_eq!(third.kind, Some(Kind::Pattern("x".to_owned())));
        assert_eq!(third.size, None);
    }

    #[test]
    fn a_document_without_content_has_no_keys() {
        for text in ["", "# nothing\n", "---\n", "~"] {
            assert_eq!(parse::<File>(text).unwrap(), File::default(), "{text:?}");
        }
    }

    #[test]
    fn anchors_are_resolved() {
        let file: File =
            parse("columns:\n- &a {name: x, path: &p [k]}\n- {name: y, path: *p}\n").unwrap();
        assert_eq!(file.columns[1].path, file.columns[0].path);
    }

    #[test]
    fn all_errors_are_found_at_once_each_with_its_place() {
        let text = "tabel: x\ncolumns:\n  - name: a\n    requred: true\n    size: big\n\
                    \x20 - {path: k, kind: other}\n  - a\n  - {name: [b], pth: [c]}\ntable: [t]\n";
        assert_eq!(
            errors(text),
            [
                "line 1, column 1: tabel: unknown key `tabel`; did you mean `table`?",
                "line 4, column 5: columns[0].requred: unknown key `requred`; did you mean \
                 `required`?",
                "line 5, column 5: columns[0].size: must be a whole number, not \"big\"",
                "line 6, column 5: columns[1]: has no `name`, which is needed",
                "line 6, column 6: columns[1].path: must be a list",
                "line 6, column 15: columns[1].kind: \"other\" is unknown; use one of plain, \
                 pattern",
                "line 7, column 5: columns[2]: must have keys, such as `name`",
                "line 8, column 6: columns[3].name: must be a text",
                "line 8, column 17: columns[3].pth: unknown key `pth`; did you mean `path`?",
                "line 9, column 1: table: must be a text",
            ]
        );
    }

    #[test]
    fn a_key_that_is_there_twice_is_an_error_beside_the_others() {
        assert_eq!(
            errors("table: a\ntable: b\nx: 1\n"),
            [
                "line 2, column 1: table: is there twice; remove one of the two",
                "line 3, column 1: x: unknown key `x`; use one of table, columns",
            ]
        );
    }

    #[test]
    fn what_is_not_yaml_is_one_error_with_its_place() {
        for text in ["a: [", "a: 'x", "a: b: c"] {
            let errors = parse::<File>(text).unwrap_err();
            assert_eq!(errors.len(), 1, "{text}");
            assert!(errors[0].position.is_some(), "{text}");
            assert!(errors[0].message.starts_with("is not YAML: "), "{text}");
        }
        assert_eq!(
            errors("- a"),
            ["line 1, column 1: must have keys, such as `table`"]
        );
        assert_eq!(
            errors("table: a\n---\ntable: b\n"),
            ["line 2, column 1: has several documents; use a file for each"]
        );
    }

    #[test]
    fn a_place_is_found_by_its_path() {
        let document =
            Document::parse("table: t\nrule:\n  all:\n  - {path: [a], in: []}\n").unwrap();
        let position = |at: &str| document.position(at).map(|it| (it.line, it.column));
        assert_eq!(position("table"), Some((1, 1)));
        assert_eq!(position("rule.all[0].in"), Some((4, 17)));
        assert_eq!(position("rule.all[0].path[0]"), Some((4, 13)));
        // What is missing is missing there.
        assert_eq!(position("rule.all[0].equals"), Some((4, 5)));
        assert_eq!(position("order_by[1]"), None);
        assert_eq!(position(""), None);
    }
}
