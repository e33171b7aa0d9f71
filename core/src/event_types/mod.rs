//! Declared event types: the kinds of statements, and the table that each of them fills.
//!
//! A declaration is a YAML file (docs/event-types.md; the default ones are in config/event_types).
//! The tables ([`crate::statements::ddl`]) and the SELECTs ([`crate::statements::select`]) are
//! generated from a [`Catalog`] of them. The code names no event type.

mod check;
mod column_type;
mod declaration;
mod file_type;
pub mod paths;
mod route;
mod rule;
mod schema;

use std::fmt;

use include_dir::{Dir, include_dir};

pub(crate) use check::PREVIEW_FIELDS;
pub use check::RESERVED_TABLES;
pub(crate) use check::{LINEAGE, Report, check_route};
pub use column_type::ColumnType;
pub use declaration::Otherwise;
pub(crate) use file_type::{FileType, Shape};
pub use paths::{Path, PathTree};
pub use route::Route;
pub use rule::Rule;
pub use schema::json_schema;

use crate::formats::Formats;
pub use crate::yaml::Position;

static BUILTIN: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../config/event_types");

/// The values of `kind`, in `landing` and `object_rows`, of lines that belong to no event type. No
/// event type may have one of these names.
pub const RESERVED_KINDS: [&str; 3] = ["rejected", "unmatched", "blank"];

/// All event types of a configuration, in the order of their names, which is also the order in
/// which their rules are tried.
#[derive(Debug, Clone)]
pub struct Catalog {
    types: Vec<EventType>,
    tree: PathTree,
    formats: Formats,
}

/// One kind of statement and its table.
#[derive(Debug, Clone)]
pub struct EventType {
    /// The declaration file.
    pub file: String,
    /// The declaration file's name, and the `kind` in `landing` and `object_rows`.
    pub name: String,
    /// Its table in the configured database.
    pub table: String,
    /// Which statements belong to it.
    pub rule: Rule,
    /// The objects in which it is looked for; `None` for all objects.
    pub route: Option<Route>,
    /// The sorting key's columns: statements equal in all of them collapse into one.
    pub order_by: Vec<String>,
    /// The partition key, an expression; `None` for one partition.
    pub partition_by: Option<String>,
    /// The file that declares the partition key.
    pub partition_by_file: String,
    /// The declared columns. Lineage columns are not among them; every table has them.
    pub columns: Vec<Column>,
}

/// A declared column.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name in the table.
    pub name: String,
    /// Its type in the table.
    pub column_type: ColumnType,
    /// Where its value comes from.
    pub source: Source,
    /// Whether a statement without this value is rejected.
    pub required: bool,
    /// Where it is declared.
    pub place: Place,
}

/// Where something is declared.
#[derive(Debug, Clone)]
pub struct Place {
    /// The declaration file.
    pub file: String,
    /// The place in the file, such as `columns[3]`.
    pub at: String,
}

/// Where a column's value comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The first of these paths that the statement has.
    Paths {
        /// At least one.
        paths: Vec<Path>,
        /// What replaces a missing or empty text.
        otherwise: Option<Otherwise>,
    },
    /// ClickHouse SQL.
    Expression {
        /// The SQL, with a `{name}` for each input.
        template: String,
        /// The names, each with its paths. A name stands for the text at the first path that
        /// exists.
        inputs: Vec<(String, Vec<Path>)>,
    },
}

impl EventType {
    /// Returns the columns in which a row can be without a value.
    pub fn optional_columns(&self) -> Vec<&Column> {
        let columns = self.columns.iter();
        columns.filter(|column| column.is_optional()).collect()
    }

    /// Returns the time columns by which its table is partitioned.
    pub fn partitioning_times(&self) -> Vec<&Column> {
        let expression = self.partition_by.as_deref().unwrap_or_default();
        let names: Vec<&str> = expression
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .collect();
        let times = self.columns.iter().filter(|it| it.column_type.is_time());
        times
            .filter(|column| names.contains(&column.name.as_str()))
            .collect()
    }

    /// Returns the columns without which a line is rejected.
    pub fn required_columns(&self) -> Vec<&Column> {
        let columns = self.columns.iter();
        columns.filter(|column| column.required).collect()
    }

    /// Returns whether the object of this key can have statements of this type.
    pub fn is_looked_for_in(&self, key: &str) -> bool {
        self.route.as_ref().is_none_or(|route| route.takes(key))
    }
}

impl Column {
    /// Returns whether a row can be without a value in it.
    pub fn is_optional(&self) -> bool {
        let has_substitute = matches!(
            self.source,
            Source::Paths {
                otherwise: Some(_),
                ..
            }
        );
        !self.required && !has_substitute
    }
}

impl Source {
    /// Returns every path that the value may come from.
    pub(super) fn paths(&self) -> Vec<&Path> {
        match self {
            Source::Paths { paths, .. } => paths.iter().collect(),
            Source::Expression { inputs, .. } => {
                inputs.iter().flat_map(|(_, paths)| paths).collect()
            }
        }
    }
}

/// A problem in a declaration, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, or the directory.
    pub file: String,
    /// The place in the file, such as `columns[3].type`; empty for the file as a whole.
    pub at: String,
    /// Where that is in the text of the file, if it is known.
    pub position: Option<Position>,
    /// What is wrong there, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        f.write_str(": ")?;
        if !self.at.is_empty() {
            write!(f, "{}: ", self.at)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Catalog {
    /// Returns the event types that are built into the program.
    ///
    /// # Panics
    ///
    /// Never in a released build: a test checks that the embedded declarations are sound.
    pub fn builtin() -> Catalog {
        let files = BUILTIN.files().filter_map(|file| {
            let name = file.path().file_name()?.to_str()?;
            Some((name.to_owned(), file.contents_utf8()?.to_owned()))
        });
        match Catalog::from_files(files) {
            Ok(catalog) => catalog,
            Err(problems) => unreachable!("the built-in event types are invalid: {problems:?}"),
        }
    }

    /// Builds a catalog from files, given as (name, text). `formats.yaml` declares formats, and
    /// each other file an event type.
    ///
    /// # Errors
    ///
    /// Returns all problems of all files.
    pub fn from_files(
        files: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Catalog, Vec<Problem>> {
        check::catalog(files.into_iter().collect())
    }

    /// Returns all event types, in the order of their names.
    pub fn types(&self) -> &[EventType] {
        &self.types
    }

    /// Returns the event type of this name.
    pub fn get(&self, name: &str) -> Option<&EventType> {
        self.types.iter().find(|event_type| event_type.name == name)
    }

    /// Returns the formats that are declared beside the event types.
    pub fn formats(&self) -> &Formats {
        &self.formats
    }

    /// Returns the union of all declared paths.
    pub fn tree(&self) -> &PathTree {
        &self.tree
    }
}
