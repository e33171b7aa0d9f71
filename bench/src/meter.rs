//! Processor time during a run: of ClickHouse for the worker's statements, and of other programs.

use std::fs;
use std::process;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use sluice_bench::machine::{busy_seconds, other_load, process_seconds};

use crate::harness::Harness;

/// The state at the beginning of a run.
pub(crate) struct Meter {
    began: Instant,
    began_micros: u128,
    busy: f64,
    own: f64,
}

/// The processor time that was used during a run.
pub(crate) struct Usage {
    /// Processor seconds of ClickHouse for the statements that began during the run.
    pub(crate) clickhouse_seconds: f64,
    /// The share of the cores that other programs used.
    pub(crate) other_load: f64,
}

impl Meter {
    /// Begins before the programs of a run are started.
    pub(crate) fn start(harness: &Harness) -> Result<Self> {
        Ok(Self {
            began: Instant::now(),
            began_micros: now_micros()?,
            busy: busy()?,
            own: own(harness)?,
        })
    }

    /// Ends the run while its programs, which have these process ids, still exist.
    pub(crate) async fn stop(self, harness: &Harness, programs: &[u32]) -> Result<Usage> {
        let mut own = own(harness)? - self.own;
        for pid in programs {
            own += processor_seconds(*pid)?;
        }
        let seconds = self.began.elapsed().as_secs_f64();
        let other_load = other_load(busy()? - self.busy, own, seconds, cores()?);
        let clickhouse_seconds = statements(harness, self.began_micros, now_micros()?).await?;
        // Otherwise the comparison would silently cover the workers only.
        ensure!(
            clickhouse_seconds > 0.0,
            "system.query_log has no processor time for the run"
        );
        Ok(Usage {
            clickhouse_seconds,
            other_load,
        })
    }
}

/// Returns the processor seconds that a running process has used.
pub(crate) fn processor_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    process_seconds(&stat).with_context(|| format!("/proc/{pid}/stat has no times"))
}

/// Returns the processor seconds of all statements that began within this time. Only the worker
/// sends any, since the server belongs to the benchmark, which waits. The statements need no mark,
/// so that any version of Sluice can be measured.
async fn statements(harness: &Harness, from_micros: u128, to_micros: u128) -> Result<f64> {
    harness.clickhouse.execute("SYSTEM FLUSH LOGS").await?;
    let sql = format!(
        "SELECT sum(ProfileEvents['UserTimeMicroseconds'] + \
         ProfileEvents['SystemTimeMicroseconds']) / 1e6 FROM system.query_log \
         WHERE type != 'QueryStart' AND is_initial_query \
         AND query_start_time_microseconds >= fromUnixTimestamp64Micro({from_micros}) \
         AND query_start_time_microseconds <= fromUnixTimestamp64Micro({to_micros})"
    );
    harness.clickhouse.scalar(&sql).await
}

/// Returns the processor seconds of ClickHouse and of the benchmark, which serves S3 and SQS.
fn own(harness: &Harness) -> Result<f64> {
    let mut pids = harness.clickhouse.pids();
    pids.push(process::id());
    pids.into_iter().map(processor_seconds).sum()
}

fn busy() -> Result<f64> {
    busy_seconds(&fs::read_to_string("/proc/stat")?).context("/proc/stat has no times")
}

fn now_micros() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())
}

#[expect(clippy::cast_precision_loss, reason = "a count of cores is small")]
fn cores() -> Result<f64> {
    Ok(thread::available_parallelism()?.get() as f64)
}
