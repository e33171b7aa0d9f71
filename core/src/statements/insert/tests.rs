//! What the statements of a batch depend on.

use super::*;
use crate::fixtures::{object, planner};
use crate::object::ObjectParts;

#[test]
fn lines_of_small_objects_are_coalesced() {
    let sized = |key: &str, size| {
        ObjectRef::from(ObjectParts {
            size: Some(size),
            ..object("b", key, "1").into_parts()
        })
    };
    let (small, large) = (sized("a", 1000), sized("b", 2 * SMALL_OBJECT));
    let (zipped, other) = (sized("a.gz", SMALL_OBJECT / 10 + 1), sized("c", 1000));
    assert!(are_small(&[&small, &other]));
    assert!(!are_small(&[&small]));
    assert!(!are_small(&[&small, &large]));
    assert!(are_small(&[&small, &other, &large]));
    assert!(!are_small(&[&zipped, &zipped]));
    let planner = planner(S3Access::Server, Some("http://e"));
    let lines = "s3('http://e/b/{a,c}', 'LineAsString', 'line String')";
    assert_eq!(planner.lines_of_all(&[&small, &other]), coalesced(lines));
}

#[test]
fn per_type_fills_every_table_by_itself() {
    let planner = Planner::new(PlannerOptions {
        strategy: Strategy::PerType,
        ..planner(S3Access::Server, Some("http://e"))
            .options()
            .clone()
    });
    let batch = BatchId(Uuid::from_u128(7));
    let statements = planner.inserts(
        batch,
        &[&object("b", "a", "1")],
        StatementShape::of(ReadBy::S3),
        &Layout::default(),
        "0",
    );
    assert_eq!(statements.len(), Target::all(planner.catalog()).len());
    assert!(
        statements
            .iter()
            .all(|statement| !statement.sql.contains("`landing_"))
    );
}

#[test]
fn the_plan_changes_if_and_only_if_statements_change() {
    let plan = |change: &dyn Fn(&mut PlannerOptions)| {
        let mut options = planner(S3Access::Server, Some("http://e"))
            .options()
            .clone();
        change(&mut options);
        let planner = Planner::new(options);
        planner.plan_id(ReadBy::S3, &Layout::default()).unwrap()
    };
    let first = plan(&|_| {});
    assert_eq!(first, plan(&|it| it.source.access = S3Access::Anonymous));
    assert_eq!(first, plan(&|it| it.source.endpoint = None));
    assert_ne!(first, plan(&|it| it.strategy = Strategy::PerType));
    assert_ne!(first, plan(&|it| it.max_bytes += 1));
    let typed = |keys: &str, column: &str| {
        let text = format!(
            "table: t\n{keys}rule: {{path: [a], equals: b}}\norder_by: [id]\n\
             columns:\n- {{name: id, type: {column}, path: [id], identifies: true}}\n"
        );
        Catalog::from_files([("t.yaml".to_owned(), text)]).unwrap()
    };
    let mut seen = vec![first];
    for (keys, column) in [("", "String"), ("", "UUID"), ("keys: [a/*]\n", "String")] {
        let id = plan(&|it| it.catalog = typed(keys, column));
        assert!(!seen.contains(&id), "{keys} {column}");
        seen.push(id);
    }
}

#[test]
fn the_plan_of_json_lines_is_that_of_the_versions_without_formats() {
    let text = "table: t\nrule: {path: [a], equals: b}\norder_by: [id]\n\
                columns:\n- {name: id, type: String, path: [id], identifies: true}\n";
    let planner = Planner::new(PlannerOptions {
        catalog: Catalog::from_files([("t.yaml".to_owned(), text.to_owned())]).unwrap(),
        ..planner(S3Access::Server, Some("http://e"))
            .options()
            .clone()
    });
    let plan = planner.plan_id(ReadBy::S3, &Layout::default());
    // If it changes on purpose, a new version reloads what an older one left unfinished.
    assert_eq!(
        plan.unwrap().to_string(),
        "475e12f5-4d24-5024-9fd7-de9c6fb32719"
    );
}

#[test]
fn per_type_reads_no_object_that_is_off_the_route() {
    let declared = |name: &str, keys: &str| {
        let text = format!(
            "table: {name}s\n{keys}rule: {{path: [verb], equals: {name}}}\norder_by: [id]\n\
             columns:\n- {{name: id, type: String, path: [id], identifies: true}}\n"
        );
        (format!("{name}.yaml"), text)
    };
    let catalog = Catalog::from_files([
        declared("click", "keys: [clicks/*]\n"),
        declared("view", "keys: [views/*]\n"),
        declared("any", ""),
    ]);
    let planner = Planner::new(PlannerOptions {
        strategy: Strategy::PerType,
        catalog: catalog.unwrap(),
        ..planner(S3Access::Server, Some("http://e"))
            .options()
            .clone()
    });
    let batch = BatchId(Uuid::from_u128(7));
    let (click, other) = (object("b", "clicks/1", "1"), object("b", "others/2", "2"));
    let read: Vec<(String, bool, bool)> = planner
        .inserts(
            batch,
            &[&click, &other],
            StatementShape::of(ReadBy::S3),
            &Layout::default(),
            "0",
        )
        .into_iter()
        .map(|statement| {
            let table = statement
                .sql
                .split('`')
                .nth(3)
                .unwrap_or_default()
                .to_owned();
            let names = |key| statement.sql.contains(key);
            (table, names("b/clicks/1'"), names("b/others/2'"))
        })
        .collect();
    let all = |table: &str| (table.to_owned(), true, true);
    assert_eq!(
        read,
        [
            all("anys"),
            ("clicks".to_owned(), true, false),
            all("rejected_lines"),
            all("unmatched_statements"),
            all("object_rows"),
        ]
    );
}

#[test]
fn the_statement_depends_only_on_the_manifest() {
    let planner = planner(S3Access::Server, Some("http://e"));
    let batch = BatchId(Uuid::from_u128(7));
    let (a, b) = (object("b", "a", "1"), object("b", "b", "2"));
    let inserts = |objects: &[&ObjectRef]| {
        let shape = StatementShape::of(ReadBy::S3);
        planner.inserts(batch, objects, shape, &Layout::default(), "0")
    };
    let statements = inserts(&[&a, &b]);
    assert_eq!(statements, inserts(&[&b, &a]));
    let [statement] = statements.as_slice() else {
        panic!("one statement")
    };
    let setting = |name| {
        let mut found = statement
            .settings
            .iter()
            .filter(|(setting, _)| *setting == name);
        found.next().map(|(_, value)| value.as_str())
    };
    assert_eq!(
        setting("insert_deduplication_token"),
        Some(batch.to_string().as_str())
    );
}

#[test]
fn every_statement_of_a_batch_carries_its_guard() {
    let (batch, listed) = (BatchId(Uuid::from_u128(7)), object("b", "a", "1"));
    let guard = sql::throw_if("refused()", FENCED_TEXT);
    for strategy in [Strategy::SinglePass, Strategy::PerType] {
        let planner = Planner::new(PlannerOptions {
            strategy,
            ..planner(S3Access::Server, Some("http://e"))
                .options()
                .clone()
        });
        let mut statements = vec![planner.snapshot(batch, &[&listed], "t WHERE 1", "refused()")];
        for read_by in [
            ReadBy::S3,
            ReadBy::Stream,
            ReadBy::RejectedLines,
            ReadBy::UnmatchedStatements,
        ] {
            let shape = StatementShape::of(read_by);
            let layout = Layout::default();
            let inserts = planner.inserts(batch, &[&listed], shape, &layout, "refused()");
            assert!(!inserts.is_empty(), "{strategy:?} {read_by:?}");
            statements.extend(inserts);
        }
        for Statement { sql, .. } in statements {
            assert!(sql.contains(&guard), "{sql}");
        }
    }
}

#[test]
fn many_blocks_are_read_by_one_thread() {
    let planner = planner(S3Access::Server, Some("http://e"));
    let settings = |sizes: [u64; 2], count: usize| {
        let objects = sizes.map(|size| {
            ObjectRef::from(ObjectParts {
                size: Some(size),
                ..object("b", &size.to_string(), "1").into_parts()
            })
        });
        let objects: Vec<&ObjectRef> = objects.iter().take(count).collect();
        let batch = BatchId(Uuid::from_u128(7));
        let layout = Layout::default();
        let shape = planner.shape(&objects, StatementShape::of(ReadBy::S3), &layout);
        let [statement] = &planner.inserts(batch, &objects, shape, &layout, "0")[..] else {
            panic!("one statement")
        };
        let value = |name| {
            let mut settings = statement.settings.iter();
            let found = settings.find(|(setting, _)| *setting == name);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        [
            "min_insert_block_size_rows",
            "parallel_view_processing",
            "max_threads",
        ]
        .map(value)
    };
    // More than `max_bytes`.
    assert_eq!(settings([1001, 1], 1), ["30000", "0", "1"]);
    assert_eq!(settings([1000, 1], 1), ["1000000000", "1", ""]);
    assert_eq!(settings([1000, 1], 2), ["1000000000", "1", "16"]);
}
