//! The objects that the bucket has.

use super::{Fate, Objects};

/// The numbers of objects that the bucket has.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::world) struct Present {
    pub(in crate::world) all: u64,
    /// Those that cannot be loaded: they are cut short, or denied to everybody for good.
    pub(in crate::world) unloadable: u64,
    /// Those that are loaded or not: nobody can prove that they are whole.
    pub(in crate::world) doubtful: u64,
}

impl Objects {
    /// Counts the objects that the bucket has now.
    pub(in crate::world) fn present(&self) -> Present {
        let mut present = Present::default();
        let state = self.state();
        let uploaded = state.uploaded.values();
        for uploaded in uploaded.filter(|it| !it.is_replaced && !it.is_deleted) {
            present.all += 1;
            match uploaded.fate {
                Fate::Loaded => {}
                Fate::LoadedOrNot => present.doubtful += 1,
                Fate::NotLoaded => present.unloadable += 1,
            }
        }
        present
    }
}
