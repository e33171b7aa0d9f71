//! `sluice rejects replay` dies in the middle of its work or is disturbed. A second run finishes
//! it.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{EventType, Generator, write_lean_declarations};
use sluice_testkit::{exact, wait_for};
use tempfile::TempDir;

use crate::harness::{BOUND, Harness, concurrently, scenario, text_of};

const SIGABRT: i32 = 6;

const REPLAY: [&str; 4] = ["rejects", "replay", "--output", "json"];

/// Loads objects while one event type is not declared and another one is declared wrongly, so that
/// lines of the first are unmatched and those of the second rejected. Then corrects both.
async fn with_rejects(name: &str, strategy: &str) -> Result<Harness<'static>> {
    let mut harness = Harness::shared(name).await?;
    let directory = TempDir::new()?;
    write_lean_declarations(directory.path())?;
    std::fs::remove_file(directory.path().join("video.yaml"))?;
    for (file, right, wrong, as_file) in [
        (
            "xapi_base.yaml",
            "path: [timestamp]",
            "path: [nowhere]",
            "xapi_wrong.yaml",
        ),
        (
            "page_viewed.yaml",
            "xapi_base",
            "xapi_wrong",
            "page_viewed.yaml",
        ),
    ] {
        let text = std::fs::read_to_string(directory.path().join(file))?;
        ensure!(text.contains(right), "{file} has changed");
        std::fs::write(directory.path().join(as_file), text.replace(right, wrong))?;
    }
    let types = directory.path().display().to_string();
    let right_types = harness.config["event_types"]["dir"].clone();
    harness.set("event_types.dir", types);
    // The views exist for the correct declarations only.
    harness.set("load.strategy", "per_type");
    // A malformed line would be rejected only once its event type is declared.
    harness.generator = Generator::new(harness.site.bucket.len() as u64).faults(0.0, 0.1);
    harness.put_bundles(2).await?;
    while !(harness.expects(EventType::Video) && harness.expects(EventType::PageViewed)) {
        harness.put_bundles(1).await?;
    }
    let daemon = harness.start("")?;
    harness.wait_until_drained(&[&daemon]).await;
    daemon.wait_until_ready().await;
    daemon.stop().await?;
    ensure!(
        !differences(&harness).await?.is_empty(),
        "nothing to replay"
    );
    harness.set("event_types.dir", right_types);
    harness.set("load.strategy", strategy);
    Ok(harness)
}

async fn differences(harness: &Harness<'_>) -> Result<String> {
    exact::table_differences(harness.servers, &harness.site, &harness.expected).await
}

/// Runs replays until one dies at this failpoint: unfinished work of an earlier one is recovered
/// only once its lease has expired.
async fn die_at(harness: &Harness<'_>, failpoint: &str) {
    wait_for(failpoint, BOUND, async || {
        let output = harness
            .command(&REPLAY, &format!("{failpoint}return"))
            .await?;
        ensure!(output.status.signal() == Some(SIGABRT), "{output:?}");
        Ok(Some(()))
    })
    .await;
}

/// Runs replays until none is unfinished, and asserts that each line is in its table once.
async fn finish(harness: &Harness<'_>) -> Result<()> {
    let unfinished = format!(
        "SELECT uniqExact(batch_id) FROM {} WHERE read_by LIKE '%\\_%' AND batch_id NOT IN \
         (SELECT batch_id FROM {} WHERE event IN ('released', 'cleaned'))",
        harness.table("ledger_objects"),
        harness.table("ledger_batches"),
    );
    wait_for("no replay to be unfinished", BOUND, async || {
        let output = harness.command(&REPLAY, "").await?;
        ensure!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(report["in_hand"] == 0, "{report}");
        let unfinished: u64 = harness.clickhouse.scalar(&unfinished).await?;
        ensure!(unfinished == 0, "{unfinished} unfinished");
        Ok(Some(()))
    })
    .await;
    let problems = differences(harness).await?;
    ensure!(problems.is_empty(), "{}:\n{problems}", harness.site.bucket);
    Ok(())
}

/// Dies at one failpoint after the other, each in the syntax of `FAILPOINTS` up to `return`.
async fn finish_after_deaths_at(
    strategy: &'static str,
    deaths: &'static [&'static str],
) -> Result<()> {
    let harness = with_rejects("replay-deaths", strategy).await?;
    for death in deaths {
        die_at(&harness, death).await;
    }
    finish(&harness).await
}

async fn run_all(
    strategy: &'static str,
    scenarios: impl IntoIterator<Item = &'static [&'static str]>,
) -> Result<()> {
    let scenarios = scenarios.into_iter().map(|deaths| {
        scenario(
            format!("{deaths:?}"),
            finish_after_deaths_at(strategy, deaths),
        )
    });
    concurrently(scenarios).await
}

/// Each replay finds what the previous one has left.
#[tokio::test]
async fn a_replay_that_dies_at_any_step_is_completed_by_the_next() -> Result<()> {
    const DEATHS: [&[&str]; 4] = [
        &[
            "look_up.after=",
            "seal.before=",
            "seal.after=",
            "verify.after=",
            // The snapshot is recorded.
            "replay.statement=",
        ],
        &["insert.after=", "record.after=", "clean.before="],
        &["record.after=", "clean.after="],
        // In the second batch.
        &["insert.after=1*off->"],
    ];
    run_all("single_pass", DEATHS).await
}

#[tokio::test]
async fn a_replay_that_dies_while_it_recovers_is_recovered() -> Result<()> {
    const DEATHS: [&[&str]; 2] = [
        // The rows are in their table, and not counted.
        &[
            "replay.statement=3*off->",
            "fence.after=",
            "check_rows.after=",
            "insert.after=",
        ],
        &["replay.statement=", "kill.after=", "release.before="],
    ];
    run_all("per_type", DEATHS).await
}

/// A replay that another configuration began, and that has rows, is rolled back.
#[tokio::test]
async fn a_replay_is_not_rolled_forward_under_another_configuration() -> Result<()> {
    let mut harness = with_rejects("replay-plan", "per_type").await?;
    die_at(&harness, "replay.statement=3*off->").await;
    harness.set("load.strategy", "single_pass");
    for death in ["take_back.before=", "take_back.after="] {
        die_at(&harness, death).await;
    }
    finish(&harness).await
}

#[tokio::test]
async fn concurrent_replays_move_each_line_once() -> Result<()> {
    let harness = with_rejects("replay-twice", "per_type").await?;
    let replays = (0..4).map(|_| harness.command(&REPLAY, ""));
    for output in futures_util::future::try_join_all(replays).await? {
        ensure!(output.status.success(), "{output:?}");
    }
    finish(&harness).await
}

/// The statements that write.
const STATEMENTS: [(&str, &[&str]); 5] = [
    ("claim", &["INSERT INTO", "`ledger_objects` ("]),
    ("snapshot", &["INSERT INTO", "`replayed_lines` (batch_id"]),
    ("insert", &["INSERT INTO", "`replayed_lines` WHERE"]),
    (
        "record",
        &["INSERT INTO", "`ledger_batches` (", "'loaded', "],
    ),
    ("clean", &["DELETE FROM"]),
];

/// Each statement in turn hits the fault once.
async fn disturbed(fault: Fault) -> Result<()> {
    let mut harness = with_rejects("replay-faults", "single_pass").await?;
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    for (earlier_hits, (name, words)) in STATEMENTS.into_iter().enumerate() {
        proxy.inject(fault, 1, move |parts, body| {
            let text = text_of(parts, body);
            words.iter().all(|word| text.contains(word))
        });
        wait_for(name, BOUND, async || {
            let output = harness.command(&REPLAY, "").await?;
            let hits = proxy.hits();
            ensure!(hits > earlier_hits, "{hits} hits: {output:?}");
            ensure!(output.status.code() == Some(1), "{output:?}");
            Ok(Some(()))
        })
        .await;
    }
    finish(&harness).await?;
    if let Fault::Late(late) = fault {
        // Statements that arrive by then must have no effect.
        tokio::time::sleep(late * 2).await;
    }
    finish(&harness).await
}

#[tokio::test]
async fn every_statement_of_a_replay_tolerates_cuts_and_late_arrival() -> Result<()> {
    let faults = [
        Fault::CutBeforeRequest,
        Fault::CutBeforeResponse,
        Fault::Late(Duration::from_secs(2)),
    ];
    concurrently(faults.map(|fault| scenario(format!("{fault:?}"), disturbed(fault)))).await
}
