//! Outages of servers and of their Keeper, which last for a while beside the other faults.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use sluice_testkit::{ClickHouse, Keeper, exact};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use super::Tally;
use super::world::{Servers, World};

/// The share of the faults of a cluster that are outages, in percent.
const SHARE: u32 = 5;
/// The longest duration of most outages.
const SHORT: Duration = Duration::from_secs(8);
/// That of one in [`LONG_ONE_IN`] on a cluster: longer than a worker waits for a server before it
/// recovers a batch without it.
const LONG: Duration = Duration::from_secs(180);
const LONG_ONE_IN: u32 = 8;
/// The tables of the ledger, which decide what is loaded.
const LEDGER: [&str; 3] = ["ledger_objects", "ledger_batches", "object_rows"];

/// What has at most one outage at a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The server with this index.
    Server(usize),
    Keeper,
}

enum Outage {
    Killed(Part),
    /// The server with this index accepts connections and answers nothing.
    Paused(usize),
    /// The server with this index fetches no rows of this table from other replicas.
    Lags(usize, String),
}

impl Outage {
    fn part(&self) -> Part {
        match self {
            Self::Killed(part) => *part,
            Self::Paused(server) | Self::Lags(server, _) => Part::Server(*server),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Killed(Part::Server(_)) => "ClickHouse killed",
            Self::Killed(Part::Keeper) => "Keeper killed",
            Self::Paused(_) => "ClickHouse paused",
            Self::Lags(..) => "fetches of a table stopped",
        }
    }

    async fn begin(&self, servers: &Arc<Servers>) -> Result<()> {
        match *self {
            Self::Killed(Part::Server(index)) => on_server(servers, index, ClickHouse::kill).await,
            Self::Killed(Part::Keeper) => blocking(servers, |it| keeper(it)?.kill()).await,
            Self::Paused(index) => on_server(servers, index, ClickHouse::pause).await,
            Self::Lags(index, ref table) => {
                let sql = format!("SYSTEM STOP FETCHES {table}");
                servers.all()[index].execute(&sql).await
            }
        }
    }

    async fn end(&self, servers: &Arc<Servers>) -> Result<()> {
        match *self {
            Self::Killed(Part::Server(index)) => {
                on_server(servers, index, ClickHouse::restart).await
            }
            Self::Killed(Part::Keeper) => blocking(servers, |it| keeper(it)?.restart()).await,
            Self::Paused(index) => on_server(servers, index, ClickHouse::resume).await,
            Self::Lags(index, ref table) => {
                let sql = format!("SYSTEM START FETCHES {table}");
                servers.all()[index].execute(&sql).await
            }
        }
    }
}

fn keeper(servers: &Servers) -> Result<&Keeper> {
    let cluster = servers.cluster();
    cluster
        .context("a server by itself has no Keeper")?
        .keeper()
}

async fn on_server(
    servers: &Arc<Servers>,
    index: usize,
    act: impl FnOnce(&ClickHouse) -> Result<()> + Send + 'static,
) -> Result<()> {
    blocking(servers, move |servers| act(&servers.all()[index])).await
}

async fn blocking(
    servers: &Arc<Servers>,
    act: impl FnOnce(&Servers) -> Result<()> + Send + 'static,
) -> Result<()> {
    let servers = Arc::clone(servers);
    spawn_blocking(move || act(&servers)).await?
}

/// The outages that last.
pub(super) struct Outages {
    servers: Arc<Servers>,
    database: String,
    running: Vec<(Part, JoinHandle<Result<()>>)>,
    /// Ends outages before their time.
    healed: watch::Sender<()>,
}

impl Outages {
    pub(super) fn new(world: &World) -> Self {
        Self {
            servers: Arc::clone(&world.servers),
            database: world.site.database.clone(),
            running: Vec::new(),
            healed: watch::Sender::new(()),
        }
    }

    /// Returns whether the next fault is an outage that only a cluster can have.
    pub(super) fn is_next(&self, rng: &mut Rng) -> bool {
        self.servers.cluster().is_some() && rng.u32(0..100) < SHARE
    }

    /// Begins a random outage of a cluster. Returns what was done, if anything.
    pub(super) fn begin_any(&mut self, rng: &mut Rng) -> Option<&'static str> {
        match rng.u32(0..10) {
            0..3 => self.kill_server(rng),
            3..6 => {
                let index = self.any_server(rng);
                self.begin_random(Outage::Paused(index), rng)
            }
            6..9 => {
                let (index, table) = (self.any_server(rng), self.any_table(rng));
                self.begin_random(Outage::Lags(index, table), rng)
            }
            _ => self.begin_random(Outage::Killed(Part::Keeper), rng),
        }
    }

    /// Kills a server unless it has an outage, and restarts it later. Returns what was done, if
    /// anything.
    pub(super) fn kill_server(&mut self, rng: &mut Rng) -> Option<&'static str> {
        let index = self.any_server(rng);
        self.begin_random(Outage::Killed(Part::Server(index)), rng)
    }

    /// Begins an outage of a random duration, unless the part has one. Returns what was done, if
    /// anything.
    fn begin_random(&mut self, outage: Outage, rng: &mut Rng) -> Option<&'static str> {
        if self.has_outage(outage.part()) {
            return None;
        }
        let name = outage.name();
        let duration = self.duration(rng);
        self.begin(outage, duration);
        Some(name)
    }

    fn has_outage(&self, part: Part) -> bool {
        self.running.iter().any(|(other, _)| *other == part)
    }

    fn begin(&mut self, outage: Outage, duration: Duration) {
        let part = outage.part();
        let servers = Arc::clone(&self.servers);
        let mut healed = self.healed.subscribe();
        let task = tokio::spawn(async move {
            outage.begin(&servers).await?;
            tokio::select! {
                () = sleep(duration) => {}
                _ = healed.changed() => {}
            }
            outage.end(&servers).await
        });
        self.running.push((part, task));
    }

    /// Forgets the outages that have ended, and restarts servers that have exited by themselves.
    /// Fails if an outage of another part could not begin or end.
    pub(super) async fn reap(&mut self, tally: &mut Tally) -> Result<()> {
        let running = std::mem::take(&mut self.running);
        for (part, task) in running {
            if task.is_finished() {
                self.check(part, task.await?)?;
            } else {
                self.running.push((part, task));
            }
        }
        for index in 0..self.servers.all().len() {
            let part = Part::Server(index);
            if !self.has_outage(part) && self.has_exited(part)? {
                tally.add("ClickHouse aborted by itself");
                self.begin(Outage::Killed(part), SHORT);
            }
        }
        Ok(())
    }

    /// Returns the error of an outage. That of a server that has exited by itself has no meaning:
    /// the engine aborts if a connection that it has accepted is reset at a bad moment.
    fn check(&self, part: Part, ended: Result<()>) -> Result<()> {
        match ended {
            Err(_) if self.has_exited(part)? => Ok(()),
            ended => ended,
        }
    }

    fn has_exited(&self, part: Part) -> Result<bool> {
        match part {
            Part::Server(index) => self.servers.all()[index].has_exited(),
            Part::Keeper => Ok(false),
        }
    }

    /// Ends all outages, and waits until every part is back. A server by itself is away for as long
    /// as it would have been.
    pub(super) async fn end(mut self, tally: &mut Tally) -> Result<()> {
        loop {
            if self.servers.cluster().is_some() {
                self.healed.send_replace(());
            }
            for (part, task) in std::mem::take(&mut self.running) {
                let ended = task.await?;
                self.check(part, ended)?;
            }
            self.reap(tally).await?;
            if self.running.is_empty() {
                return Ok(());
            }
        }
    }

    fn any_server(&self, rng: &mut Rng) -> usize {
        match self.servers.all().len() {
            1 => 0,
            count => rng.usize(..count),
        }
    }

    /// Returns `database.table`. Half of the time, it is one that decides what is loaded.
    fn any_table(&self, rng: &mut Rng) -> String {
        let data: Vec<&str> = exact::tables().collect();
        let tables = if rng.bool() {
            LEDGER.as_slice()
        } else {
            data.as_slice()
        };
        format!("{}.{}", self.database, tables[rng.usize(..tables.len())])
    }

    fn duration(&self, rng: &mut Rng) -> Duration {
        let is_long = self.servers.cluster().is_some() && rng.u32(0..LONG_ONE_IN) == 0;
        let longest = if is_long { LONG } else { SHORT };
        longest.mul_f64(rng.f64())
    }
}
