//! ClickHouse and AWS together.

use std::env;
use std::sync::OnceLock;

use anyhow::Result;

use crate::{Aws, ClickHouse};

/// Set to the address of a ClickHouse that tests shall use instead of starting one.
pub const CLICKHOUSE_URL_VARIABLE: &str = "SLUICE_TEST_CLICKHOUSE_URL";
/// Set to an endpoint with S3 and SQS that tests shall use instead of starting one.
pub const AWS_ENDPOINT_VARIABLE: &str = "SLUICE_TEST_AWS_ENDPOINT";

/// Everything that Sluice talks to.
#[derive(Debug)]
pub struct Stack {
    /// The database.
    pub clickhouse: ClickHouse,
    /// S3 and SQS.
    pub aws: Aws,
}

impl Stack {
    /// Starts both.
    ///
    /// # Errors
    ///
    /// When one cannot be installed or started.
    pub fn start() -> Result<Self> {
        Ok(Self {
            clickhouse: ClickHouse::start()?,
            aws: Aws::start()?,
        })
    }

    /// One for the whole process, started by whoever asks first. A server named by
    /// [`CLICKHOUSE_URL_VARIABLE`] or [`AWS_ENDPOINT_VARIABLE`] is used instead of a new one.
    /// It serves many tests at once: use a [`crate::Site`] each, and kill nothing.
    ///
    /// # Panics
    ///
    /// When it cannot start, with the reason.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Stack> = OnceLock::new();
        SHARED.get_or_init(|| match Self::given_or_started() {
            Ok(stack) => stack,
            Err(error) => panic!("the test stack cannot start: {error:#}"),
        })
    }

    /// As [`Stack::start`], but a server named by [`CLICKHOUSE_URL_VARIABLE`] or
    /// [`AWS_ENDPOINT_VARIABLE`] is used instead of a new one.
    ///
    /// # Errors
    ///
    /// When one cannot be installed or started.
    pub fn given_or_started() -> Result<Self> {
        let clickhouse = match env::var(CLICKHOUSE_URL_VARIABLE) {
            Ok(url) => ClickHouse::at(&url),
            Err(_) => ClickHouse::start()?,
        };
        let aws = match env::var(AWS_ENDPOINT_VARIABLE) {
            Ok(endpoint) => Aws::at(&endpoint),
            Err(_) => Aws::start()?,
        };
        Ok(Self { clickhouse, aws })
    }
}
