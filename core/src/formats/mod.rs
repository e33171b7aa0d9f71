//! Declared formats: how the objects with certain keys are read.
//!
//! They are declared in `formats.yaml`, beside the event types (docs/formats.md). What no
//! declaration takes is JSON lines. [`crate::statements`] has the SQL for each kind.

mod check;
mod declaration;
mod header;
mod sniff;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use declaration::json_schema;
pub use sniff::{Seen, sniff};

pub(crate) use check::{FILE_NAME, SURPLUS, VIRTUAL, formats};
pub(crate) use header::{names as header_names, shown as shown_names};

use crate::event_types::{Path, Route};

/// The formats of a configuration, in the order of their declarations. The first one whose keys
/// match takes an object.
#[derive(Clone, Debug)]
pub struct Formats {
    /// JSON lines, and then what is declared.
    all: Vec<Format>,
}

/// The place of a format in [`Formats`]. It has no meaning outside of a process: the ledger has
/// names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FormatId(u16);

impl FormatId {
    /// What no declaration takes.
    pub const JSON_LINES: Self = Self(0);
}

/// A declared format.
#[derive(Clone, Debug)]
pub struct Format {
    /// Its name, in messages and in the ledger.
    pub name: String,
    /// The objects that have it; `None` for all that no other format takes.
    pub route: Option<Route>,
    pub kind: Kind,
    /// What happens to an object of which every record is rejected, if these objects differ in it.
    pub on_all_rejected: Option<OnAllRejected>,
}

/// How an object is divided into records, and how their fields are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A JSON object on each line.
    JsonLines,
    /// JSON objects one after the other, in an array, or in a list within a document.
    Documents {
        /// The path of the list; `None` if the documents themselves are the records.
        records: Option<Path>,
    },
    /// Records with a delimiter between their fields.
    Delimited(Delimited),
    /// Lines of which a regular expression finds the fields.
    Regex(Regex),
    Parquet,
    Avro,
    Orc,
}

/// Text with a delimiter between fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delimited {
    /// One ASCII character.
    pub delimiter: char,
    /// Whether the first record has the names of the fields.
    pub header: bool,
    /// The names of the fields; with a header, those that it must have, in any order.
    pub columns: Option<Vec<String>>,
    /// Whether fields can be in double quotes. Otherwise, each line is a record.
    pub quoted: bool,
    /// The texts that stand for NULL.
    pub nulls: Vec<String>,
    /// The text with which a comment begins.
    pub comment: Option<String>,
    /// The number of lines before the header, or before the first record.
    pub skip_lines: u32,
}

/// Lines of which a regular expression finds the fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regex {
    /// In the syntax that Rust and ClickHouse share.
    pub pattern: String,
    /// The names of its groups, in their order.
    pub names: Vec<String>,
    /// The texts that stand for NULL.
    pub nulls: Vec<String>,
}

/// What happens to an object of which every record is rejected; the value of
/// `load.on_all_rejected`.
// Its variants have no doc comments: schemars would make a `oneOf` of them, and not an `enum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum OnAllRejected {
    // It is loaded, and its records are kept in `rejected_lines`.
    Keep,
    // It fails.
    Fail,
}

impl Delimited {
    /// Returns whether ClickHouse skips as many records as there are lines to skip: these are the
    /// same unless quotes enclose a line end.
    pub(crate) fn skips_records(&self) -> bool {
        self.quoted && self.skip_lines > 0
    }
}

impl Kind {
    pub fn is_json_lines(&self) -> bool {
        matches!(self, Self::JsonLines)
    }

    /// Returns whether a statement can read only one object of this kind: ClickHouse does not
    /// number the rows of an ORC file, so that they are numbered as they arrive.
    pub fn is_alone(&self) -> bool {
        matches!(self, Self::Orc)
    }

    /// Returns whether ClickHouse reads a body of this kind as it arrives. It keeps that of a
    /// Parquet or ORC file, which begins with its end, in memory as a whole.
    pub fn can_be_streamed_whole(&self) -> bool {
        !matches!(self, Self::Parquet | Self::Orc)
    }

    /// Returns whether the fields of an object must be looked up before it is loaded.
    pub fn needs_structure(&self) -> bool {
        match self {
            Self::JsonLines | Self::Documents { .. } | Self::Regex(_) => false,
            Self::Delimited(delimited) => delimited.header || delimited.skips_records(),
            Self::Parquet | Self::Avro | Self::Orc => true,
        }
    }

    /// Returns whether the records are divided into fields by something else than a parser of JSON.
    pub fn has_own_fields(&self) -> bool {
        !matches!(self, Self::JsonLines | Self::Documents { .. })
    }

    /// Returns whether the bytes are text, which a line break may follow.
    pub fn is_text(&self) -> bool {
        !matches!(self, Self::Parquet | Self::Avro | Self::Orc)
    }

    /// Returns what it is called in messages, such as `CSV`.
    pub fn title(&self) -> &'static str {
        match self {
            Self::JsonLines => "JSON lines",
            Self::Documents { records: None } => "JSON documents",
            Self::Documents { records: Some(_) } => "JSON documents with a list of records",
            Self::Delimited(delimited) if delimited.delimiter == '\t' => "TSV",
            Self::Delimited(_) => "CSV",
            Self::Regex(_) => "lines of a regular expression",
            Self::Parquet => "Parquet",
            Self::Avro => "Avro",
            Self::Orc => "ORC",
        }
    }
}

impl Default for Formats {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Formats {
    /// Returns these declared formats, and JSON lines for what they do not take.
    fn new(declared: Vec<Format>) -> Self {
        let json_lines = Format {
            name: JSON_LINES.to_owned(),
            route: None,
            kind: Kind::JsonLines,
            on_all_rejected: None,
        };
        let mut all = vec![json_lines];
        all.extend(declared);
        Self { all }
    }

    /// Returns the format of the object with this key. A format that is declared as JSON lines has
    /// an id of its own, but the layout of all JSON lines.
    pub fn of(&self, key: &str) -> FormatId {
        let taken = self.ids().skip(1).find(|id| {
            let route = self.get(*id).route.as_ref();
            route.is_some_and(|route| route.takes(key))
        });
        taken.unwrap_or_default()
    }

    /// Returns the format with this id, which must be one of these formats.
    pub fn get(&self, id: FormatId) -> &Format {
        &self.all[usize::from(id.0)]
    }

    /// Returns the declared format of this name; [`FormatId::JSON_LINES`] for the empty name, which
    /// a layout of JSON lines has.
    pub fn named(&self, name: &str) -> Option<FormatId> {
        if name.is_empty() {
            return Some(FormatId::JSON_LINES);
        }
        self.ids().find(|id| self.get(*id).name == name)
    }

    /// Returns what is declared, in order.
    pub fn declared(&self) -> &[Format] {
        &self.all[1..]
    }

    /// Returns the id of every format, that of JSON lines first.
    pub fn ids(&self) -> impl Iterator<Item = FormatId> + use<> {
        let count = u16::try_from(self.all.len()).unwrap_or(u16::MAX);
        (0..count).map(FormatId)
    }

    /// Returns what happens to an object of this format of which every record is rejected:
    /// what its declaration says, or what is configured for all of them. Otherwise, JSON lines are
    /// kept, and others fail.
    pub fn on_all_rejected(
        &self,
        format: FormatId,
        configured: Option<OnAllRejected>,
    ) -> OnAllRejected {
        let Format {
            kind,
            on_all_rejected,
            ..
        } = self.get(format);
        let usual = if kind.is_json_lines() {
            OnAllRejected::Keep
        } else {
            OnAllRejected::Fail
        };
        on_all_rejected.or(configured).unwrap_or(usual)
    }
}

/// The name of the format of everything that no declaration takes.
pub const JSON_LINES: &str = "json_lines";
