//! `sluice migrate` on tables that were created for other declarations, while workers with those
//! declarations keep running.

use std::path::Path;

use serde_json::{Value, json};
use sluice_testkit::{Site, Stack};
use tempfile::TempDir;

use crate::harness::{Sluice, wait_until_drained};

/// Declares clicks. `more` follows the columns.
fn clicks(directory: &Path, equals: &str, more: &str) {
    let text = format!(
        "table: clicks\nrule: {{path: [verb], equals: {equals}}}\norder_by: [id]\ncolumns:\n\
         - {{name: id, type: String, path: [id], required: true}}\n\
         - {{name: n, type: Int32, path: [n]}}\n{more}"
    );
    std::fs::write(directory.join("click.yaml"), text).unwrap();
}

fn worker(stack: &Stack, site: &Site, types: &TempDir, strategy: &str) -> Sluice {
    Sluice::new(stack, site)
        .set("load.strategy", strategy)
        .set("event_types.dir", types.path().display())
}

fn report(sluice: &Sluice, arguments: &[&str]) -> Value {
    let all = [&["migrate", "--output", "json"], arguments].concat();
    serde_json::from_slice(&sluice.command(&all).stdout).unwrap()
}

fn changes(report: &Value) -> Vec<&str> {
    let statements = report["statements"].as_array().unwrap();
    statements
        .iter()
        .map(|statement| statement["what"].as_str().unwrap())
        .collect()
}

async fn put_clicks(site: &Site, key: &str, clicks: &[Value]) {
    let lines: Vec<String> = clicks.iter().map(Value::to_string).collect();
    site.put(key, lines.join("\n")).await.unwrap();
    wait_until_drained(site).await;
}

async fn loaded(stack: &Stack, site: &Site, columns: &str) -> Vec<Value> {
    let sql = format!("SELECT {columns} FROM {}.clicks ORDER BY id", site.database);
    stack.clickhouse.rows(&sql).await.unwrap()
}

async fn types_evolve_under_a_live_worker(strategy: &str) {
    let stack = Stack::shared();
    let site = stack.site("evolve").await.unwrap();
    let (old_types, new_types) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    clicks(old_types.path(), "click", "");
    // The new declarations have a wider type, a new column, another verb for clicks, and another
    // event type.
    clicks(
        new_types.path(),
        "tap",
        "- {name: page, type: LowCardinality(String), path: [page]}\n",
    );
    let declared = new_types.path().join("click.yaml");
    let text = std::fs::read_to_string(&declared).unwrap();
    std::fs::write(&declared, text.replace("Int32", "Nullable(Int64)")).unwrap();
    let view = text.replace("clicks", "views").replace("tap", "view");
    std::fs::write(new_types.path().join("view.yaml"), view).unwrap();

    let mut old = worker(stack, &site, &old_types, strategy);
    old.migrate();
    old.start();
    let click = json!({"verb": "click", "id": "1", "n": 1, "page": "p"});
    put_clicks(&site, "1.jsonl", &[click]).await;

    let new = worker(stack, &site, &new_types, strategy);
    let planned = report(&new, &["--dry-run"]);
    assert_eq!(loaded(stack, &site, "*").await.len(), 1);
    let done = report(&new, &[]);
    assert_eq!(done["statements"], planned["statements"]);
    assert!(changes(&done).contains(&"columns of clicks"), "{done}");
    assert!(changes(&done).contains(&"table views"), "{done}");
    assert_eq!(changes(&report(&new, &[])), [""; 0]);

    // The old worker does not know the new declarations and continues with its own.
    let tap = json!({"verb": "tap", "id": "3", "n": 5_000_000_000_i64, "page": "p"});
    let click = json!({"verb": "click", "id": "2", "n": 2, "page": "p"});
    put_clicks(&site, "2.jsonl", &[click, tap.clone()]).await;
    let old_rows = [
        json!({"id": "1", "n": 1, "page": ""}),
        json!({"id": "2", "n": 2, "page": ""}),
    ];
    assert_eq!(loaded(stack, &site, "id, n, page").await, old_rows);
    let unmatched = format!("SELECT count() FROM {}.unmatched_statements", site.database);
    assert_eq!(stack.clickhouse.query(&unmatched).await.unwrap(), "1\n");
    assert_eq!(old.stop().await.code(), Some(0));

    let mut new = new;
    new.start();
    let view = json!({"verb": "view", "id": "4"});
    put_clicks(&site, "3.jsonl", &[tap, view]).await;
    let found = loaded(stack, &site, "id, n, page").await;
    assert_eq!(found[..2], old_rows);
    assert_eq!(
        found[2],
        json!({"id": "3", "n": 5_000_000_000_i64, "page": "p"})
    );
    let views = format!("SELECT id FROM {}.views", site.database);
    assert_eq!(stack.clickhouse.query(&views).await.unwrap(), "4\n");

    if strategy == "single_pass" {
        // The old landing table is kept, and the views into `clicks` and the three tables of every
        // catalog.
        let kept = report(&new, &[])["kept"].to_string();
        assert!(kept.contains("landing_"), "{kept}");
        // The old worker exited within the last ten minutes.
        for arguments in [&["--prune"][..], &["--prune", "--dry-run"]] {
            let refusals = report(&new, arguments)["refusals"].to_string();
            assert!(
                refusals.contains("may still use it: ") && refusals.contains("stop that worker"),
                "{refusals}"
            );
        }
        let long_ago = format!(
            "ALTER TABLE {}.ledger_objects UPDATE sealed_at = sealed_at - INTERVAL 1 HOUR WHERE 1 \
             SETTINGS mutations_sync = 2",
            site.database
        );
        stack.clickhouse.execute(&long_ago).await.unwrap();
        // A worker with the old declarations has left this batch unfinished.
        let (unfinished, finished) = (
            format!(
                "INSERT INTO {0}.ledger_objects (object_id, batch_id, plan, worker, sealed_at) \
                 SELECT generateUUIDv4(), '00000000-0000-0000-0000-000000000001', plan, 'gone', sealed_at \
                 FROM {0}.ledger_objects WHERE key = '1.jsonl' LIMIT 1",
                site.database
            ),
            format!(
                "INSERT INTO {}.ledger_batches (batch_id, event) \
                 VALUES ('00000000-0000-0000-0000-000000000001', 'released')",
                site.database
            ),
        );
        stack.clickhouse.execute(&unfinished).await.unwrap();
        let refusals = report(&new, &["--prune"])["refusals"].to_string();
        assert!(
            refusals.contains("worker gone may still use it")
                && refusals.contains("1 open batches"),
            "{refusals}"
        );
        let kept = report(&new, &[])["kept"].to_string();
        assert!(kept.contains("landing_"), "{kept}");
        stack.clickhouse.execute(&finished).await.unwrap();
        let pruned = report(&new, &["--prune"]);
        assert_eq!(changes(&pruned).len(), 5, "{pruned}");
        let kept = report(&new, &[])["kept"].to_string();
        assert!(!kept.contains("landing_"), "{kept}");
        assert_eq!(new.stop().await.code(), Some(0));
        old.start();
        old.wait_until_not_ready("sluice migrate").await;
    }
}

#[tokio::test]
async fn both_landing_tables_of_other_declarations_are_pruned() {
    let stack = Stack::shared();
    let site = stack.site("prune").await.unwrap();
    let types = tempfile::tempdir().unwrap();
    clicks(types.path(), "click", "");
    let sluice = worker(stack, &site, &types, "single_pass");
    sluice.migrate();

    // Records that are not JSON have a landing table of their own, with a view for each table.
    let formats = "formats:\n- {name: csv, keys: ['*.csv'], csv: {}}\n";
    std::fs::write(types.path().join("formats.yaml"), formats).unwrap();
    let added = report(&sluice, &[]);
    assert_eq!(changes(&added).len(), 5, "{added}");
    assert!(
        changes(&added)[0].starts_with("table landing_values_"),
        "{added}"
    );
    assert_eq!(added["kept"], json!([]));

    clicks(
        types.path(),
        "click",
        "- {name: page, type: String, path: [page]}\n",
    );
    let changed = report(&sluice, &[]);
    assert_eq!(changes(&changed).len(), 11, "{changed}");
    let kept = changed["kept"].to_string();
    assert!(kept.contains("landing_values_"), "{kept}");
    let pruned = report(&sluice, &["--prune"]);
    assert_eq!(changes(&pruned).len(), 10, "{pruned}");
    let kept = report(&sluice, &[])["kept"].to_string();
    assert!(!kept.contains("landing_"), "{kept}");
}

#[tokio::test]
async fn event_types_evolve_while_workers_with_the_old_ones_keep_running() {
    types_evolve_under_a_live_worker("single_pass").await;
}

#[tokio::test]
async fn event_types_without_views_evolve_while_workers_with_the_old_ones_keep_running() {
    types_evolve_under_a_live_worker("per_type").await;
}

#[tokio::test]
async fn a_migration_that_would_harm_rows_is_refused_as_a_whole() {
    let stack = Stack::shared();
    let site = stack.site("evolve-refused").await.unwrap();
    let types = tempfile::tempdir().unwrap();
    clicks(types.path(), "click", "");
    let sluice = worker(stack, &site, &types, "single_pass");
    sluice.migrate();
    let tables = format!(
        "SELECT name, create_table_query FROM system.tables WHERE database = '{}' ORDER BY name",
        site.database
    );
    let before = stack.clickhouse.rows(&tables).await.unwrap();

    let declared = types.path().join("click.yaml");
    let text = std::fs::read_to_string(&declared).unwrap();
    let page = "- {name: page, type: String, path: [page]}\n";
    for (changed, expected) in [
        (
            text.replace("Int32", "String"),
            "column n is Int32, but declared as String",
        ),
        (
            text.replace("[id]\ncolumns", "[n, id]\ncolumns"),
            "it is sorted by id",
        ),
        (
            text.replace("columns:", "partition_by: intDiv(n, 10)\ncolumns:"),
            "it is partitioned by nothing, but declared as partitioned by intDiv(n, 10)",
        ),
    ] {
        assert_ne!(changed, text);
        std::fs::write(&declared, changed + page).unwrap();
        let output = sluice.command(&["migrate"]);
        assert_eq!(output.status.code(), Some(1));
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(
            stdout.contains(expected) && stdout.contains("help: "),
            "{stdout}"
        );
        assert_eq!(stack.clickhouse.rows(&tables).await.unwrap(), before);
        let planned = sluice.command(&["migrate", "--dry-run"]);
        assert_eq!(planned.status.code(), Some(1));
        let planned = String::from_utf8(planned.stdout).unwrap();
        assert!(
            planned.contains(expected) && is_comments(&planned),
            "{planned}"
        );
    }
}

fn is_comments(text: &str) -> bool {
    text.lines().all(|line| line.starts_with("-- "))
}

#[tokio::test]
async fn a_dry_run_prints_statements_that_can_be_run_unchanged() {
    let stack = Stack::shared();
    let site = stack.site("evolve-dry-run").await.unwrap();
    let types = tempfile::tempdir().unwrap();
    clicks(types.path(), "click", "");
    let sluice = worker(stack, &site, &types, "single_pass");
    sluice.migrate();
    let page = "- {name: page, type: String, path: [page]}\n";
    clicks(types.path(), "click", page);
    let dry_run = || {
        let output = sluice.command(&["migrate", "--dry-run"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let planned = dry_run();
    assert!(
        planned.starts_with("-- kept: landing tables of other"),
        "{planned}"
    );
    let lines = planned.lines().filter(|line| !line.starts_with("--"));
    let statements = lines.collect::<Vec<_>>().join("\n");
    for statement in statements.trim_end().split_terminator(';') {
        stack.clickhouse.execute(statement).await.unwrap();
    }
    let again = dry_run();
    assert!(again.contains("-- everything is as declared\n"), "{again}");
    assert!(is_comments(&again), "{again}");
}

#[tokio::test]
async fn a_declaration_that_the_server_refuses_is_named_and_nothing_is_changed() {
    let stack = Stack::shared();
    let site = stack.site("evolve-invalid").await.unwrap();
    let types = tempfile::tempdir().unwrap();
    clicks(types.path(), "click", "");
    let declared = types.path().join("click.yaml");
    let text = std::fs::read_to_string(&declared).unwrap();
    let column = |column: &str| format!("{text}- {{name: page, {column}}}\n");
    let partition = |key: &str| text.replace("columns:", &format!("partition_by: {key}\ncolumns:"));
    let nullable = partition("n").replace("Int32", "Nullable(Int32)");
    let floating = partition("n / 2");
    let mut invalid = vec![
        (
            partition("toYYYYMM(nope)"),
            "click.yaml: partition_by: event type click: ",
            "nope",
        ),
        (
            nullable,
            "click.yaml: partition_by: event type click: ",
            "can be NULL",
        ),
        (
            floating,
            "click.yaml: partition_by: event type click: ",
            "floating-point",
        ),
    ];
    for (declared, expected) in [
        (
            "type: String, path: [page], expression: \"nosuch({value})\"",
            "nosuch",
        ),
        ("type: Int32, expression: \"[1]\"", "Array(UInt8)"),
        ("type: UInt64, expression: \"count()\"", "source_path"),
    ] {
        let at = "click.yaml: columns[2].expression: event type click, column page: ";
        invalid.push((column(declared), at, expected));
    }
    let sluice = worker(stack, &site, &types, "single_pass");
    let tables = format!(
        "SELECT name, create_table_query FROM system.tables WHERE database = '{}' ORDER BY name",
        site.database
    );
    let databases = format!(
        "SELECT count() FROM system.databases WHERE name = '{}'",
        site.database
    );
    for exists in [false, true] {
        let before = stack.clickhouse.rows(&tables).await.unwrap();
        for (text, at, expected) in &invalid {
            std::fs::write(&declared, text).unwrap();
            for arguments in [&["migrate"][..], &["migrate", "--dry-run"]] {
                let output = sluice.command(arguments);
                assert_eq!(output.status.code(), Some(2), "{text}\n{output:?}");
                let stderr = String::from_utf8(output.stderr).unwrap();
                assert!(stderr.contains(at) && stderr.contains(expected), "{stderr}");
            }
        }
        assert_eq!(stack.clickhouse.rows(&tables).await.unwrap(), before);
        let expected_count = format!("{}\n", u8::from(exists));
        assert_eq!(
            stack.clickhouse.query(&databases).await.unwrap(),
            expected_count
        );
        std::fs::write(&declared, &text).unwrap();
        sluice.migrate();
    }
}

#[tokio::test]
async fn an_interrupted_migration_is_completed() {
    let stack = Stack::shared();
    let site = stack.site("evolve-interrupted").await.unwrap();
    let types = tempfile::tempdir().unwrap();
    clicks(types.path(), "click", "");
    let sluice = worker(stack, &site, &types, "single_pass");
    let planned = report(&sluice, &["--dry-run"]);
    let statements = planned["statements"].as_array().unwrap();
    let tables = format!(
        "SELECT name FROM system.tables WHERE database = '{}' ORDER BY name",
        site.database
    );
    for cut_after in [1, 2, statements.len() - 1] {
        let drop = format!("DROP DATABASE IF EXISTS {}", site.database);
        stack.clickhouse.execute(&drop).await.unwrap();
        for statement in &statements[..cut_after] {
            let sql = statement["sql"].as_str().unwrap();
            stack.clickhouse.execute(sql).await.unwrap();
        }
        sluice.migrate();
        let created = stack.clickhouse.rows(&tables).await.unwrap();
        assert_eq!(created.len(), statements.len() - 1, "{created:?}");
        assert_eq!(changes(&report(&sluice, &[])), [""; 0]);
    }
}

#[tokio::test]
async fn tables_of_an_earlier_version_and_another_configuration_are_updated() {
    let stack = Stack::shared();
    let site = stack.site("evolve-earlier").await.unwrap();
    let sluice = Sluice::new(stack, &site);
    sluice.migrate();
    let database = &site.database;
    let drop =
        format!("ALTER TABLE {database}.ledger_objects DROP COLUMN read_by, DROP COLUMN plan");
    stack.clickhouse.execute(&drop).await.unwrap();
    let sluice = sluice
        .set("clickhouse.dedup_window", 777)
        .set("clickhouse.reject_ttl", "2d");
    let done = report(&sluice, &[]);
    let changes = changes(&done);
    assert_eq!(changes[0], "settings of activity_attempt_events");
    for what in [
        "columns of ledger_objects",
        "retention of rejected_lines",
        "retention of ledger_failures",
        "settings of object_rows",
    ] {
        assert!(changes.contains(&what), "{changes:?}");
    }
    assert_eq!(report(&sluice, &[])["statements"], json!([]));
}
