//! `sluice rejects replay`

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::choice::Filters;
use crate::cli::note;
use crate::cli::output::{Output, progress, shown};
use crate::cli::stop::stop_on_signals;
use crate::rejects::replay::{Replayer, Tally};
use crate::rejects::{RejectPage, RejectSelector, Rejects};

#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    filters: Filters,

    /// Print what would be moved and what would be left, without changing anything
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    output: Output,
}

/// What was done, or would be done.
#[derive(Default, Serialize)]
struct Report {
    dry_run: bool,
    /// Lines, by event type.
    moved: BTreeMap<String, u64>,
    /// Lines that are still not valid rows, by reason.
    left: BTreeMap<String, u64>,
    /// Lines of objects that are in progress elsewhere.
    in_hand: u64,
    /// Earlier replays that were interrupted, and that this one finished.
    finished: u64,
    /// Whether it was stopped before the end.
    stopped: bool,
}

pub(super) async fn run(
    rejects: &Rejects,
    replayer: &Replayer,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let replay = Replay {
        rejects,
        replayer,
        selector: (&arguments.filters).into(),
        dry_run: arguments.dry_run,
        stop: stop_on_signals()?,
    };
    let mut report = Report {
        dry_run: arguments.dry_run,
        ..Report::default()
    };
    let result = replay.run(&mut report).await;
    arguments.output.show(&report)?;
    result.context("failed to replay all lines; run it again to finish")
}

struct Replay<'a> {
    rejects: &'a Rejects,
    replayer: &'a Replayer,
    selector: RejectSelector,
    dry_run: bool,
    stop: CancellationToken,
}

impl Replay<'_> {
    async fn run(&self, report: &mut Report) -> anyhow::Result<()> {
        if !self.dry_run {
            let (finished, tally) = self.replayer.finish_others().await?;
            report.finished = finished;
            report.add(tally);
        }
        let lines = self.rejects.count(&self.selector).await?;
        if !self.dry_run {
            note(&format!(
                "replaying {lines} rejects: those that have become valid rows are moved to their \
                 tables"
            ));
        }
        let bar = progress(lines);
        for kind in self.selector.kinds() {
            let mut last = None;
            while let Some(page) = self
                .rejects
                .page(kind, &self.selector, last.as_ref())
                .await?
            {
                if self.stop.is_cancelled() {
                    report.stopped = true;
                    return Ok(());
                }
                report.add(self.page(&page).await?);
                bar.inc(page.lines);
                last = Some(page.last);
            }
        }
        Ok(())
    }

    async fn page(&self, page: &RejectPage) -> anyhow::Result<Tally> {
        Ok(if self.dry_run {
            self.replayer.preview(page).await?
        } else {
            self.replayer.replay(page).await?
        })
    }
}

impl Report {
    fn add(&mut self, tally: Tally) {
        for (sums, counts) in [(&mut self.moved, tally.moved), (&mut self.left, tally.left)] {
            for (name, lines) in counts {
                *sums.entry(name).or_default() += lines;
            }
        }
        self.in_hand += tally.in_hand;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let would = if self.dry_run { "would be " } else { "" };
        if self.finished > 0 {
            writeln!(
                f,
                "finished {} earlier replays that were interrupted",
                self.finished
            )?;
        }
        let sum = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
        writeln!(f, "{} lines {would}moved", sum(&self.moved))?;
        for (kind, lines) in &self.moved {
            writeln!(f, "  {lines} {}", shown(kind))?;
        }
        writeln!(f, "{} {would}left", sum(&self.left))?;
        for (reason, lines) in &self.left {
            writeln!(f, "  {lines} {}", shown(reason))?;
        }
        if self.in_hand > 0 {
            writeln!(
                f,
                "{} left: their objects are in progress elsewhere; run it again later",
                self.in_hand
            )?;
        }
        if self.stopped {
            writeln!(f, "stopped before the end; the other lines are unchanged")?;
        }
        Ok(())
    }
}
