//! Deletions of rows, which take a while.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::oneshot;

use super::SimServer;
use super::conditions::Condition;
use super::log::{Deletion, Seq, View};
use super::parts::TableId;
use super::state::{Answer, State};

/// How long a mutation takes, in milliseconds.
const MILLIS: std::ops::RangeInclusive<u64> = 5..=500;
/// The pause between two looks whether the other servers have executed one.
const LOOK: Duration = Duration::from_millis(20);

/// A mutation that has begun. It deletes only rows that were committed before.
#[derive(Debug)]
pub(super) struct Mutation {
    id: u64,
    replica: usize,
    table: TableId,
    condition: Condition,
    until: Seq,
    /// Whether the server that executes it has crashed. The mutation continues once that server is
    /// started again.
    is_interrupted: bool,
}

impl State {
    /// Begins to delete rows. The answer comes once they are deleted.
    ///
    /// A deletion of moved rejects is answered once every server that is up has executed it, as
    /// `lightweight_deletes_sync` says: nothing looks for the rejects on the others. For all other
    /// deletions, that of the server itself suffices, which is the worse case: their clients read
    /// after a barrier whether rows are left.
    pub(super) fn begin_mutation(
        &mut self,
        server: &SimServer,
        view: View,
        table: TableId,
        condition: Condition,
    ) -> oneshot::Receiver<Answer<()>> {
        match &condition {
            Condition::Of(batch) => self.check_rollback(*batch),
            Condition::MovedBy(batch) => self.check_clean_up(*batch),
            Condition::InParts(..) | Condition::From(..) | Condition::Lines(_) => {}
        }
        let is_of_all_servers = matches!(condition, Condition::MovedBy(_));
        let id = self.next_number();
        self.mutations.push(Mutation {
            id,
            replica: view.replica,
            table,
            condition,
            until: self.log.end(),
            is_interrupted: false,
        });
        let time = Duration::from_millis(self.rng.u64(MILLIS));
        let (answer, answered) = oneshot::channel();
        let server = server.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            let Some(deletions) = server.with(|state| state.end_mutation(id)) else {
                return;
            };
            while is_of_all_servers
                && !answer.is_closed()
                && server.with(|state| state.are_pending(&deletions))
            {
                tokio::time::sleep(LOOK).await;
                if server.with(|state| state.log.is_down(view.replica)) {
                    return;
                }
            }
            // The client may have gone.
            drop(answer.send(Ok(())));
        });
        answered
    }

    /// Returns whether a mutation of this table and condition is in progress.
    pub(super) fn is_deleting(&self, table: TableId, condition: &Condition) -> bool {
        let mut mutations = self.mutations.iter();
        mutations.any(|it| it.table == table && it.condition == *condition)
    }

    pub(super) fn interrupt_mutations(&mut self, replica: usize) {
        for mutation in self.mutations.iter_mut().filter(|it| it.replica == replica) {
            mutation.is_interrupted = true;
        }
    }

    /// Completes the mutations that a crash has interrupted.
    pub(super) fn resume_mutations(&mut self, replica: usize) {
        let is_here = |it: &mut Mutation| it.is_interrupted && it.replica == replica;
        let interrupted: Vec<Mutation> = self.mutations.extract_if(.., is_here).collect();
        for mutation in interrupted {
            self.complete(&mutation);
        }
    }

    /// Completes a mutation, and returns its deletions. Returns `None` if a crash has interrupted
    /// it.
    fn end_mutation(&mut self, id: u64) -> Option<BTreeSet<Deletion>> {
        let mut mutations = self.mutations.iter();
        let position = mutations.position(|it| it.id == id && !it.is_interrupted);
        let mutation = self.mutations.remove(position?);
        Some(self.complete(&mutation))
    }

    /// Returns whether a server that is up has not executed one of these deletions.
    fn are_pending(&self, deletions: &BTreeSet<Deletion>) -> bool {
        let replicas = 0..self.log.replicas();
        let mut up = replicas.filter(|replica| !self.log.is_down(*replica));
        up.any(|replica| {
            let view = self.view(replica);
            let mut deletions = deletions.iter();
            deletions.any(|deletion| !self.log.is_deleted(Some(*deletion), view))
        })
    }

    fn complete(&mut self, mutation: &Mutation) -> BTreeSet<Deletion> {
        let Mutation {
            replica,
            table,
            condition,
            until,
            ..
        } = mutation;
        self.delete(self.view(*replica), *table, condition, *until)
    }
}
