//! S3 as the worker itself reads it: objects that ClickHouse cannot read, and listings. Only this
//! module uses the S3 SDK.

pub mod frames;
pub mod listing;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, ByteStreamError};
use aws_sdk_s3::types::EncodingType;
use futures_util::{TryStreamExt, stream};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt};
use tokio_util::io::StreamReader;

use crate::object::{
    Compression, GZIP_MAGIC, ObjectParts, ObjectRef, ObjectUrl, ZSTD_MAGIC, decode_key,
};
use crate::s3::frames::{Format, Frames};
use crate::util::aws_requests::{ObserveRequests, RequestObserver, Service};
use crate::util::error_chain::with_sources;

/// The texts with which S3 denies access.
pub(crate) const REFUSALS: &[&str] = &[
    "HTTP response code: 403",
    "AccessDenied",
    "Access Denied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
];

/// S3's code for a bucket that does not exist.
pub(crate) const NO_SUCH_BUCKET: &str = "NoSuchBucket";

/// Why an object cannot be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// S3 responded with an error; `code` is S3's error code.
    #[error("S3 returned {code} to the worker. HTTP response code: {status}: while reading {path}")]
    Refused {
        status: u16,
        code: String,
        path: String,
    },
    /// The content does not match the name, or no request can be made for the name.
    #[error("the worker cannot read the object: {text}: while reading {path}")]
    Content { text: String, path: String },
    /// S3 did not respond, or its response was interrupted.
    #[error("no response from S3 to the worker: {text}: while reading {path}")]
    Unavailable { text: String, path: String },
}

impl StoreError {
    /// Returns the object's `bucket/key`.
    pub fn path(&self) -> &str {
        match self {
            Self::Refused { path, .. }
            | Self::Content { path, .. }
            | Self::Unavailable { path, .. } => path,
        }
    }

    /// Returns whether the object does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, code, .. } if code != NO_SUCH_BUCKET)
    }

    /// Returns whether S3 denies access.
    pub fn is_denied(&self) -> bool {
        match self {
            _ if self.is_missing() => false,
            Self::Refused { status, code, .. } => {
                matches!(status, 403 | 404) || REFUSALS.iter().any(|word| code.contains(word))
            }
            Self::Content { .. } | Self::Unavailable { .. } => false,
        }
    }

    /// Returns whether the object's etag is not the one that was requested.
    pub fn is_changed(&self) -> bool {
        matches!(self, Self::Refused { status: 412, .. })
    }

    /// Returns whether the same request can succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            _ if self.is_changed() => false,
            Self::Content { .. } => false,
            Self::Refused { .. } => !self.is_missing() && !self.is_denied(),
            Self::Unavailable { .. } => true,
        }
    }
}

/// The metadata of the object that a key has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    pub etag: String,
    pub size: Option<u64>,
}

/// Whether an object contains the whole of its compressed content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completeness {
    Whole,
    /// The content is cut short, for this reason.
    Cut(String),
    /// The content does not match the name, for this reason.
    Malformed(String),
    /// The worker has no decoder for it.
    Unknown,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The object, with the same identity as in its announcement.
    pub object: ObjectRef,
    pub last_modified: SystemTime,
}

/// A part of a listing, of at most 1,000 objects.
#[derive(Clone, Debug)]
pub struct Page {
    pub objects: Vec<Listed>,
    /// The continuation token of the next page, or `None` at the end.
    pub next: Option<String>,
}

/// What the content of an object can be if it is not compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// What does not begin like a line of JSON has the compression that its name says.
    JsonLines,
    /// What does not begin like gzip or zstd has neither of them, whatever its name is.
    Anything,
}

impl Plain {
    /// Returns the compression of the content of this key, which begins with these bytes.
    fn compression(self, key: &str, start: &[u8]) -> Compression {
        let seen = Compression::seen(key, start);
        let has_magic = match seen {
            Compression::Gzip => start.starts_with(&GZIP_MAGIC),
            Compression::Zstd => start.starts_with(&ZSTD_MAGIC),
            _ => true,
        };
        if self == Self::JsonLines || has_magic {
            seen
        } else {
            Compression::None
        }
    }
}

/// The decompressed content of an object.
pub type Content = Pin<Box<dyn AsyncRead + Send>>;

#[derive(Clone, Debug)]
pub struct Store {
    client: Client,
}

impl Store {
    /// Creates a store with the credentials and the endpoint of `aws`. It uses path-style URLs, as
    /// ClickHouse does.
    pub fn new(aws: &aws_config::SdkConfig) -> Self {
        let config = Builder::from(aws).force_path_style(true).build();
        Self {
            client: Client::from_conf(config),
        }
    }

    /// Returns the same store, whose requests are observed.
    #[must_use]
    pub fn observed(self, observer: Arc<dyn RequestObserver>) -> Self {
        let interceptor = ObserveRequests {
            service: Service::S3,
            observer,
        };
        let config = self.client.config().to_builder().interceptor(interceptor);
        Self {
            client: Client::from_conf(config.build()),
        }
    }

    /// Returns the metadata of the object that the key has now, whatever was announced.
    pub async fn head(&self, object: &ObjectRef) -> Result<ObjectMeta, StoreError> {
        let request = self.client.head_object();
        let answer = request
            .bucket(&object.bucket)
            .key(&object.key)
            .customize()
            .config_override(in_region(object))
            .send()
            .await
            .map_err(|error| refused(object.path(), &error))?;
        let etag = answer.e_tag().unwrap_or_default();
        Ok(ObjectMeta {
            etag: etag.trim_matches('"').to_owned(),
            size: answer
                .content_length()
                .and_then(|size| size.try_into().ok()),
        })
    }

    /// Returns a page of the objects whose keys begin with that of `prefix`, in the order of S3.
    /// `after` is the continuation token of the page before, if there is one.
    pub async fn list(&self, prefix: &ObjectUrl, after: Option<&str>) -> Result<Page, StoreError> {
        let answer = self
            .client
            .list_objects_v2()
            .bucket(&prefix.bucket)
            .prefix(&prefix.key)
            // XML cannot represent every key.
            .encoding_type(EncodingType::Url)
            .set_continuation_token(after.map(str::to_owned))
            .send()
            .await
            .map_err(|error| refused(prefix.path(), &error))?;
        let encoded = answer.encoding_type() == Some(&EncodingType::Url);
        let region = self.client.config().region().map(ToString::to_string);
        let objects = answer.contents().iter().map(|object| {
            let key = object.key().unwrap_or_default();
            let key = if encoded {
                decode_key(key)
            } else {
                Some(key.to_owned())
            };
            let modified = object.last_modified();
            Ok(Listed {
                object: ObjectRef::from(ObjectParts {
                    bucket: prefix.bucket.clone(),
                    key: key.ok_or_else(|| StoreError::Content {
                        text: "S3 lists a key that is not valid UTF-8".to_owned(),
                        path: prefix.path(),
                    })?,
                    etag: object
                        .e_tag()
                        .unwrap_or_default()
                        .trim_matches('"')
                        .to_owned(),
                    size: object.size().and_then(|size| size.try_into().ok()),
                    version_id: None,
                    sequencer: None,
                    region: region.clone(),
                }),
                last_modified: modified
                    .and_then(|time| SystemTime::try_from(*time).ok())
                    .unwrap_or(SystemTime::UNIX_EPOCH),
            })
        });
        Ok(Page {
            objects: objects.collect::<Result<_, _>>()?,
            next: answer.next_continuation_token().map(str::to_owned),
        })
    }

    /// Returns whether the content's compression differs from the one in its name.
    pub async fn is_misnamed(&self, object: &ObjectRef, plain: Plain) -> Result<bool, StoreError> {
        let start = self.get(object, Some("bytes=0-511")).await?;
        let start = start
            .body
            .collect()
            .await
            .map_err(|error| broken(object, &io::Error::new(BROKEN_OFF, error)))?;
        let seen = plain.compression(&object.key, &start.into_bytes());
        Ok(seen != Compression::of(&object.key))
    }

    /// Requests the object. If its etag has changed, S3 rejects the request.
    async fn get(
        &self,
        object: &ObjectRef,
        range: Option<&str>,
    ) -> Result<GetObjectOutput, StoreError> {
        let mut request = self.client.get_object();
        if !object.etag.is_empty() {
            request = request.if_match(format!("\"{}\"", object.etag));
        }
        request
            .bucket(&object.bucket)
            .key(&object.key)
            .set_range(range.map(str::to_owned))
            .customize()
            .config_override(in_region(object))
            .send()
            .await
            .map_err(|error| refused(object.path(), &error))
    }

    /// Returns the object as text.
    ///
    /// # Errors
    ///
    /// Fails if the object is larger than `max_bytes`, or is not valid UTF-8.
    pub async fn text(&self, object: &ObjectRef, max_bytes: u64) -> Result<String, StoreError> {
        let output = self.get(object, None).await?;
        let length = output.content_length.and_then(|it| u64::try_from(it).ok());
        if length.is_none_or(|length| length > max_bytes) {
            let problem = format!("it is larger than {max_bytes} bytes");
            return Err(broken(object, &io::Error::other(problem)));
        }
        let bytes = output.body.collect().await;
        let bytes = bytes.map_err(|error| broken(object, &io::Error::new(BROKEN_OFF, error)))?;
        String::from_utf8(bytes.to_vec())
            .map_err(|error| broken(object, &io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Reads the object to its end, and returns whether it is complete. The extension of the key
    /// determines the compression; zstd and lz4 are not decompressed for this.
    pub async fn completeness(&self, object: &ObjectRef) -> Result<Completeness, StoreError> {
        let format = match Compression::of(&object.key) {
            Compression::Zstd => Format::Zstd,
            Compression::Lz4 => Format::Lz4,
            Compression::Gzip => return self.gzip_completeness(object).await,
            _ => return Ok(Completeness::Unknown),
        };
        let mut body = self.get(object, None).await?.body;
        let mut frames = Frames::new(format);
        let broken_off = |error| broken(object, &io::Error::new(BROKEN_OFF, error));
        while let Some(piece) = body.try_next().await.map_err(broken_off)? {
            if let Err(error) = frames.push(&piece) {
                return Ok(Completeness::Malformed(error.to_string()));
            }
        }
        Ok(match frames.finish() {
            Ok(()) => Completeness::Whole,
            Err(error) => Completeness::Cut(error.to_string()),
        })
    }

    async fn gzip_completeness(&self, object: &ObjectRef) -> Result<Completeness, StoreError> {
        let mut content = self.open(object, Plain::JsonLines).await?;
        match tokio::io::copy(&mut content, &mut tokio::io::sink()).await {
            Ok(_) => Ok(Completeness::Whole),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Completeness::Cut(format!("cut short: {error}")))
            }
            Err(error) => match broken(object, &error) {
                StoreError::Content { text, .. } => Ok(Completeness::Malformed(text)),
                error => Err(error),
            },
        }
    }

    /// Returns whether the content is empty when decompressed.
    pub async fn is_empty(&self, object: &ObjectRef, plain: Plain) -> Result<bool, StoreError> {
        let mut content = self.open(object, plain).await?;
        let read = content.read(&mut [0]).await;
        Ok(read.map_err(|error| broken(object, &error))? == 0)
    }

    /// Returns at most this many bytes at the end of the object, as it is stored.
    pub async fn end(&self, object: &ObjectRef, bytes: u64) -> Result<Vec<u8>, StoreError> {
        let end = match self.get(object, Some(&format!("bytes=-{bytes}"))).await {
            // No range is within an empty object.
            Err(StoreError::Refused { status: 416, .. }) => return Ok(Vec::new()),
            end => end?,
        };
        let end = end.body.collect().await;
        let end = end.map_err(|error| broken(object, &io::Error::new(BROKEN_OFF, error)))?;
        Ok(end.to_vec())
    }

    /// Returns at most this many bytes at the beginning of the object, as it is stored.
    pub async fn start(&self, object: &ObjectRef, bytes: u64) -> Result<Vec<u8>, StoreError> {
        let range = format!("bytes=0-{}", bytes.saturating_sub(1));
        let start = match self.get(object, Some(&range)).await {
            // No range is within an empty object.
            Err(StoreError::Refused { status: 416, .. }) => return Ok(Vec::new()),
            start => start?,
        };
        let start = start.body.collect().await;
        let start = start.map_err(|error| broken(object, &io::Error::new(BROKEN_OFF, error)))?;
        Ok(start.to_vec())
    }

    /// Opens the object for reading; the content is decompressed.
    pub async fn open(&self, object: &ObjectRef, plain: Plain) -> Result<Content, StoreError> {
        let answer = self.get(object, None).await?;
        // ClickHouse also treats an object of 0 bytes as one without lines, whatever its name.
        if answer.content_length == Some(0) {
            return Ok(Box::pin(tokio::io::empty()));
        }
        let mut stored = reader(answer.body);
        let start = stored.fill_buf().await;
        let start = start.map_err(|error| broken(object, &error))?;
        let compression = plain.compression(&object.key, start);
        decoder(stored, compression).ok_or_else(|| StoreError::Content {
            text: "only uncompressed, gzip and zstd objects can be streamed".to_owned(),
            path: object.path(),
        })
    }
}

/// Returns the decompressed content; `None` if there is no decoder for it.
fn decoder<'a>(
    stored: impl AsyncBufRead + Send + 'a,
    compression: Compression,
) -> Option<Pin<Box<dyn AsyncRead + Send + 'a>>> {
    match compression {
        Compression::None => Some(Box::pin(stored)),
        Compression::Gzip => {
            let mut decoder = GzipDecoder::new(stored);
            decoder.multiple_members(true);
            Some(Box::pin(decoder))
        }
        Compression::Zstd => {
            let mut decoder = ZstdDecoder::new(stored);
            decoder.multiple_members(true);
            Some(Box::pin(decoder))
        }
        _ => None,
    }
}

/// The decompressed beginning of content.
#[derive(Debug)]
pub struct Beginning {
    pub content: Vec<u8>,
    /// Whether there is more.
    pub is_cut: bool,
}

/// Decompresses the beginning of content, as it is stored under this key, up to this number of
/// bytes. `is_cut` says that more is stored.
///
/// # Errors
///
/// Fails if the content is not what its compression requires, or if there is no decoder for it.
pub async fn beginning(
    stored: &[u8],
    key: &str,
    max_bytes: u64,
    is_cut: bool,
) -> io::Result<Beginning> {
    let compression = Plain::Anything.compression(key, stored);
    let decoder = decoder(stored, compression).ok_or_else(|| {
        let extension = compression.extension();
        io::Error::other(format!(
            "content that is compressed as {extension} cannot be read here"
        ))
    })?;
    let mut content = Vec::new();
    let mut limited = decoder.take(max_bytes.saturating_add(1));
    match limited.read_to_end(&mut content).await {
        // What is cut ends within a frame.
        Err(error) if !is_cut || content.is_empty() => return Err(error),
        _ => {}
    }
    let is_longer = content.len() as u64 > max_bytes;
    content.truncate(usize::try_from(max_bytes).unwrap_or(usize::MAX));
    Ok(Beginning {
        content,
        is_cut: is_cut || is_longer,
    })
}

/// Marks an interrupted response of S3, to distinguish it from a decoder's error about the content.
const BROKEN_OFF: io::ErrorKind = io::ErrorKind::ConnectionAborted;

fn reader(body: ByteStream) -> impl AsyncBufRead + Send + Unpin {
    let chunks = stream::try_unfold(body, |mut body| async {
        let chunk = body.try_next().await?;
        Ok(chunk.map(|chunk| (chunk, body)))
    });
    let chunks = chunks.map_err(|error: ByteStreamError| io::Error::new(BROKEN_OFF, error));
    StreamReader::new(Box::pin(chunks))
}

/// Converts an error of reading the content that [`Store::open`] returned.
pub fn broken(object: &ObjectRef, error: &io::Error) -> StoreError {
    let (text, path) = (with_sources(error), object.path());
    if error.kind() == BROKEN_OFF {
        StoreError::Unavailable { text, path }
    } else {
        StoreError::Content { text, path }
    }
}

fn refused<E>(path: String, error: &SdkError<E>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        SdkError::ServiceError(answer) => StoreError::Refused {
            status: answer.raw().status().as_u16(),
            code: error.code().unwrap_or("unknown").to_owned(),
            path,
        },
        // The SDK treats a key of white space as a missing one.
        SdkError::ConstructionFailure(_) => StoreError::Content {
            text: with_sources(error),
            path,
        },
        _ => StoreError::Unavailable {
            text: with_sources(error),
            path,
        },
    }
}

/// Returns the configuration of a request to the object's region, since a bucket can be reached
/// only in its own.
fn in_region(object: &ObjectRef) -> Builder {
    match &object.region {
        Some(region) => Builder::new().region(Region::new(region.clone())),
        // The region of the environment applies.
        None => Builder::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_under_the_name_of_a_compression_is_recognised_where_anything_is_plain() {
        let of = |plain: Plain, key: &str, start: &[u8]| plain.compression(key, start);
        for key in ["a.csv.gz", "a.csv.zst"] {
            assert_eq!(of(Plain::Anything, key, b"id,a\n"), Compression::None);
            assert_eq!(of(Plain::JsonLines, key, b"id,a\n"), Compression::of(key));
            assert_eq!(of(Plain::JsonLines, key, b"{\"a\":1}"), Compression::None);
        }
        for plain in [Plain::Anything, Plain::JsonLines] {
            assert_eq!(of(plain, "a.csv", &GZIP_MAGIC), Compression::Gzip);
            assert_eq!(of(plain, "a.csv.gz", &ZSTD_MAGIC), Compression::Zstd);
            assert_eq!(of(plain, "a.csv.xz", b"id,a\n"), Compression::Xz);
        }
    }
}
