//! Rows that are deleted: of a batch, of superseded batches, and of released batches whose rows
//! come late. And what the ledger says about replacements.

use std::slice;
use std::time::Duration;

use sluice::batch::BatchId;
use sluice::ledger::protocol::ClaimStatus;
use sluice::load::janitor::StrayRows;
use sluice::load::ports::{BatchTables, LedgerStore, Rows};
use sluice::statements::select::Target;

use crate::inserts::{OF_ALL_KINDS, of_all_kinds};
use crate::servers::{Servers, TableRows, rows};
use crate::words::{COUNTS, PAGE, PAGES, REJECTED, REJECTS, VIDEO, VIDEOS};
use crate::worker::{Answer, Worker, busy, eventually};

const TIMEOUT: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// More than all cases release.
const MANY_BATCHES: usize = 10_000;

pub(crate) async fn the_rows_of_a_batch_are_deleted_and_no_others<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let one = servers.put("one", &OF_ALL_KINDS).await;
    let other = servers.put("other", &OF_ALL_KINDS).await;
    let mut batches = Vec::new();
    for object in [&one, &other] {
        let objects = slice::from_ref(object);
        let batch = worker.claim(objects).await;
        worker.insert(batch, 1, objects).await.unwrap();
        batches.push(batch);
    }
    let tables = &worker.tables;
    for table in of_all_kinds().keys() {
        let [one, other] = [batches[0], batches[1]].map(Rows::Of);
        assert_eq!(tables.has_rows(table, one, None).await, Ok(true));
        worker.delete(table, one).await;
        assert_eq!(tables.has_rows(table, one, None).await, Ok(false));
        assert_eq!(tables.has_rows(table, other, None).await, Ok(true));
        assert!(!tables.is_deleting(table, one).await);
    }
    assert_eq!(servers.rows_of(batches[0]).await, TableRows::new());
    assert_eq!(servers.rows_of(batches[1]).await, of_all_kinds());
    // Nothing is left to delete.
    worker.delete(VIDEOS, Rows::Of(batches[0])).await;
}

pub(crate) async fn the_rows_that_a_batch_supersedes_are_deleted<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let words = [VIDEO, PAGE];
    let one = servers.put("one", &words).await;
    let other = servers.put("other", &words).await;
    let first = worker.load(&[one, other.clone()]).await;
    let second = worker.load(slice::from_ref(&other)).await;
    let replaced = slice::from_ref(&other);
    let third = worker.supersede(replaced, &[first, second]).await;
    worker.insert(third, 1, replaced).await.unwrap();
    worker.record(third, 1).await.unwrap();

    let entries = worker.ledger.objects(third).await.unwrap();
    let superseded = Rows::SupersededBy(&entries);
    for table in [VIDEOS, PAGES, COUNTS] {
        let has_rows = worker.tables.has_rows(table, superseded, None).await;
        assert_eq!(has_rows, Ok(true), "{table}");
        worker.delete(table, superseded).await;
    }
    let of_one = rows([(VIDEOS, 1), (PAGES, 1), (COUNTS, 2)]);
    assert_eq!(servers.rows_of(first).await, of_one);
    assert_eq!(servers.rows_of(second).await, TableRows::new());
    assert_eq!(servers.rows_of(third).await, of_one);
}

/// Returns what the ledger says about the replacement by a batch.
async fn replacement<S: Servers>(
    worker: &Worker<S>,
    batch: BatchId,
) -> Answer<Option<ClaimStatus>> {
    let mut replacements = worker.ledger.replacements().await?;
    replacements.retain(|it| it.batch == batch);
    assert!(replacements.len() <= 1, "{replacements:?}");
    Ok(replacements.first().map(|it| it.status))
}

pub(crate) async fn a_replacement_is_listed_until_it_is_cleaned_up<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("replaced", &[VIDEO]).await;
    let objects = slice::from_ref(&object);
    let first = worker.load(objects).await;
    assert_eq!(replacement(&worker, first).await, Ok(None));
    let released = worker.supersede(objects, &[first]).await;
    let listed = replacement(&worker, released).await;
    assert_eq!(listed, Ok(Some(busy(released, false))));
    worker.ledger.release(released, "a reason").await.unwrap();
    assert_eq!(replacement(&worker, released).await, Ok(None));

    let second = worker.supersede(objects, &[first]).await;
    let open = replacement(&worker, second).await;
    assert_eq!(open, Ok(Some(busy(second, false))));
    servers.tick().await;
    worker.ledger.abandon(second).await.unwrap();
    let abandoned = Some(busy(second, true));
    eventually(abandoned, async || replacement(&worker, second).await).await;
    worker.insert(second, 1, objects).await.unwrap();
    worker.record(second, 1).await.unwrap();
    let loaded = replacement(&worker, second).await;
    assert_eq!(loaded, Ok(Some(ClaimStatus::Loaded)));
    worker.ledger.cleaned(second).await.unwrap();
    assert_eq!(replacement(&worker, second).await, Ok(None));
    worker.sees(&object, ClaimStatus::Loaded).await;
}

/// Returns the released batches that have rows in a table.
async fn strays<S: Servers>(worker: &Worker<S>, table: &str) -> Vec<BatchId> {
    let strays = worker
        .tables
        .stray_batches(table, DAY, MANY_BATCHES, TIMEOUT);
    strays.await.unwrap()
}

async fn stray_rows<S: Servers>(
    worker: &Worker<S>,
    target: Target<'_>,
    batch: BatchId,
) -> Vec<StrayRows> {
    let rows = worker.tables.stray_rows(target, batch, TIMEOUT);
    rows.await.unwrap()
}

/// Returns the number of stray rows, and how many of them are the only copies.
fn numbers(found: &[StrayRows]) -> (u64, u64) {
    let rows = found.iter().map(|it| it.rows).sum();
    (rows, found.iter().map(|it| it.only_copies).sum())
}

pub(crate) async fn late_rows_of_a_released_batch_are_found<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("late", &[VIDEO, REJECTED, VIDEO]).await;
    let objects = slice::from_ref(&object);
    let released = worker.claim(objects).await;
    worker.ledger.release(released, "a reason").await.unwrap();
    assert!(!strays(&worker, VIDEOS).await.contains(&released));
    let loaded = worker.load(objects).await;
    let open = worker.claim(objects).await;
    worker.insert_late(open, objects).await;
    worker.insert_late(released, objects).await;
    // For each table, the number of its rows: a count is one row.
    let found = [(VIDEOS, 2), (REJECTS, 1), (COUNTS, 2)];
    for (table, number) in found {
        let strays = strays(&worker, table).await;
        assert!(strays.contains(&released), "{table}");
        assert!(!strays.contains(&loaded) && !strays.contains(&open));
        let targets = worker.targets();
        let target = targets.iter().find(|target| target.table() == table);
        let target = *target.unwrap();
        let found = stray_rows(&worker, target, released).await;
        assert_eq!(numbers(&found), (number, 0), "{table}: {found:?}");

        let parts: Vec<&str> = found.iter().map(|it| it.name.as_str()).collect();
        let in_parts = Rows::InParts(released, &parts);
        let delete = worker.tables.delete(table, in_parts, TIMEOUT);
        delete.await.unwrap();
        let left = stray_rows(&worker, target, released).await;
        assert_eq!(numbers(&left), (0, 0), "{table}: {left:?}");
    }
    let all = rows([(VIDEOS, 2), (REJECTS, 1), (COUNTS, 3)]);
    assert_eq!(servers.rows_of(loaded).await, all);
    assert_eq!(servers.rows_of(open).await, all);
    assert_eq!(servers.rows_of(released).await, TableRows::new());
}

/// Another batch is going to load them.
pub(crate) async fn late_rows_can_be_the_only_copies<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let [wanted, unwanted] = [
        servers.put("wanted", &[VIDEO, VIDEO]).await,
        servers.put("unwanted", &[VIDEO, VIDEO, VIDEO]).await,
    ];
    let objects = [unwanted, wanted.clone()];
    let released = worker.claim(&objects).await;
    worker.ledger.release(released, "a reason").await.unwrap();
    worker.insert_late(released, &objects).await;
    let open = worker.claim(slice::from_ref(&wanted)).await;
    let targets = worker.targets();
    let videos = targets.iter().find(|target| target.table() == VIDEOS);
    let videos = *videos.unwrap();
    let found = stray_rows(&worker, videos, released).await;
    assert_eq!(numbers(&found), (5, 2), "{found:?}");
    let counts = stray_rows(&worker, Target::ObjectRows, released).await;
    assert_eq!(numbers(&counts), (2, 0), "{counts:?}");

    let wanted = slice::from_ref(&wanted);
    worker.insert(open, 1, wanted).await.unwrap();
    let found = stray_rows(&worker, videos, released).await;
    assert_eq!(numbers(&found), (5, 0), "{found:?}");
    // A batch that is released does not load them.
    worker.delete_all(open).await;
    worker.ledger.release(open, "a reason").await.unwrap();
    let found = stray_rows(&worker, videos, released).await;
    assert_eq!(numbers(&found), (5, 0), "{found:?}");
}
