//! Statements that run for a while: inserts, which commit block by block and table by table, and
//! records. Each runs as a task of its own, whether or not its client waits for the answer.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use sluice::batch::BatchId;
use sluice::clickhouse::WarehouseError;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::SimServer;
use super::checks::Read;
use super::errors;
use super::ledger_rows::{Event, EventRow};
use super::log::View;
use super::parts::{PartId, TableId};
use super::plan::{Guard, Line, Plan, Source};
use super::state::{Answer, Short, State};
use crate::s3::{ReadError, Reader};

/// How long objects are read, in milliseconds.
const READ_MILLIS: RangeInclusive<u64> = 10..=1_500;
/// The same for the reads that are slow, one of [`SLOW_READS`].
const SLOW_READ_MILLIS: RangeInclusive<u64> = 1_000..=20_000;
const SLOW_READS: u32 = 10;
/// After how long an insert whose reads are held looks again whether they are, in milliseconds.
const HELD_MILLIS: RangeInclusive<u64> = 10..=10;
/// How long a block takes to be committed in a table, in milliseconds.
const COMMIT_MILLIS: RangeInclusive<u64> = 0..=50;
/// How long a record takes, in milliseconds.
const RECORD_MILLIS: RangeInclusive<u64> = 0..=20;

/// The number of steps among which an insert that fails does so.
const FAILING_STEPS: u32 = 5;

/// A statement that is running.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) batch: BatchId,
    pub(super) replica: usize,
    is_killed: bool,
    /// Cancelled if the statement is killed, or its server crashes.
    stop: CancellationToken,
    /// Closed once the statement has ended.
    ends: Vec<oneshot::Sender<()>>,
    /// What it has committed last.
    newest: Option<PartId>,
    /// The number of steps until it fails, and the error code.
    failure: Option<(u32, u32)>,
}

/// Why a statement has ended before it was complete.
enum Ended {
    Failed(WarehouseError),
    /// Its server has crashed.
    Gone,
}

/// A running statement, as its own task sees it.
struct Task {
    server: SimServer,
    id: u64,
    stop: CancellationToken,
}

impl Running {
    pub(super) fn is_killed(&self) -> bool {
        self.is_killed
    }
}

impl State {
    /// Starts an insert, whose lines the client sends or the server reads.
    ///
    /// # Errors
    ///
    /// Fails if the guard refuses it.
    pub(super) fn start_insert(
        &mut self,
        server: &SimServer,
        view: View,
        plan: Arc<Plan>,
        sent: Option<Vec<Line>>,
    ) -> Answer<oneshot::Receiver<Answer<()>>> {
        self.check_guard(&plan.guard, &[Event::Released, Event::Loaded], view)?;
        let (code, one_in) = self.faults.failing_inserts;
        let fails = self.happens(one_in);
        let failure = fails.then(|| (self.rng.u32(..FAILING_STEPS), code));
        let task = self.start(server, view, plan.batch, failure);
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let limit = plan.time_limit();
            let insert = tokio::time::timeout(limit, task.insert(&plan, sent));
            let too_slow = |_| Err(Ended::Failed(errors::too_slow(limit)));
            let outcome = insert.await.unwrap_or_else(too_slow);
            task.end(outcome, answer);
        });
        Ok(answered)
    }

    /// Starts to record that a batch is loaded.
    ///
    /// # Errors
    ///
    /// Fails if the guard refuses it.
    pub(super) fn start_record(
        &mut self,
        server: &SimServer,
        view: View,
        guard: Guard,
        record: EventRow,
    ) -> Answer<oneshot::Receiver<Answer<()>>> {
        self.check_guard(&guard, &[Event::Released], view)?;
        let task = self.start(server, view, guard.batch, None);
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let outcome = task.record(guard.batch, record).await;
            task.end(outcome, answer);
        });
        Ok(answered)
    }

    fn check_guard(&self, guard: &Guard, ended_by: &[Event], view: View) -> Answer<()> {
        let checked = guard.check(self, ended_by, view);
        if checked.is_err() {
            let (short, attempt) = (Short(guard.batch), guard.attempt);
            self.note(format_args!("the guard refuses {short} {attempt}"));
        }
        checked
    }

    fn start(
        &mut self,
        server: &SimServer,
        view: View,
        batch: BatchId,
        failure: Option<(u32, u32)>,
    ) -> Task {
        let id = self.next_number();
        let stop = CancellationToken::new();
        let running = Running {
            batch,
            replica: view.replica,
            is_killed: false,
            stop: stop.clone(),
            ends: Vec::new(),
            newest: None,
            failure,
        };
        self.running.insert(id, running);
        self.note(format_args!("{} starts as {id}", Short(batch)));
        Task {
            server: server.clone(),
            id,
            stop,
        }
    }

    /// Kills the statements of a batch, on one server or on all of them. Returns a receiver for
    /// each, which is closed once it has ended: one on which the kill has no effect ends later.
    pub(super) fn kill(
        &mut self,
        batch: BatchId,
        replica: Option<usize>,
    ) -> Vec<oneshot::Receiver<()>> {
        let mut running = std::mem::take(&mut self.running);
        let is_here = |it: &Running| replica.is_none_or(|replica| it.replica == replica);
        let mut ends = Vec::new();
        let of_batch = running.iter_mut().filter(|(_, it)| it.batch == batch);
        for (id, statement) in of_batch.filter(|(_, it)| is_here(it)) {
            if self.happens(self.faults.lost_kills) {
                self.note(format_args!("the kill does not reach {id}"));
            } else {
                statement.is_killed = true;
                statement.stop.cancel();
            }
            let (end, ended) = oneshot::channel();
            statement.ends.push(end);
            ends.push(ended);
        }
        self.running = running;
        ends
    }

    /// Returns the number of running statements of a batch.
    pub(super) fn running(&self, batch: BatchId) -> usize {
        let running = self.running.values();
        running.filter(|it| it.batch == batch).count()
    }

    /// Ends all statements of a server that crashes. With `forgets_rows`, the newest block of them
    /// loses its rows in one table.
    pub(super) fn crash_statements(&mut self, view: View, forgets_rows: bool) {
        let here = self
            .running
            .iter()
            .filter(|(_, it)| it.replica == view.replica);
        let ids: Vec<u64> = here.map(|(id, _)| *id).collect();
        let gone: Vec<Running> = ids
            .iter()
            .filter_map(|id| self.running.remove(id))
            .collect();
        for statement in &gone {
            self.note(format_args!("{} vanishes", Short(statement.batch)));
            statement.stop.cancel();
        }
        let newest = gone.iter().filter_map(|it| it.newest).max();
        if let Some(part) = newest.filter(|_| forgets_rows)
            && let Some(table) = self.tables.lose(part, &mut self.log, view)
        {
            let name = self.tables.name(table);
            self.note(format_args!("the newest block of {name} is lost"));
        }
    }
}

impl Task {
    async fn insert(&self, plan: &Plan, sent: Option<Vec<Line>>) -> Result<(), Ended> {
        self.step(|_, _| Ok(()))?;
        let lines = match sent {
            Some(lines) => lines,
            None => self.read(plan).await?,
        };
        self.step(|state, _| {
            if plan.reads_objects() {
                state.note_lines(plan, &lines);
            }
            Ok(())
        })?;
        let order = self.server.with(|state| state.tables.order());
        let tables = plan.tables(order);
        for (number, block) in (0..).zip(plan.blocks(&lines)) {
            for table in &tables {
                self.insert_block(plan, block, (*table, plan.batch, number))
                    .await?;
            }
        }
        Ok(())
    }

    async fn insert_block(
        &self,
        plan: &Plan,
        block: &[Line],
        token: (TableId, BatchId, u32),
    ) -> Result<(), Ended> {
        let (table, ..) = token;
        let rows = plan.rows(block, table);
        if rows.is_empty() {
            return Ok(());
        }
        self.pause(COMMIT_MILLIS).await;
        self.step(|state, view| {
            let part = state.commit(view, token, rows);
            if let Some(running) = state.running.get_mut(&self.id) {
                running.newest = part.or(running.newest);
            }
            // A view reads what its table has received, known or not.
            let name = state.tables.name(table);
            match state.faults.throwing_view.as_deref() {
                Some(throwing) if throwing == name => {
                    Err(errors::of_view(name, plan.only.is_none()))
                }
                _ => Ok(()),
            }
        })
    }

    /// Reads the lines of a plan.
    async fn read(&self, plan: &Plan) -> Result<Vec<Line>, Ended> {
        let is_slow = self.server.with(|state| state.happens(SLOW_READS));
        let millis = if is_slow {
            SLOW_READ_MILLIS
        } else {
            READ_MILLIS
        };
        self.pause(millis.clone()).await;
        while plan.reads_objects() && self.are_reads_held() {
            self.pause(HELD_MILLIS).await;
        }
        let lines = self.step(|state, view| match &plan.source {
            Source::Objects => state.read_all(&self.server, plan),
            Source::Rejects(page) => Ok(state.valid_rejects(plan, page, view)),
            Source::Snapshot => Ok(state.lines_of_snapshot(plan, view)),
        })?;
        self.pause(millis).await;
        Ok(lines)
    }

    fn are_reads_held(&self) -> bool {
        let are_held = || self.server.with(|state| state.faults.holds_reads);
        !self.stop.is_cancelled() && are_held()
    }

    async fn record(&self, batch: BatchId, record: EventRow) -> Result<(), Ended> {
        self.pause(RECORD_MILLIS).await;
        self.step(|state, view| {
            state.check_record(batch);
            state.write_events(view, batch, vec![record]);
            Ok(())
        })
    }

    /// Waits for a random number of milliseconds, or until the statement is stopped.
    async fn pause(&self, millis: RangeInclusive<u64>) {
        let millis = self.server.with(|state| state.rng.u64(millis));
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(millis)) => {}
        }
    }

    /// Performs a step, unless the statement was stopped.
    fn step<T>(&self, work: impl FnOnce(&mut State, View) -> Answer<T>) -> Result<T, Ended> {
        self.server.with(|state| {
            let now = state.now();
            let Some(running) = state.running.get_mut(&self.id) else {
                return Err(Ended::Gone);
            };
            if running.is_killed {
                return Err(Ended::Failed(errors::killed()));
            }
            if let Some((steps, code)) = &mut running.failure {
                match steps.checked_sub(1) {
                    Some(left) => *steps = left,
                    None => return Err(Ended::Failed(errors::of_code(*code))),
                }
            }
            let view = View::at(running.replica, now);
            work(state, view).map_err(Ended::Failed)
        })
    }

    /// Ends the statement, and answers its client, who may have gone.
    fn end(self, outcome: Result<(), Ended>, answer: oneshot::Sender<Answer<()>>) {
        let outcome = match outcome {
            Ok(()) => Ok(()),
            Err(Ended::Failed(error)) => Err(error),
            Err(Ended::Gone) => return,
        };
        let is_there = self.server.with(|state| {
            let is_there = state.running.remove(&self.id).is_some();
            match outcome.as_ref().map_err(WarehouseError::code) {
                _ if !is_there => {}
                Ok(()) => state.note(format_args!("{} ends", self.id)),
                Err(code) => state.note(format_args!("{} fails with {code:?}", self.id)),
            }
            is_there
        });
        if is_there {
            drop(answer.send(outcome));
        }
    }
}

impl State {
    /// Reads the objects of a plan, and returns their lines.
    fn read_all(&mut self, server: &SimServer, plan: &Plan) -> Answer<Vec<Line>> {
        let mut lines = Vec::new();
        for (index, object) in plan.objects.iter().enumerate() {
            let read = server.s3().read(object, Reader::Server);
            // The guard that compares the etag is evaluated for each line.
            if read == Err(ReadError::Changed) && server.s3().is_empty(&object.key) {
                continue;
            }
            let read = read.map_err(|error| errors::of_read(error, object))?;
            if read.is_cut {
                if let Some(error) = errors::of_cut(object) {
                    return Err(error);
                }
                self.read.insert((object.id(), plan.shape.plan), Read::Cut);
            }
            plan.parse(index, &read.body, &mut lines);
        }
        Ok(lines)
    }

    /// Remembers what the lines of the objects of a plan are.
    fn note_lines(&mut self, plan: &Plan, lines: &[Line]) {
        for (object, counts) in plan.counts(lines) {
            let of_plan = (object, plan.shape.plan);
            if self.read.get(&of_plan) != Some(&Read::Cut) {
                self.read.insert(of_plan, Read::Whole(counts));
            }
        }
    }
}
