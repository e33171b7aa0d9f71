//! The faults of the servers, which the world switches on and off.

use std::time::Duration;

use super::SimServer;

impl SimServer {
    /// Crashes a server: it refuses connections, and its running statements vanish, some of them
    /// between two tables.
    ///
    /// With `forgets_rows`, the newest block of these statements loses its rows in one table while
    /// the table remembers its token, unless another replica shows the rows. Nothing is lost that
    /// the server has confirmed.
    pub fn crash(&self, replica: usize, forgets_rows: bool) {
        self.with(|state| {
            let view = state.view(replica);
            state.note(format_args!("server {replica} crashes"));
            state.crash_statements(view, forgets_rows);
            state.interrupt_mutations(replica);
            state.log.set_down(view, true, &mut state.rng);
        });
    }

    /// Starts a server that has crashed. It shows what others wrote meanwhile after its lag, and
    /// completes its mutations.
    pub fn restart(&self, replica: usize) {
        self.with(|state| {
            let view = state.view(replica);
            state.note(format_args!("server {replica} starts"));
            state.log.set_down(view, false, &mut state.rng);
            state.resume_mutations(replica);
        });
    }

    /// Sets after how long a replica shows what others write, at most. With `None`, it shows
    /// nothing new until this is set again.
    pub fn set_lag(&self, replica: usize, lag: Option<Duration>) {
        let millis = |lag: Duration| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        self.with(|state| {
            let view = state.view(replica);
            state.note(format_args!("server {replica} lags {lag:?}"));
            state.log.set_lag(view, lag.map(millis), &mut state.rng);
        });
    }

    /// Has every statement be refused with this error code of ClickHouse. `None` ends it.
    pub fn refuse(&self, code: Option<u32>) {
        self.with(|state| {
            state.note(format_args!("statements are refused: {code:?}"));
            state.faults.refused = code;
        });
    }

    /// Has one in `one_in` inserts fail at a random point with this error code; 0 ends it.
    pub fn fail_inserts(&self, code: u32, one_in: u32) {
        self.with(|state| {
            state.note(format_args!("one in {one_in} inserts fails with {code}"));
            state.faults.failing_inserts = (code, one_in);
        });
    }

    /// Has inserts wait before they read their objects, until this is set to `false` or they are
    /// killed.
    pub fn hold_reads(&self, holds: bool) {
        self.with(|state| {
            state.note(format_args!("reads are held: {holds}"));
            state.faults.holds_reads = holds;
        });
    }

    /// Has one in `one_in` kills not end the statement; 0 ends it. The kill waits for the end of
    /// the statement all the same.
    pub fn lose_kills(&self, one_in: u32) {
        self.with(|state| {
            state.note(format_args!("one in {one_in} kills has no effect"));
            state.faults.lost_kills = one_in;
        });
    }

    /// Has one in `one_in` mutations delete nothing, although it succeeds; 0 ends it.
    pub fn lose_mutations(&self, one_in: u32) {
        self.with(|state| {
            state.note(format_args!("one in {one_in} mutations is lost"));
            state.faults.lost_mutations = one_in;
        });
    }

    /// Has a user's view on this table throw for every row; with `None`, there is no such view.
    pub fn throwing_view(&self, table: Option<&str>) {
        self.with(|state| {
            state.note(format_args!("a view throws: {table:?}"));
            state.faults.throwing_view = table.map(str::to_owned);
            state.faults.view_changed_at = state.now();
        });
    }
}
