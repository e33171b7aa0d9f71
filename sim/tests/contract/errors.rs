//! Inserts that fail, or that read less than there is: the classes of their errors, and what the
//! server finds out about objects by itself.

use std::collections::BTreeMap;
use std::slice;
use std::time::SystemTime;

use sluice::clickhouse::WarehouseError;
use sluice::clickhouse::error_class::{ErrorClass, PauseReason, diagnosis, is_missing, is_s3_away};
use sluice::clickhouse::failing_view::{Failing, failing_view};
use sluice::load::ports::BatchTables;
use sluice::load::truncation::Truncation;
use sluice::object::{Compression, ObjectRef};
use sluice::s3::ObjectMeta;
use sluice_core::fixtures;
use sluice_sim::s3::Reader;
use sluice_testkit::wait_for;

use crate::inserts::{OF_ALL_KINDS, of_all_kinds};
use crate::servers::{BOUND, Servers, TableRows, rows};
use crate::words::{BLANK, COUNTS, PAGE, PAGES, VIDEO, VIDEOS, lines};
use crate::worker::{Answer, failed};

const WORDS: [&str; 40] = [VIDEO; 40];

/// Asserts that an object and another one cannot be inserted together, with an error of this class
/// that names the object, and that nothing is written.
async fn assert_fails<S: Servers>(
    servers: &S,
    object: &ObjectRef,
    class: ErrorClass,
) -> WarehouseError {
    let worker = servers.connect("worker");
    let sound = servers.put("sound", &OF_ALL_KINDS).await;
    let objects = [object.clone(), sound];
    let batch = worker.claim(&objects).await;
    let error = failed(worker.insert(batch, 1, &objects).await, class);
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
    assert!(!worker.has_any(batch).await);
    worker.insert(batch, 1, &objects[1..]).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
    error
}

#[track_caller]
fn assert_names(error: &WarehouseError, object: &ObjectRef) {
    let text = error.to_string();
    assert!(text.contains(&object.key), "{text}");
}

pub(crate) async fn a_missing_object_fails_its_insert<S: Servers>(servers: &S) {
    let never = fixtures::object(servers.bucket(), "never-there", "e");
    let error = assert_fails(servers, &never, ErrorClass::ObjectFault).await;
    assert!(is_missing(&error), "{error}");
    assert_names(&error, &never);

    let gone = servers.put("gone", &WORDS).await;
    servers.remove("gone").await;
    let error = assert_fails(servers, &gone, ErrorClass::ObjectFault).await;
    assert!(is_missing(&error), "{error}");
}

pub(crate) async fn an_object_that_has_changed_fails_its_insert<S: Servers>(servers: &S) {
    let before = servers.put("changed", &WORDS).await;
    let after = servers.put("changed", &WORDS[1..]).await;
    assert_ne!(before.etag, after.etag);
    assert_fails(servers, &before, ErrorClass::Changed).await;
    let worker = servers.connect("worker");
    let batch = worker.claim(slice::from_ref(&after)).await;
    worker
        .insert(batch, 1, slice::from_ref(&after))
        .await
        .unwrap();
    let expected = rows([(VIDEOS, 39), (COUNTS, 39)]);
    assert_eq!(servers.rows_of(batch).await, expected);
}

/// The guard that compares etags is evaluated for each line.
pub(crate) async fn an_object_that_has_become_empty_passes_without_rows<S: Servers>(servers: &S) {
    let before = servers.put("emptied", &WORDS).await;
    let after = servers.put("emptied", &[]).await;
    assert_ne!(before.etag, after.etag);
    let worker = servers.connect("worker");
    let batch = worker.claim(slice::from_ref(&before)).await;
    worker
        .insert(batch, 1, slice::from_ref(&before))
        .await
        .unwrap();
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
    // That is how it is noticed.
    let lines = worker.tables.with_lines(&[&before]).await;
    assert_eq!(lines, Ok(vec![]));
    let present = worker.tables.head(&[&before]).await;
    let meta = ObjectMeta {
        etag: after.etag.clone(),
        size: Some(0),
    };
    assert_eq!(present, Ok(vec![(before.path(), meta)]));
}

pub(crate) async fn a_refused_object_fails_its_insert<S: Servers>(servers: &S) {
    let object = servers.put("refused", &WORDS).await;
    servers.refuse("refused", Reader::Server, true);
    let error = assert_fails(servers, &object, ErrorClass::Denied).await;
    assert!(!is_missing(&error), "{error}");
    assert_names(&error, &object);
    let worker = servers.connect("worker");
    let head = worker.tables.head(&[&object]).await;
    failed(head, ErrorClass::Denied);
    servers.refuse("refused", Reader::Server, false);
    let batch = worker.claim(slice::from_ref(&object)).await;
    worker
        .insert(batch, 1, slice::from_ref(&object))
        .await
        .unwrap();
}

pub(crate) async fn inserts_fail_while_s3_is_unavailable<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("object", &OF_ALL_KINDS).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    servers.set_unavailable(Reader::Server, true);
    let error = failed(worker.insert(batch, 1, objects).await, ErrorClass::Retry);
    assert!(is_s3_away(&error), "{error}");
    servers.set_unavailable(Reader::Server, false);
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
    worker.insert(batch, 1, objects).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
}

pub(crate) async fn the_server_notices_that_a_gzip_stream_is_cut_short<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    assert_eq!(worker.tables.known_truncation(Compression::Gzip), None);
    let truncation = worker.tables.truncation(Compression::Gzip).await;
    assert_eq!(truncation, Ok(Truncation::Noticed));
    let known = worker.tables.known_truncation(Compression::Gzip);
    assert_eq!(known, Some(Truncation::Noticed));
    let meta = servers.upload("cut.gz", &lines(&WORDS), true).await;
    let cut = servers.object("cut.gz", &meta);
    let error = assert_fails(servers, &cut, ErrorClass::ObjectFault).await;
    assert!(!is_missing(&error), "{error}");
    assert_names(&error, &cut);
}

/// ClickHouse (26.7) ends the second frame of this object without an error.
pub(crate) async fn a_zstd_stream_that_is_cut_short_is_read_in_part<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let truncation = worker.tables.truncation(Compression::Zstd).await;
    assert_eq!(truncation, Ok(Truncation::Silent));
    let truncation = worker.tables.truncation(Compression::None).await;
    assert_eq!(truncation, Ok(Truncation::Noticed));
    let meta = servers.upload("cut.zst", &lines(&WORDS), true).await;
    let cut = servers.object("cut.zst", &meta);
    let objects = slice::from_ref(&cut);
    let batch = worker.claim(objects).await;
    worker.insert(batch, 1, objects).await.unwrap();
    let half = rows([(VIDEOS, 20), (COUNTS, 20)]);
    assert_eq!(servers.rows_of(batch).await, half);
    // The counts do not show it.
    assert!(worker.is_complete(batch, false).await);
}

pub(crate) async fn the_server_shows_what_a_key_has_now<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let before = servers.put("changed", &WORDS).await;
    let after = servers.put("changed", &WORDS[1..]).await;
    let empty = servers.put("empty", &[]).await;
    let meta = servers.upload("zipped.gz", &lines(&WORDS), false).await;
    let zipped = servers.object("zipped.gz", &meta);
    let heads = worker.tables.head(&[&before, &empty, &zipped]).await;
    let found: BTreeMap<String, ObjectMeta> = heads.unwrap().into_iter().collect();
    let expected = [&after, &empty, &zipped].map(|object| {
        let meta = ObjectMeta {
            etag: object.etag.clone(),
            size: object.size,
        };
        (object.path(), meta)
    });
    assert_eq!(found, BTreeMap::from(expected));

    let missing = fixtures::object(servers.bucket(), "missing", "e");
    for objects in [&[&missing][..], &[&after, &missing][..]] {
        let head = worker.tables.head(objects).await;
        let error = failed(head, ErrorClass::ObjectFault);
        assert!(is_missing(&error), "{error}");
    }
}

pub(crate) async fn the_server_finds_objects_that_have_lines<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let before = servers.put("changed", &WORDS).await;
    servers.put("changed", &[VIDEO]).await;
    let blank = servers.put("blank", &[BLANK]).await;
    let empty = servers.put("empty", &[]).await;
    let zipped = servers.upload("empty.gz", b"", false).await;
    let zipped = servers.object("empty.gz", &zipped);
    let with_lines = worker
        .tables
        .with_lines(&[&before, &blank, &empty, &zipped])
        .await;
    let mut with_lines = with_lines.unwrap();
    with_lines.sort_unstable();
    assert_eq!(with_lines, [blank.path(), before.path()]);
    let missing = fixtures::object(servers.bucket(), "missing", "e");
    let error = worker.tables.with_lines(&[&missing]).await;
    assert!(is_missing(&failed(error, ErrorClass::ObjectFault)));
}

/// Returns the view in which an insert has failed.
#[track_caller]
fn view(inserted: Answer<()>) -> Failing {
    let error = failed(inserted, ErrorClass::Retry);
    assert_eq!(diagnosis(&error).pause, PauseReason::View, "{error}");
    failing_view(&error).expect("the error names the view")
}

pub(crate) async fn an_insert_fails_in_a_users_view<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("object", &[VIDEO, PAGE, VIDEO]).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    servers.set_throwing_view(Some(VIDEOS)).await;
    let failing = view(worker.insert(batch, 1, objects).await);
    assert_eq!(failing.table.as_deref(), Some(VIDEOS));
    // The view reads what its table has received by then.
    let written = servers.rows_of(batch).await;
    assert_eq!(written.get(VIDEOS), Some(&2), "{written:?}");
    // Objects without rows for the view pass.
    let other = servers.put("other", &[PAGE]).await;
    worker.load(slice::from_ref(&other)).await;

    worker.fence(batch, 1).await;
    worker.delete_all(batch).await;
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
    servers.set_throwing_view(None).await;
    let second = worker.load(objects).await;
    let expected = rows([(VIDEOS, 2), (PAGES, 1), (COUNTS, 3)]);
    assert_eq!(servers.rows_of(second).await, expected);
}

/// Whether other batches pass through a view shows whether an object is at fault.
pub(crate) async fn batches_before_a_change_of_a_view_have_not_passed_it<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("object", &[VIDEO]).await;
    let objects = slice::from_ref(&object);
    let table = Some(VIDEOS.to_owned());
    let no_view = Failing {
        view: "no_database.no_view".to_owned(),
        table: table.clone(),
    };
    let batch = worker.load(objects).await;
    assert_eq!(worker.tables.has_passed(&no_view).await, Ok(true));
    let no_table = Failing {
        table: None,
        ..no_view.clone()
    };
    assert_eq!(worker.tables.has_passed(&no_table).await, Ok(false));

    // The time of the change is recorded in whole seconds.
    let second = || {
        let now = servers.env().wall_clock();
        now.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    let loaded = second();
    wait_for("the next second", BOUND, async || {
        Ok((second() > loaded).then_some(()))
    })
    .await;
    servers.set_throwing_view(Some(VIDEOS)).await;
    let next = worker.supersede(objects, &[batch]).await;
    let failing = view(worker.insert(next, 1, objects).await);
    assert_eq!(failing.table, table);
    assert_eq!(worker.tables.has_passed(&failing).await, Ok(false));
    servers.set_throwing_view(None).await;
}
