//! The queries of docs/operations.md, on a site with enough data for each to return rows.

use sluice_testkit::xapi::Generator;
use sluice_testkit::{Stack, project, wait_for};

use crate::harness::{BOUND, Sluice, line, upload, wait_for_dead_letters, wait_until_drained};

/// Returns the headings of the page's questions with their queries.
fn queries() -> Vec<(String, String)> {
    let page = project::read("docs/operations.md");
    let (_, questions) = page.split_once("\n## Ten questions\n").expect("questions");
    let sections = questions.split("\n### ").skip(1);
    let query = |section: &str| {
        let (heading, text) = section.split_once('\n').unwrap();
        let (_, sql) = text.split_once("```sql\n").expect(heading);
        let (sql, _) = sql.split_once(";\n```").expect(heading);
        (heading.to_owned(), sql.to_owned())
    };
    sections.map(query).collect()
}

#[tokio::test]
async fn each_query_of_the_page_returns_rows() {
    let stack = Stack::shared();
    let site = stack.site_with_max_receives("operations", 1).await.unwrap();
    let mut sluice = Sluice::new(stack, &site);
    sluice.migrate();
    let bundles: Vec<_> = Generator::new(71).take(5).collect();
    upload(&site, &bundles).await;
    site.put("mixed.jsonl", line("unmatched") + "no JSON\n")
        .await
        .unwrap();
    site.put("broken.jsonl.gz", "no gzip").await.unwrap();
    sluice.start();
    wait_for_dead_letters(&site, 1).await;
    wait_until_drained(&site).await;
    // One query lists batches that a worker left unfinished.
    let claimed = format!(
        "INSERT INTO {}.ledger_objects (object_id, bucket, key, size, batch_id, worker) \
         VALUES (generateUUIDv4(), 'bucket', 'key', 1, generateUUIDv4(), 'gone')",
        site.database
    );
    stack.clickhouse.execute(&claimed).await.unwrap();

    let queries = queries();
    assert_eq!(queries.len(), 10);
    for (heading, sql) in queries {
        assert!(sql.contains("xapi"), "{heading}");
        let sql = sql.replace("xapi", &site.database);
        wait_for(&heading, BOUND, async || {
            stack.clickhouse.execute("SYSTEM FLUSH LOGS").await?;
            let rows = stack.clickhouse.rows(&sql).await?;
            Ok((!rows.is_empty()).then_some(()))
        })
        .await;
    }
}
