//! Finds out how objects of other formats than JSON lines are read: groups them by their format,
//! and looks up the structure of those that have one, before they are claimed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::stream::{self, StreamExt};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::cause::{BatchFailure, FailureCause};
use super::ports::{BatchTables, ObjectStore, Ports};
use super::progress::{PendingObject, Progress, WorkUnit};
use super::refresh::RefreshError;
use super::{Cancelled, Loader, MAX_RETRIES, Outcome};
use crate::batch::{Fallback, Layout, ReadBy};
use crate::clickhouse::WarehouseError;
use crate::clickhouse::error_class::{ErrorClass, classify_content, is_missing, is_s3_away};
use crate::formats::{FormatId, Kind};
use crate::ledger::protocol::ClaimStatus;
use crate::object::{ObjectId, ObjectRef};
use crate::s3::{Plain, StoreError, broken};
use crate::statements::s3_source::{KeyAddressing, addressing};

/// The number of objects whose structure is looked up at the same time.
const LOOKED_UP_AT_ONCE: usize = 16;
/// The number of layouts that are cached, and that of all their columns.
const CACHED: usize = 4096;
const CACHED_COLUMNS: usize = 128 * 1024;
/// The bytes at the beginning of an object within which its header, or its schema, must end.
const START_BYTES: u64 = 256 * 1024;
/// The bytes at the end of an object that are read for its schema, and sent with a query.
const END_BYTES: u64 = 4 << 20;
/// How a Parquet file begins. Its schema is at its end.
const PARQUET_MAGIC: &[u8] = b"PAR1";

/// The layouts that were looked up last. A retry, or a part of a batch, does not ask again.
#[derive(Debug, Default)]
pub(super) struct Layouts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    layouts: HashMap<(FormatId, ObjectId), Layout>,
    /// The keys of the layouts, the oldest first.
    order: VecDeque<(FormatId, ObjectId)>,
    /// The number of columns of all layouts.
    columns: usize,
}

impl Layouts {
    fn known(&self, format: FormatId, object: ObjectId) -> Option<Layout> {
        self.state().layouts.get(&(format, object)).cloned()
    }

    /// Remembers the layout of an object, unless it is that of an empty one: an object that is being
    /// replaced can seem to be empty.
    fn learn(&self, format: FormatId, object: ObjectId, layout: &Layout) {
        if layout.structure.is_empty() {
            return;
        }
        let (mut state, key) = (self.state(), (format, object));
        if state.layouts.contains_key(&key) {
            return;
        }
        state.columns += layout.structure.len();
        state.layouts.insert(key, layout.clone());
        state.order.push_back(key);
        while state.order.len() > CACHED || state.columns > CACHED_COLUMNS {
            let Some(oldest) = state.order.pop_front() else {
                break;
            };
            state.remove(oldest);
        }
    }

    /// Forgets the layout of an object that is not what was announced: another version of it may
    /// have been looked up.
    pub(super) fn forget(&self, format: FormatId, object: ObjectId) {
        let (mut state, key) = (self.state(), (format, object));
        state.order.retain(|other| *other != key);
        state.remove(key);
    }

    fn state(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn remove(&mut self, key: (FormatId, ObjectId)) {
        if let Some(layout) = self.layouts.remove(&key) {
            self.columns -= layout.structure.len();
        }
    }
}

impl<P: Ports> Loader<P> {
    pub(super) fn kind(&self, format: FormatId) -> &Kind {
        &self.planner().catalog().formats().get(format).kind
    }

    /// Returns the layout of all objects of a format, or `None` if each object has its own.
    pub(super) fn layout_of_all(&self, format: FormatId) -> Option<Arc<Layout>> {
        self.planner().layout_of(format).map(Arc::new)
    }

    /// Plans how to load objects of a format other than JSON lines.
    pub(super) fn plan_format(
        &self,
        format: FormatId,
        items: Vec<PendingObject>,
        progress: &mut Progress,
    ) {
        let unit = |items, read_by| WorkUnit {
            format,
            layout: self.layout_of_all(format),
            ..WorkUnit::new(items, read_by)
        };
        let is_alone = self.kind(format).is_alone();
        let mut listed = Vec::new();
        for item in items {
            match (addressing(&item.object.key), self.config.fallback) {
                (_, Fallback::Always) | (KeyAddressing::Unaddressable, Fallback::Auto) => {
                    self.stream(unit(vec![item], ReadBy::Stream), progress);
                }
                (KeyAddressing::Unaddressable, Fallback::Never) => {
                    progress.fail(item, FailureCause::Unnameable);
                }
                (KeyAddressing::Globbable, _) if !is_alone => listed.push(item),
                (KeyAddressing::Globbable | KeyAddressing::Single, _) => {
                    progress.work.push(unit(vec![item], ReadBy::S3));
                }
            }
        }
        if !listed.is_empty() {
            progress.work.push(unit(listed, ReadBy::S3));
        }
    }

    /// Has the worker stream these objects. Those of another format than JSON lines are streamed
    /// one at a time: nothing separates them in a body.
    pub(super) fn stream(&self, mut work: WorkUnit, progress: &mut Progress) {
        let items = std::mem::take(&mut work.items);
        if self.kind(work.format).is_json_lines() {
            progress.work.push(WorkUnit::new(items, ReadBy::Stream));
            return;
        }
        for item in items {
            match self.unstreamable(work.format, &item.object) {
                Some(cause) => progress.fail(item, cause),
                None => progress.work.push(work.part(vec![item], ReadBy::Stream)),
            }
        }
    }

    /// Returns why an object cannot be streamed, if ClickHouse would keep too much of it in memory.
    fn unstreamable(&self, format: FormatId, object: &ObjectRef) -> Option<FailureCause> {
        let kind = self.kind(format);
        if kind.can_be_streamed_whole() {
            return None;
        }
        let mut max = self.config.max_buffered_bytes;
        if *kind == Kind::Orc {
            // Its structure can be determined only from all of it.
            max = max.min(END_BYTES);
        }
        let is_too_large = object.size.is_some_and(|size| size > max);
        is_too_large.then(|| FailureCause::Unstreamable {
            object: object.clone(),
            kind: kind.title(),
            max,
        })
    }

    /// Looks up the layouts of these objects, and adds a unit of work for each layout.
    pub(super) async fn resolve(
        &self,
        mut work: WorkUnit,
        cancel: &CancellationToken,
        progress: &mut Progress,
    ) {
        let items = std::mem::take(&mut work.items);
        // The structure of an object belongs to one version of it.
        let items = match self.with_versions(items, work.read_by, cancel).await {
            Ok(items) => items,
            Err(RefreshError { items, cause }) => {
                progress.fall_back(work.with(items, None), &cause);
                return;
            }
        };
        let mut lookups = Vec::new();
        for item in &items {
            lookups.push(self.layout_of(work.format, work.read_by, &item.object, cancel));
        }
        let found: Vec<_> = stream::iter(lookups)
            .buffered(LOOKED_UP_AT_ONCE)
            .collect()
            .await;
        let mut groups: BTreeMap<Layout, Vec<PendingObject>> = BTreeMap::new();
        for (item, found) in items.into_iter().zip(found) {
            match found {
                Ok(Ok(layout)) => groups.entry(layout).or_default().push(item),
                Ok(Err(why)) => match self.settled_elsewhere(&item, cancel).await {
                    Ok(Some(outcome)) => progress.settle(&[item], &outcome),
                    Ok(None) => {
                        let alone = work.with(vec![item], None);
                        self.try_otherwise(alone, why, false, cancel, progress)
                            .await;
                    }
                    Err(Cancelled) => progress.settle(&[item], &Outcome::Abandoned),
                },
                Err(Cancelled) => progress.settle(&[item], &Outcome::Abandoned),
            }
        }
        for (layout, items) in groups {
            let layout = Some(Arc::new(layout));
            progress.work.push(work.with(items, layout));
        }
    }

    /// Returns the outcome of an object that another batch has loaded, or is loading: it need not
    /// exist any more. Recovers a batch whose lease has expired.
    async fn settled_elsewhere(
        &self,
        item: &PendingObject,
        cancel: &CancellationToken,
    ) -> Result<Option<Outcome>, Cancelled> {
        let claim = item.claim();
        let id = claim.object.id();
        let superseded: Vec<_> = claim.supersedes.iter().map(|batch| (id, *batch)).collect();
        loop {
            let statuses = self.look_up(&[id], &superseded, cancel).await;
            match statuses.ok_or(Cancelled)?.first() {
                Some(ClaimStatus::Loaded) => return Ok(Some(Outcome::Duplicate)),
                Some(ClaimStatus::Busy {
                    batch,
                    lease_expired: true,
                }) => self.recover(*batch, cancel).await?,
                Some(ClaimStatus::Busy { .. }) => return Ok(Some(Outcome::Busy)),
                Some(ClaimStatus::Free) | None => return Ok(None),
            }
        }
    }

    /// Returns the layout of an object, or why it must be loaded in another way or fails.
    async fn layout_of(
        &self,
        format: FormatId,
        read_by: ReadBy,
        object: &ObjectRef,
        cancel: &CancellationToken,
    ) -> Result<Result<Layout, BatchFailure>, Cancelled> {
        let known = &self.state.layouts;
        if let Some(layout) = known.known(format, object.id()) {
            return Ok(Ok(layout));
        }
        let found = self.structure(format, read_by, object, cancel).await?;
        let (class, cause) = match found {
            Ok(Ok(layout)) => {
                known.learn(format, object.id(), &layout);
                return Ok(Ok(layout));
            }
            Ok(Err(problem)) => {
                let object = object.clone();
                let cause = FailureCause::Structure { object, problem };
                (ErrorClass::ObjectFault, cause)
            }
            Err(BatchFailure { class, cause }) => (class, cause),
        };
        if class != ErrorClass::ObjectFault || is_of_missing(&cause) {
            return Ok(Err(BatchFailure { class, cause }));
        }
        Ok(Err(self.unreadable(format, read_by, object, cause).await))
    }

    /// Returns the failure of an object whose content cannot be read as what it is declared as.
    async fn unreadable(
        &self,
        format: FormatId,
        read_by: ReadBy,
        object: &ObjectRef,
        cause: FailureCause,
    ) -> BatchFailure {
        let may_stream = read_by == ReadBy::S3 && self.config.fallback != Fallback::Never;
        if may_stream && self.parts.store.is_misnamed(object, Plain::Anything).await == Ok(true) {
            let cause = FailureCause::Misnamed(object.clone());
            return BatchFailure::new(ErrorClass::Stream, cause);
        }
        let problem = cause.to_string();
        let wrong = self.wrong_file(format, read_by, object, &problem).await;
        BatchFailure::object_fault(wrong.unwrap_or(cause))
    }

    /// Returns the structure of an object, or what is wrong with it, or why it cannot be read.
    /// Retries until the reader responds.
    async fn structure(
        &self,
        format: FormatId,
        read_by: ReadBy,
        object: &ObjectRef,
        cancel: &CancellationToken,
    ) -> Result<Result<Result<Layout, String>, BatchFailure>, Cancelled> {
        let tries = AtomicU32::new(0);
        self.retry_until_ok(cancel, || async {
            let found = match read_by {
                ReadBy::Stream => self.structure_by_worker(format, object).await,
                _ => self.parts.tables.structure(format, object).await,
            };
            let error = match found {
                Ok(found) => return Ok(Ok(found)),
                Err(error) => error,
            };
            let tries = tries.fetch_add(1, Ordering::Relaxed);
            match self.refusal(object, read_by, &error, tries, cancel).await {
                Some(class) => Ok(Err(BatchFailure::new(class, error))),
                None => Err(error),
            }
        })
        .await
    }

    /// Returns the class of an error that concerns this object alone, or `None` if the look-up must
    /// be repeated.
    async fn refusal(
        &self,
        object: &ObjectRef,
        read_by: ReadBy,
        error: &WarehouseError,
        tries: u32,
        cancel: &CancellationToken,
    ) -> Option<ErrorClass> {
        let class = classify_content(error);
        let has_retried = tries >= MAX_RETRIES;
        let is_of_one = match class {
            ErrorClass::ObjectFault | ErrorClass::Changed => true,
            ErrorClass::Stream | ErrorClass::Denied if read_by != ReadBy::Stream => {
                if self.worker_reads(object).await {
                    return Some(ErrorClass::Stream);
                }
                class == ErrorClass::Denied
                    && self.reads_others(object, read_by, error, cancel).await
            }
            ErrorClass::Denied => {
                // Where the worker reads only what ClickHouse cannot, it may lack permissions on
                // purpose.
                self.config.fallback != Fallback::Always
                    || self.reads_others(object, read_by, error, cancel).await
            }
            // As after an insert, the worker reads what ClickHouse cannot reach.
            ErrorClass::Retry if is_s3_away(error) => {
                let may_stream = has_retried && read_by != ReadBy::Stream;
                let streams = may_stream && self.worker_reads(object).await;
                return streams.then_some(ErrorClass::Stream);
            }
            // A limit of one statement, which so small a one exceeds only because of the object.
            ErrorClass::Retry | ErrorClass::TooLarge if error.code().is_some() => {
                let is_at_fault = has_retried && self.others_succeed(object, read_by, cancel).await;
                return is_at_fault.then_some(ErrorClass::ObjectFault);
            }
            _ => false,
        };
        is_of_one.then_some(class)
    }

    /// Returns whether a blank line can be loaded, and whether ClickHouse reads another object, if
    /// there is one.
    async fn others_succeed(
        &self,
        object: &ObjectRef,
        read_by: ReadBy,
        cancel: &CancellationToken,
    ) -> bool {
        if self.load_sample().await.is_err() {
            return false;
        }
        if read_by == ReadBy::Stream {
            return true;
        }
        let another = self.read_another(object, cancel).await;
        matches!(another, Ok(None | Some(Ok(()))))
    }

    /// Returns whether the worker may read the object and can, or learns from S3 that it does not
    /// exist.
    async fn worker_reads(&self, object: &ObjectRef) -> bool {
        if self.config.fallback == Fallback::Never {
            return false;
        }
        match self.parts.store.head(object).await {
            Ok(_) => true,
            Err(error) => error.is_missing(),
        }
    }

    async fn reads_others(
        &self,
        object: &ObjectRef,
        read_by: ReadBy,
        error: &WarehouseError,
        cancel: &CancellationToken,
    ) -> bool {
        let others = self.can_read_others(object, read_by, error, cancel);
        matches!(others.await, Ok(true))
    }

    /// Returns the structure of an object that ClickHouse does not read: the worker sends the part
    /// that shows it.
    async fn structure_by_worker(
        &self,
        format: FormatId,
        object: &ObjectRef,
    ) -> Result<Result<Layout, String>, WarehouseError> {
        let part = match self.kind(format) {
            Kind::Parquet | Kind::Orc => self.end_of(format, object).await?,
            _ => self.start_of(object, START_BYTES).await?,
        };
        self.parts.tables.structure_of_part(format, &part).await
    }

    /// Returns the first bytes of the decompressed content.
    async fn start_of(&self, object: &ObjectRef, bytes: u64) -> Result<Vec<u8>, StoreError> {
        let content = self.parts.store.open(object, Plain::Anything).await?;
        let mut start = Vec::new();
        let read = content.take(bytes).read_to_end(&mut start).await;
        read.map_err(|error| broken(object, &error))?;
        Ok(start)
    }

    /// Returns what has the same structure as a file with this end.
    async fn end_of(&self, format: FormatId, object: &ObjectRef) -> Result<Vec<u8>, StoreError> {
        let end = self.parts.store.end(object, END_BYTES).await?;
        let is_whole = (end.len() as u64) < END_BYTES || object.size == Some(END_BYTES);
        if is_whole || *self.kind(format) != Kind::Parquet {
            return Ok(end);
        }
        Ok([PARQUET_MAGIC, &end].concat())
    }
}

fn is_of_missing(cause: &FailureCause) -> bool {
    matches!(cause, FailureCause::Answer(error) if is_missing(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::fixtures::object;

    #[test]
    fn the_layouts_that_were_looked_up_last_are_known() {
        let layouts = Layouts::default();
        let format = FormatId::JSON_LINES;
        let id = |number: usize| object("b", &number.to_string(), "e").id();
        let layout = |number: usize| layout(number, 1);
        for number in 0..=CACHED {
            layouts.learn(format, id(number), &layout(number));
            // A look-up that was repeated does not count twice.
            layouts.learn(format, id(number), &layout(number));
        }
        assert_eq!(layouts.known(format, id(0)), None);
        for number in [1, CACHED] {
            assert_eq!(layouts.known(format, id(number)), Some(layout(number)));
        }
        // Another version of the object may have been looked up.
        layouts.forget(format, id(1));
        assert_eq!(layouts.known(format, id(1)), None);
        layouts.learn(format, id(1), &layout(2));
        assert_eq!(layouts.known(format, id(1)), Some(layout(2)));
    }

    fn layout(number: usize, columns: usize) -> Layout {
        let column = ("a".to_owned(), "Int64".to_owned());
        Layout {
            format: number.to_string(),
            structure: vec![column; columns],
        }
    }

    #[test]
    fn layouts_of_many_columns_are_few() {
        let layouts = Layouts::default();
        let format = FormatId::JSON_LINES;
        let id = |number: usize| object("b", &number.to_string(), "e").id();
        let learn = |number, columns| layouts.learn(format, id(number), &layout(number, columns));
        let is_known = |number| layouts.known(format, id(number)).is_some();
        learn(0, CACHED_COLUMNS / 2);
        learn(1, CACHED_COLUMNS / 2);
        assert!(is_known(0) && is_known(1));
        learn(2, 1);
        assert!(!is_known(0) && is_known(1) && is_known(2));
        learn(3, CACHED_COLUMNS + 1);
        assert!(!is_known(2) && !is_known(3));
        learn(4, 0);
        assert!(!is_known(4), "an empty object");
    }
}
