//! `sluice check`: verifies everything that `run` needs.

mod clickhouse;
mod columns;
mod dedup_self_test;
mod policy;
mod queue;
mod report;
mod storage;
mod topology;

use anyhow::ensure;

use super::app::{App, region};
use super::output::Output;
use crate::event_types::Catalog;
use crate::ledger::Ledger;
use crate::object::ObjectUrl;
use crate::s3::Store;
use report::{Check, Outcome, Report};
use storage::{Readers, Sample, nothing_to_read};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Objects to read instead of the one that was loaded last, such as s3://bucket/key
    #[arg(value_name = "S3-URL")]
    objects: Vec<ObjectUrl>,

    /// Check access to this bucket (can be repeated)
    #[arg(long = "bucket", value_name = "NAME")]
    buckets: Vec<String>,

    /// Print the minimal rights for this configuration (IAM policies, GRANTs) instead of checking
    #[arg(long)]
    print_policy: bool,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let config = app.config;
    let catalog = app.catalog()?;
    let aws = app.aws().await;
    if arguments.print_policy {
        // The policy names the dead-letter queue. If the queue cannot be queried, the rest is still
        // printed.
        let queue = queue::attributes(config, &aws).await.unwrap_or_default();
        let policies = policy::policies(config, &catalog, &buckets(arguments), &queue);
        return arguments.output.show(&policies);
    }
    let warehouse = app.warehouse()?;
    let planner = app.planner(catalog.clone(), region(&aws))?;

    let mut checks = vec![Check::pass("configuration", declared(&catalog))];
    checks.extend(queue::check(config, &aws).await);
    let (reached, version) = clickhouse::reach(config, &warehouse).await;
    checks.push(reached);
    match &version {
        Some(version) => {
            let grants = policy::grants(config, &catalog, &arguments.buckets);
            checks.push(policy::check(&warehouse, &config.clickhouse.user, &grants).await);
            checks.extend(clickhouse::check(app, &catalog, &warehouse, version).await);
            checks.push(if are_tables_well(&checks) {
                columns::check(&warehouse, &catalog).await
            } else {
                columns::skipped(OTHER_TABLES)
            });
            let preflight = app.preflight(&catalog)?;
            checks.extend(topology::check(&preflight, config.clickhouse.unproven).await);
        }
        None => {
            checks.push(policy::skipped());
            checks.extend(clickhouse::skipped());
            checks.push(columns::skipped(clickhouse::NO_CLICKHOUSE));
            checks.extend(topology::skipped());
        }
    }
    let readers = Readers {
        planner: &planner,
        warehouse: &warehouse,
        store: &Store::new(&aws),
        fallback: config.load.fallback,
        clickhouse_answers: version.is_some(),
        accept_unproven: app.accept_unproven(),
    };
    let ledger = app.ledger_of("check", warehouse.clone());
    let samples = samples(arguments, &ledger).await;
    if samples.is_empty() {
        checks.extend(nothing_to_read());
    }
    for sample in samples {
        checks.extend(readers.check(&sample).await);
    }

    checks.push(if version.is_none() {
        dedup_self_test::skipped(clickhouse::NO_CLICKHOUSE)
    } else if are_tables_well(&checks) {
        let options = app.schema_options();
        dedup_self_test::check(&warehouse, &ledger, planner, options, &app.env).await
    } else {
        dedup_self_test::skipped(OTHER_TABLES)
    });

    let report = Report { checks };
    arguments.output.show(&report)?;
    ensure!(
        report.count(Outcome::Fail) == 0,
        "some checks failed; see above"
    );
    Ok(())
}

/// Returns what is declared, in words.
fn declared(catalog: &Catalog) -> String {
    let (types, formats) = (catalog.types().len(), catalog.formats().declared().len());
    match formats {
        0 => format!("valid, with {types} event types"),
        _ => format!("valid, with {types} event types and {formats} formats"),
    }
}

const OTHER_TABLES: &str = "the tables are not as declared";

fn are_tables_well(checks: &[Check]) -> bool {
    let mut of_tables = checks.iter();
    of_tables.all(|check| check.name != clickhouse::TABLES || check.result != Outcome::Fail)
}

/// Returns the objects to read: those of the command line, or else the one that was loaded last.
async fn samples(arguments: &Arguments, ledger: &Ledger) -> Vec<Sample> {
    let mut samples = Vec::new();
    for url in &arguments.objects {
        samples.push(Sample::of_url(url, ledger).await);
    }
    for bucket in &arguments.buckets {
        samples.push(Sample::of_bucket(bucket, ledger).await);
    }
    if samples.is_empty() {
        samples.extend(Sample::loaded_last(ledger).await);
    }
    samples
}

/// Returns the buckets that the command line names, or a placeholder.
fn buckets(arguments: &Arguments) -> Vec<String> {
    let of_objects = arguments.objects.iter().map(|url| url.bucket.clone());
    let mut buckets: Vec<String> = arguments
        .buckets
        .iter()
        .cloned()
        .chain(of_objects)
        .collect();
    if buckets.is_empty() {
        buckets.push("NAME-OF-THE-BUCKET".to_owned());
    }
    buckets
}
