//! `formats.yaml`, parsed into structs, but not checked yet.

use schemars::JsonSchema;
use serde::Deserialize;

use super::OnAllRejected;
use crate::event_types::Path;
use crate::yaml::{self, Misshapen};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(description = "How objects that are not JSON lines are read.")]
pub(super) struct File {
    /// The formats. The first one with a matching glob reads an object.
    pub formats: Vec<DeclaredFormat>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    rename = "Format",
    description = "A format, with exactly one kind of content."
)]
pub(super) struct DeclaredFormat {
    /// The name, for messages and the ledger; unique.
    pub name: String,
    /// The objects that have this format: globs on keys, without the bucket.
    pub keys: Vec<String>,
    /// A JSON object on each line: exempts keys from a later, wider glob.
    pub json_lines: Option<NoOptions>,
    /// JSON objects one after the other, in an array, or in a list within a document.
    pub json: Option<DeclaredDocuments>,
    /// Rows with a comma, or another delimiter, between their fields.
    pub csv: Option<DeclaredDelimited>,
    /// Rows with a tab between their fields.
    pub tsv: Option<DeclaredDelimited>,
    /// Lines of which a regular expression finds the fields.
    pub regex: Option<DeclaredRegex>,
    /// Parquet files.
    pub parquet: Option<NoOptions>,
    /// Avro files.
    pub avro: Option<NoOptions>,
    /// ORC files.
    pub orc: Option<NoOptions>,
    /// What happens to an object of which every record is rejected.
    pub on_all_rejected: Option<OnAllRejected>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct NoOptions {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct DeclaredDocuments {
    /// The path of the list of records within each document.
    pub records: Option<Path>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct DeclaredDelimited {
    /// One ASCII character.
    pub delimiter: Option<String>,
    /// Whether the first record has the names of the fields (true).
    pub header: Option<bool>,
    /// The names of the fields; with a header, those that it must have.
    pub columns: Option<Vec<String>>,
    /// Whether fields can be in double quotes (true for `csv`).
    pub quoted: Option<bool>,
    /// The texts that mean NULL; by default, the empty one.
    pub nulls: Option<Vec<String>>,
    /// The text with which records begin that are ignored.
    pub comment: Option<String>,
    /// The number of lines before the header, or before the first record.
    #[serde(default)]
    pub skip_lines: u32,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct DeclaredRegex {
    /// In the syntax of RE2. Each group has a name, which is that of a field.
    pub pattern: String,
    /// The texts that mean NULL.
    #[serde(default)]
    pub nulls: Vec<String>,
}

/// Returns the JSON schema of `formats.yaml`.
pub fn json_schema() -> serde_json::Value {
    yaml::json_schema::<File>("Sluice: formats")
}

/// Parses the text of the file.
pub(super) fn parse(text: &str) -> Result<File, Vec<Misshapen>> {
    yaml::parse(text)
}
