//! A ClickHouse server: the real engine, loaded from its library by the launcher.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::clients::Clients;
use crate::install::{Installed, install};
use crate::launch::{Mode, PORT_TRIES, Place, Process, START_BOUND};
use crate::ports::{free_port, get};

/// Options for starting a server.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// The data directory, for example one that an earlier server left behind. It is removed at the
    /// end in any case. `None` creates a new one.
    pub directory: Option<PathBuf>,
    /// `None` picks a free port.
    pub http_port: Option<u16>,
    /// `None` picks a free port.
    pub tcp_port: Option<u16>,
    /// Additional XML for the server's configuration file, inside `<clickhouse>`.
    pub configuration: String,
    /// Additional XML for its users, inside `<users>`.
    pub users: String,
    /// Additional XML for its settings profiles, inside `<profiles>`.
    pub profiles: String,
    /// Additional XML for its quotas, inside `<quotas>`.
    pub quotas: String,
    /// The log level. `None` logs warnings and above.
    pub log_level: Option<&'static str>,
}

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
    tcp_port: Option<u16>,
    clients: Clients,
    /// `None` for a server that was started elsewhere.
    owned: Option<Owned>,
}

#[derive(Debug)]
struct Owned {
    directory: PathBuf,
    options: Options,
    http_port: u16,
    tcp_port: u16,
    process: Mutex<Option<Process>>,
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
        // This comes first, since any failure after the directory is created must remove it again.
        let installed = install()?;
        let directory = match &options.directory {
            Some(directory) => directory.clone(),
            None => tempfile::Builder::new()
                .prefix("sluice-clickhouse-")
                .tempdir()?
                .keep(),
        };
        let fixed = options.http_port.is_some() || options.tcp_port.is_some();
        for _ in 0..PORT_TRIES {
            let http_port = options.http_port.map_or_else(free_port, Ok)?;
            let tcp_port = options.tcp_port.map_or_else(free_port, Ok)?;
            if let Some(process) = launch(&installed, &directory, &options, http_port, tcp_port)? {
                return Ok(Self {
                    url: format!("http://127.0.0.1:{http_port}"),
                    tcp_port: Some(tcp_port),
                    clients: Clients::default(),
                    owned: Some(Owned {
                        directory,
                        options,
                        http_port,
                        tcp_port,
                        process: Mutex::new(Some(process)),
                    }),
                });
            }
            if fixed {
                break;
            }
        }
        let log = crate::launch::tail(&output_file(&directory));
        if options.directory.is_none() {
            drop(std::fs::remove_dir_all(&directory));
        }
        bail!("ClickHouse did not start; its log ends with:\n{log}")
    }

    /// Uses a server that was started elsewhere.
    pub fn at(url: &str) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            tcp_port: None,
            clients: Clients::default(),
            owned: None,
        }
    }

    /// Returns the HTTP address, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the port of the native protocol, if it is known.
    pub fn tcp_port(&self) -> Option<u16> {
        self.tcp_port
    }

    /// Returns the pids of the launcher and of the server; `None` while the server is killed or if
    /// it was started elsewhere.
    pub fn pids(&self) -> Vec<u32> {
        let Some(owned) = &self.owned else {
            return Vec::new();
        };
        let process = owned.process.lock().unwrap_or_else(PoisonError::into_inner);
        process
            .as_ref()
            .map(|process| process.pids().to_vec())
            .unwrap_or_default()
    }

    /// Kills the server with SIGKILL, as a crash would. The data stays. Do not use it on the shared
    /// server, which other tests use.
    ///
    /// # Errors
    ///
    /// Fails if the server was started elsewhere.
    pub fn kill(&self) -> Result<()> {
        let owned = self.owned()?;
        let process = owned
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // The connections of pooled clients end with the server.
        self.clients.forget();
        process.map_or(Ok(()), Process::kill)
    }

    /// Starts the server again after [`ClickHouse::kill`], on the same ports and data.
    ///
    /// # Errors
    ///
    /// Fails if the server was started elsewhere or does not start.
    pub fn restart(&self) -> Result<()> {
        let owned = self.owned()?;
        self.kill()?;
        let process = launch(
            &install()?,
            &owned.directory,
            &owned.options,
            owned.http_port,
            owned.tcp_port,
        )?;
        let process = process.with_context(|| {
            format!(
                "ClickHouse did not start again; its log ends with:\n{}",
                crate::launch::tail(&output_file(&owned.directory))
            )
        })?;
        *owned.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    fn owned(&self) -> Result<&Owned> {
        self.owned
            .as_ref()
            .context("this ClickHouse is not ours to kill: start one of your own")
    }

    /// Creates a client for the `default` user and database, which belongs to the current runtime.
    pub fn client(&self) -> clickhouse::Client {
        self.clients.of_this_runtime(&self.url)
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

    async fn fetch(&self, sql: &str, format: &str) -> Result<String> {
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
            anyhow::Ok(String::from_utf8(bytes)?)
        };
        get.await.with_context(|| sql.to_owned())
    }
}

fn output_file(directory: &Path) -> PathBuf {
    directory.join("output.log")
}

/// Returns `None` if the server exited by itself, as it does when a port is taken.
fn launch(
    installed: &Installed,
    directory: &Path,
    options: &Options,
    http_port: u16,
    tcp_port: u16,
) -> Result<Option<Process>> {
    std::fs::create_dir_all(directory)?;
    let configuration = directory.join("config.xml");
    let users = directory.join("users.xml");
    let text = include_str!("users.xml")
        .replace("{{extra}}", &options.users)
        .replace("{{profiles}}", &options.profiles)
        .replace("{{quotas}}", &options.quotas);
    std::fs::write(&users, text)?;
    let text = include_str!("clickhouse.xml")
        .replace("{{users}}", &users.display().to_string())
        .replace(
            "{{log}}",
            &directory.join("clickhouse.log").display().to_string(),
        )
        .replace("{{extra}}", &options.configuration);
    std::fs::write(&configuration, text)?;
    let data = directory.join("data");
    // A query that never ends keeps the engine, hence its listeners, alive. HTTP comes last: the
    // engine ends when it cannot listen, so that whoever is answered knows that both ports are its.
    let query = "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; \
                 SELECT sleepEachRow(3) FROM numbers(1000000) SETTINGS max_block_size = 1, \
                 function_sleep_max_microseconds_per_block = 0 FORMAT Null";
    let arguments = [
        format!("--config-file={}", configuration.display()),
        format!("--path={}", data.display()),
        format!("--http_port={http_port}"),
        format!("--tcp_port={tcp_port}"),
        String::from("--listen_host=127.0.0.1"),
        // It would trace, whatever the configuration file says.
        format!("--log-level={}", options.log_level.unwrap_or("warning")),
        format!("--query={query}"),
    ];
    let place = Place {
        directory: Some(directory),
        log: &output_file(directory),
        environment: &[],
        grace: Duration::ZERO,
    };
    let mut process = Process::start(installed, &Mode::ClickHouse(&arguments), &place)?;
    // Whoever answers on the port must be this server and no other: ask for its directory.
    let ask = "/?query=SELECT+path+FROM+system.disks+WHERE+name='default'";
    let own = data.display().to_string();
    let serves = process.wait_until("ClickHouse", START_BOUND, || {
        get(http_port, ask).is_some_and(|answer| answer.contains(&own))
    })?;
    Ok(serves.then_some(process))
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
