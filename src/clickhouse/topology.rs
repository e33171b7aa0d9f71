//! Finds out which servers are behind the URL, and whether they replicate the tables.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use hyper::header::HOST;
use serde::Deserialize;
use tracing::debug;
use url::{Host, Url};

use super::pins::Pins;
use crate::clickhouse::{Access, Warehouse, WarehouseError, bounded};
use crate::sql;
use crate::util::http;
use crate::util::http::Connector;

/// The number of connections over which servers are looked for. A balancer that chooses one of two
/// servers at random hides the second in one of 32,768 cases.
const CONNECTIONS: usize = 16;

/// The number of these connections that are open at the same time. A balancer that prefers the
/// server with the fewest connections then has to use another.
const AT_A_TIME: usize = 4;

/// The largest number of addresses of one name that are queried.
const MAX_ADDRESSES: usize = 8;

/// The prefixes of the engines, of tables and of databases, that replicate.
const REPLICATING: [&str; 2] = ["Replicated", "Shared"];

/// The identity of a server: its UUID, and also its host and port, since a copied data directory
/// has the same UUID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Server {
    host: String,
    port: u16,
    uuid: String,
}

impl Server {
    pub fn uuid(&self) -> &str {
        &self.uuid
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} (UUID {})", self.host, self.port, self.uuid)
    }
}

const IDENTITY: &str =
    "SELECT hostName() AS host, tcpPort() AS port, toString(serverUUID()) AS uuid";

/// How many servers are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The search ends with the second.
    Second,
    All,
}

/// Returns the servers that respond at the URL. Queries every address of its name, over several new
/// connections.
///
/// An address that does not respond is ignored if another one does: `localhost` can have two
/// addresses, and the server can listen on only one.
///
/// # Errors
///
/// Fails if no server responds in time.
pub async fn servers(access: &Access, until: Found) -> Result<BTreeSet<Server>, WarehouseError> {
    let url = Url::parse(&access.url).map_err(unusable)?;
    let site = Site::of(access, &url)?;
    let addresses = addresses(&url, access.connect_timeout).await?;

    let mut found = BTreeSet::new();
    let answers = join_all(addresses.iter().map(|address| site.ask(*address))).await;
    let mut answering = Vec::new();
    for (address, answer) in addresses.iter().zip(&answers) {
        match answer {
            Ok(_) => answering.push(*address),
            Err(error) => debug!(%address, %error, "no response from an address of ClickHouse"),
        }
    }
    note(answers, &mut found)?;

    let left = CONNECTIONS.saturating_sub(addresses.len());
    let left: Vec<SocketAddr> = answering.iter().copied().cycle().take(left).collect();
    bounded(access.query_timeout, async {
        for some in left.chunks(AT_A_TIME) {
            if until == Found::Second && found.len() > 1 {
                break;
            }
            let answers = join_all(some.iter().map(|address| site.ask(*address))).await;
            note(answers, &mut found)?;
        }
        Ok(())
    })
    .await?;
    Ok(found)
}

/// Adds the servers that responded to `found`. Fails if there are only errors.
fn note(
    answers: Vec<Result<Server, WarehouseError>>,
    found: &mut BTreeSet<Server>,
) -> Result<(), WarehouseError> {
    let mut failure = None;
    let mut answered = false;
    for answer in answers {
        match answer {
            Ok(server) => {
                answered = true;
                found.insert(server);
            }
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if !answered => Err(error),
        _ => Ok(()),
    }
}

fn unusable(error: impl fmt::Display) -> WarehouseError {
    WarehouseError::Unknown(error.to_string())
}

/// Returns the addresses behind the URL.
async fn addresses(url: &Url, timeout: Duration) -> Result<Vec<SocketAddr>, WarehouseError> {
    let port = url.port_or_known_default().unwrap_or_default();
    let name = match url.host() {
        Some(Host::Domain(name)) => name,
        Some(Host::Ipv4(address)) => return Ok(vec![(address, port).into()]),
        Some(Host::Ipv6(address)) => return Ok(vec![(address, port).into()]),
        None => return Err(unusable("the URL has no host")),
    };
    let found = bounded(timeout, async {
        let found = tokio::net::lookup_host((name, port)).await;
        found.map_err(|error| unusable(format!("failed to resolve {name}: {error}")))
    });
    let mut addresses: Vec<SocketAddr> = found.await?.collect();
    addresses.sort();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    match addresses.is_empty() {
        true => Err(unusable(format!("{name} has no address"))),
        false => Ok(addresses),
    }
}

/// What all connections have in common: each goes to one address, with the host name of the URL.
struct Site<'a> {
    access: &'a Access,
    url: &'a Url,
    connector: Connector,
    pins: Pins,
}

impl<'a> Site<'a> {
    fn of(access: &'a Access, url: &'a Url) -> Result<Self, WarehouseError> {
        let connector = http::connector(
            access.connect_timeout,
            access.ca_file.as_deref(),
            url.host_str(),
        );
        Ok(Self {
            access,
            url,
            connector: connector.map_err(unusable)?,
            pins: Pins::default(),
        })
    }

    async fn ask(&self, address: SocketAddr) -> Result<Server, WarehouseError> {
        let mut url = self.url.clone();
        // This fails only for URLs without a host.
        url.set_ip_host(address.ip())
            .map_err(|()| unusable("the host of the URL cannot be replaced by an address"))?;
        let (connector, pins) = (self.connector.clone(), self.pins.clone());
        let mut warehouse = Warehouse::over(connector, self.access, url.as_str(), pins);
        warehouse.client = warehouse
            .client
            .with_header(HOST.as_str(), self.authority());
        let rows: Vec<Server> = warehouse.rows(IDENTITY).await?;
        let server = rows.into_iter().next();
        server.ok_or_else(|| unusable("the query for the server's identity returned no row"))
    }

    /// Returns host and port as in the URL.
    fn authority(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }
}

impl Warehouse {
    /// Returns the first of these tables whose engine replicates it, and that engine.
    pub async fn replicated_table(
        &self,
        tables: &[String],
    ) -> Result<Option<(String, String)>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            name: String,
            engine: String,
        }
        let sql = format!(
            "SELECT name, engine FROM system.tables \
             WHERE database = {} AND name IN ({}) AND {} ORDER BY name LIMIT 1",
            sql::string(self.database()),
            sql::strings(tables),
            replicating("engine"),
        );
        let rows: Vec<Row> = self.rows(&sql).await?;
        let first = rows.into_iter().next();
        Ok(first.map(|row| (row.name, row.engine)))
    }

    /// Returns the engine of the database if it replicates.
    pub async fn replicated_database(&self) -> Result<Option<String>, WarehouseError> {
        #[derive(Deserialize)]
        struct Row {
            engine: String,
        }
        let sql = format!(
            "SELECT engine FROM system.databases WHERE name = {} AND {}",
            sql::string(self.database()),
            replicating("engine"),
        );
        let rows: Vec<Row> = self.rows(&sql).await?;
        Ok(rows.into_iter().next().map(|row| row.engine))
    }

    /// Returns whether the server belongs to ClickHouse Cloud.
    pub async fn is_cloud(&self) -> Result<bool, WarehouseError> {
        let sql = "SELECT 1 AS found FROM system.settings \
                   WHERE name = 'cloud_mode' AND value IN ('1', 'true')";
        let found: Vec<serde::de::IgnoredAny> = self.rows(sql).await?;
        Ok(!found.is_empty())
    }
}

fn replicating(column: &str) -> String {
    let conditions =
        REPLICATING.map(|family| format!("startsWith({column}, {})", sql::string(family)));
    format!("({})", conditions.join(" OR "))
}
