//! Both strategies produce the same rows from the same objects, by the same routes.

use sluice_testkit::xapi::Generator;
use sluice_testkit::{Site, Stack};
use tempfile::TempDir;

use crate::harness::{Sluice, assert_rows, upload, wait_until_drained};

#[tokio::test]
async fn per_type_fills_the_same_tables_without_views() {
    let stack = Stack::shared();
    let site = stack.site("per-type").await.unwrap();
    let mut sluice = Sluice::new(stack, &site).set("load.strategy", "per_type");
    sluice.migrate();
    let views = format!(
        "SELECT count() FROM system.tables WHERE database = '{}' AND engine = 'MaterializedView'",
        site.database
    );
    assert_eq!(stack.clickhouse.query(&views).await.unwrap(), "0\n");
    let bundles: Vec<_> = Generator::new(51).take(60).collect();
    let expected_rows = upload(&site, &bundles).await;
    sluice.start();
    wait_until_drained(&site).await;
    assert_rows(&stack.clickhouse, &site.database, &expected_rows).await;
    assert_eq!(site.dlq_depth().await.unwrap(), 0);
}

/// Declares event types with routes: `click` is looked for below clicks/, and `view` by the names
/// of objects.
fn routed_types() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, keys) in [
        ("click", "'clicks/**', 'more.clicks/*'"),
        ("view", "'**/view-*'"),
    ] {
        let text = format!(
            "table: {name}s\nkeys: [{keys}]\nrule: {{path: [verb], equals: {name}}}\n\
             order_by: [id]\ncolumns:\n- {{name: id, type: String, path: [id], required: true}}\n"
        );
        std::fs::write(directory.path().join(format!("{name}.yaml")), text).unwrap();
    }
    directory
}

/// Returns where the lines of each object are: the object, the table, and the ids in it.
async fn destinations(stack: &Stack, site: &Site) -> String {
    let table = |table: &str, id: &str| {
        format!(
            "SELECT substring(source_path, length('{}') + 2) AS key, \
             '{table}' AS destination, {id} AS id FROM {}.{table}",
            site.bucket, site.database
        )
    };
    let raw = "JSONExtractString(raw, 'id')";
    let all = [
        table("clicks", "id"),
        table("views", "id"),
        table("unmatched_statements", raw),
        table("rejected_lines", "raw"),
        table("object_rows", "concat(kind, ' ', toString(rows))"),
    ];
    let sql = format!(
        "SELECT key, destination, arraySort(groupArray(id)) FROM ({}) \
         GROUP BY key, destination ORDER BY key, destination",
        all.join(" UNION ALL ")
    );
    stack.clickhouse.query(&sql).await.unwrap()
}

#[tokio::test]
async fn an_event_type_is_looked_for_only_on_its_route() {
    let stack = Stack::shared();
    let types = routed_types();
    for strategy in ["single_pass", "per_type"] {
        let site = stack.site("routes").await.unwrap();
        let mut sluice = Sluice::new(stack, &site)
            .set("load.strategy", strategy)
            .set("event_types.dir", types.path().display());
        sluice.migrate();
        // The second object is on both routes, and the last on none.
        for (number, key) in [
            "clicks/2026/a.jsonl",
            "clicks/view-b.jsonl",
            "more.clicks/c.jsonl",
            "more.clicks/d/e.jsonl",
            "moreXclicks/view-f.jsonl",
            "others/g.jsonl",
        ]
        .into_iter()
        .enumerate()
        {
            let text = format!(
                "{{\"verb\":\"click\",\"id\":\"c{number}\"}}\n\
                 {{\"verb\":\"view\",\"id\":\"v{number}\"}}\n{{\"verb\":\"click\"}}\n"
            );
            site.put(key, text).await.unwrap();
        }
        sluice.start();
        wait_until_drained(&site).await;
        let click_without_id = r#"['{"verb":"click"}']"#;
        let expected = format!(
            "clicks/2026/a.jsonl\tclicks\t['c0']\n\
             clicks/2026/a.jsonl\tobject_rows\t['click 1','rejected 1','unmatched 1']\n\
             clicks/2026/a.jsonl\trejected_lines\t{click_without_id}\n\
             clicks/2026/a.jsonl\tunmatched_statements\t['v0']\n\
             clicks/view-b.jsonl\tclicks\t['c1']\n\
             clicks/view-b.jsonl\tobject_rows\t['click 1','rejected 1','view 1']\n\
             clicks/view-b.jsonl\trejected_lines\t{click_without_id}\n\
             clicks/view-b.jsonl\tviews\t['v1']\n\
             more.clicks/c.jsonl\tclicks\t['c2']\n\
             more.clicks/c.jsonl\tobject_rows\t['click 1','rejected 1','unmatched 1']\n\
             more.clicks/c.jsonl\trejected_lines\t{click_without_id}\n\
             more.clicks/c.jsonl\tunmatched_statements\t['v2']\n\
             more.clicks/d/e.jsonl\tobject_rows\t['unmatched 3']\n\
             more.clicks/d/e.jsonl\tunmatched_statements\t['','c3','v3']\n\
             moreXclicks/view-f.jsonl\tobject_rows\t['unmatched 2','view 1']\n\
             moreXclicks/view-f.jsonl\tunmatched_statements\t['','c4']\n\
             moreXclicks/view-f.jsonl\tviews\t['v4']\n\
             others/g.jsonl\tobject_rows\t['unmatched 3']\n\
             others/g.jsonl\tunmatched_statements\t['','c5','v5']\n"
        );
        assert_eq!(destinations(stack, &site).await, expected, "{strategy}");
        assert_eq!(site.dlq_depth().await.unwrap(), 0);
    }
}
