//! What `sluice types preview` reads: an object, or the content of a file.

use std::fs::File;
use std::io::{self, Read};

use anyhow::{Context, anyhow, ensure};
use uuid::Uuid;

use super::preview::Preview;
use crate::batch::Layout;
use crate::cli::app::{App, region};
use crate::clickhouse::Warehouse;
use crate::event_types::Catalog;
use crate::formats::{FormatId, sniff};
use crate::load::fits;
use crate::load::tables::{first_bytes, structure};
use crate::object::{ObjectParts, ObjectRef, ObjectUrl};
use crate::s3::{Beginning, beginning};
use crate::sql;
use crate::statements::insert::Planner;
use crate::statements::layouts::StructureQuery;
use crate::statements::select::Lines;

/// The largest content of a file, which is sent as part of the statement.
const MAX_BYTES: u64 = 8 << 20;
/// The bytes that show what content is.
const SNIFFED_BYTES: usize = 512;

/// The content to preview.
pub(super) struct Content {
    planner: Planner,
    format: FormatId,
    source: Source,
}

enum Source {
    Object(ObjectRef),
    File {
        /// Decompressed; of JSON lines, only the first.
        content: Vec<u8>,
        /// The key that routes see.
        key: String,
    },
}

impl Content {
    /// Returns the content of the object or the file that is named.
    pub(super) async fn new(
        app: &App<'_>,
        catalog: &Catalog,
        preview: &Preview,
    ) -> anyhow::Result<Self> {
        let formats = catalog.formats();
        let named = match &preview.read_as {
            None => None,
            Some(name) => Some(formats.named(name).with_context(|| {
                let names: Vec<&str> = formats.ids().map(|id| &*formats.get(id).name).collect();
                format!("unknown format `{name}`; use one of {}", names.join(", "))
            })?),
        };
        let Ok(url) = preview.source.parse::<ObjectUrl>() else {
            let key = if preview.key.is_empty() {
                &preview.source
            } else {
                &preview.key
            };
            let format = named.unwrap_or_else(|| formats.of(key));
            let is_lines = formats.get(format).kind.is_json_lines();
            let content = read(preview, key, is_lines.then_some(preview.lines)).await?;
            return Ok(Self {
                planner: app.planner(catalog.clone(), "")?,
                format,
                source: Source::File {
                    content,
                    key: preview.key.clone(),
                },
            });
        };
        let object = ObjectRef::from(ObjectParts {
            bucket: url.bucket,
            key: url.key,
            ..ObjectParts::default()
        });
        let aws = app.aws().await;
        Ok(Self {
            planner: app.planner(catalog.clone(), region(&aws))?,
            format: named.unwrap_or_else(|| formats.of(&object.key)),
            source: Source::Object(object),
        })
    }

    /// Returns the format as it is shown; `None` for JSON lines.
    pub(super) fn format(&self) -> Option<String> {
        let format = self.planner.catalog().formats().get(self.format);
        let is_lines = format.kind.is_json_lines();
        (!is_lines).then(|| format!("{} ({})", format.kind.title(), format.name))
    }

    /// Returns at most this many records, as a source of the SELECTs.
    pub(super) async fn records(&self, warehouse: &Warehouse, count: u64) -> anyhow::Result<Lines> {
        let layout = self.layout(warehouse).await?;
        if layout.is_json_lines() {
            return Ok(Lines::of_objects(self.lines(count), Uuid::nil()));
        }
        let records = match &self.source {
            Source::Object(object) => self.planner.records_of(object, &layout),
            Source::File { content, key } => {
                let path = path_of(key);
                self.planner.records_of_content(content, &path, &layout)
            }
        };
        Ok(records.first(count))
    }

    /// Returns what the content looks like, if that is not its format.
    pub(super) async fn mismatch(&self, warehouse: &Warehouse) -> Option<String> {
        let start = match &self.source {
            Source::Object(object) => first_bytes(warehouse, &self.planner, object).await.ok()?,
            Source::File { content, .. } => content.iter().copied().take(SNIFFED_BYTES).collect(),
        };
        let seen = sniff(&start);
        let format = self.planner.catalog().formats().get(self.format);
        (!fits(&format.kind, seen)).then(|| {
            format!(
                "it is read as {} ({}), but it looks like {seen}; declare the format of its keys \
                 in formats.yaml, or pass --format",
                format.kind.title(),
                format.name
            )
        })
    }

    async fn layout(&self, warehouse: &Warehouse) -> anyhow::Result<Layout> {
        if let Some(layout) = self.planner.layout_of(self.format) {
            return Ok(layout);
        }
        let query = self.structure_query();
        let answer = structure(warehouse, &query).await?;
        let layout = self.planner.layout_with(self.format, answer);
        layout.map_err(|problem| anyhow!(problem))
    }

    fn structure_query(&self) -> StructureQuery {
        match &self.source {
            Source::Object(object) => self.planner.structure_query(self.format, object),
            Source::File { content, .. } => self
                .planner
                .structure_query_of_content(self.format, content),
        }
    }

    /// Returns a table expression with the columns that [`Lines::of_objects`] expects.
    fn lines(&self, count: u64) -> String {
        match &self.source {
            Source::Object(object) => {
                let source = self.planner.lines_of(object);
                format!("(SELECT line, _path, _etag, _row_number FROM {source} LIMIT {count})")
            }
            Source::File { content, key } => format!(
                "(SELECT line, {path} AS _path, '' AS _etag, \
                   rowNumberInAllBlocks() AS _row_number \
                 FROM format(LineAsString, 'line String', {content}))",
                path = sql::string(&path_of(key)),
                content = sql::bytes(content),
            ),
        }
    }
}

/// Returns the bucket and the key that a file seems to have.
fn path_of(key: &str) -> String {
    format!("file/{key}")
}

/// Returns the decompressed content of a file, or its first lines.
async fn read(preview: &Preview, key: &str, lines: Option<u64>) -> anyhow::Result<Vec<u8>> {
    let source = &preview.source;
    let failed = || format!("failed to read {source}");
    let file: Box<dyn Read> = if source == "-" {
        Box::new(io::stdin().lock())
    } else {
        let file = File::open(source);
        let advice = "to preview an object, pass s3://bucket/key";
        Box::new(file.with_context(|| format!("{}; {advice}", failed()))?)
    };
    let mut stored = Vec::new();
    let mut limited = file.take(MAX_BYTES + 1);
    limited.read_to_end(&mut stored).with_context(failed)?;
    let is_cut = stored.len() as u64 > MAX_BYTES;
    let Beginning { content, is_cut } = beginning(&stored, key, MAX_BYTES, is_cut)
        .await
        .with_context(failed)?;
    let Some(lines) = lines else {
        ensure!(
            !is_cut,
            "{source} has more than {MAX_BYTES} bytes; upload it, and preview the object in S3"
        );
        return Ok(content);
    };
    let count = usize::try_from(lines).unwrap_or(usize::MAX);
    let mut ends = content
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n');
    match ends.nth(count - 1) {
        Some((end, _)) => Ok(content[..=end].to_vec()),
        None => {
            ensure!(
                !is_cut,
                "the lines have more than {MAX_BYTES} bytes in total; lower --lines"
            );
            Ok(content)
        }
    }
}
