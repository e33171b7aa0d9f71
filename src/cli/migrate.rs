//! `sluice migrate`

use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::app::{App, BadEventTypes};
use super::output::{Output, shown};
use super::print;
use crate::clickhouse::dependents::{Dependent, Memory, adopt, dependents};
use crate::clickhouse::migrate::{Plan, Refusal};
use crate::clickhouse::{TABLE_IS_READ_ONLY, Warehouse, WarehouseError, migrate, validate};
use crate::ledger::history::{History, WorkerOfOtherPlan};
use crate::statements::ddl::{Statement, statements};

#[derive(Args)]
pub(super) struct Arguments {
    /// Print the SQL statements for this server instead of running them
    #[arg(long)]
    dry_run: bool,

    /// Print the SQL statements for an empty server, without connecting to a server
    #[arg(long, conflicts_with_all = ["dry_run", "prune"])]
    print: bool,

    /// Also drop the landing tables and views of other declarations, which contain no rows
    ///
    /// Refused while a worker with other declarations or another configuration has an open batch,
    /// or has claimed objects within the last ten minutes.
    #[arg(long)]
    prune: bool,

    /// Set the deduplication windows of the tables that your own views fill, so that a retry does
    /// not duplicate rows there
    #[arg(long, conflicts_with = "print")]
    adopt_views: bool,

    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(app: &App<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let url = &app.config.clickhouse.url;
    let options = app.schema_options();
    let catalog = app.catalog()?;
    if arguments.print {
        return print(statements_text(&statements(&catalog, &options)).trim_end());
    }
    let warehouse = app.warehouse()?;
    let problems = validate::problems(&warehouse, &catalog, &options).await;
    let problems =
        problems.with_context(|| format!("failed to validate the declarations at {url}"))?;
    if !problems.is_empty() {
        return Err(BadEventTypes(problems).into());
    }
    let mut plan = migrate::plan(&warehouse, &catalog, &options)
        .await
        .with_context(|| format!("failed to compare the tables at {url}"))?;
    if arguments.prune {
        plan.kept.clear();
        let dropped = migrate::prune(&warehouse, &catalog, &options).await?;
        if let Some(first) = dropped.first() {
            let own = app.planner(catalog.clone(), "")?.plan_id();
            plan.refusals
                .extend(users_of(&first.what, &warehouse, own).await?);
        }
        plan.statements.extend(dropped);
    }
    let is_refused = !plan.refusals.is_empty();
    let mut views = dependents(&warehouse, &catalog)
        .await
        .with_context(|| format!("failed to list the views at {url}"))?;
    views.retain(|view| view.memory != Memory::Remembers);
    if arguments.adopt_views {
        plan.statements.extend(adopt(&views, &options));
        views.retain(|view| view.memory == Memory::Never);
    }
    if !arguments.dry_run && !is_refused {
        for Statement { what, sql } in &plan.statements {
            let done = run_once_writable(&warehouse, sql).await;
            done.with_context(|| format!("failed to create or alter {what} at {url}"))?;
        }
    }
    let report = Report {
        dry_run: arguments.dry_run,
        plan,
        forgetful_views: views,
    };
    arguments.output.show(&report)?;
    ensure!(!is_refused, "nothing was changed; see above");
    Ok(())
}

/// Runs a statement, and repeats it while its table is read-only, as a replicated table is for a
/// moment after it was created.
async fn run_once_writable(warehouse: &Warehouse, sql: &str) -> Result<(), WarehouseError> {
    const BOUND: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_millis(200);
    let begun = Instant::now();
    loop {
        match warehouse.run(sql).await {
            Err(error) if error.code() == Some(TABLE_IS_READ_ONLY) && begun.elapsed() < BOUND => {
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// A worker that has claimed no objects for this long is considered stopped.
const RECENT: Duration = Duration::from_secs(600);

/// Returns a refusal for each worker that may still insert into the tables to be dropped, of which
/// `table` is the first.
async fn users_of(
    table: &str,
    warehouse: &Warehouse,
    own_plan: Uuid,
) -> anyhow::Result<Vec<Refusal>> {
    let history = History::new(warehouse.clone());
    let workers = history.workers_of_other_plans(own_plan, RECENT).await;
    let workers = workers.context(
        "failed to determine which workers use the tables to be dropped; if the ledger was created \
         by an earlier version, run `sluice migrate` without --prune first",
    )?;
    let refusal = |user: WorkerOfOtherPlan| Refusal {
        table: table.to_owned(),
        problem: format!(
            "worker {} may still use it: its declarations or its configuration differ, its latest \
             batch claimed objects at {} (UTC), and it has {} open batches",
            user.worker, user.sealed_at, user.open_batches
        ),
        advice: format!(
            "stop that worker, and wait until its open batches are loaded or released and its \
             latest batch is {} old; if its declarations are the same, run this command with its \
             configuration instead; batches that a crashed worker left open are recovered once a \
             worker receives their objects again (`sluice reconcile --enqueue`)",
            humantime::format_duration(RECENT)
        ),
    };
    Ok(workers.into_iter().map(refusal).collect())
}

fn statements_text(statements: &[Statement]) -> String {
    statements
        .iter()
        .map(|statement| format!("-- {}\n{};\n\n", shown(&statement.what), statement.sql))
        .collect()
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    #[serde(flatten)]
    plan: Plan,
    forgetful_views: Vec<Dependent>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.dry_run {
            return self.remark(f);
        }
        let mut remarks = String::new();
        self.remark(&mut remarks)?;
        for line in remarks.lines() {
            writeln!(f, "-- {line}")?;
        }
        if self.plan.refusals.is_empty() {
            write!(f, "{}", statements_text(&self.plan.statements))?;
        }
        Ok(())
    }
}

impl Report {
    /// Writes everything but the statements. A dry run prints it as comments, so that its output
    /// can be run.
    fn remark(&self, f: &mut impl fmt::Write) -> fmt::Result {
        let Plan {
            statements,
            refusals,
            kept,
        } = &self.plan;
        for refusal in refusals {
            writeln!(
                f,
                "refused: table {}: {}\n  help: {}",
                shown(&refusal.table),
                shown(&refusal.problem),
                shown(&refusal.advice)
            )?;
        }
        if !refusals.is_empty() {
            return Ok(());
        }
        for kept in kept {
            writeln!(f, "kept: {}", shown(kept))?;
        }
        if !self.dry_run {
            for statement in statements {
                writeln!(f, "done: {}", shown(&statement.what))?;
            }
        }
        if statements.is_empty() {
            writeln!(f, "everything is as declared")?;
        }
        for view in &self.forgetful_views {
            writeln!(
                f,
                "warning: {}\n  help: {}",
                shown(&view.problem()),
                shown(view.advice())
            )?;
        }
        Ok(())
    }
}
