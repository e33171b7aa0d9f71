//! What objects of declared formats contain: whether it is something else than what is declared, and
//! what of it ClickHouse does not notice.

use serde_json::Value;
use tokio::io::AsyncReadExt;

use super::Loader;
use super::cause::FailureCause;
use super::ports::{BatchTables, ObjectStore, Ports};
use crate::batch::ReadBy;
use crate::formats::{FormatId, Kind, Seen, sniff};
use crate::object::{Compression, ObjectRef};
use crate::s3::{Plain, StoreError, broken};

/// The bytes that show what an object is.
const SNIFFED_BYTES: u64 = 512;

/// The largest documents that the worker parses.
const PARSED_BYTES: u64 = 1 << 20;

impl<P: Ports> Loader<P> {
    /// Returns the JSON documents of an object without records; of a large object, those that are
    /// whole in its first part.
    pub(super) async fn documents(&self, object: &ObjectRef) -> Result<Vec<Value>, StoreError> {
        let content = self.parts.store.open(object, Plain::Anything).await?;
        let mut text = Vec::new();
        let read = content.take(PARSED_BYTES).read_to_end(&mut text).await;
        read.map_err(|error| broken(object, &error))?;
        let is_cut = text.len() as u64 == PARSED_BYTES;
        Ok(documents_of(&text, is_cut))
    }

    /// Returns the failure of an object that looks like something else than what it is declared
    /// as. `None` if it does not, or if its first bytes cannot be read.
    pub(super) async fn wrong_file(
        &self,
        format: FormatId,
        read_by: ReadBy,
        object: &ObjectRef,
        problem: &str,
    ) -> Option<FailureCause> {
        let seen = self.seen(format, read_by, object).await?;
        let declared = self.planner().catalog().formats().get(format);
        Some(FailureCause::WrongFile {
            object: object.clone(),
            declared: format!("{} ({})", declared.kind.title(), declared.name),
            seen,
            problem: problem.to_owned(),
        })
    }

    /// Returns what an object looks like, if that is something else than its format.
    pub(super) async fn seen(
        &self,
        format: FormatId,
        read_by: ReadBy,
        object: &ObjectRef,
    ) -> Option<String> {
        let start = match read_by {
            ReadBy::Stream => self.first_decompressed(object).await.ok()?,
            _ => self.parts.tables.first_bytes(object).await.ok()?,
        };
        let seen = sniff(&start);
        // ClickHouse returns the bytes as they are stored.
        let is_named = seen.is_compression() && Compression::of(&object.key) != Compression::None;
        let is_expected = is_named || fits(self.kind(format), seen);
        (!is_expected).then(|| seen.to_string())
    }

    async fn first_decompressed(&self, object: &ObjectRef) -> Result<Vec<u8>, StoreError> {
        let content = self.parts.store.open(object, Plain::Anything).await?;
        let mut start = Vec::new();
        // What precedes a broken part is enough.
        drop(content.take(SNIFFED_BYTES).read_to_end(&mut start).await);
        Ok(start)
    }
}

/// Returns the JSON documents of a text, also those in arrays. What cannot be parsed counts as null,
/// unless the text is cut there.
fn documents_of(text: &[u8], is_cut: bool) -> Vec<Value> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut documents = Vec::new();
    for parsed in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
        match parsed {
            Ok(Value::Array(elements)) => documents.extend(elements),
            Ok(document) => documents.push(document),
            Err(_) if is_cut => {}
            Err(_) => documents.push(Value::Null),
        }
    }
    documents
}

/// Returns whether an object that looks so can be of this kind.
pub(crate) fn fits(kind: &Kind, seen: Seen) -> bool {
    match (kind, seen) {
        (_, Seen::Empty) => true,
        (Kind::JsonLines, seen) => matches!(seen, Seen::JsonLines | Seen::JsonObject),
        (Kind::Documents { .. }, seen) => {
            matches!(seen, Seen::JsonLines | Seen::JsonObject | Seen::JsonArray)
        }
        (Kind::Delimited(declared), Seen::Delimited(delimiter)) => declared.delimiter == delimiter,
        (Kind::Delimited(_), seen) => seen == Seen::Text,
        (Kind::Regex(_), seen) => matches!(seen, Seen::Text | Seen::Delimited(_)),
        (Kind::Parquet, seen) => seen == Seen::Parquet,
        (Kind::Avro, seen) => seen == Seen::Avro,
        (Kind::Orc, seen) => seen == Seen::Orc,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Delimited;

    #[test]
    fn the_documents_of_a_text_are_those_that_clickhouse_reads() {
        let count = |text: &str, is_cut| {
            let documents = documents_of(text.as_bytes(), is_cut);
            let nulls = documents.iter().filter(|it| it.is_null()).count();
            (documents.len(), nulls)
        };
        assert_eq!(count("", false), (0, 0));
        assert_eq!(count(" [] ", false), (0, 0));
        assert_eq!(count("\u{feff}{\"a\":[]}\n{\"a\":[]}", false), (2, 0));
        assert_eq!(count("[{\"a\":[]},{\"a\":[]}]", false), (2, 0));
        assert_eq!(count("{\"a\":[]}{\"a", false), (2, 1));
        assert_eq!(count("{\"a\":[]}{\"a", true), (1, 0));
    }

    #[test]
    fn content_of_another_kind_is_recognised() {
        let csv = Kind::Delimited(Delimited {
            delimiter: ',',
            header: true,
            columns: None,
            quoted: true,
            nulls: Vec::new(),
            comment: None,
            skip_lines: 0,
        });
        let documents = Kind::Documents { records: None };
        for (kind, seen, expected) in [
            (&csv, Seen::Delimited(','), true),
            (&csv, Seen::Text, true),
            (&csv, Seen::Delimited(';'), false),
            (&csv, Seen::Parquet, false),
            (&csv, Seen::Html, false),
            (&documents, Seen::JsonArray, true),
            (&documents, Seen::Delimited(','), false),
            (&documents, Seen::Empty, true),
            (&Kind::Parquet, Seen::Parquet, true),
            (&Kind::Parquet, Seen::JsonLines, false),
            (&Kind::Avro, Seen::Orc, false),
            (&Kind::JsonLines, Seen::JsonLines, true),
            (&Kind::JsonLines, Seen::Gzip, false),
        ] {
            assert_eq!(fits(kind, seen), expected, "{kind:?} {seen:?}");
        }
    }
}
