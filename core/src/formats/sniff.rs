//! Tells what content is by its first bytes.

use std::fmt;

/// What content looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Empty,
    Gzip,
    Zstd,
    Lz4,
    Xz,
    Bzip2,
    Zip,
    Parquet,
    Orc,
    Avro,
    Arrow,
    Pdf,
    Html,
    Xml,
    JsonLines,
    JsonObject,
    JsonArray,
    /// Text with the same number of this delimiter on each of the first lines.
    Delimited(char),
    Text,
    Binary,
}

impl fmt::Display for Seen {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

/// Returns what content looks like that begins with these bytes; 512 of them are enough.
pub fn sniff(_: &[u8]) -> Seen {
    todo!()
}
