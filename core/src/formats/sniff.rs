//! What content is, by its first bytes: for the message about a file of another format than its
//! key promises.

use std::fmt;

use crate::object::{GZIP_MAGIC, ZSTD_MAGIC};

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
    /// An object on each line.
    JsonLines,
    /// An object over several lines, or several on one line.
    JsonObject,
    JsonArray,
    /// Text with the same number of this delimiter on each of the first lines.
    Delimited(char),
    Text,
    Binary,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty file",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Zip => "a zip archive",
            Self::Parquet => "Parquet",
            Self::Orc => "ORC",
            Self::Avro => "Avro",
            Self::Arrow => "Arrow",
            Self::Pdf => "PDF",
            Self::Html => "HTML",
            Self::Xml => "XML",
            Self::JsonLines => "JSON lines",
            Self::JsonObject => "a JSON object",
            Self::JsonArray => "a JSON array",
            Self::Delimited('\t') => "text with tabs between fields",
            Self::Delimited(delimiter) => {
                return write!(f, "text with `{delimiter}` between fields");
            }
            Self::Text => "text",
            Self::Binary => "binary data",
        })
    }
}

impl Seen {
    /// Returns whether this is a compression, of which the content may be anything.
    pub fn is_compression(self) -> bool {
        matches!(
            self,
            Self::Gzip | Self::Zstd | Self::Lz4 | Self::Xz | Self::Bzip2
        )
    }
}

/// The bytes with which files of a format begin.
const MAGIC: [(&[u8], Seen); 12] = [
    (&GZIP_MAGIC, Seen::Gzip),
    (&ZSTD_MAGIC, Seen::Zstd),
    (b"\x04\x22\x4d\x18", Seen::Lz4),
    (b"\xfd7zXZ\0", Seen::Xz),
    (b"BZh", Seen::Bzip2),
    (b"PK\x03\x04", Seen::Zip),
    (b"PAR1", Seen::Parquet),
    (b"PARE", Seen::Parquet),
    (b"ORC", Seen::Orc),
    (b"Obj\x01", Seen::Avro),
    (b"ARROW1", Seen::Arrow),
    (b"%PDF-", Seen::Pdf),
];

/// The delimiters that are looked for, the likeliest first.
const DELIMITERS: [char; 5] = [',', '\t', ';', '|', ' '];

/// Returns what content looks like that begins with these bytes; 512 of them are enough.
pub fn sniff(start: &[u8]) -> Seen {
    if start.is_empty() {
        return Seen::Empty;
    }
    let found = MAGIC.iter().find(|(magic, _)| start.starts_with(magic));
    if let Some((_, seen)) = found {
        return *seen;
    }
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    if !is_text(start) {
        return Seen::Binary;
    }
    let text = String::from_utf8_lossy(start);
    of_text(text.trim_start())
}

/// Returns whether these bytes have no control characters other than white space.
fn is_text(bytes: &[u8]) -> bool {
    let is_control = |byte: &u8| *byte < 0x20 && !b"\t\n\x0b\x0c\r\x1b".contains(byte);
    !bytes.iter().any(is_control)
}

fn of_text(text: &str) -> Seen {
    let head = text.get(..16).unwrap_or(text).to_ascii_lowercase();
    if text.is_empty() {
        Seen::Empty
    } else if head.starts_with("<!doctype html") || head.starts_with("<html") {
        Seen::Html
    } else if head.starts_with('<') {
        Seen::Xml
    } else if let Some(rest) = text.strip_prefix('[')
        && rest.trim_start().starts_with(['{', '[', ']', '"'])
    {
        Seen::JsonArray
    } else if text.starts_with('{') {
        of_json(text)
    } else {
        delimiter(text).map_or(Seen::Text, Seen::Delimited)
    }
}

/// Returns which JSON this is: lines, if the first line is a whole object.
fn of_json(text: &str) -> Seen {
    match text.split_once('\n') {
        Some((line, rest))
            if line.trim_end().ends_with('}')
                && !line.contains("}{")
                && (rest.trim_start().starts_with('{') || rest.trim().is_empty()) =>
        {
            Seen::JsonLines
        }
        _ => Seen::JsonObject,
    }
}

/// Returns the delimiter that each of the first whole lines has, as often as the others.
fn delimiter(text: &str) -> Option<char> {
    let whole = text.rsplit_once('\n').map_or(text, |(whole, _)| whole);
    let lines: Vec<&str> = whole
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .take(5)
        .collect();
    let (first, rest) = lines.split_first()?;
    DELIMITERS.into_iter().find(|delimiter| {
        let count = first.matches(*delimiter).count();
        count > 0
            && !rest.is_empty()
            && rest
                .iter()
                .all(|line| line.matches(*delimiter).count() == count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_recognised_by_its_first_bytes() {
        let cases: [(&[u8], Seen); 26] = [
            (b"", Seen::Empty),
            (b" \r\n\n", Seen::Empty),
            (b"\xef\xbb\xbf", Seen::Empty),
            (b"\x1f\x8b\x08\x00", Seen::Gzip),
            (b"\x28\xb5\x2f\xfd\x04", Seen::Zstd),
            (b"\x04\x22\x4d\x18\x64", Seen::Lz4),
            (b"\xfd7zXZ\0\0", Seen::Xz),
            (b"BZh91AY", Seen::Bzip2),
            (b"PK\x03\x04\x14", Seen::Zip),
            (b"PAR1\x15\x04", Seen::Parquet),
            (b"ORC\x0a\x06", Seen::Orc),
            (b"Obj\x01\x04", Seen::Avro),
            (b"ARROW1\0\0", Seen::Arrow),
            (b"%PDF-1.7\n", Seen::Pdf),
            (b"<!DOCTYPE HTML>\n<html>", Seen::Html),
            (b"  <html><body>", Seen::Html),
            (b"<?xml version=\"1.0\"?>\n<Error>", Seen::Xml),
            (b"{\"a\":1}\n{\"a\":", Seen::JsonLines),
            (b"\xef\xbb\xbf{\"a\":1}\n", Seen::JsonLines),
            (b"{\n  \"a\": 1\n}", Seen::JsonObject),
            (b"{\"a\":1}{\"a\":2}", Seen::JsonObject),
            (b"[\n  {\"a\": 1}", Seen::JsonArray),
            (b"a,b\n1,2\n3,", Seen::Delimited(',')),
            (b"a\tb c\r\n1\t2\r\n", Seen::Delimited('\t')),
            (b"Dear reader,\nthis is text.\n", Seen::Text),
            (b"\x00\x01\x02", Seen::Binary),
        ];
        for (start, seen) in cases {
            assert_eq!(sniff(start), seen, "{:?}", String::from_utf8_lossy(start));
        }
    }

    #[test]
    fn what_is_seen_is_said_in_words() {
        assert_eq!(Seen::JsonLines.to_string(), "JSON lines");
        assert_eq!(
            Seen::Delimited(';').to_string(),
            "text with `;` between fields"
        );
        assert!(Seen::Zstd.is_compression() && !Seen::Zip.is_compression());
    }
}
