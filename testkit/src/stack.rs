//! ClickHouse and AWS together.

use std::env;
use std::slice;
use std::sync::OnceLock;

use anyhow::Result;

use crate::clients::User;
use crate::{Aws, ClickHouse, Cluster, account};

/// The environment variable with the address of a ClickHouse that tests use instead of starting
/// one.
pub const CLICKHOUSE_URL_VARIABLE: &str = "SLUICE_TEST_CLICKHOUSE_URL";
/// The environment variable with the user of that ClickHouse, `default` if it is not set.
pub const CLICKHOUSE_USER_VARIABLE: &str = "SLUICE_TEST_CLICKHOUSE_USER";
/// The environment variable with the password of that user.
pub const CLICKHOUSE_PASSWORD_VARIABLE: &str = "SLUICE_TEST_CLICKHOUSE_PASSWORD";
/// The environment variable with an endpoint for S3 and SQS that tests use instead of starting one.
pub const AWS_ENDPOINT_VARIABLE: &str = "SLUICE_TEST_AWS_ENDPOINT";
/// The environment variable with the addresses of replicas that tests of faults use instead of one
/// ClickHouse: URLs separated by commas. Their cluster has one shard, and the name
/// [`Cluster::NAME`].
pub const REPLICAS_VARIABLE: &str = "SLUICE_TEST_CLICKHOUSE_REPLICAS";

fn user() -> User {
    let default = User::default();
    User {
        name: env::var(CLICKHOUSE_USER_VARIABLE).unwrap_or(default.name),
        password: env::var(CLICKHOUSE_PASSWORD_VARIABLE).unwrap_or(default.password),
    }
}

/// The services that Sluice connects to.
#[derive(Debug)]
pub struct Stack {
    /// The database.
    pub clickhouse: ClickHouse,
    /// S3 and SQS.
    pub aws: Aws,
    /// The replicas that [`REPLICAS_VARIABLE`] names.
    pub replicas: Option<Cluster>,
}

impl Stack {
    /// Starts both servers.
    ///
    /// # Errors
    ///
    /// Fails if a server cannot be installed or started.
    pub fn start() -> Result<Self> {
        Ok(Self {
            clickhouse: ClickHouse::start()?,
            aws: Aws::start()?,
            replicas: None,
        })
    }

    /// Returns the stack of the process, which the first call starts. A server named by
    /// [`CLICKHOUSE_URL_VARIABLE`] or [`AWS_ENDPOINT_VARIABLE`], or the account that
    /// [`account::ACCOUNT_VARIABLE`] requests, is used instead of a new one. It
    /// serves many tests at once: use a separate [`crate::Site`] in each, and do not kill the
    /// servers.
    ///
    /// # Panics
    ///
    /// Panics with the reason if the stack cannot start.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Stack> = OnceLock::new();
        SHARED.get_or_init(|| match Self::connect_or_start() {
            Ok(stack) => stack,
            Err(error) => panic!("the test stack cannot start: {error:#}"),
        })
    }

    /// Returns the servers that share the tables of a test: the replicas that [`REPLICAS_VARIABLE`]
    /// names, or else the one database.
    pub fn servers(&self) -> &[ClickHouse] {
        match &self.replicas {
            Some(cluster) => cluster.servers(),
            None => slice::from_ref(&self.clickhouse),
        }
    }

    /// Starts a stack as [`Stack::start`] does, but uses a server named by
    /// [`CLICKHOUSE_URL_VARIABLE`] or [`AWS_ENDPOINT_VARIABLE`] instead of a new one.
    ///
    /// # Errors
    ///
    /// Fails if a server cannot be installed or started.
    pub fn connect_or_start() -> Result<Self> {
        let clickhouse = match env::var(CLICKHOUSE_URL_VARIABLE) {
            Ok(url) => ClickHouse::at_as(&url, user()),
            Err(_) => ClickHouse::start()?,
        };
        let aws = match env::var(AWS_ENDPOINT_VARIABLE) {
            _ if account::is_requested() => Aws::account(),
            Ok(endpoint) => Aws::at(&endpoint),
            Err(_) => Aws::start()?,
        };
        let replicas = env::var(REPLICAS_VARIABLE).ok();
        Ok(Self {
            clickhouse,
            aws,
            replicas: replicas.map(|urls| Cluster::of_replicas(&urls)),
        })
    }
}
