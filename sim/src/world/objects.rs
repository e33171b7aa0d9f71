//! What was uploaded in a world, what each message announces, and what must have become of both.

mod lines;
mod present;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use sluice::batch::BatchId;
use sluice::object::{ObjectParts, ObjectRef};
use sluice::s3::ObjectMeta;
use sluice::statements::select::{BLANK, Target};
use sluice_core::notification::announce::announcement;

pub(super) use self::present::Present;
use super::arrivals::{Denied, DeniedTo, Upload};
use super::settings::catalog;
use crate::server::SimServer;

/// The only bucket.
pub(super) const BUCKET: &str = "uploads";
/// The paths of the blank lines with which a loader tests the server.
const SAMPLES: &str = "sluice-sample/";

/// The number of rows of each kind of line, by table.
type RowCounts = BTreeMap<(String, String), u64>;

/// What must have become of an object at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Loaded,
    /// It was gone before it was loaded, or nobody can prove that it is whole: it is loaded once or
    /// not at all.
    LoadedOrNot,
    NotLoaded,
}

/// An object that was uploaded.
#[derive(Debug)]
struct Uploaded {
    object: ObjectRef,
    expected: RowCounts,
    fate: Fate,
    /// How S3 denied it at first.
    denied: Option<Denied>,
    is_replaced: bool,
    is_deleted: bool,
}

/// The objects and messages of a world.
#[derive(Debug)]
pub(super) struct Objects {
    uploads: Vec<Upload>,
    /// The uploads that each message announces.
    messages: Vec<Vec<usize>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the number of the upload.
    uploaded: BTreeMap<usize, Uploaded>,
    /// The messages that were sent, by their bodies.
    sent: BTreeMap<String, usize>,
}

impl Objects {
    pub(super) fn new(uploads: Vec<Upload>, messages: Vec<Vec<usize>>) -> Self {
        Self {
            uploads,
            messages,
            state: Mutex::default(),
        }
    }

    pub(super) fn upload(&self, number: usize) -> &Upload {
        &self.uploads[number]
    }

    pub(super) fn count(&self) -> usize {
        self.state().uploaded.len()
    }

    /// Notes that an object has been uploaded. Returns whether it replaces another.
    pub(super) fn uploaded(
        &self,
        number: usize,
        present: &ObjectMeta,
        denied: Option<Denied>,
        server: &SimServer,
    ) -> bool {
        let upload = &self.uploads[number];
        let object = ObjectRef::from(ObjectParts {
            bucket: BUCKET.to_owned(),
            key: upload.key.clone(),
            etag: present.etag.clone(),
            size: present.size,
            ..ObjectParts::default()
        });
        let fate = match denied {
            _ if upload.is_cut => Fate::NotLoaded,
            Some(Denied { to, for_good: true }) => match to {
                DeniedTo::Server => Fate::Loaded,
                DeniedTo::Workers => Fate::LoadedOrNot,
                DeniedTo::Both => Fate::NotLoaded,
            },
            _ => Fate::Loaded,
        };
        let mut state = self.state();
        let mut replaces = false;
        for earlier in state.of_key(&upload.key) {
            replaces = true;
            earlier.is_replaced = true;
            earlier.lose(server);
        }
        let uploaded = Uploaded {
            object,
            expected: expected_rows(&upload.body),
            fate,
            denied,
            is_replaced: false,
            is_deleted: false,
        };
        state.uploaded.insert(number, uploaded);
        replaces
    }

    /// Notes that an object has been deleted.
    pub(super) fn deleted(&self, number: usize, server: &SimServer) {
        let mut state = self.state();
        for uploaded in state.of_key(&self.uploads[number].key) {
            uploaded.is_deleted = true;
            uploaded.lose(server);
        }
    }

    /// Notes that nobody is denied these objects any more, and returns their keys with whom S3
    /// denied them.
    pub(super) fn grant_all(&self) -> Vec<(String, DeniedTo)> {
        let mut state = self.state();
        let mut granted = Vec::new();
        for uploaded in state.uploaded.values_mut() {
            if let Some(Denied { to, for_good: true }) = uploaded.denied {
                uploaded.denied = Some(Denied {
                    to,
                    for_good: false,
                });
                uploaded.fate = Fate::Loaded;
                granted.push((uploaded.object.key.clone(), to));
            }
        }
        granted
    }

    /// Returns whether any object is loaded.
    pub(super) fn is_any_loaded(&self, server: &SimServer) -> bool {
        let state = self.state();
        let mut uploaded = state.uploaded.values();
        uploaded.any(|it| server.is_recorded(it.object.id()))
    }

    /// Returns the body of a message whose objects were uploaded, and whether it was sent before.
    pub(super) fn message(&self, number: usize) -> (String, bool) {
        let mut state = self.state();
        let announced = self.messages[number].iter().filter_map(|upload| {
            let object = &state.uploaded.get(upload)?.object;
            if self.uploads[*upload].has_etag {
                return Some(object.clone());
            }
            // The sequencer identifies it instead.
            Some(ObjectRef::from(ObjectParts {
                etag: String::new(),
                sequencer: Some(format!("{upload:016X}")),
                ..object.clone().into_parts()
            }))
        });
        let announced: Vec<ObjectRef> = announced.collect();
        let body = match announced.as_slice() {
            [only] => announcement(only),
            several => {
                let records: Vec<Value> = several.iter().flat_map(records).collect();
                json!({ "Records": records }).to_string()
            }
        };
        let before = state.sent.insert(body.clone(), number);
        (body, before.is_some())
    }

    /// Returns why a message with this body must not be deleted now, if so.
    pub(super) fn must_not_be_deleted(
        &self,
        body: &str,
        server: &SimServer,
        acknowledge_missing: bool,
    ) -> Option<String> {
        let state = self.state();
        let Some(message) = state.sent.get(body) else {
            return Some(format!("it was never sent: {body}"));
        };
        let uploads = self.messages[*message].iter();
        let uploaded = uploads.filter_map(|upload| state.uploaded.get(upload));
        for uploaded in uploaded {
            let object = &uploaded.object;
            let is_done = server.is_recorded(object.id())
                || uploaded.is_deleted && acknowledge_missing
                || uploaded.is_replaced && state.is_another_recorded(object, server);
            if !is_done {
                return Some(format!("{object} ({}) is not recorded", object.etag));
            }
        }
        None
    }

    /// Returns whether a message may be a dead letter: an object of it cannot be loaded, or could
    /// not be loaded before access was granted.
    pub(super) fn may_be_dead(&self, body: &str) -> bool {
        let state = self.state();
        let mut uploads = state.uploaded_of(body, &self.messages);
        uploads.any(|uploaded| uploaded.is_unloadable() || uploaded.denied.is_some())
    }

    /// Returns whether a dead letter can be loaded if it is moved back.
    pub(super) fn is_loadable(&self, body: &str) -> bool {
        let state = self.state();
        let mut uploads = state.uploaded_of(body, &self.messages);
        !uploads.any(Uploaded::is_unloadable)
    }

    /// Returns how the rows in the tables differ from those that must be there.
    pub(super) fn differences(&self, server: &SimServer) -> Vec<String> {
        let state = self.state();
        let mut found = rows_by_object(server);
        let mut differences = Vec::new();
        for uploaded in state.uploaded.values() {
            let object = &uploaded.object;
            let rows = found.remove(&(object.path(), object.etag.clone()));
            let batches = server.loaded_batches(object.id());
            if let Some(difference) = uploaded.difference(rows.unwrap_or_default(), batches) {
                differences.push(format!("{object} ({}): {difference}", object.etag));
            }
        }
        for ((path, etag), rows) in found {
            if !path.starts_with(SAMPLES) {
                differences.push(format!(
                    "rows of an unknown object {path} ({etag}): {rows:?}"
                ));
            }
        }
        differences
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn of_key<'a>(&'a mut self, key: &'a str) -> impl Iterator<Item = &'a mut Uploaded> {
        let uploaded = self.uploaded.values_mut();
        uploaded.filter(move |uploaded| uploaded.object.key == key)
    }

    /// Returns whether another object is recorded under the key of this one.
    fn is_another_recorded(&self, object: &ObjectRef, server: &SimServer) -> bool {
        let mut others = self.uploaded.values().map(|uploaded| &uploaded.object);
        others.any(|other| {
            other.key == object.key && other.etag != object.etag && server.is_recorded(other.id())
        })
    }

    fn uploaded_of<'a>(
        &'a self,
        body: &str,
        messages: &'a [Vec<usize>],
    ) -> impl Iterator<Item = &'a Uploaded> {
        let message = self.sent.get(body).and_then(|number| messages.get(*number));
        let uploads = message.into_iter().flatten();
        uploads.filter_map(move |upload| self.uploaded.get(upload))
    }
}

/// The rows of an object that were found, and their batches.
#[derive(Debug, Default)]
struct FoundRows {
    counts: RowCounts,
    batches: BTreeSet<BatchId>,
}

impl Uploaded {
    /// Notes that the object is gone: unless it is loaded by now, it need not be loaded any more.
    fn lose(&mut self, server: &SimServer) {
        if self.fate == Fate::Loaded && !server.is_recorded(self.object.id()) {
            self.fate = Fate::LoadedOrNot;
        }
    }

    fn is_unloadable(&self) -> bool {
        let is_denied = self.denied.is_some_and(|denied| denied.for_good);
        self.fate == Fate::NotLoaded || is_denied || self.is_deleted
    }

    fn difference(&self, found: FoundRows, batches: usize) -> Option<String> {
        let is_absent = batches == 0 && found.counts.is_empty();
        let is_loaded = batches == 1 && found.counts == self.expected && found.batches.len() <= 1;
        let is_right = match self.fate {
            Fate::Loaded => is_loaded,
            Fate::LoadedOrNot => is_loaded || is_absent,
            Fate::NotLoaded => is_absent,
        };
        (!is_right).then(|| {
            format!(
                "must be {:?}; {batches} loaded batches claim it; rows expected: {:?}, found: {:?} \
                 of batches {:?}",
                self.fate, self.expected, found.counts, found.batches
            )
        })
    }
}

/// Returns the rows in the tables by path and etag.
fn rows_by_object(server: &SimServer) -> BTreeMap<(String, String), FoundRows> {
    let mut found: BTreeMap<(String, String), FoundRows> = BTreeMap::new();
    for row in server.rows() {
        if row.rows == 0 {
            continue;
        }
        let of_object = found.entry((row.path, row.etag)).or_default();
        let kind = (row.table, row.kind);
        *of_object.counts.entry(kind).or_default() += row.rows;
        of_object.batches.insert(row.batch);
    }
    found
}

/// Returns the rows that content must become. Each line is counted in `object_rows`, too.
fn expected_rows(body: &[u8]) -> RowCounts {
    let targets = Target::all(catalog());
    let text = String::from_utf8_lossy(body);
    let mut counts = RowCounts::new();
    for line in text.lines() {
        let kind = if line.is_empty() { BLANK } else { line };
        let own = targets.iter().find(|target| target.kind() == Some(kind));
        for target in own.into_iter().chain([&Target::ObjectRows]) {
            let row = (target.table().to_owned(), kind.to_owned());
            *counts.entry(row).or_default() += 1;
        }
    }
    counts
}

/// Returns the records of the announcement of an object.
fn records(object: &ObjectRef) -> Vec<Value> {
    let mut event: Value = serde_json::from_str(&announcement(object)).unwrap_or_default();
    match event["Records"].take() {
        Value::Array(records) => records,
        _ => Vec::new(),
    }
}
