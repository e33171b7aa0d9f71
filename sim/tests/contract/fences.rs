//! Fences, and what the guards of statements refuse.

use std::slice;

use sluice::clickhouse::error_class::ErrorClass;
use sluice::ledger::drive::Fence;
use sluice::ledger::protocol::ClaimStatus;
use sluice::load::ports::LedgerStore;
use sluice_core::fixtures;

use crate::servers::{Servers, TableRows, rows};
use crate::words::{COUNTS, VIDEO, VIDEOS};
use crate::worker::{busy, failed};

pub(crate) async fn the_first_run_to_fence_an_attempt_takes_it_over<S: Servers>(servers: &S) {
    let first = servers.connect("first");
    let second = servers.connect_elsewhere("second");
    let object = fixtures::object(servers.bucket(), "fenced", "e");
    let batch = first.claim(slice::from_ref(&object)).await;
    assert_eq!(first.fence(batch, 1).await, Fence::Written);
    // As a run does whose response was lost.
    assert_eq!(first.fence(batch, 1).await, Fence::Written);
    assert_eq!(second.fence(batch, 1).await, Fence::TakenOver);
    assert_eq!(second.fence(batch, 2).await, Fence::Written);
    assert_eq!(first.fence(batch, 2).await, Fence::TakenOver);
}

/// Neither can know which fence the other has seen.
pub(crate) async fn a_fence_that_is_repeated_after_another_is_written_by_nobody<S: Servers>(
    servers: &S,
) {
    let first = servers.connect("first");
    let second = servers.connect_elsewhere("second");
    let object = fixtures::object(servers.bucket(), "fenced", "e");
    let batch = first.claim(slice::from_ref(&object)).await;
    first.fence(batch, 1).await;
    second.fence(batch, 1).await;
    assert_eq!(first.fence(batch, 1).await, Fence::TakenOver);
    assert_eq!(second.fence(batch, 1).await, Fence::TakenOver);
    assert_eq!(second.fence(batch, 2).await, Fence::Written);
}

/// Two loads of a worker can recover the same batch.
pub(crate) async fn runs_of_one_worker_are_told_apart<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = fixtures::object(servers.bucket(), "fenced", "e");
    let batch = worker.claim(slice::from_ref(&object)).await;
    let (one, other) = (worker.new_run(), worker.new_run());
    let fence = async |attempt, run| worker.ledger.fence(batch, attempt, run).await;
    assert_eq!(fence(1, one).await, Ok(Fence::Written));
    assert_eq!(worker.ledger.is_undisputed(batch, one).await, Ok(true));
    assert_eq!(fence(1, other).await, Ok(Fence::TakenOver));
    let is_undisputed = !servers.is_replicated();
    let seen = worker.ledger.is_undisputed(batch, one).await;
    assert_eq!(seen, Ok(is_undisputed));
}

pub(crate) async fn a_fence_covers_the_attempts_before_it<S: Servers>(servers: &S) {
    let first = servers.connect("first");
    let second = servers.connect_elsewhere("second");
    let object = fixtures::object(servers.bucket(), "fenced", "e");
    let batch = first.claim(slice::from_ref(&object)).await;
    assert_eq!(first.fence(batch, 3).await, Fence::Written);
    servers.tick().await;
    assert_eq!(second.fence(batch, 2).await, Fence::TakenOver);
    let manifest = first.ledger.manifest(batch).await.unwrap().unwrap();
    assert_eq!(manifest.fenced, 3);
    assert_eq!(second.fence(batch, 4).await, Fence::Written);
    let manifest = first.ledger.manifest(batch).await.unwrap().unwrap();
    assert_eq!(manifest.fenced, 4);
}

/// On one server, every statement of another worker sees the fence, so that nothing is disputed.
pub(crate) async fn the_fences_of_others_dispute_a_batch_on_replicas<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let other = servers.connect_elsewhere("other");
    let object = fixtures::object(servers.bucket(), "disputed", "e");
    let batch = worker.claim(slice::from_ref(&object)).await;
    assert!(worker.is_undisputed(batch).await);
    worker.fence(batch, 1).await;
    assert!(worker.is_undisputed(batch).await);
    other.fence(batch, 1).await;
    let is_undisputed = !servers.is_replicated();
    assert_eq!(worker.is_undisputed(batch).await, is_undisputed);
}

pub(crate) async fn a_fenced_attempt_can_neither_insert_nor_record<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("fenced", &[VIDEO]).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    worker.fence(batch, 1).await;
    failed(worker.insert(batch, 1, objects).await, ErrorClass::Fenced);
    failed(worker.record(batch, 1).await, ErrorClass::Fenced);
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
    worker.sees(&object, busy(batch, false)).await;

    worker.insert(batch, 2, objects).await.unwrap();
    worker.record(batch, 2).await.unwrap();
    let expected = rows([(VIDEOS, 1), (COUNTS, 1)]);
    assert_eq!(servers.rows_of(batch).await, expected);
    worker.sees(&object, ClaimStatus::Loaded).await;
}

pub(crate) async fn a_released_batch_can_neither_insert_nor_be_recorded<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("released", &[VIDEO]).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    worker.ledger.release(batch, "a reason").await.unwrap();
    failed(worker.insert(batch, 1, objects).await, ErrorClass::Fenced);
    failed(worker.record(batch, 1).await, ErrorClass::Fenced);
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
    worker.sees(&object, ClaimStatus::Free).await;
}

pub(crate) async fn a_loaded_batch_can_be_recorded_again_but_not_inserted<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("loaded", &[VIDEO]).await;
    let objects = slice::from_ref(&object);
    let batch = worker.load(objects).await;
    failed(worker.insert(batch, 1, objects).await, ErrorClass::Fenced);
    worker.record(batch, 1).await.unwrap();
    let expected = rows([(VIDEOS, 1), (COUNTS, 1)]);
    assert_eq!(servers.rows_of(batch).await, expected);
    worker.sees(&object, ClaimStatus::Loaded).await;
}
