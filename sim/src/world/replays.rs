//! An operator's replays of rejects, each a process like `sluice rejects replay`: it uses the
//! production [`Replayer`] page by page, ends at the first error, and can be killed.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice::Env;
use sluice::clickhouse::WarehouseError;
use sluice::rejects::replay::{Replayer, Tally};
use sluice::rejects::{RejectKind, RejectSelector};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::World;
use super::plan::{Fault, mixed, stream};
use super::settings::Setup;
use super::worker::{Place, Simulated, Site};
use crate::network::Client;

/// The pause before a replay is repeated that has failed, or has left lines to others.
const AGAIN: Duration = Duration::from_secs(20);

/// The numbers of the setups of replays, which no worker has.
const FIRST_SETUP: u64 = 1_000_000;

/// The replays that have been started.
#[derive(Debug, Default)]
pub(super) struct Replays {
    started: u64,
    /// Those of the schedule, by their numbers in it.
    scheduled: BTreeMap<usize, Replay>,
}

/// A process that replays rejects.
#[derive(Debug)]
struct Replay {
    client: Client,
    task: JoinHandle<Result<Tally, WarehouseError>>,
}

impl Replay {
    /// Starts a replay over the connection of a worker's place.
    fn start(site: &Site, place: &Place, number: u64) -> Self {
        let (seed, settings) = (site.seed, &site.settings);
        let setup = Setup::of(seed, &site.plan, settings, FIRST_SETUP + number).fixed();
        let replica = stream(seed, "replica of a replay", number).usize(..site.plan.replicas);
        let client = Client::new(&format!("replay-{number}"));
        let trace = &site.trace;
        trace.note(format_args!("{} starts at replica {replica}", client.name));
        let (ledger, tables) = site.server.connect(
            place.to_clickhouse().clone(),
            client.clone(),
            replica,
            setup.planner_of_replays(settings),
        );
        let replayer: Replayer<Simulated> = Replayer {
            ledger,
            tables,
            env: Env::seeded(mixed(seed, "replay", number), site.env.wall_clock()),
            timeout: settings.insert_timeout,
            max_retry_age: setup.load_config(settings).max_retry_age,
        };
        let task = tokio::spawn(async move { replay(&replayer).await });
        Self { client, task }
    }

    /// Ends the process. Requests that have not been sent yet are never sent.
    fn kill(self) {
        self.client.crash();
        self.task.abort();
    }
}

/// Does what `sluice rejects replay` does.
async fn replay(replayer: &Replayer<Simulated>) -> Result<Tally, WarehouseError> {
    let (_, mut total) = replayer.finish_others().await?;
    let selector = RejectSelector::default();
    for kind in RejectKind::ALL {
        let mut last = None;
        loop {
            let page = replayer.tables.reject_page(kind, &selector, last.as_ref());
            let Some(page) = page.await? else { break };
            let tally = replayer.replay(&page).await?;
            total.in_hand += tally.in_hand;
            last = Some(page.last);
        }
    }
    Ok(total)
}

impl World {
    /// Starts a replay of the schedule.
    pub(super) fn start_replay(&mut self, number: usize) {
        let replay = self.new_replay();
        self.replays.scheduled.insert(number, replay);
    }

    /// Kills a replay of the schedule, unless it has ended.
    pub(super) fn kill_replay(&mut self, number: usize) {
        if let Some(replay) = self.replays.scheduled.remove(&number) {
            replay.kill();
        }
    }

    fn new_replay(&mut self) -> Replay {
        self.replays.started += 1;
        let number = self.replays.started;
        let place = number as usize % self.places.len();
        Replay::start(&self.site, &self.places[place], number)
    }

    /// Replays rejects until nothing is left to others, in worlds that have replays. Reports a
    /// violation if this has not succeeded by then.
    pub(super) async fn finish_replays(&mut self, by: Instant) {
        if !self.site.plan.has(Fault::Replay) {
            return;
        }
        loop {
            let outcome = self.new_replay().task.await;
            if matches!(&outcome, Ok(Ok(tally)) if tally.in_hand == 0) {
                return;
            }
            if Instant::now() >= by {
                let violations = &self.site.violations;
                violations.report(format_args!("no replay of rejects succeeds: {outcome:?}"));
                return;
            }
            sleep(AGAIN).await;
        }
    }
}
