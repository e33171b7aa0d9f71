//! Checks ranges, and relations between fields.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use url::Url;

use super::access::{S3AccessConfig, check_access};
use super::fields::Fields;
use super::layers::Origins;
use super::problems::{Findings, Problem};
use super::raw::RawConfig;
use super::secret::{Secret, SecretSource};
use super::types::{
    BatchConfig, ClickHouseConfig, Config, EventTypesConfig, LoadConfig, LogConfig,
    NotificationsConfig, QueueConfig, S3Config, TelemetryConfig,
};
use super::units::{HumanDuration, HumanSize};
use crate::batch::Fallback;
use crate::glob::Globs;
use crate::notification::filter::created_event;
use crate::object::Compression;
use crate::statements::insert::Strategy;
use crate::util::key_time::KeyTime;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// The longest visibility timeout that SQS allows.
const MAX_VISIBILITY: Duration = Duration::from_secs(12 * 3_600);

/// Returns the configuration that `raw` describes, or `None` if it has no valid
/// S3 access. Problems are added to `findings`.
pub(super) fn check(
    raw: RawConfig,
    origins: &Origins,
    fields: &Fields,
    findings: &mut Findings,
) -> Option<Config> {
    let access = check_access(raw.s3.clickhouse_access, origins, findings);
    let mut checks = Checks {
        origins,
        fields,
        findings,
    };
    check_queue(&raw.queue, &mut checks);
    check_notifications(&raw.notifications, &mut checks);
    check_clickhouse(&raw.clickhouse, &mut checks);
    if let Some(region) = &raw.s3.region {
        checks.name("s3.region", region);
    }
    if let Some(endpoint) = &raw.s3.clickhouse_endpoint {
        let form = "set it to the URL of the S3 endpoint, without a bucket, \
                    such as http://minio:9000";
        let no_user = "remove them, and set s3.clickhouse_access instead";
        check_endpoint(
            "s3.clickhouse_endpoint",
            endpoint,
            form,
            no_user,
            &mut checks,
        );
    }
    if let Err(error) = KeyTime::parse(&raw.s3.key_time) {
        let advice = "set it to `auto`, to `upload`, or to an expression such as ^logs/(.*)/";
        checks.fail("s3.key_time", error, advice);
    }
    if let Some(access) = &access {
        check_access_values(access, &mut checks);
    }
    check_batch(&raw.batch, &mut checks);
    check_load(&raw.load, &mut checks);
    check_event_types(&raw.event_types, &mut checks);
    checks.positive("shutdown.grace_period", raw.shutdown.grace_period);
    check_log(&raw.log, &mut checks);
    check_telemetry(&raw.telemetry, &mut checks);
    check_relations(&raw.queue, &raw.batch, &mut checks);
    Some(Config {
        queue: raw.queue,
        notifications: raw.notifications,
        clickhouse: raw.clickhouse,
        s3: S3Config {
            region: raw.s3.region,
            clickhouse_endpoint: raw.s3.clickhouse_endpoint,
            clickhouse_access: access?,
            key_time: raw.s3.key_time,
        },
        batch: raw.batch,
        load: raw.load,
        event_types: raw.event_types,
        shutdown: raw.shutdown,
        admin: raw.admin,
        log: raw.log,
        telemetry: raw.telemetry,
    })
}

fn check_queue(queue: &QueueConfig, checks: &mut Checks) {
    if let Some(url) = &queue.url {
        check_queue_url(url, checks);
    }
    let longest_poll = Duration::from_secs(20);
    checks.duration(
        "queue.wait_time",
        queue.wait_time,
        Duration::ZERO..=longest_poll,
    );
    checks.whole_seconds("queue.wait_time", queue.wait_time);
    checks.integer("queue.receivers", queue.receivers as u64);
    checks.integer("queue.max_held", queue.max_held as u64);
    // A third of ten seconds is enough for a few requests of a heartbeat.
    let visibility = Duration::from_secs(10)..=MAX_VISIBILITY;
    checks.duration(
        "queue.visibility_timeout",
        queue.visibility_timeout,
        visibility,
    );
    checks.whole_seconds("queue.visibility_timeout", queue.visibility_timeout);
    let backoff = Duration::from_secs(1)..=MAX_VISIBILITY;
    checks.duration(
        "queue.retry_backoff_min",
        queue.retry_backoff_min,
        backoff.clone(),
    );
    checks.duration("queue.retry_backoff_max", queue.retry_backoff_max, backoff);
    checks.ordered(
        ("queue.retry_backoff_min", queue.retry_backoff_min),
        ("queue.retry_backoff_max", queue.retry_backoff_max),
    );
}

fn check_queue_url(url: &str, checks: &mut Checks) {
    const PATH: &str = "queue.url";
    let form = "set it to the URL that `aws sqs get-queue-url` prints, \
                such as https://sqs.eu-central-1.amazonaws.com/123456789012/uploads";
    if url.starts_with("arn:") {
        checks.fail(PATH, "is an ARN, not a URL", form);
        return;
    }
    let no_user = "remove them: AWS credentials are taken from the AWS environment";
    let Some(url) = checks.http_url(PATH, url, form, no_user) else {
        return;
    };
    if url.path().trim_matches('/').is_empty() {
        checks.fail(PATH, "does not name a queue", form);
    }
}

fn check_notifications(notifications: &NotificationsConfig, checks: &mut Checks) {
    let NotificationsConfig {
        events,
        include,
        exclude,
        envelopes: _,
    } = notifications;
    const EVENTS: &str = "notifications.events";
    let names = "use names such as ObjectCreated:* or ObjectCreated:Put";
    if events.is_empty() && checks.are_good(&[EVENTS]) {
        checks.fail(EVENTS, "is empty, so nothing would be loaded", names);
    }
    for error in events.iter().filter_map(|it| created_event(it).err()) {
        checks.fail(EVENTS, error, names);
    }
    for (path, patterns) in [
        ("notifications.include", include),
        ("notifications.exclude", exclude),
    ] {
        for error in patterns.iter().filter_map(|it| Globs::new(&[it]).err()) {
            checks.fail(path, error, "use globs such as section/**/*.jsonl");
        }
    }
}

fn check_clickhouse(clickhouse: &ClickHouseConfig, checks: &mut Checks) {
    check_clickhouse_url(clickhouse, checks);
    checks.name("clickhouse.user", &clickhouse.user);
    checks.secret(
        "clickhouse.password",
        &clickhouse.password,
        clickhouse.password_file.as_ref(),
    );
    checks.name("clickhouse.database", &clickhouse.database);
    if let Some(cluster) = &clickhouse.cluster {
        checks.name("clickhouse.cluster", cluster);
    }
    checks.name("clickhouse.topology", &clickhouse.topology);
    checks.positive("clickhouse.connect_timeout", clickhouse.connect_timeout);
    checks.positive("clickhouse.query_timeout", clickhouse.query_timeout);
    checks.positive("clickhouse.insert_timeout", clickhouse.insert_timeout);
    checks.integer("clickhouse.dedup_window", clickhouse.dedup_window);
    check_dedup_age(clickhouse, checks);
    // A table's TTL is a 32-bit number of seconds, which can hold a century.
    checks.duration(
        "clickhouse.reject_ttl",
        clickhouse.reject_ttl,
        DAY..=36_500 * DAY,
    );
}

fn check_dedup_age(clickhouse: &ClickHouseConfig, checks: &mut Checks) {
    let (age, timeout) = ("clickhouse.dedup_age", "clickhouse.insert_timeout");
    checks.duration(age, clickhouse.dedup_age, HOUR..=365 * DAY);
    // The last retry begins after four fifths of the age, and must end before the rest is over.
    let needed = HumanDuration::new(clickhouse.insert_timeout.get().saturating_mul(5));
    if checks.are_good(&[age, timeout]) && clickhouse.dedup_age < needed {
        let message = format!(
            "{} is less than five times {timeout} ({}), so the tables could forget an insert \
             while it is retried",
            clickhouse.dedup_age, clickhouse.insert_timeout,
        );
        checks.fail(age, message, format!("raise {age}, or lower {timeout}"));
    }
}

fn check_clickhouse_url(clickhouse: &ClickHouseConfig, checks: &mut Checks) {
    const PATH: &str = "clickhouse.url";
    let form = "set it to the URL of ClickHouse's HTTP interface, such as http://127.0.0.1:8123";
    let use_fields = "set clickhouse.user and clickhouse.password instead";
    let Some(url) = checks.http_url(PATH, &clickhouse.url, form, use_fields) else {
        return;
    };
    // ClickHouse accepts user, password and settings there, all of which Sluice
    // sets itself.
    if url.query().is_some() || url.fragment().is_some() {
        let advice =
            "remove the part after `?` or `#`; user, password and database are other fields";
        checks.fail(PATH, "contains a query or fragment", advice);
    }
    if url.scheme() == "http" && clickhouse.ca_file.is_some() && checks.are_good(&[PATH]) {
        let message = "has no effect, because clickhouse.url is not an https URL";
        checks.fail(
            "clickhouse.ca_file",
            message,
            "remove it, or change clickhouse.url to https",
        );
    }
}

/// Checks a URL to which paths are appended.
fn check_endpoint(path: &str, endpoint: &str, form: &str, no_user: &str, checks: &mut Checks) {
    let Some(url) = checks.http_url(path, endpoint, form, no_user) else {
        return;
    };
    if url.query().is_some() || url.fragment().is_some() {
        checks.fail(path, "contains a query or fragment", form);
    }
}

fn check_access_values(access: &S3AccessConfig, checks: &mut Checks) {
    match access {
        // An empty value has already been reported.
        S3AccessConfig::NamedCollection { name } if !name.is_empty() => {
            checks.name("s3.clickhouse_access.name", name);
        }
        S3AccessConfig::Role { role_arn }
            if !role_arn.is_empty() && !role_arn.starts_with("arn:") =>
        {
            checks.fail(
                "s3.clickhouse_access.role_arn",
                "is not an ARN",
                "set it to a role's ARN, such as arn:aws:iam::123456789012:role/clickhouse-reader",
            );
        }
        S3AccessConfig::Keys {
            access_key_id,
            secret_access_key,
            secret_access_key_file,
        } => {
            if !access_key_id.is_empty() {
                checks.name("s3.clickhouse_access.access_key_id", access_key_id);
            }
            checks.secret(
                "s3.clickhouse_access.secret_access_key",
                secret_access_key,
                secret_access_key_file.as_ref(),
            );
        }
        _ => {}
    }
}

fn check_batch(batch: &BatchConfig, checks: &mut Checks) {
    checks.duration(
        "batch.window",
        batch.window,
        Duration::from_millis(100)..=HOUR,
    );
    checks.integer("batch.max_objects", batch.max_objects as u64);
    checks.size("batch.max_bytes", batch.max_bytes, 1 << 20..=u64::MAX);
}

fn check_event_types(event_types: &EventTypesConfig, checks: &mut Checks) {
    checks.integer("event_types.min_year", u64::from(event_types.min_year));
    checks.duration(
        "event_types.max_future",
        event_types.max_future,
        Duration::ZERO..=DAY * 36_500,
    );
}

fn check_load(load: &LoadConfig, checks: &mut Checks) {
    checks.integer("load.concurrency", load.concurrency as u64);
    checks.positive("load.retry_backoff_min", load.retry_backoff_min);
    checks.positive("load.retry_backoff_max", load.retry_backoff_max);
    checks.positive("load.probe_interval", load.probe_interval);
    checks.duration(
        "load.janitor_interval",
        load.janitor_interval,
        Duration::from_secs(1)..=DAY,
    );
    checks.size(
        "load.max_line_bytes",
        load.max_line_bytes,
        1 << 10..=1 << 30,
    );
    checks.size("load.max_memory", load.max_memory, 256 << 20..=1 << 40);
    checks.ordered(
        ("load.retry_backoff_min", load.retry_backoff_min),
        ("load.retry_backoff_max", load.retry_backoff_max),
    );
    checks.size("load.stream_below", load.stream_below, 0..=1 << 20);
    for name in &load.accept_unproven {
        if Compression::of_extension(name) == Compression::None {
            let known = Compression::ALL.map(Compression::extension).join(", ");
            let message = format!("`{name}` is not the extension of a supported compression");
            checks.fail("load.accept_unproven", message, format!("use {known}"));
        }
    }
    let conflicts = [
        (
            load.fallback == Fallback::Never,
            "conflicts with `load.fallback: never`, with which the worker streams nothing",
        ),
        (
            load.strategy == Strategy::PerType,
            "conflicts with `load.strategy: per_type`, with which each object would be streamed \
             once for each table",
        ),
    ];
    for (conflict, message) in conflicts {
        if conflict && load.stream_below.bytes() > 0 {
            checks.fail("load.stream_below", message, "remove one of the two");
        }
    }
}

fn check_telemetry(telemetry: &TelemetryConfig, checks: &mut Checks) {
    const ENDPOINT: &str = "telemetry.otlp_endpoint";
    const INTERVAL: &str = "telemetry.metrics_interval";
    let form = "set it to the URL of an OTLP/HTTP receiver, such as http://127.0.0.1:4318";
    if let Some(endpoint) = &telemetry.otlp_endpoint {
        let no_user = "remove them, and set OTEL_EXPORTER_OTLP_HEADERS instead";
        check_endpoint(ENDPOINT, endpoint, form, no_user, checks);
    }
    if let Some(interval) = telemetry.metrics_interval {
        checks.duration(INTERVAL, interval, Duration::from_secs(1)..=HOUR);
        if telemetry.otlp_endpoint.is_none() && checks.are_good(&[ENDPOINT]) {
            checks.fail(INTERVAL, format!("requires {ENDPOINT}"), form);
        }
    }
}

fn check_log(log: &LogConfig, checks: &mut Checks) {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const PATH: &str = "log.level";
    let form = "set it to a level (off, error, warn, info, debug, trace), \
                or to levels by module, such as `sluice=debug,info`";
    if log.level.trim().is_empty() {
        checks.fail(PATH, "is empty", form);
        return;
    }
    // The filter interprets a single word that is not a level as a module: `inof` would silence
    // everything except the module of that name.
    for directive in log.level.split(',').map(str::trim) {
        let word = directive
            .chars()
            .all(|c| c.is_alphanumeric() || "_-".contains(c));
        if directive.starts_with("clickhouse") {
            let advice = "remove it; Sluice's own messages include the errors of ClickHouse";
            let message = format!("`{directive}` would log statements with their secrets");
            checks.fail(PATH, message, advice);
            return;
        }
        if word && !LEVELS.contains(&directive.to_lowercase().as_str()) {
            checks.fail(PATH, format!("`{directive}` is not a level"), form);
            return;
        }
    }
    if let Err(error) = EnvFilter::try_new(&log.level) {
        checks.fail(PATH, format!("is not a log filter: {error}"), form);
    }
}

fn check_relations(queue: &QueueConfig, batch: &BatchConfig, checks: &mut Checks) {
    let (held, objects) = ("queue.max_held", "batch.max_objects");
    if checks.are_good(&[held, objects]) && queue.max_held < batch.max_objects {
        let message = format!(
            "{} is less than {objects} ({}), so no batch could reach that limit",
            queue.max_held, batch.max_objects,
        );
        checks.fail(held, message, format!("raise {held}, or lower {objects}"));
    }
}

/// The checks that several fields share. Each skips values that are already known to be invalid.
struct Checks<'a> {
    origins: &'a Origins,
    fields: &'a Fields,
    findings: &'a mut Findings,
}

impl Checks<'_> {
    fn fail(&mut self, path: &str, message: impl Into<String>, advice: impl Into<String>) {
        let problem = Problem::new(path, message)
            .origin(self.origins.of(path))
            .advice(advice);
        self.findings.add(problem);
    }

    fn are_good(&self, paths: &[&str]) -> bool {
        paths.iter().all(|path| self.findings.is_good(path))
    }

    /// Checks that a whole number is in the range of the schema.
    fn integer(&mut self, path: &str, value: u64) {
        let Some((field, (min, max))) = self
            .fields
            .field(path)
            .and_then(|field| field.range.map(|range| (field, range)))
        else {
            return;
        };
        if !(min..=max).contains(&value) {
            let advice = field.advice();
            self.fail(path, format!("`{value}` is out of range"), advice);
        }
    }

    fn duration(&mut self, path: &str, value: HumanDuration, range: RangeInclusive<Duration>) {
        if !range.contains(&value.get()) {
            let (min, max) = (
                HumanDuration::new(*range.start()),
                HumanDuration::new(*range.end()),
            );
            let message = format!("`{value}` is out of range");
            self.fail(
                path,
                message,
                format!("set it to a duration from {min} to {max}"),
            );
        }
    }

    fn size(&mut self, path: &str, value: HumanSize, range: RangeInclusive<u64>) {
        let (min, max) = (HumanSize::new(*range.start()), HumanSize::new(*range.end()));
        if value < min {
            let message = format!("`{value}` is too small");
            self.fail(path, message, format!("set it to {min} or more"));
        } else if value > max {
            let message = format!("`{value}` is too large");
            self.fail(path, message, format!("set it to {max} or less"));
        }
    }

    /// Checks that a wait is positive, and at most a day.
    fn positive(&mut self, path: &str, value: HumanDuration) {
        self.duration(path, value, Duration::from_millis(1)..=DAY);
    }

    /// Checks for whole seconds: SQS counts in seconds, and would truncate the rest.
    fn whole_seconds(&mut self, path: &str, value: HumanDuration) {
        if value.get().subsec_nanos() != 0 && self.are_good(&[path]) {
            let message = format!("`{value}` is not a whole number of seconds");
            self.fail(path, message, "round it: SQS counts in seconds");
        }
    }

    fn ordered(&mut self, min: (&str, HumanDuration), max: (&str, HumanDuration)) {
        if self.are_good(&[min.0, max.0]) && min.1 > max.1 {
            // Reported at the value that is set, if the other is a default.
            let at = if self.origins.of(min.0).is_some() {
                min.0
            } else {
                max.0
            };
            let message = format!("{} ({}) is more than {} ({})", min.0, min.1, max.0, max.1);
            self.fail(at, message, format!("lower {}, or raise {}", min.0, max.0));
        }
    }

    /// Checks a name that is quoted in a statement or header.
    fn name(&mut self, path: &str, value: &str) {
        if value.trim().is_empty() {
            self.fail(
                path,
                "is empty",
                "set a name, or remove the field to use the default",
            );
        } else if value.chars().any(char::is_control) {
            self.fail(
                path,
                "contains a control character",
                "use only printable characters",
            );
        }
    }

    /// Checks a secret, which is set by value or by file, but not both. A secret that was written
    /// with `echo` ends with a line break, and would be rejected later as a wrong password.
    fn secret(&mut self, path: &str, given: &Secret, file: Option<&PathBuf>) {
        let file_path = format!("{path}_file");
        if file.is_some() && !given.is_empty() {
            let message = format!("{path} is also set");
            self.fail(&file_path, message, "remove one of the two");
            return;
        }
        if let Err(problem) = SecretSource::of(given, file).read() {
            let at = if file.is_some() { &file_path } else { path };
            let advice = "write the secret as a single line; `echo` adds a line break at the end, \
                          `printf` does not";
            self.fail(at, problem, advice);
        }
    }

    /// Parses an http or https URL without userinfo. The messages do not quote
    /// it, since it may contain a password.
    fn http_url(&mut self, path: &str, value: &str, form: &str, no_user: &str) -> Option<Url> {
        let url = match Url::parse(value) {
            Ok(url) => url,
            Err(error) => {
                self.fail(path, format!("is not a URL: {error}"), form);
                return None;
            }
        };
        if !matches!(url.scheme(), "http" | "https") {
            // The scheme is not quoted either: in `name:password@host` it is a name.
            self.fail(path, "is not an http or https URL", form);
            return None;
        }
        if !url.username().is_empty() || url.password().is_some() {
            self.fail(path, "contains a user or password", no_user);
            return None;
        }
        Some(url)
    }
}
