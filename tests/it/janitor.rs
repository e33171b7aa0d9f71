//! Rows that a server commits after their batch was released, and batches that no message leads to.
//! Here, they are copied by hand.

use anyhow::ensure;
use sluice_testkit::{Site, Stack, wait_for};

use crate::harness::{BOUND, Sluice, line, loaded_names, wait_until_drained};

const RELEASED: &str = "00000000-0000-4000-8000-000000000001";
const RELEASED_LATER: &str = "00000000-0000-4000-8000-000000000002";
const OPEN: &str = "00000000-0000-4000-8000-000000000003";

struct Harness {
    stack: &'static Stack,
    site: Site,
}

impl Harness {
    /// Starts a worker with short intervals between rounds, and loads an object of two lines, whose
    /// table is not merged by itself.
    async fn new(name: &str) -> (Self, Sluice) {
        let stack = Stack::shared();
        let site = stack.site(name).await.unwrap();
        let mut sluice = Sluice::new(stack, &site).set("load.janitor_interval", "1s");
        sluice.migrate();
        let harness = Self { stack, site };
        harness
            .execute(
                "ALTER TABLE $.unmatched_statements \
                 MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1",
            )
            .await;
        let lines = line("a") + &line("b");
        harness.site.put("a.jsonl", lines).await.unwrap();
        sluice.start();
        wait_until_drained(&harness.site).await;
        (harness, sluice)
    }

    /// Runs a statement. `$` is a placeholder for the database.
    async fn execute(&self, sql: &str) {
        let sql = sql.replace('$', &self.site.database);
        self.stack.clickhouse.execute(&sql).await.unwrap();
    }

    async fn count(&self, table: &str, batch: &str) -> u64 {
        let database = &self.site.database;
        let sql = format!("SELECT count() FROM {database}.{table} WHERE batch_id = '{batch}'");
        self.stack.clickhouse.scalar(&sql).await.unwrap()
    }

    /// Returns the number of rows that a batch has in both tables.
    async fn rows_of(&self, batch: &str) -> u64 {
        self.count("unmatched_statements", batch).await + self.count("object_rows", batch).await
    }

    async fn loaded_batch(&self) -> String {
        let sql = "SELECT batch_id FROM $.ledger_batches WHERE event = 'loaded'";
        let sql = sql.replace('$', &self.site.database);
        self.stack.clickhouse.scalar(&sql).await.unwrap()
    }

    /// Copies the claims and the rows of the loaded batch under another id.
    async fn copy_as(&self, batch: &str) {
        for table in ["ledger_objects", "unmatched_statements", "object_rows"] {
            self.copy(table, batch, "").await;
        }
    }

    /// Copies the rows that the loaded batch has in a table under another id, and with other values:
    /// `, value AS column`.
    async fn copy(&self, table: &str, batch: &str, others: &str) {
        self.execute(&format!(
            "INSERT INTO $.{table} SELECT * REPLACE (toUUID('{batch}') AS batch_id{others}) FROM (\
               SELECT * FROM $.{table} WHERE batch_id IN (\
                 SELECT batch_id FROM $.ledger_batches WHERE event = 'loaded'))"
        ))
        .await;
    }

    async fn release(&self, batch: &str) {
        self.execute(&format!(
            "INSERT INTO $.ledger_batches (batch_id, event) VALUES ('{batch}', 'released')"
        ))
        .await;
    }

    async fn wait_until_deleted(&self, batch: &str) {
        wait_for("the rows to be deleted", BOUND, async || {
            let rows = self.rows_of(batch).await;
            ensure!(rows == 0, "{rows} rows");
            Ok(Some(()))
        })
        .await;
    }
}

#[tokio::test]
async fn rows_that_appear_after_the_release_of_their_batch_are_deleted() {
    let (harness, mut sluice) = Harness::new("janitor").await;
    let loaded = harness.loaded_batch().await;
    let rows = harness.rows_of(&loaded).await;
    assert!(rows > 2, "{rows}");
    harness.copy_as(OPEN).await;
    harness.copy_as(RELEASED).await;
    harness.release(RELEASED).await;
    harness.wait_until_deleted(RELEASED).await;

    // Whole rounds have passed once rows that appear even later are gone.
    harness.copy_as(RELEASED_LATER).await;
    harness.release(RELEASED_LATER).await;
    harness.wait_until_deleted(RELEASED_LATER).await;
    assert_eq!(harness.rows_of(&loaded).await, rows);
    assert_eq!(harness.rows_of(OPEN).await, rows);

    wait_for("the rows to be counted", BOUND, async || {
        let counted = sluice.metric("sluice_stray_rows_deleted_total").await?;
        ensure!(counted == (2 * rows) as f64, "{counted}");
        Ok(Some(()))
    })
    .await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    let log = sluice.log();
    for batch in [RELEASED, RELEASED_LATER] {
        let is_named =
            |line: &str| line.contains("deleting rows of a released batch") && line.contains(batch);
        assert!(log.lines().any(is_named), "{log}");
    }
    assert!(!log.contains(OPEN), "{log}");
}

/// A merge has collapsed the rows of both batches, and has kept the later ones.
#[tokio::test]
async fn the_only_copy_of_a_row_stays_although_its_batch_was_released() {
    let (harness, mut sluice) = Harness::new("janitor-only").await;
    harness.copy_as(RELEASED).await;
    harness
        .execute("OPTIMIZE TABLE $.unmatched_statements FINAL")
        .await;
    assert_eq!(harness.count("unmatched_statements", RELEASED).await, 2);
    let names = loaded_names(harness.stack, &harness.site).await;
    assert_eq!(names, ["a", "b"]);

    harness.release(RELEASED).await;
    // A merge of this table keeps the rows of both batches.
    wait_for("the counts to be deleted", BOUND, async || {
        let rows = harness.count("object_rows", RELEASED).await;
        ensure!(rows == 0, "{rows} rows");
        Ok(Some(()))
    })
    .await;
    wait_for("a line of the log", BOUND, async || {
        let log = sluice.log();
        let is_line = |line: &str| {
            line.contains("keeping rows of a released batch") && line.contains(RELEASED)
        };
        Ok(log.lines().any(is_line).then_some(()))
    })
    .await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    let names = loaded_names(harness.stack, &harness.site).await;
    assert_eq!(names, ["a", "b"]);
}

/// A worker has died during its insert, which was cut short before the counts, and the object has
/// other content by now.
#[tokio::test]
async fn a_batch_that_no_message_leads_to_is_recovered() {
    let (harness, mut sluice) = Harness::new("janitor-left-open").await;
    let loaded = harness.loaded_batch().await;
    let rows = harness.rows_of(&loaded).await;
    let earlier_rows = ", 'earlier' AS source_etag";
    harness
        .copy("unmatched_statements", OPEN, earlier_rows)
        .await;
    let claims = ", generateUUIDv4() AS object_id, 'earlier' AS etag, \
                  now64(3) - toIntervalHour(1) AS sealed_at";
    harness.copy("ledger_objects", OPEN, claims).await;
    harness.wait_until_deleted(OPEN).await;
    wait_for("the batch to be released", BOUND, async || {
        let database = &harness.site.database;
        let released: u64 = harness
            .stack
            .clickhouse
            .scalar(&format!(
                "SELECT count() FROM {database}.ledger_batches \
                 WHERE batch_id = '{OPEN}' AND event = 'released'"
            ))
            .await?;
        Ok((released == 1).then_some(()))
    })
    .await;
    assert_eq!(harness.rows_of(&loaded).await, rows);
    assert_eq!(sluice.stop().await.code(), Some(0));
}
