//! Loads what a listing has, beside the workers that load what the queue announces.
//!
//! What is listed is looked up in the ledger first, and only what is not loaded goes into batches.
//! Nothing is kept of an object once it is settled: a listing may be of any length.

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
use crate::load::{Loader, Outcome, Outcomes};
use crate::object::ObjectRef;
use crate::s3::listing::{CHUNK, Lister};
use crate::s3::{Listed, StoreError};

/// Objects that others have in hand are looked up again this often,
const BUSY_RETRY: Duration = Duration::from_secs(2);
/// and for so many leases: longer than a worker that is gone keeps any.
const BUSY_LEASES: u32 = 3;
/// Parts of a listing that wait for the loads.
const READ_AHEAD: usize = 2;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub batch: BatchLimits,
    /// Batches that are loaded at a time.
    pub concurrency: usize,
    /// Objects a second.
    pub max_rate: Option<NonZeroU32>,
    /// So many objects, and no more, are loaded.
    pub limit: Option<u64>,
    /// What was loaded before then is loaded again, and replaced.
    pub replace_before: Option<SystemTime>,
    /// How long the batches in flight may take once told to stop.
    pub grace_period: Duration,
}

/// What has become of the objects that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub found: u64,
    /// Of what was found, as stored.
    pub bytes: u64,
    pub loaded: u64,
    /// Of those that are loaded: the ones that were loaded before.
    pub replaced: u64,
    pub already_loaded: u64,
    /// The ledger has the reasons.
    pub failed: u64,
    /// Gone before they were read.
    pub missing: u64,
    /// Other workers have them, and had not loaded them in the end.
    pub in_other_hands: u64,
}

impl Tally {
    /// Found, and not tried to the end: beyond the limit, or after a stop.
    pub fn left(&self) -> u64 {
        let settled =
            self.loaded + self.already_loaded + self.failed + self.missing + self.in_other_hands;
        self.found.saturating_sub(settled)
    }
}

/// One run.
pub struct Backfill<P> {
    loader: Arc<Loader>,
    options: Options,
    /// Of what is not loaded yet, and of what is to be replaced: never in one batch.
    batchers: [Batcher; 2],
    /// Who has loaded the objects that are to be replaced, as long as they are not settled.
    loaded_by: Claims,
    /// Replacements that others had in hand at the beginning.
    replacements: Vec<BatchId>,
    running: JoinSet<(Vec<ObjectRef>, Outcomes)>,
    /// In other hands when they were last looked up.
    busy: Vec<ObjectRef>,
    tally: Tally,
    /// Objects that went into batches.
    begun: u64,
    /// The rate allows the next batch then.
    next_start: Instant,
    /// Begin with nothing more.
    stop: CancellationToken,
    /// End what is in flight.
    cancel: CancellationToken,
    on_progress: P,
}

impl<P: Fn(&Tally)> Backfill<P> {
    pub fn new(
        loader: Arc<Loader>,
        mut options: Options,
        stop: CancellationToken,
        on_progress: P,
    ) -> Self {
        if let Some(rate) = options.max_rate {
            // A batch is begun at once: smaller ones are what keeps to the rate.
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

    /// Loads what is listed. The error is why the listing broke off; what had been found is settled
    /// all the same.
    pub async fn run(mut self, lister: Lister) -> (Tally, Result<(), StoreError>) {
        self.replacements = self.loader.finish_replacements(&self.stop).await;
        let listed = self.load_listed(lister).await;
        self.flush().await;
        self.wait_for_others().await;
        self.tally.in_other_hands = self.busy.len() as u64;
        (self.on_progress)(&self.tally);
        (self.tally, listed)
    }

    async fn load_listed(&mut self, lister: Lister) -> Result<(), StoreError> {
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

    /// Has loaded what is neither loaded, but for what is to be replaced, nor in other hands.
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

    /// Starts a load as soon as one may start. Once told to stop, none may.
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

    /// Loads what waits for more to come, and waits for all loads.
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
            Some(Err(error)) => error!(error = %error, "a load broke off; its objects are left"),
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

    /// Waits for others, and takes over from those that are gone.
    ///
    /// It looks once more after the bound, however long that takes: by then the lease of whoever is
    /// gone has run out, and what is still in other hands is being worked on.
    async fn wait_for_others(&mut self) {
        let until = Instant::now() + self.loader.lease() * BUSY_LEASES;
        let mut is_last = false;
        while !(self.busy.is_empty() && self.replacements.is_empty() || is_last) {
            is_last = Instant::now() >= until;
            info!(
                objects = self.busy.len(),
                "waiting for what others have in hand"
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
        if !self.replacements.is_empty() {
            warn!(
                batches = self.replacements.len(),
                "others are still replacing objects; run the backfill again to finish what they \
                 may leave"
            );
        }
    }
}

/// Lists in a task of its own, a little ahead of the loads.
fn read_ahead(mut lister: Lister) -> mpsc::Receiver<Result<Vec<Listed>, StoreError>> {
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

/// A token that is cancelled some time after `stop`.
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
