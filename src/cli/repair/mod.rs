//! `sluice repair`

mod assess;
mod carry_out;
mod select;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use serde::Serialize;

use self::assess::Assessed;
use self::carry_out::Done;
use super::app::{App, region};
use super::output::{Output, shown};
use super::stop::stop_on_signals;
use super::verify::wrapped;
use super::{Incomplete, Misuse};
use crate::object::ObjectUrl;
use crate::s3::Store;
use crate::telemetry::start_logging;
use crate::verify::VerifyOptions;
use sluice_core::verify::RepairAction;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Repair this object, such as s3://bucket/key (can be repeated)
    #[arg(long = "object", value_name = "S3-URL", conflicts_with_all = ["prefix", "from"])]
    objects: Vec<ObjectUrl>,

    /// Repair the objects under this prefix, such as s3://bucket/2026/
    #[arg(long, value_name = "S3-URL", conflicts_with = "from")]
    prefix: Option<ObjectUrl>,

    /// Repair the objects in this output of `sluice verify --output json`; `-` is standard input
    #[arg(long, value_name = "FILE")]
    from: Option<String>,

    /// Also reload objects of which rows are missing for an unknown reason
    ///
    /// Rows that somebody has deleted on purpose can then come back.
    #[arg(long)]
    unexplained: bool,

    /// Read at most COUNT objects with missing rows again, for each table
    #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
    read: usize,

    /// Carry out the plan instead of printing it
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.objects.is_empty() && arguments.prefix.is_none() && arguments.from.is_none() {
        return Err(Misuse("name objects with --object, --prefix or --from").into());
    }
    if arguments.yes {
        start_logging(&app.config.log)?;
    }
    let stop = stop_on_signals()?;
    let catalog = app.catalog()?;
    let aws = app.aws().await;
    let store = Store::new(&aws);
    let selected = select::selected(app, arguments, &store).await?;
    let planner = app.planner(catalog.clone(), region(&aws))?;
    let options = VerifyOptions {
        tables: Vec::new(),
        max_reread: arguments.read,
    };
    let assessed = assess::assess(
        app,
        &store,
        &planner,
        selected,
        options,
        arguments.unexplained,
    );
    let assessed = assessed.await?;
    let mut report = Report::of(&assessed, !arguments.yes);
    let mut result = Ok(());
    if arguments.yes {
        result = carry_out::carry_out(app, &aws, &catalog, assessed, &stop, &mut report.done).await;
    }
    arguments.output.show(&report)?;
    result.context("failed to repair some objects; run it again")?;
    if arguments.yes && (report.done.not_loaded > 0 || report.left > 0 || stop.is_cancelled()) {
        let text = "some objects are not repaired; see above";
        return Err(Incomplete(text.to_owned()).into());
    }
    Ok(())
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    objects: Vec<Planned>,
    /// The number of objects of which something remains wrong.
    left: u64,
    #[serde(skip_serializing_if = "Done::is_nothing")]
    done: Done,
}

#[derive(Serialize)]
struct Planned {
    object: String,
    etag: String,
    actions: Vec<&'static str>,
    reason: String,
    /// The verdicts, by table.
    verdicts: BTreeMap<String, Vec<&'static str>>,
}

impl Report {
    fn of(assessed: &[Assessed], dry_run: bool) -> Self {
        let planned = assessed.iter().map(|it| {
            let mut verdicts: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
            for finding in &it.findings {
                let of_table = verdicts.entry(finding.table.clone()).or_default();
                of_table.push(finding.judgement.verdict.label());
            }
            Planned {
                object: it.object.to_string(),
                etag: it.object.etag.clone(),
                actions: it.plan.actions.iter().map(|it| it.label()).collect(),
                reason: it.plan.reason.clone(),
                verdicts,
            }
        });
        Self {
            dry_run,
            objects: planned.collect(),
            left: assessed.iter().filter(|it| it.plan.is_left).count() as u64,
            done: Done::default(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.objects.is_empty() {
            return writeln!(f, "nothing to repair");
        }
        for planned in &self.objects {
            writeln!(f, "{}", shown(&planned.object))?;
            let actions = if planned.actions.is_empty() {
                "nothing".to_owned()
            } else {
                planned.actions.join(", ")
            };
            let text = format!("{actions}: {}", shown(&planned.reason));
            writeln!(f, "{}", wrapped(&text, 2))?;
        }
        writeln!(f)?;
        if self.dry_run {
            let due = self.objects.iter();
            let due = due.filter(|planned| !planned.actions.is_empty()).count();
            writeln!(f, "{due} objects would be repaired; pass --yes to do it")?;
        } else {
            write!(f, "{}", self.done)?;
        }
        if self.left > 0 {
            writeln!(f, "{} objects remain as they are", self.left)?;
        }
        Ok(())
    }
}

/// Returns whether the plan has this action.
fn has(assessed: &Assessed, action: RepairAction) -> bool {
    assessed.plan.actions.contains(&action)
}
