//! An exhaustive search over small cases of the protocol: several workers, crashes after every
//! step, requests that start late, statements that commit late, table by table.
//!
//! The workers are real [`Run`]s; the server, the ledger and the queue are modelled. Each
//! [`Mutation`] leaves out or reorders one step; the search must then find a violation, which shows
//! both that the step is needed and that the search can detect its absence. [`replicas`] has the
//! cases with several servers.

mod replicas;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use uuid::Uuid;

use super::drive::{Fence, Inserted, Recorded, RolledBack, Steps};
use super::protocol::{ABORTED, Action, ClaimStatus, End, Kill, Run};
use crate::batch::BatchId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    None,
    NoVerify,
    NoGuard,
    NoKill,
    NoRowCheck,
    ReleaseWithRows,
    NewTokenOnRetry,
    RecordBeforeInsert,
    SettleBeforeRecord,
    NoAbort,
    UnguardedRecord,
    RecordNotKilled,
    RollBackWithoutLook,
    LeasesNeverEnd,
    /// The verify misses a claim that was acknowledged before its own.
    StaleVerify,
    /// A guard misses a fence whose step has completed.
    StaleFence,
    /// The step of a fence that was already written does not wait until every server shows it.
    OldFenceNotAwaited,
    /// A confirmed kill misses statements.
    MissedKill,
    /// The row check misses rows.
    StaleRowCheck,
    /// The look at the ledger before a rollback misses that the batch is loaded.
    StaleRollBackLook,
    /// The look for rows that are left to delete misses some.
    StaleLookForRest,
    /// Inserts are sent without a look at the ledger, although a fence does not wait for servers
    /// that cannot be reached.
    UncheckedInsert,
    /// Records are.
    UncheckedRecord,
    /// The tables forget the token of a loaded batch.
    ForgottenTokens,
}

/// The result of a step in the model.
#[derive(Debug)]
enum Answer {
    ClaimStatuses(Vec<ClaimStatus>),
    /// The result of a step that always succeeds.
    Done,
    Whether(bool),
    Inserted(Inserted),
    Fence(Fence),
    RolledBack(RolledBack),
    Recorded(Recorded),
}

/// Performs one step by returning its result. The result of another step is an error in the model.
macro_rules! given {
    ($answer:expr, $pattern:pat => $value:expr) => {
        match $answer {
            $pattern => Ok($value),
            other => panic!("{other:?} is the result of another step"),
        }
    };
}

impl Steps for Answer {
    type Error = Infallible;

    async fn look_up(&mut self) -> Result<Vec<ClaimStatus>, Infallible> {
        given!(self, Self::ClaimStatuses(claim_statuses) => claim_statuses.clone())
    }

    async fn recover(&mut self, _: BatchId) -> Result<(), Infallible> {
        given!(self, Self::Done => ())
    }

    async fn claim(&mut self) -> Result<(), Infallible> {
        given!(self, Self::Done => ())
    }

    async fn verify(&mut self) -> Result<Vec<ClaimStatus>, Infallible> {
        given!(self, Self::ClaimStatuses(claim_statuses) => claim_statuses.clone())
    }

    async fn insert(&mut self, _: u32) -> Result<Inserted, Infallible> {
        given!(self, Self::Inserted(inserted) => *inserted)
    }

    async fn kill(&mut self, _: Kill) -> Result<(), Infallible> {
        given!(self, Self::Done => ())
    }

    async fn fence(&mut self, _: u32) -> Result<Fence, Infallible> {
        given!(self, Self::Fence(fence) => *fence)
    }

    async fn has_rows(&mut self) -> Result<bool, Infallible> {
        given!(self, Self::Whether(found) => *found)
    }

    async fn is_complete(&mut self) -> Result<bool, Infallible> {
        given!(self, Self::Whether(complete) => *complete)
    }

    async fn roll_back(&mut self) -> Result<RolledBack, Infallible> {
        given!(self, Self::RolledBack(rolled_back) => *rolled_back)
    }

    async fn release(&mut self) -> Result<(), Infallible> {
        given!(self, Self::Done => ())
    }

    async fn record(&mut self, _: u32) -> Result<Recorded, Infallible> {
        given!(self, Self::Recorded(recorded) => *recorded)
    }
}

/// Advances the run by one step.
fn answered(run: &mut Run, mut answer: Answer) {
    let step = pin!(run.step(&mut answer));
    // The model never waits.
    let Poll::Ready(Ok(())) = step.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("the step waited, which no step of the model does");
    };
}

#[derive(Clone, Copy)]
struct Case {
    objects: u8,
    tables: u8,
    workers: usize,
    batches: usize,
    crashes: u8,
    fences: u32,
    /// How often a statement fails because of an object, at any point.
    faults: u8,
    /// Whether to also look for states from which no worker can finish.
    stuck: bool,
    /// Whether workers of another configuration may also recover.
    other_plans: bool,
    /// Whether several servers share the tables.
    replicas: bool,
    /// Whether servers may be out of reach: then a fence waits for the deadlines of what they were
    /// sent, and a worker looks at the ledger before it sends anything else.
    deadlines: bool,
    mutation: Mutation,
}

/// Objects as a set of bits.
type Objects = u8;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Batch {
    objects: Objects,
    released: bool,
    loaded: bool,
    fence: u32,
    /// The highest fence that every server shows. Used only where there are several.
    visible_fence: u32,
}

impl Batch {
    fn is_active(&self) -> bool {
        !self.released && !self.loaded
    }
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Statement {
    batch: usize,
    attempt: u32,
    /// The same for every attempt, unless mutated.
    token: u32,
}

impl Statement {
    fn key(&self) -> (usize, u32, u32) {
        (self.batch, self.attempt, self.token)
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    batches: Vec<Batch>,
    /// Sent, and not yet started by the server: a kill does not reach them.
    sent: BTreeSet<(usize, u32, u32)>,
    running: BTreeSet<(usize, u32, u32)>,
    /// Commits of a batch into a table under a token; a token commits once.
    committed: BTreeSet<(usize, u8, u32)>,
    /// Commits whose rows were deleted afterwards: the token is still known.
    rolled_back: BTreeSet<(usize, u8, u32)>,
    /// Records of a batch by an attempt: sent, and running.
    records_sent: BTreeSet<(usize, u32)>,
    recording: BTreeSet<(usize, u32)>,
    deleted: Objects,
    workers: Vec<Worker>,
    crashes: u8,
    faults: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Worker {
    Idle,
    Busy(Job),
}

/// A run, and what its worker keeps beside it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Job {
    run: Run,
    objects: Objects,
    /// Set once it has claimed.
    batch: Option<usize>,
    /// The statement that the worker waits for.
    waiting: Option<Statement>,
    tokens: u32,
    /// A record has been sent, and its result is awaited.
    recording: bool,
    /// It has written a fence that not every server shows. Used only where there are several.
    fencing: bool,
    /// It has seen that the batch has not ended, and is deleting its rows.
    rolling_back: bool,
    /// The recovery of another batch, which comes first.
    recovery: Option<Box<Job>>,
}

impl Job {
    fn load(objects: Objects) -> Self {
        Self {
            run: Run::load(),
            objects,
            batch: None,
            waiting: None,
            tokens: 0,
            recording: false,
            fencing: false,
            rolling_back: false,
            recovery: None,
        }
    }

    fn recovery(batch: usize, fence: u32, is_same_plan: bool) -> Self {
        let run = Run::recover(fence, is_same_plan);
        Self {
            run,
            objects: 0,
            batch: Some(batch),
            waiting: None,
            tokens: 0,
            recording: false,
            fencing: false,
            rolling_back: false,
            recovery: None,
        }
    }
}

fn id(batch: usize) -> BatchId {
    BatchId(Uuid::from_u128(batch as u128))
}

fn index(batch: BatchId) -> usize {
    usize::try_from(batch.0.as_u128()).expect("made from an index")
}

fn bits(objects: Objects) -> impl Iterator<Item = Objects> {
    (0..8)
        .map(|bit| 1 << bit)
        .filter(move |bit| objects & bit != 0)
}

impl State {
    fn claim_statuses(&self, objects: Objects, excluding: Option<usize>) -> Vec<ClaimStatus> {
        let others = || {
            self.batches
                .iter()
                .enumerate()
                .filter(|(index, _)| Some(*index) != excluding)
        };
        bits(objects)
            .map(|object| {
                let listing = || others().filter(move |(_, batch)| batch.objects & object != 0);
                if listing().any(|(_, batch)| batch.loaded) {
                    ClaimStatus::Loaded
                } else if let Some((busy, _)) = listing().find(|(_, batch)| batch.is_active()) {
                    // Whether the lease has expired is left open: the caller tries both.
                    ClaimStatus::Busy {
                        batch: id(busy),
                        lease_expired: true,
                    }
                } else {
                    ClaimStatus::Free
                }
            })
            .collect()
    }

    /// Returns whether the server knows the token of this commit, and so would drop its repetition.
    fn knows(&self, commit: (usize, u8, u32)) -> bool {
        self.committed.contains(&commit) || self.rolled_back.contains(&commit)
    }

    fn has_rows(&self, batch: usize) -> bool {
        self.committed
            .iter()
            .any(|(committed, ..)| *committed == batch)
    }
}

impl Case {
    fn start(&self) -> State {
        State {
            batches: Vec::new(),
            sent: BTreeSet::new(),
            running: BTreeSet::new(),
            committed: BTreeSet::new(),
            rolled_back: BTreeSet::new(),
            records_sent: BTreeSet::new(),
            recording: BTreeSet::new(),
            deleted: 0,
            workers: vec![Worker::Idle; self.workers],
            crashes: 0,
            faults: 0,
        }
    }

    fn guard_refuses(&self, state: &State, batch: usize, attempt: u32) -> bool {
        let batch = &state.batches[batch];
        self.mutation != Mutation::NoGuard
            && (batch.released || batch.loaded || batch.fence >= attempt)
    }

    fn record_refused(&self, state: &State, batch: usize, attempt: u32) -> bool {
        let batch = &state.batches[batch];
        self.mutation != Mutation::UnguardedRecord && (batch.released || batch.fence >= attempt)
    }

    fn next(&self, state: &State) -> Vec<State> {
        let mut next = Vec::new();
        if self.replicas {
            self.server_steps_on_replicas(state, &mut next);
        } else {
            self.server_steps(state, &mut next);
            self.record_steps(state, &mut next);
        }
        for worker in 0..self.workers {
            match &state.workers[worker] {
                Worker::Idle => {
                    let all = (1 << self.objects) - 1;
                    for objects in 1..=all {
                        // A stale look-up may miss that a repeated object is loaded.
                        if objects & state.deleted == 0 || self.replicas {
                            let mut after = state.clone();
                            after.workers[worker] = Worker::Busy(Job::load(objects));
                            next.push(after);
                        }
                    }
                }
                Worker::Busy(job) => {
                    if state.crashes < self.crashes {
                        let mut after = state.clone();
                        after.workers[worker] = Worker::Idle;
                        after.crashes += 1;
                        next.push(after);
                    }
                    for (mut after, job) in self.job_steps(state, job) {
                        after.workers[worker] = job.map_or(Worker::Idle, Worker::Busy);
                        next.push(after);
                    }
                }
            }
        }
        if self.replicas {
            for after in &mut next {
                self.drop_inert(after);
            }
        }
        next
    }

    fn server_steps(&self, state: &State, next: &mut Vec<State>) {
        for sent in &state.sent {
            let mut after = state.clone();
            after.sent.remove(sent);
            if !self.guard_refuses(state, sent.0, sent.1) {
                after.running.insert(*sent);
            }
            next.push(after);
        }
        for running in &state.running {
            let (batch, _, token) = *running;
            let missing: Vec<u8> = (0..self.tables)
                .filter(|table| !state.knows((batch, *table, token)))
                .collect();
            for table in &missing {
                let mut after = state.clone();
                after.committed.insert((batch, *table, token));
                next.push(after);
            }
            if missing.is_empty() {
                let mut after = state.clone();
                after.running.remove(running);
                next.push(after);
            }
        }
    }

    fn record_steps(&self, state: &State, next: &mut Vec<State>) {
        for (batch, attempt) in &state.records_sent {
            let mut after = state.clone();
            after.records_sent.remove(&(*batch, *attempt));
            if !self.record_refused(state, *batch, *attempt) {
                after.recording.insert((*batch, *attempt));
            }
            next.push(after);
        }
        for (batch, attempt) in &state.recording {
            let mut after = state.clone();
            after.recording.remove(&(*batch, *attempt));
            after.batches[*batch].loaded = true;
            next.push(after);
        }
    }

    /// Returns every outcome of a job's next action; `None` for a job that has ended.
    fn job_steps(&self, state: &State, job: &Job) -> Vec<(State, Option<Job>)> {
        if let Some(recovery) = &job.recovery {
            let steps = self.job_steps(state, recovery);
            return steps
                .into_iter()
                .map(|(after, recovery)| {
                    let mut job = job.clone();
                    if recovery.is_none() {
                        answered(&mut job.run, Answer::Done);
                    }
                    job.recovery = recovery.map(Box::new);
                    (after, Some(job))
                })
                .collect();
        }
        if self.replicas
            && let Some(outcomes) = self.job_steps_on_replicas(state, job)
        {
            return outcomes;
        }
        let mut outcomes = Vec::new();
        let mut answer = |after: State, mut job: Job, given: Answer| {
            answered(&mut job.run, given);
            outcomes.push((after, Some(job)));
        };
        let mut after = state.clone();
        let mut job = job.clone();
        match job.run.action() {
            Action::LookUp => {
                let claim_statuses = state.claim_statuses(job.objects, None);
                let mut free = 0;
                for (object, status) in bits(job.objects).zip(&claim_statuses) {
                    match status {
                        ClaimStatus::Loaded => after.deleted |= object,
                        ClaimStatus::Free => free |= object,
                        ClaimStatus::Busy { .. } => {}
                    }
                }
                job.objects = free;
                if state.batches.len() < self.batches || free == 0 {
                    let leased = with_expired_leases(&claim_statuses, |_| false);
                    answer(after.clone(), job.clone(), Answer::ClaimStatuses(leased));
                }
                let lease_expired = with_expired_leases(&claim_statuses, |batch| {
                    let fence = state.batches[batch].fence;
                    let can_recover = fence < self.fences || fence == ABORTED;
                    can_recover && self.mutation != Mutation::LeasesNeverEnd
                });
                if lease_expired.iter().any(ClaimStatus::has_expired_lease) {
                    // Afterwards it looks up all of the objects again.
                    job.objects |= busy(&claim_statuses, state);
                    answer(after, job, Answer::ClaimStatuses(lease_expired));
                }
            }
            Action::Recover(batch) => {
                let batch = index(batch);
                let fence = state.batches[batch].fence;
                let mut recover = |is_same_plan| {
                    let mut job = job.clone();
                    job.recovery = Some(Box::new(Job::recovery(batch, fence, is_same_plan)));
                    outcomes.push((after.clone(), Some(job)));
                };
                recover(true);
                if self.other_plans {
                    recover(false);
                }
            }
            Action::Claim => {
                job.batch = Some(state.batches.len());
                after.batches.push(Batch {
                    objects: job.objects,
                    released: false,
                    loaded: false,
                    fence: 0,
                    visible_fence: 0,
                });
                if after.batches.len() <= self.batches {
                    answer(after, job, Answer::Done);
                }
            }
            Action::Verify => {
                let mut claim_statuses = state.claim_statuses(job.objects, job.batch);
                if self.mutation == Mutation::NoVerify {
                    claim_statuses.fill(ClaimStatus::Free);
                }
                answer(after, job, Answer::ClaimStatuses(claim_statuses));
            }
            Action::Insert { attempt } => {
                let batch = job.batch.expect("claimed");
                if self.mutation == Mutation::RecordBeforeInsert {
                    after.batches[batch].loaded = true;
                }
                match job.waiting.clone() {
                    None => {
                        let token = job.tokens;
                        if self.mutation == Mutation::NewTokenOnRetry {
                            job.tokens += 1;
                        }
                        let statement = Statement {
                            batch,
                            attempt,
                            token,
                        };
                        after.sent.insert(statement.key());
                        job.waiting = Some(statement);
                        outcomes.push((after, Some(job)));
                    }
                    Some(statement) => {
                        job.waiting = None;
                        let is_running = state.sent.contains(&statement.key())
                            || state.running.contains(&statement.key());
                        let complete = (0..self.tables)
                            .all(|table| state.knows((batch, table, statement.token)));
                        if !is_running && complete {
                            answer(
                                after.clone(),
                                job.clone(),
                                Answer::Inserted(Inserted::Committed),
                            );
                        } else if !is_running && self.guard_refuses(state, batch, attempt) {
                            answer(
                                after.clone(),
                                job.clone(),
                                Answer::Inserted(Inserted::Fenced),
                            );
                        }
                        if !is_running && state.faults < self.faults {
                            let mut after = after.clone();
                            after.faults += 1;
                            answer(after, job.clone(), Answer::Inserted(Inserted::ObjectFault));
                        }
                        answer(after, job, Answer::Inserted(Inserted::Unknown));
                    }
                }
            }
            Action::Kill(_) => {
                if self.mutation != Mutation::NoKill {
                    let batch = job.batch.expect("claimed");
                    after.running.retain(|(running, ..)| *running != batch);
                    if self.mutation != Mutation::RecordNotKilled {
                        after.recording.retain(|(running, _)| *running != batch);
                    }
                }
                answer(after, job, Answer::Done);
            }
            Action::Fence { attempt: ABORTED } if self.mutation == Mutation::NoAbort => {
                answer(after, job, Answer::Fence(Fence::Written));
            }
            Action::Fence { attempt } => {
                let batch = &mut after.batches[job.batch.expect("claimed")];
                if batch.fence >= attempt && attempt != ABORTED {
                    answer(state.clone(), job.clone(), Answer::Fence(Fence::TakenOver));
                }
                if batch.is_active() {
                    batch.fence = batch.fence.max(attempt);
                    answer(after, job, Answer::Fence(Fence::Written));
                } else {
                    outcomes.push((after, None));
                }
            }
            Action::CheckRows => {
                let found = match self.mutation {
                    Mutation::NoRowCheck => true,
                    Mutation::ReleaseWithRows => false,
                    _ => state.has_rows(job.batch.expect("claimed")),
                };
                answer(after, job, Answer::Whether(found));
            }
            Action::CheckComplete => {
                let batch = job.batch.expect("claimed");
                let complete = (0..self.tables).all(|table| {
                    let has = |commit: &(usize, u8, u32)| (commit.0, commit.1) == (batch, table);
                    state.committed.iter().any(has)
                });
                if complete {
                    answer(after.clone(), job.clone(), Answer::Whether(true));
                }
                // The comparison can fail although every table has rows.
                answer(after, job, Answer::Whether(false));
            }
            Action::RollBack => {
                let batch = job.batch.expect("claimed");
                let left = state.committed.iter().find(|commit| commit.0 == batch);
                if !job.rolling_back {
                    let looks = self.mutation != Mutation::RollBackWithoutLook;
                    if looks && !state.batches[batch].is_active() {
                        answer(after, job, Answer::RolledBack(RolledBack::Ended));
                    } else {
                        job.rolling_back = true;
                        outcomes.push((after, Some(job)));
                    }
                } else if let Some(commit) = left {
                    after.committed.remove(commit);
                    after.rolled_back.insert(*commit);
                    outcomes.push((after, Some(job)));
                } else {
                    job.rolling_back = false;
                    answer(after, job, Answer::RolledBack(RolledBack::Deleted));
                }
            }
            Action::Release => {
                after.batches[job.batch.expect("claimed")].released = true;
                answer(after, job, Answer::Done);
            }
            Action::Record { attempt } => {
                let batch = job.batch.expect("claimed");
                let record = (batch, attempt);
                if self.mutation == Mutation::SettleBeforeRecord
                    && after.deleted & after.batches[batch].objects == 0
                {
                    after.deleted |= after.batches[batch].objects;
                    outcomes.push((after, Some(job)));
                } else if self.faults == 0 && !self.other_plans {
                    // Only a rollback could come in between, so one step is enough.
                    if self.record_refused(state, batch, attempt) {
                        answer(after, job, Answer::Recorded(Recorded::Fenced));
                    } else {
                        after.batches[batch].loaded = true;
                        answer(after, job, Answer::Recorded(Recorded::Written));
                    }
                } else if !job.recording {
                    after.records_sent.insert(record);
                    job.recording = true;
                    outcomes.push((after, Some(job)));
                } else if state.recording.contains(&record) || state.records_sent.contains(&record)
                {
                    // No response: it is sent again.
                    job.recording = false;
                    outcomes.push((after, Some(job)));
                } else if self.record_refused(state, batch, attempt) {
                    job.recording = false;
                    answer(after, job, Answer::Recorded(Recorded::Fenced));
                } else {
                    job.recording = false;
                    if state.batches[batch].loaded {
                        answer(after, job, Answer::Recorded(Recorded::Written));
                    } else {
                        // It was killed: it is sent again.
                        outcomes.push((after, Some(job)));
                    }
                }
            }
            Action::Finish(end) => {
                if end == End::Loaded && job.objects != 0 {
                    after.deleted |= job.objects;
                }
                outcomes.push((after, None));
            }
        }
        outcomes
    }

    fn violation(&self, state: &State) -> Option<String> {
        let mut rows: BTreeMap<(Objects, u8), u32> = BTreeMap::new();
        for (batch, table, _) in &state.committed {
            for object in bits(state.batches[*batch].objects) {
                *rows.entry((object, *table)).or_default() += 1;
            }
        }
        for object in bits((1 << self.objects) - 1) {
            for table in 0..self.tables {
                let count = rows.get(&(object, table)).copied().unwrap_or_default();
                if count > 1 {
                    return Some(format!("object {object} is {count} times in table {table}"));
                }
                if state.deleted & object != 0 && count != 1 {
                    return Some(format!(
                        "object {object} is settled and not in table {table}"
                    ));
                }
            }
            // Later deliveries are settled because a loaded batch lists the object.
            let recorded = state
                .batches
                .iter()
                .any(|batch| batch.loaded && batch.objects & object != 0);
            if state.deleted & object != 0 && !recorded {
                return Some(format!("object {object} is settled and not recorded"));
            }
        }
        None
    }

    /// Returns the number of states that were searched.
    ///
    /// # Errors
    ///
    /// Returns the first violation.
    fn search(&self) -> Result<usize, String> {
        let mut calm = HashSet::new();
        let mut seen = HashSet::from([self.start()]);
        let mut queue: VecDeque<State> = seen.iter().cloned().collect();
        while let Some(state) = queue.pop_front() {
            if let Some(violation) = self.violation(&state) {
                return Err(violation);
            }
            if self.stuck && !self.can_settle(&state, &mut calm) {
                return Err("an object is never settled".to_owned());
            }
            for mut next in self.next(&state) {
                // Workers are interchangeable, so that their order makes no difference.
                next.workers.sort_unstable();
                if seen.insert(next.clone()) {
                    queue.push_back(next);
                }
            }
        }
        Ok(seen.len())
    }

    /// Returns whether one worker alone, after all others have died, settles every object. Adds the
    /// states from which this is known to `calm`.
    fn can_settle(&self, state: &State, calm: &mut HashSet<State>) -> bool {
        let alone = Self {
            workers: 1,
            batches: state.batches.len() + 2,
            fences: u32::MAX,
            ..*self
        };
        let mut start = state.clone();
        start.workers = vec![Worker::Idle];
        start.crashes = self.crashes;
        start.faults = self.faults;
        let mut seen = HashSet::from([start.clone()]);
        let mut path = vec![start];
        let mut branches = vec![alone.next(&path[0])];
        while let Some(state) = path.last() {
            if state.deleted == (1 << self.objects) - 1 || calm.contains(state) {
                calm.extend(path);
                return true;
            }
            let next = branches.last_mut().and_then(Vec::pop);
            let Some(next) = next else {
                path.pop();
                branches.pop();
                continue;
            };
            if seen.insert(next.clone()) {
                branches.push(alone.next(&next));
                path.push(next);
            }
        }
        false
    }
}

fn busy(claim_statuses: &[ClaimStatus], state: &State) -> Objects {
    claim_statuses
        .iter()
        .filter_map(|status| match status {
            ClaimStatus::Busy { batch, .. } => Some(state.batches[index(*batch)].objects),
            _ => None,
        })
        .fold(0, |all, objects| all | objects)
}

/// Returns the claim statuses as they are if the leases of these batches have expired, and no
/// others.
fn with_expired_leases(
    claim_statuses: &[ClaimStatus],
    lease_expired: impl Fn(usize) -> bool,
) -> Vec<ClaimStatus> {
    claim_statuses
        .iter()
        .map(|status| match status {
            ClaimStatus::Busy { batch, .. } => ClaimStatus::Busy {
                batch: *batch,
                lease_expired: lease_expired(index(*batch)),
            },
            other => *other,
        })
        .collect()
}

impl Case {
    /// Asserts that a search of many states finds no violation.
    #[track_caller]
    fn assert_holds(&self) {
        let states = self.search().unwrap();
        assert!(states > 10_000, "only {states} states");
    }

    /// Asserts that the search finds a violation with this mutation.
    #[track_caller]
    fn assert_notices(&self, mutation: Mutation) {
        let outcome = Self { mutation, ..*self }.search();
        assert!(outcome.is_err(), "{mutation:?} went unnoticed: {outcome:?}");
    }
}

const ONE_OBJECT: Case = Case {
    objects: 1,
    tables: 2,
    workers: 2,
    batches: 2,
    crashes: 2,
    fences: 2,
    faults: 0,
    stuck: false,
    other_plans: false,
    replicas: false,
    deadlines: false,
    mutation: Mutation::None,
};

/// A statement that fails after some tables have its rows, and workers that have lost their lease.
const FAULTY: Case = Case {
    crashes: 1,
    fences: 1,
    faults: 1,
    ..ONE_OBJECT
};

#[test]
fn nothing_is_lost_or_doubled_with_two_workers() {
    ONE_OBJECT.assert_holds();
}

#[test]
fn nothing_is_lost_or_doubled_with_two_objects() {
    let case = Case {
        objects: 2,
        tables: 1,
        crashes: 1,
        fences: 1,
        ..ONE_OBJECT
    };
    case.search().unwrap();
}

#[test]
fn nothing_is_lost_or_doubled_with_three_workers() {
    let case = Case {
        workers: 3,
        tables: 1,
        crashes: 1,
        fences: 1,
        ..ONE_OBJECT
    };
    case.search().unwrap();
}

#[test]
fn nothing_is_lost_or_doubled_when_rows_are_rolled_back() {
    FAULTY.assert_holds();
}

#[test]
fn nothing_is_stuck() {
    for case in [ONE_OBJECT, FAULTY] {
        let case = Case {
            tables: 1,
            crashes: 1,
            fences: 1,
            stuck: true,
            ..case
        };
        case.search().unwrap();
        case.assert_notices(Mutation::LeasesNeverEnd);
    }
}

#[test]
fn nothing_is_lost_or_doubled_by_workers_of_another_configuration() {
    let case = Case {
        crashes: 1,
        fences: 1,
        other_plans: true,
        ..ONE_OBJECT
    };
    case.assert_holds();
}

#[test]
fn every_step_of_a_rollback_is_needed() {
    for mutation in [
        Mutation::NoAbort,
        Mutation::UnguardedRecord,
        Mutation::RecordNotKilled,
        Mutation::RollBackWithoutLook,
    ] {
        FAULTY.assert_notices(mutation);
    }
}

#[test]
fn every_step_is_needed() {
    for mutation in [
        Mutation::NoVerify,
        Mutation::NoGuard,
        Mutation::NoKill,
        Mutation::NoRowCheck,
        Mutation::ReleaseWithRows,
        Mutation::NewTokenOnRetry,
        Mutation::RecordBeforeInsert,
        Mutation::SettleBeforeRecord,
    ] {
        ONE_OBJECT.assert_notices(mutation);
    }
}
