//! What an error, or what an insert has brought, means for the objects of a batch.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;

use super::BatchRun;
use crate::batch::{Fallback, ReadBy};
use crate::clickhouse::error_class::{ErrorClass, classify, is_s3_away, is_too_large};
use crate::clickhouse::failing_view::failing_view;
use crate::ledger::drive::Inserted;
use crate::load::breaker::Scope;
use crate::load::cause::{BatchFailure, FailureCause, culprit};
use crate::load::ports::{BatchTables, ObjectStore, Ports};
use crate::statements::select::{BLANK, Target};

use crate::clickhouse::WarehouseError;
use crate::load::{
    Cancelled, MAX_FAILURES_ALONE, MAX_RETRIES, MAX_RETRIES_ALONE, MAX_RETRIES_OF_A_PART,
};
use crate::object::{Compression, ObjectRef};
use crate::telemetry::metrics;

/// Who is to blame for a failed insert.
enum Blame {
    /// The objects: others can be loaded.
    Objects,
    /// The server: others fail, too, and how.
    Server(WarehouseError),
    /// Nobody can tell: there is nothing to compare with.
    Unknown,
}

impl<P: Ports> BatchRun<'_, P> {
    /// What the error means for this batch, here and now.
    pub(super) async fn diagnose(&self, error: &WarehouseError) -> Result<ErrorClass, Cancelled> {
        let class = classify(error);
        if matches!(class, ErrorClass::Replay | ErrorClass::ObjectFault)
            && failing_view(error).is_some()
        {
            return Ok(ErrorClass::View);
        }
        if self.is_unreadable(class, error) && self.worker_can_read(error).await {
            return Ok(ErrorClass::Stream);
        }
        match class {
            ErrorClass::Denied => self.attribute_denial(error).await,
            ErrorClass::Stream => Ok(ErrorClass::Halt),
            ErrorClass::ObjectFault => Ok(self.object_fault().await),
            class => Ok(class),
        }
    }

    /// A user's view has failed the insert. Several objects are tried in parts. One alone is at
    /// fault if others came through the view: in this load, or before it while no other object fails
    /// like it. Else the view fails for all: intake pauses.
    pub(super) async fn view_failed(
        &mut self,
        error: &WarehouseError,
    ) -> Result<Inserted, Cancelled> {
        let loader = self.loader;
        self.retries += 1;
        if self.retries <= MAX_RETRIES_OF_A_PART {
            loader.note_failure(error, Scope::Inserts).await;
            loader.pause(self.retries, self.cancel).await?;
            return Ok(Inserted::Unknown);
        }
        let is_at_fault = match (self.items.as_slice(), failing_view(error)) {
            ([alone], Some(failing)) => {
                self.retry_policy.may_wait
                    || loader
                        .state
                        .views
                        .has_passed_since(&self.passed_before, &failing)
                    || loader.state.views.failed_alone(&failing, alone.object.id()) == 1
                        && self
                            .ledger_call(|| loader.parts.tables.has_passed(&failing))
                            .await?
            }
            _ => true,
        };
        if !is_at_fault {
            self.halt(error);
            return Ok(Inserted::Unknown);
        }
        // Sluice's own tables can have all rows, and the view's none.
        self.rollback_only = true;
        Ok(self.at_fault(error, ErrorClass::View, FailureCause::View))
    }

    /// An object is at fault. Alone, it may be one that the worker reads all the same.
    pub(super) async fn object_fault(&self) -> ErrorClass {
        match self.items.as_slice() {
            [alone] if self.is_misnamed(&alone.object).await => ErrorClass::Stream,
            _ => ErrorClass::ObjectFault,
        }
    }

    fn may_stream(&self) -> bool {
        self.form.read_by == ReadBy::S3 && self.loader.config.fallback != Fallback::Never
    }

    /// ClickHouse goes by the name; the worker looks at the first bytes.
    async fn is_misnamed(&self, object: &ObjectRef) -> bool {
        self.may_stream()
            && self
                .loader
                .parts
                .store
                .is_misnamed(object)
                .await
                .unwrap_or(false)
    }

    /// Whether ClickHouse, as it seems, cannot read the whole of this batch. Of many objects one
    /// alone may be refused: it is set apart first.
    fn is_unreadable(&self, class: ErrorClass, error: &WarehouseError) -> bool {
        let whole = self.items.len() == 1 || self.retry_policy.max_retries < MAX_RETRIES;
        match class {
            ErrorClass::Stream => true,
            ErrorClass::Denied => whole,
            ErrorClass::Replay => {
                whole && is_s3_away(error) && self.retries >= self.retry_policy.max_retries
            }
            _ => false,
        }
    }

    /// Whether S3 shows the worker what it does not show ClickHouse, or tells it that it is gone.
    async fn worker_can_read(&self, error: &WarehouseError) -> bool {
        if !self.may_stream() {
            return false;
        }
        let objects = self.items.iter().map(|item| &item.object);
        let culprit = culprit(error, objects).unwrap_or(0);
        match self
            .loader
            .parts
            .store
            .head(&self.items[culprit].object)
            .await
        {
            Ok(_) => true,
            Err(error) => error.is_missing(),
        }
    }

    /// S3 refused an object: among others it is set apart; alone it is at fault if others can be
    /// read.
    async fn attribute_denial(&self, error: &WarehouseError) -> Result<ErrorClass, Cancelled> {
        let [alone] = self.items.as_slice() else {
            return Ok(ErrorClass::Denied);
        };
        // The worker need not have rights, where it reads only what ClickHouse cannot.
        if self.form.read_by == ReadBy::Stream && self.loader.config.fallback != Fallback::Always {
            return Ok(ErrorClass::Denied);
        }
        let readable = self
            .loader
            .can_read_others(&alone.object, self.form.read_by, error, self.cancel)
            .await?;
        Ok(if readable {
            ErrorClass::Denied
        } else {
            ErrorClass::Halt
        })
    }

    /// The objects need more than one insert may take. Several are tried in parts, and one alone in
    /// many blocks; one that needs too much even then has failed, unless the limit lets nothing pass.
    pub(super) async fn too_large(
        &mut self,
        error: &WarehouseError,
    ) -> Result<Inserted, Cancelled> {
        if self.items.len() == 1
            && self.form.many_blocks
            && let Err(of_sample) = self.sample().await?
        {
            self.halt(&of_sample);
            return Ok(Inserted::Unknown);
        }
        Ok(self.at_fault(error, ErrorClass::TooLarge, FailureCause::TooLarge))
    }

    /// An error that blames nobody by itself, or the server for now. Either it passes, or the
    /// objects are at fault, or the server is: which of these, other loads tell.
    pub(super) async fn unexplained(
        &mut self,
        class: ErrorClass,
        error: &WarehouseError,
    ) -> Result<Inserted, Cancelled> {
        let mut pause_for = (class == ErrorClass::Overload).then(|| error.clone());
        // The same body will not be smaller.
        let is_final = is_too_large(error);
        if is_final || self.retries >= self.retry_policy.max_retries {
            match self.blame(class, error).await? {
                Blame::Objects => {
                    self.failures_alone += 1;
                    let enough = self.items.len() > 1 || self.failures_alone >= MAX_FAILURES_ALONE;
                    if is_final || enough {
                        return Ok(self.give_up(error).await);
                    }
                }
                Blame::Server(why) => pause_for = Some(why),
                // Others get the turn: what becomes of them tells more.
                Blame::Unknown if self.retry_policy.may_wait => {
                    self.failure = Some(BatchFailure::new(ErrorClass::Replay, error.clone()));
                    return Ok(Inserted::ObjectFault);
                }
                Blame::Unknown if is_s3_away(error) => {}
                // Nothing else comes while intake is paused.
                Blame::Unknown if self.retries >= MAX_RETRIES_ALONE => {
                    return Ok(self.give_up(error).await);
                }
                Blame::Unknown => pause_for = Some(error.clone()),
            }
        }
        if let Some(why) = pause_for {
            self.halt(&why);
        } else {
            self.retries += 1;
            self.loader.note_failure(error, Scope::Inserts).await;
            self.loader.pause(self.retries, self.cancel).await?;
        }
        Ok(Inserted::Unknown)
    }

    /// The objects are not loaded like this. Whatever pauses intake is not over by that.
    async fn give_up(&mut self, error: &WarehouseError) -> Inserted {
        let fault = self.object_fault().await;
        metrics::clickhouse_error(error.code(), fault);
        self.failure = Some(BatchFailure::new(fault, error.clone()));
        Inserted::ObjectFault
    }

    /// The server has told what is wrong with the objects: it does inserts.
    pub(super) fn at_fault(
        &mut self,
        error: &WarehouseError,
        fault: ErrorClass,
        cause: impl FnOnce(WarehouseError) -> FailureCause,
    ) -> Inserted {
        self.answered();
        metrics::clickhouse_error(error.code(), fault);
        self.failure = Some(BatchFailure::new(fault, cause(error.clone())));
        Inserted::ObjectFault
    }

    /// Finds out who is to blame for an error that does not say it.
    async fn blame(
        &mut self,
        class: ErrorClass,
        error: &WarehouseError,
    ) -> Result<Blame, Cancelled> {
        let successes = self.loader.state.successes.load(Ordering::Relaxed);
        let have_others = successes > self.successes_before;
        self.successes_before = successes;
        if have_others {
            return Ok(Blame::Objects);
        }
        if class == ErrorClass::Overload {
            // Small statements say nothing of it. Less at a time may pass.
            let are_several = self.items.len() > 1;
            return Ok(if are_several {
                Blame::Objects
            } else {
                Blame::Unknown
            });
        }
        // The sample does not ask S3.
        if !is_s3_away(error)
            && let Err(of_sample) = self.sample().await?
        {
            return Ok(Blame::Server(of_sample));
        }
        let [alone] = self.items.as_slice() else {
            // To try them in parts does no harm.
            return Ok(Blame::Objects);
        };
        if is_s3_away(error) {
            // It is nobody's fault, however long.
            return Ok(Blame::Unknown);
        }
        if self.form.read_by != ReadBy::S3 {
            return Ok(Blame::Objects);
        }
        let read = self.loader.read_another(&alone.object, self.cancel).await?;
        Ok(match read {
            Some(Ok(())) => Blame::Objects,
            Some(Err(of_other)) => Blame::Server(of_other),
            None => Blame::Unknown,
        })
    }

    async fn sample(&self) -> Result<Result<(), WarehouseError>, Cancelled> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Cancelled),
            loaded = self.loader.load_sample() => Ok(loaded),
        }
    }

    /// Returns an object that has bytes and of which no line came, not even a blank one: ClickHouse
    /// read something else under its name, or nothing, and did not say so.
    pub(super) async fn unread(&self) -> Option<BatchFailure> {
        let paths: HashSet<&str> = self.read.iter().map(|it| it.source_path.as_str()).collect();
        let unread: Vec<&ObjectRef> = self
            .objects()
            .into_iter()
            .filter(|object| object.size != Some(0) && !paths.contains(object.path().as_str()))
            .collect();
        // Nothing, compressed, has bytes too.
        let (plain, doubtful): (Vec<_>, Vec<_>) = unread.into_iter().partition(|object| {
            object.size.is_some() && Compression::of(&object.key) == Compression::None
        });
        let unread = match plain.first() {
            Some(plain) => Ok(Some(*plain)),
            None => self.with_content(&doubtful).await,
        };
        let cause = match unread {
            Ok(unread) => FailureCause::Unread(unread?.clone()),
            Err(error) => return Some(BatchFailure::new(ErrorClass::Changed, error)),
        };
        // Alone, it is first looked at again: it may be empty by now.
        let class = if self.items.len() == 1 {
            ErrorClass::Changed
        } else {
            ErrorClass::ObjectFault
        };
        Some(BatchFailure::new(class, cause))
    }

    /// Returns an object, of these, that is not empty once it is decompressed.
    async fn with_content<'o>(
        &self,
        objects: &[&'o ObjectRef],
    ) -> Result<Option<&'o ObjectRef>, WarehouseError> {
        if objects.is_empty() {
            return Ok(None);
        }
        if self.form.read_by == ReadBy::Stream {
            for object in objects {
                if !self.loader.parts.store.is_empty(object).await? {
                    return Ok(Some(object));
                }
            }
            return Ok(None);
        }
        let paths = self.loader.parts.tables.with_lines(objects).await?;
        let is_read = |object: &&&ObjectRef| paths.contains(&object.path());
        Ok(objects.iter().find(is_read).copied())
    }

    /// An object that was read as lines of text, and is compressed.
    pub(super) async fn misnamed(&self) -> Result<Option<BatchFailure>, Cancelled> {
        let rejected = Target::RejectedLines;
        let has_any = self
            .read
            .iter()
            .any(|row| rejected.kind() == Some(&row.kind));
        if !has_any || !self.may_stream() {
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

    /// An object of which a larger part was rejected than is allowed.
    pub(super) fn too_many_rejected(&self) -> Option<BatchFailure> {
        // A merge may have collapsed the rows that are replaced into these: they must not go.
        if self.replaces() {
            return None;
        }
        let max = self.loader.config.max_rejected_ratio;
        let mut lines: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for row in self.read.iter().filter(|row| row.kind != BLANK) {
            let (all, rejected) = lines.entry(&row.source_path).or_default();
            *all += row.rows;
            if Target::RejectedLines.kind() == Some(&row.kind) {
                *rejected += row.rows;
            }
        }
        let (path, (lines, rejected)) = lines
            .into_iter()
            .find(|(_, (all, rejected))| *rejected as f64 > *all as f64 * max)?;
        Some(BatchFailure::object_fault(FailureCause::Rejected {
            path: path.to_owned(),
            rejected,
            lines,
            max,
        }))
    }
}
