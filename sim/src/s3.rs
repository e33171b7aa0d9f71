//! A bucket whose objects change, vanish, are cut short, or are refused to some readers.
//!
//! Objects are not compressed: a key with the extension of a compression only makes the stored size
//! smaller, and decides whether a reader notices that an object is cut short.

mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice::object::{Compression, ObjectRef};
use sluice::s3::ObjectMeta;

pub use self::store::SimStore;
use crate::network::{Client, Network};
use crate::trace::Trace;

/// The bucket. Clones share it.
#[derive(Clone, Debug)]
pub struct SimS3(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    trace: Trace,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Stored>,
    server: Faults,
    worker: Faults,
}

/// What S3 does not do for one kind of reader.
#[derive(Debug, Default)]
struct Faults {
    refused: BTreeSet<String>,
    is_unavailable: bool,
}

#[derive(Debug)]
struct Stored {
    /// What a reader gets: all of the content, or a part of it.
    body: Vec<u8>,
    is_cut: bool,
    meta: ObjectMeta,
}

/// Who reads an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The database server.
    Server,
    Worker,
}

/// An upload.
#[derive(Clone, Debug)]
pub struct Put {
    pub key: String,
    /// The content as it is read in full.
    pub body: Vec<u8>,
    /// Whether the stored stream is cut short: a reader gets the first half of the lines.
    pub is_cut: bool,
}

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The content, or a part of it.
    pub body: Vec<u8>,
    /// Whether `body` is only a part.
    pub is_cut: bool,
    pub meta: ObjectMeta,
}

/// Why a reader gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The key has no object.
    Missing,
    /// The key has another object than the one that was requested.
    Changed,
    /// This reader may not read the object.
    Denied,
    /// S3 is overloaded.
    Unavailable,
}

impl SimS3 {
    /// Creates an empty bucket.
    pub fn new(trace: Trace) -> Self {
        Self(Arc::new(Shared {
            trace,
            state: Mutex::default(),
        }))
    }

    /// Uploads an object, and returns its metadata. The etag is that of every upload with the same
    /// content, and of no other.
    pub fn put(&self, object: Put) -> ObjectMeta {
        let Put { key, body, is_cut } = object;
        let meta = ObjectMeta {
            etag: etag(&body, is_cut),
            size: Some(stored_size(&key, &body, is_cut)),
        };
        let cut = if is_cut { " (cut short)" } else { "" };
        let trace = &self.0.trace;
        trace.note(format_args!("S3 stores {key} {}{cut}", meta.etag));
        let stored = Stored {
            body: if is_cut { first_half(&body) } else { body },
            is_cut,
            meta: meta.clone(),
        };
        self.state().objects.insert(key, stored);
        meta
    }

    pub fn delete(&self, key: &str) {
        self.0.trace.note(format_args!("S3 deletes {key}"));
        self.state().objects.remove(key);
    }

    /// Sets whether a kind of reader is denied access to a key.
    pub fn refuse(&self, key: &str, reader: Reader, refuses: bool) {
        let trace = &self.0.trace;
        trace.note(format_args!("S3 refuses {key} to {reader:?}: {refuses}"));
        let mut state = self.state();
        let refused = &mut state.faults_mut(reader).refused;
        if refuses {
            refused.insert(key.to_owned());
        } else {
            refused.remove(key);
        }
    }

    /// Sets whether S3 answers every request of a kind of reader with 503.
    pub fn unavailable(&self, reader: Reader, is: bool) {
        let trace = &self.0.trace;
        trace.note(format_args!("S3 is unavailable to {reader:?}: {is}"));
        self.state().faults_mut(reader).is_unavailable = is;
    }

    /// Returns the metadata of the object that a key has now, whoever may read it.
    pub fn present(&self, key: &str) -> Option<ObjectMeta> {
        let state = self.state();
        state.objects.get(key).map(|stored| stored.meta.clone())
    }

    /// Returns whether the object that a key has now is without content.
    pub(crate) fn is_empty(&self, key: &str) -> bool {
        let state = self.state();
        let stored = state.objects.get(key);
        stored.is_some_and(|stored| stored.body.is_empty() && !stored.is_cut)
    }

    /// Returns what a reader gets that requests this object at its etag, if it has one.
    ///
    /// # Errors
    ///
    /// Fails if S3 does not return the object to this reader.
    pub fn read(&self, object: &ObjectRef, reader: Reader) -> Result<Read, ReadError> {
        let state = self.state();
        let stored = state.look_up(&object.key, reader)?;
        if !object.etag.is_empty() && object.etag != stored.meta.etag {
            return Err(ReadError::Changed);
        }
        Ok(Read {
            body: stored.body.clone(),
            is_cut: stored.is_cut,
            meta: stored.meta.clone(),
        })
    }

    /// Returns the store of a worker, which reaches this bucket through a network.
    pub fn store(&self, network: Network, client: Client) -> SimStore {
        SimStore::new(self.clone(), network, client)
    }

    fn head(&self, key: &str, reader: Reader) -> Result<ObjectMeta, ReadError> {
        let state = self.state();
        state.look_up(key, reader).map(|stored| stored.meta.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn look_up(&self, key: &str, reader: Reader) -> Result<&Stored, ReadError> {
        let faults = self.faults(reader);
        if faults.is_unavailable {
            return Err(ReadError::Unavailable);
        }
        if faults.refused.contains(key) {
            return Err(ReadError::Denied);
        }
        self.objects.get(key).ok_or(ReadError::Missing)
    }

    fn faults(&self, reader: Reader) -> &Faults {
        match reader {
            Reader::Server => &self.server,
            Reader::Worker => &self.worker,
        }
    }

    fn faults_mut(&mut self, reader: Reader) -> &mut Faults {
        match reader {
            Reader::Server => &mut self.server,
            Reader::Worker => &mut self.worker,
        }
    }
}

fn etag(body: &[u8], is_cut: bool) -> String {
    let mut hasher = DefaultHasher::new();
    (body, is_cut).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Returns the size of the stored stream. Compressed streams have a header, even without content.
fn stored_size(key: &str, body: &[u8], is_cut: bool) -> u64 {
    let whole = match Compression::of(key) {
        Compression::None => body.len() as u64,
        _ => 20 + body.len() as u64 / 4,
    };
    if is_cut { whole.div_ceil(2) } else { whole }
}

/// Returns the first half of the lines, rounded down.
fn first_half(body: &[u8]) -> Vec<u8> {
    let lines = || body.split_inclusive(|byte| *byte == b'\n');
    let half = lines().count() / 2;
    lines().take(half).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use sluice_core::fixtures;

    use super::*;

    fn object(key: &str, etag: &str) -> ObjectRef {
        fixtures::object("uploads", key, etag)
    }

    fn put(s3: &SimS3, key: &str, body: &str, is_cut: bool) -> ObjectRef {
        let meta = s3.put(Put {
            key: key.to_owned(),
            body: body.as_bytes().to_vec(),
            is_cut,
        });
        object(key, &meta.etag)
    }

    #[tokio::test(start_paused = true)]
    async fn an_etag_belongs_to_a_content() {
        let s3 = SimS3::new(Trace::new(false));
        let first = put(&s3, "k", "video\n", false);
        let other = put(&s3, "k", "video\n\n", false);
        assert_ne!(first.etag, other.etag);
        assert_eq!(s3.read(&first, Reader::Server), Err(ReadError::Changed));
        let present = s3.present("k").unwrap();
        assert_eq!((&present.etag, present.size), (&other.etag, Some(7)));
        assert_eq!(put(&s3, "k", "video\n", false).etag, first.etag);
        // Without an etag, the present object is read.
        let read = s3.read(&object("k", ""), Reader::Server).unwrap();
        assert_eq!(
            (read.body.as_slice(), read.is_cut),
            (&b"video\n"[..], false)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_is_cut_short_is_another_object_with_half_of_the_lines() {
        let s3 = SimS3::new(Trace::new(false));
        let body = "video\nvideo\n\n";
        let whole = put(&s3, "k.gz", body, false);
        let whole_size = s3.present("k.gz").unwrap().size;
        let cut = put(&s3, "k.gz", body, true);
        assert_ne!(cut.etag, whole.etag);
        assert!(s3.present("k.gz").unwrap().size < whole_size);
        let read = s3.read(&cut, Reader::Server).unwrap();
        assert_eq!((read.body.as_slice(), read.is_cut), (&b"video\n"[..], true));
    }
}
