//! What a look-up of claims returns, and what manifests have.

use std::time::Duration;

use sluice::batch::{Layout, ReadBy, StatementShape};
use sluice::clickhouse::WarehouseError;
use sluice::clickhouse::error_class::{ErrorClass, classify};
use sluice::ledger::protocol::ClaimStatus;
use sluice::ledger::{Claim, ManifestEntry, OBJECTS_TABLE};
use sluice::load::ports::LedgerStore;
use sluice::object::{ObjectParts, ObjectRef};
use sluice_core::fixtures;
use uuid::Uuid;

use crate::servers::Servers;
use crate::worker::busy;

const OTHER_PLAN: Uuid = Uuid::from_u128(7);

/// Returns an object of the bucket that need not exist, since nobody reads it.
fn object<S: Servers>(servers: &S, key: &str) -> ObjectRef {
    fixtures::object(servers.bucket(), key, "e")
}

pub(crate) async fn an_object_is_free_until_a_batch_claims_it<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let [one, other] = ["one", "other"].map(|key| object(servers, key));
    let statuses = worker.statuses(&[&one, &other]).await.unwrap();
    assert_eq!(statuses, [ClaimStatus::Free; 2]);
    let batch = worker.claim(std::slice::from_ref(&other)).await;
    let statuses = worker.statuses(&[&one, &other, &one]).await.unwrap();
    let free = ClaimStatus::Free;
    assert_eq!(statuses, [free, busy(batch, false), free]);
    let elsewhere = servers.connect_elsewhere("elsewhere");
    elsewhere.sees(&other, busy(batch, false)).await;
}

pub(crate) async fn the_claims_of_the_batch_itself_do_not_count<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let objects = ["one", "other"].map(|key| object(servers, key));
    let ids = objects.each_ref().map(|object| object.id());
    let batch = worker.claim(&objects).await;
    let own = worker.ledger.claim_statuses(&ids, Some(batch), &[]).await;
    assert_eq!(own, Ok(vec![ClaimStatus::Free; 2]));
    let second = worker.claim(&objects[..1]).await;
    let own = worker.ledger.claim_statuses(&ids, Some(batch), &[]).await;
    assert_eq!(own, Ok(vec![busy(second, false), ClaimStatus::Free]));
    let own = worker.ledger.claim_statuses(&ids[..1], Some(second), &[]);
    assert_eq!(own.await, Ok(vec![busy(batch, false)]));
    assert_eq!(
        worker.ledger.claim_statuses(&[], None, &[]).await,
        Ok(vec![])
    );
}

pub(crate) async fn the_objects_of_a_released_batch_are_free<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = object(servers, "released");
    let objects = std::slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    worker.ledger.release(batch, "a reason").await.unwrap();
    worker.sees(&object, ClaimStatus::Free).await;
    let second = worker.claim(objects).await;
    let ids = [object.id()];
    let own = worker.ledger.claim_statuses(&ids, Some(second), &[]).await;
    assert_eq!(own, Ok(vec![ClaimStatus::Free]));
    worker.sees(&object, busy(second, false)).await;
}

pub(crate) async fn the_objects_of_a_loaded_batch_are_loaded<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = object(servers, "loaded");
    let objects = std::slice::from_ref(&object);
    let batch = worker.claim(objects).await;
    worker.record(batch, 1).await.unwrap();
    worker.sees(&object, ClaimStatus::Loaded).await;
    let elsewhere = servers.connect_elsewhere("elsewhere");
    elsewhere.sees(&object, ClaimStatus::Loaded).await;
    // However many others claim it.
    worker.claim(objects).await;
    worker.sees(&object, ClaimStatus::Loaded).await;
}

pub(crate) async fn superseded_claims_do_not_count<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let [one, other] = ["one", "other"].map(|key| object(servers, key));
    let objects = [one.clone(), other.clone()];
    let batch = worker.claim(&objects).await;
    worker.record(batch, 1).await.unwrap();
    let ids = [one.id(), other.id()];
    let superseded = [(one.id(), batch)];
    let statuses = worker.ledger.claim_statuses(&ids, None, &superseded);
    let expected = [ClaimStatus::Free, ClaimStatus::Loaded];
    assert_eq!(statuses.await, Ok(expected.to_vec()));
    let second = worker.supersede(&objects[..1], &[batch]).await;
    let own = worker
        .ledger
        .claim_statuses(&ids[..1], Some(second), &superseded);
    assert_eq!(own.await, Ok(vec![ClaimStatus::Free]));
}

/// A single server shows what was written. A replica is waited for.
pub(crate) async fn a_ledger_that_hides_a_claim_is_an_error<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let [claimed, unclaimed] = ["claimed", "unclaimed"].map(|key| object(servers, key));
    let batch = worker.claim(std::slice::from_ref(&claimed)).await;
    let ids = [claimed.id(), unclaimed.id()];
    let statuses = worker.ledger.claim_statuses(&ids, Some(batch), &[]).await;
    let hidden = WarehouseError::Hidden {
        table: OBJECTS_TABLE,
        shown: 1,
        written: 2,
    };
    assert_eq!(classify(&hidden), ErrorClass::Halt);
    assert_eq!(statuses, Err(hidden));
}

pub(crate) async fn a_manifest_is_read_back_as_it_was_written<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let plain = object(servers, "plain");
    let full = ObjectRef::from(ObjectParts {
        size: None,
        version_id: Some("v1".to_owned()),
        sequencer: Some("00AF".to_owned()),
        region: Some("eu-west-1".to_owned()),
        ..object(servers, "a/full, 'quoted' \\ ü").into_parts()
    });
    let superseded = [worker.new_batch(), worker.new_batch()];
    let shape = StatementShape {
        plan: OTHER_PLAN,
        many_blocks: true,
        read_by: ReadBy::Stream,
    };
    let claims = [
        Claim::of(&plain),
        Claim {
            object: &full,
            supersedes: &superseded,
        },
    ];
    let batch = worker.claim_as(&claims, shape).await;
    // A claim whose answer was lost is repeated.
    let layout = Layout::default();
    let claim = worker.ledger.claim(batch, &claims, shape, &layout);
    claim.await.unwrap();

    let manifest = worker.ledger.manifest(batch).await.unwrap().unwrap();
    assert_eq!((manifest.shape, manifest.fenced), (shape, 0));
    assert_eq!(manifest.layout, Some(layout));
    assert!(manifest.age < Duration::from_secs(600), "{manifest:?}");
    let expected = [
        (
            // Sorted by key. An unknown size is one of 0, and the sequencer is not recorded.
            ObjectRef::from(ObjectParts {
                size: Some(0),
                sequencer: None,
                ..full.clone().into_parts()
            }),
            superseded.to_vec(),
        ),
        (plain.clone(), vec![]),
    ];
    let found = |entries: Vec<ManifestEntry>| -> Vec<_> {
        let entries = entries.into_iter();
        entries.map(|it| (it.object, it.supersedes)).collect()
    };
    assert_eq!(found(manifest.objects), expected);
    assert_eq!(found(worker.ledger.objects(batch).await.unwrap()), expected);
}

pub(crate) async fn a_batch_that_has_ended_needs_no_recovery<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let [released, loaded] = ["released", "loaded"].map(|key| object(servers, key));
    for (object, is_loaded) in [(released, false), (loaded, true)] {
        let batch = worker.claim(std::slice::from_ref(&object)).await;
        assert!(worker.ledger.manifest(batch).await.unwrap().is_some());
        assert_eq!(worker.ledger.has_ended(batch).await, Ok(false));
        match is_loaded {
            true => worker.record(batch, 1).await.unwrap(),
            false => worker.ledger.release(batch, "a reason").await.unwrap(),
        }
        assert!(worker.ledger.manifest(batch).await.unwrap().is_none());
        assert_eq!(worker.ledger.has_ended(batch).await, Ok(true));
        assert_eq!(worker.ledger.objects(batch).await.unwrap().len(), 1);
    }
    let unknown = worker.new_batch();
    assert!(worker.ledger.manifest(unknown).await.unwrap().is_none());
    assert_eq!(worker.ledger.has_ended(unknown).await, Ok(false));
    assert!(worker.ledger.objects(unknown).await.unwrap().is_empty());
}

pub(crate) async fn the_batches_that_were_claimed_later_are_counted<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let objects = ["one", "other"].map(|key| object(servers, key));
    let first = worker.claim(&objects).await;
    assert_eq!(worker.ledger.claimed_after(first).await, Ok(0));
    for later in 1..=2 {
        servers.tick().await;
        let batch = worker.claim(&objects).await;
        worker.ledger.release(batch, "a reason").await.unwrap();
        assert_eq!(worker.ledger.claimed_after(first).await, Ok(later));
        assert_eq!(worker.ledger.claimed_after(batch).await, Ok(0));
    }
}
