//! `formats.yaml`, parsed into structs, but not checked yet.

use serde::Deserialize;

use super::OnAllRejected;
use crate::event_types::Path;
use crate::yaml;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub formats: Vec<DeclaredFormat>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredFormat {
    pub name: String,
    pub keys: Vec<String>,
    pub json_lines: Option<NoOptions>,
    pub json: Option<DeclaredDocuments>,
    pub csv: Option<DeclaredDelimited>,
    pub tsv: Option<DeclaredDelimited>,
    pub regex: Option<DeclaredRegex>,
    pub parquet: Option<NoOptions>,
    pub avro: Option<NoOptions>,
    pub orc: Option<NoOptions>,
    pub on_all_rejected: Option<OnAllRejected>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoOptions {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredDocuments {
    pub records: Option<Path>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredDelimited {
    pub delimiter: Option<String>,
    pub header: Option<bool>,
    pub columns: Option<Vec<String>>,
    pub quoted: Option<bool>,
    pub nulls: Option<Vec<String>>,
    pub comment: Option<String>,
    #[serde(default)]
    pub skip_lines: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredRegex {
    pub pattern: String,
    #[serde(default)]
    pub nulls: Vec<String>,
}

/// Parses the text of the file.
pub(super) fn parse(text: &str) -> Result<File, String> {
    yaml::parse(text).map_err(|message| {
        // A key `null` is not text in YAML.
        if message.contains("hash key type") {
            format!("{message}; the texts that stand for NULL are declared as `nulls`")
        } else {
            message
        }
    })
}
