//! What Sluice connects to, and the proxies in front of it.

use std::slice;
use std::sync::Arc;

use anyhow::Result;
use fastrand::Rng;
use sluice_testkit::balancer::Balancer;
use sluice_testkit::proxy::Proxy;
use sluice_testkit::xapi::Bundle;
use sluice_testkit::{Aws, ClickHouse, Cluster, Site, SiteOptions, exact};
use tokio::task::spawn_blocking;

use super::{MAX_RECEIVE_COUNT, VISIBILITY};

/// ClickHouse: one server, or replicas of each other.
pub(super) enum Servers {
    Single(Box<ClickHouse>),
    Cluster(Cluster),
}

impl Servers {
    pub(super) fn all(&self) -> &[ClickHouse] {
        match self {
            Self::Single(server) => slice::from_ref(&**server),
            Self::Cluster(cluster) => cluster.servers(),
        }
    }

    pub(super) fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Single(_) => None,
            Self::Cluster(cluster) => Some(cluster),
        }
    }
}

/// The services that Sluice connects to, and the proxies in front of them.
pub(super) struct World {
    pub(super) servers: Arc<Servers>,
    pub(super) aws: Aws,
    pub(super) site: Site,
    /// The proxies between Sluice and ClickHouse. If there are several, each is in front of another
    /// server.
    pub(super) to_clickhouse: Vec<Proxy>,
    /// The proxy between ClickHouse and S3.
    pub(super) to_s3: Proxy,
    /// The proxy between Sluice and SQS.
    pub(super) to_sqs: Proxy,
    /// What is between the proxy and the servers of a cluster, unless each has its own proxy.
    balancer: Option<Balancer>,
}

impl World {
    /// Starts everything: with a number of replicas, a cluster.
    pub(super) async fn start(replicas: Option<usize>, rng: &mut Rng) -> Result<Self> {
        let servers = spawn_blocking(move || match replicas {
            None => ClickHouse::start().map(|server| Servers::Single(Box::new(server))),
            Some(replicas) => Cluster::start(1, replicas).map(Servers::Cluster),
        });
        let servers = Arc::new(servers.await??);
        let aws = spawn_blocking(Aws::start).await??;
        let options = SiteOptions {
            max_receive_count: MAX_RECEIVE_COUNT,
            visibility_timeout: VISIBILITY,
        };
        let site = aws.site("chaos", options).await?;
        let balancer = match servers.cluster() {
            Some(cluster) if rng.bool() => Some(Balancer::start(&cluster.urls()).await?),
            _ => None,
        };
        let upstreams = match &balancer {
            Some(balancer) => vec![balancer.url()],
            None => servers.all().iter().map(|it| it.url().to_owned()).collect(),
        };
        let mut to_clickhouse = Vec::new();
        for upstream in upstreams {
            to_clickhouse.push(Proxy::start(&upstream).await?);
        }
        Ok(Self {
            to_clickhouse,
            to_s3: Proxy::start(aws.endpoint()).await?,
            to_sqs: Proxy::start(aws.endpoint()).await?,
            servers,
            aws,
            site,
            balancer,
        })
    }

    /// Returns how the workers use a cluster.
    pub(super) fn route(&self) -> Option<&'static str> {
        self.servers.cluster()?;
        Some(match self.balancer {
            Some(_) => "a balancer gives each connection to the next server",
            None => "each worker has its own server",
        })
    }

    /// Returns the proxies of each connection.
    pub(super) fn connections(&self) -> [(&'static str, &[Proxy]); 3] {
        [
            ("Sluice to ClickHouse", self.to_clickhouse.as_slice()),
            ("ClickHouse to S3", slice::from_ref(&self.to_s3)),
            ("Sluice to SQS", slice::from_ref(&self.to_sqs)),
        ]
    }

    fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.connections()
            .into_iter()
            .flat_map(|(_, proxies)| proxies)
    }

    /// Stops the faults of all connections.
    pub(super) fn heal(&self) {
        for proxy in self.proxies() {
            proxy.heal();
        }
    }

    /// Returns the number of requests that will still reach their servers late.
    pub(super) fn late(&self) -> usize {
        self.proxies().map(Proxy::late).sum()
    }

    /// Stops the merges that would hide rows that are loaded twice.
    pub(super) async fn keep_duplicates(&self) -> Result<()> {
        exact::keep_duplicates(self.servers.all(), &self.site).await
    }

    /// Returns the differences in the rows of these objects, on every server.
    pub(super) async fn differences(&self, expected: &[Bundle]) -> Result<String> {
        exact::differences(self.servers.all(), &self.site, expected).await
    }
}
