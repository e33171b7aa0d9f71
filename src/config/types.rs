//! The configuration as the rest of Sluice sees it.
//!
//! The doc comment of a field is printed by `sluice config schema` and in
//! docs/configuration.md: what it is, and when to change it. Defaults are only in
//! config/default.yaml.

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

/// The SQS queue in which S3 announces objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueConfig {
    /// URL of the SQS queue, as `aws sqs get-queue-url` prints it. Required by
    /// `run`, not by `migrate`.
    pub url: Option<String>,

    /// How long one receive waits for messages (long poll). Whole seconds,
    /// 0s to 20s. Leave it at 20s: a shorter wait means more requests, and no
    /// shorter delay.
    pub wait_time: HumanDuration,

    /// Receives in flight at a time, 1 to 16. One receive returns at most 10
    /// messages; raise it if messages stay visible in the queue although load
    /// slots are idle.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 16))]
    pub receivers: usize,

    /// The largest number of messages in flight, 1 to 100,000. Sluice stops
    /// receiving when it has this many, which bounds its memory, and when as many
    /// full batches wait as are loaded at a time (`load.concurrency`). SQS allows
    /// 120,000 messages in flight for all workers together: lower it if there
    /// are many workers.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_held: usize,

    /// How long a received message stays hidden from other workers. Whole
    /// seconds, 10s to 12h. It is extended after every third of it for as long as
    /// the message is in flight, so it need not cover a load: it is the time
    /// until another worker takes over from one that crashed.
    pub visibility_timeout: HumanDuration,

    /// How long a message stays hidden after its first failed load, 1s or more.
    /// The delay doubles with each receive, with jitter, up to
    /// `queue.retry_backoff_max`.
    pub retry_backoff_min: HumanDuration,

    /// The longest time that a message stays hidden after a failed load, at most
    /// 12h. Raise it to leave more time to fix a broken object before the redrive
    /// policy moves its message to the dead-letter queue.
    pub retry_backoff_max: HumanDuration,

    /// Start even if the queue has no dead-letter queue. A message that can never
    /// be loaded then comes back until its retention ends. Meant for trying
    /// Sluice out.
    #[serde(deserialize_with = "boolean")]
    pub allow_missing_dlq: bool,
}

/// Which of the announced objects are loaded. The messages of the others are
/// deleted, and counted as `filtered`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotificationsConfig {
    /// The events whose objects are loaded, by the names in a bucket's
    /// notification configuration: `ObjectCreated:*`, `ObjectCreated:Put`,
    /// `ObjectCreated:Post`, `ObjectCreated:Copy`,
    /// `ObjectCreated:CompleteMultipartUpload`. An event with the name of its
    /// request counts as the event of that request (`PutObject` as
    /// `ObjectCreated:Put`), and one that does not name how its object was
    /// created counts as each of them.
    #[serde(deserialize_with = "texts")]
    pub events: Vec<String>,

    /// Globs, one of which an object's key must match. `*` and `?` stop at a
    /// slash and `**` does not; `[a-z]`, `[!a-z]` and `{a,b}` are alternatives; a
    /// backslash escapes the character after it. An empty list matches all keys.
    /// Prefer the bucket's own prefix and suffix filters if they suffice: objects
    /// that they leave out cost nothing.
    #[serde(deserialize_with = "texts")]
    pub include: Vec<String>,

    /// Globs, none of which an object's key may match. They take precedence over
    /// `notifications.include`.
    #[serde(deserialize_with = "texts")]
    pub exclude: Vec<String>,

    /// A YAML file that declares more envelopes: how messages of other services
    /// name the objects that were written ([notifications](notifications.md)).
    /// If unset, only messages of S3, SNS and EventBridge are understood.
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
    /// `clickhouse.password_file`, rather than writing it in the file.
    pub password: Secret,

    /// A file with the password, such as a mounted secret, instead of
    /// `clickhouse.password`. It is read for each statement, so a new password
    /// needs no restart.
    pub password_file: Option<PathBuf>,

    /// The database of all tables that `migrate` creates.
    pub database: String,

    /// The cluster on whose servers the tables are created: `migrate` adds
    /// `ON CLUSTER` with this name to its statements. Leave it unset for one
    /// server, and for ClickHouse Cloud.
    pub cluster: Option<String>,

    /// The engines of the tables: `plain` MergeTree engines, or `replicated`
    /// ones, with which nothing is loaded unless `clickhouse.unproven` accepts
    /// it. Choose before the first `migrate`, which does not convert tables.
    pub engine: TableEngine,

    /// Whether `run`, `backfill` and `rejects replay` load although loading each
    /// object once is not proven: with `Replicated*` or `Shared*` tables, on
    /// ClickHouse Cloud, and if more than one server answers at
    /// `clickhouse.url`. `refuse`: they report what they found, and load nothing.
    /// `accept`: they warn, and rows can be loaded twice
    /// ([guarantees](guarantees.md#under-which-settings)).
    pub unproven: Unproven,

    /// How long to wait for a connection, 1ms to 1d.
    pub connect_timeout: HumanDuration,

    /// How long statements of the ledger and other small ones may take, 1ms to
    /// 1d.
    pub query_timeout: HumanDuration,

    /// How long one insert of a batch may take, 1ms to 1d; after that, it is
    /// killed and retried. Raise it if very large objects do not finish.
    pub insert_timeout: HumanDuration,

    /// Blocks that each table remembers in order to drop their repetition
    /// (`non_replicated_deduplication_window` and
    /// `replicated_deduplication_window`), 100 to 1,000,000. An insert makes one
    /// in each partition (month) that it touches. A batch may be retried only
    /// while its tables remember it: raise it if several workers load more
    /// batches than this during a long outage.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 100, max = 1_000_000))]
    pub dedup_window: u64,

    /// How long rejected lines and unmatched statements are kept (the TTL of
    /// `rejected_lines` and `unmatched_statements`), 1d or more. It is the time
    /// left to fix an event type and to replay them.
    pub reject_ttl: HumanDuration,

    /// A PEM file of certificate authorities to trust in addition to the
    /// system's, for a ClickHouse whose certificate your own authority signed.
    /// Only for an https URL.
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

/// What to do on a set-up on which loading each object once is not proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Unproven {
    Refuse,
    Accept,
}

/// How ClickHouse reaches the objects.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The region of the buckets. If unset, it is that of the AWS SDK
    /// (`AWS_REGION`, profile, instance).
    pub region: Option<String>,

    /// The S3 endpoint as ClickHouse reaches it, for stores other than AWS
    /// (MinIO, LocalStack) and for VPC endpoints. If unset, ClickHouse reads from
    /// AWS.
    pub clickhouse_endpoint: Option<String>,

    /// The credentials with which ClickHouse reads the objects.
    pub clickhouse_access: S3AccessConfig,
}

/// When a batch is closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// How long a batch waits for more objects after its first one, 100ms to
    /// 1h; longer while all load slots are busy. It is the delay that Sluice adds
    /// to a steady stream; a longer window makes fewer and larger inserts.
    pub window: HumanDuration,

    /// Load immediately while a load slot is idle. The more objects come, the
    /// longer a batch waits; above about one object per second, it waits for the
    /// full window. Disable it to minimise the number of inserts.
    #[serde(deserialize_with = "boolean")]
    pub flush_when_idle: bool,

    /// The largest number of objects in a batch, 1 to 5,000. More make fewer and
    /// larger inserts of small objects, but one that fails costs more to retry.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 5_000))]
    pub max_objects: usize,

    /// The largest number of bytes in a batch, uncompressed as estimated, 1MiB or
    /// more. A batch is inserted as one block, so ClickHouse needs several times
    /// this much memory for each insert in flight. A larger object is loaded
    /// alone, in many blocks.
    pub max_bytes: HumanSize,
}

/// How batches are loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadConfig {
    /// `single_pass` reads each object once, and materialized views fill the
    /// tables. `per_type` reads it once for each event type and needs no views:
    /// it is slower, for servers on which views are not allowed.
    pub strategy: Strategy,

    /// Inserts in flight at a time, 1 to 64. Raise it if the queue grows while
    /// ClickHouse has CPU and memory to spare.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: usize,

    /// The pause before an insert is retried that failed for a temporary reason,
    /// 1ms to 1d. It doubles up to `load.retry_backoff_max`.
    pub retry_backoff_min: HumanDuration,

    /// The longest pause between tries of an insert, 1ms to 1d.
    pub retry_backoff_max: HumanDuration,

    /// How often a ClickHouse that is unavailable, or that refuses inserts, is
    /// probed, 1ms to 1d. Loading continues within this time after it recovers.
    pub probe_interval: HumanDuration,

    /// What to do with a message whose object was deleted before it was read. The
    /// object is recorded as missing either way. `give_back`: the message is
    /// returned, until the redrive policy moves it to the dead-letter queue.
    /// `acknowledge`: it is deleted, for buckets whose objects are routinely
    /// removed or replaced.
    pub on_missing: OnMissing,

    /// Memory that one insert may use in ClickHouse, 256MiB to 1TiB. A batch that
    /// needs more is split, and a single object is loaded in several blocks; one
    /// that needs more even then fails. If the profile of `clickhouse.user` has a
    /// `max_memory_usage`, that one applies.
    pub max_memory: HumanSize,

    /// The longest line that is parsed, 1KiB to 1GiB. A longer one is kept whole
    /// in `rejected_lines`, as `too large`. ClickHouse needs memory of about
    /// twenty times a line's size to parse it, and three times to keep it.
    pub max_line_bytes: HumanSize,

    /// The largest part of an object's lines that may be rejected, 0 to 1 (blank
    /// lines do not count). Above that, the object fails as `rejected`, and none
    /// of its lines are kept. 1 lets every object pass, since all its rejected
    /// lines are in `rejected_lines`; with 0.5, a file that is not JSON at all
    /// goes to the dead-letter queue, and so does one whose only line is bad.
    pub max_rejected_ratio: Ratio,

    /// When this worker reads objects from S3 itself and streams them into its
    /// inserts, which needs `s3:GetObject` on them. `auto`: if ClickHouse cannot
    /// read them (its rights, its network, a key that cannot be passed to it) and
    /// the worker can. `always`: every object, for a ClickHouse that cannot reach
    /// S3. `never`: no data passes through the worker.
    pub fallback: Fallback,

    /// Batches whose objects are smaller than this on average are also streamed by
    /// the worker, 0B (none) to 1MiB. It sends one request to S3 for each object
    /// instead of two, and many at a time: this is faster for objects of a few
    /// lines, but costs CPU time of the worker ([performance](performance.md)).
    /// ClickHouse reads what the worker cannot. Needs `load.strategy: single_pass`,
    /// and `load.fallback` other than `never`.
    pub stream_below: HumanSize,

    /// Compressions, by the extensions of objects' names (`[zst, lz4]`), whose
    /// objects are loaded without proof that they are whole. ClickHouse reads a
    /// `.zst` or `.lz4` object that is cut short without an error. Unless they are
    /// listed here, the worker therefore reads such objects, too, to check that
    /// they end where they should, which needs `s3:GetObject`; an object that
    /// cannot be proven to be whole fails as `unproven`. Compressions whose
    /// truncation ClickHouse detects itself (gzip and others) are not affected.
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
    /// A directory of event type declarations (`*.yaml`). If unset, the five
    /// built-in ones are used.
    pub dir: Option<PathBuf>,

    /// The first valid year of a time by which a table is partitioned
    /// (`partition_by` of its event type), 1970 to 2299. Lines with earlier times
    /// are rejected as `NAME out of range`, since each month would be a part.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1970, max = 2299))]
    pub min_year: u16,

    /// How far after the time of its batch such a time can be, 0s to 36500d.
    pub max_future: HumanDuration,
}

/// How Sluice stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long loads in flight may take to finish after a stop, 1ms to 1d.
    /// Another worker recovers the others. Keep it below the limit of the
    /// platform: `terminationGracePeriodSeconds` on Kubernetes, `stopTimeout` on
    /// ECS.
    pub grace_period: HumanDuration,
}

/// The HTTP endpoint for metrics and health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port to listen on; port 0 takes any free one. In a container,
    /// use `0.0.0.0:9464`, so that probes can reach it.
    pub listen: SocketAddr,

    /// Host names to which it answers, in addition to addresses and `localhost`,
    /// such as `[sluice.internal]`. Any other name is refused, so that a foreign
    /// web page cannot make a browser read it (DNS rebinding).
    #[serde(deserialize_with = "texts")]
    pub allowed_hosts: Vec<String>,
}

/// What Sluice logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// `text` is human-readable; `json`, for collectors, is one object per line.
    pub format: LogFormat,

    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`,
    /// `off`), or levels by module, as in `sluice=debug,info`.
    pub level: String,
}

/// The traces that `run` sends to an OpenTelemetry collector, one per batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// URL of the collector's OTLP/HTTP receiver, such as
    /// `http://127.0.0.1:4318`; traces are sent to `/v1/traces` below it. If
    /// unset, there are no traces. Headers come from
    /// `OTEL_EXPORTER_OTLP_HEADERS`, further attributes of the worker from
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub otlp_endpoint: Option<String>,

    /// The part of the batches that is traced. Lower it if the collector cannot
    /// keep up.
    pub sample_ratio: Ratio,
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
    /// Returns the problem that it is not set.
    pub fn require_url(&self) -> Result<&str, Problems> {
        self.url.as_deref().ok_or_else(|| {
            Problems::from(Problem::new("queue.url", "no queue is configured").advice(
                "set `queue.url` in the file of --config, or SLUICE__QUEUE__URL in the environment",
            ))
        })
    }

    /// Returns the time between heartbeats of a message in flight. At a third of
    /// the timeout, two heartbeats in a row may fail.
    pub fn heartbeat(&self) -> Duration {
        self.visibility_timeout.get() / 3
    }
}
