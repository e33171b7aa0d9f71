//! `sluice rejects replay` dies in the middle of its work or is disturbed. A second run finishes
//! it.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{EventType, Generator};
use sluice_testkit::{exact, wait_for};
use tempfile::TempDir;

use crate::harness::{BOUND, Harness, concurrently, copy_builtin_event_types, scenario, text_of};

const SIGABRT: i32 = 6;

const REPLAY: [&str; 4] = ["rejects", "replay", "--output", "json"];

/// Objects loaded while one event type was not declared and another was declared wrongly: rows of
/// the one are unmatched, those of the other rejected. Now both are right.
async fn with_kept_lines(name: &str, strategy: &str) -> Result<Harness<'static>> {
    let mut harness = Harness::shared(name).await?;
    let directory = TempDir::new()?;
    copy_builtin_event_types(directory.path())?;
    std::fs::remove_file(directory.path().join("video.yaml"))?;
    let page_viewed = directory.path().join("page_viewed.yaml");
    let right = std::fs::read_to_string(&page_viewed)?;
    let wrong = right.replace("definition, subType]", "nowhere]\n    required: true");
    ensure!(right != wrong, "the declaration has changed");
    std::fs::write(&page_viewed, wrong)?;
    let types = directory.path().display().to_string();
    harness.set("event_types", serde_json::json!({ "dir": types }));
    // The views are those of the right declarations.
    harness.set("load.strategy", "per_type");
    // What is malformed would be rejected only once it is of an event type.
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
    harness.set("event_types", serde_json::json!({}));
    harness.set("load.strategy", strategy);
    Ok(harness)
}

async fn differences(harness: &Harness<'_>) -> Result<String> {
    exact::table_differences(harness.clickhouse, &harness.site, &harness.expected).await
}

/// Until it has died there: what is left behind is taken up only after a while.
async fn dies(harness: &Harness<'_>, failpoint: &str) {
    wait_for(failpoint, BOUND, async || {
        let output = harness
            .command(&REPLAY, &format!("{failpoint}return"))
            .await?;
        ensure!(output.status.signal() == Some(SIGABRT), "{output:?}");
        Ok(Some(()))
    })
    .await;
}

/// Runs until no replay is unfinished. Then each line is in its table once.
async fn ends_well(harness: &Harness<'_>) -> Result<()> {
    let unfinished = format!(
        "SELECT uniqExact(batch_id) FROM {} WHERE read_by LIKE '%\\_%' AND batch_id NOT IN \
         (SELECT batch_id FROM {} WHERE event IN ('released', 'cleaned'))",
        harness.table("ledger_objects"),
        harness.table("ledger_batches"),
    );
    wait_for("a replay to end well", BOUND, async || {
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

/// It dies at one place after the other, each as `FAILPOINTS` has it up to `return`.
async fn dying_at(strategy: &'static str, deaths: &'static [&'static str]) -> Result<()> {
    let harness = with_kept_lines("replay-dies", strategy).await?;
    for death in deaths {
        dies(&harness, death).await;
    }
    ends_well(&harness).await
}

async fn all_dying(
    strategy: &'static str,
    scenarios: impl IntoIterator<Item = &'static [&'static str]>,
) -> Result<()> {
    let scenarios = scenarios
        .into_iter()
        .map(|deaths| scenario(format!("{deaths:?}"), dying_at(strategy, deaths)));
    concurrently(scenarios).await
}

/// Each finds what the one before has left.
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
    all_dying("single_pass", DEATHS).await
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
    all_dying("per_type", DEATHS).await
}

/// A replay that another configuration began, and that has rows, is rolled back.
#[tokio::test]
async fn a_replay_is_not_rolled_forward_under_another_configuration() -> Result<()> {
    let mut harness = with_kept_lines("replay-plan", "per_type").await?;
    dies(&harness, "replay.statement=3*off->").await;
    harness.set("load.strategy", "single_pass");
    for death in ["take_back.before=", "take_back.after="] {
        dies(&harness, death).await;
    }
    ends_well(&harness).await
}

#[tokio::test]
async fn concurrent_replays_move_each_line_once() -> Result<()> {
    let harness = with_kept_lines("replay-twice", "per_type").await?;
    let replays = (0..4).map(|_| harness.command(&REPLAY, ""));
    for output in futures_util::future::try_join_all(replays).await? {
        ensure!(output.status.success(), "{output:?}");
    }
    ends_well(&harness).await
}

/// The statements that change anything.
const STATEMENTS: [(&str, &[&str]); 5] = [
    ("seal", &["INSERT INTO", "`ledger_objects` ("]),
    ("freeze", &["INSERT INTO", "`replayed_lines` (batch_id"]),
    ("insert", &["INSERT INTO", "`replayed_lines` WHERE"]),
    (
        "record",
        &["INSERT INTO", "`ledger_batches` (", "'loaded', "],
    ),
    ("clean", &["DELETE FROM"]),
];

/// Each statement in turn meets the fault once.
async fn disturbed(fault: Fault) -> Result<()> {
    let mut harness = with_kept_lines("replay-faults", "single_pass").await?;
    let proxy = Proxy::start(harness.clickhouse.url()).await?;
    harness.set("clickhouse.url", proxy.url());
    for (met, (name, words)) in STATEMENTS.into_iter().enumerate() {
        proxy.inject(fault, 1, move |parts, body| {
            let text = text_of(parts, body);
            words.iter().all(|word| text.contains(word))
        });
        wait_for(name, BOUND, async || {
            let output = harness.command(&REPLAY, "").await?;
            let hits = proxy.hits();
            ensure!(hits > met, "{hits} met it: {output:?}");
            ensure!(output.status.code() == Some(1), "{output:?}");
            Ok(Some(()))
        })
        .await;
    }
    ends_well(&harness).await?;
    if let Fault::Late(late) = fault {
        // Whatever comes by then must do nothing.
        tokio::time::sleep(late * 2).await;
    }
    ends_well(&harness).await
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
