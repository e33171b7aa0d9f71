//! A ClickHouse server: the real engine, loaded from its library by the launcher.

use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::clients::{Clients, User};
use crate::engine::{Options, Ports, Role, Setup};
use crate::install::{Installed, install};
use crate::launch::PORT_TRIES;
use crate::ports::free_port;
use crate::restartable::Restartable;

/// A ClickHouse server, which stops when this is dropped.
///
/// Users: `default` without a password; `secured` with `correct-horse`; `reader` with `look-only`,
/// who may only SELECT; `forgetful`, whose inserts are not deduplicated; `confined`, who may not
/// change a setting that inserts require; `limited`, whose results are limited to 100 rows by a
/// setting that it may not change; `viewer`, who may change no setting; and `tenant`, to whom the
/// server looks like ClickHouse Cloud.
#[derive(Debug)]
pub struct ClickHouse {
    url: String,
    user: User,
    tcp_port: Option<u16>,
    clients: Clients,
    /// `None` for a server that was started elsewhere.
    owned: Option<Owned>,
}

#[derive(Debug)]
struct Owned {
    setup: Setup,
    server: Restartable,
}

impl ClickHouse {
    /// Starts a server with its own data and ports, and waits until it answers.
    ///
    /// # Errors
    ///
    /// Fails if the server cannot be installed or started; the error includes the end of its log.
    pub fn start() -> Result<Self> {
        Self::start_with(Options::default())
    }

    /// Starts a server with these options.
    ///
    /// # Errors
    ///
    /// Fails as [`ClickHouse::start`] does, and if a requested port is taken.
    pub fn start_with(options: Options) -> Result<Self> {
        let installed = install()?;
        let is_fixed = options.http_port.is_some() || options.tcp_port.is_some();
        let mut tries = if is_fixed { 1 } else { PORT_TRIES };
        loop {
            let ports = Ports {
                http: options.http_port.map_or_else(free_port, Ok)?,
                tcp: options.tcp_port.map_or_else(free_port, Ok)?,
            };
            match Self::start_as(&installed, options.clone(), ports, Role::Single)? {
                Ok(server) => return Ok(server),
                Err(_) if tries > 1 => tries -= 1,
                Err(log) => bail!("ClickHouse did not start; its log ends with:\n{log}"),
            }
        }
    }

    /// Starts a server on these ports. Returns the end of its log if it exited by itself, as it does
    /// when a port is taken.
    pub(crate) fn start_as(
        installed: &Installed,
        options: Options,
        ports: Ports,
        role: Role,
    ) -> Result<Result<Self, String>> {
        let directory = match &options.directory {
            Some(directory) => directory.clone(),
            None => tempfile::Builder::new()
                .prefix("sluice-clickhouse-")
                .tempdir()?
                .keep(),
        };
        let is_new = options.directory.is_none();
        let setup = Setup {
            directory,
            options,
            ports,
            role,
        };
        let started = setup.start(installed);
        if let Ok(Some(process)) = started {
            return Ok(Ok(Self {
                url: format!("http://127.0.0.1:{}", ports.http),
                user: User::default(),
                tcp_port: Some(ports.tcp),
                clients: Clients::default(),
                owned: Some(Owned {
                    server: Restartable::new(setup.directory.clone(), process),
                    setup,
                }),
            }));
        }
        let log = setup.log_tail();
        if is_new {
            drop(std::fs::remove_dir_all(&setup.directory));
        }
        started.map(|_| Err(log))
    }

    /// Uses a server that was started elsewhere.
    pub fn at(url: &str) -> Self {
        Self::at_as(url, User::default())
    }

    /// Uses a server that was started elsewhere, as another user than `default`.
    pub fn at_as(url: &str, user: User) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            user,
            tcp_port: None,
            clients: Clients::default(),
            owned: None,
        }
    }

    /// Returns the HTTP address, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the user of all queries here.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// Returns the port of the native protocol, if it is known.
    pub fn tcp_port(&self) -> Option<u16> {
        self.tcp_port
    }

    /// Returns the pids of the launcher and of the server; none while the server is killed or if it
    /// was started elsewhere.
    pub fn pids(&self) -> Vec<u32> {
        let owned = self.owned.as_ref();
        owned.map(|owned| owned.server.pids()).unwrap_or_default()
    }

    /// Kills the server with SIGKILL, as a crash would. The data stays. Do not use it on the shared
    /// server, which other tests use.
    ///
    /// # Errors
    ///
    /// Fails if the server was started elsewhere.
    pub fn kill(&self) -> Result<()> {
        let killed = self.owned()?.server.kill();
        // The connections of pooled clients end with the server.
        self.clients.forget();
        killed
    }

    /// Returns whether the server has exited by itself, as the engine does after a fatal error.
    ///
    /// # Errors
    ///
    /// Fails if the server was started elsewhere.
    pub fn has_exited(&self) -> Result<bool> {
        self.owned()?.server.has_exited()
    }

    /// Starts the server again after [`ClickHouse::kill`], on the same ports and data.
    ///
    /// # Errors
    ///
    /// Fails if the server was started elsewhere or does not start.
    pub fn restart(&self) -> Result<()> {
        let Owned { setup, server } = self.owned()?;
        self.kill()?;
        let process = setup.start(&install()?)?;
        server.put(process.with_context(|| {
            format!(
                "ClickHouse did not start again; its log ends with:\n{}",
                setup.log_tail()
            )
        })?);
        Ok(())
    }

    /// Stops the server with SIGSTOP: it accepts connections and answers nothing, as a server does
    /// that the network or its disk has cut off.
    ///
    /// # Errors
    ///
    /// Fails if the server was started elsewhere or is killed.
    pub fn pause(&self) -> Result<()> {
        self.owned()?.server.pause()
    }

    /// Lets the server continue after [`ClickHouse::pause`], with what it was doing.
    ///
    /// # Errors
    ///
    /// Fails if the server was started elsewhere or is killed.
    pub fn resume(&self) -> Result<()> {
        self.owned()?.server.resume()
    }

    fn owned(&self) -> Result<&Owned> {
        self.owned.as_ref().context(
            "this ClickHouse was started elsewhere: only a server that the test has started can be \
             killed or paused",
        )
    }

    /// Creates a client for the user and the `default` database, which belongs to the current
    /// runtime.
    pub fn client(&self) -> clickhouse::Client {
        self.clients.of_this_runtime(&self.url, &self.user)
    }

    /// Returns the result of a query as TSV text, with ClickHouse's escapes.
    ///
    /// # Errors
    ///
    /// Fails with ClickHouse's error and the query.
    pub async fn query(&self, sql: &str) -> Result<String> {
        self.fetch(sql, "TSV").await
    }

    /// Returns the result of a query, with one JSON object for each row.
    ///
    /// # Errors
    ///
    /// Fails with ClickHouse's error and the query.
    pub async fn rows(&self, sql: &str) -> Result<Vec<serde_json::Value>> {
        let text = self.fetch(sql, "JSONEachRow").await?;
        text.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    /// Returns the single value of a query's result.
    ///
    /// # Errors
    ///
    /// Fails with ClickHouse's error, or if the result does not parse as a `T`.
    pub async fn scalar<T>(&self, sql: &str) -> Result<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        let text = self.query(sql).await?;
        let value = text.trim_end_matches('\n');
        value
            .parse()
            .map_err(|error| anyhow!("{sql}\ngave {value:?}: {error}"))
    }

    /// Runs a statement that returns no rows.
    ///
    /// # Errors
    ///
    /// Fails with ClickHouse's error and the statement.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.query(sql).await.map(drop)
    }

    /// Waits until this replica has what any replica has confirmed in the replicated tables of a
    /// database. If it has none, nothing is waited for.
    ///
    /// # Errors
    ///
    /// Fails with ClickHouse's error while a table is read-only, as it is for up to a minute after
    /// its server or its Keeper was started, and if a mutation of a replicated table has not ended.
    pub async fn catch_up(&self, database: &str) -> Result<()> {
        let sql = format!(
            "SELECT name FROM system.tables \
             WHERE database = '{database}' AND startsWith(engine, 'Replicated')"
        );
        let tables = self.query(&sql).await?;
        if tables.is_empty() {
            return Ok(());
        }
        for table in tables.lines() {
            let sql = format!("SYSTEM SYNC REPLICA {database}.{table}");
            self.execute(&sql).await?;
        }
        let sql = format!(
            "SELECT count() FROM system.mutations WHERE database = '{database}' AND NOT is_done"
        );
        let unfinished: u64 = self.scalar(&sql).await?;
        ensure!(
            unfinished == 0,
            "{unfinished} mutations of {database} have not ended at {}",
            self.url
        );
        Ok(())
    }

    /// Returns the result of a query in a format such as `Parquet`, as a producer of such files
    /// writes it.
    ///
    /// # Errors
    ///
    /// Fails with ClickHouse's error and the query.
    pub async fn bytes(&self, sql: &str, format: &str) -> Result<Vec<u8>> {
        let get = async {
            let mut cursor = self
                .client()
                .query_raw(sql)
                .with_setting("wait_end_of_query", "1")
                .with_setting("output_format_json_quote_64bit_integers", "0")
                .fetch_bytes(format)?;
            let mut bytes = Vec::new();
            while let Some(chunk) = cursor.next().await? {
                bytes.extend_from_slice(&chunk);
            }
            anyhow::Ok(bytes)
        };
        get.await.with_context(|| sql.to_owned())
    }

    async fn fetch(&self, sql: &str, format: &str) -> Result<String> {
        Ok(String::from_utf8(self.bytes(sql, format).await?)?)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_whose_port_is_taken_does_not_count_as_started() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = Options {
            tcp_port: Some(taken.local_addr().unwrap().port()),
            ..Options::default()
        };
        let error = ClickHouse::start_with(options).unwrap_err();
        assert!(error.to_string().contains("did not start"), "{error}");
    }
}
