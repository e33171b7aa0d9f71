//! The batches of a table in the order in which they were loaded, to see whether the table was
//! truncated or restored.

/// The batches that have loaded rows into a table, with the time of their record in milliseconds
/// since 1970, and whether the table has any row of them.
#[derive(Clone, Debug, Default)]
pub struct Epochs {
    batches: Vec<(i64, bool)>,
}

/// Consecutive batches of which a table has no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emptied {
    /// The number of these batches.
    pub batches: u64,
    /// Whether no batch was loaded before them.
    pub from_the_first: bool,
}

/// The number of consecutive batches without rows from which on they are not a coincidence.
const RESTORED: u64 = 3;

impl Epochs {
    /// Takes the batches in any order.
    pub fn new(mut batches: Vec<(i64, bool)>) -> Self {
        batches.sort_unstable();
        Self { batches }
    }

    /// Returns the batches without rows around that time, if they suggest that the table was
    /// truncated (all batches up to some time) or restored (several in a row).
    pub fn emptied(&self, at: i64) -> Option<Emptied> {
        // Batches of the same millisecond have no order: the earliest of them stands for all.
        let here = self.batches.partition_point(|(time, _)| *time < at);
        let is_empty = |index: usize| self.batches.get(index).is_some_and(|(_, has)| !has);
        if !is_empty(here) {
            return None;
        }
        let before = (0..here).rev().take_while(|index| is_empty(*index)).count();
        let after = (here..).take_while(|index| is_empty(*index)).count();
        let emptied = Emptied {
            batches: (before + after) as u64,
            from_the_first: before == here,
        };
        (emptied.from_the_first || emptied.batches >= RESTORED).then_some(emptied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emptied(batches: &str, at: i64) -> Option<(u64, bool)> {
        let batches = (0..).zip(batches.chars());
        let mut batches: Vec<_> = batches.map(|(time, it)| (time, it == '#')).collect();
        batches.reverse();
        let epochs = Epochs::new(batches);
        let emptied = epochs.emptied(at)?;
        Some((emptied.batches, emptied.from_the_first))
    }

    #[test]
    fn a_table_without_its_first_batches_was_truncated() {
        assert_eq!(emptied("..##", 1), Some((2, true)));
        assert_eq!(emptied(".###", 0), Some((1, true)));
        assert_eq!(emptied("....", 3), Some((4, true)));
    }

    #[test]
    fn a_table_without_several_batches_in_a_row_was_restored() {
        assert_eq!(emptied("##...#", 3), Some((3, false)));
        assert_eq!(emptied("##...", 4), Some((3, false)));
    }

    #[test]
    fn a_few_batches_without_rows_show_nothing() {
        assert_eq!(emptied("##..#", 2), None);
        assert_eq!(emptied("#.#.#.", 3), None);
        assert_eq!(emptied("####", 2), None);
        assert_eq!(emptied("", 0), None);
        assert_eq!(emptied("#..", 7), None);
    }
}
