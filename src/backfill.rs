//! Loads the objects of a listing, while workers load what the queue announces.
//!
//! Listed objects are looked up in the ledger, and only those that are not loaded go into batches.
//! An object is forgotten once its outcome is known, so a listing can have any length.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::batch::{Batch, BatchId, BatchLimits, Batcher};
use crate::ledger::Claims;
use crate::ledger::protocol::ClaimStatus;
use crate::load::ports::Ports;
use crate::load::{Loader, Outcome, Outcomes};
use crate::object::ObjectRef;
use crate::s3::listing::{CHUNK, Lister, Listing};
use crate::s3::{Listed, StoreError};

/// How often objects that are in progress elsewhere are looked up again.
const BUSY_RETRY: Duration = Duration::from_secs(2);
/// How long they are looked up again, in leases: longer than the lease of a dead worker lasts.
const BUSY_LEASES: u32 = 3;
/// The number of parts of a listing that are read ahead of the loads.
const READ_AHEAD: usize = 2;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub batch: BatchLimits,
    /// The number of batches that are loaded at the same time.
    pub concurrency: usize,
    /// The largest number of objects that are loaded per second.
    pub max_rate: Option<NonZeroU32>,
    /// The largest number of objects that are loaded.
    pub limit: Option<u64>,
    /// Objects that were loaded before this time are loaded again, and their rows replaced.
    pub replace_before: Option<SystemTime>,
    /// How long the batches in flight may take after a stop was requested.
    pub grace_period: Duration,
}

/// The outcomes of the objects that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub found: u64,
    /// The size of the objects found, as stored.
    pub bytes: u64,
    pub loaded: u64,
    /// Those of `loaded` that had been loaded before.
    pub replaced: u64,
    pub already_loaded: u64,
    /// The reasons are in the ledger.
    pub failed: u64,
    /// Deleted before they were read.
    pub missing: u64,
    /// In progress elsewhere, and not loaded when the backfill ended.
    pub in_other_hands: u64,
    /// Batches of other processes that were still replacing objects when the backfill ended: the
    /// tables can have both the old and the new rows of these.
    pub replacing_elsewhere: u64,
}

impl Tally {
    /// Returns the number of objects without an outcome: beyond the limit, or after a stop.
    pub fn left(&self) -> u64 {
        let settled =
            self.loaded + self.already_loaded + self.failed + self.missing + self.in_other_hands;
        self.found.saturating_sub(settled)
    }
}

/// One run of a backfill.
pub struct Backfill<P: Ports, F> {
    loader: Arc<Loader<P>>,
    options: Options,
    /// One for objects that are not loaded yet, and one for those that are replaced: a batch never
    /// has both.
    batchers: [Batcher; 2],
    /// The batches that have loaded the objects that are replaced, until these have their outcomes.
    loaded_by: Claims,
    /// Replacements that were in progress elsewhere at the beginning.
    replacements: Vec<BatchId>,
    running: JoinSet<(Vec<ObjectRef>, Outcomes)>,
    /// Objects that were in progress elsewhere when they were last looked up.
    busy: Vec<ObjectRef>,
    tally: Tally,
    /// The number of objects that went into batches.
    begun: u64,
    /// When the rate allows the next batch.
    next_start: Instant,
    /// Stops beginning new work.
    stop: CancellationToken,
    /// Ends the work in flight.
    cancel: CancellationToken,
    on_progress: F,
}

impl<P: Ports, F: Fn(&Tally)> Backfill<P, F> {
    /// Creates a backfill that has found nothing yet. `on_progress` is called whenever the tally
    /// may have changed.
    pub fn new(
        loader: Arc<Loader<P>>,
        mut options: Options,
        stop: CancellationToken,
        on_progress: F,
    ) -> Self {
        if let Some(rate) = options.max_rate {
            // A batch starts as a whole, so the rate bounds the size of batches.
            options.batch.max_objects = options.batch.max_objects.min(rate.get() as usize);
        }
        Self {
            loader,
            batchers: [Batcher::new(options.batch), Batcher::new(options.batch)],
            loaded_by: Claims::new(),
            replacements: Vec::new(),
            running: JoinSet::new(),
            busy: Vec::new(),
            tally: Tally::default(),
            begun: 0,
            next_start: Instant::now(),
            cancel: cancelled_after(&stop, options.grace_period),
            stop,
            options,
            on_progress,
        }
    }

    /// Loads the listed objects.
    ///
    /// The second value is the error that ended the listing early, if any. Objects that were found
    /// before the error still have their outcomes.
    pub async fn run<L: Listing>(mut self, lister: Lister<L>) -> (Tally, Result<(), StoreError>) {
        self.replacements = self.loader.finish_replacements(&self.stop).await;
        let listed = self.load_listed(lister).await;
        self.flush().await;
        self.wait_for_others().await;
        self.tally.in_other_hands = self.busy.len() as u64;
        self.tally.replacing_elsewhere = self.replacements.len() as u64;
        (self.on_progress)(&self.tally);
        (self.tally, listed)
    }

    async fn load_listed<L: Listing>(&mut self, lister: Lister<L>) -> Result<(), StoreError> {
        let mut listing = read_ahead(lister);
        while !self.is_full() {
            let listed = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                listed = listing.recv() => listed,
            };
            let Some(listed) = listed else { break };
            let listed = listed?;
            self.tally.found += listed.len() as u64;
            let sizes = listed.iter().filter_map(|listed| listed.object.size);
            self.tally.bytes += sizes.sum::<u64>();
            let objects: Vec<_> = listed.into_iter().map(|listed| listed.object).collect();
            if let Some(before) = self.options.replace_before {
                let ids: Vec<_> = objects.iter().map(ObjectRef::id).collect();
                let claims = self.loader.loaded_claims(&ids, before, &self.stop).await;
                self.loaded_by.extend(claims.unwrap_or_default());
            }
            self.take(objects).await;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.options.limit.is_some_and(|limit| self.begun >= limit)
    }

    /// Adds those objects to batches that are free, or loaded and to be replaced.
    async fn take(&mut self, objects: Vec<ObjectRef>) {
        let ids: Vec<_> = objects.iter().map(ObjectRef::id).collect();
        let superseded: Vec<_> = ids
            .iter()
            .filter_map(|id| Some((id, self.loaded_by.get(id)?)))
            .flat_map(|(id, batches)| batches.iter().map(|batch| (*id, *batch)))
            .collect();
        let claim_statuses = self.loader.look_up(&ids, &superseded, &self.stop).await;
        let Some(claim_statuses) = claim_statuses else {
            return;
        };
        for (object, status) in objects.into_iter().zip(claim_statuses) {
            match status {
                ClaimStatus::Loaded => {
                    self.loaded_by.remove(&object.id());
                    self.tally.already_loaded += 1;
                }
                ClaimStatus::Busy {
                    lease_expired: false,
                    ..
                } => self.busy.push(object),
                ClaimStatus::Free
                | ClaimStatus::Busy {
                    lease_expired: true,
                    ..
                } => {
                    if self.is_full() {
                        continue;
                    }
                    self.begun += 1;
                    let replaces = self.loaded_by.contains_key(&object.id());
                    let batcher = &mut self.batchers[usize::from(replaces)];
                    for batch in batcher.add(object, Instant::now()) {
                        self.begin(batch).await;
                    }
                }
            }
        }
        (self.on_progress)(&self.tally);
    }

    /// Starts a load as soon as the concurrency and the rate allow it. After a stop, starts none.
    async fn begin(&mut self, batch: Batch) {
        while self.running.len() >= self.options.concurrency {
            self.settle_next().await;
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return,
            () = tokio::time::sleep_until(self.next_start) => {}
        }
        if let Some(rate) = self.options.max_rate {
            let share = Duration::from_secs(batch.objects.len() as u64) / rate.get();
            self.next_start = Instant::now() + share;
        }
        let (loader, cancel) = (self.loader.clone(), self.cancel.clone());
        let ids = batch.objects.iter().map(ObjectRef::id);
        let claims = ids.filter_map(|id| Some((id, self.loaded_by.get(&id)?.clone())));
        let claims: Claims = claims.collect();
        self.running.spawn(async move {
            let objects = batch.objects.clone();
            (objects, loader.replace(batch, &claims, cancel).await)
        });
    }

    /// Loads the open batches, and waits for all loads.
    async fn flush(&mut self) {
        let now = Instant::now();
        let batchers = self.batchers.iter_mut();
        let batches: Vec<_> = batchers.flat_map(|it| it.take_all(now)).collect();
        for batch in batches {
            self.begin(batch).await;
        }
        while !self.running.is_empty() {
            self.settle_next().await;
        }
    }

    async fn settle_next(&mut self) {
        match self.running.join_next().await {
            Some(Ok((objects, outcomes))) => self.settle(objects, outcomes),
            Some(Err(error)) => error!(error = %error, "load task panicked; skipping its objects"),
            None => {}
        }
        (self.on_progress)(&self.tally);
    }

    fn settle(&mut self, objects: Vec<ObjectRef>, outcomes: Outcomes) {
        let objects = objects.into_iter().map(|object| (object.id(), object));
        let mut objects: HashMap<_, _> = objects.collect();
        for (id, outcome) in outcomes {
            if outcome == Outcome::Busy {
                self.busy.extend(objects.remove(&id));
                continue;
            }
            let replaces = self.loaded_by.remove(&id).is_some();
            match outcome {
                Outcome::Loaded => {
                    self.tally.loaded += 1;
                    self.tally.replaced += u64::from(replaces);
                }
                Outcome::Duplicate => self.tally.already_loaded += 1,
                Outcome::Failed => self.tally.failed += 1,
                Outcome::Missing { .. } => self.tally.missing += 1,
                Outcome::Busy | Outcome::Abandoned => {}
            }
        }
    }

    /// Waits for objects that are in progress elsewhere, and recovers the batches of dead workers.
    ///
    /// Looks once more after the bound, however long that takes. By then, the leases of dead
    /// workers have expired, and objects that are still in progress elsewhere have a live worker.
    async fn wait_for_others(&mut self) {
        let until = Instant::now() + self.loader.lease() * BUSY_LEASES;
        let mut is_last = false;
        while !(self.busy.is_empty() && self.replacements.is_empty() || is_last) {
            is_last = Instant::now() >= until;
            info!(
                objects = self.busy.len(),
                "waiting for objects that are in progress elsewhere"
            );
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(BUSY_RETRY) => {}
            }
            let busy = std::mem::take(&mut self.busy);
            for objects in busy.chunks(CHUNK) {
                self.take(objects.to_vec()).await;
            }
            self.flush().await;
            if !self.replacements.is_empty() {
                let open = self.loader.finish_replacements(&self.stop).await;
                self.replacements.retain(|batch| open.contains(batch));
            }
        }
    }
}

/// Reads the listing in a task of its own, [`READ_AHEAD`] parts ahead of the loads.
fn read_ahead<L: Listing>(
    mut lister: Lister<L>,
) -> mpsc::Receiver<Result<Vec<Listed>, StoreError>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    tokio::spawn(async move {
        while let Some(listed) = lister.next().await.transpose() {
            let broke_off = listed.is_err();
            if sender.send(listed).await.is_err() || broke_off {
                return;
            }
        }
    });
    receiver
}

/// Returns a token that is cancelled `grace_period` after `stop`.
fn cancelled_after(stop: &CancellationToken, grace_period: Duration) -> CancellationToken {
    let cancel = CancellationToken::new();
    let (stop, ending) = (stop.clone(), cancel.clone());
    tokio::spawn(async move {
        stop.cancelled().await;
        tokio::time::sleep(grace_period).await;
        ending.cancel();
    });
    cancel
}
