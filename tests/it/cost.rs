//! The cost of a batch for ClickHouse beyond the insert is the same for any number of objects and
//! for a ledger of any size. The checks for columns without a value are left out, since only the
//! first batches of a process run them, and so are the search for rows of released batches and the
//! record of what a worker used (tests/it/usage.rs).

use serde::Deserialize;
use sluice_testkit::xapi::Generator;
use sluice_testkit::{Site, SiteOptions, Stack};

use crate::harness::{Sluice, upload, wait_until_drained};

/// The daemon's statements over the site's tables, and the batches that they loaded.
#[derive(Debug)]
struct Cost {
    batches: u64,
    statements: Vec<Statement>,
}

#[derive(Debug, Deserialize)]
struct Statement {
    /// The beginning of its text, for the message of a failed test.
    #[expect(dead_code, reason = "it is printed")]
    head: String,
    loads: bool,
    read_rows: u64,
}

impl Cost {
    async fn so_far(stack: &Stack, site: &Site) -> Self {
        let clickhouse = &stack.clickhouse;
        clickhouse.execute("SYSTEM FLUSH LOGS").await.unwrap();
        let database = &site.database;
        let statements = format!(
            "SELECT left(query, 150) AS head, (position(query, ' s3(') > 0)::Bool AS loads, \
             toUInt32(read_rows) AS read_rows FROM system.query_log WHERE type = 'QueryFinish' \
             AND is_initial_query AND startsWith(http_user_agent, 'sluice/') \
             AND has(databases, '{database}') AND query_kind != 'Create' \
             AND position(query, 'AS looked_at') = 0 AND position(query, 'ORDER BY rand()') = 0 \
             AND position(query, 'worker_usage') = 0 \
             ORDER BY event_time_microseconds"
        );
        let batches = format!(
            "SELECT uniqExact(batch_id) FROM {database}.ledger_batches \
             WHERE event = 'loaded' AND rows > 0"
        );
        let rows = clickhouse.rows(&statements).await.unwrap();
        Self {
            batches: clickhouse.scalar(&batches).await.unwrap(),
            statements: serde_json::from_value(rows.into()).unwrap(),
        }
    }

    fn since(mut self, before: &Self) -> Self {
        self.batches -= before.batches;
        self.statements.drain(..before.statements.len());
        self
    }

    /// Returns the number of rows read by all statements but the inserts of rows.
    fn rows_read(&self) -> u64 {
        let reading = self.statements.iter().filter(|statement| !statement.loads);
        reading.map(|statement| statement.read_rows).sum()
    }
}

/// Loads `objects` objects in one or a few batches, and one object whose line is not JSON, since
/// rejected lines are parsed a second time.
async fn load(stack: &Stack, site: &Site, seed: u64, objects: usize) -> Cost {
    let bundles: Vec<_> = Generator::new(seed).take(objects).collect();
    upload(site, &bundles).await;
    site.put(&format!("{seed}.jsonl"), "no JSON\n")
        .await
        .unwrap();
    let before = Cost::so_far(stack, site).await;
    // Leases are renewed periodically. With these settings, that never happens here.
    let mut sluice = Sluice::new(stack, site)
        .set("batch.window", "3s")
        .set("batch.flush_when_idle", false)
        .set("queue.visibility_timeout", "10m");
    sluice.start();
    wait_until_drained(site).await;
    assert_eq!(sluice.stop().await.code(), Some(0));
    Cost::so_far(stack, site).await.since(&before)
}

#[tokio::test]
async fn a_batch_costs_the_same_number_of_statements_at_any_size() {
    let stack = Stack::shared();
    let site = stack
        .site_with("cost", SiteOptions::default())
        .await
        .unwrap();
    Sluice::new(stack, &site).migrate();
    let one = load(stack, &site, 31, 1).await;
    let many = load(stack, &site, 32, 300).await;
    assert_eq!(one.batches, 1, "{one:?}");
    assert!(many.batches < 10, "{many:?}");
    assert_eq!(
        many.statements.len() as u64,
        one.statements.len() as u64 * many.batches,
        "{one:?} {many:?}"
    );
    assert!(one.statements.len() < 10, "{one:?}");
}

#[tokio::test]
async fn a_batch_reads_no_more_rows_from_a_large_ledger() {
    const OBJECTS: u64 = 1_000_000;
    let stack = Stack::shared();
    let site = stack
        .site_with("large-ledger", SiteOptions::default())
        .await
        .unwrap();
    Sluice::new(stack, &site).migrate();
    let database = &site.database;
    for statement in [
        format!(
            "INSERT INTO {database}.ledger_objects (object_id, bucket, key, batch_id) \
             SELECT generateUUIDv4(), 'bucket', toString(number), \
             toUUID(concat('00000000-0000-0000-0000-', leftPad(toString(intDiv(number, 10)), 12, '0'))) \
             FROM numbers({OBJECTS})"
        ),
        format!(
            "INSERT INTO {database}.ledger_batches (batch_id, event) \
             SELECT DISTINCT batch_id, 'loaded' FROM {database}.ledger_objects"
        ),
    ] {
        stack.clickhouse.execute(&statement).await.unwrap();
    }
    let cost = load(stack, &site, 33, 5).await;
    assert!(cost.batches > 0, "{cost:?}");
    assert!(cost.rows_read() < OBJECTS / 50 * cost.batches, "{cost:?}");
}
