//! The same records in each format: Sluice against the bare `INSERT … SELECT … FROM s3(…)` that a
//! person would write by hand.

mod data;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_bench::gate::median;
use sluice_testkit::xapi::{Bundle, ExpectedRows};
use tempfile::TempDir;
use tokio::time::sleep;

use self::data::{Form, Origin};
use crate::contenders::sluice::{Worker, memory};
use crate::harness::{Database, Harness};
use crate::note;
use crate::queue::QueueServer;

const BUCKET: &str = "bench-formats";
const POLL: Duration = Duration::from_millis(20);
/// How long ClickHouse has to log a statement.
const LOGGED_WITHIN: Duration = Duration::from_secs(10);

/// The measurements of one format.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct FormatResult {
    form: String,
    records: u64,
    bytes: usize,
    /// The bare statement, for whoever repeats it.
    statement: String,
    samples: Vec<Sample>,
}

/// One load by the bare statement, and one by Sluice.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Sample {
    /// The wall-clock time of the bare statement.
    bare_seconds: f64,
    /// The same if it also keeps the object that each record comes from.
    lineage_seconds: f64,
    /// The wall-clock time of the inserts of Sluice's batch.
    insert_seconds: f64,
    /// The same of the whole backfill, from its start as a process.
    total_seconds: f64,
    bare_cpu_seconds: f64,
    insert_cpu_seconds: f64,
    /// ClickHouse's peak memory for the bare statement and for Sluice's insert.
    bare_mib: f64,
    insert_mib: f64,
    /// The peak resident memory of the worker.
    worker_mib: f64,
}

/// What `system.query_log` has of some statements.
#[derive(Clone, Copy, Debug)]
struct Logged {
    seconds: f64,
    cpu_seconds: f64,
    mib: f64,
}

impl FormatResult {
    fn median(&self, value: impl Fn(&Sample) -> f64) -> f64 {
        let values: Vec<f64> = self.samples.iter().map(value).collect();
        median(&values)
    }

    /// Returns the median ratio of the time of Sluice's insert to that of the bare statement, sample
    /// by sample.
    pub(crate) fn ratio(&self) -> f64 {
        self.median(|sample| sample.insert_seconds / sample.bare_seconds)
    }

    /// Returns a row of a Markdown table.
    pub(crate) fn row(&self) -> String {
        format!(
            "| {} | {:.3} s | {:.2} | {:.3} s ({:.2}) | {:.2} | {:.2} s | {:.0} and {:.0} MiB | {:.0} MiB |\n",
            self.form,
            self.median(|sample| sample.bare_seconds),
            self.median(|sample| sample.lineage_seconds / sample.bare_seconds),
            self.median(|sample| sample.insert_seconds),
            self.ratio(),
            self.median(|sample| sample.insert_cpu_seconds / sample.bare_cpu_seconds),
            self.median(|sample| sample.total_seconds),
            self.median(|sample| sample.bare_mib),
            self.median(|sample| sample.insert_mib),
            self.median(|sample| sample.worker_mib),
        )
    }
}

/// Returns a Markdown table.
pub(crate) fn table(results: &[FormatResult]) -> String {
    let head = "| format | bare insert | with lineage | Sluice's insert | ratio of processor time | \
                backfill in all | memory of ClickHouse | memory of the worker |\n\
                |---|---|---|---|---|---|---|---|\n";
    let rows: String = results.iter().map(FormatResult::row).collect();
    format!("{head}{rows}")
}

/// What is measured.
#[derive(Args)]
pub(crate) struct Selection {
    #[arg(long, default_value_t = 500_000)]
    records: u64,
    #[arg(long, default_value_t = 5)]
    samples: usize,
    /// Load only these formats
    #[arg(long, value_delimiter = ',')]
    forms: Vec<String>,
    /// Have the worker stream the objects
    #[arg(long)]
    streamed: bool,
}

impl Selection {
    /// Returns the name of the results.
    pub(crate) fn name(&self) -> &'static str {
        if self.streamed {
            "formats-streamed"
        } else {
            "formats"
        }
    }

    fn forms(&self) -> Result<Vec<Form>> {
        let find = |name: &String| {
            let found = Form::ALL.into_iter().find(|form| form.name() == name);
            found.with_context(|| format!("there is no format {name}"))
        };
        if self.forms.is_empty() {
            return Ok(Form::ALL.to_vec());
        }
        self.forms.iter().map(find).collect()
    }

    fn load(&self) -> &'static str {
        if self.streamed {
            "load:\n  fallback: always\n"
        } else {
            ""
        }
    }
}

/// Measures each format `samples` times, taking turns, so that a machine that becomes slower slows
/// down all of them.
pub(crate) async fn run(harness: &Harness, selection: &Selection) -> Result<Vec<FormatResult>> {
    let records = selection.records;
    let forms = selection.forms()?;
    let declarations = tempfile::Builder::new().prefix("sluice-bench-").tempdir()?;
    data::write_declarations(declarations.path())?;
    let mut results = Vec::new();
    for form in &forms {
        let bytes = form.written(&harness.clickhouse, records).await?;
        results.push(FormatResult {
            form: form.name().to_owned(),
            records,
            bytes: bytes.len(),
            statement: form.insert("records", &url(harness, *form), Origin::Nothing),
            samples: Vec::new(),
        });
        let bundle = Bundle {
            key: form.key(),
            bytes,
            expected_rows: ExpectedRows::default(),
        };
        harness.objects.put(BUCKET, bundle);
    }
    for round in 0..selection.samples {
        for (form, result) in forms.iter().zip(&mut results) {
            let sample = measure(harness, *form, selection, &declarations).await?;
            note(&format!(
                "{} {round}: bare {:.3} s, Sluice {:.3} s",
                result.form, sample.bare_seconds, sample.insert_seconds
            ));
            result.samples.push(sample);
        }
    }
    Ok(results)
}

fn url(harness: &Harness, form: Form) -> String {
    format!("{}/{BUCKET}/{}", harness.objects.endpoint(), form.key())
}

async fn measure(
    harness: &Harness,
    form: Form,
    selection: &Selection,
    declarations: &TempDir,
) -> Result<Sample> {
    let records = selection.records;
    let database = harness.database().await?;
    let bare = bare_insert(harness, form, records, &database, Origin::Nothing).await?;
    let with_lineage = bare_insert(harness, form, records, &database, Origin::Object).await?;
    let (sluice, total_seconds, worker_mib) =
        sluice(harness, form, selection, declarations, &database).await?;
    database.remove().await?;
    Ok(Sample {
        bare_seconds: bare.seconds,
        lineage_seconds: with_lineage.seconds,
        insert_seconds: sluice.seconds,
        total_seconds,
        bare_cpu_seconds: bare.cpu_seconds,
        insert_cpu_seconds: sluice.cpu_seconds,
        bare_mib: bare.mib,
        insert_mib: sluice.mib,
        worker_mib,
    })
}

async fn bare_insert(
    harness: &Harness,
    form: Form,
    records: u64,
    database: &Database<'_>,
    origin: Origin,
) -> Result<Logged> {
    let clickhouse = &harness.clickhouse;
    let table = format!("{}.bare_{origin:?}", database.name);
    clickhouse.execute(&data::create(&table, origin)).await?;
    let insert = form.insert(&table, &url(harness, form), origin);
    clickhouse.execute(&insert).await?;
    let count: u64 = clickhouse
        .scalar(&format!("SELECT count() FROM {table}"))
        .await?;
    ensure!(
        count == records,
        "{}: {count} records, not {records}",
        form.name()
    );
    let logged = logged(harness, &format!("position(query, '{table} ') > 0")).await?;
    clickhouse
        .execute(&format!("DROP TABLE {table} SYNC"))
        .await?;
    Ok(logged)
}

/// Returns what the log has of Sluice's inserts, the time of the backfill, and the worker's memory.
async fn sluice(
    harness: &Harness,
    form: Form,
    selection: &Selection,
    declarations: &TempDir,
    database: &Database<'_>,
) -> Result<(Logged, f64, f64)> {
    let queue = QueueServer::start([]).await?;
    let at = queue.addresses(&harness.objects);
    let extra = format!(
        "event_types:\n  dir: {}\n{}",
        declarations.path().display(),
        selection.load()
    );
    let worker = Worker::prepare(&harness.sluice, harness, &at, database, "", &extra)?;
    let url = format!("s3://{BUCKET}/{}", form.key());
    let mut command = worker.command(&["backfill", &url, "--output", "json"]);
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut worker_mib = 0.0;
    while child.try_wait()?.is_none() {
        // The process may be about to exit.
        worker_mib = memory(child.id(), "VmHWM:").unwrap_or(worker_mib);
        sleep(POLL).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let output = child.wait_with_output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let rows: BTreeMap<String, u64> = serde_json::from_value(report["rows"].clone())?;
    ensure!(
        rows.get(data::EVENT_TYPE) == Some(&selection.records),
        "{}: {report}",
        form.name()
    );
    let of_batch = format!(
        "startsWith(log_comment, 'sluice batch') AND position(query, '{}') > 0",
        database.name
    );
    Ok((logged(harness, &of_batch).await?, seconds, worker_mib))
}

/// Returns what the log has of the finished inserts of this condition. ClickHouse can write an entry
/// after the client has the response.
async fn logged(harness: &Harness, condition: &str) -> Result<Logged> {
    let deadline = Instant::now() + LOGGED_WITHIN;
    loop {
        let found = logged_so_far(harness, condition).await?;
        if found.seconds > 0.0 {
            return Ok(found);
        }
        // Otherwise, a ratio would be of nothing.
        ensure!(
            Instant::now() < deadline,
            "no insert in system.query_log after {LOGGED_WITHIN:?}"
        );
        sleep(POLL).await;
    }
}

async fn logged_so_far(harness: &Harness, condition: &str) -> Result<Logged> {
    harness.clickhouse.execute("SYSTEM FLUSH LOGS").await?;
    let sql = format!(
        "SELECT sum(query_duration_ms) / 1e3 AS seconds, \
         sum(ProfileEvents['UserTimeMicroseconds'] + ProfileEvents['SystemTimeMicroseconds']) / 1e6 \
           AS cpu, \
         max(memory_usage) / 1048576 AS mib FROM system.query_log \
         WHERE type = 'QueryFinish' AND is_initial_query AND query_kind = 'Insert' AND {condition}"
    );
    let rows = harness.clickhouse.rows(&sql).await?;
    let row = rows.first().context("no row")?;
    let number = |name: &str| row[name].as_f64().context("no number");
    Ok(Logged {
        seconds: number("seconds")?,
        cpu_seconds: number("cpu")?,
        mib: number("mib")?,
    })
}
