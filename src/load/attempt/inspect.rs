//! What the rows of an insert show about its objects.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::BatchRun;
use crate::batch::ReadBy;
use crate::clickhouse::WarehouseError;
use crate::clickhouse::batch_rows::RejectedRecord;
use crate::clickhouse::error_class::{ErrorClass, classify, is_missing};
use crate::formats::{FormatId, Kind, OnAllRejected};
use crate::load::Cancelled;
use crate::load::cause::{BatchFailure, FailureCause};
use crate::load::ports::{BatchTables, ObjectStore, Ports};
use crate::load::progress::Proof;
use crate::object::{Compression, ObjectRef};
use crate::s3::Plain;
use crate::statements::select::{BLANK, Target, no_list};

/// The number of records of an object, without blank ones, and of those that are rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Records {
    all: u64,
    rejected: u64,
}

impl<P: Ports> BatchRun<'_, P> {
    /// Returns the failure of an object that is not empty but of which no line arrived, not even a
    /// blank one: without an error, ClickHouse read something else under its name, or nothing.
    ///
    /// An object of another format can have no record: then it suffices that ClickHouse finds it.
    pub(super) async fn unread(&self) -> Result<Option<BatchFailure>, Cancelled> {
        if !self.layout.is_json_lines() {
            return self.not_found().await;
        }
        let unread = self.without_rows();
        // Empty content also has bytes once it is compressed.
        let (plain, doubtful): (Vec<_>, Vec<_>) = unread.into_iter().partition(|object| {
            object.size.is_some() && Compression::of(&object.key) == Compression::None
        });
        let unread = match plain.first() {
            Some(plain) => Ok(Some(*plain)),
            None => self.answer(|| self.with_content(&doubtful)).await?,
        };
        Ok(match unread {
            Ok(None) => None,
            Ok(Some(object)) => Some(self.not_read(object)),
            Err(error) => Some(BatchFailure::new(ErrorClass::Changed, error)),
        })
    }

    /// Returns the failure of an object without records that ClickHouse does not find as it was
    /// claimed: no row of it shows that it has been replaced.
    async fn not_found(&self) -> Result<Option<BatchFailure>, Cancelled> {
        if self.shape.read_by != ReadBy::S3 {
            return Ok(None);
        }
        let unread = self.without_rows();
        if unread.is_empty() {
            return Ok(None);
        }
        let tables = &self.loader.parts.tables;
        let found = match self.answer(|| tables.head(&unread)).await? {
            Ok(found) => found,
            Err(error) => return Ok(Some(BatchFailure::new(ErrorClass::Changed, error))),
        };
        let is_found = |object: &ObjectRef| {
            let present = found.iter().find(|(path, _)| *path == object.path());
            present
                .is_some_and(|(_, present)| object.etag.is_empty() || present.etag == object.etag)
        };
        let missing = unread.into_iter().find(|object| !is_found(object));
        Ok(missing.map(|object| self.not_read(object)))
    }

    /// Returns the objects that are not empty but of which no row arrived.
    fn without_rows(&self) -> Vec<&ObjectRef> {
        let paths: HashSet<&str> = self.read.iter().map(|it| it.source_path.as_str()).collect();
        let mut objects = self.objects();
        objects.retain(|object| object.size != Some(0) && !paths.contains(object.path().as_str()));
        objects
    }

    /// Returns the failure of an object that was not read. A single one is refreshed first: it may
    /// have become empty.
    fn not_read(&self, object: &ObjectRef) -> BatchFailure {
        let class = if self.items.len() == 1 {
            ErrorClass::Changed
        } else {
            ErrorClass::ObjectFault
        };
        BatchFailure::new(class, FailureCause::Unread(object.clone()))
    }

    /// Asks about objects again and again while ClickHouse or S3 cannot be reached, and returns the
    /// answer, or the first other error.
    async fn answer<T, F>(
        &self,
        mut work: impl FnMut() -> F,
    ) -> Result<Result<T, WarehouseError>, Cancelled>
    where
        F: Future<Output = Result<T, WarehouseError>>,
    {
        self.ledger_call(|| {
            let work = work();
            async {
                match work.await {
                    Err(error) if !is_outage(&error) => Ok(Err(error)),
                    answer => answer.map(Ok),
                }
            }
        })
        .await
    }

    /// Returns one of these objects that is not empty when decompressed.
    async fn with_content<'o>(
        &self,
        objects: &[&'o ObjectRef],
    ) -> Result<Option<&'o ObjectRef>, WarehouseError> {
        if objects.is_empty() {
            return Ok(None);
        }
        if self.shape.read_by == ReadBy::Stream {
            let store = &self.loader.parts.store;
            for object in objects {
                if !store.is_empty(object, Plain::JsonLines).await? {
                    return Ok(Some(object));
                }
            }
            return Ok(None);
        }
        let paths = self.loader.parts.tables.with_lines(objects).await?;
        let is_read = |object: &&&ObjectRef| paths.contains(&object.path());
        Ok(objects.iter().find(is_read).copied())
    }

    /// Returns the failure of an object that is compressed but was read as lines of text.
    pub(super) async fn misnamed(&self) -> Result<Option<BatchFailure>, Cancelled> {
        let rejected = Target::RejectedLines;
        let has_any = self
            .read
            .iter()
            .any(|row| rejected.kind() == Some(&row.kind));
        if !has_any || !self.may_stream() || !self.layout.is_json_lines() {
            return Ok(None);
        }
        let tables = &self.loader.parts.tables;
        let found = self
            .ledger_call(|| tables.compressed_line(self.batch))
            .await?;
        let Some(source_path) = found else {
            return Ok(None);
        };
        let objects = self.objects();
        let object = objects.iter().find(|object| object.path() == source_path);
        Ok(match object {
            Some(object) if self.is_misnamed(object).await => {
                let cause = FailureCause::Misnamed((*object).clone());
                Some(BatchFailure::new(ErrorClass::Stream, cause))
            }
            _ => None,
        })
    }

    /// Returns the failure of the objects with more rejected lines than are allowed. All of them are
    /// marked as failed, so that the others can be loaded at once.
    pub(super) fn too_many_rejected(&mut self) -> Option<BatchFailure> {
        // A merge may have collapsed the superseded rows into these, so they must not be deleted.
        if self.replaces() {
            return None;
        }
        let max = self.loader.config.max_rejected_ratio;
        let found =
            self.with_records(|_, records| records.rejected as f64 > records.all as f64 * max);
        let mut first = None;
        for (index, Records { all, rejected }) in found {
            let cause = FailureCause::Rejected {
                path: self.items[index].object.path(),
                rejected,
                lines: all,
                max,
            };
            self.items[index].proof = Proof::Failed(cause.clone());
            first.get_or_insert(cause);
        }
        first.map(BatchFailure::object_fault)
    }

    /// Returns the failure of the objects of which every record is rejected, if such objects fail.
    /// All of them are marked as failed. An object without records never fails.
    pub(super) async fn all_rejected(&mut self) -> Result<Option<BatchFailure>, Cancelled> {
        // A merge may have collapsed the superseded rows into these, so they must not be deleted.
        if self.replaces() {
            return Ok(None);
        }
        let found = self.with_records(|object, records| {
            let is_all = records.rejected > 0 && records.rejected == records.all;
            is_all && self.fails_if_all_is_rejected(object)
        });
        if found.is_empty() {
            return self.without_list().await;
        }
        let mut first = None;
        for (index, records) in found {
            let object = self.items[index].object.clone();
            if !self.layout.is_json_lines() && self.is_misnamed(&object).await {
                let cause = FailureCause::Misnamed(object);
                return Ok(Some(BatchFailure::new(ErrorClass::Stream, cause)));
            }
            let cause = self.rejected_as_a_whole(&object, records.rejected).await?;
            self.items[index].proof = Proof::Failed(cause.clone());
            first.get_or_insert(cause);
        }
        Ok(first.map(BatchFailure::object_fault))
    }

    /// Returns the cause for an object of which every record is rejected, with the first of them.
    async fn rejected_as_a_whole(
        &self,
        object: &ObjectRef,
        records: u64,
    ) -> Result<FailureCause, Cancelled> {
        let path = object.path();
        let tables = &self.loader.parts.tables;
        let sample = self.ledger_call(|| tables.sample(self.batch, &path));
        let sample = sample.await?;
        let seen = self
            .loader
            .seen(self.format_of(object), self.shape.read_by, object);
        Ok(FailureCause::AllRejected {
            records,
            reason: sample
                .first()
                .map(|it| it.reason.clone())
                .unwrap_or_default(),
            seen: seen.await,
            sample: sample.iter().map(sampled).collect(),
            path,
        })
    }

    /// Returns the indexes of the objects for whose records this holds.
    fn with_records(&self, holds: impl Fn(&ObjectRef, Records) -> bool) -> Vec<(usize, Records)> {
        let records = self.records();
        let objects = self.items.iter().map(|item| &item.object).enumerate();
        objects
            .filter_map(|(index, object)| {
                let records = *records.get(object.path().as_str())?;
                holds(object, records).then_some((index, records))
            })
            .collect()
    }

    /// Returns the failure of a streamed object that lacks the declared list of records: where
    /// ClickHouse reads an object itself, such a document is a rejected record.
    async fn without_list(&self) -> Result<Option<BatchFailure>, Cancelled> {
        let [object] = self.objects()[..] else {
            return Ok(None);
        };
        let Kind::Documents {
            records: Some(list),
        } = self.loader.kind(self.format_of(object))
        else {
            return Ok(None);
        };
        let is_meant = self.shape.read_by == ReadBy::Stream && self.read.is_empty();
        if !is_meant || !self.fails_if_all_is_rejected(object) {
            return Ok(None);
        }
        let documents = self
            .answer(|| async { Ok(self.loader.documents(object).await?) })
            .await?;
        let documents = match documents {
            Ok(documents) => documents,
            Err(error) => return Ok(Some(BatchFailure::new(ErrorClass::Changed, error))),
        };
        // As ClickHouse does: below the first key, a list that is missing is empty.
        let has_list = |document: &Value| {
            let outer = list.first().and_then(|first| document.get(first));
            outer.is_some_and(|outer| !outer.is_null())
        };
        let cause = FailureCause::AllRejected {
            path: object.path(),
            records: documents.len() as u64,
            reason: no_list(list),
            seen: None,
            sample: Vec::new(),
        };
        Ok((!documents.iter().all(has_list)).then(|| BatchFailure::object_fault(cause)))
    }

    /// Returns the records of each object, by its path.
    fn records(&self) -> BTreeMap<&str, Records> {
        let mut of_each: BTreeMap<&str, Records> = BTreeMap::new();
        for row in self.read.iter().filter(|row| row.kind != BLANK) {
            let records = of_each.entry(&row.source_path).or_default();
            records.all += row.rows;
            if Target::RejectedLines.kind() == Some(&row.kind) {
                records.rejected += row.rows;
            }
        }
        of_each
    }

    fn fails_if_all_is_rejected(&self, object: &ObjectRef) -> bool {
        let formats = self.loader.planner().catalog().formats();
        let configured = self.loader.config.on_all_rejected;
        formats.on_all_rejected(self.format_of(object), configured) == OnAllRejected::Fail
    }

    /// Returns the format in which an object was read. Objects with JSON lines can differ in what
    /// their formats declare otherwise.
    pub(super) fn format_of(&self, object: &ObjectRef) -> FormatId {
        let planner = self.loader.planner();
        if self.layout.is_json_lines() {
            let format = planner.format_of(&object.key);
            let is_of_lines = self.loader.kind(format).is_json_lines();
            return if is_of_lines {
                format
            } else {
                FormatId::JSON_LINES
            };
        }
        let formats = planner.catalog().formats();
        formats.named(&self.layout.format).unwrap_or_default()
    }

    /// Returns what a single object is that cannot be read as its format is declared, if its
    /// content shows that. JSON lines are not looked at.
    pub(super) async fn wrong_file(
        &self,
        fault: ErrorClass,
        error: &WarehouseError,
    ) -> Option<FailureCause> {
        let [alone] = self.items.as_slice() else {
            return None;
        };
        let is_content = fault == ErrorClass::ObjectFault && !is_missing(error);
        if self.layout.is_json_lines() || !is_content {
            return None;
        }
        let format = self.format_of(&alone.object);
        let read_by = self.shape.read_by;
        let problem = error.to_string();
        self.loader
            .wrong_file(format, read_by, &alone.object, &problem)
            .await
    }

    /// Returns whether ClickHouse must keep a whole list of a document in memory.
    pub(super) fn has_lists(&self) -> bool {
        let formats = self.loader.planner().catalog().formats();
        let format = formats.named(&self.layout.format);
        let kind = format.map(|format| self.loader.kind(format));
        matches!(kind, Some(Kind::Documents { records: Some(_) }))
    }
}

/// Returns whether the error says nothing about an object.
fn is_outage(error: &WarehouseError) -> bool {
    match classify(error) {
        ErrorClass::Halt | ErrorClass::Wait | ErrorClass::Overload => true,
        ErrorClass::Retry => error.code().is_none(),
        _ => false,
    }
}

/// Returns a rejected record as it is kept with a failure.
fn sampled(record: &RejectedRecord) -> String {
    format!(
        "record {}: {}: {}",
        record.row_number, record.reason, record.start
    )
}
