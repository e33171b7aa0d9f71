//! The bucket as a worker reads it: [`ObjectStore`] through a network.

mod listing;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use sluice::load::ports::ObjectStore;
use sluice::object::{Compression, ObjectRef};
use sluice::s3::{Completeness, Content, ObjectMeta, Plain, StoreError, broken};
use tokio::io::{AsyncRead, ReadBuf};

use super::{Read, ReadError, Reader, SimS3, first_half};
use crate::network::{Broken, Client, Network};

/// A worker's connection to the bucket.
#[derive(Clone, Debug)]
pub struct SimStore {
    s3: SimS3,
    network: Network,
    client: Client,
}

impl SimStore {
    pub(super) fn new(s3: SimS3, network: Network, client: Client) -> Self {
        Self {
            s3,
            network,
            client,
        }
    }

    async fn request<T: Send + 'static>(
        &self,
        what: &'static str,
        path: String,
        work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match self.network.carry(&self.client, what, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(refusal(path, error)),
            Err(Broken) => Err(StoreError::Unavailable {
                text: "the connection broke".to_owned(),
                path,
            }),
        }
    }

    /// Requests an object. The response can break off.
    async fn get(&self, object: &ObjectRef) -> Result<Body, StoreError> {
        let (s3, requested) = (self.s3.clone(), object.clone());
        let read = move || s3.read(&requested, Reader::Worker);
        let Read { body, is_cut, .. } = self.request("S3 get", object.path(), read).await?;
        let transfer = self.network.carry(&self.client, "S3 body", || ()).await;
        let (bytes, end) = match transfer {
            Err(Broken) => (first_half(&body), End::BrokenOff),
            Ok(()) if is_cut => (body, End::CutShort),
            Ok(()) => (body, End::Whole),
        };
        Ok(Body {
            bytes,
            position: 0,
            end,
        })
    }
}

impl ObjectStore for SimStore {
    async fn head(&self, object: &ObjectRef) -> Result<ObjectMeta, StoreError> {
        let (s3, key) = (self.s3.clone(), object.key.clone());
        let head = move || s3.head(&key, Reader::Worker);
        self.request("S3 head", object.path(), head).await
    }

    /// Always returns `false` for an object that can be read: every content matches its name.
    async fn is_misnamed(&self, object: &ObjectRef, _: Plain) -> Result<bool, StoreError> {
        self.get(object).await.map(|_| false)
    }

    async fn is_empty(&self, object: &ObjectRef, _: Plain) -> Result<bool, StoreError> {
        let body = self.get(object).await?.decompressed(object)?;
        match body.error() {
            Some(error) if body.bytes.is_empty() => Err(broken(object, &error)),
            _ => Ok(body.bytes.is_empty()),
        }
    }

    async fn completeness(&self, object: &ObjectRef) -> Result<Completeness, StoreError> {
        let has_end = matches!(
            Compression::of(&object.key),
            Compression::Gzip | Compression::Zstd | Compression::Lz4
        );
        if !has_end {
            return Ok(Completeness::Unknown);
        }
        let body = self.get(object).await?;
        match (body.end, body.error()) {
            (End::BrokenOff, Some(error)) => Err(broken(object, &error)),
            (_, Some(error)) => Ok(Completeness::Cut(error.to_string())),
            (_, None) => Ok(Completeness::Whole),
        }
    }

    async fn open(&self, object: &ObjectRef, _: Plain) -> Result<Content, StoreError> {
        let body = self.get(object).await?.decompressed(object)?;
        Ok(Box::pin(body))
    }

    async fn end(&self, object: &ObjectRef, bytes: u64) -> Result<Vec<u8>, StoreError> {
        let body = self.get(object).await?;
        if let Some(error) = body.error() {
            return Err(broken(object, &error));
        }
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let start = body.bytes.len().saturating_sub(bytes);
        Ok(body.bytes.get(start..).unwrap_or_default().to_vec())
    }
}

/// Returns the error that production makes of S3's answer.
fn refusal(path: String, error: ReadError) -> StoreError {
    let (status, code) = match error {
        ReadError::Missing => (404, "NoSuchKey"),
        ReadError::Changed => (412, "PreconditionFailed"),
        ReadError::Denied => (403, "AccessDenied"),
        ReadError::Unavailable => (503, "SlowDown"),
    };
    StoreError::Refused {
        status,
        code: code.to_owned(),
        path,
    }
}

/// The body of a response.
#[derive(Debug)]
struct Body {
    bytes: Vec<u8>,
    position: usize,
    end: End,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    /// The response was interrupted.
    BrokenOff,
    /// The object is cut short.
    CutShort,
}

impl Body {
    /// Returns the body as the decoder for the object's name returns it.
    fn decompressed(mut self, object: &ObjectRef) -> Result<Self, StoreError> {
        match Compression::of(&object.key) {
            // The part is an object like any other.
            Compression::None if self.end == End::CutShort => self.end = End::Whole,
            Compression::None | Compression::Gzip | Compression::Zstd => {}
            _ => {
                return Err(StoreError::Content {
                    text: "only uncompressed, gzip and zstd objects can be streamed".to_owned(),
                    path: object.path(),
                });
            }
        }
        Ok(self)
    }

    /// Returns the error that follows the bytes, of the kind that [`broken`] recognises.
    fn error(&self) -> Option<io::Error> {
        match self.end {
            End::Whole => None,
            End::BrokenOff => Some(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the response broke off",
            )),
            End::CutShort => Some(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "cut short: the stream ends within a frame",
            )),
        }
    }
}

impl AsyncRead for Body {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        if rest.is_empty()
            && let Some(error) = self.error()
        {
            return Poll::Ready(Err(error));
        }
        let piece = rest.get(..buffer.remaining()).unwrap_or(rest);
        let length = piece.len();
        buffer.put_slice(piece);
        self.position += length;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use sluice_core::fixtures;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::network::Disturbance;
    use crate::s3::Put;
    use crate::trace::Trace;

    struct World {
        s3: SimS3,
        network: Network,
        store: SimStore,
    }

    impl World {
        fn new() -> Self {
            let trace = Trace::new(false);
            let s3 = SimS3::new(trace.clone());
            let network = Network::new(fastrand::Rng::with_seed(7), trace);
            let store = s3.store(network.clone(), Client::new("worker"));
            Self { s3, network, store }
        }

        fn put(&self, key: &str, body: &str, is_cut: bool) -> ObjectRef {
            let meta = self.s3.put(Put {
                key: key.to_owned(),
                body: body.as_bytes().to_vec(),
                is_cut,
            });
            object(key, &meta.etag)
        }

        /// Reads the content, and returns what precedes an error, and the error.
        async fn content(&self, object: &ObjectRef) -> (String, Option<StoreError>) {
            let mut content = self.store.open(object, Plain::JsonLines).await.unwrap();
            let mut bytes = Vec::new();
            let read = content.read_to_end(&mut bytes).await;
            let error = read.err().map(|error| broken(object, &error));
            (String::from_utf8(bytes).unwrap(), error)
        }
    }

    fn object(key: &str, etag: &str) -> ObjectRef {
        fixtures::object("uploads", key, etag)
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_classified_as_in_production() {
        let world = World::new();
        let error = async |object: &ObjectRef| {
            world
                .store
                .open(object, Plain::JsonLines)
                .await
                .err()
                .unwrap()
        };
        let missing = object("missing", "e");
        assert!(error(&missing).await.is_missing());
        assert!(world.store.head(&missing).await.unwrap_err().is_missing());

        let first = world.put("k", "video\n", false);
        let second = world.put("k", "rejected\n", false);
        assert!(error(&first).await.is_changed());
        let head = world.store.head(&first).await.unwrap();
        assert_eq!(head.etag, second.etag);

        world.s3.refuse("k", Reader::Worker, true);
        assert!(error(&second).await.is_denied());
        assert!(world.s3.read(&second, Reader::Server).is_ok());
        world.s3.refuse("k", Reader::Worker, false);

        world.s3.unavailable(Reader::Worker, true);
        let unavailable = error(&second).await;
        assert!(unavailable.is_transient() && !unavailable.is_denied());
        assert!(world.s3.read(&second, Reader::Server).is_ok());
        world.s3.unavailable(Reader::Worker, false);

        world.network.cut(true);
        assert!(error(&second).await.is_transient());
        world.network.cut(false);
        world.s3.delete("k");
        assert!(error(&second).await.is_missing());
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_notices_that_a_compressed_object_is_cut_short() {
        let world = World::new();
        for key in ["k.gz", "k.zst"] {
            let cut = world.put(key, "video\nvideo\n\n", true);
            let (text, error) = world.content(&cut).await;
            assert_eq!(text, "video\n");
            assert!(
                matches!(error, Some(StoreError::Content { .. })),
                "{error:?}"
            );
            let completeness = world.store.completeness(&cut).await;
            assert!(matches!(completeness, Ok(Completeness::Cut(_))));
            assert_eq!(
                world.store.is_empty(&cut, Plain::JsonLines).await,
                Ok(false)
            );
            let whole = world.put(key, "video\nvideo\n\n", false);
            let completeness = world.store.completeness(&whole).await;
            assert_eq!(completeness, Ok(Completeness::Whole));
            assert_eq!(
                world.store.is_misnamed(&whole, Plain::JsonLines).await,
                Ok(false)
            );
        }
        let cut = world.put("k", "video\nvideo\n", true);
        assert_eq!(world.content(&cut).await, ("video\n".to_owned(), None));
        let completeness = world.store.completeness(&cut).await;
        assert_eq!(completeness, Ok(Completeness::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_empty_and_what_has_no_decoder_is_recognised() {
        let world = World::new();
        for key in ["k", "k.gz"] {
            let empty = world.put(key, "", false);
            assert_eq!(
                world.store.is_empty(&empty, Plain::JsonLines).await,
                Ok(true)
            );
        }
        assert_eq!(world.s3.present("k").unwrap().size, Some(0));
        let unreadable = world.put("k.bz2", "video\n", false);
        let error = world
            .store
            .open(&unreadable, Plain::JsonLines)
            .await
            .err()
            .unwrap();
        assert!(matches!(error, StoreError::Content { .. }), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_can_break_off() {
        let world = World::new();
        let object = world.put("k", "video\nvideo\n", false);
        world.network.disturb(Disturbance {
            lost: 500,
            ..Disturbance::default()
        });
        let mut broken_off = 0;
        for _ in 0..20 {
            let Ok(mut content) = world.store.open(&object, Plain::JsonLines).await else {
                continue;
            };
            let mut bytes = Vec::new();
            if let Err(error) = content.read_to_end(&mut bytes).await {
                assert!(broken(&object, &error).is_transient());
                broken_off += 1;
            } else {
                assert_eq!(bytes, b"video\nvideo\n");
            }
        }
        assert!(broken_off > 0);
    }
}
