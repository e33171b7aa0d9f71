//! ZooKeeper on loopback, for features of ClickHouse that need a Keeper.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Result, ensure};

use crate::install::{install, install_zookeeper};
use crate::launch::{
    Mode, Place, Process, START_BOUND, Started, log_file, start_on_free_port, tail,
};
use crate::ports::ask;
use crate::restartable::Restartable;

/// ClickHouse commits many files in one request, which may be longer than the default of 1 MiB.
const MAX_REQUEST: &str = "-Djute.maxbuffer=67108864";
/// Enough for a test. Java's default would be a quarter of the machine's memory.
const MAX_MEMORY: &str = "-Xmx256m";
const MAIN_CLASS: &str = "org.apache.zookeeper.server.ZooKeeperServerMain";

/// A ZooKeeper with its own data, which stops when it is dropped.
#[derive(Debug)]
pub struct Keeper {
    port: u16,
    server: Restartable,
}

impl Keeper {
    /// Starts the server on a free port, and waits until it answers.
    ///
    /// # Errors
    ///
    /// Fails if the server cannot be installed or started; the error includes the end of its log.
    pub fn start() -> Result<Self> {
        let Started {
            process,
            port,
            directory,
        } = start_on_free_port("ZooKeeper", start_at, serves)?;
        Ok(Self {
            port,
            server: Restartable::new(directory, process),
        })
    }

    /// Returns the pids of the launcher and of the server; none while it is killed.
    pub fn pids(&self) -> Vec<u32> {
        self.server.pids()
    }

    /// Kills the server with SIGKILL, as a crash would. The data stays.
    ///
    /// # Errors
    ///
    /// Fails if the launcher cannot be waited for.
    pub fn kill(&self) -> Result<()> {
        self.server.kill()
    }

    /// Starts the server again after [`Keeper::kill`], on the same port and data, and waits until it
    /// answers. Sessions of its clients continue if they have not expired.
    ///
    /// # Errors
    ///
    /// Fails if the server does not start; the error includes the end of its log.
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        let directory = self.server.directory();
        let log = log_file(directory);
        let place = Place::new(directory, &log);
        let mut process = start_at(&place, directory, self.port)?;
        let is_up =
            process.wait_until("ZooKeeper", START_BOUND, || serves(place.log, self.port))?;
        ensure!(
            is_up,
            "ZooKeeper did not start again; its log ends with:\n{}",
            tail(place.log)
        );
        self.server.put(process);
        Ok(())
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

fn start_at(place: &Place<'_>, directory: &Path, port: u16) -> Result<Process> {
    let zookeeper = install_zookeeper()?;
    let file = directory.join("zookeeper.properties");
    std::fs::write(&file, properties(directory, port))?;
    let arguments = [
        MAX_REQUEST,
        MAX_MEMORY,
        "-cp",
        &zookeeper.class_path,
        MAIN_CLASS,
        &file.display().to_string(),
    ]
    .map(str::to_owned);
    let mode = Mode::Command(&zookeeper.java, &arguments);
    Process::start(&install()?, &mode, place)
}

/// Another program may answer on the port, so the answer must name this server's directory.
fn serves(log: &Path, port: u16) -> bool {
    let own = log.with_file_name("data").display().to_string();
    ask(port, "conf").is_some_and(|answer| answer.contains(&own))
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
