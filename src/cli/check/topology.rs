//! Checks that ClickHouse is set up so that loading each object once is proven.

use super::clickhouse::{NO_CLICKHOUSE, failed};
use super::report::Check;
use crate::cli::preflight::Preflight;
use crate::cli::topology::{ADVICE, Finding};
use crate::clickhouse::WarehouseError;
use crate::clickhouse::replicas::Replicas;
use crate::config::Unproven;

const REPLICATION: &str = "replication";
const SERVERS: &str = "servers";

/// Checks for set-ups that `run` refuses unless the configuration accepts them.
pub(super) async fn check(preflight: &Preflight, unproven: Unproven) -> [Check; 2] {
    let topology = preflight.topology();
    let (tables, servers) = match topology.replicas().await {
        Ok(Some(Replicas { cluster, count })) => (
            format!("replicated tables on the {count} servers of cluster {cluster}"),
            format!("every server that answers belongs to cluster {cluster}"),
        ),
        // An error is reported by the checks.
        Ok(None) | Err(_) => (
            "plain tables".to_owned(),
            match topology.looks_for_servers() {
                true => "one server answers".to_owned(),
                false => "not looked for, since `clickhouse.topology` is `single`".to_owned(),
            },
        ),
    };
    [
        judge(REPLICATION, &tables, topology.replication().await, unproven),
        judge(SERVERS, &servers, topology.servers().await, unproven),
    ]
}

pub(super) fn skipped() -> [Check; 2] {
    [REPLICATION, SERVERS].map(|name| Check::skip(name, NO_CLICKHOUSE))
}

fn judge(
    name: &'static str,
    well: &str,
    found: Result<Option<Finding>, WarehouseError>,
    unproven: Unproven,
) -> Check {
    match found {
        Ok(None) => Check::pass(name, well),
        Ok(Some(finding)) if unproven == Unproven::Refuse => {
            Check::fail(name, finding.risk(), ADVICE)
        }
        Ok(Some(finding)) => Check::warn(
            name,
            finding.risk(),
            "the risk is accepted by `clickhouse.unproven: accept`; after an outage, compare the \
             tables with the objects",
        ),
        Err(error) => failed(name, &error),
    }
}
