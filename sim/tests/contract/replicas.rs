//! Replicas: each shows at its own time what was written through another, unless it is read after a
//! barrier.

use std::slice;
use std::time::SystemTime;

use sluice::batch::ReadBy;
use sluice::clickhouse::WarehouseError;
use sluice::clickhouse::error_class::ErrorClass;
use sluice::ledger::protocol::ClaimStatus;
use sluice::ledger::{Stopped, until_stopped};
use sluice::load::ports::{BatchTables, LedgerStore, Rows};
use sluice_core::fixtures;
use sluice_testkit::wait_for;
use tokio::join;

use crate::inserts::{OF_ALL_KINDS, of_all_kinds};
use crate::servers::{BOUND, Servers, TableRows};
use crate::words::{VIDEO, VIDEOS};
use crate::worker::{busy, eventually, failed};

pub(crate) async fn a_read_after_a_barrier_sees_what_others_wrote<S: Servers>(servers: &S) {
    let writer = servers.connect("writer");
    let reader = servers.connect_elsewhere("reader");
    let (ledger, tables) = (&reader.ledger, &reader.tables);
    // Often enough that a server that lags is read.
    for number in 0..5 {
        let object = servers
            .put(&format!("object-{number}"), &OF_ALL_KINDS)
            .await;
        let objects = slice::from_ref(&object);
        let batch = writer.claim(objects).await;
        writer.insert(batch, 1, objects).await.unwrap();
        let barrier = ledger.barrier().await.unwrap();
        let after = barrier.as_ref();
        assert!(after.is_some());
        assert_eq!(tables.has_any(batch, after).await, Ok(true));
        let contents = tables.contents(batch, after).await.unwrap();
        assert!(contents.are_proof(), "{contents:?}");
        let rows = Rows::Of(batch);
        assert_eq!(tables.has_rows(VIDEOS, rows, after).await, Ok(true));

        writer.record(batch, 1).await.unwrap();
        assert_eq!(ledger.has_ended(batch).await, Ok(true));
        assert!(ledger.manifest(batch).await.unwrap().is_none());
    }
}

pub(crate) async fn a_claim_sees_the_earlier_claims_of_others<S: Servers>(servers: &S) {
    let first = servers.connect("first");
    let second = servers.connect_elsewhere("second");
    for number in 0..5 {
        let key = format!("object-{number}");
        let object = fixtures::object(servers.bucket(), &key, "e");
        let objects = slice::from_ref(&object);
        let ids = [object.id()];
        let earlier = first.claim(objects).await;
        let later = second.claim(objects).await;
        let statuses = second.ledger.claim_statuses(&ids, Some(later), &[]).await;
        assert_eq!(statuses, Ok(vec![busy(earlier, false)]));
        let statuses = first.ledger.claim_statuses(&ids, Some(later), &[]).await;
        assert_eq!(statuses, Ok(vec![busy(earlier, false)]));
    }
}

pub(crate) async fn a_claim_that_nobody_has_made_is_waited_for_in_vain<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = fixtures::object(servers.bucket(), "unclaimed", "e");
    let (ids, batch) = ([object.id()], worker.new_batch());
    let statuses = worker.ledger.claim_statuses(&ids, Some(batch), &[]).await;
    let error = failed(statuses, ErrorClass::Halt);
    assert!(matches!(error, WarehouseError::Behind { .. }), "{error:?}");
}

pub(crate) async fn a_server_that_lacks_rows_says_so<S: Servers>(servers: &S) {
    let writer = servers.connect("writer");
    let reader = servers.connect_elsewhere("reader");
    let (ledger, tables) = (&reader.ledger, &reader.tables);
    let last = servers.replicas() - 1;
    servers.set_lagging(last, true).await;
    let object = servers.put("object", &OF_ALL_KINDS).await;
    let batch = writer.load(slice::from_ref(&object)).await;
    // Without a barrier, it reads what it has.
    assert_eq!(tables.has_any(batch, None).await, Ok(false));
    let statuses = reader.statuses(&[&object]).await;
    assert_eq!(statuses, Ok(vec![ClaimStatus::Free]));
    let barrier = ledger.barrier().await.unwrap();
    let (of_tables, of_ledger) = join!(
        tables.has_any(batch, barrier.as_ref()),
        ledger.has_ended(batch),
    );
    // Other batches can be loaded meanwhile, unless it is the ledger that lags.
    for (answer, class) in [
        (of_tables, ErrorClass::Retry),
        (of_ledger, ErrorClass::Halt),
    ] {
        let error = failed(answer, class);
        assert!(matches!(error, WarehouseError::Behind { .. }), "{error:?}");
    }
    // The others do not depend on it.
    assert_eq!(writer.ledger.has_ended(batch).await, Ok(true));

    servers.set_lagging(last, false).await;
    eventually(true, async || ledger.has_ended(batch).await).await;
    eventually(true, async || tables.has_any(batch, barrier.as_ref()).await).await;
    reader.sees(&object, ClaimStatus::Loaded).await;
}

pub(crate) async fn a_batch_is_stopped_on_every_server<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let other = servers.connect_elsewhere("other");
    let object = servers.put("held", &OF_ALL_KINDS).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    servers.hold_reads(true);
    let stop = async {
        wait_for("the insert", BOUND, async || {
            Ok((servers.running(batch).await == 1).then_some(()))
        })
        .await;
        other.fence(batch, 1).await;
        let release = async {
            servers.wait_until_killed(batch).await;
            servers.hold_reads(false);
        };
        let (stopped, ()) = join!(until_stopped(|| other.ledger.stop(batch)), release);
        stopped.unwrap();
        assert_eq!(servers.running(batch).await, 0);
    };
    let (inserted, ()) = join!(worker.insert(batch, 1, objects), stop);
    let error = failed(inserted, ErrorClass::Retry);
    assert_eq!(error.code(), Some(394), "{error}");
    assert_eq!(servers.rows_of(batch).await, TableRows::new());
    // Every server shows the fence.
    for worker in [&worker, &other] {
        failed(worker.insert(batch, 1, objects).await, ErrorClass::Fenced);
        failed(worker.record(batch, 1).await, ErrorClass::Fenced);
    }
    assert_eq!(other.ledger.stop(batch).await, Ok(Stopped::Yes));
    other.insert(batch, 2, objects).await.unwrap();
    assert_eq!(servers.rows_of(batch).await, of_all_kinds());
    other.record(batch, 2).await.unwrap();
}

pub(crate) async fn statements_do_not_start_after_their_deadline<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = servers.put("late", &[VIDEO]).await;
    let objects = slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    let permit = worker.ledger.permit(batch, 1).await.unwrap();
    let deadline = permit.deadline_millis().expect("replicas have deadlines");
    let shape = worker.shape(objects, ReadBy::S3);
    let guard = worker.ledger.guard(&permit);
    let statements = worker.statements(batch, objects, shape, &guard).await;
    wait_for("the deadline", BOUND, async || {
        let now = servers.env().wall_clock();
        let now = now.duration_since(SystemTime::UNIX_EPOCH)?;
        let has_passed = i64::try_from(now.as_millis())? > deadline;
        Ok((has_passed && !permit.is_valid()).then_some(()))
    })
    .await;
    for statement in statements.unwrap() {
        let late = worker.execute(batch, &statement).await;
        failed(late, ErrorClass::Fenced);
    }
    let record = worker.ledger.record(&permit, 1, 1, "").await;
    failed(record, ErrorClass::Fenced);
    assert_eq!(servers.rows_of(batch).await, TableRows::new());

    // A new lease permits it again. On a busy machine, one can expire before it is used.
    wait_for("an insert in time", BOUND, async || {
        Ok(Some(worker.insert(batch, 1, objects).await?))
    })
    .await;
    assert!(worker.is_complete(batch, false).await);
}

pub(crate) async fn a_fenced_attempt_gets_no_time<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let other = servers.connect_elsewhere("other");
    let object = fixtures::object(servers.bucket(), "fenced", "e");
    let batch = worker.claim(slice::from_ref(&object)).await;
    let permit = worker.ledger.permit(batch, 2).await.unwrap();
    assert!(permit.is_valid() && permit.deadline_millis() > Some(0));
    other.fence(batch, 2).await;
    let permit = worker.ledger.permit(batch, 2).await.unwrap();
    assert!(!permit.is_valid());
    assert_eq!(permit.deadline_millis(), Some(0));
    failed(
        worker.ledger.record(&permit, 1, 1, "").await,
        ErrorClass::Fenced,
    );
}

/// Its statements may be running until their time limit has passed.
pub(crate) async fn a_batch_is_not_stopped_while_a_server_is_down<S: Servers>(servers: &S) {
    if !servers.can_crash() {
        return;
    }
    let worker = servers.connect("worker");
    let object = fixtures::object(servers.bucket(), "object", "e");
    let batch = worker.claim(slice::from_ref(&object)).await;
    let last = servers.replicas() - 1;
    servers.crash(last).await;
    worker.fence(batch, 1).await;
    let stopped = worker.ledger.stop(batch).await.unwrap();
    let is_waiting = matches!(&stopped, Stopped::After { remaining, .. } if !remaining.is_zero());
    assert!(is_waiting, "{stopped:?}");
    servers.restart(last).await;
    eventually(Stopped::Yes, async || worker.ledger.stop(batch).await).await;
}
