//! S3 objects and their identity.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use uuid::Uuid;

/// One version of one S3 object, with its identity.
///
/// Overwriting a key with other content makes another object: the identity is the bucket, the key
/// and the etag (see [`ObjectRef::id`]). The id is a hash, computed once, since an `ObjectRef` is
/// immutable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    parts: ObjectParts,
    id: ObjectId,
}

/// The fields of an [`ObjectRef`], from which it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectParts {
    pub bucket: String,
    /// The decoded key.
    pub key: String,
    /// The etag without quotes; empty if the announcement had none.
    pub etag: String,
    /// The stored size in bytes (of a compressed object: compressed), if announced.
    pub size: Option<u64>,
    pub version_id: Option<String>,
    /// Orders the events of one key; some S3 implementations leave it out.
    pub sequencer: Option<String>,
    /// The region that the announcement names, if any.
    pub region: Option<String>,
}

impl From<ObjectParts> for ObjectRef {
    fn from(parts: ObjectParts) -> Self {
        let id = parts.id();
        Self { parts, id }
    }
}

impl Deref for ObjectRef {
    type Target = ObjectParts;

    fn deref(&self) -> &ObjectParts {
        &self.parts
    }
}

impl ObjectParts {
    fn id(&self) -> ObjectId {
        let (kind, version) = if !self.etag.is_empty() {
            ("etag", self.etag.as_str())
        } else if let Some(version) = &self.version_id {
            ("version", version.as_str())
        } else {
            ("sequencer", self.sequencer.as_deref().unwrap_or_default())
        };
        // No two objects share a name: NUL cannot occur in a bucket's name, and the key is preceded
        // by its length.
        let name = format!(
            "{}\0{}\0{}\0{kind}\0{version}",
            self.bucket,
            self.key.len(),
            self.key
        );
        ObjectId(Uuid::new_v5(&OBJECT_NAMESPACE, name.as_bytes()))
    }
}

impl ObjectRef {
    /// Returns the identity of this object in the ledger.
    ///
    /// It includes the etag, which a read also reports. An object that was announced without one is
    /// identified by its version, or else by its sequencer.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Returns the fields, for instance to make another object that differs in some.
    pub fn into_parts(self) -> ObjectParts {
        self.parts
    }

    /// Returns `bucket/key`, which is ClickHouse's `_path`, and `source_path` in the tables.
    pub fn path(&self) -> String {
        format!("{}/{}", self.bucket, self.key)
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

/// Decodes a key as S3 writes it in its events and, on request, in its listings: form-urlencoded,
/// with `+` for a space and `%2B` for a plus. Implementations differ in which other bytes they
/// escape; all escapes are decoded. Returns `None` if the result is not UTF-8.
pub fn decode_key(encoded: &str) -> Option<String> {
    let spaced: Cow<'_, str> = if encoded.contains('+') {
        encoded.replace('+', " ").into()
    } else {
        encoded.into()
    };
    percent_decode_str(&spaced)
        .decode_utf8()
        .ok()
        .map(Cow::into_owned)
}

/// How an object is compressed. ClickHouse decides by the extension of its key, ignoring case, and
/// so does Sluice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Lz4,
    Brotli,
    Bzip2,
    Xz,
    Snappy,
    Deflate,
}

impl Compression {
    /// All but [`Compression::None`].
    pub const ALL: [Self; 8] = [
        Self::Gzip,
        Self::Zstd,
        Self::Lz4,
        Self::Brotli,
        Self::Bzip2,
        Self::Xz,
        Self::Snappy,
        Self::Deflate,
    ];

    /// Returns the compression for the extension of a key.
    pub fn of(key: &str) -> Self {
        match key.rsplit_once('.') {
            Some((_, extension)) => Self::of_extension(extension),
            None => Self::None,
        }
    }

    /// Returns the compression for an extension, which is given without the dot.
    pub fn of_extension(extension: &str) -> Self {
        match extension.to_ascii_lowercase().as_str() {
            "gz" | "gzip" => Self::Gzip,
            "zst" | "zstd" => Self::Zstd,
            "lz4" => Self::Lz4,
            "br" | "brotli" => Self::Brotli,
            "bz2" => Self::Bzip2,
            "xz" | "lzma" => Self::Xz,
            "snappy" => Self::Snappy,
            "deflate" => Self::Deflate,
            _ => Self::None,
        }
    }

    /// Returns the usual extension for this compression, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "gz",
            Self::Zstd => "zst",
            Self::Lz4 => "lz4",
            Self::Brotli => "br",
            Self::Bzip2 => "bz2",
            Self::Xz => "xz",
            Self::Snappy => "snappy",
            Self::Deflate => "deflate",
        }
    }

    /// Returns the compression according to the first bytes of the content, or according to the key
    /// if the bytes are inconclusive.
    pub fn seen(key: &str, start: &[u8]) -> Self {
        let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
        if start.starts_with(&GZIP_MAGIC) {
            Self::Gzip
        } else if start.starts_with(&ZSTD_MAGIC) {
            Self::Zstd
        } else if text.trim_ascii_start().starts_with(b"{") {
            Self::None
        } else {
            Self::of(key)
        }
    }
}

pub const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
pub const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The namespace of object ids. It must never change: the ledger contains ids made with it.
const OBJECT_NAMESPACE: Uuid = Uuid::from_u128(0x5b1e_9f0a_7c43_4d56_8a1d_0e5f_2c93_b7a4);

/// The identity of an [`ObjectRef`], a name-based UUID (version 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub Uuid);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An object, or a prefix of keys, as a URL: `s3://bucket/key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectUrl {
    pub bucket: String,
    /// The key as S3 has it: the URL is not decoded.
    pub key: String,
}

impl ObjectUrl {
    /// Returns `bucket/key`, as [`ObjectRef::path`] does.
    pub fn path(&self) -> String {
        format!("{}/{}", self.bucket, self.key)
    }
}

impl FromStr for ObjectUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("s3://")
            .ok_or_else(|| format!("`{text}` does not begin with s3://"))?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(format!(
                "`{text}` does not name a bucket; write s3://bucket/key"
            ));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }
}

impl fmt::Display for ObjectUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::object;

    #[test]
    fn identity_is_bucket_key_and_etag() {
        let a = object("b", "k", "e");
        let same_content_announced_again = ObjectRef::from(ObjectParts {
            sequencer: Some("2".into()),
            size: None,
            ..a.clone().into_parts()
        });
        assert_eq!(a.id(), same_content_announced_again.id());
        for other in [
            object("c", "k", "e"),
            object("b", "l", "e"),
            object("b", "k", "f"),
        ] {
            assert_ne!(a.id(), other.id(), "{other:?}");
        }
    }

    #[test]
    fn a_url_names_a_bucket_and_a_key() {
        let parse = |text: &str| text.parse::<ObjectUrl>().map(|url| (url.bucket, url.key));
        let is = |bucket: &str, key: &str| Ok((bucket.to_owned(), key.to_owned()));
        assert_eq!(parse("s3://b/a/b c%41"), is("b", "a/b c%41"));
        assert_eq!(parse("s3://b//x"), is("b", "/x"));
        assert_eq!(parse("s3://b"), is("b", ""));
        assert!(parse("s3:///k").is_err());
        assert!(parse("b/k").is_err());
    }

    #[test]
    fn compression_is_recognised_by_the_first_bytes_or_the_key() {
        let cases: [(&str, &[u8], Compression); 9] = [
            ("a.jsonl", b"\x1f\x8b\x08", Compression::Gzip),
            ("a.jsonl", b"\x28\xb5\x2f\xfd", Compression::Zstd),
            ("a.jsonl.zst", b"\x1f\x8b\x08", Compression::Gzip),
            ("a.jsonl.GZ", b"{\"a\":1}", Compression::None),
            ("a.jsonl.bz2", b"\xef\xbb\xbf \r\n{", Compression::None),
            ("a.jsonl.gz", b"garbage", Compression::Gzip),
            ("a.jsonl.bz2", b"BZh9", Compression::Bzip2),
            ("a.jsonl", b"garbage", Compression::None),
            ("a.jsonl", b"", Compression::None),
        ];
        for (key, start, compression) in cases {
            assert_eq!(
                Compression::seen(key, start),
                compression,
                "{key} {start:?}"
            );
        }
    }

    #[test]
    fn identity_without_etag_is_version_then_sequencer() {
        let bare = object("b", "k", "");
        let versioned = ObjectRef::from(ObjectParts {
            version_id: Some("v".into()),
            ..bare.clone().into_parts()
        });
        let sequenced = ObjectRef::from(ObjectParts {
            sequencer: Some("v".into()),
            ..bare.clone().into_parts()
        });
        assert_ne!(versioned.id(), sequenced.id());
        assert_ne!(versioned.id(), bare.id());
    }
}
