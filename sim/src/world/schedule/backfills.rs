//! When backfills start, and when they are killed.

use std::time::Duration;

use super::{BRIEF, Draw, Event, up_to};
use crate::world::plan::Fault;

/// The largest number of backfills before the faults are over, without those that continue one.
const MAX_BACKFILLS: usize = 2;
/// The longest times from the start of a backfill to its crash. Where nothing else fails, a backfill
/// takes seconds.
const CRASH_AFTER: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(20),
];

impl Draw<'_> {
    pub(super) fn backfills(&mut self) {
        for _ in 0..self.rng.usize(1..=MAX_BACKFILLS) {
            let start = up_to(&mut self.rng, self.within);
            let is_forced = self.rng.u32(0..3) > 0 && self.plan.has(Fault::Forced);
            let crash_after = CRASH_AFTER[self.rng.usize(..CRASH_AFTER.len())];
            let crash = start + up_to(&mut self.rng, crash_after);
            let resume = crash + up_to(&mut self.rng, BRIEF);
            self.add(start, Event::StartBackfill { is_forced });
            if self.plan.has(Fault::BackfillCrash) {
                self.add(crash.min(self.within), Event::CrashBackfill);
                self.add(resume, Event::ResumeBackfill);
            }
        }
    }
}
