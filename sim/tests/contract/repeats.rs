//! Inserts that are repeated under their token: after success, after a rollback, and after they
//! were cut short.

use std::slice;

use sluice::batch::{ReadBy, StatementShape};
use sluice::clickhouse::batch_rows::Agreement;
use sluice::clickhouse::error_class::ErrorClass;
use sluice::load::ports::{BatchTables, LedgerStore, Rows};
use sluice::statements::insert::Strategy;
use sluice_testkit::wait_for;
use tokio::time::Instant;

use crate::inserts::{OF_ALL_KINDS, of_all_kinds};
use crate::servers::{BOUND, SMALL_WINDOW, Servers, TableRows, rows};
use crate::words::{COUNTS, PAGE, PAGES, VIDEO, VIDEOS};
use crate::worker::{eventually, failed};

pub(crate) async fn a_repeated_insert_adds_nothing<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let elsewhere = servers.connect_elsewhere("elsewhere");
    let one = servers.put("one", &OF_ALL_KINDS).await;
    let other = servers.put("other", &OF_ALL_KINDS).await;
    let objects = [one, other];
    let batch = worker.claim(&objects).await;
    worker.insert(batch, 1, &objects).await.unwrap();
    let expected = of_all_kinds()
        .into_iter()
        .map(|(table, rows)| (table, 2 * rows));
    let expected: TableRows = expected.collect();
    assert_eq!(servers.rows_of(batch).await, expected);
    worker.insert(batch, 1, &objects).await.unwrap();
    worker.fence(batch, 1).await;
    worker.insert(batch, 2, &objects).await.unwrap();
    elsewhere.fence(batch, 2).await;
    elsewhere.insert(batch, 3, &objects).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, expected);
    assert!(elsewhere.is_complete(batch, false).await);

    // The same objects in another batch have another token.
    let second = worker.claim(&objects).await;
    worker.insert(second, 1, &objects).await.unwrap();
    assert_eq!(servers.rows_of(second).await, expected);
    assert_eq!(servers.rows_of(batch).await, expected);
}

pub(crate) async fn rows_that_were_rolled_back_do_not_come_back<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("all-kinds", &OF_ALL_KINDS).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    worker.insert(batch, 1, objects).await.unwrap();
    worker.delete(VIDEOS, Rows::Of(batch)).await;
    worker.insert(batch, 1, objects).await.unwrap();
    let mut rest = of_all_kinds();
    rest.remove(VIDEOS);
    assert_eq!(servers.rows_of(batch).await, rest);
    assert!(!worker.is_complete(batch, false).await);
    let contents = worker.tables.contents(batch, None).await.unwrap();
    let fewer = Agreement::Fewer(vec![VIDEO.to_owned()]);
    assert_eq!(contents.agreement(false), fewer);

    worker.delete_all(batch).await;
    assert!(!worker.has_any(batch).await);
    worker.insert(batch, 1, objects).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
    assert!(!worker.is_complete(batch, false).await);
}

/// A table whose rows a user or a TTL deletes, or a merge collapses, has lost nothing.
pub(crate) async fn rows_deleted_since_the_only_attempt_are_not_missing<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("object", &[VIDEO, PAGE]).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    let begun = Instant::now();
    worker.insert(batch, 1, objects).await.unwrap();
    worker.delete(VIDEOS, Rows::Of(batch)).await;
    let tables = &worker.tables;
    let contents = tables.contents(batch, None).await.unwrap();
    for (since, expected) in [(Some(begun), true), (None, false)] {
        let complete = tables.are_complete(batch, &contents, false, since).await;
        assert_eq!(complete, Ok(expected), "{since:?}");
    }
    // Its counts are gone, too: so the tables have more than was counted.
    worker.delete(COUNTS, Rows::Of(batch)).await;
    let contents = tables.contents(batch, None).await.unwrap();
    let complete = tables.are_complete(batch, &contents, false, Some(begun));
    assert_eq!(complete.await, Ok(false));
}

/// Between two statements, so that every server is cut at the same place.
pub(crate) async fn an_insert_cut_between_tables_is_completed<S: Servers>(servers: &S) {
    let worker = servers.connect_with("worker", 0, Strategy::PerType);
    let object = servers.put("all-kinds", &OF_ALL_KINDS).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    let shape = worker.shape(objects, ReadBy::S3);
    let statements = worker.permitted(batch, 1, objects, shape).await.unwrap();
    for statement in &statements[..2] {
        worker.execute(batch, statement).await.unwrap();
    }
    let cut = rows([(PAGES, 1), (VIDEOS, 3)]);
    assert_eq!(servers.rows_of(batch).await, cut);
    assert!(worker.has_any(batch).await);
    assert!(!worker.is_complete(batch, false).await);
    let contents = worker.tables.contents(batch, None).await.unwrap();
    assert_eq!(contents.agreement(false), Agreement::Other);

    worker.fence(batch, 1).await;
    let late = worker.execute(batch, &statements[2]).await;
    failed(late, ErrorClass::Fenced);
    assert_eq!(servers.rows_of(batch).await, cut);
    worker.insert(batch, 2, objects).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
    assert!(worker.is_complete(batch, false).await);
    worker.record(batch, 2).await.unwrap();
}

/// Each batch is a block in each of its tables.
pub(crate) async fn a_token_is_forgotten_after_a_window_of_later_blocks<S: Servers>(servers: &S) {
    let window = SMALL_WINDOW.dedup_window;
    let worker = servers.connect("worker");
    for later in [window - 1, window] {
        let object = servers.put(&format!("before-{later}"), &[VIDEO]).await;
        let objects = slice::from_ref(&object);
        let batch = worker.claim(objects).await;
        worker.insert(batch, 1, objects).await.unwrap();
        for number in 0..later {
            let object = servers
                .put(&format!("after-{later}-{number}"), &[VIDEO])
                .await;
            worker.load(slice::from_ref(&object)).await;
        }
        worker.insert(batch, 1, objects).await.unwrap();
        let is_twice = later == window;
        let copies = 1 + u64::from(is_twice);
        let expected = rows([(VIDEOS, copies), (COUNTS, copies)]);
        assert_eq!(servers.rows_of(batch).await, expected, "{later} later");
        // The counts show it.
        assert_eq!(worker.is_complete(batch, false).await, !is_twice);
        let contents = worker.tables.contents(batch, None).await.unwrap();
        assert_eq!(contents.counted[0].blocks, copies);
    }
}

/// The reads of the server are held so that the insert is running when the kill arrives.
pub(crate) async fn a_kill_ends_an_insert_and_reports_after_its_end<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let other = servers.connect_elsewhere("other");
    let object = servers.put("held", &OF_ALL_KINDS).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    // A kill of another batch does not reach it.
    other.tables.kill(other.new_batch()).await.unwrap();
    servers.hold_reads(true);
    let kill = async {
        wait_for("the insert", BOUND, async || {
            Ok((servers.running(batch).await == 1).then_some(()))
        })
        .await;
        let release = async {
            servers.wait_until_killed(batch).await;
            servers.hold_reads(false);
        };
        let (killed, ()) = tokio::join!(other.tables.kill(batch), release);
        killed.unwrap();
        assert_eq!(servers.running(batch).await, 0);
    };
    let (inserted, ()) = tokio::join!(worker.insert(batch, 1, objects), kill);
    let error = failed(inserted, ErrorClass::Retry);
    assert_eq!(error.code(), Some(394), "{error}");
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
    // Nothing is left to kill.
    other.tables.kill(batch).await.unwrap();
    worker.insert(batch, 1, objects).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
}

pub(crate) async fn an_insert_whose_server_crashes_is_completed<S: Servers>(servers: &S) {
    assert!(servers.can_crash());
    let worker = servers.connect("worker");
    let object = servers.put("held", &OF_ALL_KINDS).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    servers.hold_reads(true);
    let crash = async {
        wait_for("the insert", BOUND, async || {
            Ok((servers.running(batch).await == 1).then_some(()))
        })
        .await;
        servers.crash(0).await;
    };
    let (inserted, ()) = tokio::join!(worker.insert(batch, 1, objects), crash);
    servers.hold_reads(false);
    let error = failed(inserted, ErrorClass::Retry);
    assert_eq!(error.code(), None, "{error}");
    let error = failed(worker.tables.ping().await, ErrorClass::Retry);
    assert_eq!(error.code(), None, "{error}");

    servers.restart(0).await;
    assert_eq!(servers.running(batch).await, 0);
    wait_for("the server", BOUND, async || {
        Ok(Some(worker.tables.ping().await?))
    })
    .await;
    let manifest = worker.ledger.manifest(batch).await.unwrap().unwrap();
    assert_eq!(manifest.objects.len(), 1);
    worker.fence(batch, 1).await;
    worker.insert(batch, 2, objects).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
    worker.record(batch, 2).await.unwrap();
    // What was confirmed is there after another crash.
    servers.crash(0).await;
    servers.restart(0).await;
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
    eventually(true, async || worker.ledger.has_ended(batch).await).await;
}

/// Where an insert in many blocks fails, those before it can stay.
pub(crate) async fn an_insert_cut_between_blocks_is_completed<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let mut words = vec![VIDEO; S::BLOCK_LINES];
    words.push(PAGE);
    let object = servers.put("large", &words).await;
    let objects = slice::from_ref(&object);
    let shape = StatementShape {
        many_blocks: true,
        ..worker.shape(objects, ReadBy::S3)
    };
    let batch = worker.claim(objects).await;
    servers.set_throwing_view(Some(PAGES)).await;
    let cut = worker.insert_as(batch, 1, objects, shape).await;
    assert!(cut.is_err());
    servers.set_throwing_view(None).await;
    worker.fence(batch, 1).await;
    worker.insert_as(batch, 2, objects, shape).await.unwrap();
    let videos = S::BLOCK_LINES as u64;
    let expected = rows([(VIDEOS, videos), (PAGES, 1), (COUNTS, videos + 1)]);
    assert_eq!(servers.rows_of(batch).await, expected);
    assert!(worker.is_complete(batch, true).await);
}
