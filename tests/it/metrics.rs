//! Compares docs/metrics.md with the metrics that the daemon exports after every kind of event.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice::event_types::Catalog;
use sluice_testkit::proxy::{Fault, Proxy};
use sluice_testkit::xapi::{EventType, ExpectedRows, Generator, gzip};
use sluice_testkit::{Prometheus, Requirement, Site, Stack, project, wait_for};
use tokio::task::spawn_blocking;

use crate::dlq::fifo;
use crate::harness::{
    BOUND, Sluice, announcement, line, loaded, upload, wait_for_dead_letters, wait_until_drained,
};

/// A row of the table in docs/metrics.md.
#[derive(Debug)]
struct Documented {
    kind: String,
    unit: String,
    labels: BTreeMap<String, Values>,
}

#[derive(Debug)]
enum Values {
    Only(BTreeSet<String>),
    /// The page describes the values in words.
    Open,
}

fn documented() -> BTreeMap<String, Documented> {
    let page = project::read("docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, labels, meaning] = cells[..] else {
            panic!("not five cells: {row}")
        };
        assert!(!meaning.is_empty(), "{row}");
        let documented = Documented {
            kind: kind.to_owned(),
            unit: unit.to_owned(),
            labels: labels.split("; ").filter_map(label).collect(),
        };
        (name.trim_matches('`').to_owned(), documented)
    });
    rows.collect()
}

/// Parses a label and its values, as in "`reason`: `window`, `count`", or a description of them.
fn label(text: &str) -> Option<(String, Values)> {
    let (name, values) = text.split_once(": ")?;
    let values: Option<BTreeSet<String>> = values
        .split(", ")
        .map(|value| Some(value.strip_prefix('`')?.strip_suffix('`')?.to_owned()))
        .collect();
    let name = name.trim_matches('`').to_owned();
    Some((name, values.map_or(Values::Open, Values::Only)))
}

pub(crate) type Labels = BTreeMap<String, String>;

/// The content of `/metrics`: the types, and each series with its value. The value of a histogram
/// is its count.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    pub(crate) kinds: BTreeMap<String, String>,
    pub(crate) series: BTreeMap<(String, Labels), f64>,
}

impl Exported {
    pub(crate) async fn fetch(sluice: &Sluice) -> Result<Self> {
        let (_, text) = sluice.get("/metrics").await?;
        let mut exported = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').context("no type")?;
                exported.kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                exported.take(line)?;
            }
        }
        Ok(exported)
    }

    fn take(&mut self, line: &str) -> Result<()> {
        let (series, value) = line.rsplit_once(' ').context("no value")?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.trim_end_matches('}')),
            None => (series, ""),
        };
        let name = match name.rsplit_once('_') {
            Some((histogram, "count")) if self.kinds.contains_key(histogram) => histogram,
            Some((histogram, "sum" | "bucket")) if self.kinds.contains_key(histogram) => {
                return Ok(());
            }
            _ => name,
        };
        let labels = labels.split("\",").filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (name, value) = label.split_once("=\"").context("no label")?;
            Ok((name.to_owned(), value.trim_end_matches('"').to_owned()))
        });
        let labels = labels.collect::<Result<Labels>>()?;
        let series = (name.to_owned(), labels);
        let before = self.series.insert(series, value.parse()?);
        ensure!(before.is_none(), "duplicate series: {line}");
        Ok(())
    }

    /// Returns the sum of all series that have these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let series = self.series.iter().filter(|((it, has), _)| {
            let of = |(label, value): &(&str, &str)| has.get(*label).is_some_and(|it| it == value);
            it == name && labels.iter().all(of)
        });
        series.map(|(_, value)| value).sum()
    }
}

/// Waits until the sum of the series with these labels satisfies `condition`.
async fn wait_for_metric(
    sluice: &Sluice,
    name: &str,
    labels: &[(&str, &str)],
    condition: impl Fn(f64) -> bool,
) {
    wait_for(&format!("{name} {labels:?}"), BOUND, async || {
        let sum = Exported::fetch(sluice).await?.sum(name, labels);
        ensure!(condition(sum), "{sum}");
        Ok(Some(()))
    })
    .await;
}

/// A daemon whose connections to ClickHouse and SQS can be cut.
struct Scenario {
    stack: &'static Stack,
    site: Site,
    clickhouse: Proxy,
    sqs: Proxy,
    sluice: Sluice,
}

impl Scenario {
    async fn new() -> Self {
        let stack = Stack::shared();
        let site = stack.site_with_max_receives("metrics", 2).await.unwrap();
        Sluice::new(stack, &site).migrate();
        let clickhouse = Proxy::start(stack.clickhouse.url()).await.unwrap();
        let sqs = Proxy::start(stack.aws.endpoint()).await.unwrap();
        let sluice = Sluice::new(stack, &site)
            .set("clickhouse.url", clickhouse.url())
            .environment("AWS_ENDPOINT_URL_SQS", sqs.url());
        Self {
            stack,
            site,
            clickhouse,
            sqs,
            sluice,
        }
    }

    /// Loads valid lines of all kinds, lines of no event type, and a key that ClickHouse cannot
    /// address.
    async fn load_valid_objects(&self) -> ExpectedRows {
        let bundles: Vec<_> = Generator::new(61).take(20).collect();
        let mut expected_rows = upload(&self.site, &bundles).await;
        self.site.put("odd*.jsonl", line("odd")).await.unwrap();
        self.site.put("text.jsonl", "no JSON\n").await.unwrap();
        expected_rows.objects += 2;
        expected_rows.unmatched += 1;
        expected_rows.rejected += 1;
        wait_until_drained(&self.site).await;
        expected_rows
    }

    async fn announce_again(&self) {
        let etag = self.site.put("again.jsonl", line("again")).await.unwrap();
        wait_until_drained(&self.site).await;
        let body = announcement(&self.site, "again.jsonl", &etag);
        self.site.send(&body).await.unwrap();
        let duplicate = [("outcome", "duplicate")];
        wait_for_metric(&self.sluice, "sluice_objects_total", &duplicate, |sum| {
            sum > 0.0
        })
        .await;
    }

    /// Announces a truncated object and a missing one, and sends a message that is not a
    /// notification.
    async fn send_invalid_messages(&self) {
        let whole = gzip(line("truncated").repeat(2000).as_bytes());
        let half = &whole[..whole.len() / 2];
        self.site.put("truncated.jsonl.gz", half).await.unwrap();
        let etag = "d41d8cd98f00b204e9800998ecf8427e";
        let gone = announcement(&self.site, "gone.jsonl", etag);
        self.site.send(&gone).await.unwrap();
        self.site.send("not a notification").await.unwrap();
        wait_for_dead_letters(&self.site, 3).await;
        wait_until_drained(&self.site).await;
    }

    /// Cuts the connection to ClickHouse until an in-flight message has needed a heartbeat.
    async fn disconnect_clickhouse(&self) {
        self.clickhouse
            .inject(Fault::CutBeforeRequest, usize::MAX, |_, _| true);
        self.site
            .put("in-flight.jsonl", line("in flight"))
            .await
            .unwrap();
        let unreachable = [("reason", "unreachable")];
        let is_one = |sum| sum == 1.0;
        wait_for_metric(&self.sluice, "sluice_breaker_open", &unreachable, is_one).await;
        wait_for_metric(&self.sluice, "sluice_backlog_messages", &[], is_one).await;
        wait_for_metric(&self.sluice, "sluice_sqs_heartbeats_total", &[], |sum| {
            sum > 0.0
        })
        .await;
        self.clickhouse.heal();
        wait_until_drained(&self.site).await;
        wait_for_metric(&self.sluice, "sluice_breaker_open", &[], |sum| sum == 0.0).await;
        wait_for_metric(&self.sluice, "sluice_backlog_messages", &[], |sum| {
            sum == 0.0
        })
        .await;
    }

    async fn disconnect_sqs(&self) {
        self.sqs.inject(Fault::Status(500), usize::MAX, |_, _| true);
        for operation in ["receive", "attributes"] {
            let of = [("operation", operation)];
            wait_for_metric(&self.sluice, "sluice_sqs_failures_total", &of, |sum| {
                sum > 0.0
            })
            .await;
        }
        self.sqs.heal();
    }
}

/// Asserts that every exported series is documented, with its type, its labels and their values.
fn assert_documented(exported: &Exported, documented: &BTreeMap<String, Documented>) {
    for (name, labels) in exported.series.keys() {
        let documented = documented.get(name);
        let documented = documented.unwrap_or_else(|| panic!("{name} is not documented"));
        assert_eq!(exported.kinds[name], documented.kind, "{name}");
        let ends_with_unit = name.trim_end_matches("_total").ends_with(&documented.unit);
        assert!(ends_with_unit, "{name}");
        let names = |it: &BTreeMap<String, Values>| it.keys().cloned().collect::<Vec<_>>();
        let has: Vec<String> = labels.keys().cloned().collect();
        assert_eq!(has, names(&documented.labels), "{name}");
        for (label, value) in labels {
            let is_documented = match &documented.labels[label] {
                Values::Only(values) => values.contains(value),
                Values::Open => is_of_open_label(label, value),
            };
            assert!(is_documented, "{name}: {label}={value}");
        }
    }
}

fn is_of_open_label(label: &str, value: &str) -> bool {
    let catalog = Catalog::builtin();
    let is_type = || catalog.types().iter().any(|it| it.name == value);
    match label {
        "code" => value == "none" || value.parse::<u32>().is_ok(),
        "kind" => is_type() || ["rejected", "unmatched"].contains(&value),
        "reason" => {
            value.starts_with("missing ")
                || value.starts_with("invalid ")
                || value.ends_with(" out of range")
                || ["too large", "bad UTF-8", "not JSON", "not an object"].contains(&value)
        }
        "version" => value == env!("CARGO_PKG_VERSION"),
        _ => false,
    }
}

/// Asserts that each metric has a series, and one for each value of a label if its values are
/// listed.
fn assert_complete(exported: &Exported, documented: &BTreeMap<String, Documented>) {
    for (name, it) in documented {
        let series = exported.series.keys().filter(|(series, _)| series == name);
        let series: Vec<&Labels> = series.map(|(_, labels)| labels).collect();
        assert!(!series.is_empty(), "{name} is not exported");
        for (label, values) in &it.labels {
            let Values::Only(values) = values else {
                continue;
            };
            let found: BTreeSet<String> = series.iter().map(|it| it[label].clone()).collect();
            assert_eq!(&found, values, "{name}: {label}");
        }
    }
}

/// Counters that stay at zero here. They rise only if the queue accepts no heartbeat for a whole
/// visibility timeout (tested in core/src/daemon/heartbeats), if users' views read the tables
/// (tests/it/views.rs), or if rows of a released batch appear (tests/it/janitor.rs).
const STAY_AT_ZERO: [&str; 3] = [
    "sluice_sqs_heartbeats_missed_total",
    "sluice_rollbacks_left_in_views_total",
    "sluice_stray_rows_deleted_total",
];

/// Returns the series of counters and histograms. `rate()` needs them from the start.
fn cumulative(exported: &Exported) -> BTreeSet<&(String, Labels)> {
    let series = exported.series.keys();
    series
        .filter(|(name, _)| exported.kinds[name] != "gauge")
        .collect()
}

async fn assert_counts(scenario: &Scenario, exported: &Exported, expected_rows: &ExpectedRows) {
    let Scenario { stack, site, .. } = scenario;
    let rows = |kind: &str| exported.sum("sluice_rows_total", &[("kind", kind)]) as u64;
    for kind in EventType::ALL {
        assert_eq!(rows(kind.name()), expected_rows.rows(kind), "{kind:?}");
    }
    // There are two more lines than in the first loads: of the object that was announced twice, and
    // of the one that was in flight during the outage.
    assert_eq!(rows("unmatched"), expected_rows.unmatched + 2);
    assert_eq!(rows("rejected"), expected_rows.rejected);
    let rejected = exported.sum("sluice_rejected_lines_total", &[]) as u64;
    assert_eq!(rejected, expected_rows.rejected);

    let objects = |outcome| exported.sum("sluice_objects_total", &[("outcome", outcome)]) as u64;
    assert_eq!(objects("loaded"), expected_rows.objects + 2);
    assert_eq!(objects("duplicate"), 1);
    // Each was tried twice before it became a dead letter.
    assert_eq!((objects("missing"), objects("failed")), (2, 2));
    assert_eq!(exported.sum("sluice_objects_streamed_total", &[]), 1.0);
    let of_ledger = loaded(&stack.clickhouse, &site.database).await;
    assert_eq!(objects("loaded"), of_ledger);

    let database = &site.database;
    let batches =
        format!("SELECT uniqExact(batch_id) FROM {database}.ledger_batches WHERE event = 'loaded'");
    let batches: u64 = stack.clickhouse.scalar(&batches).await.unwrap();
    let counted = exported.sum("sluice_batches_total", &[("outcome", "loaded")]);
    assert_eq!(counted as u64, batches);
    let bytes = format!(
        "SELECT sum(size) FROM (SELECT DISTINCT object_id, size FROM {database}.ledger_objects \
         WHERE batch_id IN (SELECT batch_id FROM {database}.ledger_batches WHERE event = 'loaded'))"
    );
    let bytes: u64 = stack.clickhouse.scalar(&bytes).await.unwrap();
    let counted = exported.sum("sluice_object_bytes_total", &[]);
    assert_eq!(counted as u64, bytes);
    assert_eq!(exported.sum("sluice_dlq_messages", &[]), 3.0);
    assert_eq!(exported.sum("sluice_build_info", &[]), 1.0);
}

/// Returns every expression of the dashboard, with the default values of its text boxes.
fn dashboard_expressions() -> Vec<String> {
    fn collect(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                into.extend(
                    fields
                        .get("expr")
                        .and_then(|it| Some(it.as_str()?.to_owned())),
                );
                fields.values().for_each(|it| collect(it, into));
            }
            Value::Array(items) => items.iter().for_each(|it| collect(it, into)),
            _ => {}
        }
    }
    let dashboard = project::read("helm/sluice/dashboards/sluice.json");
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let mut expressions = Vec::new();
    collect(&dashboard, &mut expressions);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    for variable in variables.iter().filter(|it| it["type"] == "textbox") {
        let [name, value] = ["name", "query"].map(|field| variable[field].as_str().unwrap());
        let name = format!("${name}");
        for expression in &mut expressions {
            *expression = expression.replace(&name, value);
        }
    }
    expressions
}

/// Asserts that the dashboard's queries return series when they are sent as Grafana sends them.
async fn assert_dashboard_has_data(prometheus: &Prometheus) {
    let expressions = dashboard_expressions();
    assert!(expressions.len() > 30, "{}", expressions.len());
    for expression in expressions {
        let query = expression.replace("$__rate_interval", "5m");
        let query = query.replace("$__range", "1h");
        // These return series only while something is wrong, and nothing is.
        if query.contains(" > 0") {
            prometheus.query(&query).unwrap();
            continue;
        }
        wait_for(&query, BOUND, async || {
            let series = prometheus.query(&query)?;
            ensure!(!series.is_empty(), "no series");
            Ok(Some(()))
        })
        .await;
    }
}

/// Asserts that the alerts use only documented metrics.
fn assert_alerts_are_of(documented: &BTreeMap<String, Documented>) {
    let text = project::read("helm/sluice/alerts.yaml");
    let words = text.split(|it: char| !it.is_alphanumeric() && it != '_');
    let metrics: BTreeSet<&str> = words.filter(|it| it.starts_with("sluice_")).collect();
    assert!(metrics.len() > 5);
    for metric in metrics {
        let name = metric.trim_end_matches("_bucket");
        assert!(documented.contains_key(name), "{metric}");
    }
}

#[tokio::test]
async fn exported_metrics_are_those_of_the_documentation_and_the_dashboard() {
    if !Requirement::Prometheus.is_met() {
        return;
    }
    let documented = documented();
    assert_alerts_are_of(&documented);
    let mut scenario = Scenario::new().await;
    scenario.sluice.start();
    scenario.sluice.wait_until_ready().await;
    let worker = scenario.sluice.admin_address().unwrap().parse().unwrap();
    let prometheus = spawn_blocking(move || Prometheus::start(&[worker]));
    let prometheus = prometheus.await.unwrap().unwrap();
    let first = Exported::fetch(&scenario.sluice).await.unwrap();
    let expected_rows = scenario.load_valid_objects().await;
    scenario.announce_again().await;
    scenario.send_invalid_messages().await;
    scenario.disconnect_clickhouse().await;
    scenario.disconnect_sqs().await;
    wait_for_metric(&scenario.sluice, "sluice_dlq_messages", &[], |sum| {
        sum == 3.0
    })
    .await;

    let exported = Exported::fetch(&scenario.sluice).await.unwrap();
    assert_documented(&exported, &documented);
    assert_complete(&exported, &documented);
    for (name, it) in &documented {
        if it.kind != "gauge" && !STAY_AT_ZERO.contains(&name.as_str()) {
            assert!(exported.sum(name, &[]) > 0.0, "{name} stayed at zero");
        }
    }
    let new: Vec<_> = cumulative(&exported)
        .difference(&cumulative(&first))
        .filter(|(name, _)| name != "sluice_clickhouse_errors_total")
        .copied()
        .collect();
    assert!(new.is_empty(), "missing at the start: {new:?}");
    for (_, labels) in exported.series.keys() {
        for value in labels.values() {
            let names = [".jsonl", "odd", "section/", scenario.site.bucket.as_str()];
            let is_named = names.iter().any(|name| value.contains(name));
            assert!(!is_named, "{value} names an object");
        }
    }
    assert_counts(&scenario, &exported, &expected_rows).await;
    assert_dashboard_has_data(&prometheus).await;
}

#[tokio::test]
async fn without_a_dead_letter_queue_its_depth_is_not_exported_and_nothing_fails() {
    let stack = Stack::shared();
    let site = stack.site("no-dead-letters").await.unwrap();
    // The dead-letter queue does not have one of its own.
    let mut sluice = Sluice::new(stack, &site)
        .set("queue.url", &site.dlq_url)
        .set("queue.allow_missing_dlq", true);
    sluice.migrate();
    sluice.start();
    let exported = wait_for("the depth of the queue", BOUND, async || {
        let exported = Exported::fetch(&sluice).await?;
        let is_exported = exported.kinds.contains_key("sluice_queue_messages_visible");
        Ok(is_exported.then_some(exported))
    })
    .await;
    assert!(!exported.kinds.contains_key("sluice_dlq_messages"));
    assert_eq!(exported.sum("sluice_sqs_failures_total", &[]), 0.0);
}

#[tokio::test]
async fn the_depths_of_fifo_queues_are_exported() {
    let stack = Stack::shared();
    let site = stack.site("depths-fifo").await.unwrap();
    let dead = fifo(&site, "dead", None).await;
    let policy = serde_json::json!({
        "deadLetterTargetArn": site.dlq_arn.replace("-dlq", "-dead.fifo"), "maxReceiveCount": 3,
    });
    let queue = fifo(&site, "live", Some(policy)).await;
    for (queue, group) in [(&dead, "a"), (&queue, "b"), (&queue, "c")] {
        let request = site.sqs.send_message().queue_url(queue);
        let request = request.message_group_id(group).message_body("no event");
        let request = request.message_deduplication_id(group);
        request.send().await.unwrap();
    }
    // Without ClickHouse nothing is received, so the messages stay visible.
    let mut sluice = Sluice::new(stack, &site)
        .set("queue.url", &queue)
        .set("clickhouse.url", "http://127.0.0.1:1");
    sluice.start();
    wait_for_metric(&sluice, "sluice_dlq_messages", &[], |sum| sum == 1.0).await;
    wait_for_metric(&sluice, "sluice_queue_messages_visible", &[], |sum| {
        sum == 2.0
    })
    .await;
}
