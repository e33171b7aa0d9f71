//! A worker's connection to one of the servers.

use std::time::Duration;

use sluice::batch::BatchId;
use sluice::clickhouse::WarehouseError;
use sluice::clickhouse::replicas::Barrier;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::SimServer;
use super::errors;
use super::log::{Look, Scope, Seq, View};
use super::state::{Answer, State};
use crate::network::{Broken, Client, Network};

/// How long a small statement may take; the default of `clickhouse.query_timeout`.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between two looks at a server that lags; it doubles up to the second one.
const LOOK_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// How long a kill waits for statements to end on other servers.
const KILL_BOUND: Duration = Duration::from_secs(5);
/// How long it waits for each of its own statements there.
const DDL_TIMEOUT: Duration = Duration::from_secs(3);

/// The row that a server must show before it counts as having seen all that was written before.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mark {
    At(Seq),
    /// The claim of this batch.
    Claim(BatchId),
}

/// A connection of a worker.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) server: SimServer,
    pub(super) network: Network,
    pub(super) client: Client,
    pub(super) replica: usize,
}

impl Connection {
    pub(super) fn is_replicated(&self) -> bool {
        self.server.with(|state| state.log.is_replicated())
    }

    /// Sends a statement that ends at once, and returns its answer.
    pub(super) async fn request<T, F>(&self, what: &'static str, work: F) -> Answer<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut State, View) -> Answer<T> + Send + 'static,
    {
        let (server, replica) = (self.server.clone(), self.replica);
        let work = move || {
            server.with(|state| {
                let view = state.admit(replica)?;
                work(state, view)
            })
        };
        self.carry(what, work).await
    }

    /// Sends a statement that `start` begins, and that answers after a while.
    pub(super) async fn run<F>(&self, what: &'static str, timeout: Duration, start: F) -> Answer<()>
    where
        F: FnOnce(&mut State, View) -> Answer<oneshot::Receiver<Answer<()>>> + Send + 'static,
    {
        bounded(timeout, async {
            let answered = self.request(what, start).await?;
            let answer = answered.await.unwrap_or_else(|_| Err(errors::closed()));
            self.carry("answer", move || answer).await
        })
        .await
    }

    /// As [`Connection::run`], for a small statement.
    pub(super) async fn run_small<F>(&self, what: &'static str, start: F) -> Answer<()>
    where
        F: FnOnce(&mut State, View) -> Answer<oneshot::Receiver<Answer<()>>> + Send + 'static,
    {
        self.run(what, QUERY_TIMEOUT, start).await
    }

    async fn carry<T, F>(&self, what: &'static str, work: F) -> Answer<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Answer<T> + Send + 'static,
    {
        let carried = self.network.carry(&self.client, what, work).await;
        carried.unwrap_or_else(|Broken| Err(errors::no_answer()))
    }

    /// Sends a read that sees all that was written to these tables before the mark. Without one, it
    /// sees what the server shows.
    ///
    /// # Errors
    ///
    /// [`WarehouseError::Behind`] if the server lags for longer than a small statement may take.
    pub(super) async fn read_after<T, F>(
        &self,
        what: &'static str,
        mark: Option<Mark>,
        scope: Scope,
        read: F,
    ) -> Answer<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut State, View) -> Answer<T> + Send + 'static,
    {
        if let Some(mark) = mark {
            self.wait_for(mark, scope).await?;
        }
        self.request(what, read).await
    }

    /// Waits until the server shows all that was written to these tables before the mark.
    async fn wait_for(&self, mark: Mark, scope: Scope) -> Answer<()> {
        let begun = Instant::now();
        let (mut pause, max_pause) = LOOK_PAUSES;
        let mut has_log = false;
        loop {
            let look = move |state: &mut State, view| Ok(state.look(mark, scope, view));
            let look = self.request("look", look).await?;
            let is_synced = look.shows_barrier && look.missing == 0;
            if has_log && is_synced {
                return Ok(());
            }
            has_log |= look.shows_barrier;
            if begun.elapsed() > QUERY_TIMEOUT {
                return Err(self.behind(scope, look));
            }
            if !is_synced {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(max_pause);
            }
        }
    }

    fn behind(&self, scope: Scope, look: Look) -> WarehouseError {
        let tables = match scope {
            Scope::Claims => "ledger_objects".to_owned(),
            Scope::Events => "ledger_batches".to_owned(),
            Scope::ClaimsAndEvents => "ledger_objects, ledger_batches".to_owned(),
            Scope::Table(table) => self
                .server
                .with(|state| state.tables.name(table).to_owned()),
            Scope::RejectsAndSnapshots(..) => "rejects, snapshots".to_owned(),
            Scope::EventsAndSnapshots(_) => "ledger_batches, snapshots".to_owned(),
            Scope::AllRows => "the tables".to_owned(),
        };
        let why = format!("server {} lacks {} parts", self.replica, look.missing);
        WarehouseError::Behind { tables, why }
    }

    /// Kills the statements of a batch on every server that can be reached, and waits until they
    /// have ended.
    pub(super) async fn kill(&self, batch: BatchId) -> Answer<()> {
        if self.is_replicated() {
            return self.kill_everywhere(batch).await.map(drop);
        }
        self.kill_here(batch).await
    }

    async fn kill_here(&self, batch: BatchId) -> Answer<()> {
        bounded(QUERY_TIMEOUT, async {
            let kill =
                move |state: &mut State, view: View| Ok(state.kill(batch, Some(view.replica)));
            ended(self.request("kill", kill).await?).await;
            self.carry("answer", || Ok(())).await
        })
        .await
    }

    /// Kills the statements of a batch on every server, and returns whether it is certain that none
    /// is running.
    pub(super) async fn kill_everywhere(&self, batch: BatchId) -> Answer<bool> {
        let begun = Instant::now();
        loop {
            let running = self.request("running", move |state, _| match state.log.is_any_down() {
                true => Err(errors::unreachable_replica()),
                false => Ok(state.running(batch)),
            });
            if matches!(running.await, Ok(0)) {
                return Ok(true);
            }
            if begun.elapsed() >= KILL_BOUND {
                return Ok(false);
            }
            self.kill_here(batch).await?;
            let everywhere = self.request("kill", move |state, _| Ok(state.kill(batch, None)));
            if let Ok(ends) = everywhere.await {
                // Those that have not ended by then are looked for again.
                drop(tokio::time::timeout(DDL_TIMEOUT, ended(ends)).await);
            }
        }
    }
}

impl State {
    fn look(&mut self, mark: Mark, scope: Scope, view: View) -> Look {
        let barrier = match mark {
            Mark::At(seq) => Some(seq),
            Mark::Claim(batch) => self.ledger.first_claim(batch),
        };
        let nothing = Look {
            shows_barrier: false,
            missing: 1,
        };
        barrier.map_or(nothing, |barrier| self.log.look(barrier, scope, view))
    }
}

/// Returns the mark of a barrier.
///
/// # Errors
///
/// Fails if the barrier is not one of this simulation.
pub(super) fn mark_of(barrier: Option<&Barrier>) -> Answer<Option<Mark>> {
    let Some(barrier) = barrier else {
        return Ok(None);
    };
    let position = barrier.condition.parse().map_err(|_| errors::syntax())?;
    Ok(Some(Mark::At(Seq(position))))
}

/// Waits until statements have ended.
async fn ended(ends: Vec<oneshot::Receiver<()>>) {
    for end in ends {
        // Nothing is sent: it is closed.
        drop(end.await);
    }
}

/// Limits the time that a statement may take.
pub(super) async fn bounded<T>(
    timeout: Duration,
    work: impl Future<Output = Answer<T>>,
) -> Answer<T> {
    let in_time = tokio::time::timeout(timeout, work).await;
    in_time.unwrap_or_else(|_| Err(errors::no_response_within(timeout)))
}
