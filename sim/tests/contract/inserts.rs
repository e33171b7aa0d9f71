//! What an insert writes, and how it is counted.

use std::collections::BTreeMap;
use std::slice;

use sluice::batch::{BatchId, ReadBy, StatementShape};
use sluice::clickhouse::batch_rows::{Agreement, Contents};
use sluice::ledger::{Claim, Failure};
use sluice::load::ports::{BatchTables, LedgerStore};
use sluice::object::ObjectRef;
use sluice::statements::insert::Strategy;
use sluice::statements::select::BLANK as BLANK_LINE;
use sluice_core::fixtures;

use crate::servers::{Servers, TableRows, rows};
use crate::words::{
    BLANK, COUNTS, PAGE, PAGES, REASON, REJECTED, REJECTS, ROUTE, ROUTED, ROUTED_TABLE, UNMATCHED,
    VIDEO, VIDEOS,
};
use crate::worker::Worker;

/// Lines of every kind.
pub(crate) const OF_ALL_KINDS: [&str; 9] = [
    VIDEO, BLANK, PAGE, VIDEO, REJECTED, ROUTED, REJECTED, BLANK, VIDEO,
];

/// Returns the rows of [`OF_ALL_KINDS`].
pub(crate) fn of_all_kinds() -> TableRows {
    rows([
        (VIDEOS, 3),
        (PAGES, 1),
        (REJECTS, 2),
        (UNMATCHED, 1),
        (COUNTS, 9),
    ])
}

/// The kinds of [`OF_ALL_KINDS`], and how many lines there are of each.
const COUNTS_OF_ALL_KINDS: [(&str, u64); 5] = [
    (BLANK_LINE, 2),
    ("rejected", 2),
    ("unmatched", 1),
    (PAGE, 1),
    (VIDEO, 3),
];

/// Returns the counts of an object by kind, and in how many blocks each was inserted.
fn counted<'a>(contents: &'a Contents, object: &ObjectRef) -> Vec<(&'a str, u64, u64)> {
    let path = object.path();
    let counts = contents.counted.iter();
    let counts = counts.filter(|it| it.source_path == path);
    let mut counts: Vec<_> = counts
        .map(|it| (it.kind.as_str(), it.rows, it.blocks))
        .collect();
    counts.sort_unstable();
    counts
}

pub(crate) async fn an_insert_writes_each_line_to_the_table_of_its_kind<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("all-kinds", &OF_ALL_KINDS).await;
    let batch = worker.claim(slice::from_ref(&object)).await;
    let tables = &worker.tables;
    assert_eq!(tables.has_any(batch, None).await, Ok(false));
    let before = tables.contents(batch, None).await.unwrap();
    assert!(before.counted.is_empty() && !before.are_proof());
    assert!(!worker.is_complete(batch, false).await);
    let rejected = tables.rejected(batch).await.unwrap();
    assert!(rejected.is_empty(), "{rejected:?}");

    worker
        .insert(batch, 1, slice::from_ref(&object))
        .await
        .unwrap();
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
    assert_eq!(tables.has_any(batch, None).await, Ok(true));
    let contents = tables.contents(batch, None).await.unwrap();
    let expected = COUNTS_OF_ALL_KINDS.map(|(kind, rows)| (kind, rows, 1_u64));
    assert_eq!(counted(&contents, &object), expected);
    assert_eq!(contents.counted.len(), expected.len());
    assert!(contents.are_proof());
    assert!(worker.is_complete(batch, false).await);
    let rejected = tables.rejected(batch).await.unwrap();
    let rejected = rejected.iter().map(|it| (it.reason.as_str(), it.lines));
    assert_eq!(rejected.collect::<Vec<_>>(), [(REASON, 2)]);
    assert_eq!(tables.compressed_line(batch).await, Ok(None));
    let other = worker.new_batch();
    assert_eq!(tables.has_any(other, None).await, Ok(false));
}

pub(crate) async fn the_objects_of_a_batch_are_counted_one_by_one<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let mixed = servers.put("mixed", &[VIDEO, REJECTED, VIDEO]).await;
    let blank = servers.put("blank", &[BLANK, BLANK]).await;
    let empty = servers.put("empty", &[]).await;
    let objects = [blank.clone(), empty.clone(), mixed.clone()];
    let batch = worker.claim(&objects).await;
    worker.insert(batch, 1, &objects).await.unwrap();
    let expected = rows([(VIDEOS, 2), (REJECTS, 1), (COUNTS, 5)]);
    assert_eq!(servers.rows_of(batch).await, expected);
    let contents = worker.tables.contents(batch, None).await.unwrap();
    let of_mixed = [("rejected", 1, 1), (VIDEO, 2, 1)];
    assert_eq!(counted(&contents, &mixed), of_mixed);
    assert_eq!(counted(&contents, &blank), [(BLANK_LINE, 2, 1)]);
    assert_eq!(counted(&contents, &empty), []);
    assert!(contents.are_proof());
}

pub(crate) async fn nothing_is_counted_of_objects_without_lines<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("empty", &[]).await;
    let batch = worker.claim(slice::from_ref(&object)).await;
    worker
        .insert(batch, 1, slice::from_ref(&object))
        .await
        .unwrap();
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
    assert!(!worker.has_any(batch).await);
    let contents = worker.tables.contents(batch, None).await.unwrap();
    assert_eq!(contents.agreement(false), Agreement::Equal);
    assert!(!contents.are_proof());
}

pub(crate) async fn a_route_decides_which_objects_can_have_an_event<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let words = [ROUTED, VIDEO];
    let on_route = servers.put(&format!("{ROUTE}object"), &words).await;
    let other = servers.put("object", &words).await;
    let objects = [on_route, other];
    let batch = worker.claim(&objects).await;
    worker.insert(batch, 1, &objects).await.unwrap();
    let expected = rows([(VIDEOS, 2), (ROUTED_TABLE, 1), (UNMATCHED, 1), (COUNTS, 4)]);
    assert_eq!(servers.rows_of(batch).await, expected);
}

pub(crate) async fn an_insert_by_type_writes_the_same_rows<S: Servers>(servers: &S) {
    let worker = servers.connect_with("worker", 0, Strategy::PerType);
    let object = servers.put("all-kinds", &OF_ALL_KINDS).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    let shape = worker.shape(objects, ReadBy::S3);
    let statements = worker.permitted(batch, 1, objects, shape).await.unwrap();
    // The object is not on the route of one of the tables.
    assert_eq!(statements.len(), worker.targets().len() - 1);
    worker.insert(batch, 1, objects).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
    assert!(worker.is_complete(batch, false).await);
    worker.insert(batch, 2, objects).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
}

/// Returns the lines of an object that fill two blocks and begin a third one.
fn many<S: Servers>() -> Vec<&'static str> {
    let mut words = vec![VIDEO; 2 * S::BLOCK_LINES];
    words.extend([PAGE, REJECTED]);
    words
}

/// Claims an object that is read in many blocks.
async fn claim_in_many_blocks<S: Servers>(
    worker: &Worker<S>,
    object: &ObjectRef,
) -> (BatchId, StatementShape) {
    let shape = StatementShape {
        many_blocks: true,
        ..worker.shape(slice::from_ref(object), ReadBy::S3)
    };
    let claims = [Claim::of(object)];
    (worker.claim_as(&claims, shape).await, shape)
}

pub(crate) async fn a_large_object_is_inserted_in_many_blocks<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("large", &many::<S>()).await;
    let objects = slice::from_ref(&object);
    let (batch, shape) = claim_in_many_blocks(&worker, &object).await;
    worker.insert_as(batch, 1, objects, shape).await.unwrap();
    let videos = 2 * S::BLOCK_LINES as u64;
    let all = rows([
        (VIDEOS, videos),
        (PAGES, 1),
        (REJECTS, 1),
        (COUNTS, videos + 2),
    ]);
    assert_eq!(servers.rows_of(batch).await, all);
    let contents = worker.tables.contents(batch, None).await.unwrap();
    let expected = [("rejected", 1, 1), (PAGE, 1, 1), (VIDEO, videos, 2)];
    assert_eq!(counted(&contents, &object), expected);
    assert!(worker.is_complete(batch, true).await);
    // In one block, it would have been inserted twice.
    assert_eq!(contents.agreement(false), Agreement::Other);

    worker.insert_as(batch, 2, objects, shape).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, all);
    worker.record(batch, 2).await.unwrap();
}

pub(crate) async fn the_first_line_of_an_object_can_look_compressed<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let content = b"\x1f\x8b\x08 is the beginning of gzip\nrejected\n";
    let meta = servers.upload("misnamed", content, false).await;
    let misnamed = servers.object("misnamed", &meta);
    // Only the first line counts.
    let content = b"rejected\n\x1f\x8b\x08\n";
    let meta = servers.upload("other", content, false).await;
    let other = servers.object("other", &meta);
    for (object, found) in [(&misnamed, Some(misnamed.path())), (&other, None)] {
        let objects = slice::from_ref(object);
        let batch = worker.claim(objects).await;
        worker.insert(batch, 1, objects).await.unwrap();
        let expected = rows([(REJECTS, 2), (COUNTS, 2)]);
        assert_eq!(servers.rows_of(batch).await, expected);
        assert_eq!(worker.tables.compressed_line(batch).await, Ok(found));
    }
}

pub(crate) async fn failures_are_recorded_with_their_class_and_reason<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let objects = ["one", "other"].map(|key| fixtures::object(servers.bucket(), key, "e"));
    let failures = [
        Failure {
            object: &objects[0],
            class: "missing",
            reason: "it is gone",
            sample: &[],
        },
        Failure {
            object: &objects[1],
            class: "unloadable",
            reason: "it is broken",
            sample: &["record 0: not JSON: a".to_owned()],
        },
    ];
    worker.ledger.record_failures(&failures).await.unwrap();
    let expected = [
        ("one".to_owned(), "missing: it is gone".to_owned()),
        ("other".to_owned(), "unloadable: it is broken".to_owned()),
    ];
    assert_eq!(servers.failures().await, BTreeMap::from(expected));
}
