//! Starts ClickHouse's engine, by itself or as a replica of a cluster.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::install::Installed;
use crate::launch::{Mode, Place, Process, START_BOUND, log_file, tail};
use crate::ports::get;

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

/// The ports of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) http: u16,
    pub(crate) tcp: u16,
}

/// What the engine is started as.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    /// A server by itself, which listens on 127.0.0.1.
    Single,
    /// A replica of a cluster. Its configuration names the addresses where it listens: at this one
    /// the other replicas fetch parts from its HTTP port.
    Replica { interserver_host: &'static str },
}

/// How a server is started, the first time and again.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) directory: PathBuf,
    pub(crate) options: Options,
    pub(crate) ports: Ports,
    pub(crate) role: Role,
}

impl Setup {
    /// Starts the server, and waits until it answers. Returns `None` if it exited by itself, as it
    /// does when a port is taken.
    ///
    /// # Errors
    ///
    /// Fails if the launcher cannot be run, and if the server neither answers nor exits.
    pub(crate) fn start(&self, installed: &Installed) -> Result<Option<Process>> {
        let directory = &self.directory;
        let data = directory.join("data");
        self.write_files()?;
        // A query that never ends keeps the engine, hence its listeners, alive. HTTP comes last: the
        // engine ends when it cannot listen, so that whoever is answered knows that both ports are
        // its.
        let query = "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; \
                     SELECT sleepEachRow(3) FROM numbers(1000000) SETTINGS max_block_size = 1, \
                     function_sleep_max_microseconds_per_block = 0 FORMAT Null";
        let log_level = self.options.log_level.unwrap_or("warning");
        let mut arguments = vec![
            format!("--config-file={}", self.configuration_file().display()),
            format!("--path={}", data.display()),
            format!("--http_port={}", self.ports.http),
            format!("--tcp_port={}", self.ports.tcp),
            // It would trace, whatever the configuration file says.
            format!("--log-level={log_level}"),
            format!("--query={query}"),
        ];
        let mode = match self.role {
            Role::Single => {
                arguments.push(String::from("--listen_host=127.0.0.1"));
                Mode::ClickHouse(&arguments)
            }
            Role::Replica { interserver_host } => Mode::Replica {
                interserver_host,
                arguments: &arguments,
            },
        };
        let log = log_file(directory);
        let place = Place::new(directory, &log);
        let mut process = Process::start(installed, &mode, &place)?;
        // Whoever answers on the port must be this server and no other: ask for its directory.
        let ask = "/?query=SELECT+path+FROM+system.disks+WHERE+name='default'";
        let own = data.display().to_string();
        let serves = process.wait_until("ClickHouse", START_BOUND, || {
            get(self.ports.http, ask).is_some_and(|answer| answer.contains(&own))
        })?;
        Ok(serves.then_some(process))
    }

    /// Returns the end of what the server wrote.
    pub(crate) fn log_tail(&self) -> String {
        tail(&log_file(&self.directory))
    }

    fn configuration_file(&self) -> PathBuf {
        self.directory.join("config.xml")
    }

    fn write_files(&self) -> Result<()> {
        let Self {
            directory, options, ..
        } = self;
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let users = directory.join("users.xml");
        let text = include_str!("users.xml")
            .replace("{{extra}}", &options.users)
            .replace("{{profiles}}", &options.profiles)
            .replace("{{quotas}}", &options.quotas);
        fs::write(&users, text)?;
        let log = directory.join("clickhouse.log");
        let text = include_str!("clickhouse.xml")
            .replace("{{users}}", &users.display().to_string())
            .replace("{{log}}", &log.display().to_string())
            .replace("{{extra}}", &options.configuration);
        fs::write(self.configuration_file(), text)?;
        Ok(())
    }
}
