//! What an error, or what an insert has brought, means for the objects of a batch.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Loading;
use crate::batch::{Fallback, ReadBy};
use crate::clickhouse::error_class::{
    TOO_MANY_REJECTED_TEXT, Verdict, is_too_large, named_object, verdict,
};
use crate::clickhouse::failing_view::{Failing, failing_view};
use crate::ledger::BATCHES_TABLE;
use crate::ledger::drive::Inserted;
use crate::load::breaker::Scope;
use crate::statements::select::{BLANK, Target};

use crate::clickhouse::WarehouseError;
use crate::load::{
    Cancelled, MAX_FAILURES_ALONE, MAX_REPLAYS, MAX_REPLAYS_ALONE, MAX_REPLAYS_OF_A_PART,
};
use crate::object::{Compression, GZIP_MAGIC, ObjectRef, ZSTD_MAGIC};
use crate::sql;
use crate::telemetry::metrics;

const S3_ERROR: u32 = 499;

/// Who is to blame for a failed insert.
enum Blame {
    /// The objects: others can be loaded.
    Objects,
    /// The server: others fail, too, and how.
    Server(WarehouseError),
    /// Nobody can tell: there is nothing to compare with.
    Unknown,
}

impl Loading<'_> {
    /// What the error means for this batch, here and now.
    pub(super) async fn judge(&self, error: &WarehouseError) -> Result<Verdict, Cancelled> {
        let verdict = verdict(error);
        if matches!(verdict, Verdict::Replay | Verdict::ObjectFault)
            && failing_view(error).is_some()
        {
            return Ok(Verdict::View);
        }
        let text = error.to_string();
        if self.is_unreadable(verdict, error) && self.worker_can_read(&text).await {
            return Ok(Verdict::Stream);
        }
        match verdict {
            Verdict::Denied => self.whose_fault(&text).await,
            Verdict::Stream => Ok(Verdict::Halt),
            Verdict::ObjectFault => Ok(self.object_fault().await),
            verdict => Ok(verdict),
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
        self.replays += 1;
        if self.replays <= MAX_REPLAYS_OF_A_PART {
            loader.note_failure(error, Scope::Inserts).await;
            loader.pause(self.replays, self.cancel).await?;
            return Ok(Inserted::Unknown);
        }
        let is_at_fault = match (self.items.as_slice(), failing_view(error)) {
            ([alone], Some(failing)) => {
                self.trying.may_wait
                    || loader.views.has_passed_since(&self.passed_before, &failing)
                    || loader.views.failed_alone(&failing, alone.id) == 1
                        && self.has_passed_before(&failing).await?
            }
            _ => true,
        };
        if !is_at_fault {
            self.halt(error);
            return Ok(Inserted::Unknown);
        }
        // Sluice's own tables can have all rows, and the view's none.
        self.keep_nothing = true;
        Ok(self.at_fault(error, Verdict::View, error.to_string()))
    }

    /// Returns whether a loaded batch has brought rows to the table that the view reads since the
    /// view was last changed.
    async fn has_passed_before(&self, failing: &Failing) -> Result<bool, Cancelled> {
        let warehouse = &self.loader.warehouse;
        let targets = Target::all(&self.loader.planner.catalog);
        let target = targets
            .iter()
            .find(|target| Some(target.table()) == failing.table.as_deref());
        let Some(kind) = target.and_then(|target| target.kind()) else {
            return Ok(false);
        };
        let sql = format!(
            "SELECT 1 AS found FROM {} WHERE kind = {} AND ingested_at > (\
               SELECT max(metadata_modification_time) FROM system.tables \
               WHERE concat(database, '.', name) = {}) \
             AND batch_id IN (SELECT batch_id FROM {} WHERE event = 'loaded') LIMIT 1",
            warehouse.table(Target::ObjectRows.table()),
            sql::string(kind),
            sql::string(&failing.view.replace('`', "")),
            warehouse.table(BATCHES_TABLE),
        );
        let found: Vec<IgnoredAny> = self.small(|| warehouse.rows(&sql)).await?;
        Ok(!found.is_empty())
    }

    /// An object is at fault. Alone, it may be one that the worker reads all the same.
    pub(super) async fn object_fault(&self) -> Verdict {
        match self.items.as_slice() {
            [alone] if self.is_misnamed(&alone.object).await => Verdict::Stream,
            _ => Verdict::ObjectFault,
        }
    }

    fn may_stream(&self) -> bool {
        self.form.read_by == ReadBy::S3 && self.loader.fallback != Fallback::Never
    }

    /// ClickHouse goes by the name; the worker looks at the first bytes.
    async fn is_misnamed(&self, object: &ObjectRef) -> bool {
        self.may_stream() && self.loader.store.is_misnamed(object).await.unwrap_or(false)
    }

    /// Whether ClickHouse, as it seems, cannot read the whole of this batch. Of many objects one
    /// alone may be refused: it is set apart first.
    fn is_unreadable(&self, verdict: Verdict, error: &WarehouseError) -> bool {
        let whole = self.items.len() == 1 || self.trying.patience < MAX_REPLAYS;
        match verdict {
            Verdict::Stream => true,
            Verdict::Denied => whole,
            Verdict::Replay => whole && is_s3_away(error) && self.replays >= self.trying.patience,
            _ => false,
        }
    }

    /// Whether S3 shows the worker what it does not show ClickHouse, or tells it that it is gone.
    async fn worker_can_read(&self, text: &str) -> bool {
        if !self.may_stream() {
            return false;
        }
        let keys = self.items.iter().map(|item| item.object.key.as_str());
        let named = named_object(text, keys.enumerate()).unwrap_or(0);
        match self.loader.store.present(&self.items[named].object).await {
            Ok(_) => true,
            Err(error) => error.is_missing(),
        }
    }

    /// S3 refused an object: among others it is set apart; alone it is at fault if others can be
    /// read.
    async fn whose_fault(&self, text: &str) -> Result<Verdict, Cancelled> {
        let [alone] = self.items.as_slice() else {
            return Ok(Verdict::Denied);
        };
        // The worker need not have rights, where it reads only what ClickHouse cannot.
        if self.form.read_by == ReadBy::Stream && self.loader.fallback != Fallback::Always {
            return Ok(Verdict::Denied);
        }
        let readable = self
            .loader
            .can_read_others(&alone.object, self.form.read_by, text, self.cancel)
            .await?;
        Ok(if readable {
            Verdict::Denied
        } else {
            Verdict::Halt
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
        let text = format!("one insert may not take so much (`load.max_memory`): {error}");
        Ok(self.at_fault(error, Verdict::TooLarge, text))
    }

    /// An error that blames nobody by itself, or the server for now. Either it passes, or the
    /// objects are at fault, or the server is: which of these, other loads tell.
    pub(super) async fn unexplained(
        &mut self,
        verdict: Verdict,
        error: &WarehouseError,
    ) -> Result<Inserted, Cancelled> {
        let mut pause_for = (verdict == Verdict::Overload).then(|| error.clone());
        // The same body will not be smaller.
        let is_final = is_too_large(error);
        if is_final || self.replays >= self.trying.patience {
            match self.blame(verdict, error).await? {
                Blame::Objects => {
                    self.failures_alone += 1;
                    let enough = self.items.len() > 1 || self.failures_alone >= MAX_FAILURES_ALONE;
                    if is_final || enough {
                        return Ok(self.give_up(error).await);
                    }
                }
                Blame::Server(why) => pause_for = Some(why),
                // Others get the turn: what becomes of them tells more.
                Blame::Unknown if self.trying.may_wait => {
                    self.failure = Some((Verdict::Replay, error.to_string()));
                    return Ok(Inserted::ObjectFault);
                }
                Blame::Unknown if is_s3_away(error) => {}
                // Nothing else comes while intake is paused.
                Blame::Unknown if self.replays >= MAX_REPLAYS_ALONE => {
                    return Ok(self.give_up(error).await);
                }
                Blame::Unknown => pause_for = Some(error.clone()),
            }
        }
        if let Some(why) = pause_for {
            self.halt(&why);
        } else {
            self.replays += 1;
            self.loader.note_failure(error, Scope::Inserts).await;
            self.loader.pause(self.replays, self.cancel).await?;
        }
        Ok(Inserted::Unknown)
    }

    /// The objects are not loaded like this. Whatever pauses intake is not over by that.
    async fn give_up(&mut self, error: &WarehouseError) -> Inserted {
        let fault = self.object_fault().await;
        metrics::clickhouse_error(error.code(), fault);
        self.failure = Some((fault, error.to_string()));
        Inserted::ObjectFault
    }

    /// The server has told what is wrong with the objects: it does inserts.
    pub(super) fn at_fault(
        &mut self,
        error: &WarehouseError,
        fault: Verdict,
        text: String,
    ) -> Inserted {
        self.answered();
        metrics::clickhouse_error(error.code(), fault);
        self.failure = Some((fault, text));
        Inserted::ObjectFault
    }

    /// Finds out who is to blame for an error that does not say it.
    async fn blame(
        &mut self,
        verdict: Verdict,
        error: &WarehouseError,
    ) -> Result<Blame, Cancelled> {
        let successes = self.loader.successes.load(Ordering::Relaxed);
        let have_others = successes > self.successes_before;
        self.successes_before = successes;
        if have_others {
            return Ok(Blame::Objects);
        }
        if verdict == Verdict::Overload {
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
    pub(super) async fn unread(&self) -> Option<(Verdict, String)> {
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
        let text = match unread {
            Ok(unread) => format!(
                "ClickHouse read nothing of {}, although it is not empty",
                unread?
            ),
            Err(error) => return Some((Verdict::Changed, error.to_string())),
        };
        // Alone, it is first looked at again: it may be empty by now.
        let verdict = if self.items.len() == 1 {
            Verdict::Changed
        } else {
            Verdict::ObjectFault
        };
        Some((verdict, text))
    }

    /// Returns an object, of these, that is not empty once it is decompressed.
    async fn with_content<'o>(
        &self,
        objects: &[&'o ObjectRef],
    ) -> Result<Option<&'o ObjectRef>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            path: String,
        }
        if objects.is_empty() {
            return Ok(None);
        }
        if self.form.read_by == ReadBy::Stream {
            for object in objects {
                if !self.loader.store.is_empty(object).await? {
                    return Ok(Some(object));
                }
            }
            return Ok(None);
        }
        let query = self.loader.planner.paths_with_lines(objects);
        let rows: Vec<Row> = self.loader.warehouse.rows(&query).await?;
        let is_read = |object: &&&ObjectRef| rows.iter().any(|row| row.path == object.path());
        Ok(objects.iter().find(is_read).copied())
    }

    /// An object that was read as lines of text, and is compressed.
    pub(super) async fn misnamed(&self) -> Result<Option<(Verdict, String)>, Cancelled> {
        #[derive(Deserialize)]
        struct First {
            source_path: String,
        }
        let rejected = Target::RejectedLines;
        let has_any = self
            .read
            .iter()
            .any(|row| rejected.kind() == Some(&row.kind));
        if !has_any || !self.may_stream() {
            return Ok(None);
        }
        let sql = format!(
            "SELECT source_path FROM {} WHERE batch_id = {} AND row_number = 0 AND ({} OR {}) \
             LIMIT 1",
            self.loader.warehouse.table(rejected.table()),
            sql::id(self.batch.0),
            sql::starts_with("raw", &GZIP_MAGIC),
            sql::starts_with("raw", &ZSTD_MAGIC),
        );
        let found: Vec<First> = self.small(|| self.loader.warehouse.rows(&sql)).await?;
        let Some(First { source_path }) = found.first() else {
            return Ok(None);
        };
        let objects = self.objects();
        let object = objects.iter().find(|object| object.path() == *source_path);
        Ok(match object {
            Some(object) if self.is_misnamed(object).await => Some((
                Verdict::Stream,
                format!("{object} is compressed, and its name does not say so"),
            )),
            _ => None,
        })
    }

    /// An object of which a larger part was rejected than is allowed.
    pub(super) fn too_many_rejected(&self) -> Option<(Verdict, String)> {
        // A merge may have collapsed the rows that are replaced into these: they must not go.
        if self.replaces() {
            return None;
        }
        let max = self.loader.limits.max_rejected_ratio;
        let mut lines: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for row in self.read.iter().filter(|row| row.kind != BLANK) {
            let (all, rejected) = lines.entry(&row.source_path).or_default();
            *all += row.rows;
            if Target::RejectedLines.kind() == Some(&row.kind) {
                *rejected += row.rows;
            }
        }
        let (path, (all, rejected)) = lines
            .into_iter()
            .find(|(_, (all, rejected))| *rejected as f64 > *all as f64 * max)?;
        let text = format!(
            "{TOO_MANY_REJECTED_TEXT}: {rejected} of {all} of s3://{path}, more than \
             load.max_rejected_ratio ({max})"
        );
        Some((Verdict::ObjectFault, text))
    }
}

/// What is left of [`S3_ERROR`] once missing objects and refusals are told apart: outages.
fn is_s3_away(error: &WarehouseError) -> bool {
    error.code() == Some(S3_ERROR) || matches!(error, WarehouseError::Source(_))
}
