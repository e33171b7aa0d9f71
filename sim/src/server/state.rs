//! The state of the servers: their tables, what runs, and which faults they have.
//!
//! Everything here happens at one moment, and without waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use sluice::Env;
use sluice::batch::BatchId;
use sluice::clickhouse::WarehouseError;
use sluice::ledger::Failure;
use sluice::object::{ObjectId, ObjectRef};
use uuid::Uuid;

use super::checks::Read;
use super::conditions::Condition;
use super::errors;
use super::ledger_rows::{ClaimRow, EventRow, LedgerRows};
use super::log::{Deletion, Log, Place, Seq, View};
use super::mutations::Mutation;
use super::parts::{PartId, PartRows, TableId, Tables, TokenWindow};
use super::plan::Plan;
use super::statements::Running;
use super::{Options, Violation};
use crate::trace::Trace;

pub(super) type Answer<T> = Result<T, WarehouseError>;

/// The faults that the world has switched on.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// The error code with which every statement is refused.
    pub(super) refused: Option<u32>,
    /// The error code of failing inserts, and in how many one of them fails.
    pub(super) failing_inserts: (u32, u32),
    /// In how many kills one does not end the statement; 0 if all do.
    pub(super) lost_kills: u32,
    /// In how many mutations one deletes nothing; 0 if all delete.
    pub(super) lost_mutations: u32,
    /// Whether inserts wait before they read their objects.
    pub(super) holds_reads: bool,
    /// The table on which a user's view throws.
    pub(super) throwing_view: Option<String>,
    /// When the user's view was last changed.
    pub(super) view_changed_at: u64,
}

/// The servers.
pub(super) struct State {
    env: Env,
    pub(super) rng: fastrand::Rng,
    trace: Trace,
    pub(super) log: Log,
    pub(super) ledger: LedgerRows,
    pub(super) tables: Tables,
    /// The statements that were built, by the position in their text.
    pub(super) plans: Vec<Arc<Plan>>,
    /// The statements that are running, by the order of their start.
    pub(super) running: BTreeMap<u64, Running>,
    numbers: u64,
    pub(super) mutations: Vec<Mutation>,
    pub(super) faults: Faults,
    /// What the lines of each object were when it was last read by statements of a plan: plans can
    /// differ in what a line is.
    pub(super) read: BTreeMap<(ObjectId, Uuid), Read>,
    violations: Vec<Violation>,
}

impl State {
    pub(super) fn new(options: Options, env: Env, rng: fastrand::Rng, trace: Trace) -> Self {
        let log = Log::new(options.replicas);
        let window = TokenWindow {
            blocks: options.dedup_window,
            age: log.is_replicated().then_some(options.dedup_age),
        };
        Self {
            env,
            rng,
            trace,
            log,
            ledger: LedgerRows::default(),
            tables: Tables::new(window),
            plans: Vec::new(),
            running: BTreeMap::new(),
            numbers: 0,
            mutations: Vec::new(),
            faults: Faults::default(),
            read: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    /// Returns the time of the servers' clock, in milliseconds since 1970.
    pub(super) fn now(&self) -> u64 {
        let now = self.env.wall_clock();
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns what a replica shows now.
    pub(super) fn view(&self, replica: usize) -> View {
        View::at(replica, self.now())
    }

    /// Returns everything that was written until now.
    pub(super) fn whole(&self) -> View {
        View::whole(self.now())
    }

    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        self.trace.note(what);
    }

    /// Records that an invariant does not hold.
    pub(super) fn violated(&mut self, what: String) {
        self.note(format_args!("VIOLATION: {what}"));
        self.violations.push(Violation { what });
    }

    pub(super) fn take_violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }

    /// Returns what a statement that reaches a replica now sees.
    ///
    /// # Errors
    ///
    /// Fails if the server is down, or refuses every statement.
    pub(super) fn admit(&mut self, replica: usize) -> Answer<View> {
        if self.log.is_down(replica) {
            return Err(errors::refused_connection());
        }
        match self.faults.refused {
            Some(code) => Err(errors::of_code(code)),
            None => Ok(self.view(replica)),
        }
    }

    /// Returns a number that was not returned before.
    pub(super) fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Returns whether an event that happens once in `one_in` times happens now.
    pub(super) fn happens(&mut self, one_in: u32) -> bool {
        one_in > 0 && self.rng.u32(..one_in) == 0
    }

    pub(super) fn write_claims(&mut self, view: View, rows: Vec<ClaimRow>) {
        let seq = self.log.write(Place::Claims, view, &mut self.rng);
        if let Some(first) = rows.first() {
            let (batch, worker) = (Short(first.batch), &first.worker);
            self.note(format_args!("{worker} claims {} for {batch}", rows.len()));
        }
        self.ledger.add_claims(seq, view.now, rows);
    }

    /// Writes events of a batch in one block.
    pub(super) fn write_events(&mut self, view: View, batch: BatchId, rows: Vec<EventRow>) -> Seq {
        let seq = self.log.write(Place::Events, view, &mut self.rng);
        for row in rows {
            let EventRow {
                event,
                attempt,
                worker,
                ..
            } = &row;
            let short = Short(batch);
            self.note(format_args!("{worker}: {short} {event:?} {attempt}"));
            self.ledger.add_event(seq, view.now, batch, row);
        }
        seq
    }

    /// Writes the event of a barrier, which belongs to no batch.
    pub(super) fn write_barrier(&mut self, view: View) -> Seq {
        self.log.write(Place::Events, view, &mut self.rng)
    }

    pub(super) fn write_failures(&mut self, view: View, failures: Vec<(ObjectRef, String)>) {
        self.log.write(Place::Failures, view, &mut self.rng);
        for (object, reason) in &failures {
            self.note(format_args!("{object} failed: {reason}"));
        }
        self.ledger.failures.extend(failures);
    }

    /// Commits a block to one table, unless its token is known.
    pub(super) fn commit(
        &mut self,
        view: View,
        (table, batch, block): (TableId, BatchId, u32),
        rows: Vec<PartRows>,
    ) -> Option<PartId> {
        let (log, rng) = (&mut self.log, &mut self.rng);
        let write = || log.write(Place::Rows(table), view, rng);
        let part = self
            .tables
            .insert((table, batch, block), rows, view.now, write);
        let what = match part {
            Some(_) => "commits",
            None => "knows",
        };
        let (name, short) = (self.tables.name(table), Short(batch));
        self.note(format_args!("{short} {what} block {block} in {name}"));
        if part.is_some() {
            self.check_commit(batch);
        }
        part
    }

    /// Executes a mutation, unless it is lost. Returns the deletions of the rows that it meant.
    pub(super) fn delete(
        &mut self,
        view: View,
        table: TableId,
        condition: &Condition,
        until: Seq,
    ) -> BTreeSet<Deletion> {
        if self.happens(self.faults.lost_mutations) {
            let name = self.tables.name(table);
            self.note(format_args!("mutation of {name} is lost"));
            return BTreeSet::new();
        }
        let condition = self.resolved(condition.clone(), view);
        let which = (table, &condition, until);
        let (deleted, deletions) = self
            .tables
            .delete(which, &mut self.log, view, &mut self.rng);
        let name = self.tables.name(table);
        self.note(format_args!("deletes {deleted} rows from {name}"));
        deletions
    }
}

/// Returns what a failure has in the ledger.
pub(super) fn recorded_failure(failure: &Failure<'_>) -> (ObjectRef, String) {
    let reason = format!("{}: {}", failure.class, failure.reason);
    (failure.object.clone(), reason)
}

/// A batch in the trace: the end of its id, which is random.
pub(super) struct Short(pub(super) BatchId);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0.0.as_u128() & 0xffff_ffff)
    }
}
