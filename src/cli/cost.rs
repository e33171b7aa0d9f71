//! `sluice cost`

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use bytesize::ByteSize;
use serde::Serialize;
use sluice_core::cost::prices::{DEFAULT, Price, Prices};
use sluice_core::cost::{Amounts, Items, Usage, divide};

use super::app::App;
use super::output::{Output, shown, table};
use super::print;
use crate::clickhouse::error_class::with_advice;
use crate::usage::report;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Report the last COUNT days (UTC), today included
    #[arg(long, value_name = "COUNT", default_value_t = 7,
          value_parser = clap::value_parser!(u16).range(1..=366))]
    days: u16,

    /// File with prices (YAML), instead of those that come with Sluice
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,

    /// Print the prices that come with Sluice, to be edited and passed with --prices
    #[arg(long, conflicts_with_all = ["days", "prices", "format"])]
    print_prices: bool,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.print_prices {
        return print(DEFAULT.trim_end());
    }
    let prices = match &arguments.prices {
        Some(path) => read_prices(path)?,
        None => Prices::default(),
    };
    let warehouse = app.warehouse()?;
    let used = report::used(&warehouse, arguments.days).await;
    let used = used.map_err(|error| {
        let url = &app.config.clickhouse.url;
        anyhow!(
            "failed to query ClickHouse at {url}: {}",
            with_advice(&error)
        )
    })?;
    let usage = divide(&used.clickhouse, &used.workers, &used.loaded);
    arguments
        .output
        .show(&Report::new(arguments.days, usage, prices))
}

fn read_prices(path: &Path) -> anyhow::Result<Prices> {
    let place = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {place}"))?;
    Prices::from_yaml(&text).map_err(|problem| anyhow!("{place}: {problem}"))
}

#[derive(Serialize)]
struct Report {
    days: u16,
    currency: String,
    /// The latest day first.
    usage: Vec<PricedUsage>,
    total: Priced,
    prices: Items<Price>,
}

#[derive(Serialize)]
struct PricedUsage {
    #[serde(flatten)]
    usage: Usage,
    cost: f64,
}

/// Amounts, and what each of them costs.
#[derive(Serialize)]
struct Priced {
    amounts: Amounts,
    costs: Amounts,
    cost: f64,
}

impl Report {
    fn new(days: u16, usage: Vec<Usage>, prices: Prices) -> Self {
        let total = usage.iter().fold(Amounts::default(), |sum, usage| {
            sum.with(&usage.amounts, |sum, amount| sum + amount)
        });
        let costs = prices.cost(&total);
        let usage = usage.into_iter().map(|usage| PricedUsage {
            cost: prices.cost(&usage.amounts).total(),
            usage,
        });
        Self {
            days,
            usage: usage.collect(),
            total: Priced {
                amounts: total,
                costs,
                cost: costs.total(),
            },
            currency: prices.currency,
            prices: prices.prices,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.usage.is_empty() {
            return writeln!(
                f,
                "nothing is recorded for the last {} days: workers record what they use every five \
                 minutes and when they stop",
                self.days
            );
        }
        let currency = shown(&self.currency);
        let header = [
            "day (UTC)",
            "event type",
            "SQS",
            "S3",
            "read",
            "CPU s",
            &currency,
        ];
        writeln!(f, "{}", table(&header, self.usage.iter().map(row)))?;
        let Priced {
            amounts,
            costs,
            cost,
        } = &self.total;
        let items = self.prices.named().into_iter();
        let items = items.zip(amounts.named()).zip(costs.named());
        let items = items.map(|(((name, price), (_, amount)), (_, cost))| {
            vec![
                title(name),
                format!("{amount:.0}"),
                format!("{} per {} {}", price.price, price.per, price.unit),
                money(*cost),
            ]
        });
        let header = ["", "amount", "price", &currency];
        writeln!(f, "\n{}", table(&header, items))?;
        writeln!(f, "\ntotal: {} {currency}", money(*cost))?;
        write!(
            f,
            "an estimate; `sluice cost --print-prices` prints a table of prices to be edited"
        )
    }
}

fn row(PricedUsage { usage, cost }: &PricedUsage) -> Vec<String> {
    let amounts = &usage.amounts;
    let s3_requests = amounts.s3_read_requests + amounts.s3_write_requests;
    let seconds = amounts.clickhouse_processor_seconds + amounts.worker_processor_seconds;
    vec![
        usage.day.clone(),
        usage.event_type.clone(),
        format!("{:.0}", amounts.sqs_requests),
        format!("{s3_requests:.0}"),
        size(amounts.s3_bytes),
        format!("{seconds:.1}"),
        money(*cost),
    ]
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a sum of sizes, rounded for display"
)]
fn size(bytes: f64) -> String {
    ByteSize::b(bytes.round() as u64).to_string()
}

/// Returns the heading of an item, such as `sqs requests`.
fn title(item: &str) -> String {
    item.replace("processor_seconds", "CPU s").replace('_', " ")
}

/// Returns an amount of money. A batch costs fractions of a cent.
fn money(amount: f64) -> String {
    format!("{amount:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(event_type: &str, requests: f64) -> Usage {
        Usage {
            day: "2026-11-30".to_owned(),
            event_type: event_type.to_owned(),
            lines: 1_000_000,
            amounts: Amounts {
                sqs_requests: requests,
                s3_read_requests: 2.0 * requests,
                s3_write_requests: 0.0,
                s3_bytes: 1000.0 * requests,
                clickhouse_processor_seconds: 4.0,
                worker_processor_seconds: 1.0,
            },
        }
    }

    #[test]
    fn a_report_fits_into_80_columns() {
        let usage = vec![usage("activity_attempt", 123_456.0), usage("(none)", 0.4)];
        let report = Report::new(7, usage, Prices::default()).to_string();
        for line in report.lines() {
            assert!(line.chars().count() <= 80, "{line}\n{report}");
        }
        assert!(report.contains("activity_attempt"), "{report}");
        assert!(report.contains("0.4 per 1000000 requests"), "{report}");
    }

    #[test]
    fn the_total_is_the_sum_of_the_rows() {
        let usage = vec![usage("video", 1e6), usage("page", 5e5)];
        let report = Report::new(7, usage, Prices::default());
        let rows: f64 = report.usage.iter().map(|row| row.cost).sum();
        assert!((report.total.cost - rows).abs() < 1e-9);
        assert_eq!(report.total.amounts.sqs_requests, 1.5e6);
    }
}
