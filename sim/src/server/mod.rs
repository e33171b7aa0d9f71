//! ClickHouse: one server, or a few replicas that share their tables.
//!
//! It has the semantics on which the ledger protocol relies, and those that it has to survive:
//! statements start late, run on without their clients and commit table by table; tokens are
//! remembered for a while; replicas show late what others wrote; kills and mutations can be without
//! effect; a crash ends statements between two tables.
//!
//! **Does not:** interpret SQL. A statement is built by [`SimTables`], and refers to what it does.

mod checks;
mod conditions;
mod connection;
mod errors;
mod faults;
mod ledger;
mod ledger_rows;
mod log;
mod mutations;
mod parts;
mod permits;
mod plan;
mod rejects;
mod replays;
mod state;
mod statements;
mod strays;
mod tables;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice::Env;
use sluice::batch::BatchId;
use sluice::object::{ObjectId, ObjectRef};
use sluice::statements::insert::Planner;

pub use ledger::SimLedger;
pub use parts::TableRows;
pub use rejects::TableLine;
pub use tables::SimTables;

use crate::network::{Client, Network};
use crate::s3::SimS3;
use crate::trace::Trace;
use connection::Connection;
use ledger_rows::Event;
use log::MAX_REPLICAS;
use state::State;

/// What the servers and the leases of their workers are like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The number of replicas, at most 3; 1 is a single server with plain tables.
    pub replicas: usize,
    /// The number of blocks of a table whose tokens it remembers.
    pub dedup_window: u64,
    /// How long replicated tables remember a token.
    pub dedup_age: Duration,
    /// How long other workers leave a batch alone after its worker was last heard of.
    pub lease: Duration,
    /// How long a statement of a worker can run, as it records with its leases. It must not be
    /// shorter than the time limit of an insert, which is that of the planner.
    pub statement: Duration,
    /// Whether the tables keep each line by itself, with the text of rejects. Replays of rejects
    /// require it; everything else costs less without.
    pub keeps_lines: bool,
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub what: String,
}

/// Called for each violation, at the moment at which it is found.
pub type Checks = Arc<dyn Fn(&Violation) + Send + Sync>;

/// The servers. Clones share them.
#[derive(Clone)]
pub struct SimServer(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    s3: SimS3,
    checks: Checks,
    options: Options,
    env: Env,
}

impl SimServer {
    /// Creates servers with empty tables.
    ///
    /// # Panics
    ///
    /// If the number of replicas is 0, or larger than 3.
    pub fn new(
        options: Options,
        s3: SimS3,
        env: Env,
        rng: fastrand::Rng,
        trace: Trace,
        checks: Checks,
    ) -> Self {
        let replicas = options.replicas;
        let is_possible = (1..=MAX_REPLICAS).contains(&replicas);
        assert!(is_possible, "{replicas} replicas cannot be simulated");
        Self(Arc::new(Shared {
            state: Mutex::new(State::new(options, env.clone(), rng, trace)),
            s3,
            checks,
            options,
            env,
        }))
    }

    /// Connects a worker to a replica, which has a number from 0.
    pub fn connect(
        &self,
        network: Network,
        client: Client,
        replica: usize,
        planner: Planner,
    ) -> (SimLedger, SimTables) {
        let connection = Connection {
            server: self.clone(),
            network,
            client,
            replica,
        };
        let ledger = SimLedger {
            connection: connection.clone(),
            env: self.0.env.clone(),
            lease: self.0.options.lease,
            statement: self.0.options.statement,
        };
        (ledger, SimTables::new(connection, planner))
    }

    /// Returns all live rows, whatever the replicas show.
    pub fn rows(&self) -> Vec<TableRows> {
        self.with(|state| state.tables.live(&state.log, state.now()))
    }

    /// Returns all lines that are rows of event types or rejects, whatever the replicas show. There
    /// are none unless [`Options::keeps_lines`] is set.
    pub fn lines(&self) -> Vec<TableLine> {
        self.with(|state| state.lines())
    }

    /// Returns whether a loaded batch claims the object.
    pub fn is_recorded(&self, object: ObjectId) -> bool {
        self.with(|state| {
            let loaded = state.ledger.loaded_by(object, &state.log, state.whole());
            loaded.is_some()
        })
    }

    /// Returns the number of loaded batches that claim the object, without those that another one
    /// supersedes, and without replays of its rejects.
    pub fn loaded_batches(&self, object: ObjectId) -> usize {
        self.with(|state| state.loaded_batches(object))
    }

    /// Returns whether a batch has claimed objects and is neither loaded nor released.
    pub fn has_open_batches(&self) -> bool {
        self.with(|state| {
            let (ledger, log, view) = (&state.ledger, &state.log, state.whole());
            let ended = [Event::Loaded, Event::Released];
            ledger.batches().any(|batch| {
                let mut claims = ledger.claims_of(batch, log, view);
                claims.next().is_some() && !ledger.has_event(batch, &ended, log, view)
            })
        })
    }

    /// Returns the number of running statements of a batch.
    pub fn running(&self, batch: BatchId) -> usize {
        self.with(|state| state.running(batch))
    }

    /// Returns the recorded failures, each as its class, a colon and the reason.
    pub fn failures(&self) -> Vec<(ObjectRef, String)> {
        self.with(|state| state.ledger.failures.clone())
    }

    fn keeps_lines(&self) -> bool {
        self.0.options.keeps_lines
    }

    fn s3(&self) -> &SimS3 {
        &self.0.s3
    }

    /// Has the servers do something at once and as a whole, and reports the violations.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let (done, violations) = {
            let state = &self.0.state;
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            (work(&mut state), state.take_violations())
        };
        for violation in &violations {
            (self.0.checks)(violation);
        }
        done
    }
}
