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

/// How long a server may take to start.
pub(crate) const START_BOUND: Duration = Duration::from_secs(180);
/// How many ports are tried, as another program may take one before the server does.
pub(crate) const PORT_TRIES: usize = 5;
const LOG_TAIL_LINES: usize = 30;

/// What to run.
#[derive(Debug)]
pub enum Mode<'a> {
    /// ClickHouse's engine with these arguments.
    ClickHouse(&'a [String]),
    /// ministack; it takes its settings from the environment.
    Ministack,
    /// Any program, ended with SIGTERM, and with SIGKILL when the grace has passed.
    Command(&'a Path, &'a [String]),
}

/// Where and how to run it.
#[derive(Debug)]
pub struct Place<'a> {
    /// Removed when the process is ended through [`Process`] or through our death.
    pub directory: Option<&'a Path>,
    /// Standard output and error are appended to this file.
    pub log: &'a Path,
    /// Additional environment variables.
    pub environment: &'a [(&'a str, String)],
    /// How long a SIGTERM may take; zero means SIGKILL at once.
    pub grace: Duration,
}

/// A running server.
#[derive(Debug)]
pub struct Process {
    launcher: Child,
    server: u32,
    log: PathBuf,
}

impl Process {
    /// Starts it; does not wait until it serves.
    ///
    /// # Errors
    ///
    /// When the launcher cannot be run.
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
            // A group of its own: Ctrl-C at the terminal is for us alone, we decide what ends.
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

    /// The pids of the launcher and of the server.
    pub fn pids(&self) -> [u32; 2] {
        [self.launcher.id(), self.server]
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    ///
    /// When the system refuses to say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.launcher.try_wait()?)
    }

    /// Waits for `condition`, as long as the server lives. `Ok(false)`: it ended by itself.
    ///
    /// # Errors
    ///
    /// When the bound passes, with the end of the log.
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

    /// SIGKILL; the directory stays. Returns when the server is gone.
    ///
    /// # Errors
    ///
    /// When the launcher cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        if let Some(mut input) = self.launcher.stdin.take() {
            // An error means that it has ended already, which is all that is wanted.
            drop(input.write_all(b"kill\n"));
            drop(input);
        }
        self.launcher.wait()?;
        Ok(())
    }

    /// Ends it as dropping it does, and says how it ended.
    ///
    /// # Errors
    ///
    /// When the launcher cannot be waited for.
    pub fn end(mut self) -> Result<ExitStatus> {
        drop(self.launcher.stdin.take());
        Ok(self.launcher.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.launcher.stdin.take());
        // The launcher ends when its child has; waiting leaves neither a zombie nor files.
        drop(self.launcher.wait());
    }
}

/// Starts a server in a fresh directory and on a free port, and waits until it serves. `start` is
/// given the place, its directory and the port; `serves`, the log and the port.
///
/// # Errors
///
/// When it does not start; the text has the end of its log.
pub(crate) fn start_on_free_port(
    name: &str,
    start: impl Fn(&Place<'_>, &Path, u16) -> Result<Process>,
    serves: impl Fn(&Path, u16) -> bool,
) -> Result<(Process, u16)> {
    let directory = tempfile::Builder::new()
        .prefix(&format!("sluice-{}-", name.to_lowercase()))
        .tempdir()?;
    let log = directory.path().join("output.log");
    let place = Place {
        directory: Some(directory.path()),
        log: &log,
        environment: &[],
        grace: Duration::ZERO,
    };
    for _ in 0..PORT_TRIES {
        let port = free_port()?;
        let mut process = start(&place, directory.path(), port)?;
        if process.wait_until(name, START_BOUND, || serves(&log, port))? {
            // From now on the launcher removes it.
            drop(directory.keep());
            return Ok((process, port));
        }
    }
    bail!("{name} did not start; its log ends with:\n{}", tail(&log))
}

/// The last lines of a file, or why there are none.
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
