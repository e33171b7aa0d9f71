//! The rows of the ledger's tables, and what its statements return.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sluice::batch::{BatchId, Layout, ReadBy, StatementShape};
use sluice::ledger::drive::RunId;
use sluice::ledger::protocol::ClaimStatus;
use sluice::ledger::{Manifest, ManifestEntry};
use sluice::object::{ObjectId, ObjectParts, ObjectRef};
use sluice::rejects::RejectKind;
use uuid::Uuid;

use super::log::{Log, Seq, View};

/// A row, and when it was written.
#[derive(Debug)]
pub(super) struct Written<T> {
    pub(super) seq: Seq,
    /// By the servers' clock, in milliseconds since 1970.
    pub(super) at: u64,
    pub(super) row: T,
}

#[derive(Clone, Debug)]
pub(super) struct ClaimRow {
    pub(super) batch: BatchId,
    /// As it is read back.
    pub(super) object: ObjectRef,
    pub(super) shape: StatementShape,
    pub(super) layout: Layout,
    pub(super) supersedes: Vec<BatchId>,
    pub(super) lease_seconds: u32,
    pub(super) statement_seconds: u32,
    pub(super) worker: Arc<str>,
}

/// The events of a batch. That of a barrier belongs to no batch, and has no row here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Leased,
    Fenced,
    Released,
    Loaded,
    Cleaned,
}

#[derive(Clone, Debug)]
pub(super) struct EventRow {
    pub(super) event: Event,
    pub(super) attempt: u32,
    pub(super) lease_seconds: u32,
    pub(super) statement_seconds: u32,
    pub(super) worker: Arc<str>,
    /// By which the row is recognised.
    pub(super) mark: Option<Uuid>,
    /// The run that has written a fence.
    pub(super) run: Option<RunId>,
}

/// The lease of a permit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    /// When it ends, by the servers' clock, in milliseconds since 1970.
    pub(super) ends: u64,
    pub(super) is_fenced: bool,
}

/// The claim of a batch on an object, with what the events say about the batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct JoinedClaim {
    pub(super) batch: BatchId,
    pub(super) read_by: ReadBy,
    /// Whether it supersedes others.
    pub(super) replaces: bool,
    pub(super) claimed_at: u64,
    lease_seconds: u32,
    pub(super) is_loaded: bool,
    pub(super) is_released: bool,
    pub(super) is_cleaned: bool,
    pub(super) has_lapsed: bool,
    /// Whether the time since the end of its lease exceeds the length of the lease.
    is_long_over: bool,
}

#[derive(Debug, Default)]
struct OfBatch {
    claims: Vec<usize>,
    events: Vec<Written<EventRow>>,
}

/// The tables of the ledger.
#[derive(Debug, Default)]
pub(super) struct LedgerRows {
    claims: Vec<Written<ClaimRow>>,
    of_object: BTreeMap<ObjectId, Vec<usize>>,
    batches: BTreeMap<BatchId, OfBatch>,
    pub(super) failures: Vec<(ObjectRef, String)>,
}

impl LedgerRows {
    pub(super) fn add_claims(&mut self, seq: Seq, at: u64, rows: Vec<ClaimRow>) {
        for row in rows {
            let index = self.claims.len();
            self.of_object
                .entry(row.object.id())
                .or_default()
                .push(index);
            self.batches
                .entry(row.batch)
                .or_default()
                .claims
                .push(index);
            self.claims.push(Written { seq, at, row });
        }
    }

    pub(super) fn add_event(&mut self, seq: Seq, at: u64, batch: BatchId, row: EventRow) {
        let events = &mut self.batches.entry(batch).or_default().events;
        events.push(Written { seq, at, row });
    }

    /// Returns all batches, whether they have claims or only events.
    pub(super) fn batches(&self) -> impl Iterator<Item = BatchId> {
        self.batches.keys().copied()
    }

    /// Returns the events of a batch that the view shows.
    pub(super) fn events<'a>(
        &'a self,
        batch: BatchId,
        log: &'a Log,
        view: View,
    ) -> impl Iterator<Item = &'a Written<EventRow>> {
        let events = self.batches.get(&batch).into_iter();
        let events = events.flat_map(|batch| &batch.events);
        events.filter(move |event| log.shows(event.seq, view))
    }

    /// Returns the claims of a batch that the view shows.
    pub(super) fn claims_of<'a>(
        &'a self,
        batch: BatchId,
        log: &'a Log,
        view: View,
    ) -> impl Iterator<Item = &'a Written<ClaimRow>> {
        let indexes = self.batches.get(&batch).into_iter();
        let indexes = indexes.flat_map(|batch| &batch.claims);
        let claims = indexes.map(move |index| &self.claims[*index]);
        claims.filter(move |claim| log.shows(claim.seq, view))
    }

    /// Returns the claims on an object that the view shows.
    pub(super) fn claims_on<'a>(
        &'a self,
        object: ObjectId,
        log: &'a Log,
        view: View,
    ) -> impl Iterator<Item = &'a Written<ClaimRow>> {
        let indexes = self.of_object.get(&object).into_iter().flatten();
        let claims = indexes.map(move |index| &self.claims[*index]);
        claims.filter(move |claim| log.shows(claim.seq, view))
    }

    /// Returns all claims that the view shows.
    pub(super) fn all_claims<'a>(
        &'a self,
        log: &'a Log,
        view: View,
    ) -> impl Iterator<Item = &'a Written<ClaimRow>> {
        let claims = self.claims.iter();
        claims.filter(move |claim| log.shows(claim.seq, view))
    }

    /// Returns whether a batch replays rejects, whatever the replicas show.
    pub(super) fn is_replay(&self, batch: BatchId) -> bool {
        let claims = self.batches.get(&batch).map(|it| &it.claims);
        let first = claims.and_then(|claims| claims.first());
        first.is_some_and(|index| replays(self.claims[*index].row.shape.read_by))
    }

    /// Returns the position of the first claim of a batch, whatever the replicas show.
    pub(super) fn first_claim(&self, batch: BatchId) -> Option<Seq> {
        let index = self.batches.get(&batch)?.claims.first()?;
        Some(self.claims[*index].seq)
    }

    pub(super) fn has_event(
        &self,
        batch: BatchId,
        events: &[Event],
        log: &Log,
        view: View,
    ) -> bool {
        let mut shown = self.events(batch, log, view);
        shown.any(|it| events.contains(&it.row.event))
    }

    /// Returns the highest fenced attempt, or 0.
    pub(super) fn fenced(&self, batch: BatchId, log: &Log, view: View) -> u32 {
        let events = self.events(batch, log, view);
        let fences = events.filter(|it| it.row.event == Event::Fenced);
        fences.map(|it| it.row.attempt).max().unwrap_or(0)
    }

    /// Returns the claims on an object by batch.
    pub(super) fn joined(&self, object: ObjectId, log: &Log, view: View) -> Vec<JoinedClaim> {
        self.join(self.claims_on(object, log, view), log, view)
    }

    pub(super) fn join<'a>(
        &'a self,
        claims: impl Iterator<Item = &'a Written<ClaimRow>>,
        log: &Log,
        view: View,
    ) -> Vec<JoinedClaim> {
        let mut joined: Vec<JoinedClaim> = Vec::new();
        for claim in claims {
            let known = joined.iter_mut().find(|it| it.batch == claim.row.batch);
            match known {
                Some(known) => known.merge(&JoinedClaim::of(claim)),
                None => joined.push(JoinedClaim::of(claim)),
            }
        }
        for claim in &mut joined {
            claim.add_events(self.events(claim.batch, log, view), view.now);
        }
        joined
    }

    /// Returns the claim status of an object, excluding the claims of these batches.
    pub(super) fn claim_status(
        &self,
        object: ObjectId,
        is_excluded: impl Fn(BatchId) -> bool,
        log: &Log,
        view: View,
    ) -> ClaimStatus {
        let mut status = ClaimStatus::Free;
        for claim in self.joined(object, log, view) {
            if is_excluded(claim.batch) {
                continue;
            }
            if claim.is_loaded {
                return ClaimStatus::Loaded;
            }
            if !claim.is_released {
                status = claim.busy();
            }
        }
        status
    }

    /// Returns the batches that claimed after this time, and that are open although the time
    /// since the end of their lease exceeds its length.
    pub(super) fn left_open(&self, claimed_from: u64, log: &Log, view: View) -> Vec<BatchId> {
        let recent = self.claims.iter().rev();
        let recent = recent.take_while(|it| it.at > claimed_from);
        let claims = recent.filter(|it| log.shows(it.seq, view));
        let mut joined = self.join(claims, log, view);
        joined.retain(|it| !it.is_loaded && !it.is_released && it.is_long_over);
        joined.retain(|it| !it.is_replay());
        joined.iter().map(|it| it.batch).collect()
    }

    /// Returns the batches that supersede others, and that are open, or loaded and not cleaned up.
    pub(super) fn replacements(&self, log: &Log, view: View) -> Vec<(BatchId, ClaimStatus)> {
        let claims = self.all_claims(log, view);
        let claims = claims.filter(|it| !it.row.supersedes.is_empty());
        let mut joined = self.join(claims, log, view);
        joined.retain(|it| !it.is_released && !it.is_cleaned);
        let status = |it: &JoinedClaim| match it.is_loaded {
            true => ClaimStatus::Loaded,
            false => it.busy(),
        };
        joined.iter().map(|it| (it.batch, status(it))).collect()
    }

    /// Returns the objects in the manifest of a batch, by key.
    pub(super) fn entries(&self, batch: BatchId, log: &Log, view: View) -> Vec<ManifestEntry> {
        let mut rows: Vec<_> = self.claims_of(batch, log, view).map(|it| &it.row).collect();
        rows.sort_by(|one, other| one.object.key.cmp(&other.object.key));
        // A claim that was repeated has its rows twice.
        rows.dedup_by(|one, other| one.object == other.object);
        let entry = |row: &ClaimRow| ManifestEntry {
            object: row.object.clone(),
            supersedes: row.supersedes.clone(),
        };
        rows.into_iter().map(entry).collect()
    }

    /// Returns the manifest of a batch, or `None` if it has no claims. Its fence is read with the
    /// events.
    pub(super) fn manifest(
        &self,
        batch: BatchId,
        fenced: u32,
        log: &Log,
        view: View,
    ) -> Option<Manifest> {
        let first = self.claims_of(batch, log, view).next()?;
        Some(Manifest {
            objects: self.entries(batch, log, view),
            shape: first.row.shape,
            layout: Some(first.row.layout.clone()),
            fenced,
            age: Duration::from_secs(view.now / 1000 - first.at / 1000),
        })
    }

    /// Returns the number of batches that were claimed after this one.
    pub(super) fn claimed_after(&self, batch: BatchId, log: &Log, view: View) -> u64 {
        let first = self.claims_of(batch, log, view).map(|claim| claim.at).min();
        let first = first.unwrap_or(0);
        let is_later = |other: &BatchId| {
            let mut claims = self.claims_of(*other, log, view);
            *other != batch && claims.any(|claim| claim.at > first)
        };
        self.batches().filter(is_later).count() as u64
    }

    /// Returns the lease that came with the claim of this worker.
    pub(super) fn lease_of_claim(
        &self,
        batch: BatchId,
        worker: &str,
        log: &Log,
        view: View,
    ) -> Option<Lease> {
        let claims = self.claims_of(batch, log, view);
        let own = claims.filter(|claim| &*claim.row.worker == worker);
        let first = own.min_by_key(|claim| claim.at)?;
        Some(Lease {
            ends: first.at + 1000 * u64::from(first.row.lease_seconds),
            is_fenced: false,
        })
    }

    /// Returns the lease of the row with this mark, and whether the attempt was fenced before.
    pub(super) fn marked_lease(
        &self,
        (batch, attempt): (BatchId, u32),
        mark: Uuid,
        log: &Log,
        view: View,
    ) -> Lease {
        let ends = |it: &Written<EventRow>| it.at + 1000 * u64::from(it.row.lease_seconds);
        let mut marked = self.events(batch, log, view);
        let marked = marked.find(|it| it.row.mark == Some(mark));
        let ended = [Event::Released, Event::Loaded];
        Lease {
            ends: marked.map_or(0, ends),
            is_fenced: self.has_event(batch, &ended, log, view)
                || self.is_fenced(batch, attempt, log, view),
        }
    }

    /// Returns whether this attempt is fenced.
    pub(super) fn is_fenced(&self, batch: BatchId, attempt: u32, log: &Log, view: View) -> bool {
        let mut events = self.events(batch, log, view);
        events.any(|it| it.row.event == Event::Fenced && it.row.attempt >= attempt)
    }

    /// Returns the runs that have fenced the attempt, one for each fence.
    pub(super) fn fenced_by(
        &self,
        batch: BatchId,
        attempt: u32,
        log: &Log,
        view: View,
    ) -> Vec<Option<RunId>> {
        let events = self.events(batch, log, view);
        let fences = events.filter(|it| it.row.event == Event::Fenced && it.row.attempt >= attempt);
        fences.map(|it| it.row.run).collect()
    }

    /// Returns until when statements of the batch may be running on a server that does not respond,
    /// where one of this worker can run for `statement_seconds`; 0 if none has started.
    pub(super) fn statements_end(
        &self,
        batch: BatchId,
        statement_seconds: u32,
        log: &Log,
        view: View,
    ) -> u64 {
        let end = |at: u64, lease: u32, statement: u32| {
            at + 1000 * u64::from(lease) + 1000 * u64::from(statement.max(statement_seconds))
        };
        let claims = self.claims_of(batch, log, view);
        let of_claims = claims.map(|it| end(it.at, it.row.lease_seconds, it.row.statement_seconds));
        let events = self.events(batch, log, view);
        // The renewals of leases permit nothing.
        let marked = events.filter(|it| it.row.event == Event::Leased && it.row.mark.is_some());
        let of_leases = marked.map(|it| end(it.at, it.row.lease_seconds, it.row.statement_seconds));
        of_claims.chain(of_leases).max().unwrap_or(0)
    }

    /// Returns the batches that have loaded an object, and when the last of them claimed it.
    pub(super) fn loaded_by(
        &self,
        object: ObjectId,
        log: &Log,
        view: View,
    ) -> Option<(Vec<BatchId>, u64)> {
        let mut joined = self.joined(object, log, view);
        joined.retain(|claim| claim.is_loaded);
        let last = joined.iter().map(|claim| claim.claimed_at).max()?;
        Some((joined.iter().map(|claim| claim.batch).collect(), last))
    }

    /// Returns the most recently loaded objects other than `object`.
    pub(super) fn latest_loaded(
        &self,
        object: &ObjectRef,
        same_bucket: bool,
        limit: usize,
        log: &Log,
        view: View,
    ) -> Vec<ObjectRef> {
        const BATCHES: usize = 100;
        let loaded_at = |batch: BatchId| {
            let mut events = self.events(batch, log, view);
            let loaded = events.find(|it| it.row.event == Event::Loaded)?;
            Some((loaded.at, batch))
        };
        let mut batches: Vec<(u64, BatchId)> = self.batches().filter_map(loaded_at).collect();
        batches.sort_unstable_by(|one, other| other.cmp(one));
        batches.truncate(BATCHES);
        let claims = batches
            .iter()
            .flat_map(|(_, batch)| self.claims_of(*batch, log, view));
        let others = claims.filter(|claim| {
            let other = &claim.row.object;
            (other.bucket == object.bucket) == same_bucket && other.key != object.key
        });
        let mut others: Vec<_> = others.collect();
        others.sort_by_key(|claim| std::cmp::Reverse(claim.at));
        let mut latest: Vec<ObjectRef> = Vec::new();
        for claim in others {
            if latest.len() == limit {
                break;
            }
            if !latest.contains(&claim.row.object) {
                latest.push(claim.row.object.clone());
            }
        }
        latest
    }
}

impl JoinedClaim {
    fn of(claim: &Written<ClaimRow>) -> Self {
        Self {
            batch: claim.row.batch,
            read_by: claim.row.shape.read_by,
            replaces: !claim.row.supersedes.is_empty(),
            claimed_at: claim.at,
            lease_seconds: claim.row.lease_seconds,
            is_loaded: false,
            is_released: false,
            is_cleaned: false,
            has_lapsed: false,
            is_long_over: false,
        }
    }

    pub(super) fn is_replay(&self) -> bool {
        replays(self.read_by)
    }

    fn merge(&mut self, other: &Self) {
        self.replaces |= other.replaces;
        if other.claimed_at > self.claimed_at {
            self.claimed_at = other.claimed_at;
            self.lease_seconds = other.lease_seconds;
        }
    }

    fn add_events<'a>(&mut self, events: impl Iterator<Item = &'a Written<EventRow>>, now: u64) {
        let mut lease = (self.claimed_at, self.lease_seconds);
        for Written { at, row, .. } in events {
            match row.event {
                Event::Loaded => self.is_loaded = true,
                Event::Released => self.is_released = true,
                Event::Cleaned => self.is_cleaned = true,
                // The latest lease counts, and not the longest: one that was ended is over.
                Event::Leased if *at > lease.0 => lease = (*at, row.lease_seconds),
                Event::Leased | Event::Fenced => {}
            }
        }
        let (from, seconds) = lease;
        self.has_lapsed = from + 1000 * u64::from(seconds) < now;
        self.is_long_over = from + 2000 * u64::from(seconds) < now;
    }

    fn busy(&self) -> ClaimStatus {
        ClaimStatus::Busy {
            batch: self.batch,
            // An unfinished replay is finished by the next replay.
            lease_expired: self.has_lapsed && !self.is_replay(),
        }
    }
}

/// Returns whether a batch that is read so replays rejects.
pub(super) fn replays(read_by: ReadBy) -> bool {
    RejectKind::moved_by(read_by).is_some()
}

/// Returns an object as the ledger returns it.
pub(super) fn recorded(object: &ObjectRef) -> ObjectRef {
    ObjectRef::from(ObjectParts {
        size: Some(object.size.unwrap_or_default()),
        version_id: object
            .version_id
            .clone()
            .filter(|version| !version.is_empty()),
        sequencer: None,
        region: object.region.clone().filter(|region| !region.is_empty()),
        ..object.clone().into_parts()
    })
}
