//! ClickHouse. Only this module uses its client.

pub mod batch_rows;
pub mod codes;
pub mod dependents;
pub mod error_class;
pub mod failing_view;
pub mod migrate;
mod pins;
mod redact;
pub mod replicas;
pub mod topology;
pub mod validate;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::{Secret, SecretSource};
use crate::s3::StoreError;
use crate::sql;
pub use crate::statements::{LOG_COMMENT, MAX_QUERY_BYTES, PINNED, Statement};
use crate::util::error_chain::with_sources;
use crate::util::http;
use crate::util::http::{Connector, TlsError};
use pins::Pins;
use redact::Redactor;
use replicas::{Layout, Topology};

pub const SUPPORT_IS_DISABLED: u32 = 344;
pub const TABLE_IS_READ_ONLY: u32 = 242;
const UNFINISHED: u32 = 341;

/// Why a statement failed: an error of ClickHouse, of the connection, or of a proxy in between.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum WarehouseError {
    /// ClickHouse refused or aborted the statement, which has ended.
    #[error("ClickHouse error {code}: {text}")]
    Server { code: u32, text: String },
    /// The connection failed or broke, or the request timed out. The statement may be running, or
    /// may have succeeded.
    #[error("no response from ClickHouse: {0}")]
    Unknown(String),
    /// The password cannot be read, so no statement was sent.
    #[error("clickhouse.password_file: {0}")]
    Password(String),
    /// A proxy or a load balancer responded instead of ClickHouse. The statement may be running, or
    /// may have succeeded.
    #[error("the response did not come from ClickHouse: {text}")]
    Foreign { text: String },
    /// An object to be streamed could not be read, so the connection was closed.
    #[error(transparent)]
    Source(#[from] StoreError),
    /// A table of the ledger does not show rows that were written to it.
    #[error("{table} shows {shown} of {written} rows that were just written to it")]
    Hidden {
        table: &'static str,
        shown: u64,
        written: u64,
    },
    /// No replica that responds has all rows that were written to these tables.
    #[error("rows that were written to {tables} are not readable: {why}")]
    Behind { tables: String, why: String },
    /// It is not known which servers share the tables.
    #[error("the servers that share the tables cannot be determined: {why}")]
    UnknownServers { why: String },
    /// A view that fills a table does not exist, so inserted rows are missing.
    #[error("rows are missing: the view {view}, which inserts them, does not exist")]
    Unfilled { view: String },
}

impl WarehouseError {
    /// Returns ClickHouse's error code, if ClickHouse returned one.
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Server { code, .. } => Some(*code),
            Self::Unknown(_)
            | Self::Password(_)
            | Self::Foreign { .. }
            | Self::Source(_)
            | Self::Hidden { .. }
            | Self::Behind { .. }
            | Self::UnknownServers { .. }
            | Self::Unfilled { .. } => None,
        }
    }
}

/// How to reach ClickHouse.
#[derive(Clone, Debug)]
pub struct Access {
    pub url: String,
    pub user: String,
    pub password: SecretSource,
    /// Further secrets in statements, which are redacted in errors.
    pub secrets: Vec<Secret>,
    pub database: String,
    pub connect_timeout: Duration,
    /// The timeout of small statements: ledger, kill, ping.
    pub query_timeout: Duration,
    /// Certificate authorities (PEM) in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// The cluster on which the tables were created.
    pub cluster: Option<String>,
    pub topology: Topology,
    /// Whether statements are sent although it is not known which servers share the tables.
    pub accept_unproven: bool,
}

#[derive(Clone)]
pub struct Warehouse {
    client: clickhouse::Client,
    pins: Pins,
    redactor: Redactor,
    access: Arc<Access>,
    connector: Connector,
    /// Set once it is known. Shared by the clones.
    layout: Arc<OnceLock<Layout>>,
}

impl Warehouse {
    /// Creates a client. It opens no connection yet.
    ///
    /// # Errors
    ///
    /// Fails if the CA file cannot be read, or TLS cannot be set up.
    pub fn connect(access: &Access) -> Result<Self, TlsError> {
        let connector = http::connector(access.connect_timeout, access.ca_file.as_deref(), None)?;
        Ok(Self::over(connector, access, &access.url, Pins::default()))
    }

    /// Creates a client for a URL, which shares no connections with others of the same connector.
    fn over(connector: Connector, access: &Access, url: &str, pins: Pins) -> Self {
        let client = clickhouse::Client::with_http_client(http::client_with(connector.clone()))
            .with_url(url)
            .with_user(&access.user)
            .with_product_info("sluice", env!("CARGO_PKG_VERSION"))
            // Without it, a late error is a 200 response with the exception in its body.
            .with_setting("wait_end_of_query", "1")
            .with_setting("async_insert", "0")
            .with_setting(LOG_COMMENT, "sluice");
        Self {
            client,
            pins,
            redactor: Redactor::new(&access.secrets),
            access: Arc::new(access.clone()),
            connector,
            layout: Arc::default(),
        }
    }

    /// Returns the same client with another comment in `system.query_log`.
    pub fn commented(&self, comment: &str) -> Self {
        Self {
            client: self.client.clone().with_setting(LOG_COMMENT, comment),
            ..self.clone()
        }
    }

    pub fn database(&self) -> &str {
        &self.access.database
    }

    /// Returns `database.table`, quoted.
    pub fn table(&self, name: &str) -> String {
        format!("{}.{}", sql::ident(&self.access.database), sql::ident(name))
    }

    /// Returns the condition for the rows in parts that were written within `since`: those that were
    /// inserted since, and those with which these were merged.
    pub(crate) fn in_recent_parts(&self, table: &str, since: Duration) -> String {
        format!(
            "_part IN (\
               SELECT name FROM system.parts WHERE database = {} AND table = {} \
               AND active AND modification_time > now() - toIntervalSecond({}))",
            sql::string(&self.access.database),
            sql::string(table),
            since.as_secs(),
        )
    }

    /// Returns whether the server is executing exactly this deletion. A second one would repeat all
    /// the work and delay the first. Returns `false` if the server does not show it.
    pub async fn is_deleting(&self, table: &str, condition: &str) -> bool {
        let sql = format!(
            "SELECT 1 AS found FROM system.mutations \
             WHERE database = {} AND table = {} AND NOT is_done AND latest_fail_reason = '' \
             AND position(command, {}) > 0 LIMIT 1",
            sql::string(&self.access.database),
            sql::string(table),
            sql::string(condition),
        );
        let found: Result<Vec<serde::de::IgnoredAny>, _> = self.rows(&sql).await;
        found.is_ok_and(|found| !found.is_empty())
    }

    /// Deletes the rows of a table that meet the condition. After success, no query sees them.
    ///
    /// The caller repeats this until [`Warehouse::has_rows`] returns `false`: of two mutations that
    /// begin at the same time, ClickHouse (26.7) can lose one without an error.
    pub async fn delete(
        &self,
        table: &str,
        condition: &str,
        timeout: Duration,
    ) -> Result<(), WarehouseError> {
        let table = self.table(table);
        let statement = |sql: String| {
            Statement::new(sql)
                // A condition with a subquery has the same result on every replica.
                .with("allow_nondeterministic_mutations", "1")
                .with("max_query_size", MAX_QUERY_BYTES)
        };
        let lightweight = statement(format!("DELETE FROM {table} WHERE {condition}"))
            .with("lightweight_deletes_sync", "2");
        match self.execute(&lightweight, None, timeout).await {
            // The table has a projection, for example. Its parts are rewritten instead.
            Err(WarehouseError::Server {
                code: SUPPORT_IS_DISABLED,
                ..
            }) => {
                let mutation = statement(format!("ALTER TABLE {table} DELETE WHERE {condition}"))
                    .with("mutations_sync", "2");
                self.execute(&mutation, None, timeout).await
            }
            // A replica is away, and deletes the rows when it is back.
            Err(WarehouseError::Server {
                code: UNFINISHED, ..
            }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Returns the client with the current password.
    fn logged_in(&self) -> Result<clickhouse::Client, WarehouseError> {
        let password = self.access.password.read();
        let password = password.map_err(|problem| WarehouseError::Password(problem.to_string()))?;
        Ok(self.client.clone().with_password(password.expose()))
    }

    /// Runs a statement that returns no rows, under the query id if there is one.
    pub async fn execute(
        &self,
        statement: &Statement,
        query_id: Option<&str>,
        timeout: Duration,
    ) -> Result<(), WarehouseError> {
        let mut query = self.client().await?.query_raw(&statement.sql);
        for (name, value) in &statement.settings {
            query = query.with_setting(*name, value);
        }
        if let Some(query_id) = query_id {
            query = query.with_setting("query_id", query_id);
        }
        bounded(timeout, async {
            query.execute().await.map_err(|error| self.classify(error))
        })
        .await
    }

    /// Runs an insert whose data follow in the body.
    pub async fn stream(
        &self,
        statement: &Statement,
        data: impl Stream<Item = Result<Vec<u8>, StoreError>>,
        query_id: &str,
        timeout: Duration,
    ) -> Result<(), WarehouseError> {
        // The statement is also in the body, since it is too long for a URL.
        let mut insert = self
            .client()
            .await?
            .insert_formatted_with("")
            .with_setting("query_id", query_id);
        for (name, value) in &statement.settings {
            insert = insert.with_setting(*name, value);
        }
        let text = statement.sql.clone();
        bounded(timeout, async {
            insert
                .send(text.into())
                .await
                .map_err(|error| self.classify(error))?;
            let mut data = std::pin::pin!(data);
            while let Some(piece) = data.next().await {
                insert
                    .send(piece?.into())
                    .await
                    .map_err(|error| self.classify(error))?;
            }
            insert.end().await.map_err(|error| self.classify(error))
        })
        .await
    }

    /// Runs a small statement that returns no rows.
    pub async fn run(&self, sql: &str) -> Result<(), WarehouseError> {
        self.execute(&Statement::new(sql), None, self.access.query_timeout)
            .await
    }

    /// Runs a small statement that returns no rows, under a query id.
    pub async fn run_as(&self, sql: &str, query_id: &str) -> Result<(), WarehouseError> {
        self.execute(
            &Statement::new(sql),
            Some(query_id),
            self.access.query_timeout,
        )
        .await
    }

    /// Runs a small statement that returns no rows and that continues in a compressed body.
    pub async fn run_encoded(
        &self,
        sql: &str,
        encoding: &str,
        body: &'static [u8],
    ) -> Result<(), WarehouseError> {
        let client = self
            .client()
            .await?
            .with_header("Content-Encoding", encoding);
        let mut request = client.insert_formatted_with(sql);
        bounded(self.access.query_timeout, async {
            let sent = request.send(Bytes::from_static(body)).await;
            sent.map_err(|error| self.classify(error))?;
            request.end().await.map_err(|error| self.classify(error))
        })
        .await
    }

    /// Returns the rows of a small query.
    pub async fn rows<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>, WarehouseError> {
        self.rows_within(sql, self.access.query_timeout).await
    }

    /// Returns the rows of a query that may take up to `timeout`.
    pub async fn rows_within<T: DeserializeOwned>(
        &self,
        sql: &str,
        timeout: Duration,
    ) -> Result<Vec<T>, WarehouseError> {
        bounded(timeout, async {
            let client = self.client().await?;
            self.fetch(client, sql).await
        })
        .await
    }

    async fn fetch<T: DeserializeOwned>(
        &self,
        client: clickhouse::Client,
        sql: &str,
    ) -> Result<Vec<T>, WarehouseError> {
        let mut cursor = client
            .query_raw(sql)
            .with_setting("max_query_size", MAX_QUERY_BYTES)
            .with_setting("output_format_json_quote_64bit_integers", "0")
            .fetch_bytes("JSONEachRow")
            .map_err(|error| self.classify(error))?;
        let text = cursor.collect().await;
        text.map_err(|error| self.classify(error))?
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                serde_json::from_slice(line)
                    .map_err(|error| WarehouseError::Unknown(format!("unreadable row: {error}")))
            })
            .collect()
    }

    /// Writes a few rows in one block: either all of them or none.
    pub async fn insert<T: Serialize>(
        &self,
        table: &str,
        rows: &[T],
    ) -> Result<(), WarehouseError> {
        let mut body = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut body, row)
                .map_err(|error| WarehouseError::Unknown(error.to_string()))?;
            body.push(b'\n');
        }
        // Columns are named, so that a table of an earlier version is recognised (error 16).
        let columns = match rows.first().map(serde_json::to_value) {
            Some(Ok(Value::Object(row))) => row.keys().map(|name| sql::ident(name)).collect(),
            _ => Vec::new(),
        };
        let sql = format!(
            "INSERT INTO {} ({}) FORMAT JSONEachRow",
            self.table(table),
            columns.join(", ")
        );
        let mut insert = self
            .client()
            .await?
            .insert_formatted_with(sql)
            .with_setting("input_format_parallel_parsing", "0")
            .with_setting("max_insert_block_size", "1000000")
            .with_setting("input_format_skip_unknown_fields", "0");
        bounded(self.access.query_timeout, async {
            insert
                .send(body.into())
                .await
                .map_err(|error| self.classify(error))?;
            insert.end().await.map_err(|error| self.classify(error))
        })
        .await
    }

    fn classify(&self, error: clickhouse::error::Error) -> WarehouseError {
        let (text, answered) = match &error {
            clickhouse::error::Error::BadResponse(text) => (text.clone(), true),
            _ => (with_sources(&error), false),
        };
        let text = shorten(&self.redactor.redact(&text));
        let error = match exception_code(&text) {
            Some(code) if answered => WarehouseError::Server { code, text },
            None if answered => WarehouseError::Foreign { text },
            _ => WarehouseError::Unknown(text),
        };
        self.pins.note(&error);
        error
    }

    /// Ends every statement whose query id starts with `prefix`, and waits for their end. On
    /// replicas, statements of a server that cannot be reached can remain
    /// ([`Warehouse::kill_everywhere`]).
    pub async fn kill(&self, prefix: &str) -> Result<(), WarehouseError> {
        match self.replicas().await? {
            Some(replicas) => {
                let kill = Box::pin(self.kill_everywhere(replicas, prefix));
                kill.await.map(drop)
            }
            None => self.kill_here(prefix).await,
        }
    }

    /// Ends these statements on the server that responds, or on those of the configured cluster.
    async fn kill_here(&self, prefix: &str) -> Result<(), WarehouseError> {
        let Some(cluster) = &self.access.cluster else {
            return self.run(&replicas::kill("", prefix)).await;
        };
        let on_cluster = format!(" ON CLUSTER {}", sql::ident(cluster));
        let kill = Statement::new(replicas::kill(&on_cluster, prefix))
            // A profile may let it return before the other servers have executed it.
            .with("distributed_ddl_output_mode", "throw")
            .with(
                "distributed_ddl_task_timeout",
                self.access.query_timeout.as_secs().to_string(),
            );
        self.execute(&kill, None, self.access.query_timeout).await
    }

    /// Returns the tables of this list that do not exist in the database.
    pub async fn missing_tables<'a>(
        &self,
        tables: &'a [String],
    ) -> Result<Vec<&'a str>, WarehouseError> {
        #[derive(serde::Deserialize)]
        struct Row {
            name: String,
        }
        let sql = format!(
            "SELECT name FROM system.tables WHERE database = {} AND name IN ({})",
            sql::string(&self.access.database),
            sql::strings(tables),
        );
        let found: Vec<Row> = self.rows(&sql).await?;
        let mut missing: Vec<_> = tables.iter().map(String::as_str).collect();
        missing.retain(|table| found.iter().all(|row| row.name != *table));
        Ok(missing)
    }

    /// Returns the profile setting, if any, that disables insert deduplication although the insert
    /// requests it.
    pub async fn dedup_disabled_by(&self) -> Result<Option<&'static str>, WarehouseError> {
        #[derive(serde::Deserialize)]
        struct Row {
            off: u8,
        }
        // Servers from before 24.10 have neither this function nor such settings.
        const UNKNOWN_FUNCTION: u32 = 46;
        for name in ["deduplicate_insert", "deduplicate_insert_select"] {
            let sql = format!(
                "SELECT getSettingOrDefault({}, '') = 'disable' AS off",
                sql::string(name)
            );
            match self.rows::<Row>(&sql).await {
                Ok(rows) if rows.iter().any(|row| row.off == 1) => return Ok(Some(name)),
                Ok(_) => {}
                Err(error) if error.code() == Some(UNKNOWN_FUNCTION) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub async fn ping(&self) -> Result<(), WarehouseError> {
        self.run("SELECT 1 FORMAT Null").await
    }
}

async fn bounded<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, WarehouseError>>,
) -> Result<T, WarehouseError> {
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or_else(|_| {
            Err(WarehouseError::Unknown(format!(
                "no response within {} s",
                timeout.as_secs()
            )))
        })
}

/// Returns the code of an error of ClickHouse, which reads `Code: 516. DB::Exception: …`. Errors of
/// a proxy have none.
fn exception_code(text: &str) -> Option<u32> {
    let digits = text.split_once("Code: ")?.1;
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// Shortens an error, which can quote the whole statement, to its beginning and end.
fn shorten(text: &str) -> String {
    const HEAD: usize = 3000;
    const TAIL: usize = 500;
    if text.len() <= HEAD + TAIL {
        return text.to_owned();
    }
    let head = text.floor_char_boundary(HEAD);
    let tail = text.ceil_char_boundary(text.len() - TAIL);
    format!("{} … {}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_code_of_an_exception() {
        let text =
            "Code: 516. DB::Exception: default: Authentication failed. (AUTHENTICATION_FAILED)";
        assert_eq!(exception_code(text), Some(516));
        assert_eq!(exception_code("502 Bad Gateway"), None);
        assert_eq!(exception_code("Code: "), None);
    }

    #[test]
    fn shortens_in_the_middle_without_cutting_a_character() {
        let long = "ü".repeat(5000);
        let short = shorten(&long);
        assert!(
            short.len() < 3600 && short.contains(" … "),
            "{}",
            short.len()
        );
        assert_eq!(shorten("short"), "short");
    }
}
