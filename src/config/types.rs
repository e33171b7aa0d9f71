//! The configuration as the rest of Sluice sees it.
//!
//! The doc comment of a field is what `sluice config schema` and
//! docs/configuration.md print: what it is, and when to change it. Defaults are
//! in config/default.yaml alone.

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
    /// URL of the SQS queue, as `aws sqs get-queue-url` prints it. `run` cannot
    /// do without; `migrate` can.
    pub url: Option<String>,

    /// How long one receive waits for messages (long poll). Whole seconds,
    /// 0s to 20s. Leave it at 20s: less means more requests and no less delay.
    pub wait_time: HumanDuration,

    /// Receives in flight at a time, 1 to 16. One receive brings at most 10
    /// messages; raise it when messages stay visible in the queue although
    /// loads are idle.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 16))]
    pub receivers: usize,

    /// Messages held at most, 1 to 100,000. Sluice stops receiving when it
    /// holds this many, so it bounds memory; and when as many full batches
    /// wait as are loaded at a time (`load.concurrency`). SQS itself allows
    /// 120,000 in flight for all workers together: lower it when there are
    /// many.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_held: usize,

    /// How long a received message stays hidden from other workers. Whole
    /// seconds, 10s to 12h. It is extended at every third of it for as long as
    /// the message is held, so it need not cover a load: it is the time until
    /// another worker takes over from one that crashed.
    pub visibility_timeout: HumanDuration,

    /// How long a message stays hidden after its first failed load, 1s or more.
    /// The delay doubles with each receive, with jitter, up to
    /// `queue.retry_backoff_max`.
    pub retry_backoff_min: HumanDuration,

    /// The longest that a message stays hidden after a failed load, 12h at
    /// most. Raise it to give a broken object longer to be mended before the
    /// redrive policy takes its message to the dead-letter queue.
    pub retry_backoff_max: HumanDuration,

    /// Start even if the queue has no dead-letter queue. Then a message that
    /// can never be loaded comes back until its retention ends. Meant for
    /// trying Sluice out.
    #[serde(deserialize_with = "boolean")]
    pub allow_missing_dlq: bool,
}

/// Which of the announced objects are loaded. The messages of the others are
/// deleted, and counted as `filtered`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotificationsConfig {
    /// The events that count, by the names that a bucket's notification
    /// configuration has for them: `ObjectCreated:*`, `ObjectCreated:Put`,
    /// `ObjectCreated:Post`, `ObjectCreated:Copy`,
    /// `ObjectCreated:CompleteMultipartUpload`. An event under the name of its
    /// request counts as the event of that request (`PutObject` as
    /// `ObjectCreated:Put`), and one that does not say how its object was
    /// created counts as each of them.
    #[serde(deserialize_with = "texts")]
    pub events: Vec<String>,

    /// Globs, one of which an object's key must match. `*` and `?` stop at a
    /// slash and `**` does not; `[a-z]`, `[!a-z]` and `{a,b}` are choices; a
    /// backslash takes the meaning from what follows it. An empty list takes all
    /// keys. Where the bucket's own prefix and suffix filters will do, prefer
    /// them: what they leave out costs nothing.
    #[serde(deserialize_with = "texts")]
    pub include: Vec<String>,

    /// Globs, none of which an object's key may match. They win over
    /// `notifications.include`.
    #[serde(deserialize_with = "texts")]
    pub exclude: Vec<String>,

    /// A YAML file that declares other envelopes: how messages of other services
    /// name the objects that were written ([notifications](notifications.md)).
    /// Unset, messages are those of S3, SNS and EventBridge.
    pub envelopes: Option<PathBuf>,
}

/// The ClickHouse server that reads the objects and keeps the rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClickHouseConfig {
    /// URL of ClickHouse's HTTP interface, without user, password or query.
    pub url: String,

    /// The user to log in as. It reads the objects, and reads and writes all of
    /// Sluice's tables.
    pub user: String,

    /// The password of `clickhouse.user`. Give it in the environment, or as
    /// `clickhouse.password_file`, rather than here.
    pub password: Secret,

    /// A file that holds the password, such as a mounted secret, instead of
    /// `clickhouse.password`. It is read for each statement, so that a new
    /// password needs no restart.
    pub password_file: Option<PathBuf>,

    /// The database of all tables that `migrate` creates.
    pub database: String,

    /// The cluster whose servers all get the tables: `migrate` adds
    /// `ON CLUSTER` with this name to its statements. Unset for one server, and
    /// for ClickHouse Cloud.
    pub cluster: Option<String>,

    /// The engines of the tables: `plain` MergeTree engines, or `replicated`
    /// ones, with which nothing is loaded unless `clickhouse.unproven` accepts
    /// it. Choose before the first `migrate`: it does not convert tables.
    pub engine: TableEngine,

    /// Whether `run`, `backfill` and `rejects replay` load where loading each
    /// object once is not proven: with `Replicated*` or `Shared*` tables, on
    /// ClickHouse Cloud, and where more than one server answers at
    /// `clickhouse.url`. `refuse`: they say what they found, and load nothing.
    /// `accept`: they warn, and rows can be loaded twice
    /// ([guarantees](guarantees.md#under-which-settings)).
    pub unproven: Unproven,

    /// How long to wait for a connection, 1ms to 1d.
    pub connect_timeout: HumanDuration,

    /// How long the ledger's and other small statements may take, 1ms to 1d.
    pub query_timeout: HumanDuration,

    /// How long one insert of a batch may take, 1ms to 1d; then it is killed
    /// and tried again. Raise it when very large objects do not finish.
    pub insert_timeout: HumanDuration,

    /// Blocks that each table remembers in order to drop their repetition: an
    /// insert makes one in each partition (month) that it touches
    /// (`non_replicated_deduplication_window` and
    /// `replicated_deduplication_window`), 100 to 1,000,000. A batch may be
    /// replayed only while its tables remember it: raise it when several
    /// workers load more batches than this within a long outage.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 100, max = 1_000_000))]
    pub dedup_window: u64,

    /// How long rejected lines and unmatched statements are kept (the TTL of
    /// `rejected_lines` and `unmatched_statements`), 1d or more. It is the time
    /// left to mend an event type and to load them again.
    pub reject_ttl: HumanDuration,

    /// A PEM file of certificate authorities to trust in addition to the
    /// system's, for a ClickHouse whose certificate is signed by your own. Only
    /// for an https URL.
    pub ca_file: Option<PathBuf>,
}

impl ClickHouseConfig {
    /// Returns whether what is sent to it can be read on the way: plain HTTP, to another machine.
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

/// What becomes of a set-up on which loading each object once is not proven.
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
    /// The region of the buckets. Unset, it is the AWS SDK's (`AWS_REGION`,
    /// profile, instance).
    pub region: Option<String>,

    /// The S3 endpoint as ClickHouse reaches it, for stores other than AWS
    /// (MinIO, LocalStack) and for VPC endpoints. Unset, ClickHouse reads from
    /// AWS.
    pub clickhouse_endpoint: Option<String>,

    /// With which rights ClickHouse reads the objects.
    pub clickhouse_access: S3AccessConfig,
}

/// When a batch is full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// How long a batch waits for more objects after its first one, 100ms to
    /// 1h; longer while all loads are busy. It is the delay that Sluice adds to a
    /// steady stream; a longer window makes fewer and larger inserts.
    pub window: HumanDuration,

    /// Whether what comes is loaded at once while a load is free. The more
    /// comes, the longer it waits; from an object a second, for the window.
    /// Switch it off where each insert counts.
    #[serde(deserialize_with = "boolean")]
    pub flush_when_idle: bool,

    /// Objects in a batch at most, 1 to 5,000. More make fewer and larger inserts
    /// of small objects; one that fails costs more to try again.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 5_000))]
    pub max_objects: usize,

    /// Bytes in a batch at most, estimated uncompressed, 1MiB or more. A batch
    /// is inserted as one block, so ClickHouse needs several times this much
    /// memory for each insert in flight. A larger object goes alone, in many
    /// blocks.
    pub max_bytes: HumanSize,
}

/// How batches are loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadConfig {
    /// `single_pass` reads each object once, and materialized views fill the
    /// tables. `per_type` reads it once for each event type and needs no views:
    /// slower, for servers on which views are not allowed.
    pub strategy: Strategy,

    /// Inserts in flight at a time, 1 to 64. Raise it while ClickHouse has CPU
    /// and memory to spare and the queue grows.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: usize,

    /// The pause before an insert that failed for a passing reason is tried
    /// again, 1ms to 1d. It doubles up to `load.retry_backoff_max`.
    pub retry_backoff_min: HumanDuration,

    /// The longest pause between attempts of an insert, 1ms to 1d.
    pub retry_backoff_max: HumanDuration,

    /// How often a ClickHouse that is away, or that refuses inserts, is tried
    /// again, 1ms to 1d. Work goes on within this time once it is well again.
    pub probe_interval: HumanDuration,

    /// What becomes of a message whose object is gone before it was read; it is
    /// on record as missing either way. `give_back`: it comes back until the
    /// redrive policy takes it to the dead-letter queue. `acknowledge`: it is
    /// deleted, for buckets whose objects are removed or replaced as a matter of
    /// course.
    pub on_missing: OnMissing,

    /// Memory that one insert may take in ClickHouse, 256MiB to 1TiB. A batch that
    /// needs more is divided, and an object alone is loaded in several blocks; one
    /// that needs more even then fails. Where the profile of `clickhouse.user` has
    /// a `max_memory_usage`, that one counts.
    pub max_memory: HumanSize,

    /// The longest line that is read, 1KiB to 1GiB. A longer one is kept in
    /// `rejected_lines`, whole, as `too large`. ClickHouse needs about twenty
    /// times a line's size to read it, and three times to keep it.
    pub max_line_bytes: HumanSize,

    /// How large a part of an object's lines may be rejected, 0 to 1 (blank lines
    /// do not count). Above that the object fails as `rejected`, and nothing of
    /// it is kept. 1 lets every object pass, since its rejected lines are all in
    /// `rejected_lines`; with 0.5 a file that is no JSON at all goes to the
    /// dead-letter queue, and so does one whose only line is bad.
    pub max_rejected_ratio: Ratio,

    /// When this worker reads objects from S3 itself and streams them into its
    /// inserts, which needs `s3:GetObject` on them. `auto`: where ClickHouse cannot
    /// read them (its rights, its network, a key that it cannot be told) and the
    /// worker can. `always`: each one, for a ClickHouse that does not reach S3.
    /// `never`: the data stays out of the worker.
    pub fallback: Fallback,

    /// Batches whose objects are smaller than this on average are streamed by the
    /// worker too, 0B (none) to 1MiB. One request to S3 for each object in place
    /// of two, and many at a time: faster where objects have a few lines, and paid
    /// for with the worker's processor time ([performance](performance.md)).
    /// ClickHouse reads what the worker cannot. Needs `load.strategy: single_pass`,
    /// and `load.fallback` other than `never`.
    pub stream_below: HumanSize,

    /// Compressions, by the extensions of objects' names (`[zst, lz4]`), whose
    /// objects are loaded without proof that they are whole. ClickHouse reads a
    /// `.zst` or `.lz4` object that is cut short without an error. Unless they are
    /// listed here, the worker therefore reads such objects too, to see that they
    /// end where they should, which needs `s3:GetObject`; what nobody can prove to
    /// be whole fails as `unproven`. What ClickHouse notices itself (gzip and
    /// others) is not concerned.
    #[serde(deserialize_with = "texts")]
    pub accept_unproven: Vec<String>,
}

/// What becomes of a message whose object is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum OnMissing {
    GiveBack,
    Acknowledge,
}

/// Which event types there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventTypesConfig {
    /// A directory of event type declarations (`*.yaml`). Unset, the built-in
    /// five are used.
    pub dir: Option<PathBuf>,

    /// The first year that a time can be in by which a table is partitioned
    /// (`partition_by` of its event type), 1970 to 2299. Lines with earlier times
    /// are rejected as `NAME out of range`: each month would be a part.
    #[serde(deserialize_with = "whole_number")]
    #[schemars(range(min = 1970, max = 2299))]
    pub min_year: u16,

    /// How far after its batch such a time can be, 0s to 36500d.
    pub max_future: HumanDuration,
}

/// How Sluice stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long a stopping Sluice lets the loads in flight finish, 1ms to 1d.
    /// What is left is recovered by another worker. Keep it below what the
    /// platform grants: `terminationGracePeriodSeconds` on Kubernetes,
    /// `stopTimeout` on ECS.
    pub grace_period: HumanDuration,
}

/// The HTTP endpoint for metrics and health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port to listen on; port 0 takes any free one. In a container
    /// use `0.0.0.0:9464`, so that probes reach it.
    pub listen: SocketAddr,

    /// Host names under which it answers, beside addresses and `localhost`, such
    /// as `[sluice.internal]`. Under any other name a page of somebody else could
    /// have a browser read it.
    #[serde(deserialize_with = "texts")]
    pub allowed_hosts: Vec<String>,
}

/// What Sluice logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// `text` for people, `json` for collectors: one object a line.
    pub format: LogFormat,

    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`,
    /// `off`), or levels by module, as in `sluice=debug,info`.
    pub level: String,
}

/// The traces that `run` sends to an OpenTelemetry collector: one a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// URL of the collector's OTLP/HTTP receiver, such as
    /// `http://127.0.0.1:4318`; traces go to `/v1/traces` below it. Unset, none
    /// are made. Headers come from `OTEL_EXPORTER_OTLP_HEADERS`, further
    /// attributes of the worker from `OTEL_RESOURCE_ATTRIBUTES`.
    pub otlp_endpoint: Option<String>,

    /// Which part of the batches is traced. Lower it when the collector cannot
    /// keep up.
    pub sample_ratio: Ratio,
}

/// The form of a log line.
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
    /// The queue's URL, for the commands that cannot work without a queue.
    pub fn require_url(&self) -> Result<&str, Problems> {
        self.url.as_deref().ok_or_else(|| {
            Problems::from(Problem::new("queue.url", "no queue is given").advice(
                "set `queue.url` in the file of --config, or SLUICE__QUEUE__URL in the environment",
            ))
        })
    }

    /// How often the visibility of a held message is extended. At a third of
    /// the timeout, two heartbeats in a row may fail.
    pub fn heartbeat(&self) -> Duration {
        self.visibility_timeout.get() / 3
    }
}
