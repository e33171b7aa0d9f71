//! `cargo xtask tour`: records a terminal session with the operator's commands.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_testkit::xapi::{Generator, gzip};
use sluice_testkit::{Site, SiteOptions, Stack, wait_for};

use crate::console::note;
use crate::demo::daemon::Daemon;

const PAGE: &str = "docs/tour.md";
const BOUND: Duration = Duration::from_secs(120);

pub(crate) async fn run() -> Result<ExitCode> {
    let binary = crate::build::sluice()?;
    let stack = Stack::connect_or_start()?;
    let options = SiteOptions {
        max_receive_count: 1,
        ..SiteOptions::default()
    };
    let site = stack.site_with("tour", options).await?;
    let daemon = Daemon::start(&binary, &stack, &site).await?;
    let mut tour = Tour {
        text: String::from(INTRODUCTION),
        binary,
        configuration: daemon.configuration(),
        stack: &stack,
    };
    let outcome = record(&mut tour, &site).await;
    outcome.map_err(|error| daemon.explain(error))?;
    std::fs::write(PAGE, tour.text).with_context(|| format!("cannot write {PAGE}"))?;
    note(&format!("wrote {PAGE}"));
    Ok(ExitCode::SUCCESS)
}

const INTRODUCTION: &str = "# A tour of the commands

This session was recorded by `cargo xtask tour` on the embedded stack: each command follows a `$`, \
and its output follows the command. `SLUICE_CONFIG` names the configuration, and a worker is \
running.
";

async fn record(tour: &mut Tour<'_>, site: &Site) -> Result<()> {
    let bucket = format!("s3://{}", site.bucket);
    for bundle in Generator::new(7).sizes(20..=60).take(12) {
        let key = format!("live/{}", bundle.key);
        site.put(&key, bundle.bytes).await?;
    }
    let good = "{\"verb\":{\"id\":\"nobody/knows\"}}\nno JSON\n";
    site.put("live/odd.jsonl", good).await?;
    site.put("live/broken.jsonl.gz", "no gzip").await?;
    wait_for("everything to be settled", BOUND, async || {
        let is_settled = site.queue_depth().await? == (0, 0) && site.dlq_depth().await? == 1;
        Ok(is_settled.then_some(()))
    })
    .await;

    tour.chapter("Is everything set up?");
    tour.sluice(&["check", &format!("{bucket}/live/odd.jsonl")])?;

    tour.chapter("How is the worker doing?");
    tour.sluice(&["status"])?;

    tour.chapter("What failed, and why?");
    tour.sluice(&["status", "--failed"])?;
    tour.sluice(&["status", &format!("{bucket}/live/broken.jsonl.gz")])?;
    tour.sluice(&["dlq", "list"])?;

    tour.chapter("The object was fixed: load it again");
    site.stop_notifications().await?;
    site.put("live/broken.jsonl.gz", gzip(good.as_bytes()))
        .await?;
    tour.sluice(&["dlq", "redrive", "--dry-run"])?;
    tour.sluice(&["dlq", "redrive"])?;
    wait_for("the dead letter to be loaded", BOUND, async || {
        let is_settled = site.queue_depth().await? == (0, 0) && site.dlq_depth().await? == 0;
        Ok(is_settled.then_some(()))
    })
    .await;
    tour.sluice(&["status", &format!("{bucket}/live/broken.jsonl.gz")])?;

    tour.chapter("Lines that did not become rows");
    tour.sluice(&["rejects", "list"])?;
    tour.sluice(&["rejects", "show", &format!("{bucket}/live/odd.jsonl")])?;
    tour.sluice(&["rejects", "replay", "--dry-run"])?;

    tour.chapter("Loading history");
    for bundle in Generator::new(8).sizes(20..=60).take(30) {
        let key = format!("history/2026/10/{}", bundle.key);
        site.put(&key, bundle.bytes).await?;
    }
    let history = format!("{bucket}/history/");
    tour.sluice(&["reconcile", &bucket, "--limit", "3"])?;
    tour.sluice(&["backfill", &history, "--dry-run"])?;
    tour.sluice(&["backfill", &history])?;
    tour.sluice(&["backfill", &history])?;
    tour.sluice(&["reconcile", &bucket])?;

    tour.chapter("What would a line become?");
    tour.sluice(&["types", "list"])?;
    let preview = format!("{bucket}/live/odd.jsonl");
    tour.sluice(&["types", "preview", &preview])?;
    Ok(())
}

struct Tour<'a> {
    text: String,
    binary: PathBuf,
    configuration: PathBuf,
    stack: &'a Stack,
}

impl Tour<'_> {
    fn chapter(&mut self, title: &str) {
        self.text += &format!("\n## {title}\n");
    }

    /// Runs a command and records its output.
    fn sluice(&mut self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.binary)
            .args(arguments)
            .env("SLUICE_CONFIG", &self.configuration)
            .env("NO_COLOR", "1")
            .envs(self.stack.aws.environment())
            .output()?;
        let printed = [output.stderr, output.stdout].concat();
        let printed = String::from_utf8(printed)?;
        let command = arguments.join(" ");
        // Both exit codes mean that the output needs attention.
        ensure!(
            matches!(output.status.code(), Some(0 | 1 | 3)),
            "sluice {command}: {}\n{printed}",
            output.status
        );
        let lines = printed.trim_end().lines().map(str::trim_end);
        let printed: String = lines.flat_map(|line| [line, "\n"]).collect();
        write!(
            self.text,
            "\n```console\n$ sluice {command}\n{printed}```\n"
        )?;
        Ok(())
    }
}
