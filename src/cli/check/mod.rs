//! `sluice check`: everything that `run` needs, asked beforehand.

mod clickhouse;
mod columns;
mod dedup_self_test;
mod policy;
mod queue;
mod report;
mod storage;
mod topology;

use std::time::Duration;

use anyhow::ensure;

use super::app::{App, region};
use super::output::Output;
use crate::ledger::Ledger;
use crate::object::ObjectUrl;
use crate::s3::Store;
use report::{Check, Outcome, Report};
use storage::{Readers, Sample, nothing_to_read};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Read these objects, such as s3://bucket/key, rather than the one that was loaded last
    #[arg(value_name = "S3-URL")]
    objects: Vec<ObjectUrl>,

    /// Check the access to this bucket (can be repeated)
    #[arg(long = "bucket", value_name = "NAME")]
    buckets: Vec<String>,

    /// Print the least rights that this configuration needs instead: policies of IAM, and GRANTs
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
        // It names the dead-letter queue. Who may not ask it gets the rest all the same.
        let queue = queue::attributes(config, &aws).await.unwrap_or_default();
        let policies = policy::policies(config, &catalog, &buckets(arguments), &queue);
        return arguments.output.show(&policies);
    }
    let warehouse = app.warehouse()?;
    let planner = app.planner(catalog.clone(), region(&aws))?;

    let mut checks = vec![Check::pass(
        "configuration",
        format!("sound, with {} event types", catalog.types().len()),
    )];
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
                columns::unasked(OTHER_TABLES)
            });
            let preflight = app.preflight(&catalog)?;
            checks.extend(topology::check(&preflight, config.clickhouse.unproven).await);
        }
        None => {
            checks.push(policy::unasked());
            checks.extend(clickhouse::unasked());
            checks.push(columns::unasked(clickhouse::NO_CLICKHOUSE));
            checks.extend(topology::unasked());
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
    let ledger = Ledger::new(warehouse.clone(), "check", Duration::ZERO, app.env.clone());
    let samples = samples(arguments, &ledger).await;
    if samples.is_empty() {
        checks.extend(nothing_to_read());
    }
    for sample in samples {
        checks.extend(readers.check(&sample).await);
    }

    checks.push(if version.is_none() {
        dedup_self_test::unasked(clickhouse::NO_CLICKHOUSE)
    } else if are_tables_well(&checks) {
        let options = app.schema_options();
        dedup_self_test::check(&warehouse, &ledger, planner, options, &app.env).await
    } else {
        dedup_self_test::unasked(OTHER_TABLES)
    });

    let report = Report { checks };
    arguments.output.show(&report)?;
    ensure!(
        report.count(Outcome::Fail) == 0,
        "not everything is as it must be: see above"
    );
    Ok(())
}

const OTHER_TABLES: &str = "the tables are not as declared";

fn are_tables_well(checks: &[Check]) -> bool {
    let mut of_tables = checks.iter();
    of_tables.all(|check| check.name != clickhouse::TABLES || check.result != Outcome::Fail)
}

/// What is to be read: what is asked for, else what was loaded last.
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

/// Those that the command line names.
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
