//! The union of all declared JSON paths, as one ClickHouse Tuple.
//!
//! A line is parsed once, into this tuple. JSON has a trap there: ClickHouse maps a JSON *list*
//! onto a tuple by position, so that `"result": [1, 2]` would fill the first two declared keys of
//! `result` with values that nobody named. Each tuple therefore begins with a guard element, whose
//! name no JSON has: the first element of a list lands in it and gives the list away. A list that
//! begins with null leaves the guard NULL, but must have `[null` in its line. Either sign makes the
//! line a *suspect*, and a suspect is read again, path by path, where nothing goes by position.

use std::collections::BTreeMap;

use crate::sql;

/// Where a value is: the keys from the top of the statement down. A key may hold any character.
pub type Path = Vec<String>;

/// SOH: a key with it would be a suspect too, and so be read correctly.
const GUARD: &str = "\u{1}";

/// What every declared path becomes on the wire; `column_type` says why.
const TEXT: &str = "Nullable(String)";

/// The name of the tuple column in `landing` and in the generated SELECTs.
pub(super) const EVENT: &str = "event";

/// All declared paths by their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathTree {
    children: BTreeMap<String, Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Leaf,
    Parent(PathTree),
}

impl PathTree {
    /// Adds a path. Fails where the path, or a part of it, is wanted both as a value and as an
    /// object: the error is the part in question.
    pub fn insert(&mut self, path: &[String]) -> Result<(), Path> {
        let Some((key, rest)) = path.split_first() else {
            return Ok(());
        };
        if rest.is_empty() {
            match self.children.entry(key.clone()).or_insert(Node::Leaf) {
                Node::Leaf => Ok(()),
                Node::Parent(_) => Err(vec![key.clone()]),
            }
        } else {
            match self
                .children
                .entry(key.clone())
                .or_insert_with(|| Node::Parent(PathTree::default()))
            {
                Node::Leaf => Err(vec![key.clone()]),
                Node::Parent(tree) => tree.insert(rest).map_err(|mut conflict| {
                    conflict.insert(0, key.clone());
                    conflict
                }),
            }
        }
    }

    /// The tuple's type.
    pub fn tuple_type(&self) -> String {
        let mut elements = vec![format!("{} {TEXT}", sql::ident(GUARD))];
        for (key, node) in &self.children {
            let element = match node {
                Node::Leaf => TEXT.to_owned(),
                Node::Parent(tree) => tree.tuple_type(),
            };
            elements.push(format!("{} {element}", sql::ident(key)));
        }
        format!("Tuple({})", elements.join(", "))
    }

    /// The value at a path in the column `event`, as Nullable(String).
    pub(super) fn text(&self, path: &[String]) -> String {
        element(EVENT, path)
    }

    /// Whether `line`, parsed as `parsed`, may hold a list where an object is declared.
    pub(super) fn suspect(&self, line: &str, parsed: &str) -> String {
        let mut signs = Vec::new();
        self.each_tuple(&mut Vec::new(), &mut |path| {
            let mut guard = path.to_vec();
            guard.push(GUARD.to_owned());
            signs.push(format!("isNotNull({})", element(parsed, &guard)));
        });
        // A search for the word costs next to nothing and spares most lines the expression.
        signs.push(format!(
            "(position({line}, 'null') > 0 AND match({line}, '\\\\[\\\\s*null'))"
        ));
        signs.join(" OR ")
    }

    /// The tuple read from `line` path by path: slow, and blind to positions.
    pub(super) fn read_by_path(&self, line: &str) -> String {
        format!(
            "CAST({}, {})",
            self.read_below(line, &mut Vec::new()),
            sql::string(&self.tuple_type())
        )
    }

    fn read_below(&self, line: &str, path: &mut Path) -> String {
        let mut elements = vec!["NULL".to_owned()];
        for (key, node) in &self.children {
            path.push(key.clone());
            elements.push(match node {
                Node::Leaf => {
                    format!(
                        "JSONExtract({line}, {}, {})",
                        sql::strings(&*path),
                        sql::string(TEXT)
                    )
                }
                Node::Parent(tree) => tree.read_below(line, path),
            });
            path.pop();
        }
        format!("tuple({})", elements.join(", "))
    }

    fn each_tuple(&self, path: &mut Path, visit: &mut impl FnMut(&[String])) {
        visit(path);
        for (key, node) in &self.children {
            if let Node::Parent(tree) = node {
                path.push(key.clone());
                tree.each_tuple(path, visit);
                path.pop();
            }
        }
    }
}

/// An element of a tuple by function: with dots, the paths `a.b` and `a`, `b` would be one name.
fn element(tuple: &str, path: &[String]) -> String {
    path.iter().fold(tuple.to_owned(), |outer, key| {
        format!("tupleElement({outer}, {})", sql::string(key))
    })
}

/// A path as people write it, for messages: `$.context.extensions["http://…"]`.
pub(super) fn display(path: &[String]) -> String {
    let mut out = "$".to_owned();
    for key in path {
        let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if plain {
            out.push('.');
            out.push_str(key);
        } else {
            out.push_str(&format!("[{key:?}]"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(keys: &[&str]) -> Path {
        keys.iter().map(|&key| key.to_owned()).collect()
    }

    #[test]
    fn paths_that_share_keys_share_tuples() {
        let mut tree = PathTree::default();
        for keys in [&["a", "x"][..], &["a", "y"], &["b"], &["a", "x"]] {
            tree.insert(&path(keys)).unwrap();
        }
        assert_eq!(
            tree.tuple_type(),
            r"Tuple(`\x01` Nullable(String), `a` Tuple(`\x01` Nullable(String), `x` Nullable(String), `y` Nullable(String)), `b` Nullable(String))"
        );
    }

    #[test]
    fn a_value_cannot_be_an_object_too() {
        let mut tree = PathTree::default();
        tree.insert(&path(&["a", "b"])).unwrap();
        assert_eq!(tree.insert(&path(&["a"])), Err(path(&["a"])));
        assert_eq!(tree.insert(&path(&["a", "b", "c"])), Err(path(&["a", "b"])));
        assert_eq!(tree.insert(&path(&["a", "c"])), Ok(()));
    }

    #[test]
    fn every_tuple_has_its_guard_looked_at() {
        let mut tree = PathTree::default();
        tree.insert(&path(&["a", "b", "c"])).unwrap();
        let suspect = tree.suspect("line", "parsed");
        assert_eq!(suspect.matches("isNotNull").count(), 3, "{suspect}");
    }

    #[test]
    fn paths_are_shown_with_keys_of_any_kind() {
        assert_eq!(
            display(&path(&["a", "http://x/y", "b_1"])),
            r#"$.a["http://x/y"].b_1"#
        );
    }
}
