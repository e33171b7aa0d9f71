//! Gives each test its own queue, bucket, database and daemons, and compares the result at the end.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sqs::types::MessageSystemAttributeName;
use hyper::http::request::Parts;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use sluice_testkit::install::install;
use sluice_testkit::launch::{Mode, Place, Process, tail};
use sluice_testkit::proxy::Proxy;
use sluice_testkit::xapi::{Bundle, EventType, Generator, write_lean_declarations};
use sluice_testkit::{
    Aws, ClickHouse, Cluster, Site, SiteOptions, Stack, exact, project, wait_for,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

/// Longer than any wait here takes on a busy machine.
pub(crate) const BOUND: Duration = Duration::from_secs(300);
/// The minimum that the configuration allows. Leases last equally long.
pub(crate) const VISIBILITY: Duration = Duration::from_secs(10);
/// Longer than the grace period of the daemon.
const GRACE: Duration = Duration::from_secs(90);

/// The resources of one test: its queue, bucket, database and daemons.
pub(crate) struct Harness<'a> {
    /// The server that the daemons use.
    pub(crate) clickhouse: &'a ClickHouse,
    /// All servers that share its tables.
    pub(crate) servers: &'a [ClickHouse],
    pub(crate) aws: &'a Aws,
    pub(crate) site: Site,
    /// The configuration of the daemons. Changes take effect for daemons that are started later.
    pub(crate) config: Value,
    pub(crate) generator: Generator,
    /// The objects whose rows the tables must have at the end.
    pub(crate) expected: Vec<Bundle>,
    directory: TempDir,
    daemons: AtomicU32,
}

/// A running `sluice run`.
pub(crate) struct Daemon {
    process: Option<Process>,
    log: PathBuf,
}

impl Harness<'static> {
    /// Creates a harness on the servers that all tests share.
    pub(crate) async fn shared(name: &str) -> Result<Self> {
        Self::shared_with(name, 3).await
    }

    pub(crate) async fn shared_with(name: &str, max_receive_count: u32) -> Result<Self> {
        let stack = Stack::shared();
        Self::new(stack.servers(), stack, name, max_receive_count).await
    }
}

impl<'a> Harness<'a> {
    /// Creates a migrated database and an empty queue.
    pub(crate) async fn new(
        servers: &'a [ClickHouse],
        stack: &'a Stack,
        name: &str,
        max_receive_count: u32,
    ) -> Result<Self> {
        let mut harness = Self::unmigrated(servers, stack, name, max_receive_count).await?;
        if harness.is_replicated() {
            harness.set("clickhouse.cluster", Cluster::NAME);
        }
        harness.migrate().await?;
        exact::keep_duplicates(servers, &harness.site).await?;
        Ok(harness)
    }

    /// Creates an empty queue and picks the name of a database that does not exist.
    pub(crate) async fn unmigrated(
        servers: &'a [ClickHouse],
        stack: &'a Stack,
        name: &str,
        max_receive_count: u32,
    ) -> Result<Self> {
        let clickhouse = servers.first().context("no server")?;
        let options = SiteOptions {
            max_receive_count,
            visibility_timeout: VISIBILITY,
        };
        let site = stack.site_with(name, options).await?;
        remove_test_event(&site).await?;
        let directory = tempfile::Builder::new()
            .prefix("sluice-faults-")
            .tempdir()?;
        let types = directory.path().join("event_types");
        write_lean_declarations(&types)?;
        let config = json!({
            "queue": {
                "url": site.queue_url,
                "wait_time": "1s",
                "visibility_timeout": "10s",
                "retry_backoff_min": "1s",
                "retry_backoff_max": "2s",
            },
            "clickhouse": {
                "url": clickhouse.url(),
                "database": site.database,
                // It saves sixteen connections at each start.
                "topology": "single",
                "connect_timeout": "2s",
                "query_timeout": "10s",
            },
            "s3": {
                "clickhouse_endpoint": stack.aws.endpoint(),
                "clickhouse_access": {
                    "kind": "keys", "access_key_id": "test", "secret_access_key": "test",
                },
            },
            // Objects that are announced together are loaded together.
            "batch": { "window": "500ms", "flush_when_idle": false },
            "load": {
                "retry_backoff_min": "100ms",
                "retry_backoff_max": "1s",
                "probe_interval": "500ms",
            },
            "shutdown": { "grace_period": "60s" },
            "event_types": { "dir": types.display().to_string() },
            "admin": { "listen": "127.0.0.1:0" },
            "log": { "format": "json" },
        });
        // Each test has a different seed. Equal statements of two tests would not interfere, but
        // different ones are easier to distinguish.
        let seed = site.bucket.bytes().fold(7, |seed: u64, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let mut harness = Self {
            clickhouse,
            servers,
            aws: &stack.aws,
            site,
            config,
            generator: Generator::new(seed),
            expected: Vec::new(),
            directory,
            daemons: AtomicU32::new(0),
        };
        if harness.is_replicated() {
            harness.set("clickhouse.engine", "replicated");
            harness.set("clickhouse.topology", "auto");
            // Replicas that share two cores with other tests lag behind for seconds.
            harness.set("clickhouse.query_timeout", "30s");
            harness.set("load.janitor_interval", "1s");
        }
        Ok(harness)
    }

    pub(crate) fn is_replicated(&self) -> bool {
        self.servers.len() > 1
    }

    /// Sets a field such as `clickhouse.url`.
    pub(crate) fn set(&mut self, field: &str, value: impl Into<Value>) {
        let pointer = field.split('.').fold(&mut self.config, |at, key| {
            at.as_object_mut()
                .expect("a section")
                .entry(key)
                .or_insert_with(|| json!({}))
        });
        *pointer = value.into();
    }

    /// Loads the event types with all of their columns from now on. By default, they have few.
    pub(crate) fn use_all_columns(&mut self) {
        let types = project::path("config/event_types");
        self.set("event_types.dir", types.display().to_string());
    }

    /// Returns `database.table`.
    pub(crate) fn table(&self, name: &str) -> String {
        format!("{}.{name}", self.site.database)
    }

    /// Runs `sluice migrate` directly against the server.
    pub(crate) async fn migrate(&self) -> Result<()> {
        let mut config = self.config.clone();
        config["clickhouse"]["url"] = self.clickhouse.url().into();
        config["clickhouse"]["user"] = "default".into();
        config["clickhouse"]["password"] = "".into();
        // Many tests create their tables at the same time.
        config["clickhouse"]["query_timeout"] = "5m".into();
        let output = self.execute(&config, &["migrate"], "").await?;
        ensure!(
            output.status.success(),
            "sluice migrate failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Runs a subcommand and waits for it to exit. `failpoints` is as for [`Harness::start`].
    pub(crate) async fn command(
        &self,
        arguments: &[impl AsRef<OsStr>],
        failpoints: &str,
    ) -> Result<Output> {
        self.execute(&self.config, arguments, failpoints).await
    }

    async fn execute(
        &self,
        config: &Value,
        arguments: &[impl AsRef<OsStr>],
        failpoints: &str,
    ) -> Result<Output> {
        // Each command has its own log file, since commands can run side by side.
        let file = tempfile::Builder::new()
            .suffix(".yaml")
            .tempfile_in(self.directory.path())?;
        let path = file.path();
        std::fs::write(path, config.to_string())?;
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(arguments)
            .arg("--config")
            .arg(path)
            .envs(self.aws.environment())
            .env("FAILPOINTS", failpoints)
            .current_dir(self.directory.path())
            .output()
            .await?;
        Ok(output)
    }

    /// Uploads `count` generated objects, whose rows the tables must have at the end.
    pub(crate) async fn put_bundles(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let bundle = self.generator.bundle();
            self.put(bundle).await?;
        }
        Ok(())
    }

    /// Returns whether any uploaded object must produce a row of this type.
    pub(crate) fn expects(&self, kind: EventType) -> bool {
        let mut bundles = self.expected.iter();
        bundles.any(|bundle| bundle.expected_rows.rows(kind) > 0)
    }

    pub(crate) async fn put(&mut self, bundle: Bundle) -> Result<()> {
        self.site.put(&bundle.key, bundle.bytes.clone()).await?;
        self.expected.push(bundle);
        Ok(())
    }

    /// Starts a daemon. `failpoints` has the syntax of `FAILPOINTS`; it is empty for none.
    pub(crate) fn start(&self, failpoints: &str) -> Result<Daemon> {
        self.start_with(failpoints, &[])
    }

    pub(crate) fn start_with(
        &self,
        failpoints: &str,
        environment: &[(&str, String)],
    ) -> Result<Daemon> {
        let number = self.daemons.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.path().join(format!("worker-{number}.yaml"));
        std::fs::write(&path, self.config.to_string())?;
        let log = self.directory.path().join(format!("worker-{number}.log"));
        let mut variables: BTreeMap<&str, String> = self.aws.environment().into_iter().collect();
        variables.insert("FAILPOINTS", failpoints.to_owned());
        variables.insert("RUST_BACKTRACE", "1".to_owned());
        variables.extend(environment.iter().cloned());
        let variables: Vec<(&str, String)> = variables.into_iter().collect();
        let arguments = ["run", "--config", &path.display().to_string()].map(str::to_owned);
        let place = Place {
            directory: None,
            log: &log,
            environment: &variables,
            grace: GRACE,
        };
        let binary = Path::new(env!("CARGO_BIN_EXE_sluice"));
        let process = Process::start(&install()?, &Mode::Command(binary, &arguments), &place)?;
        Ok(Daemon {
            process: Some(process),
            log,
        })
    }

    /// Waits until the queue is empty.
    pub(crate) async fn wait_until_drained(&self, daemons: &[&Daemon]) {
        self.wait_until_drained_within(BOUND, daemons).await;
    }

    pub(crate) async fn wait_until_drained_within(&self, bound: Duration, daemons: &[&Daemon]) {
        let what = format!("the queue of {} to empty", self.site.bucket);
        wait_for(&what, bound, async || {
            let (visible, in_flight) = self.site.queue_depth().await?;
            if visible + in_flight == 0 {
                return Ok(Some(()));
            }
            let logs: String = daemons.iter().map(|daemon| tail(&daemon.log)).collect();
            bail!("{visible} visible, {in_flight} in flight\n{logs}")
        })
        .await;
    }

    /// Waits until the queue is empty, compares the rows, and requires the daemons to exit cleanly.
    pub(crate) async fn finish(&self, daemons: Vec<Daemon>) -> Result<()> {
        self.wait_until_drained(&daemons.iter().collect::<Vec<_>>())
            .await;
        if self.is_replicated() {
            self.wait_until_exact(self.servers).await;
        }
        for daemon in daemons {
            // Before that, SIGTERM would kill the process without a graceful shutdown.
            daemon.wait_until_ready().await;
            daemon.stop().await?;
        }
        let outcome = async {
            self.assert_dlq(0).await?;
            self.assert_exact().await
        };
        outcome.await.with_context(|| self.logs())
    }

    pub(crate) async fn assert_dlq(&self, expected: u64) -> Result<()> {
        let found = self.site.dlq_depth().await?;
        if found == expected {
            return Ok(());
        }
        let request = self
            .site
            .sqs
            .receive_message()
            .queue_url(&self.site.dlq_url);
        let messages = request
            .max_number_of_messages(10)
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .send()
            .await?;
        bail!("{found} messages in the dead-letter queue, not {expected}: {messages:?}")
    }

    /// Moves the dead letters back to the queue, as an operator does.
    pub(crate) async fn redrive(&self) -> Result<()> {
        let sqs = &self.site.sqs;
        loop {
            let received = sqs.receive_message().queue_url(&self.site.dlq_url);
            let received = received.max_number_of_messages(10).send().await?;
            if received.messages().is_empty() {
                return Ok(());
            }
            for message in received.messages() {
                self.site.send(message.body().context("no body")?).await?;
                let delete = sqs.delete_message().queue_url(&self.site.dlq_url);
                let handle = message.receipt_handle().context("no handle")?;
                delete.receipt_handle(handle).send().await?;
            }
        }
    }

    /// Returns the last lines of all daemons' logs.
    pub(crate) fn logs(&self) -> String {
        (0..self.daemons.load(Ordering::Relaxed))
            .map(|number| {
                let log = self.directory.path().join(format!("worker-{number}.log"));
                format!("--- worker {number}\n{}\n", tail(&log))
            })
            .collect()
    }

    /// Compares the rows of every object and kind with what was generated.
    pub(crate) async fn assert_exact(&self) -> Result<()> {
        let problems = exact::differences(self.servers, &self.site, &self.expected).await?;
        ensure!(problems.is_empty(), "{}:\n{problems}", self.site.bucket);
        Ok(())
    }

    /// Waits until each of these replicas has every row once. The rows of statements that outlive
    /// their batches are deleted by workers, so these must be running.
    pub(crate) async fn wait_until_exact(&self, replicas: &[ClickHouse]) {
        wait_for("every row to be on every server once", BOUND, async || {
            let problems = exact::differences(replicas, &self.site, &self.expected).await?;
            ensure!(problems.is_empty(), "{problems}{}", self.logs());
            Ok(Some(()))
        })
        .await;
    }

    /// Asserts that the worker received as many messages as were sent.
    pub(crate) async fn assert_received(&self, daemon: &Daemon, messages: usize) -> Result<()> {
        let received = daemon.metric("sluice_sqs_messages_received_total").await?;
        ensure!(
            received == messages as u64,
            "{received} receives of {messages} messages"
        );
        Ok(())
    }

    /// Counts how often inserts of batches were started by all workers, from the server's query
    /// log.
    pub(crate) async fn inserts_started(&self) -> Result<u64> {
        self.clickhouse.execute("SYSTEM FLUSH LOGS").await?;
        self.clickhouse
            .scalar(&format!(
                "SELECT count() FROM system.query_log WHERE type = 'QueryStart' \
                 AND query_kind = 'Insert' AND startsWith(log_comment, 'sluice batch') \
                 AND position(query, '{}') > 0",
                self.site.bucket
            ))
            .await
    }

    /// Returns `(key, class)` of every object that is recorded as failed, without duplicates.
    pub(crate) async fn failures(&self) -> Result<Vec<(String, String)>> {
        let rows = self
            .clickhouse
            .rows(&format!(
                "SELECT DISTINCT key, class FROM {} ORDER BY key, class",
                self.table("ledger_failures")
            ))
            .await?;
        let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        Ok(rows
            .iter()
            .map(|row| (text(row, "key"), text(row, "class")))
            .collect())
    }
}

impl Daemon {
    /// Sends SIGKILL.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)
    }

    /// Sends SIGTERM and does not wait.
    pub(crate) fn terminate(&self) -> Result<()> {
        let process = self.process.as_ref().context("the daemon has exited")?;
        let [_, pid] = process.pids();
        let status = Command::new("kill")
            .args(["-TERM", &pid.to_string()])
            .status()?;
        ensure!(status.success(), "kill: {status}");
        Ok(())
    }

    /// Sends SIGTERM and requires exit code 0.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let Some(process) = self.process.take() else {
            bail!("the daemon has exited");
        };
        let status = tokio::task::spawn_blocking(|| process.end()).await??;
        ensure!(
            status.success(),
            "sluice exited with {status}; its log ends with:\n{}",
            tail(&self.log)
        );
        Ok(())
    }

    /// Waits for the daemon to abort itself at a failpoint.
    pub(crate) async fn aborted(self, failpoint: &str) -> Result<()> {
        /// 128 + SIGABRT.
        const ABORTED: i32 = 134;
        let code = self.exit_code().await?;
        ensure!(code == ABORTED, "{failpoint}: exited with {code}");
        Ok(())
    }

    /// Waits for the daemon to exit. Returns its exit code, or 128 plus the signal's number.
    pub(crate) async fn exit_code(mut self) -> Result<i32> {
        let Some(mut process) = self.process.take() else {
            bail!("the daemon has exited");
        };
        let log = self.log.clone();
        let status = wait_for("sluice to exit", BOUND, async || match process.ended()? {
            Some(status) => Ok(Some(status)),
            None => bail!("it is still running; its log ends with:\n{}", tail(&log)),
        })
        .await;
        status.code().context("the launcher was killed")
    }

    /// Returns every line of the log, as JSON.
    pub(crate) fn log_lines(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.log)?;
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    /// Counts the log lines whose message contains this text.
    pub(crate) fn count_logged(&self, text: &str) -> Result<usize> {
        let lines = self.log_lines()?;
        let contains_text = |line: &&Value| {
            line["message"]
                .as_str()
                .is_some_and(|message| message.contains(text))
        };
        Ok(lines.iter().filter(contains_text).count())
    }

    /// Counts the batches that the daemon recovered with this outcome.
    pub(crate) fn count_recovered(&self, end: &str) -> Result<usize> {
        let lines = self.log_lines()?;
        let is = |line: &&Value| line["message"] == "recovery ended" && line["end"] == end;
        Ok(lines.iter().filter(is).count())
    }

    /// Waits until the log has a line with this text.
    pub(crate) async fn wait_for_log(&self, text: &str) {
        wait_for(
            &format!("{text:?} in the log"),
            BOUND,
            async || match self.count_logged(text)? {
                0 => bail!("the log ends with:\n{}", tail(&self.log)),
                _ => Ok(Some(())),
            },
        )
        .await;
    }

    async fn get(&self, path: &str) -> Result<String> {
        let lines = self.log_lines()?;
        let admin = lines.iter().find_map(|line| line["admin"].as_str());
        let admin = admin.context("it is not listening yet")?;
        let mut stream = tokio::net::TcpStream::connect(admin).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Returns the value of a metric, summed over all labels.
    pub(crate) async fn metric(&self, name: &str) -> Result<u64> {
        let text = self.get("/metrics").await?;
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        Ok(values.sum::<f64>() as u64)
    }

    /// Waits until `/readyz` answers with this status and a text that contains `text`.
    pub(crate) async fn wait_for_readiness(&self, status: u16, text: &str) {
        let what = format!("/readyz to return {status} and {text:?}");
        wait_for(&what, BOUND, async || {
            let answer = self.get("/readyz").await?;
            if answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(text) {
                return Ok(Some(()));
            }
            bail!("{answer}\n{}", tail(&self.log))
        })
        .await;
    }

    pub(crate) async fn wait_until_ready(&self) {
        self.wait_for_readiness(200, "ready").await;
    }
}

/// The kinds of statements that Sluice sends, which a proxy recognises by their text.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Statement {
    LookUp,
    Claim,
    Verify,
    Insert,
    /// An insert whose data the worker streams.
    Stream,
    Kill,
    ReadBack,
    Record,
    Delete,
}

impl Statement {
    pub(crate) fn matcher(self) -> impl Fn(&Parts, &[u8]) -> bool + Send + 'static {
        move |parts, body| self.is_in(&text_of(parts, body))
    }

    pub(crate) fn is_in(self, text: &str) -> bool {
        let has = |word: &str| text.contains(word);
        let claim_statuses = has("object_id IN (");
        let inserts = has("INSERT INTO") && has(" s3(");
        match self {
            Self::LookUp => claim_statuses && !has("batch_id != "),
            Self::Verify => claim_statuses && has("batch_id != "),
            Self::Claim => has("INSERT INTO") && has("ledger_objects") && !inserts,
            Self::Insert => inserts,
            Self::Stream => has("INSERT INTO") && has("input('framed String')"),
            // On replicas, a kill begins with a look at what runs there.
            Self::Kill => {
                has("KILL QUERY") || (has("clusterAllReplicas(") && has("system.processes"))
            }
            Self::Delete => has("DELETE FROM"),
            Self::ReadBack => has("SELECT source_path, kind, sum(rows)"),
            Self::Record => {
                has("INSERT INTO") && has("ledger_batches") && has("loaded") && !inserts
            }
        }
    }
}

/// Returns a request's statement, whether it is in the URL or in the body.
pub(crate) fn text_of(parts: &Parts, body: &[u8]) -> String {
    let query = parts.uri.query().unwrap_or_default();
    let query = percent_decode_str(query)
        .decode_utf8_lossy()
        .replace('+', " ");
    format!("{query}\n{}", String::from_utf8_lossy(body))
}

/// Waits until `count` requests have hit a fault.
pub(crate) async fn wait_for_hits(proxy: &Proxy, count: usize) {
    wait_for("requests to hit a fault", BOUND, async || {
        let hits = proxy.hits();
        ensure!(hits >= count, "{hits} of {count} hits");
        Ok(Some(()))
    })
    .await;
}

/// Removes the test event that S3 sends to a new queue, so that only messages about objects count.
pub(crate) async fn remove_test_event(site: &Site) -> Result<()> {
    wait_for("the test event", BOUND, async || {
        let received = site
            .sqs
            .receive_message()
            .queue_url(&site.queue_url)
            .wait_time_seconds(1)
            .send()
            .await?;
        let Some(message) = received.messages().first() else {
            return Ok(None);
        };
        let handle = message.receipt_handle().context("no receipt handle")?;
        let request = site.sqs.delete_message().queue_url(&site.queue_url);
        request.receipt_handle(handle).send().await?;
        Ok(Some(()))
    })
    .await;
    Ok(())
}

/// A scenario for [`concurrently`]. It is boxed, since a test's stack has no room for many of them.
pub(crate) type Scenario = std::pin::Pin<Box<dyn Future<Output = Result<()>>>>;

pub(crate) fn scenario(
    name: impl Into<String>,
    scenario: impl Future<Output = Result<()>> + 'static,
) -> (String, Scenario) {
    (name.into(), Box::pin(scenario))
}

/// Scenarios that run at a time on replicas, which lag behind if more of them create and load tables.
const ON_REPLICAS: usize = 2;

/// Runs scenarios concurrently, since each mostly waits. The first error ends all of them.
pub(crate) async fn concurrently(
    scenarios: impl IntoIterator<Item = (String, Scenario)>,
) -> Result<()> {
    let local = tokio::task::LocalSet::new();
    let at_a_time = match Stack::shared().servers() {
        [_] => Semaphore::MAX_PERMITS,
        _ => ON_REPLICAS,
    };
    let permits = Arc::new(Semaphore::new(at_a_time));
    local
        .run_until(async {
            let mut running = tokio::task::JoinSet::new();
            for (name, scenario) in scenarios {
                let permits = Arc::clone(&permits);
                running.spawn_local(async move {
                    let _permit = permits.acquire().await?;
                    scenario.await.context(name)
                });
            }
            while let Some(ended) = running.join_next().await {
                ended??;
            }
            Ok(())
        })
        .await
}
