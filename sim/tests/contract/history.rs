//! What the ledger says about objects that are loaded.

use std::collections::BTreeMap;
use std::slice;
use std::time::Duration;

use sluice::batch::BatchId;
use sluice::ledger::Claims;
use sluice::load::ports::LedgerStore;
use sluice::object::ObjectId;
use sluice_core::fixtures;

use crate::servers::Servers;

const HOUR: Duration = Duration::from_secs(3_600);

fn sorted(claims: Claims) -> BTreeMap<ObjectId, Vec<BatchId>> {
    let claims = claims.into_iter().map(|(object, mut batches)| {
        batches.sort_unstable();
        (object, batches)
    });
    claims.collect()
}

pub(crate) async fn the_batches_that_have_loaded_an_object_are_known<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let [twice, once, never] =
        ["twice", "once", "never"].map(|key| fixtures::object(servers.bucket(), key, "e"));
    let first = worker.claim(&[twice.clone(), once.clone()]).await;
    worker.record(first, 1).await.unwrap();
    let second = worker.supersede(slice::from_ref(&twice), &[first]).await;
    worker.record(second, 1).await.unwrap();
    worker.claim(slice::from_ref(&never)).await;
    let released = worker.claim(slice::from_ref(&once)).await;
    worker.ledger.release(released, "a reason").await.unwrap();

    let ids = [twice.id(), once.id(), never.id()];
    let now = servers.env().wall_clock();
    let before = worker.ledger.loaded_claims(&ids, now + HOUR).await;
    let mut of_twice = vec![first, second];
    of_twice.sort_unstable();
    let expected = [(twice.id(), of_twice), (once.id(), vec![first])];
    assert_eq!(sorted(before.unwrap()), BTreeMap::from(expected));
    let before = worker.ledger.loaded_claims(&ids, now - HOUR).await;
    assert_eq!(before, Ok(Claims::new()));
    let none = worker.ledger.loaded_claims(&[], now + HOUR).await;
    assert_eq!(none, Ok(Claims::new()));
}

/// The last claim counts.
pub(crate) async fn objects_loaded_again_since_a_time_are_left_out<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let [again, once] = ["again", "once"].map(|key| fixtures::object(servers.bucket(), key, "e"));
    let first = worker.claim(&[again.clone(), once.clone()]).await;
    worker.record(first, 1).await.unwrap();
    servers.tick().await;
    let between = servers.env().wall_clock();
    servers.tick().await;
    let second = worker.supersede(slice::from_ref(&again), &[first]).await;
    worker.record(second, 1).await.unwrap();
    let ids = [again.id(), once.id()];
    let claims = worker.ledger.loaded_claims(&ids, between).await;
    let expected = [(once.id(), vec![first])];
    assert_eq!(claims, Ok(Claims::from(expected)));
}

pub(crate) async fn the_latest_loaded_objects_come_first<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = |key: &str| fixtures::object(servers.bucket(), key, "e");
    let [first, second, open] = ["first", "second", "open"].map(object);
    for object in [&first, &second] {
        let batch = worker.claim(slice::from_ref(object)).await;
        worker.record(batch, 1).await.unwrap();
        servers.tick().await;
    }
    worker.claim(slice::from_ref(&open)).await;
    let ledger = &worker.ledger;
    let latest = ledger.latest_loaded(&open, true, 10).await;
    assert_eq!(latest, Ok(vec![second.clone(), first.clone()]));
    let latest = ledger.latest_loaded(&open, true, 1).await;
    assert_eq!(latest, Ok(vec![second.clone()]));
    // Another version under the same key does not count.
    let version = fixtures::object(servers.bucket(), "second", "other");
    let latest = ledger.latest_loaded(&version, true, 10).await;
    assert_eq!(latest, Ok(vec![first.clone()]));
    let elsewhere = fixtures::object("another-bucket", "open", "e");
    let latest = ledger.latest_loaded(&elsewhere, false, 1).await;
    assert_eq!(latest, Ok(vec![second]));
    let own = ledger.latest_loaded(&open, false, 10).await.unwrap();
    assert!(own.iter().all(|it| it.bucket != servers.bucket()));
}
