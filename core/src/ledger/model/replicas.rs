//! What the search does differently where several servers (replicas) share the tables: a write is
//! acknowledged by one of them, and the others show it later.
//!
//! No server has a state of its own. Instead, each read finds anything that it may find:
//! - a look-up, and the read of the manifest in a recovery, miss any claims and events;
//! - a verify sees the claims that were acknowledged before its own, and misses any others and any
//!   events;
//! - a guard sees the fences whose steps have completed, and misses any other events;
//! - the row check and the reads of a rollback are in sync: they see what was committed before they
//!   began. They may still see rows that were deleted.
//!
//! A token still commits once over all servers. A statement that was sent stands for all of its
//! copies on all servers: it can start at any time, and again, and its worker can receive any
//! response that one of the copies can have. A kill that may miss statements kills none, which
//! includes all others: a statement that is not killed may also never continue.

use std::mem::take;

use super::*;

/// A state after a step, and the job, if that has not ended.
type Outcome = (State, Option<Job>);

/// The highest fence that a stale read is given beside the latest. No case writes a higher one that
/// is not an abort.
const STALE_FENCES: u32 = 2;

/// Returns the outcome of a step with this result.
fn answer(after: State, job: &Job, answer: Answer) -> Outcome {
    let mut job = job.clone();
    answered(&mut job.run, answer);
    (after, Some(job))
}

/// Returns the outcomes of a check that can find something, can find nothing, or both.
fn check(state: &State, job: &Job, can_find: bool, can_miss: bool) -> Vec<Outcome> {
    [(can_find, true), (can_miss, false)]
        .into_iter()
        .filter(|(is_possible, _)| *is_possible)
        .map(|(_, found)| answer(state.clone(), job, Answer::Whether(found)))
        .collect()
}

/// Returns whether a guard that sees no more than it must lets a statement start.
fn can_start(state: &State, batch: usize, attempt: u32) -> bool {
    state.batches[batch].visible_fence < attempt
}

impl Case {
    /// Drops the statements that cannot change anything any more: there are fewer states to search.
    pub(super) fn drop_inert(&self, state: &mut State) {
        let mut sent = take(&mut state.sent);
        let mut running = take(&mut state.running);
        let commits = |batch, token| !self.missing(state, batch, token).is_empty();
        sent.retain(|(batch, attempt, token)| {
            can_start(state, *batch, *attempt) && commits(*batch, *token)
        });
        running.retain(|(batch, _, token)| commits(*batch, *token));
        (state.sent, state.running) = (sent, running);

        let mut sent = take(&mut state.records_sent);
        let mut recording = take(&mut state.recording);
        let is_recorded = |batch: usize| state.batches[batch].loaded;
        sent.retain(|(batch, attempt)| can_start(state, *batch, *attempt) && !is_recorded(*batch));
        recording.retain(|(batch, _)| !is_recorded(*batch));
        (state.records_sent, state.recording) = (sent, recording);
    }

    /// Returns the commits that a statement of the batch would still make.
    fn missing(&self, state: &State, batch: usize, token: u32) -> Vec<(usize, u8, u32)> {
        let is_forgotten =
            self.mutation == Mutation::ForgottenTokens && state.batches[batch].loaded;
        (0..self.tables)
            .map(|table| (batch, table, token + u32::from(is_forgotten)))
            .filter(|commit| !state.knows(*commit))
            .collect()
    }

    /// Adds the states after a step of a server.
    pub(super) fn server_steps_on_replicas(&self, state: &State, next: &mut Vec<State>) {
        for sent in state.sent.difference(&state.running) {
            if can_start(state, sent.0, sent.1) {
                let mut after = state.clone();
                after.running.insert(*sent);
                next.push(after);
            }
        }
        for (batch, _, token) in &state.running {
            for commit in self.missing(state, *batch, *token) {
                let mut after = state.clone();
                after.committed.insert(commit);
                next.push(after);
            }
        }
        for record in state.records_sent.difference(&state.recording) {
            if can_start(state, record.0, record.1) {
                let mut after = state.clone();
                after.recording.insert(*record);
                next.push(after);
            }
        }
        for (batch, _) in &state.recording {
            let mut after = state.clone();
            after.batches[*batch].loaded = true;
            next.push(after);
        }
    }

    /// Returns every outcome of a job's next action; `None` if replicas make no difference to it.
    pub(super) fn job_steps_on_replicas(&self, state: &State, job: &Job) -> Option<Vec<Outcome>> {
        let own = || job.batch.expect("claimed");
        Some(match job.run.action() {
            Action::LookUp => self.look_up(state, job),
            Action::Recover(batch) => self.recover(state, job, index(batch)),
            Action::Verify => self.verify(state, job, own()),
            Action::Insert { attempt } => self.insert(state, job, own(), attempt),
            Action::Kill(kill) => {
                let mut after = state.clone();
                if kill == Kill::Confirmed && self.mutation != Mutation::MissedKill {
                    after.running.retain(|(batch, ..)| *batch != own());
                    after.recording.retain(|(batch, _)| *batch != own());
                }
                vec![answer(after, job, Answer::Done)]
            }
            Action::Fence { attempt } => self.fence(state, job, own(), attempt),
            Action::CheckRows => {
                let had_rows = state.rolled_back.iter().any(|commit| commit.0 == own());
                let has_rows = state.has_rows(own());
                let can_miss = !has_rows || self.mutation == Mutation::StaleRowCheck;
                check(state, job, has_rows || had_rows, can_miss)
            }
            // The comparison can fail although every table has rows.
            Action::CheckComplete => {
                let commits = || state.committed.iter().chain(&state.rolled_back);
                let had_all = (0..self.tables)
                    .all(|table| commits().any(|(batch, of, _)| (*batch, *of) == (own(), table)));
                check(state, job, had_all, true)
            }
            Action::RollBack => self.roll_back(state, job, own()),
            Action::Record { attempt } => self.record(state, job, own(), attempt),
            Action::Claim | Action::Release | Action::Finish(_) => return None,
        })
    }

    fn look_up(&self, state: &State, job: &Job) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for claim_statuses in self.stale_claim_statuses(state, job.objects) {
            if claim_statuses.iter().any(ClaimStatus::has_expired_lease) {
                // Afterwards it looks up all of the objects again.
                outcomes.push(answer(
                    state.clone(),
                    job,
                    Answer::ClaimStatuses(claim_statuses),
                ));
                continue;
            }
            let mut after = state.clone();
            let mut free = 0;
            for (object, status) in bits(job.objects).zip(&claim_statuses) {
                match status {
                    ClaimStatus::Loaded => after.deleted |= object,
                    ClaimStatus::Free => free |= object,
                    ClaimStatus::Busy { .. } => {}
                }
            }
            if state.batches.len() < self.batches || free == 0 {
                let job = Job {
                    objects: free,
                    ..job.clone()
                };
                outcomes.push(answer(after, &job, Answer::ClaimStatuses(claim_statuses)));
            }
        }
        outcomes
    }

    /// Returns all claim statuses that a stale read can find, ending with the true ones.
    fn stale_claim_statuses(&self, state: &State, objects: Objects) -> Vec<Vec<ClaimStatus>> {
        let lease_ends = self.mutation != Mutation::LeasesNeverEnd;
        let mut all = vec![Vec::new()];
        for object in bits(objects) {
            let batches = state.batches.iter().enumerate();
            let mut statuses = vec![ClaimStatus::Free];
            for (index, batch) in batches.filter(|(_, batch)| batch.objects & object != 0) {
                let busy = |lease_expired| ClaimStatus::Busy {
                    batch: id(index),
                    lease_expired,
                };
                statuses.push(busy(false));
                statuses.extend(lease_ends.then(|| busy(true)));
                statuses.extend(batch.loaded.then_some(ClaimStatus::Loaded));
            }
            all = all
                .iter()
                .flat_map(|before: &Vec<ClaimStatus>| {
                    let with = |status: &ClaimStatus| [before.as_slice(), &[*status]].concat();
                    statuses.iter().map(with).collect::<Vec<_>>()
                })
                .collect();
        }
        let truth = state.claim_statuses(objects, None);
        all.sort_by_key(|claim_statuses| *claim_statuses == truth);
        all
    }

    /// Recovers with any fence that a stale read can find, or finds that there is nothing to do.
    fn recover(&self, state: &State, job: &Job, batch: usize) -> Vec<Outcome> {
        let latest = state.batches[batch].fence;
        let mut seen: Vec<u32> = (0..=latest.min(STALE_FENCES)).chain([latest]).collect();
        seen.dedup();
        let plans: &[bool] = if self.other_plans {
            &[false, true]
        } else {
            &[true]
        };
        let mut outcomes = vec![answer(state.clone(), job, Answer::Done)];
        for fence in seen {
            if fence >= self.fences && fence != ABORTED {
                continue;
            }
            for is_same_plan in plans {
                let recovery = Job::recovery(batch, fence, *is_same_plan);
                let job = Job {
                    recovery: Some(Box::new(recovery)),
                    ..job.clone()
                };
                outcomes.push((state.clone(), Some(job)));
            }
        }
        outcomes
    }

    /// Batches are in the order in which their claims were acknowledged.
    fn verify(&self, state: &State, job: &Job, own: usize) -> Vec<Outcome> {
        let others = || {
            let batches = state.batches.iter().enumerate();
            batches.filter(|(index, batch)| *index != own && batch.objects & job.objects != 0)
        };
        let is_claimed = others().any(|(index, batch)| index < own && !batch.released);
        let can_miss = !is_claimed || self.mutation == Mutation::StaleVerify;
        // Whether a batch has ended may be unseen.
        let busy = others().next().map(|(index, _)| ClaimStatus::Busy {
            batch: id(index),
            lease_expired: false,
        });
        busy.into_iter()
            .chain(can_miss.then_some(ClaimStatus::Free))
            .map(|status| {
                let claim_statuses = bits(job.objects).map(|_| status).collect();
                answer(state.clone(), job, Answer::ClaimStatuses(claim_statuses))
            })
            .collect()
    }

    fn insert(&self, state: &State, job: &Job, own: usize, attempt: u32) -> Vec<Outcome> {
        let is_refused = self.guard_refuses(state, own, attempt);
        let inserted = |job: &Job, inserted| answer(state.clone(), job, Answer::Inserted(inserted));
        let Some(statement) = &job.waiting else {
            let looks = self.deadlines && self.mutation != Mutation::UncheckedInsert;
            if is_refused && looks {
                return vec![inserted(job, Inserted::Fenced)];
            }
            let statement = Statement {
                batch: own,
                attempt,
                token: job.tokens,
            };
            let mut after = state.clone();
            after.sent.insert(statement.key());
            let mut job = job.clone();
            job.waiting = Some(statement);
            job.tokens += u32::from(self.mutation == Mutation::NewTokenOnRetry);
            return vec![(after, Some(job))];
        };
        let knows = |table| state.knows((own, table, statement.token));
        let is_complete = (0..self.tables).all(knows);
        let job = Job {
            waiting: None,
            ..job.clone()
        };
        let mut outcomes = vec![inserted(&job, Inserted::Unknown)];
        if state.faults < self.faults {
            let mut after = state.clone();
            after.faults += 1;
            let fault = Answer::Inserted(Inserted::ObjectFault);
            outcomes.push(answer(after, &job, fault));
        }
        if is_refused {
            outcomes.push(inserted(&job, Inserted::Fenced));
        }
        if is_complete {
            outcomes.push(inserted(&job, Inserted::Committed));
        }
        outcomes
    }

    fn fence(&self, state: &State, job: &Job, own: usize, attempt: u32) -> Vec<Outcome> {
        let mut job = job.clone();
        let mut after = state.clone();
        let batch = &mut after.batches[own];
        let mut outcomes = Vec::new();
        if !job.fencing {
            let is_old = batch.fence >= attempt;
            batch.fence = batch.fence.max(attempt);
            if is_old && attempt != ABORTED {
                let taken_over = Answer::Fence(Fence::TakenOver);
                outcomes.push(answer(state.clone(), &job, taken_over));
            }
            if is_old && self.mutation == Mutation::OldFenceNotAwaited {
                outcomes.push(answer(after, &job, Answer::Fence(Fence::Written)));
            } else {
                job.fencing = true;
                outcomes.push((after, Some(job)));
            }
            return outcomes;
        }
        job.fencing = false;
        if self.deadlines {
            // A server that cannot be reached can no longer start what it was sent. What it is
            // sent from now on, it can: it does not show the fence.
            let mut after = state.clone();
            after.sent.retain(|key| key.0 != own || key.1 > attempt);
            after
                .records_sent
                .retain(|key| key.0 != own || key.1 > attempt);
            outcomes.push(answer(after, &job, Answer::Fence(Fence::Written)));
        }
        if self.mutation != Mutation::StaleFence {
            batch.visible_fence = batch.visible_fence.max(attempt);
        }
        outcomes.push(answer(after, &job, Answer::Fence(Fence::Written)));
        outcomes
    }

    fn roll_back(&self, state: &State, job: &Job, own: usize) -> Vec<Outcome> {
        let mut job = job.clone();
        let mut after = state.clone();
        let mut outcomes = Vec::new();
        if !job.rolling_back {
            let has_ended = !state.batches[own].is_active();
            if has_ended {
                let ended = Answer::RolledBack(RolledBack::Ended);
                outcomes.push(answer(state.clone(), &job, ended));
            }
            if !has_ended || self.mutation == Mutation::StaleRollBackLook {
                job.rolling_back = true;
                outcomes.push((after, Some(job)));
            }
            return outcomes;
        }
        let left = state.committed.iter().find(|commit| commit.0 == own);
        if left.is_none() || self.mutation == Mutation::StaleLookForRest {
            let job = Job {
                rolling_back: false,
                ..job.clone()
            };
            let deleted = Answer::RolledBack(RolledBack::Deleted);
            outcomes.push(answer(state.clone(), &job, deleted));
        }
        if let Some(commit) = left {
            after.committed.remove(commit);
            after.rolled_back.insert(*commit);
            outcomes.push((after, Some(job)));
        }
        outcomes
    }

    fn record(&self, state: &State, job: &Job, own: usize, attempt: u32) -> Vec<Outcome> {
        let is_refused = self.record_refused(state, own, attempt);
        let recorded = |job: &Job, recorded| answer(state.clone(), job, Answer::Recorded(recorded));
        let mut job = job.clone();
        if !job.recording {
            let looks = self.deadlines && self.mutation != Mutation::UncheckedRecord;
            if is_refused && looks {
                return vec![recorded(&job, Recorded::Fenced)];
            }
            job.recording = true;
            let mut after = state.clone();
            after.records_sent.insert((own, attempt));
            return vec![(after, Some(job))];
        }
        job.recording = false;
        // No response: it is sent again.
        let mut outcomes = vec![(state.clone(), Some(job.clone()))];
        if state.batches[own].loaded {
            outcomes.push(recorded(&job, Recorded::Written));
        }
        if is_refused {
            outcomes.push(recorded(&job, Recorded::Fenced));
        }
        outcomes
    }
}

const REPLICAS: Case = Case {
    replicas: true,
    crashes: 1,
    fences: 1,
    ..ONE_OBJECT
};

/// A statement that fails after some tables have its rows.
const FAULTY_REPLICAS: Case = Case {
    faults: 1,
    ..REPLICAS
};

#[test]
fn nothing_is_lost_or_doubled_on_replicas() {
    let two_recoveries = Case {
        fences: 2,
        ..REPLICAS
    };
    REPLICAS.assert_holds();
    two_recoveries.assert_holds();
}

#[test]
fn nothing_is_lost_or_doubled_on_replicas_with_two_objects() {
    let case = Case {
        objects: 2,
        tables: 1,
        crashes: 0,
        ..REPLICAS
    };
    case.assert_holds();
}

#[test]
fn nothing_is_lost_or_doubled_on_replicas_with_three_workers() {
    let case = Case {
        workers: 3,
        tables: 1,
        ..REPLICAS
    };
    case.assert_holds();
}

#[test]
fn nothing_is_lost_or_doubled_on_replicas_when_rows_are_rolled_back() {
    FAULTY_REPLICAS.assert_holds();
}

#[test]
fn nothing_is_lost_or_doubled_on_replicas_by_workers_of_another_configuration() {
    let case = Case {
        tables: 1,
        other_plans: true,
        ..REPLICAS
    };
    case.assert_holds();
}

#[test]
fn nothing_is_lost_or_doubled_while_a_replica_cannot_be_reached() {
    let deadlines = Case {
        deadlines: true,
        ..REPLICAS
    };
    let faulty = Case {
        tables: 1,
        faults: 1,
        stuck: true,
        ..deadlines
    };
    deadlines.assert_holds();
    faulty.assert_holds();
}

#[test]
fn nothing_is_stuck_on_replicas() {
    for case in [REPLICAS, FAULTY_REPLICAS] {
        let case = Case {
            tables: 1,
            stuck: true,
            ..case
        };
        case.assert_holds();
        case.assert_notices(Mutation::LeasesNeverEnd);
    }
}

#[test]
fn every_protection_of_replicas_is_needed() {
    let deadlines = Case {
        deadlines: true,
        ..FAULTY_REPLICAS
    };
    for (mutation, case) in [
        (Mutation::StaleVerify, REPLICAS),
        (Mutation::StaleFence, REPLICAS),
        (Mutation::OldFenceNotAwaited, REPLICAS),
        (Mutation::MissedKill, REPLICAS),
        (Mutation::StaleRowCheck, REPLICAS),
        (Mutation::NewTokenOnRetry, REPLICAS),
        (Mutation::ForgottenTokens, REPLICAS),
        (Mutation::StaleRollBackLook, FAULTY_REPLICAS),
        (Mutation::StaleLookForRest, FAULTY_REPLICAS),
        (Mutation::UncheckedInsert, deadlines),
        (Mutation::UncheckedRecord, deadlines),
    ] {
        case.assert_notices(mutation);
    }
}
