//! A server under the launcher: it ends when its [`Process`] is dropped, and when this process
//! dies in whatever way, since the launcher watches the pipe that this process holds.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::install::Installed;
use crate::ports::free_port;
use crate::wait::poll;

/// The time that a server may take to start.
pub(crate) const START_BOUND: Duration = Duration::from_secs(180);
/// The number of ports to try, as another program may take one before the server does.
pub(crate) const PORT_TRIES: usize = 5;
const LOG_TAIL_LINES: usize = 30;

/// The program to run.
#[derive(Debug)]
pub enum Mode<'a> {
    /// ClickHouse's engine with these arguments.
    ClickHouse(&'a [String]),
    /// The same as a replica of a cluster. Only one build of the engine can be one, see
    /// [`crate::Requirement::Cluster`].
    Replica {
        /// The address at which other replicas fetch parts from the HTTP port.
        interserver_host: &'a str,
        /// The arguments of the engine.
        arguments: &'a [String],
    },
    /// ministack; it takes its settings from the environment.
    Ministack,
    /// Any program, ended with SIGTERM, and with SIGKILL when the grace has passed.
    Command(&'a Path, &'a [String]),
}

/// The directory and environment of a server.
#[derive(Debug)]
pub struct Place<'a> {
    /// The directory, which is removed when the server ends through [`Process`] or because this
    /// process died.
    pub directory: Option<&'a Path>,
    /// Standard output and error are appended to this file.
    pub log: &'a Path,
    /// Additional environment variables.
    pub environment: &'a [(&'a str, String)],
    /// The time that the server may take after SIGTERM; zero means SIGKILL immediately.
    pub grace: Duration,
}

impl<'a> Place<'a> {
    /// A directory of its own for a server that is ended with SIGKILL.
    pub(crate) fn new(directory: &'a Path, log: &'a Path) -> Self {
        Self {
            directory: Some(directory),
            log,
            environment: &[],
            grace: Duration::ZERO,
        }
    }
}

/// Returns the file in a server's directory that has its output.
pub(crate) fn log_file(directory: &Path) -> PathBuf {
    directory.join("output.log")
}

/// A running server.
#[derive(Debug)]
pub struct Process {
    launcher: Child,
    server: u32,
    log: PathBuf,
}

impl Process {
    /// Starts the server without waiting until it serves.
    ///
    /// # Errors
    ///
    /// Fails if the launcher cannot be run.
    pub fn start(installed: &Installed, mode: &Mode<'_>, place: &Place<'_>) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(place.log)
            .with_context(|| format!("cannot open {}", place.log.display()))?;
        let mut command = Command::new(&installed.python);
        command
            .arg(&installed.launcher)
            .arg(place.directory.unwrap_or(Path::new("-")))
            .arg(place.grace.as_secs_f64().to_string());
        match mode {
            Mode::ClickHouse(arguments) => command
                .arg("clickhouse")
                .arg(&installed.libchdb)
                .args(*arguments),
            Mode::Replica {
                interserver_host,
                arguments,
            } => command
                .arg("replica")
                .arg(&installed.libchdb)
                .arg(interserver_host)
                .args(*arguments),
            Mode::Ministack => command.arg("ministack"),
            Mode::Command(program, arguments) => {
                command.arg("command").arg(program).args(*arguments)
            }
        };
        let mut launcher = command
            .envs(place.environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // The child has its own process group: Ctrl-C at the terminal goes to this process
            // only, which decides what ends.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", installed.python.display()))?;

        let mut line = String::new();
        if let Some(output) = launcher.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let Ok(server) = line.trim().parse() else {
            let status = launcher.wait()?;
            bail!("the launcher ended ({status}):\n{}", tail(place.log));
        };
        Ok(Self {
            launcher,
            server,
            log: place.log.to_path_buf(),
        })
    }

    /// Returns the pids of the launcher and of the server.
    pub fn pids(&self) -> [u32; 2] {
        [self.launcher.id(), self.server]
    }

    /// Returns the end of the log.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// Returns the exit status if the server has exited.
    ///
    /// # Errors
    ///
    /// Fails if the system cannot report the status.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.launcher.try_wait()?)
    }

    /// Waits for `condition` while the server runs. Returns `Ok(false)` if it exited by itself.
    ///
    /// # Errors
    ///
    /// Fails if the bound passes; the error includes the end of the log.
    pub fn wait_until(
        &mut self,
        what: &str,
        bound: Duration,
        condition: impl Fn() -> bool,
    ) -> Result<bool> {
        let outcome = poll(bound, || {
            if self.ended()?.is_some() {
                return Ok(Some(false));
            }
            Ok(condition().then_some(true))
        })?;
        match outcome {
            Some(outcome) => Ok(outcome),
            None => bail!(
                "{what} did not start within {bound:?}; its log ends with:\n{}",
                self.log_tail()
            ),
        }
    }

    /// Sends SIGKILL and waits until the server is gone. The directory stays.
    ///
    /// # Errors
    ///
    /// Fails if the launcher cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        if let Some(mut input) = self.launcher.stdin.take() {
            // An error means that the server has already exited.
            drop(input.write_all(b"kill\n"));
            drop(input);
        }
        self.launcher.wait()?;
        Ok(())
    }

    /// Stops the server as dropping it does, and returns the exit status.
    ///
    /// # Errors
    ///
    /// Fails if the launcher cannot be waited for.
    pub fn end(mut self) -> Result<ExitStatus> {
        drop(self.launcher.stdin.take());
        Ok(self.launcher.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.launcher.stdin.take());
        // The launcher exits after its child. Waiting for it leaves neither a zombie nor files.
        drop(self.launcher.wait());
    }
}

/// A server that serves.
pub(crate) struct Started {
    pub(crate) process: Process,
    pub(crate) port: u16,
    pub(crate) directory: PathBuf,
}

/// Starts a server in a new directory and on a free port, and waits until it serves. `start` is
/// given the place, its directory and the port; `serves` is given the log and the port.
///
/// # Errors
///
/// Fails if the server does not start; the error includes the end of its log.
pub(crate) fn start_on_free_port(
    name: &str,
    start: impl Fn(&Place<'_>, &Path, u16) -> Result<Process>,
    serves: impl Fn(&Path, u16) -> bool,
) -> Result<Started> {
    let directory = tempfile::Builder::new()
        .prefix(&format!("sluice-{}-", name.to_lowercase()))
        .tempdir()?;
    let log = log_file(directory.path());
    let place = Place::new(directory.path(), &log);
    for _ in 0..PORT_TRIES {
        let port = free_port()?;
        let mut process = start(&place, directory.path(), port)?;
        if process.wait_until(name, START_BOUND, || serves(&log, port))? {
            // From now on the launcher removes the directory.
            return Ok(Started {
                process,
                port,
                directory: directory.keep(),
            });
        }
    }
    bail!("{name} did not start; its log ends with:\n{}", tail(&log))
}

/// Returns the last lines of a file, or why there are none.
pub fn tail(path: &Path) -> String {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return format!("(cannot read {}: {error})", path.display()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines.get(first..).unwrap_or_default().join("\n")
}
