//! `sluice verify` tells damage apart from what was removed on purpose, and `sluice repair` leads
//! back to the rows that were loaded.

use std::collections::BTreeMap;

use anyhow::ensure;
use serde_json::Value;
use sluice_testkit::{Site, Stack, wait_for};
use tempfile::TempDir;

use crate::harness::{
    BOUND, Sluice, line, loaded_names, wait_for_dead_letters, wait_until_drained,
};

const SOUND: Option<i32> = Some(0);
const INCOMPLETE: Option<i32> = Some(3);
const FINDINGS: Option<i32> = Some(4);

const RELEASED: &str = "00000000-0000-4000-8000-000000000001";
const UNKNOWN: &str = "00000000-0000-4000-8000-000000000002";

const CLICKS: &str = "table: clicks\n\
    rule: {path: [kind], equals: click}\n\
    order_by: [id]\n\
    partition_by: toYYYYMM(at)\n\
    columns:\n\
    - {name: id, type: UInt64, path: [id], required: true}\n\
    - {name: at, type: \"DateTime64(3, 'UTC')\", path: [at], required: true}\n\
    - {name: user, type: String, path: [user]}\n";

/// The verdicts and their rows, by object and table.
type Verdicts = BTreeMap<(String, String), Vec<(String, u64)>>;

struct Harness {
    stack: &'static Stack,
    site: Site,
    sluice: Sluice,
    /// Has the declarations and the findings.
    directory: TempDir,
}

impl Harness {
    /// Creates a site with one event type, whose tables merge nothing by themselves, and whose
    /// objects are loaded in a batch each.
    async fn new(name: &str) -> Self {
        let stack = Stack::shared();
        let site = stack.site_with_max_receives(name, 1).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("click.yaml"), CLICKS).unwrap();
        let sluice = Sluice::new(stack, &site)
            .set("event_types.dir", directory.path().display())
            .set("batch.max_objects", 1)
            .set("load.concurrency", 1);
        sluice.migrate();
        let harness = Self {
            stack,
            site,
            sluice,
            directory,
        };
        for table in ["clicks", "unmatched_statements"] {
            let setting = "max_bytes_to_merge_at_max_space_in_pool = 1";
            let alter = format!("ALTER TABLE $.{table} MODIFY SETTING {setting}");
            harness.execute(&alter).await;
        }
        harness
    }

    /// Runs a statement. `$` is a placeholder for the database.
    async fn execute(&self, sql: &str) {
        let sql = sql.replace('$', &self.site.database);
        self.stack.clickhouse.execute(&sql).await.unwrap();
    }

    /// Uploads objects, and loads them.
    async fn load(&self, objects: &[(&str, String)]) {
        for (key, content) in objects {
            self.site.put(key, content.clone()).await.unwrap();
        }
        let url = format!("s3://{}", self.site.bucket);
        let output = self.sluice.command(&["backfill", &url]);
        assert!(output.status.success(), "{output:?}");
    }

    /// Returns every row of both tables, apart from the batches.
    async fn rows(&self) -> Vec<String> {
        let sql = format!(
            "SELECT * FROM (\
               SELECT source_path, toString(id), toString(at), user FROM {0}.clicks UNION ALL \
               SELECT source_path, toString(row_number), raw, reason FROM {0}.unmatched_statements \
             ) ORDER BY ALL",
            self.site.database
        );
        let text = self.stack.clickhouse.query(&sql).await.unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Verifies the tables, and keeps the output in a file.
    fn verify(&self, arguments: &[&str]) -> (Option<i32>, Verdicts) {
        let command = [&["verify", "--output", "json"], arguments].concat();
        let output = self.sluice.command(&command);
        std::fs::write(self.file("findings"), &output.stdout).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut verdicts = Verdicts::new();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let Some((last, findings)) = lines.split_last() else {
            panic!("{}", String::from_utf8_lossy(&output.stderr));
        };
        assert!(last["summary"].is_object(), "{last}");
        for finding in findings {
            let text = |field: &str| finding[field].as_str().unwrap().to_owned();
            let object = text("object");
            let (_, key) = object.rsplit_once('/').unwrap();
            let name = (key.to_owned(), text("table"));
            let verdict = (text("verdict"), finding["rows"].as_u64().unwrap());
            verdicts.entry(name).or_default().push(verdict);
        }
        (output.status.code(), verdicts)
    }

    /// Asserts that these are the verdicts: key, table, verdict and rows of each.
    fn assert_verdicts(&self, code: Option<i32>, expected: &[(&str, &str, &str, u64)]) {
        let (actual_code, actual) = self.verify(&[]);
        let mut verdicts = Verdicts::new();
        for (key, table, verdict, rows) in expected {
            let name = ((*key).to_owned(), (*table).to_owned());
            let of_table = verdicts.entry(name).or_default();
            of_table.push(((*verdict).to_owned(), *rows));
        }
        assert_eq!((actual_code, actual), (code, verdicts));
    }

    /// Runs a repair, and returns its exit code and the actions by object.
    fn repair(&self, arguments: &[&str]) -> (Option<i32>, BTreeMap<String, Vec<String>>) {
        let command = [&["repair", "--output", "json"], arguments].concat();
        let output = self.sluice.command(&command);
        let report: Result<Value, _> = serde_json::from_slice(&output.stdout);
        let report = report.unwrap_or_else(|_| panic!("{output:?}"));
        let mut actions = BTreeMap::new();
        for object in report["objects"].as_array().unwrap() {
            let (_, key) = object["object"].as_str().unwrap().rsplit_once('/').unwrap();
            let of_object = object["actions"].as_array().unwrap().iter();
            let of_object = of_object.map(|action| action.as_str().unwrap().to_owned());
            actions.insert(key.to_owned(), of_object.collect());
        }
        (output.status.code(), actions)
    }

    fn prefix(&self) -> String {
        format!("s3://{}/", self.site.bucket)
    }
}

fn click(id: u64, day: &str, user: &str) -> String {
    format!("{{\"kind\":\"click\",\"id\":{id},\"at\":\"{day}T00:00:00Z\",\"user\":\"{user}\"}}\n")
}

/// Returns three clicks of two months, and a line that matches no event type.
fn content(key: &str, first: u64) -> String {
    click(first, "2026-01-05", key)
        + &click(first + 1, "2026-01-06", key)
        + &click(first + 2, "2026-02-05", key)
        + &line(key)
}

fn actions(of: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    let owned = |actions: &[&str]| actions.iter().map(|it| (*it).to_owned()).collect();
    of.iter()
        .map(|(key, actions)| ((*key).to_owned(), owned(actions)))
        .collect()
}

#[tokio::test]
async fn lost_duplicated_and_released_rows_are_found_and_repaired() {
    let harness = Harness::new("verify").await;
    harness.site.stop_notifications().await.unwrap();
    let objects: Vec<(&str, String)> = [("a", 10), ("b", 20), ("c", 30), ("d", 40)]
        .map(|(key, first)| (key, content(key, first)))
        .to_vec();
    harness.load(&objects).await;
    let rows = harness.rows().await;
    assert_eq!(rows.len(), 16, "{rows:?}");
    harness.assert_verdicts(SOUND, &[]);

    // A row of `a` is lost without a trace, rows of `b` are there twice, and those of `c` also under
    // a batch that was released.
    for sql in [
        "CREATE TABLE $.copy AS $.clicks",
        "INSERT INTO $.copy SELECT * FROM $.clicks WHERE id != 10",
        "ALTER TABLE $.clicks REPLACE PARTITION 202601 FROM $.copy",
        "INSERT INTO $.clicks SELECT * FROM $.clicks WHERE id IN (20, 22)",
    ] {
        harness.execute(sql).await;
    }
    for table in ["ledger_objects", "clicks", "unmatched_statements"] {
        let key = if table == "ledger_objects" {
            "key = 'c'"
        } else {
            "endsWith(source_path, '/c')"
        };
        let copy = format!(
            "INSERT INTO $.{table} SELECT * REPLACE (toUUID('{RELEASED}') AS batch_id) \
             FROM (SELECT * FROM $.{table} WHERE {key})"
        );
        harness.execute(&copy).await;
    }
    let release =
        format!("INSERT INTO $.ledger_batches (batch_id, event) VALUES ('{RELEASED}', 'released')");
    harness.execute(&release).await;
    let found = [
        ("a", "clicks", "missing", 1),
        ("b", "clicks", "doubled", 2),
        ("c", "clicks", "released", 3),
        ("c", "unmatched_statements", "released", 1),
    ];
    harness.assert_verdicts(FINDINGS, &found);
    // One object is selected by its key, table, or time.
    let url = harness.prefix() + "a";
    assert_eq!(harness.verify(&[&url]).1.len(), 1);
    assert_eq!(
        harness.verify(&["--table", "unmatched_statements"]).1.len(),
        1
    );
    assert_eq!(harness.verify(&["--since", "1h"]).1.len(), 3 + 1);
    assert_eq!(harness.verify(&["--until", "1h"]).1.len(), 0);
    // Without reading `a` again, it is not known why its row is missing.
    let (_, verdicts) = harness.verify(&["--read", "0"]);
    let of_a = &verdicts[&("a".to_owned(), "clicks".to_owned())];
    assert_eq!(of_a[..], [("unexplained".to_owned(), 1)]);

    let text = harness.sluice.command(&["verify"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("clicks: 1 missing (certain); has 2 of 3 rows"),
        "{text}"
    );
    let is_wide = |line: &&str| line.len() > 80 && !line.starts_with("s3://");
    assert_eq!(text.lines().find(is_wide), None, "{text}");

    harness.verify(&[]);
    let before = harness.rows().await;
    let plan = actions(&[("a", &["force"]), ("b", &["force"]), ("c", &["delete"])]);
    let findings = harness.file("findings");
    let dry_run = harness.repair(&["--from", &findings]);
    assert_eq!(dry_run, (SOUND, plan.clone()));
    assert_eq!(harness.rows().await, before);
    let run = harness.repair(&["--from", &findings, "--yes"]);
    assert_eq!(run, (SOUND, plan));
    assert_eq!(harness.rows().await, rows);
    harness.assert_verdicts(SOUND, &[]);

    // Rows without a record are shown, and left alone. An object whose content is gone cannot be
    // loaded again.
    for sql in [
        "DROP TABLE $.copy SYNC".to_owned(),
        "CREATE TABLE $.copy AS $.clicks".to_owned(),
        "INSERT INTO $.copy SELECT * FROM $.clicks WHERE id != 31".to_owned(),
        "ALTER TABLE $.clicks REPLACE PARTITION 202601 FROM $.copy".to_owned(),
        format!(
            "INSERT INTO $.clicks SELECT * REPLACE (toUUID('{UNKNOWN}') AS batch_id) \
             FROM $.clicks WHERE id = 40"
        ),
    ] {
        harness.execute(&sql).await;
    }
    harness.site.delete("c").await.unwrap();
    let found = [
        ("c", "clicks", "unexplained", 1),
        ("d", "clicks", "unknown", 1),
    ];
    harness.assert_verdicts(FINDINGS, &found);
    let before = harness.rows().await;
    let repaired = harness.repair(&["--prefix", &harness.prefix(), "--yes", "--unexplained"]);
    assert_eq!(repaired, (INCOMPLETE, actions(&[("c", &[]), ("d", &[])])));
    assert_eq!(harness.rows().await, before);
}

#[tokio::test]
async fn rows_that_were_merged_expired_or_deleted_are_left_alone() {
    let harness = Harness::new("verify-purpose").await;
    harness.site.stop_notifications().await.unwrap();
    let objects = [
        (
            "merged",
            click(1, "2026-01-05", "m") + &click(1, "2026-01-05", "m"),
        ),
        (
            "expired",
            click(2, "2001-01-05", "e") + &click(3, "2026-01-05", "e"),
        ),
        (
            "deleted",
            click(4, "2026-01-05", "gone") + &click(5, "2026-01-05", "d"),
        ),
        (
            "dropped",
            click(6, "2026-03-05", "p") + &click(7, "2026-01-05", "p"),
        ),
        ("rejects", line("rejects")),
    ];
    harness.load(&objects).await;
    harness.assert_verdicts(SOUND, &[]);
    for sql in [
        "DELETE FROM $.clicks WHERE user = 'gone' SETTINGS lightweight_deletes_sync = 2",
        "ALTER TABLE $.clicks DROP PARTITION 202603",
        "ALTER TABLE $.clicks MODIFY TTL toDateTime(at) + toIntervalYear(10) \
         SETTINGS mutations_sync = 2",
        "ALTER TABLE $.unmatched_statements MODIFY TTL toDateTime(ingested_at) + \
         toIntervalSecond(1) SETTINGS mutations_sync = 2",
        "SYSTEM FLUSH LOGS query_log",
    ] {
        harness.execute(sql).await;
    }
    wait_for("the rows to be merged and to expire", BOUND, async || {
        harness.execute("OPTIMIZE TABLE $.clicks FINAL").await;
        let optimize = "OPTIMIZE TABLE $.unmatched_statements FINAL";
        harness.execute(optimize).await;
        let rows = harness.rows().await;
        ensure!(rows.len() == 4, "{rows:?}");
        Ok(Some(()))
    })
    .await;
    let found = [
        ("deleted", "clicks", "deleted", 1),
        ("dropped", "clicks", "dropped_partition", 1),
        ("expired", "clicks", "expired", 1),
        ("merged", "clicks", "merged", 1),
        ("rejects", "unmatched_statements", "expired", 1),
    ];
    harness.assert_verdicts(SOUND, &found);
    let before = harness.rows().await;
    let (code, planned) =
        harness.repair(&["--prefix", &harness.prefix(), "--yes", "--unexplained"]);
    assert_eq!(code, SOUND);
    assert!(planned.values().all(Vec::is_empty), "{planned:?}");
    assert_eq!(harness.rows().await, before);
}

#[tokio::test]
async fn a_table_that_was_restored_or_truncated_is_filled_again() {
    let harness = Harness::new("verify-replaced").await;
    harness.site.stop_notifications().await.unwrap();
    let note = |key: &'static str| (key, line(key));
    harness.load(&["a", "b", "c"].map(note)).await;
    // An earlier state is restored after more was loaded.
    for sql in [
        "CREATE TABLE $.copy AS $.unmatched_statements",
        "INSERT INTO $.copy SELECT * FROM $.unmatched_statements",
    ] {
        harness.execute(sql).await;
    }
    harness.load(&["d", "e", "f"].map(note)).await;
    let rows = harness.rows().await;
    let exchange = "EXCHANGE TABLES $.unmatched_statements AND $.copy";
    harness.execute(exchange).await;
    let replaced = |key: &'static str| (key, "unmatched_statements", "replaced", 1);
    harness.assert_verdicts(FINDINGS, &["d", "e", "f"].map(replaced));
    let repair = ["--prefix", &harness.prefix(), "--yes"];
    let force = |key: &'static str| (key, &["force"][..]);
    let expected = actions(&["d", "e", "f"].map(force));
    assert_eq!(harness.repair(&repair), (SOUND, expected));
    assert_eq!(harness.rows().await, rows);
    harness.assert_verdicts(SOUND, &[]);

    let all = ["a", "b", "c", "d", "e", "f"];
    harness
        .execute("TRUNCATE TABLE $.unmatched_statements")
        .await;
    harness.assert_verdicts(FINDINGS, &all.map(replaced));
    assert_eq!(harness.repair(&repair), (SOUND, actions(&all.map(force))));
    assert_eq!(harness.rows().await, rows);
    harness.assert_verdicts(SOUND, &[]);

    // Without its counts, it is not known how many rows an object should have.
    harness.execute("TRUNCATE TABLE $.object_rows").await;
    let uncounted = |key: &'static str| (key, "object_rows", "missing", 1);
    harness.assert_verdicts(FINDINGS, &all.map(uncounted));
    assert_eq!(harness.repair(&repair), (SOUND, actions(&all.map(force))));
    assert_eq!(harness.rows().await, rows);
    harness.assert_verdicts(SOUND, &[]);
}

#[tokio::test]
async fn objects_that_are_not_loaded_are_announced_or_their_dead_letters_sent() {
    let mut harness = Harness::new("verify-unloaded").await;
    // The object is gone when its message is received, and is uploaded again afterwards.
    harness.site.put("late", line("late")).await.unwrap();
    harness.site.put("broken.gz", "no gzip").await.unwrap();
    harness.site.delete("late").await.unwrap();
    harness.sluice.start();
    wait_for_dead_letters(&harness.site, 2).await;
    harness.sluice.stop().await;
    harness.site.stop_notifications().await.unwrap();
    harness.site.put("late", line("late")).await.unwrap();
    harness.site.put("never", line("never")).await.unwrap();
    let expected = actions(&[
        ("broken.gz", &[]),
        ("late", &["redrive"]),
        ("never", &["reconcile"]),
    ]);
    let repair = ["--prefix", &harness.prefix()];
    assert_eq!(harness.repair(&repair), (SOUND, expected.clone()));
    wait_for_dead_letters(&harness.site, 2).await;
    let run = harness.repair(&[&repair[..], &["--yes"]].concat());
    assert_eq!(run, (INCOMPLETE, expected));
    wait_for_dead_letters(&harness.site, 1).await;
    harness.sluice.start();
    wait_until_drained(&harness.site).await;
    assert_eq!(harness.sluice.stop().await.code(), Some(0));
    let names = loaded_names(harness.stack, &harness.site).await;
    assert_eq!(names, ["late", "never"]);
}

#[tokio::test]
async fn the_options_of_verify_and_repair_are_checked() {
    let harness = Harness::new("verify-options").await;
    for (arguments, code, expected) in [
        (&["repair"][..], 2, "--object"),
        (&["verify", "--table", "nothing"], 1, "use one of clicks"),
        (&["verify", "--since", "1h", "--until", "2h"], 2, "before"),
        (&["repair", "--from", "/nowhere"], 1, "/nowhere"),
    ] {
        let output = harness.sluice.command(arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(expected), "{stderr}");
    }
}
