//! Runs the daemon as a child process of a test: configures, migrates, starts, stops and kills it.

use std::fmt::Display;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_testkit::xapi::{Bundle, EventType, ExpectedRows, write_lean_declarations};
use sluice_testkit::{ClickHouse, Site, Stack, project, wait_for};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The upper bound for any wait. In practice, no wait takes more than a tenth of it.
pub(crate) const BOUND: Duration = Duration::from_secs(180);

/// Returns a command that runs the binary under test.
pub(crate) fn sluice() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    // The developer's own settings must not leak into the test.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("SLUICE") || name.starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null());
    command
}

/// A daemon with its configuration, which can be started repeatedly.
pub(crate) struct Sluice {
    directory: TempDir,
    settings: Vec<(String, String)>,
    environment: Vec<(&'static str, String)>,
    starts: usize,
    child: Option<Child>,
}

impl Sluice {
    /// Creates a daemon for a site of the shared stack, with a short window and short backoffs.
    pub(crate) fn new(stack: &Stack, site: &Site) -> Self {
        let access = stack.aws.s3_access().expect("access to S3");
        Self::with_access(stack, site, access)
    }

    /// Creates the same with other credentials for ClickHouse's access to S3.
    pub(crate) fn with_access(stack: &Stack, site: &Site, access: impl Display) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("sluice-it-")
            .tempdir()
            .expect("a temporary directory");
        let types = directory.path().join("event_types");
        write_lean_declarations(&types).expect("writable");
        let endpoint = stack.aws.s3_endpoint();
        let endpoint = endpoint.map(|it| format!("  clickhouse_endpoint: {it}\n"));
        let user = stack.clickhouse.user();
        let configuration = format!(
            "queue:\n  url: {queue}\n  wait_time: 1s\n  visibility_timeout: 10s\n  \
             retry_backoff_min: 1s\n  retry_backoff_max: 1s\n\
             clickhouse:\n  url: {clickhouse}\n  user: {user}\n  database: {database}\n  \
             topology: single\n\
             s3:\n{endpoint}  clickhouse_access: {access}\n\
             batch:\n  window: 300ms\n\
             load:\n  retry_backoff_min: 50ms\n  retry_backoff_max: 500ms\n  probe_interval: 300ms\n\
             admin:\n  listen: 127.0.0.1:0\n\
             event_types:\n  dir: {types}\n",
            types = types.display(),
            queue = site.queue_url,
            clickhouse = stack.clickhouse.url(),
            database = site.database,
            user = user.name,
            endpoint = endpoint.unwrap_or_default(),
        );
        std::fs::write(directory.path().join("sluice.yaml"), configuration).expect("writable");
        let mut environment = stack.aws.environment();
        if !user.password.is_empty() {
            let password = user.password.clone();
            environment.push(("SLUICE__CLICKHOUSE__PASSWORD", password));
        }
        Self {
            directory,
            settings: Vec::new(),
            environment,
            starts: 0,
            child: None,
        }
    }

    /// Changes one field of the configuration.
    pub(crate) fn set(mut self, path: &str, value: impl ToString) -> Self {
        self.settings.push((path.to_owned(), value.to_string()));
        self
    }

    /// Looks for the servers that answer, and whether tables are replicated. By default, it does
    /// not, which saves sixteen connections at each start.
    pub(crate) fn with_any_topology(self) -> Self {
        self.set("clickhouse.topology", "auto")
    }

    /// Loads the event types with all of their columns. By default, they have few.
    pub(crate) fn with_all_columns(self) -> Self {
        let types = project::path("config/event_types");
        self.set("event_types.dir", types.display())
    }

    /// Changes one environment variable.
    pub(crate) fn environment(mut self, name: &'static str, value: String) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Runs a subcommand and waits for it to exit.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        let mut command = self.prepare();
        command.args(arguments).output().expect("sluice runs")
    }

    /// Starts a subcommand with its output piped.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.prepare();
        command.args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("sluice starts")
    }

    pub(crate) fn migrate(&self) {
        let output = self.command(&["migrate"]);
        assert!(output.status.success(), "{output:?}");
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "it is already running");
        self.starts += 1;
        let log = File::create(self.log_file()).expect("a log file");
        let mut command = self.prepare();
        command.arg("run").stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("sluice starts"));
    }

    pub(crate) fn prepare(&self) -> Command {
        let mut command = sluice();
        command
            .envs(self.environment.iter().cloned())
            .arg("--config")
            .arg(self.directory.path().join("sluice.yaml"));
        for (path, value) in &self.settings {
            command.arg("--set").arg(format!("{path}={value}"));
        }
        command
    }

    /// Sends SIGTERM, as an orchestrator does, and waits for the daemon to exit.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.exit_status().await
    }

    pub(crate) fn terminate(&self) {
        terminate(self.child.as_ref().expect("it is running"));
    }

    /// Waits for the daemon to exit.
    pub(crate) async fn exit_status(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it is running");
        let status = wait_for("sluice to exit", BOUND, async || Ok(child.try_wait()?)).await;
        self.child = None;
        status
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it is running");
        child.kill().expect("it can be killed");
        child.wait().expect("it exits");
    }

    pub(crate) fn assert_running(&mut self) {
        let child = self.child.as_mut().expect("it was started");
        let status = child.try_wait().expect("a child");
        assert_eq!(status, None, "sluice exited unexpectedly");
    }

    /// Returns the command line, which every user of the machine can see.
    pub(crate) fn command_line(&self) -> String {
        let pid = self.child.as_ref().expect("it is running").id().to_string();
        let output = Command::new("ps")
            .args(["-o", "args=", "-p", &pid])
            .output();
        String::from_utf8_lossy(&output.expect("`ps` runs").stdout).into_owned()
    }

    /// Returns the log of the latest start.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory
            .path()
            .join(format!("sluice-{}.log", self.starts))
    }

    /// Returns the address of the admin listener once it is listening.
    pub(crate) fn admin_address(&self) -> Result<String> {
        let log = self.log();
        let address = log.split_once(" admin=");
        let address = address.and_then(|(_, rest)| rest.split_whitespace().next());
        Ok(address.context("not listening yet")?.to_owned())
    }

    /// Returns the status and body of a page of the admin listener.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, String)> {
        self.request("GET", path).await
    }

    pub(crate) async fn request(&self, method: &str, path: &str) -> Result<(u16, String)> {
        let address = self.admin_address()?;
        self.request_as(&address, method, path).await
    }

    /// Requests the same with a different `Host` header.
    pub(crate) async fn request_as(
        &self,
        host: &str,
        method: &str,
        path: &str,
    ) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.admin_address()?).await?;
        let request = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        let status = response.split_whitespace().nth(1).context("no status")?;
        let (_, body) = response.split_once("\r\n\r\n").context("no body")?;
        Ok((status.parse()?, body.to_owned()))
    }

    /// Returns the content of `/status.json`.
    pub(crate) async fn status(&self) -> serde_json::Value {
        let (_, status) = self.get("/status.json").await.expect("a response");
        serde_json::from_str(&status).expect("JSON")
    }

    /// Returns the current and the peak resident memory, in bytes.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let pid = self.child.as_ref().expect("it is running").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
        let kilobytes = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_whitespace().nth(1));
            value.and_then(|value| value.parse::<u64>().ok())
        };
        let [current, peak] =
            ["VmRSS:", "VmHWM:"].map(|name| kilobytes(name).expect("a size") * 1024);
        (current, peak)
    }

    /// Waits until the daemon is ready.
    pub(crate) async fn wait_until_ready(&self) {
        wait_for("sluice to be ready", BOUND, async || {
            let (status, body) = self.get("/readyz").await?;
            ensure!(status == 200, "{status} {body}");
            Ok(Some(()))
        })
        .await;
    }

    /// Waits until the daemon reports that it is not ready for this reason, and returns the full
    /// answer.
    pub(crate) async fn wait_until_not_ready(&self, because: &str) -> String {
        wait_for("a reason not to be ready", BOUND, async || {
            let (status, body) = self.get("/readyz").await?;
            ensure!(status == 503 && body.contains(because), "{status} {body}");
            Ok(Some(body))
        })
        .await
    }

    /// Returns the value of a counter or gauge, summed over all labels.
    pub(crate) async fn metric(&self, name: &str) -> Result<f64> {
        let (_, body) = self.get("/metrics").await?;
        let values = body
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }
}

/// Sends SIGTERM.
pub(crate) fn terminate(child: &Child) {
    let pid = child.id().to_string();
    let status = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(status.expect("`kill` runs").success());
}

impl Drop for Sluice {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            print_log_tail(&self.log());
        }
    }
}

#[expect(clippy::print_stderr, reason = "shown only when a test fails")]
fn print_log_tail(log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let first = lines.len().saturating_sub(60);
    eprintln!("sluice's log ends with:\n{}", lines[first..].join("\n"));
}

/// Waits until the queue has no messages, visible or in flight.
pub(crate) async fn wait_until_drained(site: &Site) {
    wait_for_messages(site, 0).await;
}

/// Waits until the queue has `messages` messages, visible or in flight.
pub(crate) async fn wait_for_messages(site: &Site, messages: u64) {
    let what = format!("{messages} messages in the queue");
    wait_for(&what, BOUND, async || {
        let (visible, in_flight) = site.queue_depth().await?;
        let all = visible + in_flight;
        ensure!(
            all == messages,
            "{visible} visible and {in_flight} in flight"
        );
        Ok(Some(()))
    })
    .await;
}

/// Waits until the dead-letter queue has `messages` messages.
pub(crate) async fn wait_for_dead_letters(site: &Site, messages: u64) {
    let what = format!("{messages} dead letters");
    wait_for(&what, BOUND, async || {
        let dead = site.dlq_depth().await?;
        ensure!(dead == messages, "{dead}");
        Ok(Some(()))
    })
    .await;
}

/// Uploads the bundles and returns the rows that loading them must produce.
pub(crate) async fn upload(site: &Site, bundles: &[Bundle]) -> ExpectedRows {
    let mut expected_rows = ExpectedRows::default();
    for bundle in bundles {
        site.put(&bundle.key, bundle.bytes.clone()).await.unwrap();
        expected_rows += &bundle.expected_rows;
    }
    expected_rows
}

/// Returns a line that matches no event type and can be found by its name.
pub(crate) fn line(name: &str) -> String {
    format!("{{\"note\":\"{name}\"}}\n")
}

/// Returns the names of the loaded lines, sorted.
pub(crate) async fn loaded_names(stack: &Stack, site: &Site) -> Vec<String> {
    let sql = format!(
        "SELECT JSONExtractString(raw, 'note') FROM {}.unmatched_statements ORDER BY 1",
        site.database
    );
    let text = stack.clickhouse.query(&sql).await.unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The number of rows of each table, by the table's name.
pub(crate) type Rows = Vec<(String, u64)>;

/// Returns the number of rows in each table.
pub(crate) async fn rows(clickhouse: &ClickHouse, database: &str) -> Rows {
    let mut rows = Rows::new();
    let tables = EventType::ALL.map(EventType::table);
    for table in tables
        .into_iter()
        .chain(["rejected_lines", "unmatched_statements"])
    {
        let sql = format!("SELECT count() FROM {database}.{table}");
        rows.push((table.to_owned(), clickhouse.scalar(&sql).await.unwrap()));
    }
    let sql = format!("SELECT sum(rows) FROM {database}.object_rows WHERE kind != 'blank'");
    rows.push((
        "object_rows".to_owned(),
        clickhouse.scalar(&sql).await.unwrap(),
    ));
    let loaded = loaded(clickhouse, database).await;
    rows.push(("objects loaded".to_owned(), loaded));
    rows
}

/// Returns the number of rows that each table must have. Objects are counted by the ledger.
pub(crate) fn expected_counts(expected_rows: &ExpectedRows) -> Rows {
    let tables = EventType::ALL
        .into_iter()
        .map(|kind| (kind.table().to_owned(), expected_rows.rows(kind)));
    tables
        .chain([
            ("rejected_lines".to_owned(), expected_rows.rejected),
            ("unmatched_statements".to_owned(), expected_rows.unmatched),
            ("object_rows".to_owned(), expected_rows.statements()),
            ("objects loaded".to_owned(), expected_rows.objects),
        ])
        .collect()
}

/// Asserts that each table has the expected number of rows.
pub(crate) async fn assert_rows(
    clickhouse: &ClickHouse,
    database: &str,
    expected_rows: &ExpectedRows,
) {
    assert_eq!(
        rows(clickhouse, database).await,
        expected_counts(expected_rows)
    );
}

/// Counts the objects that the ledger records as loaded, once for each loaded batch that lists them
/// and is not superseded.
pub(crate) async fn loaded(clickhouse: &ClickHouse, database: &str) -> u64 {
    let sql = format!(
        "SELECT count() FROM (SELECT DISTINCT object_id, batch_id FROM {database}.ledger_objects) \
         WHERE batch_id IN (SELECT batch_id FROM {database}.ledger_batches WHERE event = 'loaded') \
         AND (object_id, batch_id) NOT IN (\
           SELECT object_id, arrayJoin(supersedes) FROM {database}.ledger_objects WHERE batch_id IN \
           (SELECT batch_id FROM {database}.ledger_batches WHERE event = 'loaded'))"
    );
    clickhouse.scalar(&sql).await.unwrap()
}

/// Returns the body of the message with which S3 would announce the object.
pub(crate) fn announcement(site: &Site, key: &str, etag: &str) -> String {
    let encoded: String = key
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'/' => {
                char::from(byte).to_string()
            }
            b' ' => "+".to_owned(),
            other => format!("%{other:02X}"),
        })
        .collect();
    serde_json::json!({"Records": [{
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": site.bucket}, "object": {"key": encoded, "eTag": etag, "size": 100}},
    }]})
    .to_string()
}
