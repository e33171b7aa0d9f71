//! When the queue does what SQS does rarely.

use super::{Draw, Event};
use crate::world::manners::Manner;

/// The smallest share of the largest rate, as a divisor.
const SMALLEST: u32 = 10;

impl Draw<'_> {
    pub(super) fn manners(&mut self, manner: Manner) {
        for (begin, end) in self.spans(self.within) {
            let max = manner.max_rate();
            let rate = self.rng.u32(max / SMALLEST..=max);
            self.add(begin, Event::SetManner { manner, rate });
            self.add(end, Event::SetManner { manner, rate: 0 });
        }
    }
}
