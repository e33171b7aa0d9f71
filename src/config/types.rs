//! The configuration as the rest of Sluice sees it.
//!
//! The doc comment of a field is printed by `sluice config schema` and in docs/configuration.md. It
//! describes the field, and when to change it. Defaults are only in config/default.yaml.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::access::S3AccessConfig;
use super::problems::{Problem, Problems};
use super::secret::{Secret, SecretSource};
use super::units::{HumanDuration, HumanSize, Ratio, boolean, texts, whole_number};
use crate::batch::Fallback;
use crate::formats::OnAllRejected;
use crate::statements::insert::Strategy;

/// A valid configuration.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub queue: QueueConfig,
    pub notifications: NotificationsConfig,
    pub clickhouse: ClickHouseConfig,
    pub s3: S3Config,
    pub batch: BatchConfig,
    pub load: LoadConfig,
    pub event_types: EventTypesConfig,
    pub shutdown: ShutdownConfig,
    pub admin: AdminConfig,
    pub log: LogConfig,
    pub telemetry: TelemetryConfig,
}

/// The SQS queue to which S3 announces objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueConfig {
    /// URL of the SQS queue, as `aws sqs get-queue-url` prints it. Required by
    /// `run`, not by `migrate`.
    pub url: Option<String>,

    /// How long one receive waits for messages (long poll). Whole seconds, 0s to 20s. Leave it at
    /// 20s: a shorter wait sends more requests and does not reduce the delay.
    pub wait_time: HumanDuration,

    /// The number of concurrent receives, 1 to 16. One receive returns at most 10 messages. Raise
    /// it if messages stay visible in the queue although load slots are idle.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 16))]
    pub receivers: usize,

    /// The number of messages in flight, 1 to 100,000, at which Sluice stops receiving; it also does
    /// so while `load.concurrency` full batches are waiting. It bounds the worker's memory: receives
    /// that are under way exceed it by at most 20 messages for each of `queue.receivers`. SQS allows 120,000 messages in flight for all workers together: lower it if there
    /// are many workers.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_held: usize,

    /// How long a received message stays hidden from other workers. Whole seconds, 10s to 12h.
    /// While the message is in flight, the timeout is extended each time a third of it has passed,
    /// so it does not have to cover a whole load: it is the time until another worker takes over
    /// from one that crashed.
    pub visibility_timeout: HumanDuration,

    /// How long a message stays hidden after its first failed load, 1s or more.
    /// The delay doubles with each receive, with jitter, up to
    /// `queue.retry_backoff_max`.
    pub retry_backoff_min: HumanDuration,

    /// The longest time that a message stays hidden after a failed load, at most
    /// 12h. Raise it to leave more time to fix a broken object before the redrive
    /// policy moves its message to the dead-letter queue.
    pub retry_backoff_max: HumanDuration,

    /// Start even if the queue has no dead-letter queue. A message that can never be loaded is then
    /// redelivered until its retention period ends. Use it only to evaluate Sluice.
    #[serde(deserialize_with = "boolean")]
    pub allow_missing_dlq: bool,
}

/// Which announced objects are loaded. Messages that announce no such object are deleted, and
/// counted as `filtered`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotificationsConfig {
    /// The events whose objects are loaded, named as in a bucket's notification configuration:
    /// `ObjectCreated:*`, `ObjectCreated:Put`, `ObjectCreated:Post`, `ObjectCreated:Copy`,
    /// `ObjectCreated:CompleteMultipartUpload`. An event that is named after its request counts as
    /// the event of that request (`PutObject` as `ObjectCreated:Put`). An event that does not
    /// indicate how its object was created matches every name.
    #[serde(deserialize_with = "texts")]
    pub events: Vec<String>,

    /// Globs; only objects whose key matches at least one of them are loaded. `*` and `?` do not
    /// match a slash, `**` does; `[a-z]`, `[!a-z]` and `{a,b}` are alternatives; a backslash
    /// escapes the character after it. An empty list matches all keys. Prefer the bucket's own
    /// prefix and suffix filters if they suffice: objects that they exclude cost nothing.
    #[serde(deserialize_with = "texts")]
    pub include: Vec<String>,

    /// Globs; objects whose key matches at least one of them are not loaded. They take precedence
    /// over `notifications.include`.
    #[serde(deserialize_with = "texts")]
    pub exclude: Vec<String>,

    /// A YAML file that declares additional envelopes, in which other services announce the objects
    /// that were written ([notifications](notifications.md)). If unset, only messages of S3, SNS
    /// and EventBridge are understood.
    pub envelopes: Option<PathBuf>,
}

/// The ClickHouse server that reads the objects and stores the rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClickHouseConfig {
    /// URL of ClickHouse's HTTP interface, without user, password or query.
    pub url: String,

    /// The user to log in as. It reads the objects, and reads and writes all
    /// tables of Sluice.
    pub user: String,

    /// The password of `clickhouse.user`. Set it in the environment, or use
    /// `clickhouse.password_file`, rather than writing it in the configuration file.
    pub password: Secret,

    /// A file that contains the password, such as a mounted secret, to use instead of
    /// `clickhouse.password`. It is read for each statement, so a new password needs no restart.
    pub password_file: Option<PathBuf>,

    /// The database in which `migrate` creates all tables.
    pub database: String,

    /// The cluster on which the tables are created: `migrate` adds `ON CLUSTER` with this name to
    /// its statements. Leave it unset for a single server, and for ClickHouse Cloud.
    pub cluster: Option<String>,

    /// The engines of the tables: `plain` MergeTree engines, or `replicated` ones. Choose before
    /// the first `migrate`, which does not convert existing tables.
    pub engine: TableEngine,

    /// Which servers share the tables. `auto`: with replicated tables, the cluster in
    /// `system.clusters` that lists their replicas (`clickhouse.cluster`, if it is set). `single`:
    /// one server; Sluice does not look for others. Any other value is the name of the cluster.
    /// Statements are killed on all of its servers.
    pub topology: String,

    /// Whether `run`, `backfill` and `rejects replay` load although it is not proven that each
    /// object is loaded once: on ClickHouse Cloud, with replicated tables whose servers cannot be
    /// determined, and if servers answer at `clickhouse.url` that do not share the tables.
    /// `refuse`: they report the problem and load nothing. `accept`: they warn and load, and rows
    /// can be loaded twice ([guarantees](guarantees.md#under-which-settings)).
    pub unproven: Unproven,

    /// How long to wait for a connection, 1ms to 1d.
    pub connect_timeout: HumanDuration,

    /// The time limit of ledger statements and of other small statements, 1ms to 1d.
    pub query_timeout: HumanDuration,

    /// The time limit of an insert, 1ms to 1d. An insert that exceeds it is killed and retried.
    /// Raise it if inserts of very large objects do not finish.
    pub insert_timeout: HumanDuration,

    /// The number of inserted blocks that each table remembers, to drop repetitions of them
    /// (`non_replicated_deduplication_window` and `replicated_deduplication_window`), 100 to
    /// 1,000,000. An insert writes one block to each partition (month) that it touches. A batch can
    /// be retried only while its tables remember its blocks: raise it if several workers load more
    /// batches than this during a long outage.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 100, max = 1_000_000))]
    pub dedup_window: u64,

    /// How long replicated tables remember an inserted block, in addition to the limit by number
    /// (`replicated_deduplication_window_seconds`), 1h to 365d, and at least five times
    /// `clickhouse.insert_timeout`. After four fifths of this time, an unfinished batch is not
    /// retried any more: it is rolled back and loaded again. Raise it if an outage of all workers
    /// can last longer than that. Plain tables have no such limit.
    pub dedup_age: HumanDuration,

    /// How long rejected lines and unmatched statements are kept (the TTL of `rejected_lines` and
    /// `unmatched_statements`), 1d or more. Within this time, an event type can be fixed and the
    /// lines can be replayed.
    pub reject_ttl: HumanDuration,

    /// A PEM file of certificate authorities to trust in addition to the system's, for a ClickHouse
    /// server whose certificate was signed by your own authority. Requires an https URL.
    pub ca_file: Option<PathBuf>,
}

impl ClickHouseConfig {
    /// Returns whether requests are sent unencrypted: plain HTTP, to another machine.
    pub fn is_in_clear(&self) -> bool {
        let Ok(url) = Url::parse(&self.url) else {
            return false;
        };
        let is_local = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => true,
        };
        url.scheme() == "http" && !is_local
    }
}

/// The engines of the tables that `migrate` creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TableEngine {
    Plain,
    Replicated,
}

/// Whether to load although it is not proven that each object is loaded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Unproven {
    Refuse,
    Accept,
}

/// The buckets, and how ClickHouse reaches the objects.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The region of the buckets. If unset, the region of the AWS SDK is used (`AWS_REGION`,
    /// profile, instance).
    pub region: Option<String>,

    /// The S3 endpoint that ClickHouse uses, for stores other than AWS (MinIO, LocalStack) and for
    /// VPC endpoints. If unset, ClickHouse reads from AWS.
    pub clickhouse_endpoint: Option<String>,

    /// The credentials with which ClickHouse reads the objects.
    pub clickhouse_access: S3AccessConfig,

    /// Where a key names the time of its object, which `--since` and `--until` of `backfill` and
    /// `reconcile` refer to. `auto`: the first date or hour in its last segment, or else the nearest
    /// folders before it that are nothing but a date, other than `section/ID`. `upload`: nowhere;
    /// the time of the upload counts, as it does for keys without a time. Any other value is a
    /// regular expression with one group, in whose match the first date or hour counts.
    pub key_time: String,
}

/// The conditions under which a batch is closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// How long a batch waits for more objects after its first one, 100ms to 1h; longer while all
    /// load slots are busy. This is the delay that Sluice adds to a steady stream. A longer window
    /// results in fewer and larger inserts.
    pub window: HumanDuration,

    /// Load a batch immediately if a load slot is idle. The higher the rate of objects, the longer
    /// a batch waits: above about one object per second, it waits for the full window. Disable it
    /// to minimise the number of inserts.
    #[serde(deserialize_with = "boolean")]
    pub flush_when_idle: bool,

    /// The largest number of objects in a batch, 1 to 5,000. A higher limit results in fewer and
    /// larger inserts of small objects, but makes a failed batch more expensive to retry.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 5_000))]
    pub max_objects: usize,

    /// The largest size of a batch, as the estimated uncompressed size of its objects, 1MiB or
    /// more. A batch is inserted as one block, so ClickHouse needs several times this much memory
    /// for each insert in flight. An object that exceeds it is loaded alone, in many blocks.
    pub max_bytes: HumanSize,
}

/// How batches are loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadConfig {
    /// `single_pass` reads each object once, and materialized views fill the tables. `per_type`
    /// reads it once for each event type and needs no views. It is slower; use it on servers that
    /// do not permit views.
    pub strategy: Strategy,

    /// The number of concurrent inserts, 1 to 64. Raise it if the queue grows while ClickHouse has
    /// CPU and memory to spare.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: usize,

    /// The pause before the first retry of an insert that failed for a temporary reason, 1ms to 1d.
    /// It doubles with each retry, up to `load.retry_backoff_max`.
    pub retry_backoff_min: HumanDuration,

    /// The longest pause between retries of an insert, 1ms to 1d.
    pub retry_backoff_max: HumanDuration,

    /// The interval between probes of a ClickHouse server that is unavailable or refuses inserts,
    /// 1ms to 1d. Loading resumes within this time after the server recovers.
    pub probe_interval: HumanDuration,

    /// The interval at which a worker looks for batches that a dead worker left open and that no
    /// message leads to, and recovers them; and for rows of released batches, which a server that
    /// was frozen or cut off can commit late, and deletes them. 1s to 1d; the first time at most
    /// about a minute after its start.
    pub janitor_interval: HumanDuration,

    /// What to do with a message whose object was deleted before it was read. The object is
    /// recorded as missing either way. `give_back`: return the message, until the redrive policy
    /// moves it to the dead-letter queue. `acknowledge`: delete the message, for buckets whose
    /// objects are routinely deleted or replaced.
    pub on_missing: OnMissing,

    /// The memory that one insert may use in ClickHouse, 256MiB to 1TiB. A batch that needs more is
    /// split; a single object that needs more is loaded in many blocks, and fails if it still
    /// exceeds the limit. If the profile of `clickhouse.user` sets `max_memory_usage`, that limit
    /// applies instead.
    pub max_memory: HumanSize,

    /// The longest line that is parsed, 1KiB to 1GiB. A longer line is kept whole in
    /// `rejected_lines`, as `too large`. ClickHouse needs about twenty times the size of a line in
    /// memory to parse it, and three times its size to keep it.
    pub max_line_bytes: HumanSize,

    /// The largest fraction of an object's lines that may be rejected, 0 to 1 (blank lines do not
    /// count). Above it, the object fails as `rejected`, and none of its lines are kept. With 1,
    /// every object passes, and all its rejected lines are in `rejected_lines`. With 0.5, an object
    /// that is not JSON at all goes to the dead-letter queue, and so does one whose only line is
    /// invalid.
    pub max_rejected_ratio: Ratio,

    /// What to do with an object of which every record is rejected (blank lines do not count).
    /// `keep`: it is loaded, and its records are in `rejected_lines`. `fail`: it fails as
    /// `rejected`, and the first of its records are kept with the failure. If unset, `keep` for
    /// JSON lines and `fail` for other formats. The declaration of a format can override it
    /// ([formats](formats.md)). An object without records never fails.
    pub on_all_rejected: Option<OnAllRejected>,

    /// When the worker reads objects from S3 itself and streams them into its inserts, for which it
    /// needs `s3:GetObject`. `auto`: objects that the worker can read but ClickHouse cannot
    /// (because of its rights, its network, or a key that cannot be passed to it). `always`: every
    /// object, for a ClickHouse server that cannot reach S3. `never`: none; no data passes through
    /// the worker.
    pub fallback: Fallback,

    /// The average object size below which the worker also streams a batch, 0B (never) to 1MiB. The
    /// worker sends one request to S3 for each object instead of two, and many at a time: this is
    /// faster for objects of a few lines, but costs CPU time of the worker
    /// ([performance](performance.md)). Objects that the worker cannot read are read by ClickHouse.
    /// Requires `load.strategy: single_pass`, and `load.fallback` other than `never`.
    pub stream_below: HumanSize,

    /// Compressions, by file extension (`[zst, lz4]`), whose objects are loaded without proof that
    /// they are whole. ClickHouse reads a truncated `.zst` or `.lz4` object without an error.
    /// Unless its compression is listed here, the worker therefore also reads such an object, to
    /// verify that it is whole, for which it needs `s3:GetObject`; an object that cannot be proven
    /// to be whole fails as `unproven`. Compressions whose truncation ClickHouse detects itself
    /// (gzip and others) are not affected.
    #[serde(deserialize_with = "texts")]
    pub accept_unproven: Vec<String>,
}

/// What to do with a message whose object is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum OnMissing {
    GiveBack,
    Acknowledge,
}

/// The event types.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventTypesConfig {
    /// A directory of event type declarations (`*.yaml`). If unset, the five built-in event types
    /// are used.
    pub dir: Option<PathBuf>,

    /// The earliest valid year in a column by which a table is partitioned (`partition_by` of its
    /// event type), 1970 to 2299. Lines with earlier times are rejected as `NAME out of range`,
    /// because every month would add a part to the table.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1970, max = 2299))]
    pub min_year: u16,

    /// How far a time in a column by which a table is partitioned may be after the time of its
    /// batch, 0s to 36500d. Lines with later times are rejected as `NAME out of range`.
    pub max_future: HumanDuration,
}

/// How Sluice stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long loads in flight may take to finish after a signal to stop, 1ms to 1d. Batches that
    /// do not finish are recovered by another worker. Keep it below the limit of the platform:
    /// `terminationGracePeriodSeconds` on Kubernetes, `stopTimeout` on ECS.
    pub grace_period: HumanDuration,
}

/// The HTTP endpoint for metrics and health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port to listen on; port 0 selects any free port. In a container, use
    /// `0.0.0.0:9464`, so that probes can reach it.
    pub listen: SocketAddr,

    /// Host names under which the listener can be requested, in addition to IP addresses and
    /// `localhost`, such as `[sluice.internal]`. Any other name is refused, so that the page of
    /// another site cannot make a browser read the listener (DNS rebinding).
    #[serde(deserialize_with = "texts")]
    pub allowed_hosts: Vec<String>,
}

/// What Sluice logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// `text` is human-readable; `json` writes one object per line, for log collectors.
    pub format: LogFormat,

    /// The log level (`error`, `warn`, `info`, `debug`, `trace`, `off`), or levels by module, such
    /// as `sluice=debug,info`.
    pub level: String,
}

/// What `run` sends to an OpenTelemetry collector: traces, one per batch, and metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// URL of the collector's OTLP/HTTP receiver, such as `http://127.0.0.1:4318`; traces are sent
    /// to `/v1/traces` below it, metrics to `/v1/metrics`. If unset, nothing is sent. Headers are
    /// taken from `OTEL_EXPORTER_OTLP_HEADERS`, additional attributes of the worker from
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub otlp_endpoint: Option<String>,

    /// The fraction of the batches that is traced, 0 to 1. Lower it if the collector cannot keep
    /// up; with 0, no traces are sent.
    pub sample_ratio: Ratio,

    /// The interval at which the metrics of `/metrics` are also sent to the collector, 1s to 1h.
    /// If unset, they are not sent. Requires `telemetry.otlp_endpoint`.
    pub metrics_interval: Option<HumanDuration>,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum LogFormat {
    Text,
    Json,
}

impl ClickHouseConfig {
    pub fn password(&self) -> SecretSource {
        SecretSource::of(&self.password, self.password_file.as_ref())
    }
}

impl QueueConfig {
    /// Returns the queue's URL, for commands that need a queue.
    ///
    /// # Errors
    ///
    /// Returns a problem if it is not set.
    pub fn require_url(&self) -> Result<&str, Problems> {
        self.url.as_deref().ok_or_else(|| {
            Problems::from(Problem::new("queue.url", "no queue is configured").advice(
                "set `queue.url` in the configuration file, or the variable SLUICE__QUEUE__URL",
            ))
        })
    }

    /// Returns the interval between heartbeats of a message in flight: a third of the timeout, so
    /// that two consecutive heartbeats may fail.
    pub fn heartbeat(&self) -> Duration {
        self.visibility_timeout.get() / 3
    }
}
