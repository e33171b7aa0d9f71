//! What an error means for the objects of a batch.

use std::sync::atomic::Ordering;

use super::BatchRun;
use crate::batch::{Fallback, ReadBy};
use crate::clickhouse::error_class::{
    ErrorClass, classify, classify_content, is_s3_away, is_too_large,
};
use crate::clickhouse::failing_view::failing_view;
use crate::ledger::drive::Inserted;
use crate::load::breaker::Scope;
use crate::load::cause::{BatchFailure, FailureCause, culprit};
use crate::load::ports::{BatchTables, ObjectStore, Ports};
use crate::load::waiting::Waiting;

use crate::clickhouse::WarehouseError;
use crate::load::{
    Cancelled, MAX_FAILURES_ALONE, MAX_RETRIES, MAX_RETRIES_ALONE, MAX_RETRIES_OF_A_PART,
};
use crate::object::ObjectRef;
use crate::telemetry::metrics;

/// What is at fault for a failed insert.
enum Blame {
    /// The objects, since others can be loaded.
    Objects,
    /// The server, since others fail too, with this error.
    Server(WarehouseError),
    /// Unknown, since there is no other load to compare with.
    Unknown,
}

impl<P: Ports> BatchRun<'_, P> {
    /// Returns what the error means for this batch at this point of its run.
    pub(super) async fn diagnose(&self, error: &WarehouseError) -> Result<ErrorClass, Cancelled> {
        let class = if self.layout.is_json_lines() {
            classify(error)
        } else {
            classify_content(error)
        };
        if matches!(class, ErrorClass::Retry | ErrorClass::ObjectFault)
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

    /// Handles an insert that failed in a user's view.
    ///
    /// Several objects are loaded in parts. A single object is at fault if others passed through
    /// the view: in this load, or before it while no other object fails in the same way. Otherwise
    /// the view fails for all objects, and intake pauses.
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
        // Sluice's own tables can have all rows while the view's table has none.
        self.rollback_only = true;
        Ok(self.at_fault(error, ErrorClass::View, FailureCause::View))
    }

    /// Returns the class of a fault of the objects. A single object may be one that the worker can
    /// read although ClickHouse cannot.
    pub(super) async fn object_fault(&self) -> ErrorClass {
        match self.items.as_slice() {
            [alone] if self.is_misnamed(&alone.object).await => ErrorClass::Stream,
            _ => ErrorClass::ObjectFault,
        }
    }

    pub(super) fn may_stream(&self) -> bool {
        self.shape.read_by == ReadBy::S3 && self.loader.config.fallback != Fallback::Never
    }

    /// Returns whether the first bytes of an object contradict its name, by which ClickHouse
    /// decides how to decompress it.
    pub(super) async fn is_misnamed(&self, object: &ObjectRef) -> bool {
        if !self.may_stream() {
            return false;
        }
        let plain = self.framing().plain();
        let is_misnamed = self.loader.parts.store.is_misnamed(object, plain);
        is_misnamed.await.unwrap_or(false)
    }

    /// Returns whether ClickHouse seems unable to read any object of this batch. Of many objects,
    /// perhaps only one is refused; it is isolated first.
    fn is_unreadable(&self, class: ErrorClass, error: &WarehouseError) -> bool {
        let whole = self.items.len() == 1 || self.retry_policy.max_retries < MAX_RETRIES;
        match class {
            ErrorClass::Stream => true,
            ErrorClass::Denied => whole,
            ErrorClass::Retry => {
                whole && is_s3_away(error) && self.retries >= self.retry_policy.max_retries
            }
            _ => false,
        }
    }

    /// Returns whether the worker can read the object that ClickHouse cannot, or learns from S3
    /// that it does not exist.
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

    /// Returns the class of a refusal by S3: a denied object, which is isolated from the others, or
    /// a reason to halt. A single object is denied if others can be read.
    async fn attribute_denial(&self, error: &WarehouseError) -> Result<ErrorClass, Cancelled> {
        let [alone] = self.items.as_slice() else {
            return Ok(ErrorClass::Denied);
        };
        // Where the worker reads only what ClickHouse cannot, it may lack permissions on purpose.
        if self.shape.read_by == ReadBy::Stream && self.loader.config.fallback != Fallback::Always {
            return Ok(ErrorClass::Denied);
        }
        let readable = self
            .loader
            .can_read_others(&alone.object, self.shape.read_by, error, self.cancel)
            .await?;
        Ok(if readable {
            ErrorClass::Denied
        } else {
            ErrorClass::Halt
        })
    }

    /// Handles objects that exceed the limits of one insert. Several are loaded in parts, and a
    /// single one in many blocks. One that exceeds the limit even then has failed, unless the limit
    /// admits nothing at all.
    pub(super) async fn too_large(
        &mut self,
        error: &WarehouseError,
    ) -> Result<Inserted, Cancelled> {
        if self.items.len() == 1
            && self.shape.many_blocks
            && let Err(of_sample) = self.sample().await?
        {
            self.halt(&of_sample);
            return Ok(Inserted::Unknown);
        }
        let cause = if self.has_lists() {
            FailureCause::DocumentTooLarge
        } else {
            FailureCause::TooLarge
        };
        Ok(self.at_fault(error, ErrorClass::TooLarge, cause))
    }

    /// Handles an error that does not show what is at fault, or that reports an overloaded server.
    ///
    /// Either the error passes, or the objects or the server are at fault. Other loads decide
    /// which.
    pub(super) async fn unexplained(
        &mut self,
        class: ErrorClass,
        error: &WarehouseError,
    ) -> Result<Inserted, Cancelled> {
        let mut pause_for = (class == ErrorClass::Overload).then(|| error.clone());
        // A retry sends a body of the same size.
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
                // Others are loaded first: their outcomes reveal more.
                Blame::Unknown if self.retry_policy.may_wait => {
                    self.failure = Some(BatchFailure::new(ErrorClass::Retry, error.clone()));
                    return Ok(Inserted::ObjectFault);
                }
                Blame::Unknown if is_s3_away(error) => {}
                // While intake is paused, there are no others to compare with.
                Blame::Unknown if self.retries >= MAX_RETRIES_ALONE => {
                    return Ok(self.give_up(error).await);
                }
                Blame::Unknown => pause_for = Some(error.clone()),
            }
        }
        self.retries += 1;
        if let Some(why) = pause_for {
            self.halt(&why);
        } else {
            self.loader.note_failure(error, Scope::Inserts).await;
            self.loader.pause(self.retries, self.cancel).await?;
        }
        Ok(Inserted::Unknown)
    }

    /// Gives the objects up in their present form. This does not close the breaker.
    async fn give_up(&mut self, error: &WarehouseError) -> Inserted {
        let fault = self.object_fault().await;
        metrics::clickhouse_error(error.code(), fault);
        let wrong = self.wrong_file(fault, error).await;
        let cause = wrong.unwrap_or_else(|| error.clone().into());
        self.failure = Some(BatchFailure::new(fault, cause));
        Inserted::ObjectFault
    }

    /// Gives the objects up for a fault that the server has reported. This closes the breaker,
    /// since the server executes inserts.
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

    /// Finds out what is at fault if the error does not show it.
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
            // Small statements show nothing about an overload. A smaller batch may pass.
            let are_several = self.items.len() > 1;
            return Ok(if are_several {
                Blame::Objects
            } else {
                Blame::Unknown
            });
        }
        // The blank-line load does not use S3.
        if !is_s3_away(error)
            && let Err(of_sample) = self.sample().await?
        {
            return Ok(Blame::Server(of_sample));
        }
        let [alone] = self.items.as_slice() else {
            // Loading them in parts is harmless.
            return Ok(Blame::Objects);
        };
        if is_s3_away(error) {
            // An outage of S3 is not the fault of the objects or of ClickHouse, however long it
            // lasts.
            return Ok(Blame::Unknown);
        }
        if self.shape.read_by != ReadBy::S3 {
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
        let mut waiting = Waiting::default();
        loop {
            let loaded = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(Cancelled),
                loaded = self.loader.load_sample() => loaded,
            };
            let Err(error) = loaded else {
                return Ok(Ok(()));
            };
            let waited = self.loader.has_waited(&mut waiting, &error, self.cancel);
            if !waited.await? {
                return Ok(Err(error));
            }
        }
    }
}
