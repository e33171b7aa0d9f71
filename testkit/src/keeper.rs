//! ZooKeeper on loopback, for features of ClickHouse that need a Keeper.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Result;

use crate::install::{install, install_zookeeper};
use crate::launch::{Mode, Place, Process, start_on_free_port};
use crate::ports::ask;

/// ClickHouse commits many files in one request, which may be longer than the default of 1 MiB.
const MAX_REQUEST: &str = "-Djute.maxbuffer=67108864";
const MAIN_CLASS: &str = "org.apache.zookeeper.server.ZooKeeperServerMain";

/// A ZooKeeper with its own data, which stops when it is dropped.
#[derive(Debug)]
pub struct Keeper {
    port: u16,
    _process: Process,
}

impl Keeper {
    /// Starts the server on a free port, and waits until it answers.
    ///
    /// # Errors
    ///
    /// Fails if the server cannot be installed or started; the error includes the end of its log.
    pub fn start() -> Result<Self> {
        let zookeeper = install_zookeeper()?;
        let installed = install()?;
        let start = |place: &Place<'_>, directory: &Path, port: u16| {
            let file = directory.join("zookeeper.properties");
            std::fs::write(&file, properties(directory, port))?;
            let arguments = [
                MAX_REQUEST,
                "-cp",
                &zookeeper.class_path,
                MAIN_CLASS,
                &file.display().to_string(),
            ]
            .map(str::to_owned);
            Process::start(
                &installed,
                &Mode::Command(&zookeeper.java, &arguments),
                place,
            )
        };
        // Another program may answer on the port, so the answer must name this server's directory.
        let (process, port) = start_on_free_port("ZooKeeper", start, |log, port| {
            let own = log.with_file_name("data").display().to_string();
            ask(port, "conf").is_some_and(|answer| answer.contains(&own))
        })?;
        Ok(Self {
            port,
            _process: process,
        })
    }

    /// Returns the address for clients.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Returns the XML that connects a ClickHouse to it, for
    /// [`crate::ClickHouseOptions::configuration`].
    pub fn clickhouse_configuration(&self) -> String {
        format!(
            "<zookeeper><node><host>127.0.0.1</host><port>{}</port></node></zookeeper>",
            self.port
        )
    }
}

/// The configuration of a standalone server that listens on loopback only.
fn properties(directory: &Path, port: u16) -> String {
    format!(
        "dataDir={}\n\
         clientPort={port}\n\
         clientPortAddress=127.0.0.1\n\
         admin.enableServer=false\n\
         4lw.commands.whitelist=conf\n\
         tickTime=2000\n",
        directory.join("data").display()
    )
}
