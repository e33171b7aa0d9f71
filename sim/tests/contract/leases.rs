//! Leases: when they expire, what renews and what ends them.

use sluice::ledger::drive::Fence;
use sluice::load::ports::LedgerStore;
use sluice_core::fixtures;
use sluice_testkit::wait_for;
use tokio::sync::oneshot;

use crate::servers::{BOUND, Servers};
use crate::worker::busy;

pub(crate) async fn a_lease_expires_unless_it_is_renewed<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = fixtures::object(servers.bucket(), "leased", "e");
    let batch = worker.claim(std::slice::from_ref(&object)).await;
    worker.sees(&object, busy(batch, true)).await;
    // A lease is short: on a busy machine, one can expire before it is seen.
    wait_for("a renewed lease", BOUND, async || {
        worker.ledger.renew(batch).await?;
        let statuses = worker.statuses(&[&object]).await?;
        Ok((statuses == [busy(batch, false)]).then_some(()))
    })
    .await;
    worker.sees(&object, busy(batch, true)).await;
}

pub(crate) async fn a_lease_is_renewed_during_work<S: Servers>(servers: &S) {
    let [worker, other] = ["worker", "other"].map(|name| servers.connect(name));
    let object = fixtures::object(servers.bucket(), "leased", "e");
    let batch = worker.claim(std::slice::from_ref(&object)).await;
    worker.sees(&object, busy(batch, true)).await;
    let (renewed, work) = oneshot::channel();
    let look = async {
        other.sees(&object, busy(batch, false)).await;
        renewed.send(()).unwrap();
    };
    let (done, ()) = tokio::join!(worker.ledger.leased(batch, work), look);
    assert_eq!(done, Ok(()));
    worker.sees(&object, busy(batch, true)).await;
}

pub(crate) async fn an_abandoned_batch_has_no_lease<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = fixtures::object(servers.bucket(), "abandoned", "e");
    let batch = worker.claim(std::slice::from_ref(&object)).await;
    let elsewhere = servers.connect_elsewhere("elsewhere");
    elsewhere.sees(&object, busy(batch, false)).await;
    servers.tick().await;
    worker.ledger.abandon(batch).await.unwrap();
    worker.sees(&object, busy(batch, true)).await;
    elsewhere.sees(&object, busy(batch, true)).await;
}

pub(crate) async fn a_fence_takes_the_lease_over<S: Servers>(servers: &S) {
    let worker = servers.connect("worker");
    let object = fixtures::object(servers.bucket(), "fenced", "e");
    let batch = worker.claim(std::slice::from_ref(&object)).await;
    servers.tick().await;
    worker.ledger.abandon(batch).await.unwrap();
    worker.sees(&object, busy(batch, true)).await;
    servers.tick().await;
    let other = servers.connect("other");
    assert_eq!(other.fence(batch, 1).await, Fence::Written);
    other.sees(&object, busy(batch, false)).await;
}
