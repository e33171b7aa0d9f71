//! What SQS does rarely, as kinds of faults: [`Manners`] of the queue in memory.

use sluice::Env;
use sluice::queue::memory::Manners;

use super::World;
use super::plan::{Fault, Plan, mixed, stream};
use super::settings::Settings;
use super::worker::{Site, began_at};

/// The largest number of message groups.
const MAX_GROUPS: u64 = 12;

/// What the queue does at a rate that a world sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Duplicates,
    FailedEntries,
    LostDeletes,
    OutdatedHandles,
}

impl Manner {
    pub(super) fn fault(self) -> Fault {
        match self {
            Self::Duplicates => Fault::Redelivery,
            Self::FailedEntries => Fault::FailedEntries,
            Self::LostDeletes => Fault::LostDeletes,
            Self::OutdatedHandles => Fault::OutdatedHandles,
        }
    }

    /// Returns the largest rate, in cases of 1,000.
    pub(super) fn max_rate(self) -> u32 {
        match self {
            Self::Duplicates | Self::LostDeletes => 200,
            // Workers retry. The tries that follow each other until a message reappears, three
            // heartbeats or more or six deletions, must practically never all fail: this kind of
            // fault does not cost receives.
            Self::FailedEntries => 50,
            Self::OutdatedHandles => 1_000,
        }
    }

    fn set(self, manners: &mut Manners, rate: u32) {
        let value = match self {
            Self::Duplicates => &mut manners.duplicates,
            Self::FailedEntries => &mut manners.failed_entries,
            Self::LostDeletes => &mut manners.lost_deletes,
            Self::OutdatedHandles => &mut manners.outdated_handles,
        };
        *value = rate;
    }
}

/// Returns the manners with which the queue of a world begins, and which last.
pub(super) fn initial(seed: u64, plan: &Plan, settings: &Settings) -> Manners {
    Manners {
        env: Env::seeded(mixed(seed, "manners", 0), began_at()),
        visibility_limit: plan
            .has(Fault::VisibilityLimit)
            .then_some(settings.visibility_limit),
        ..Manners::default()
    }
}

impl Site {
    /// Sends a message; to a FIFO queue, in a group that follows from its body.
    pub(super) fn send(&self, body: String) {
        if !self.plan.has(Fault::Fifo) {
            self.queue.send(body);
            return;
        }
        let groups = stream(self.seed, "groups", 0).u64(3..=MAX_GROUPS);
        let group = mixed(self.seed, &body, 0) % groups;
        self.queue.send_to_group(&format!("group-{group}"), body);
    }
}

impl World {
    /// Sets the rate of a manner, in cases of 1,000.
    pub(super) fn set_manner(&mut self, manner: Manner, rate: u32) {
        manner.set(&mut self.manners, rate);
        self.site.queue.set_manners(self.manners.clone());
    }
}
