//! Permits of statements on replicas, and proofs that no statement of a batch is running or can
//! start, as `sluice::ledger` obtains them.

use std::time::Duration;

use sluice::batch::BatchId;
use sluice::ledger::{Permit, Stopped};
use tokio::time::Instant;

use super::connection::Mark;
use super::errors;
use super::ledger::{SimLedger, whole_seconds};
use super::ledger_rows::{EventRow, Lease};
use super::log::{Scope, View};
use super::state::{Answer, State};

/// How long all servers have to show a fence.
const FENCE_BOUND: Duration = Duration::from_secs(5);
const FENCE_PAUSE: Duration = Duration::from_millis(20);
/// How long after its time limit a statement counts as running.
const LATE_COMMIT: Duration = Duration::from_secs(60);

impl SimLedger {
    pub(super) async fn permit_until_lease_ends(
        &self,
        batch: BatchId,
        attempt: u32,
    ) -> Answer<Permit> {
        // No batch is fenced before its first lease, that of the claim, has ended.
        if attempt == 1
            && let (Some(lease), now) = self.lease_of_claim(batch).await?
            && let Some(permit) = self.within((batch, attempt), lease, now)
        {
            return Ok(permit);
        }
        let mark = self.env.new_id();
        let row = EventRow {
            mark: Some(mark),
            ..self.lease_row()
        };
        let written = self.write("lease", batch, vec![row]).await?;
        let read = move |state: &mut State, view: View| {
            let State { ledger, log, .. } = state;
            let lease = ledger.marked_lease((batch, attempt), mark, log, view);
            Ok((lease, view.now))
        };
        let read = self
            .connection
            .read_after("lease end", written, Scope::Events, read);
        let (lease, now) = read.await?;
        let permit = self.within((batch, attempt), lease, now);
        // Nothing may start any more.
        Ok(permit.unwrap_or_else(|| Permit::until(batch, attempt, 0, Instant::now())))
    }

    async fn lease_of_claim(&self, batch: BatchId) -> Answer<(Option<Lease>, u64)> {
        let worker = self.worker();
        let read = move |state: &mut State, view: View| {
            let State { ledger, log, .. } = state;
            Ok((ledger.lease_of_claim(batch, &worker, log, view), view.now))
        };
        self.connection.request("lease of claim", read).await
    }

    /// Returns a permit that ends with the lease, if enough of the lease is left.
    fn within(&self, (batch, attempt): (BatchId, u32), lease: Lease, now: u64) -> Option<Permit> {
        let remaining = Duration::from_millis(lease.ends.checked_sub(now)?);
        if lease.is_fenced || remaining < self.lease / 2 {
            return None;
        }
        let renew_at = Instant::now() + remaining - self.lease / 4;
        let at_millis = i64::try_from(lease.ends).ok()?;
        Some(Permit::until(batch, attempt, at_millis, renew_at))
    }

    pub(super) async fn stop_everywhere(&self, batch: BatchId) -> Answer<Stopped> {
        // In this order: a statement that starts in between sees the fence.
        let is_fenced = self.is_fenced_everywhere(batch).await;
        let is_killed = self.connection.kill_everywhere(batch).await?;
        let why = match is_fenced {
            Ok(true) if is_killed => return Ok(Stopped::Yes),
            Ok(true) => "its statements may be running on a server that is down".to_owned(),
            Ok(false) => "a server does not show its fence".to_owned(),
            Err(error) => error.to_string(),
        };
        let remaining = self.statements_may_run_for(batch).await?;
        Ok(match remaining.is_zero() {
            true => Stopped::Yes,
            false => Stopped::After { remaining, why },
        })
    }

    /// Returns whether every server shows the highest fence of the batch in time.
    async fn is_fenced_everywhere(&self, batch: BatchId) -> Answer<bool> {
        let barrier = self.write_barrier().await?;
        let highest = move |state: &mut State, view| {
            let State { ledger, log, .. } = state;
            Ok(ledger.fenced(batch, log, view))
        };
        let mark = barrier.map(Mark::At);
        let highest = self
            .connection
            .read_after("highest fence", mark, Scope::Events, highest);
        let attempt = highest.await?;
        let begun = Instant::now();
        loop {
            let is_everywhere = move |state: &mut State, view: View| {
                is_fenced_on_all(state, batch, attempt, view.now)
            };
            let is_everywhere = self.connection.request("fenced?", is_everywhere);
            if is_everywhere.await? {
                return Ok(true);
            }
            if begun.elapsed() > FENCE_BOUND {
                return Ok(false);
            }
            tokio::time::sleep(FENCE_PAUSE).await;
        }
    }

    /// Returns for how long statements of the batch may be running on a server that is down.
    async fn statements_may_run_for(&self, batch: BatchId) -> Answer<Duration> {
        let barrier = self.write_barrier().await?;
        let own = whole_seconds(self.statement);
        let read = move |state: &mut State, view: View| {
            let end = state.ledger.statements_end(batch, own, &state.log, view);
            Ok((end / 1000 + LATE_COMMIT.as_secs()).saturating_sub(view.now / 1000))
        };
        let (mark, scope) = (barrier.map(Mark::At), Scope::ClaimsAndEvents);
        let seconds = self.connection.read_after("last lease", mark, scope, read);
        Ok(Duration::from_secs(seconds.await?))
    }
}

/// Returns whether every server shows the fence.
///
/// # Errors
///
/// Fails if a server is down.
fn is_fenced_on_all(state: &State, batch: BatchId, attempt: u32, now: u64) -> Answer<bool> {
    let State { ledger, log, .. } = state;
    if log.is_any_down() {
        return Err(errors::unreachable_replica());
    }
    let is_fenced = |replica| ledger.is_fenced(batch, attempt, log, View::at(replica, now));
    Ok((0..log.replicas()).all(is_fenced))
}
