//! Runs cases one after the other on a cluster that they share.

use std::pin::Pin;
use std::sync::Arc;

use sluice_testkit::Requirement;
use tokio::task::{LocalSet, spawn_local};

use crate::database::Database;
use crate::real::Real;
use crate::servers::{STANDARD, Settings};

/// A case that can run on replicas.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) settings: Settings,
    pub(crate) run: fn(Real) -> Pin<Box<dyn Future<Output = ()>>>,
}

/// Runs the cases, if there can be replicas. The first one that fails ends the others, since it may
/// leave faults behind.
pub(crate) async fn run(cases: &[Case]) {
    if !Requirement::Cluster.is_met() {
        return;
    }
    let database = Arc::new(Database::on_replicas(&STANDARD).await);
    for case in cases {
        let servers = Real::on(Arc::clone(&database), case.name, &case.settings).await;
        let local = LocalSet::new();
        let outcome = local.run_until(async { spawn_local((case.run)(servers)).await });
        if let Err(error) = outcome.await {
            panic!("{}: {error}", case.name);
        }
    }
    database.remove().await;
}
