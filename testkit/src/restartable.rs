//! A server that a test can kill, pause and start again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::install::run;
use crate::launch::Process;
use crate::wait::poll;

/// The time within which a signal stops a process.
const SIGNAL_BOUND: Duration = Duration::from_secs(10);

/// A server with its directory, which is removed when this is dropped, whether the server runs or
/// was killed.
#[derive(Debug)]
pub(crate) struct Restartable {
    directory: PathBuf,
    /// `None` while the server is killed.
    process: Mutex<Option<Process>>,
}

impl Restartable {
    pub(crate) fn new(directory: PathBuf, process: Process) -> Self {
        Self {
            directory,
            process: Mutex::new(Some(process)),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the pids of the launcher and of the server; none while it is killed.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let process = self.process();
        let pids = process.as_ref().map(|process| process.pids().to_vec());
        pids.unwrap_or_default()
    }

    /// Kills the server with SIGKILL, if it runs. The directory stays.
    pub(crate) fn kill(&self) -> Result<()> {
        let process = self.process().take();
        process.map_or(Ok(()), Process::kill)
    }

    /// Returns whether the server has exited by itself.
    pub(crate) fn has_exited(&self) -> Result<bool> {
        match self.process().as_mut() {
            Some(process) => Ok(process.ended()?.is_some()),
            None => Ok(false),
        }
    }

    /// Takes the place of the process that was killed.
    pub(crate) fn put(&self, process: Process) {
        *self.process() = Some(process);
    }

    /// Stops the server with SIGSTOP, and waits until it has stopped. Connections stay open, and
    /// nothing is answered.
    pub(crate) fn pause(&self) -> Result<()> {
        let pid = self.signal("-STOP")?;
        let is_stopped = || {
            let state = Command::new("ps")
                .args(["-o", "state=", "-p", &pid])
                .output()?;
            Ok(state.stdout.starts_with(b"T").then_some(()))
        };
        poll(SIGNAL_BOUND, is_stopped)?.with_context(|| format!("{pid} did not stop"))
    }

    /// Lets the server continue after [`Restartable::pause`].
    pub(crate) fn resume(&self) -> Result<()> {
        self.signal("-CONT").map(drop)
    }

    /// Returns the pid of the server, to which the signal was sent.
    fn signal(&self, signal: &str) -> Result<String> {
        let process = self.process();
        let [_, server] = process.as_ref().context("the server is killed")?.pids();
        let pid = server.to_string();
        run(Command::new("kill").args([signal, &pid]))?;
        Ok(pid)
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Restartable {
    fn drop(&mut self) {
        // Only a launcher that runs removes the directory.
        drop(self.process().take());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}
