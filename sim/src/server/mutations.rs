//! Deletions of rows, which take a while.

use std::time::Duration;

use tokio::sync::oneshot;

use super::SimServer;
use super::log::{Seq, View};
use super::parts::{Condition, TableId};
use super::state::{Answer, State};

/// How long a mutation takes, in milliseconds.
const MILLIS: std::ops::RangeInclusive<u64> = 5..=500;

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
    pub(super) fn begin_mutation(
        &mut self,
        server: &SimServer,
        view: View,
        table: TableId,
        condition: Condition,
    ) -> oneshot::Receiver<Answer<()>> {
        if let Condition::Of(batch) = condition {
            self.check_rollback(batch);
        }
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
            if server.with(|state| state.end_mutation(id)) {
                // The client may have gone.
                drop(answer.send(Ok(())));
            }
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

    /// Completes a mutation, unless a crash has interrupted it. Returns whether it did.
    fn end_mutation(&mut self, id: u64) -> bool {
        let mut mutations = self.mutations.iter();
        let position = mutations.position(|it| it.id == id && !it.is_interrupted);
        let Some(position) = position else {
            return false;
        };
        let mutation = self.mutations.remove(position);
        self.complete(&mutation);
        true
    }

    fn complete(&mut self, mutation: &Mutation) {
        let Mutation {
            replica,
            table,
            condition,
            until,
            ..
        } = mutation;
        self.delete(self.view(*replica), *table, condition, *until);
    }
}
