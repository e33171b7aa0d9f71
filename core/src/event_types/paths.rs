//! The union of all declared JSON paths, and how their values are read.
//!
//! A line is parsed once, into one ClickHouse Tuple of all paths, of which each value then becomes
//! a column. There is a pitfall: ClickHouse maps a JSON *list* onto a tuple by position, so that
//! `"result": [1, 2]` would fill the first two declared keys of `result` with values that do not
//! belong to them. Each tuple therefore begins with a sentinel element, whose name occurs in no
//! JSON: the first element of a list goes there and reveals the list. A list that begins with null
//! leaves the sentinel NULL, but its line must contain `[null`. Either sign makes the line
//! *ambiguous*: only values whose path exists in it by name count.

use std::collections::{BTreeMap, BTreeSet};

use crate::sql;

/// The place of a value: the keys from the top of the statement down. A key may hold any character.
pub type Path = Vec<String>;

/// The name of the sentinel element: U+0001. A line that has it as a key is also ambiguous, and is
/// therefore read correctly.
const SENTINEL: &str = "\u{1}";

/// The type of every declared path's value; `column_type` says why.
pub(crate) const TEXT: &str = "Nullable(String)";

/// The values at declared paths, as expressions over the columns of a SELECT.
pub(crate) trait PathValues {
    /// Returns the value, which is NULL where there is none. It can have any type.
    fn value(&self, path: &Path) -> String;

    /// Returns its text, of type Nullable(String).
    fn text(&self, path: &Path) -> String;
}

/// The columns of `landing`, which have the texts of all values.
pub(crate) struct PathTexts;

impl PathValues for PathTexts {
    fn value(&self, path: &Path) -> String {
        column(path)
    }

    fn text(&self, path: &Path) -> String {
        column(path)
    }
}

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
    /// Adds a path.
    ///
    /// # Errors
    ///
    /// Returns the path, or the part of it, that is declared both as a value and as an object.
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

    /// Returns the type of the tuple.
    pub fn tuple_type(&self) -> String {
        let mut elements = vec![format!("{} {TEXT}", sql::ident(SENTINEL))];
        for (key, node) in &self.children {
            let element = match node {
                Node::Leaf => TEXT.to_owned(),
                Node::Parent(tree) => tree.tuple_type(),
            };
            elements.push(format!("{} {element}", sql::ident(key)));
        }
        format!("Tuple({})", elements.join(", "))
    }

    /// Returns the paths of all values, in the order of their columns.
    pub(crate) fn leaves(&self) -> Vec<Path> {
        let mut leaves = Vec::new();
        for (key, node) in &self.children {
            match node {
                Node::Leaf => leaves.push(vec![key.clone()]),
                Node::Parent(tree) => leaves.extend(tree.leaves().into_iter().map(|mut below| {
                    below.insert(0, key.clone());
                    below
                })),
            }
        }
        leaves
    }

    /// Returns an expression for an array with one flag for each leaf, in the order of
    /// [`PathTree::leaves_by_depth`]: whether the line has no value at its path, so that the value
    /// in `parsed` comes from a list. The array is empty for a line that is not ambiguous, which
    /// ClickHouse then does not search for the paths.
    ///
    /// The paths of one depth are arguments of one function: planning a function for each of them
    /// takes a third longer.
    pub(crate) fn absent(&self, line: &str, parsed: &str) -> String {
        let leaves = self.leaves_by_depth();
        let absent = leaves.chunk_by(|one, other| one.len() == other.len());
        let absent = absent.map(|paths| {
            let depth = paths.first().map_or(0, Vec::len);
            let keys: Vec<String> = (1..=depth).map(|level| format!("key{level}")).collect();
            let keys = keys.join(", ");
            let of_level = |level: usize| {
                let keys: Vec<&str> = paths.iter().map(|path| path[level].as_str()).collect();
                format!("[{}]", sql::strings(&keys))
            };
            let of_levels: Vec<String> = (0..depth).map(of_level).collect();
            format!(
                "arrayMap(({keys}) -> NOT JSONHas({line}, {keys}), {})",
                of_levels.join(", ")
            )
        });
        format!(
            "if({}, arrayConcat({}), CAST([], 'Array(UInt8)'))",
            self.ambiguous(line, parsed),
            absent.collect::<Vec<_>>().join(", "),
        )
    }

    /// Returns the columns of all values, from the tuple `parsed` and the array `absent`.
    pub(crate) fn values(&self, parsed: &str, absent: &str) -> Vec<String> {
        let places: BTreeMap<Path, usize> = self.leaves_by_depth().into_iter().zip(1..).collect();
        let values = self.leaves().into_iter().map(|path| {
            let value = element(parsed, &path);
            let column = column(&path);
            let place = places[&path];
            format!("if(arrayElement({absent}, {place}), NULL, {value}) AS {column}")
        });
        values.collect()
    }

    fn leaves_by_depth(&self) -> Vec<Path> {
        let mut leaves = self.leaves();
        leaves.sort_by_key(Vec::len);
        leaves
    }

    /// Returns a condition: whether `line`, parsed as `parsed`, may have a list where an object is
    /// declared.
    fn ambiguous(&self, line: &str, parsed: &str) -> String {
        let sentinels = self.parents().into_iter().map(|mut path| {
            path.push(SENTINEL.to_owned());
            format!("isNotNull({})", element(parsed, &path))
        });
        let mut signs: Vec<String> = sentinels.collect();
        // The search for the word costs next to nothing, and spares most lines the regular
        // expression.
        signs.push(format!(
            "(position({line}, 'null') > 0 AND match({line}, '\\\\[\\\\s*null'))"
        ));
        signs.join(" OR ")
    }

    /// Returns the paths of all tuples; the first is the statement itself.
    fn parents(&self) -> BTreeSet<Path> {
        let leaves = self.leaves();
        let above = |leaf: &Path| {
            (0..leaf.len())
                .map(|depth| leaf[..depth].to_vec())
                .collect::<Vec<_>>()
        };
        leaves.iter().flat_map(above).collect()
    }
}

/// Returns the name of the column for the value at a path, in `landing` and in the generated
/// SELECTs: the path as [`display`] writes it.
pub(crate) fn column(path: &[String]) -> String {
    sql::ident(&display(path))
}

/// Returns an element of a tuple, addressed by a function: with dots, the paths `a.b` and `a`, `b`
/// would have the same name.
fn element(tuple: &str, path: &[String]) -> String {
    path.iter().fold(tuple.to_owned(), |outer, key| {
        format!("tupleElement({outer}, {})", sql::string(key))
    })
}

/// Formats a path for messages: `$.context.extensions["http://…"]`.
pub(crate) fn display(path: &[String]) -> String {
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
    fn every_value_has_a_column_of_its_own() {
        let mut tree = PathTree::default();
        for keys in [&["a", "x"][..], &["a.x"], &["a", "y\"]"], &["b"]] {
            tree.insert(&path(keys)).unwrap();
        }
        assert_eq!(
            tree.values("parsed", "absent"),
            [
                "if(arrayElement(absent, 3), NULL, tupleElement(tupleElement(parsed, 'a'), 'x')) AS `$.a.x`",
                r#"if(arrayElement(absent, 4), NULL, tupleElement(tupleElement(parsed, 'a'), 'y"]')) AS `$.a["y\\"]"]`"#,
                r#"if(arrayElement(absent, 1), NULL, tupleElement(parsed, 'a.x')) AS `$["a.x"]`"#,
                "if(arrayElement(absent, 2), NULL, tupleElement(parsed, 'b')) AS `$.b`",
            ]
        );
        assert_eq!(column(&path(&["a", "x"])), "`$.a.x`");
    }

    #[test]
    fn the_sentinel_of_every_tuple_is_checked() {
        let mut tree = PathTree::default();
        tree.insert(&path(&["a", "b", "c"])).unwrap();
        let ambiguous = tree.ambiguous("line", "parsed");
        assert_eq!(ambiguous.matches("isNotNull").count(), 3, "{ambiguous}");
    }

    #[test]
    fn paths_are_shown_with_keys_of_any_kind() {
        assert_eq!(
            display(&path(&["a", "http://x/y", "b_1"])),
            r#"$.a["http://x/y"].b_1"#
        );
    }
}
