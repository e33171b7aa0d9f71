//! Inserts whose objects the worker reads.

use std::slice;

use futures_util::stream;
use sluice::batch::{BatchId, ReadBy};
use sluice::clickhouse::WarehouseError;
use sluice::clickhouse::error_class::ErrorClass;
use sluice::load::ports::{BatchTables, LedgerStore};
use sluice::object::ObjectRef;
use sluice::s3::StoreError;
use sluice::statements::framing::Framer;
use sluice::statements::insert::Strategy;
use sluice_testkit::wait_for;

use crate::inserts::{OF_ALL_KINDS, of_all_kinds};
use crate::servers::{BOUND, INSERT_TIMEOUT, Servers, TableRows};
use crate::words::{BLANK, COUNTS, VIDEO, VIDEOS, lines};
use crate::worker::{Answer, Worker, failed};

type Piece = Result<Vec<u8>, StoreError>;

/// Returns the body of an insert of objects with these contents, in pieces of 7 bytes.
fn body(contents: &[Vec<u8>]) -> Vec<Piece> {
    let mut framed = Vec::new();
    for (index, content) in contents.iter().enumerate() {
        let mut framer = Framer::new(index);
        framer.frame(content, &mut framed);
        framer.end(&mut framed);
    }
    framed.chunks(7).map(|piece| Ok(piece.to_vec())).collect()
}

/// Runs the statements of an attempt. Each is followed by this body.
async fn insert<S: Servers>(
    worker: &Worker<S>,
    (batch, attempt): (BatchId, u32),
    objects: &[ObjectRef],
    body: &[Piece],
) -> Answer<()> {
    let shape = worker.shape(objects, ReadBy::Stream);
    for statement in worker.permitted(batch, attempt, objects, shape).await? {
        let (pieces, query_id) = (stream::iter(body.to_vec()), worker.query_id(batch));
        let insert = worker
            .tables
            .stream(&statement, pieces, &query_id, INSERT_TIMEOUT);
        insert.await?;
    }
    Ok(())
}

pub(crate) async fn a_streamed_insert_writes_the_same_rows<S: Servers>(servers: &S) {
    let one = servers.put("one", &OF_ALL_KINDS).await;
    let empty = servers.put("two-empty", &[]).await;
    let last = servers.put("without-line-break", &[VIDEO]).await;
    let objects = [one, empty, last];
    let contents = [lines(&OF_ALL_KINDS), Vec::new(), VIDEO.into()];
    let mut expected = of_all_kinds();
    // The last object has one more.
    for table in [VIDEOS, COUNTS] {
        *expected.get_mut(table).unwrap() += 1;
    }
    for strategy in [Strategy::SinglePass, Strategy::PerType] {
        let worker = servers.connect_with("worker", 0, strategy);
        let batch = worker.claim(&objects).await;
        let pieces = body(&contents);
        insert(&worker, (batch, 1), &objects, &pieces)
            .await
            .unwrap();
        assert_eq!(servers.rows_of(batch).await, expected);
        assert!(worker.is_complete(batch, false).await);
        insert(&worker, (batch, 2), &objects, &pieces)
            .await
            .unwrap();
        assert_eq!(servers.rows_of(batch).await, expected);
        worker.record(batch, 2).await.unwrap();
        let late = insert(&worker, (batch, 3), &objects, &pieces).await;
        failed(late, ErrorClass::Fenced);
    }
}

pub(crate) async fn a_body_that_ends_in_an_error_writes_nothing<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("broken-off", &OF_ALL_KINDS).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    let whole = body(&[lines(&OF_ALL_KINDS)]);
    for (error, class) in [
        (
            StoreError::Unavailable {
                text: "the connection broke".to_owned(),
                path: object.path(),
            },
            ErrorClass::Retry,
        ),
        (
            StoreError::Content {
                text: "cut short".to_owned(),
                path: object.path(),
            },
            ErrorClass::ObjectFault,
        ),
    ] {
        let mut broken = whole[..whole.len() / 2].to_vec();
        broken.push(Err(error.clone()));
        let answer = insert(&worker, (batch, 1), objects, &broken).await;
        let found = failed(answer, class);
        assert_eq!(found, WarehouseError::from(error));
        wait_for("the end of the statement", BOUND, async || {
            Ok((servers.running(batch).await == 0).then_some(()))
        })
        .await;
        assert_eq!(servers.rows_of(batch).await, TableRows::new());
    }
    insert(&worker, (batch, 1), objects, &whole).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
}

pub(crate) async fn a_fenced_attempt_cannot_stream<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("fenced", &[VIDEO, BLANK]).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    let pieces = body(&[lines(&[VIDEO, BLANK])]);
    worker.fence(batch, 1).await;
    let fenced = insert(&worker, (batch, 1), objects, &pieces).await;
    failed(fenced, ErrorClass::Fenced);
    worker.ledger.release(batch, "a reason").await.unwrap();
    let released = insert(&worker, (batch, 2), objects, &pieces).await;
    failed(released, ErrorClass::Fenced);
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
}
