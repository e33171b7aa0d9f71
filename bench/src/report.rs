//! Writes results to docs/performance.md: tables between markers, with plots and raw results in
//! files.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sluice_testkit::project;

use crate::backfill::Backfill;
use crate::compare::Comparison;
use crate::formats::{self, FormatResult};
use crate::growth::Growth;
use crate::in_flight::InFlight;
use crate::steady::Steady;
use crate::workers::Workers;
use crate::{plot, results};

const PAGE: &str = "docs/performance.md";
const RAW: &str = "docs/performance";
/// The prefix of the names of results against an older program.
pub(crate) const BASELINE_PREFIX: &str = "baseline-";

pub(crate) fn write() -> Result<()> {
    let raw = project::path(RAW);
    fs::create_dir_all(&raw)?;
    let mut page = project::read(PAGE);
    let mut comparisons = Vec::new();
    let mut figures = Vec::new();
    for entry in fs::read_dir(results())? {
        let path = entry?.path();
        let (Some(name), Some(file)) = (path.file_stem(), path.file_name()) else {
            continue;
        };
        let name = name.to_string_lossy();
        // A comparison with an older program checks a change and is not published on the page.
        if name.starts_with(BASELINE_PREFIX) {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        fs::write(raw.join(file), &text)?;
        match &*name {
            "growth" => figures.push(serde_json::from_str::<Growth>(&text)?.row()),
            "backfill" => {
                let backfills: Vec<Backfill> = serde_json::from_str(&text)?;
                figures.extend(backfills.iter().map(Backfill::row));
            }
            "in-flight" => {
                let in_flight: Vec<InFlight> = serde_json::from_str(&text)?;
                figures.extend(in_flight.iter().map(InFlight::row));
            }
            "formats" => {
                let results: Vec<FormatResult> = serde_json::from_str(&text)?;
                page = replaced(&page, "formats", &formats::table(&results))?;
            }
            name if name.starts_with("workers") => {
                figures.push(serde_json::from_str::<Workers>(&text)?.rows());
            }
            name if name.starts_with("compare-") => {
                comparisons.push(serde_json::from_str::<Comparison>(&text)?);
            }
            name => {
                let steady: Steady = serde_json::from_str(&text)?;
                steady.draw(&raw.join(format!("{name}.svg")))?;
                figures.push(steady.rows());
            }
        }
    }
    comparisons.sort_by_key(|it| std::cmp::Reverse(it.size.objects));
    for comparison in &comparisons {
        draw(&raw, comparison)?;
    }
    page = replaced(&page, "compared", &table(&comparisons))?;
    page = replaced(&page, "cost", &costs(&comparisons))?;
    figures.sort_unstable();
    let figures = format!("| | |\n|---|---|\n{}", figures.concat());
    page = replaced(&page, "figures", &figures)?;
    fs::write(project::path(PAGE), page)?;
    Ok(())
}

/// Replaces the text between the markers of this name.
fn replaced(page: &str, name: &str, text: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let missing = || format!("{PAGE} has no {name} between markers");
    let (before, rest) = page.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    Ok(format!("{before}{begin}{text}{end}{after}"))
}

/// Formats the seconds for the whole workload, with the ratio to the limit in brackets.
fn table(comparisons: &[Comparison]) -> String {
    let Some(first) = comparisons.first() else {
        return String::new();
    };
    let names: Vec<&str> = first
        .contenders
        .iter()
        .map(|contender| contender.name.as_str())
        .collect();
    let mut text = format!(
        "| workload | {} |\n|---|{}\n",
        names.join(" | "),
        "---|".repeat(names.len())
    );
    for comparison in comparisons {
        let cells = names.iter().map(|name| {
            let (Some(seconds), Some(limit)) =
                (comparison.seconds(name), comparison.seconds("limit"))
            else {
                return String::from("not run");
            };
            format!("{seconds:.2} s ({:.2})", seconds / limit)
        });
        let cells: Vec<String> = cells.collect();
        let size = comparison.size;
        text += &format!(
            "| {}: {} objects, {:.0} MB | {} |\n",
            comparison.workload,
            size.objects,
            megabytes(size.bytes),
            cells.join(" | ")
        );
    }
    text
}

fn costs(comparisons: &[Comparison]) -> String {
    let mut text = String::from(
        "| workload | | CPU of the worker, per 1,000 objects | peak resident memory | requests to SQS, \
         per object | HEAD and GET, per object | listings, per object |\n|---|---|---|---|---|---|---|\n",
    );
    for comparison in comparisons {
        for contender in &comparison.contenders {
            let Some([cpu_ms, mib, sqs, s3, lists]) = contender.median_cost() else {
                continue;
            };
            text += &format!(
                "| {} | {} | {cpu_ms:.0} ms | {mib:.0} MiB | {sqs:.2} | {s3:.2} | {lists:.2} |\n",
                comparison.workload, contender.name
            );
        }
    }
    text
}

fn draw(raw: &Path, comparison: &Comparison) -> Result<()> {
    let Some(limit) = comparison.seconds("limit") else {
        return Ok(());
    };
    let bars: Vec<(String, f64)> = comparison
        .contenders
        .iter()
        .filter_map(|contender| {
            Some((
                contender.name.clone(),
                comparison.seconds(&contender.name)? / limit,
            ))
        })
        .collect();
    let title = format!(
        "{}: time against the limit, shorter is better",
        comparison.workload
    );
    plot::bars(
        &raw.join(format!("{}.svg", comparison.workload)),
        &title,
        &bars,
    )
}

#[expect(clippy::cast_precision_loss, reason = "for a person to read")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
