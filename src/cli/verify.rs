//! `sluice verify`

use std::collections::BTreeMap;
use std::time::SystemTime;

use anyhow::{Context, bail};
use serde::Serialize;

use super::app::{App, region};
use super::output::{Output, progress, shown, table};
use super::time_argument::parse_time_arg;
use super::{Findings, Misuse, note, print};
use crate::clickhouse::error_class::with_advice;
use crate::clickhouse::{Warehouse, WarehouseError};
use crate::object::ObjectUrl;
use crate::statements::insert::Planner;
use crate::statements::select::Target;
use crate::verify::{
    Finding, Verifier, VerifyOptions, VerifyProgress, VerifyScope, VerifySelection,
};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Only objects under this prefix, such as s3://bucket/2026/
    #[arg(value_name = "S3-URL")]
    prefix: Option<ObjectUrl>,

    /// Only objects that were claimed since TIME: a UTC date or time such as 2026-07-14T08:00:00Z,
    /// or 2h for 2h ago
    #[arg(long, value_name = "TIME", value_parser = parse_time_arg)]
    since: Option<SystemTime>,

    /// Only objects that were claimed before TIME
    #[arg(long, value_name = "TIME", value_parser = parse_time_arg)]
    until: Option<SystemTime>,

    /// Only this table (can be repeated)
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,

    /// Read at most COUNT objects with missing rows again, for each table
    ///
    /// ClickHouse reads the object, and compares its rows with the table. Without that, it is
    /// seldom known why rows are missing.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    read: usize,

    /// List at most COUNT findings; JSON has all of them
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,

    #[command(flatten)]
    output: Output,
}

/// The findings of one verdict and table.
#[derive(Default, Serialize)]
struct Count {
    findings: u64,
    rows: u64,
}

/// The last line of the output as JSON.
#[derive(Default, Serialize)]
struct Summary {
    /// The number of objects that were compared, approximately.
    objects: u64,
    /// Objects that differ because a batch is in progress on them.
    in_progress: u64,
    /// By verdict, and then by table.
    verdicts: BTreeMap<&'static str, BTreeMap<String, Count>>,
    /// Whether every difference is merged, expired or deleted on purpose.
    is_sound: bool,
}

#[derive(Serialize)]
struct LastLine<'a> {
    summary: &'a Summary,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let catalog = app.catalog()?;
    let known = Target::all(&catalog);
    for name in &arguments.tables {
        if !known.iter().any(|target| target.table() == name) {
            let names: Vec<&str> = known.iter().map(Target::table).collect();
            bail!(
                "no table {} is declared; use one of {}",
                shown(name),
                names.join(", ")
            );
        }
    }
    if let (Some(since), Some(until)) = (arguments.since, arguments.until)
        && since >= until
    {
        return Err(Misuse("--since must be before --until").into());
    }
    let scope = VerifyScope {
        selection: arguments
            .prefix
            .clone()
            .map_or(VerifySelection::All, VerifySelection::Prefix),
        since: arguments.since,
        until: arguments.until,
    };
    let options = VerifyOptions {
        tables: arguments.tables.clone(),
        max_reread: arguments.read,
    };
    let warehouse = app.warehouse()?;
    let planner = app.planner(catalog, region(&app.aws().await))?;
    let mut report = Report {
        arguments,
        summary: Summary {
            is_sound: true,
            ..Summary::default()
        },
        listed: 0,
        left: 0,
    };
    let add = |findings| report.add(findings);
    let compared = compare(app, &warehouse, &planner, options, scope, add).await?;
    report.summary.objects = compared.objects;
    report.summary.in_progress = compared.in_progress;
    report.end()?;
    if report.summary.is_sound {
        Ok(())
    } else {
        let text =
            "the tables do not have the rows that were loaded; see above, and `sluice repair`";
        Err(Findings(text.to_owned()).into())
    }
}

/// Compares the tables, with a progress bar on standard error.
pub(super) async fn compare(
    app: &App<'_>,
    warehouse: &Warehouse,
    planner: &Planner,
    options: VerifyOptions,
    scope: VerifyScope,
    mut on_findings: impl FnMut(Vec<Finding>) -> anyhow::Result<()>,
) -> anyhow::Result<VerifyProgress> {
    let timeout = app.config.clickhouse.insert_timeout.get();
    let verifier = Verifier::new(warehouse, planner, &app.env, options, scope, timeout);
    let verifier = verifier.await.map_err(|error| unanswered(app, &error))?;
    let bar = progress(0);
    let compared = verifier
        .run(|progress, findings| {
            bar.set_length(progress.all);
            bar.set_position(progress.done);
            bar.suspend(|| on_findings(findings))
        })
        .await;
    bar.finish_and_clear();
    compared.map_err(|error| match error.downcast::<WarehouseError>() {
        Ok(error) => unanswered(app, &error),
        Err(error) => error,
    })
}

fn unanswered(app: &App<'_>, error: &WarehouseError) -> anyhow::Error {
    let url = &app.config.clickhouse.url;
    anyhow::anyhow!(with_advice(error)).context(format!("failed to query ClickHouse at {url}"))
}

struct Report<'a> {
    arguments: &'a Arguments,
    summary: Summary,
    listed: usize,
    /// Findings beyond the limit.
    left: u64,
}

impl Report<'_> {
    fn add(&mut self, findings: Vec<Finding>) -> anyhow::Result<()> {
        for finding in findings {
            let verdict = finding.judgement.verdict;
            self.summary.is_sound &= verdict.is_sound();
            let by_table = self.summary.verdicts.entry(verdict.label()).or_default();
            let count = by_table.entry(finding.table.clone()).or_default();
            count.findings += 1;
            count.rows += finding.judgement.rows;
            if self.arguments.output.is_json() {
                let line = serde_json::to_string(&finding).context("a finding is valid JSON")?;
                print(&line)?;
            } else if self.listed < self.arguments.limit {
                self.listed += 1;
                print(&text_of(&finding))?;
            } else {
                self.left += 1;
            }
        }
        Ok(())
    }

    fn end(&self) -> anyhow::Result<()> {
        let Summary {
            objects,
            in_progress,
            verdicts,
            ..
        } = &self.summary;
        if self.arguments.output.is_json() {
            let last = LastLine {
                summary: &self.summary,
            };
            return print(&serde_json::to_string(&last)?);
        }
        if self.left > 0 {
            note(&format!(
                "and {} more; raise --limit to list them",
                self.left
            ));
        }
        let rows = verdicts.iter().flat_map(|(verdict, tables)| {
            tables.iter().map(move |(name, count)| {
                vec![
                    (*verdict).to_owned(),
                    name.clone(),
                    count.findings.to_string(),
                    count.rows.to_string(),
                ]
            })
        });
        let mut text = format!("about {objects} objects compared");
        if *in_progress > 0 {
            text += &format!("; {in_progress} differ because a batch is in progress on them");
        }
        if verdicts.is_empty() {
            text += "\nevery table has the rows that were loaded";
        } else {
            text += "\n\n";
            text += &table(&["verdict", "table", "objects", "rows"], rows);
        }
        print(&text)
    }
}

/// The width of the text output, in characters, apart from names.
const WIDTH: usize = 80;

/// Returns a finding as it is listed: the object, and what was found, wrapped.
fn text_of(finding: &Finding) -> String {
    let judgement = &finding.judgement;
    let (verdict, confidence) = (judgement.verdict.label(), judgement.confidence.label());
    let (found, expected) = (finding.found, finding.expected);
    format!(
        "{}\n  {}: {} {verdict} ({confidence}); has {found} of {expected} rows\n{}",
        shown(&finding.object),
        shown(&finding.table),
        judgement.rows,
        wrapped(&shown(&judgement.evidence), 4)
    )
}

/// Returns a text as lines of at most [`WIDTH`] characters, with an indentation. A longer word has a
/// line of its own.
pub(super) fn wrapped(text: &str, indentation: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let room = WIDTH - indentation;
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    let lines = lines
        .iter()
        .map(|line| format!("{:indentation$}{line}", ""));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_wrapped_at_eighty_columns() {
        let text = wrapped(&"word ".repeat(40), 4);
        assert!(
            text.lines()
                .all(|line| line.len() <= WIDTH && line.starts_with("    word"))
        );
        assert_eq!(text.split_whitespace().count(), 40);
        assert_eq!(wrapped("", 4), "");
    }
}
