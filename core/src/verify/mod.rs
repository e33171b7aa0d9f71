//! Decides what a difference between a table and the ledger means, and what would repair it.
//!
//! Pure: the evidence is an argument. `sluice verify` collects it, and `sluice repair` performs what
//! is decided here.

mod epochs;
mod evidence;
mod judge;
mod plan;

pub use epochs::{Emptied, Epochs};
pub use evidence::{
    Confidence, Evidence, Judgement, Reread, RereadRows, Stray, StrayKind, TableVerdict,
};
pub use judge::judge;
pub use plan::{CurrentContent, RepairAction, RepairPlan, Unloaded, plan, plan_unloaded};
